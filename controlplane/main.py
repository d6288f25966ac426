"""The command `estibad`.

gRPC's core decides what it says, and begins to say it, as it is imported: so we listen first,
and import the program then.
"""

import argparse
from pathlib import Path

from controlplane.api.corelog import hearing


def main() -> None:
    """Run ``estibad --config FILE``."""
    parser = argparse.ArgumentParser(prog="estibad", description="The control plane of Estiba.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    with hearing() as core:
        from controlplane.program import start

        start(arguments.config, core)


if __name__ == "__main__":
    main()
