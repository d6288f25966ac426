"""estibad's configuration file."""

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from controlplane.loops.settings import NetworkSettings, Timing
from estiba.kit import tables
from estiba.kit.tables import Table, TableError
from estiba.kit.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """What signs the certificates of nodes and users."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Config:
    member_id: str
    cluster_name: str
    listen: str
    """HOST:PORT of the API for users, agents and other members."""
    advertise: str
    """Where those reach it, HOST:PORT."""
    web_listen: str
    """HOST:PORT of metrics, health and discovery."""
    web_advertise: str
    join_listen: str
    """HOST:PORT of the listener for machines that have no certificate yet; "": there is none."""
    join_advertise: str
    log_level: str
    down_after_s: float
    """A node silent for this long is down."""
    tls: TlsFiles
    authority: AuthorityFiles | None
    """None: this member admits nobody and renews nothing."""
    etcd_endpoints: tuple[str, ...]
    etcd_tls: TlsFiles
    network: NetworkSettings


def load(path: Path) -> Config:
    """Read a file.

    Raises:
        TableError: names the file, and the key that is wrong.
    """
    return tables.load(path, parse)


def parse(top: Table) -> Config:
    """Read the file's table; raises TableError."""
    etcd = top.table("etcd")
    config = Config(
        member_id=top.text("member_id"),
        cluster_name=top.text("cluster_name"),
        listen=top.text("listen"),
        advertise=top.text("advertise"),
        web_listen=top.text("web_listen"),
        web_advertise=top.text("web_advertise", default=top.text("web_listen")),
        join_listen=top.text("join_listen", default=""),
        join_advertise=top.text("join_advertise", default=""),
        log_level=top.choice("log_level", tables.LOG_LEVELS, default="info"),
        down_after_s=_down_after(top),
        tls=top.table("tls").tls_files(),
        authority=_authority(top.table("authority", required=False)),
        etcd_endpoints=etcd.texts("endpoints"),
        etcd_tls=etcd.tls_files(),
        network=_network(top.table("network", required=False)),
    )
    if not config.etcd_endpoints:
        raise TableError("etcd.endpoints: names no endpoint")
    _check_joining(config)
    return config


def _down_after(top: Table) -> float:
    usual = Timing()
    wanted = top.decimal("down_after_s", default=usual.down_after_s)
    # One heartbeat that is late must not take a node down.
    least = 2 * usual.heartbeat_s
    if wanted < least:
        raise TableError(
            f"down_after_s: {wanted:g} is less than {least:g}, and nodes give a sign of life"
            f" every {usual.heartbeat_s:g} s"
        )
    return wanted


def _authority(table: Table) -> AuthorityFiles | None:
    if not table.names():
        return None
    return AuthorityFiles(Path(table.text("cert")), Path(table.text("key")))


def _check_joining(config: Config) -> None:
    given = {
        "join_listen": bool(config.join_listen),
        "join_advertise": bool(config.join_advertise),
        "authority": config.authority is not None,
    }
    missing = [name for name, is_given in given.items() if not is_given]
    if 0 < len(missing) < len(given):
        present = ", ".join(name for name in given if name not in missing)
        raise TableError(
            f"{missing[0]}: is missing: who admits machines needs join_listen, join_advertise"
            f" and [authority], and the file has {present}"
        )


def _network(table: Table) -> NetworkSettings:
    usual = NetworkSettings()
    try:
        cidr = IPv4Network(table.text("cidr", default=str(usual.cidr)))
    except ValueError as fault:
        raise TableError(f"{table.name_of('cidr')}: {fault}") from fault
    prefix = table.number("block_prefix", default=usual.block_prefix)
    # A block has a gateway, a broadcast and at least two tasks.
    if not cidr.prefixlen < prefix <= 29:
        raise TableError(
            f"{table.name_of('block_prefix')}: blocks of /{prefix} do not fit into {cidr}"
        )
    return NetworkSettings(
        cidr=cidr,
        block_prefix=prefix,
        vni=table.number("vni", default=usual.vni),
        mtu=table.number("mtu", default=usual.mtu),
    )
