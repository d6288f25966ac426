"""Which cluster is meant when nobody names one: what its cluster.json says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.cli.errors import CliError
from controlplane.cli.setup.places import places

DEFAULT_FOLDER = Path("/var/lib/estiba-dev")


def folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of the local cluster that is meant when nobody names one."""
    return Path(environment.get("ESTIBA_DIR") or DEFAULT_FOLDER)


def find(environment: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Read what is said of the local cluster, else of the one that this machine controls."""
    named = environment.get("ESTIBA_DIR")
    found = read(folder(environment) / "cluster.json")
    return found if found or named else read(places(environment).cluster_json)


def read(path: Path) -> Mapping[str, Any] | None:
    """Read a cluster.json; None while there is none."""
    try:
        described: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise CliError(f"cannot read {path}: are you root?") from error
    return described
