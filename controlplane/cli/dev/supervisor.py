"""Run a local cluster's programs: build its network, start them, restart them, stop them.

A program of its own, detached from whoever typed `estiba dev up`, and free of gRPC. It
answers on a socket in the cluster's folder, one JSON object a line. When it is killed
the programs go on; the next `dev up` or `dev down` clears them away.

    python -m controlplane.cli.dev.supervisor FOLDER
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.cli import local
from controlplane.cli.dev import leftovers, plan, state
from controlplane.cli.dev.fabric import BRIDGE, Fabric
from controlplane.cli.dev.keeper import Keeper
from controlplane.cli.errors import CliError
from estiba.kit import logs

log = logging.getLogger("supervisor")

# What programs are given of the environment of whoever typed `estiba dev up`.
PASSED_ON = ("HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The containers are killed once the programs of the nodes have stopped, so that nobody starts more.
LAST_WAVE_OF_NODES = 1


class Supervisor:
    def __init__(self, layout: plan.Layout) -> None:
        self._layout = layout
        self._fabric = Fabric()
        self._keepers: dict[str, Keeper] = {}
        self._listening: dict[str, socket.socket] = {}
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Build everything, say so on standard output, and keep it until told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        self._listening = _listen(self._layout)
        opened = {name: sock.getsockname()[1] for name, sock in self._listening.items()}
        self._write_files(opened)
        await self._fabric.build(plan.namespaces(self._layout))
        self._prepare()
        server = await self._open_control_socket()
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(keeper.run(), name=f"keeper.{name}")
                for name, keeper in self._keepers.items()
            ]
            for keeper in self._keepers.values():
                keeper.start()
            _tell({"ready": True})
            await self._ended.wait()
            await self._stop_all()
            for task in running:
                task.cancel()
        server.close()
        self._layout.socket.unlink(missing_ok=True)
        self._fabric.close()

    def _write_files(self, opened: Mapping[str, int]) -> None:
        layout = self._layout
        (layout.folder / "log").mkdir(exist_ok=True)
        for seat in layout.seats:
            (layout.node(seat) / "launcher").mkdir(parents=True, exist_ok=True)
            (layout.node(seat) / "state").mkdir(exist_ok=True)
        for path, text in plan.files(layout, opened).items():
            state.write(path, text)
        described = state.to_json(plan.described(layout, opened))
        state.write(layout.folder / "cluster.json", described)

    def _prepare(self) -> None:
        fabric, layout = self._fabric, self._layout
        self._add(plan.Program("slirp4netns", fabric.way_out(), "", 5))
        targets = {port.name: port.target for port in plan.ports(layout)}
        forwards = [f"{sock.fileno()}={targets[name]}" for name, sock in self._listening.items()]
        relay = (sys.executable, "-m", "controlplane.cli.dev.relay", *forwards)
        self._add(
            plan.Program("relay", relay, BRIDGE, 3),
            descriptors=tuple(sock.fileno() for sock in self._listening.values()),
        )
        for program in plan.programs(layout):
            self._add(program)

    def _add(self, program: plan.Program, descriptors: tuple[int, ...] = ()) -> None:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._keepers[program.name] = Keeper(
            program,
            before=self._fabric.enter(program.namespace) if program.namespace else (),
            log_file=self._layout.log(program.name),
            environment=environment
            | {"PATH": SEARCH_PATH, leftovers.MARK: str(self._layout.folder)},
            descriptors=descriptors,
        )

    async def _stop_all(self) -> None:
        """Stop wave after wave, and kill the containers when nobody is left to start more."""
        waves = sorted({keeper.program.wave for keeper in self._keepers.values()})
        for wave in waves:
            async with asyncio.TaskGroup() as group:
                for name, keeper in self._keepers.items():
                    if keeper.program.wave == wave:
                        group.create_task(keeper.stop(), name=f"stop.{name}")
            if wave == LAST_WAVE_OF_NODES:
                await asyncio.to_thread(leftovers.remove_cgroups, self._layout.cgroup)

    # ------------------------------------------------------------------ the control socket

    async def _open_control_socket(self) -> asyncio.Server:
        path = self._layout.socket
        path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._answer, path)
        finally:
            os.umask(previous)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                reply = await self._carry_out(json.loads(line))
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except ConnectionError as error:
            log.info("whoever asked has gone: %s", error)
        finally:
            writer.close()

    async def _carry_out(self, request: Mapping[str, Any]) -> dict[str, object]:
        match request:
            case {"do": "status"}:
                programs = [keeper.status() for keeper in self._keepers.values()]
                return {"pid": os.getpid(), "programs": programs}
            case {"do": "down"}:
                self._ended.set()
                return {"pid": os.getpid()}
            case {"do": "start" | "stop" as verb, "name": str(name)}:
                keeper = self._keepers.get(name)
                if keeper is None:
                    known = ", ".join(sorted(self._keepers))
                    return {"error": f"the cluster has no program {name}; it has {known}"}
                if verb == "start":
                    keeper.start()
                else:
                    await keeper.stop(kill=bool(request.get("kill")))
                return keeper.status()
        return {"error": f"the supervisor does not understand {json.dumps(dict(request))}"}


def _listen(layout: plan.Layout) -> dict[str, socket.socket]:
    """Open the host's ports: those of the last time, else the usual ones, else any."""
    before = (local.read(layout.folder / "cluster.json") or {}).get("ports", {})
    found = {}
    for port in plan.ports(layout):
        found[port.name] = _listen_on(before.get(port.name, port.wanted))
    return found


def _listen_on(port: int) -> socket.socket:
    for number in (port, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", number))
            listening.listen(512)
        except OSError as error:
            listening.close()
            log.info("port %d is taken: %s", number, error)
        else:
            return listening
    raise CliError("no port is free on 127.0.0.1")


def _tell(answer: Mapping[str, object]) -> None:
    """Say to `dev up`, which waits for one line, how it went."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    logs.set_up("supervisor")
    layout = state.load(Path(sys.argv[1]))
    if layout is None:
        _tell({"error": f"there is no cluster in {sys.argv[1]}"})
        return 1
    try:
        asyncio.run(Supervisor(layout).run())
    except (CliError, OSError) as error:
        _tell({"error": str(error)})
        log.warning("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
