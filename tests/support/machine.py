"""One node as real programs: launcher, log pump and agent in a network namespace, to be killed."""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.images import Images
from tests.support.certificates import Certificates
from tests.support.cgroups import folders_of
from tests.support.network import Space
from tests.support.registry import RunningRegistry
from tests.support.waiting import eventually, stretched

BIN = Path(sys.executable).parent
STOP_WITHIN_S = stretched(10.0)


class Machine:
    """Programs by name: launcher, log-pump, agent. Members are reached over unix sockets, which
    no network namespace keeps apart.
    """

    def __init__(self, folder: Path, space: Space, certificates: Certificates) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.cgroup_parent = f"/estiba-test-{secrets.token_hex(4)}"
        self._space = space
        self._certificates = certificates
        self._programs: dict[str, asyncio.subprocess.Process] = {}

    async def pull(self, registry: RunningRegistry, reference: str) -> None:
        """Have an image here: the node's namespace reaches no registry."""
        await Images(self.state / "images", registry.registries).ensure(reference)

    async def start(self, name: str) -> None:
        pump, launcher = str(self.folder / "pump.sock"), str(self.folder / "launcher.sock")
        argv = {
            "launcher": [
                *("estiba-launcher", "--state", str(self.folder / "launcher")),
                *("--socket", launcher, "--log-pump-socket", pump),
                *("--cgroup-parent", self.cgroup_parent),
            ],
            "log-pump": ["estiba-log-pump", "--socket", pump, "--launcher-socket", launcher],
            "agent": ["estiba-agent", "--config", str(self.folder / "agent.toml")],
        }[name]
        with (self.folder / f"{name}.log").open("ab") as output:
            self._programs[name] = await asyncio.create_subprocess_exec(
                *self._space.command(str(BIN / argv[0]), *argv[1:]), stdout=output, stderr=output
            )

    async def clear(self, *, kill_after_s: float = float("inf")) -> tuple[int, str]:
        """Run ``estiba-agent --clear``; return its exit code, and what it says of a fault.

        Args:
            kill_after_s: kill it then, if it still runs.
        """
        program = await asyncio.create_subprocess_exec(
            *self._space.command(str(BIN / "estiba-agent"), "--clear"),
            *("--config", str(self.folder / "agent.toml")),
            stderr=asyncio.subprocess.PIPE,
        )
        saying = asyncio.create_task(program.communicate())
        await asyncio.wait([saying], timeout=min(kill_after_s, stretched(60.0)))
        if not saying.done():
            program.kill()
        said = (await saying)[1].decode()
        code = -1 if program.returncode is None else program.returncode
        faults = [line for line in said.splitlines() if line.startswith("estiba-agent: ")]
        return code, "".join(faults) or said

    def links(self) -> set[str]:
        """Return the links of the node's namespace but its loopback."""
        return self._space.link_names() - {"lo"}

    def tables(self) -> str:
        return self._space.run("nft", "list", "tables")

    def configure(self, member: str) -> None:
        tls = self._certificates.of("n1")
        (self.folder / "agent.toml").write_text(
            'node_id = "node-1"\nhostname = "n1"\n'
            f'members = ["{member}"]\n'
            f'state_dir = "{self.state}"\n'
            f'launcher_socket = "{self.folder / "launcher.sock"}"\n'
            f'cgroup_parent = "{self.cgroup_parent}"\n'
            'address = "127.0.0.1"\nmetrics_listen = "127.0.0.1:7490"\n'
            f'[tls]\nca = "{tls.ca}"\ncert = "{tls.cert}"\nkey = "{tls.key}"\n'
        )

    async def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        program = self._programs.pop(name)
        program.send_signal(number)
        async with asyncio.timeout(STOP_WITHIN_S):
            return await program.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def close(self) -> None:
        """Kill the programs and what they started; remove the cgroups."""
        for name in list(self._programs):
            await self.end(name, signal.SIGKILL)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(
            eventually, self._cgroups_removed, within_s=10, what="nothing is left in the cgroups"
        )

    def _cgroups_removed(self) -> bool:
        """Remove what can be removed; a cgroup stays busy for a moment after its last process."""
        for folder in self.cgroups():
            for path, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):
                    Path(path).rmdir()
        return not self.cgroups()

    def cgroups(self) -> list[Path]:
        """Return the folders of this node's cgroup, one for each hierarchy."""
        return folders_of(self.cgroup_parent)

    def containers(self) -> set[str]:
        """Return the names of the containers' cgroups."""
        return {
            each.name
            for folder in self.cgroups()
            for each in folder.iterdir()
            if each.is_dir() and "-r" in each.name
        }

    def processes(self) -> set[int]:
        """Return the pids in this node's cgroups."""
        found: set[int] = set()
        for folder in self.cgroups():
            for path, _, _ in os.walk(folder):
                # A container's cgroup may go while we look.
                with suppress(OSError):
                    found |= {int(pid) for pid in Path(path, "cgroup.procs").read_text().split()}
        return found


@asynccontextmanager
async def machine(
    folder: Path, certificates: Certificates, registry: RunningRegistry
) -> AsyncIterator[Machine]:
    """Have a node with the registry's sample image, its launcher and its log pump at work."""
    with Space() as space:
        space.run("ip", "link", "set", "lo", "up")
        node = Machine(folder, space, certificates)
        await node.pull(registry, f"{registry.name}/hello")
        try:
            await node.start("launcher")
            await node.start("log-pump")
            yield node
        finally:
            await node.close()
