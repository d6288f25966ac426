"""Build the cluster's network: one namespace for the fabric, one for each program or node on it.

The namespaces have no names: they live as long as the supervisor's descriptors or a
process inside. On the host nothing is made, neither interface nor rule. Work is done
by `ip`, `nft`, `nsenter` and `unshare`, never by forking.
"""

import asyncio
import os
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

from controlplane.cli.dev import plan
from controlplane.cli.errors import CliError

BRIDGE = "fabric"
BRIDGE_ADDRESS = "02:00:10:77:00:01"
TAP = "tap0"

# What leaves the fabric takes the address of slirp4netns' interface, the only one it answers.
WAY_OUT = f"""
table ip estiba_fabric {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{TAP}" masquerade
  }}
}}
"""

# br_netfilter, where the kernel has it, is on in every new namespace; elsewhere it has no switch.
SWITCHES = """
echo 1 > /proc/sys/net/ipv4/ip_forward
for switch in /proc/sys/net/bridge/bridge-nf-call-iptables; do
  [ ! -e "$switch" ] || echo 0 > "$switch"
done
"""


class Fabric:
    """The open descriptors of all namespaces, by name; "fabric" is the bridge's."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    async def build(self, addresses: Mapping[str, IPv4Address]) -> None:
        for name in (BRIDGE, *addresses):
            self._descriptors[name] = await _new_namespace()
        await self._ip(BRIDGE, _bridge_lines({name: self.path(name) for name in addresses}))
        await run(*self.enter(BRIDGE), "sh", "-euc", SWITCHES)
        await run(*self.enter(BRIDGE), "nft", "-f", "-", text=WAY_OUT)
        for name, address in addresses.items():
            await self._ip(name, _member_lines(address))

    def path(self, name: str) -> str:
        """Return a path that other processes can open the namespace by."""
        return f"/proc/{os.getpid()}/fd/{self._descriptors[name]}"

    def way_out(self) -> tuple[str, ...]:
        """Return the command that lets the fabric speak to whatever this machine can reach.

        Its sandbox unmounts everything, but makes only the root's mount private first. Where
        mounts are shared, as systemd has them, that would unmount the machine's /sys/fs/cgroup.
        """
        return (
            *("unshare", "--mount", "--propagation=private", "--"),
            *("slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback"),
            *("--enable-sandbox", "--enable-seccomp"),
            *("--netns-type=path", self.path(BRIDGE), TAP),
        )

    def enter(self, name: str) -> tuple[str, ...]:
        """Return the words before a command that make it run in the namespace."""
        return ("nsenter", f"--net={self.path(name)}", "--")

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    async def _ip(self, name: str, lines: list[str]) -> None:
        await run(*self.enter(name), "ip", "-batch", "-", text="\n".join(lines) + "\n")


def _bridge_lines(members: Mapping[str, str]) -> list[str]:
    lines = [
        "link set lo up",
        # Without an address of its own a bridge changes it when a port joins.
        f"link add {BRIDGE} address {BRIDGE_ADDRESS} type bridge",
        f"addr add {plan.GATEWAY}/{plan.FABRIC.prefixlen} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    for name, path in members.items():
        lines.append(f"link add p-{name} type veth peer name eth0 netns {path}")
        lines.append(f"link set p-{name} master {BRIDGE} up")
    return lines


def _member_lines(address: IPv4Address) -> list[str]:
    return [
        "link set lo up",
        f"addr add {address}/{plan.FABRIC.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add default via {plan.GATEWAY}",
    ]


async def _new_namespace() -> int:
    """Make a network namespace and return an open descriptor of it."""
    # The child says that it is inside, and stays until its standard input ends.
    child = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "sh", "-c", "echo; read wait"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if child.stdout is None or await child.stdout.readline() != b"\n":
            raise CliError("the kernel made no network namespace (unshare --net failed)")
        return os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        await child.communicate(b"\n")


async def run(*argv: str, text: str = "") -> str:
    """Run a program to its end and return what it printed.

    Raises:
        CliError: it failed; holds the program's name and its words.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate(text.encode())
    if child.returncode != 0:
        words = " ".join(err.decode(errors="replace").split())
        raise CliError(f"{' '.join(argv)} failed: {words or f'exit code {child.returncode}'}")
    return out.decode(errors="replace")


def has_tun() -> bool:
    return Path("/dev/net/tun").is_char_device()
