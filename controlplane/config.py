"""estibad's configuration file."""

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from controlplane.loops.settings import NetworkSettings
from estiba.kit import tables
from estiba.kit.tables import Table, TableError
from estiba.kit.tls import TlsFiles


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
    log_level: str
    tls: TlsFiles
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
        log_level=top.choice("log_level", tables.LOG_LEVELS, default="info"),
        tls=top.table("tls").tls_files(),
        etcd_endpoints=etcd.texts("endpoints"),
        etcd_tls=etcd.tls_files(),
        network=_network(top.table("network", required=False)),
    )
    if not config.etcd_endpoints:
        raise TableError("etcd.endpoints: names no endpoint")
    return config


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
