"""The text of every configuration file that Estiba writes for people to read. Pure.

The programs' own loaders read it back; `estiba dev up` writes the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from estiba.kit.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Authority:
    """What a member that admits and renews nodes has, and where machines join."""

    cert: Path
    key: Path
    join_listen: str
    join_advertise: str


@dataclass(frozen=True, slots=True)
class Estibad:
    member_id: str
    cluster_name: str
    listen: str
    advertise: str
    web_listen: str
    web_advertise: str
    tls: TlsFiles
    authority: Authority | None
    etcd_endpoints: tuple[str, ...]
    etcd_tls: TlsFiles


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry whose name does not say where it is."""

    name: str
    address: str
    ca: Path


@dataclass(frozen=True, slots=True)
class Agent:
    node_id: str
    hostname: str
    members: tuple[str, ...]
    state_dir: Path
    launcher_socket: Path
    cgroup_parent: str
    address: str
    metrics_listen: str
    metrics_advertise: str
    nameservers: tuple[str, ...]
    tls: TlsFiles
    registries: tuple[Registry, ...] = ()


def estibad_toml(wanted: Estibad) -> str:
    return f"""\
# estibad, a member of the control plane. After a change: systemctl restart estibad

# How other members know this one, and what the cluster is called.
member_id = {quoted(wanted.member_id)}
cluster_name = {quoted(wanted.cluster_name)}

# The API for users, agents and other members: where it listens, and where they reach it.
listen = {quoted(wanted.listen)}
advertise = {quoted(wanted.advertise)}

# Metrics, health, and the discovery by which Prometheus finds every program.
web_listen = {quoted(wanted.web_listen)}
web_advertise = {quoted(wanted.web_advertise)}
{_joining(wanted.authority)}
# debug, info, warning or error.
log_level = "info"

# A node that gives no sign of life for so many seconds is down, and its tasks start elsewhere.
# Where an agent takes long to start, more lets it be upgraded in peace.
# down_after_s = 5

# Whom we trust, and by what we are known. A new certificate is taken over without a restart.
[tls]
{_tls(wanted.tls)}
{_authority(wanted.authority)}[etcd]
endpoints = {quoted(wanted.etcd_endpoints)}
{_tls(wanted.etcd_tls)}
# The addresses of containers: all of them, how many of them a node gets at a time, the number of
# their network, and how large a packet may be between nodes. They are chosen once.
[network]
cidr = "10.10.0.0/16"
block_prefix = 24
vni = 4097
mtu = 1450
"""


def _joining(authority: Authority | None) -> str:
    if authority is None:
        return ""
    return f"""
# Where machines join that have no certificate yet; a token admits them.
join_listen = {quoted(authority.join_listen)}
join_advertise = {quoted(authority.join_advertise)}
"""


def _authority(authority: Authority | None) -> str:
    if authority is None:
        return ""
    return f"""\
# What signs the certificates of those who join, and renews them. A member without it does neither.
[authority]
cert = {quoted(authority.cert)}
key = {quoted(authority.key)}

"""


def agent_toml(wanted: Agent) -> str:
    registries = "\n".join(_registry(each) for each in wanted.registries)
    return f"""\
# estiba-agent, which runs containers on this node. After a change: systemctl restart estiba-agent

# Who this node is: both stand in its certificate, and change only by joining again.
node_id = {quoted(wanted.node_id)}
hostname = {quoted(wanted.hostname)}

# The members of the control plane, any of them; the others are learned.
members = {quoted(wanted.members)}

# What must outlive the agent: assignments, journals, images, logs.
state_dir = {quoted(wanted.state_dir)}

# Where the launcher answers, and below which cgroup it makes containers: as in its unit.
launcher_socket = {quoted(wanted.launcher_socket)}
cgroup_parent = {quoted(wanted.cgroup_parent)}

# This machine's address in the network between nodes.
address = {quoted(wanted.address)}

# Metrics and health: where they are served, and where Prometheus reaches them.
metrics_listen = {quoted(wanted.metrics_listen)}
metrics_advertise = {quoted(wanted.metrics_advertise)}

# Whom containers ask for names.
nameservers = {quoted(wanted.nameservers)}

# debug, info, warning or error.
log_level = "info"

# Whom we trust, and by what we are known. The agent renews its certificate by itself.
[tls]
{_tls(wanted.tls)}
# What the scheduler may count on, if it is not the whole machine.
# [capacity]
# cpus = 2
# memory_bytes = 4294967296

# Where a registry is, if its name does not say, and who signed its certificate. A name without a
# registry means docker.io, which needs such a table.
# [registries."registry.example:5000"]
# address = "192.0.2.10:5000"
# ca = "/etc/estiba/registry-ca.pem"
{registries}"""


def cluster_json(*, name: str, servers: Sequence[str], tls: TlsFiles) -> str:
    """Say how `estiba` reaches a cluster, in the form that `estiba dev up` writes too."""
    described = {"name": name, "servers": list(servers), "tls": tls_table(tls)}
    return json.dumps(described, indent=2) + "\n"


def tls_table(tls: TlsFiles) -> dict[str, str]:
    return {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)}


def nameservers(resolv_conf: str) -> tuple[str, ...]:
    """Return the name servers that containers can ask: they have IPv4, and another loopback.

    Source: resolv.conf(5), "nameserver".
    """
    lines = (line.split() for line in resolv_conf.splitlines())
    named = (words[1] for words in lines if len(words) > 1 and words[0] == "nameserver")
    return tuple(each for each in named if _is_reachable(each))


def _is_reachable(address: str) -> bool:
    try:
        return not IPv4Address(address).is_loopback
    except ValueError:
        return False


def _tls(tls: TlsFiles) -> str:
    return "".join(f"{key} = {quoted(value)}\n" for key, value in tls_table(tls).items())


def _registry(registry: Registry) -> str:
    return (
        f"[registries.{quoted(registry.name)}]\n"
        f"address = {quoted(registry.address)}\nca = {quoted(registry.ca)}\n"
    )


def quoted(value: Path | str | Sequence[str]) -> str:
    """Write a text or a list of texts in the form that JSON, TOML and YAML have in common."""
    # DEL is the one character that JSON leaves as it is and TOML forbids.
    plain = list(value) if isinstance(value, tuple) else str(value)
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
