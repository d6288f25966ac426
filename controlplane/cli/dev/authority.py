"""The local cluster's two certificate authorities, and a certificate for each of its programs."""

import datetime

from controlplane.authority import files
from controlplane.authority.issuing import Holder, OtherRole
from controlplane.cli.dev import plan
from estiba.kit.tls import Role

Holders = dict[str, Holder]
"""By the name of their file."""


def holders(layout: plan.Layout) -> tuple[Holders, Holders]:
    """Return who holds a certificate of the cluster's authority, and who of the store's."""
    registry = ("registry.estiba", "localhost", str(plan.REGISTRY), "127.0.0.1")
    cluster = {
        "user": Holder(Role.USER, "admin"),
        "metrics": Holder(Role.METRICS, "prometheus"),
        "registry": Holder(OtherRole.REGISTRY, "registry", names=registry),
    }
    cluster |= {name: Holder(Role.MEMBER, name) for name in plan.MEMBERS}
    cluster |= {seat.hostname: Holder(Role.NODE, seat.id, seat.hostname) for seat in layout.seats}
    store = {
        "etcd": Holder(OtherRole.ETCD, "etcd", names=(str(plan.ETCD), "127.0.0.1")),
        "etcd-client": Holder(OtherRole.ETCD_CLIENT, "estibad"),
    }
    return cluster, store


def issue_all(layout: plan.Layout, now: datetime.datetime) -> None:
    """Make whatever authority or certificate is missing, or past half of its life."""
    layout.pem("ca").parent.mkdir(mode=0o700, exist_ok=True)
    cluster, store = holders(layout)
    for name, held in (("ca", cluster), ("etcd-ca", store)):
        authority = files.open_or_make_authority(
            layout.pem(name), layout.authority_key(name), f"estiba dev {name}", now
        )
        for file, holder in held.items():
            files.ensure_holder(layout.pem(file), authority, holder, now)
