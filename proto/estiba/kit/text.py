"""Words of strangers, made fit to be stored and shown. Pure."""


def plain(text: str, *, most: int = 1000) -> str:
    """Return the text on one line, without what a terminal would obey, cut if it is long.

    Images, containers and nodes put words into our sentences: escapes that rewrite a
    screen, marks that turn the direction of writing, halves of characters that cannot
    be encoded. Spaces stay, other blanks become spaces, and what cannot be printed "?".
    """
    cut = text if len(text) <= most else f"{text[:most]}..."
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in cut)
