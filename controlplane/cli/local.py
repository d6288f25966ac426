"""Where the local cluster's folder is, and what its cluster.json says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.cli.errors import CliError

DEFAULT_FOLDER = Path("/var/lib/estiba-dev")


def folder(environment: Mapping[str, str]) -> Path:
    """Return the folder that is meant when nobody names one."""
    return Path(environment.get("ESTIBA_DIR") or DEFAULT_FOLDER)


def read(folder: Path) -> Mapping[str, Any] | None:
    """Read cluster.json; None while no cluster runs there."""
    path = folder / "cluster.json"
    try:
        described: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise CliError(f"cannot read {path}: are you root?") from error
    return described
