"""Have the cluster's authority sign a certificate for the registry beside the control plane.

certificate.py ADDRESS USER FILE

A certificate and its key that are good are left as they are.
"""

import datetime
import pwd
import sys
from pathlib import Path

from controlplane.authority.files import ensure_holder, open_authority
from controlplane.authority.issuing import Holder, OtherRole
from controlplane.cli.setup.places import Places

# Nothing renews it, and it opens nothing of the cluster's.
LIFE = datetime.timedelta(days=3650)


def main() -> None:
    address, user, file = sys.argv[1:]
    entry = pwd.getpwnam(user)
    pki = Places().pki
    ensure_holder(
        Path(file),
        open_authority(pki / "ca.pem", pki / "ca-key.pem"),
        Holder(OtherRole.REGISTRY, "registry", names=("registry.estiba", address)),
        datetime.datetime.now(datetime.UTC),
        life=LIFE,
        owner=(entry.pw_uid, entry.pw_gid),
    )


if __name__ == "__main__":
    main()
