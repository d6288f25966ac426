"""Amounts of what a node has, as people write them. Pure."""

NANO = 1_000_000_000
_HUNDREDTH_CPU = NANO // 100
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def bytes_text(amount: int) -> str:
    """Render bytes in the largest unit that fits, cut (not rounded) after two digits."""
    for unit, size in _UNITS:
        if amount >= size:
            return f"{_cut(amount * 100 // size)} {unit}"
    return f"{amount} bytes"


def cpus_text(nano_cpus: int) -> str:
    if 0 < nano_cpus < _HUNDREDTH_CPU:
        return f"{nano_cpus} nano-cpus"
    text = _cut(nano_cpus * 100 // NANO)
    return f"{text} cpu" if text == "1" else f"{text} cpus"


def _cut(hundredths: int) -> str:
    whole, rest = divmod(hundredths, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") if rest else str(whole)
