"""Decide what a local cluster consists of: namespaces, addresses, ports, programs, configuration.

Does no I/O: the supervisor carries the answers out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from controlplane.cli.setup import texts
from estiba.kit.tls import TlsFiles

FABRIC = IPv4Network("10.77.0.0/16")
GATEWAY = FABRIC[1]
ETCD = FABRIC[2]
REGISTRY = FABRIC[3]
MEMBERS = {"estibad-1": FABRIC[11], "estibad-2": FABRIC[12]}
FIRST_NODE = 101
MOST_NODES = 100

# slirp4netns answers DNS here, for whoever sits behind it.
RESOLVER = "10.0.2.3"

REGISTRY_NAME = "registry.estiba:5000"

API_PORT = 7443
WEB_PORT = 7480
JOIN_PORT = 7460
METRICS_PORT = 7490
REGISTRY_PORT = 5000

# Sockets lie below the folder, and the kernel allows 107 bytes for a socket's path.
LONGEST_FOLDER = 70


@dataclass(frozen=True, slots=True)
class Seat:
    """One node: who it is and which name it goes by."""

    id: str
    hostname: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that is decided once, when a cluster is made."""

    folder: Path
    bin: Path
    seats: tuple[Seat, ...]

    @property
    def key(self) -> str:
        """A short name that no cluster in another folder has."""
        return hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]

    @property
    def cgroup(self) -> str:
        return f"/estiba-{self.key}"

    @property
    def socket(self) -> Path:
        return self.folder / "supervisor.sock"

    def log(self, program: str) -> Path:
        return self.folder / "log" / f"{program}.log"

    def node(self, seat: Seat) -> Path:
        return self.folder / "nodes" / seat.hostname

    def pem(self, name: str) -> Path:
        """Return the file with an authority's certificate, or with a holder's and its key."""
        return self.folder / "pki" / f"{name}.pem"

    def authority_key(self, name: str) -> Path:
        return self.folder / "pki" / f"{name}-key.pem"

    def tls(self, authority: str, holder: str) -> TlsFiles:
        return TlsFiles(self.pem(authority), self.pem(holder), self.pem(holder))

    def address_of(self, seat: Seat) -> IPv4Address:
        return FABRIC[FIRST_NODE + self.seats.index(seat)]


@dataclass(frozen=True, slots=True)
class Port:
    """A port on the host's loopback, carried to an address on the fabric."""

    name: str
    wanted: int
    target: str


@dataclass(frozen=True, slots=True)
class Program:
    """One program that the supervisor keeps running.

    ``namespace`` names the network namespace it runs in; the fabric's own is "fabric",
    and "" is the host's. Waves stop in order, the lowest first.
    """

    name: str
    argv: tuple[str, ...]
    namespace: str
    wave: int
    address: str = ""


def namespaces(layout: Layout) -> dict[str, IPv4Address]:
    """Return the network namespaces on the fabric's bridge, each with its address."""
    nodes = {seat.hostname: layout.address_of(seat) for seat in layout.seats}
    return {"etcd": ETCD, "registry": REGISTRY} | MEMBERS | nodes


def ports(layout: Layout) -> list[Port]:
    """Return the ports that people on this machine reach the cluster by."""
    found = [Port("registry", REGISTRY_PORT, f"{REGISTRY}:5000")]
    for index, (name, address) in enumerate(MEMBERS.items()):
        found.append(Port(f"{name}/api", API_PORT + index, f"{address}:7443"))
        found.append(Port(f"{name}/web", WEB_PORT + index, f"{address}:7480"))
        found.append(Port(f"{name}/join", JOIN_PORT + index, f"{address}:7444"))
    for index, seat in enumerate(layout.seats, start=1):
        target = f"{layout.address_of(seat)}:7490"
        found.append(Port(f"{seat.hostname}/metrics", METRICS_PORT + index, target))
    return found


def programs(layout: Layout) -> list[Program]:
    """Return every program but slirp4netns and the relay, which need open descriptors."""
    found = [
        Program("etcd", _etcd(layout), "etcd", 4, f"{ETCD}:2379"),
        Program(
            "registry",
            ("docker-registry", "serve", str(layout.folder / "registry.yml")),
            "registry",
            3,
            f"{REGISTRY}:5000",
        ),
    ]
    for name, address in MEMBERS.items():
        argv = (str(layout.bin / "estibad"), "--config", str(layout.folder / f"{name}.toml"))
        found.append(Program(name, argv, name, 2, f"{address}:7443"))
    for seat in layout.seats:
        found += _node_programs(layout, seat)
    return found


def _etcd(layout: Layout) -> tuple[str, ...]:
    return (
        "etcd",
        "--name=dev",
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls=https://{ETCD}:2379,https://127.0.0.1:2379",
        f"--advertise-client-urls=https://{ETCD}:2379",
        # One member: its peer port is for itself, on the loopback of its own namespace.
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=dev=http://127.0.0.1:2380",
        "--client-cert-auth",
        f"--trusted-ca-file={layout.pem('etcd-ca')}",
        f"--cert-file={layout.pem('etcd')}",
        f"--key-file={layout.pem('etcd')}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=5m",
        "--quota-backend-bytes=8589934592",
        "--logger=zap",
        "--log-level=warn",
    )


