"""Nodes and containers as bare network namespaces, and an agent's network as a process of its own.

The agent's part runs inside the node's namespace, as in life, and can be killed there.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.waiting import stretched

ROOT = Path(__file__).parents[2]
# Debian's static busybox would do, but its wget dies of SIGSEGV when it is given a timeout (-T).
_FETCH = """
import http.client, sys
try:
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=2)
    connection.request("GET", "/")
    print(connection.getresponse().read().decode(), end="")
except OSError as reason:
    print(reason, end="")
"""


class Space:
    """A network namespace, held by a process that does nothing."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.pid = self._holder.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the holder: the namespace dies with its last process."""
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]

    def run(self, *argv: str) -> str:
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def ip(self, *words: str) -> Any:
        """Ask ``ip -json``."""
        return json.loads(self.run("ip", "-json", *words) or "[]")

    def lasting(self) -> list[dict[str, Any]]:
        """Return links and IPv4 addresses without what the kernel settles a while later.

        Whether a link is up follows its peer about a second later (Linux
        networking/operstates), and so does its link-local IPv6 address (RFC 4862, 5.4).
        """
        return [
            {key: value for key, value in link.items() if key not in {"operstate", "flags"}}
            for link in self.ip("-4", "addr", "show")
        ] + [{"ifname": name} for name in sorted(self.link_names())]

    def link_names(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link", "show")}

    def setting(self, name: str) -> str:
        return self.run("cat", f"/proc/sys/{name}").strip()

    def fetch(self, host: str, port: int = 80) -> str:
        """Fetch the first page from in here, or return the reason why it cannot be had."""
        done = subprocess.run(
            self.command(sys.executable, "-I", "-S", "-c", _FETCH, host, str(port)),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    @contextmanager
    def serving(self, folder: Path, text: str, *, port: int) -> Iterator[None]:
        """Answer every GET / on the port, on all addresses, with ``text``."""
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(text)
        server = subprocess.Popen(
            self.command(*("busybox", "httpd", "-f", "-p", str(port), "-h", str(folder)))
        )
        try:
            while (
                f":{port:04X} "
                not in Path(f"/proc/{server.pid}/net/tcp6").read_text()
                + Path(f"/proc/{server.pid}/net/tcp").read_text()
            ):
                assert server.poll() is None, "httpd ended"
            yield
        finally:
            server.kill()
            server.wait()


def join(one: Space, one_link: str, one_address: str, other: Space, address: str) -> None:
    """Connect two spaces by a cable: ``one_link`` there, ``eth0`` here."""
    one.run(
        *("ip", "link", "add", one_link, "type", "veth"),
        *("peer", "name", "eth0", "netns", str(other.pid)),
    )
    one.run("ip", "addr", "add", one_address, "dev", one_link)
    other.run("ip", "addr", "add", address, "dev", "eth0")
    for space, link in ((one, one_link), (other, "eth0")):
        space.run("ip", "link", "set", "lo", "up")
        space.run("ip", "link", "set", link, "up")


class Agent:
    """`agent.net.network.Network` in a process inside a node's namespace."""

    def __init__(self, node: Space, state_dir: Path) -> None:
        self._process = subprocess.Popen(
            node.command(sys.executable, "-m", "tests.support.network_agent", str(state_dir)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.ask("start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.ask("close")
            self._end()

    def ask(self, call: str, *arguments: object) -> Any:
        """Call one method of the network; return its answer.

        Raises:
            AgentRefusedError: the sentence of the NetworkError.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, f"the agent ended during {call}"
        said = json.loads(line)
        if "error" in said:
            raise AgentRefusedError(said["error"])
        return said["answer"]

    def connect(self, container_id: str, pid: int, attachment: dict[str, Any]) -> str:
        address: str = self.ask("connect", container_id, pid, attachment)
        return address

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(timeout=stretched(10))


class AgentRefusedError(Exception):
    """The network refused a call."""


@contextmanager
def spaces(count: int) -> Iterator[Sequence[Space]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Space()) for _ in range(count)]
