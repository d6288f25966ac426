"""The numbers that rule the control plane's loops; seconds unless the name says otherwise."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from controlplane.orchestrator import UNKNOWN_GRACE_S


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The one network there is: every task is attached to it."""

    cidr: IPv4Network = field(default_factory=lambda: IPv4Network("10.10.0.0/16"))
    block_prefix: int = 24
    vni: int = 4097
    mtu: int = 1450
    id: str = "default"
    name: str = "default"


@dataclass(frozen=True, slots=True)
class Timing:
    heartbeat_s: float = 1.5
    """An agent sends a heartbeat this often."""
    down_after_s: float = 5.0
    """A node silent for this long is down; an agent takes a member silent for so long for dead."""
    member_lease_s: int = 5
    """A member that cannot renew for this long has lost its nodes' presence keys."""
    hello_within_s: float = 5.0
    """An agent's first message must come this soon, and our view must reach its revision."""
    carry_within_s: float = 2.0
    """A node asked to open a stream must do so this soon."""
    flush_after_s: float = 0.02
    """Reports of all nodes are written at most this often, and gathered in between."""
    resync_s: float = 30.0
    """Every service is looked at again this often, whatever events said."""

    @property
    def unknown_grace_s(self) -> float:
        """A node may be unknown this long: its member has died, or its agent has stopped."""
        return max(UNKNOWN_GRACE_S, 2 * self.down_after_s)
