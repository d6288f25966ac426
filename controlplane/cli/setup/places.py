"""Where everything of Estiba lies on a machine, below a root that tests choose. Names only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from estiba.kit.tls import TlsFiles

ROOT = "ESTIBA_ROOT"
"""The environment variable that names another root than /."""

API_PORT = 7443
JOIN_PORT = 7444
WEB_PORT = 7480
METRICS_PORT = 7490
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380

# As in the units of the launcher and of the containers.
CGROUP_PARENT = "/estiba.slice/estiba-containers.service/containers"


@dataclass(frozen=True, slots=True)
class Places:
    root: Path = Path("/")

    @property
    def etc(self) -> Path:
        return self.root / "etc/estiba"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/estiba"

    # ---------------------------------------------------------------- of a control plane

    @property
    def estibad_toml(self) -> Path:
        return self.etc / "estibad.toml"

    @property
    def cluster_json(self) -> Path:
        return self.etc / "cluster.json"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def etcd_pki(self) -> Path:
        return self.state / "etcd-pki"

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    @property
    def prometheus(self) -> Path:
        return self.etc / "prometheus"

    @property
    def admin(self) -> TlsFiles:
        return TlsFiles(self.etc / "ca.pem", self.etc / "admin.pem", self.etc / "admin.pem")

    @property
    def member(self) -> TlsFiles:
        return _files(self.pki / "ca.pem", self.pki / "member.pem")

    @property
    def etcd_client(self) -> TlsFiles:
        return _files(self.pki / "etcd-ca.pem", self.pki / "etcd-client.pem")

    @property
    def etcd_server(self) -> TlsFiles:
        return _files(self.pki / "etcd-ca.pem", self.etcd_pki / "etcd.pem")

    # ---------------------------------------------------------------- of a node

    @property
    def agent_toml(self) -> Path:
        return self.etc / "agent.toml"

    @property
    def agent_pki(self) -> Path:
        return self.state / "agent-pki"

    @property
    def agent_state(self) -> Path:
        return self.state / "agent"

    @property
    def launcher_state(self) -> Path:
        return self.state / "launcher"

    @property
    def node(self) -> TlsFiles:
        return _files(self.etc / "node-ca.pem", self.agent_pki / "node.pem")

    @property
    def joining_key(self) -> Path:
        """The key of a node whose admission is under way, or whose answer was lost."""
        return self.agent_pki / "joining.pem"

    @property
    def run(self) -> Path:
        return self.root / "run/estiba"

    @property
    def launcher_socket(self) -> Path:
        return self.run / "launcher.sock"

    @property
    def log_pump_socket(self) -> Path:
        return self.run / "log-pump.sock"


def places(environment: Mapping[str, str]) -> Places:
    return Places(Path(environment.get(ROOT) or "/"))


def _files(ca: Path, both: Path) -> TlsFiles:
    return TlsFiles(ca, both, both)
