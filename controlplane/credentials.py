"""What estibad has of certificates and keys: read at the start, and again when files change."""

import asyncio

from controlplane.authority import issuing
from controlplane.authority.files import open_authority
from controlplane.authority.issuing import Authority
from controlplane.config import Config
from estiba.kit.clock import Clock
from estiba.kit.livetls import LiveTls


class Credentials:
    """Raises ValueError for files that are no good, and names them."""

    def __init__(self, config: Config) -> None:
        self.tls = LiveTls(config.tls)
        self.etcd_tls = LiveTls(config.etcd_tls)
        self.authority = _authority(config)

    async def run(self, clock: Clock) -> None:
        """Take over new certificates until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.tls.run(clock), name="certificates.member")
            group.create_task(self.etcd_tls.run(clock), name="certificates.etcd")


def _authority(config: Config) -> Authority | None:
    files = config.authority
    if files is None:
        return None
    authority = open_authority(files.cert, files.key)
    if not issuing.has_signed(authority, config.tls.cert.read_bytes()):
        # Whoever is admitted would know the cluster by this authority, and find another.
        raise ValueError(
            f"authority.cert: {files.cert} has not signed this member's certificate,"
            f" {config.tls.cert}"
        )
    return authority
