"""Whose certificate this node shows: its own, for its own host name, or none.

With another one members would refuse us, and a refusal means that everything here must be
stopped.
"""

from agent.config import Config
from estiba.kit.livetls import LiveTls
from estiba.kit.tls import Identity, Role, identity_of


def live_tls(config: Config) -> LiveTls:
    """Read the certificate, and each that takes its place.

    Raises:
        ValueError: it cannot be read, or is not this node's; names the file.
    """
    return LiveTls(config.tls, check=lambda certificate: check_holder(config, certificate))


def check_holder(config: Config, certificate_pem: bytes) -> None:
    """Raise ValueError unless a certificate is this node's."""
    holder = identity_of(certificate_pem)
    if holder != Identity(Role.NODE, config.node_id):
        raise ValueError(f"it is {holder}'s, and node_id is {config.node_id}")
    if holder.hostname and holder.hostname != config.hostname:
        raise ValueError(
            f"it is for the host name {holder.hostname}, and hostname is {config.hostname}: to take"
            " another name, `estiba node leave` and join again"
        )