def _node_programs(layout: Layout, seat: Seat) -> list[Program]:
    folder = layout.node(seat)
    launcher = (
        str(layout.bin / "estiba-launcher"),
        *("--state", str(folder / "launcher")),
        *("--socket", str(folder / "launcher.sock")),
        *("--log-pump-socket", str(folder / "log-pump.sock")),
        *("--cgroup-parent", f"{layout.cgroup}/{seat.hostname}"),
    )
    pump = (
        str(layout.bin / "estiba-log-pump"),
        *("--socket", str(folder / "log-pump.sock")),
        *("--launcher-socket", str(folder / "launcher.sock")),
    )
    agent = (str(layout.bin / "estiba-agent"), "--config", str(folder / "agent.toml"))
    address = str(layout.address_of(seat))
    return [
        Program(f"{seat.hostname}-launcher", launcher, seat.hostname, 1, address),
        Program(f"{seat.hostname}-log-pump", pump, seat.hostname, 1, address),
        Program(f"{seat.hostname}-agent", agent, seat.hostname, 0, address),
    ]


def files(layout: Layout, opened: Mapping[str, int]) -> dict[Path, str]:
    """Return the text of every configuration file. ``opened`` maps port names to real ports."""
    found = {layout.folder / "registry.yml": _registry_yml(layout)}
    for name in MEMBERS:
        found[layout.folder / f"{name}.toml"] = _estibad_toml(layout, name, opened)
    for seat in layout.seats:
        found[layout.node(seat) / "agent.toml"] = _agent_toml(layout, seat, opened)
    return found


def _estibad_toml(layout: Layout, name: str, opened: Mapping[str, int]) -> str:
    address = MEMBERS[name]
    return texts.estibad_toml(
        texts.Estibad(
            member_id=name,
            cluster_name="dev",
            listen=f"{address}:7443",
            advertise=f"{address}:7443",
            web_listen=f"{address}:7480",
            # Prometheus runs outside the fabric, and finds its targets by what they advertise.
            web_advertise=f"127.0.0.1:{opened[f'{name}/web']}",
            tls=layout.tls("ca", name),
            authority=texts.Authority(
                cert=layout.pem("ca"),
                key=layout.authority_key("ca"),
                join_listen=f"{address}:7444",
                join_advertise=f"127.0.0.1:{opened[f'{name}/join']}",
            ),
            etcd_endpoints=(f"{ETCD}:2379",),
            etcd_tls=layout.tls("etcd-ca", "etcd-client"),
        )
    )


def _agent_toml(layout: Layout, seat: Seat, opened: Mapping[str, int]) -> str:
    address = layout.address_of(seat)
    folder = layout.node(seat)
    return texts.agent_toml(
        texts.Agent(
            node_id=seat.id,
            hostname=seat.hostname,
            members=tuple(f"{member}:7443" for member in MEMBERS.values()),
            state_dir=folder / "state",
            launcher_socket=folder / "launcher.sock",
            cgroup_parent=f"{layout.cgroup}/{seat.hostname}",
            address=str(address),
            metrics_listen=f"{address}:7490",
            metrics_advertise=f"127.0.0.1:{opened[f'{seat.hostname}/metrics']}",
            nameservers=(RESOLVER,),
            tls=layout.tls("ca", seat.hostname),
            registries=(texts.Registry(REGISTRY_NAME, f"{REGISTRY}:5000", layout.pem("ca")),),
        )
    )


def _registry_yml(layout: Layout) -> str:
    return f"""\
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {texts.quoted(layout.folder / "registry")}
http:
  addr: {REGISTRY}:5000
  # It is reached under two names: on the fabric, and through a port on the host's loopback.
  relativeurls: true
  tls:
    certificate: {texts.quoted(layout.pem("registry"))}
    key: {texts.quoted(layout.pem("registry"))}
"""


def described(layout: Layout, opened: Mapping[str, int]) -> dict[str, object]:
    """Return cluster.json: how to reach the cluster from this machine."""
    user, metrics = (texts.tls_table(layout.tls("ca", name)) for name in ("user", "metrics"))
    return {
        "name": "dev",
        "dir": str(layout.folder),
        "servers": [f"127.0.0.1:{opened[f'{name}/api']}" for name in MEMBERS],
        "web": [f"127.0.0.1:{opened[f'{name}/web']}" for name in MEMBERS],
        "registry": f"127.0.0.1:{opened['registry']}",
        "registry_name": REGISTRY_NAME,
        "tls": user,
        "metrics_tls": metrics,
        "nodes": [
            {
                "id": seat.id,
                "hostname": seat.hostname,
                "address": str(layout.address_of(seat)),
                "metrics": f"127.0.0.1:{opened[f'{seat.hostname}/metrics']}",
                "cgroup_parent": f"{layout.cgroup}/{seat.hostname}",
            }
            for seat in layout.seats
        ],
        "ports": dict(opened),
    }
