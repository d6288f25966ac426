"""Sizes, processors and durations as people write and read them. Pure.

Parsers raise ValueError with a sentence that says what is accepted; who calls them
adds the name of the flag.
"""

import re

MILLION = 1_000_000
BILLION = 1_000_000_000

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s|m|h|d)")
_SPAN_UNITS_US = {
    "us": 1,
    "ms": 1000,
    "s": MILLION,
    "m": 60 * MILLION,
    "h": 3600 * MILLION,
    "d": 86400 * MILLION,
}
_LARGEST = 2**63 - 1


def parse_bytes(text: str) -> int:
    """Read a size such as 64m, 1.5g or 1048576. The units are powers of 1024, as Docker's are."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with k, m, g or t")
    size = int(float(match[1]) * _SIZE_UNITS[match[2].lower()])
    if size > _LARGEST:
        raise ValueError(f"{text!r} is more than the largest size there is")
    return size


def parse_cpus(text: str) -> int:
    """Read processors such as 0.5 or 2 and return billionths of one."""
    if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text.strip()) is None:
        raise ValueError(f"{text!r} is not a number of processors: write 0.5, 1 or 2.25")
    whole, _, part = text.strip().partition(".")
    return int(whole) * BILLION + int(part.ljust(9, "0") or 0)


def parse_duration(text: str) -> int:
    """Read a duration such as 10s, 1m30s or 250ms and return microseconds. A bare 0 is none."""
    if text.strip() == "0":
        return 0
    parts = _SPAN.findall(text.strip())
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.strip():
        raise ValueError(f"{text!r} is not a duration: write 500ms, 10s, 1m30s or 2h")
    total = sum(round(float(number) * _SPAN_UNITS_US[unit]) for number, unit in parts)
    if total > _LARGEST // 1000:
        raise ValueError(f"{text!r} is longer than any duration there is")
    return total


def show_bytes(size: int) -> str:
    """Write a size with three digits at most, such as 1.5 GiB."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return _three_digits(amount, unit)
        amount /= 1024
    return _three_digits(amount, "TiB")


def _three_digits(amount: float, unit: str) -> str:
    if unit == "B" or amount >= 100:
        return f"{amount:.0f} {unit}"
    return f"{amount:.2g} {unit}" if amount < 10 else f"{amount:.3g} {unit}"


def show_cpus(nano_cpus: int) -> str:
    """Write billionths of a processor as processors, such as 0.25."""
    return f"{nano_cpus / BILLION:.2f}".rstrip("0").rstrip(".") or "0"


def show_span(seconds: float) -> str:
    """Write how long in one unit, as rough as people say it: 3 s, 5 min, 2 h, 9 d."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        # Two of a unit at least: "90 min" says more than "1 h".
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
