"""Decide who a container runs as, from the text of its image's /etc/passwd and /etc/group."""

from dataclasses import dataclass

MAX_ID = 2**31 - 1
MAX_GROUPS = 1000
MAX_HOME_CHARACTERS = 4096


class UserError(ValueError):
    """The user or group cannot be had from this image."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Ids to run with, and the folder that HOME names."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve_user(user: str, passwd: str, group: str) -> Identity:
    """Return the identity that ``USER[:GROUP]`` names.

    A user by number need not be listed, and then has group 0 and the home "/". A
    group that is given replaces the user's own and leaves no supplementary ones.

    Args:
        user: names or numbers; empty is root.
        passwd: the text of /etc/passwd; lines that make no sense are passed over.
        group: the text of /etc/group, likewise.

    Raises:
        UserError: a name is not listed, a number is too large, or there are too many groups.
    """
    user_part, colon, group_part = user.partition(":")
    account = _account(user_part or "0", passwd)
    if colon and group_part:
        return Identity(account.uid, _group_id(group_part, group), (), account.home)
    members = (gid for gid, names in _groups(group).items() if account.name in names)
    groups = tuple(sorted({gid for gid in members if gid != account.gid}))
    if len(groups) > MAX_GROUPS:
        raise UserError(f"user {user} is in {len(groups)} groups, more than {MAX_GROUPS}")
    return Identity(account.uid, account.gid, groups if account.name else (), account.home)


def _account(user: str, passwd: str) -> _Account:
    number = _number(user, "user")
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) < 6:
            continue
        uid, gid = _listed(fields[2]), _listed(fields[3])
        if uid is None or gid is None:
            continue
        home = fields[5] if 0 < len(fields[5]) <= MAX_HOME_CHARACTERS else "/"
        found = _Account(fields[0], uid, gid, home)
        if user == found.name or (number is not None and number == found.uid):
            return found
    if number is None and user != "root":
        raise UserError(f"user {user} is not in the image's /etc/passwd")
    return _Account("", number or 0, 0, "/")


def _group_id(group: str, text: str) -> int:
    number = _number(group, "group")
    if number is not None:
        return number
    for line in text.splitlines():
        fields = line.split(":")
        gid = _listed(fields[2]) if len(fields) >= 3 and fields[0] == group else None
        if gid is not None:
            return gid
    if group == "root":
        return 0
    raise UserError(f"group {group} is not in the image's /etc/group")


def _groups(text: str) -> dict[int, set[str]]:
    members: dict[int, set[str]] = {}
    for line in text.splitlines():
        fields = line.split(":")
        gid = _listed(fields[2]) if len(fields) >= 4 else None
        if gid is not None:
            members.setdefault(gid, set()).update(fields[3].split(","))
    return members


def _number(text: str, kind: str) -> int | None:
    number = _listed(text)
    if number is None and text.isdecimal():
        raise UserError(f"{kind} {text} is above {MAX_ID}")
    return number


def _listed(text: str) -> int | None:
    """Return an id, None if the text is none that the kernel takes."""
    if not text.isdecimal() or len(text) > len(str(MAX_ID)):
        return None
    number = int(text)
    return number if number <= MAX_ID else None
