"""Read a configuration file of tables, and say which key is wrong. Knows no key itself."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from estiba.kit.tls import TlsFiles

T = TypeVar("T")


LOG_LEVELS = ("debug", "info", "warning", "error")


class TableError(ValueError):
    """A configuration file is not what it should be; the message names the key."""


def load(path: Path, parse: Callable[["Table"], T]) -> T:
    """Read a TOML file.

    Raises:
        TableError: it cannot be read, lacks a key, or has one too many or of a wrong
            kind; names the file and the key.
    """
    try:
        table = Table("", tomllib.loads(path.read_text()))
        parsed = parse(table)
        table.refuse_unknown()
    except OSError as fault:
        raise TableError(f"{path}: {fault.strerror}") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TableError) as fault:
        raise TableError(f"{path}: {fault}") from fault
    return parsed


class Table:
    """One table, which knows its own name and which of its keys were asked for."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name = name
        self._values = values
        self._asked: set[str] = set()
        self._tables: list[Table] = []

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise TableError(f"{self.name_of(key)}: {value!r} is no text")
        return value

    def choice(self, key: str, choices: Sequence[str], *, default: str) -> str:
        value = self.text(key, default=default)
        if value not in choices:
            raise TableError(f"{self.name_of(key)}: {value!r} is none of {', '.join(choices)}")
        return value

    def texts(self, key: str, *, default: Sequence[str] | None = None) -> tuple[str, ...]:
        values = self._get(key, None if default is None else list(default))
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise TableError(f"{self.name_of(key)}: {values!r} is no list of texts")
        return tuple(values)

    def number(self, key: str, *, default: int) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise TableError(f"{self.name_of(key)}: {value!r} is no whole number from 0")
        return value

    def decimal(self, key: str, *, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise TableError(f"{self.name_of(key)}: {value!r} is no number from 0")
        return value

    def tls_files(self) -> TlsFiles:
        """Read the keys ca, cert and key of this table."""
        return TlsFiles(
            ca=Path(self.text("ca")), cert=Path(self.text("cert")), key=Path(self.text("key"))
        )

    def names(self) -> list[str]:
        """Return the keys there are, for a table whose keys are names."""
        return list(self._values)

    def table(self, key: str, *, required: bool = True) -> "Table":
        value = self._get(key, None if required else {})
        if not isinstance(value, dict):
            raise TableError(f"{self.name_of(key)}: {value!r} is no table")
        table = Table(self.name_of(key), value)
        self._tables.append(table)
        return table

    def name_of(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def refuse_unknown(self) -> None:
        """Raise TableError for the first key that nobody asked for, in inner tables too."""
        for key in self._values:
            if key not in self._asked:
                raise TableError(f"{self.name_of(key)}: is no key of this file")
        for table in self._tables:
            table.refuse_unknown()

    def _get(self, key: str, default: object) -> object:
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise TableError(f"{self.name_of(key)}: is missing")
        return value
