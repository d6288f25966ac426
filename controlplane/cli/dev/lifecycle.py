"""Bring a local cluster up and down: the supervisor's start and end, and what a killed one left."""

import datetime
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.dev import fabric, leftovers, plan, state
from controlplane.cli.errors import CliError

if TYPE_CHECKING:
    from controlplane.cli.connection import Connection

READY_TIMEOUT_S = 90.0
LOOK_EVERY_S = 0.1
RESTARTS_WORTH_TELLING = 3
DOWN_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0

# Programs of Debian that a cluster needs, and the packages they are in.
NEEDED = {
    "etcd": "etcd-server",
    "docker-registry": "docker-registry",
    "slirp4netns": "slirp4netns",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
OLDEST_ETCD = (3, 4, 22)
# These can corrupt their data when they are killed under load.
BAD_ETCD = ((3, 5, 0), (3, 5, 2))


def up(folder: Path, nodes: int | None) -> None:
    """Start what does not run; return when every node is ready."""
    check_machine()
    folder = state.resolve(folder)
    with _shared(folder):
        layout = state.load(folder)
        if layout is None:
            layout = state.make(folder, nodes or 3)
        if nodes not in {None, len(layout.seats)}:
            raise CliError(
                f"the cluster in {folder} has {len(layout.seats)} nodes, not {nodes}: "
                "take it down first, or choose another --dir"
            )
        if _running(layout) is None:
            _clear(layout)
            _progress("certificates and configuration")
            # Only now: cryptography and gRPC take their time to import.
            from controlplane.cli.dev import authority

            authority.issue_all(layout, datetime.datetime.now(datetime.UTC))
            _progress(f"network of {len(plan.namespaces(layout))} namespaces")
            _start_supervisor(layout)
        else:
            _start_stopped(layout)
        _wait_until_ready(layout)
    _progress(f"ready: {len(layout.seats)} nodes, see them with `estiba node ls`")


def down(folder: Path, *, keep: bool) -> None:
    """Stop everything of the cluster, in order if its supervisor still runs, and clear it away."""
    folder = state.resolve(folder)
    if not folder.is_dir():
        _progress(f"there is no cluster in {folder}")
        return
    with _shared(folder):
        layout = state.load(folder)
        if layout is None:
            # An `up` that was interrupted before it had decided anything.
            state.remove(folder, keep=keep)
            _progress(f"there is no cluster in {folder}")
            return
        _end_supervisor(layout)
        _clear(layout)
        state.remove(folder, keep=keep)
    _progress("the cluster is down" + (", its data is kept" if keep else ""))


def status(folder: Path) -> dict[str, Any]:
    """Return what the supervisor says of its programs."""
    found = ask(folder, {"do": "status"})
    for program in found["programs"]:
        moment = datetime.datetime.fromtimestamp(program["since"], datetime.UTC)
        program["since_time"] = moment.isoformat(timespec="milliseconds")
    return found


def ask(folder: Path, request: Mapping[str, object]) -> dict[str, Any]:
    """Ask the supervisor of the cluster in a folder.

    Raises:
        CliError: none runs there, or it refused.
    """
    resolved = state.resolve(folder)
    answer = _ask(resolved / "supervisor.sock", request)
    if answer is None:
        raise CliError(f"no cluster runs in {resolved}: start one with `estiba dev up`")
    if "error" in answer:
        raise CliError(answer["error"])
    return answer


def check_machine() -> None:
    """Say in one sentence what this machine lacks.

    Raises:
        CliError: root, a program, a device or a usable etcd is missing.
    """
    if os.geteuid() != 0:
        raise CliError("namespaces, cgroups and mounts need root: type it with sudo")
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        packages = sorted({NEEDED[name] for name in missing})
        raise CliError(f"{', '.join(missing)} not found: apt-get install {' '.join(packages)}")
    if not fabric.has_tun():
        raise CliError("/dev/net/tun is missing, the way out of the cluster: modprobe tun")
    shown = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
    fault = etcd_fault(shown.stdout)
    if fault:
        raise CliError(fault)


def etcd_fault(shown: str) -> str:
    """Return why an etcd that shows this version will not do, "" if it will."""
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", shown)
    if match is None:
        return "etcd --version tells no version: apt-get install etcd-server"
    version = (int(match[1]), int(match[2]), int(match[3]))
    named = ".".join(map(str, version))
    if version < OLDEST_ETCD:
        return f"etcd {named} is too old: 3.4.22 or newer is needed"
    if BAD_ETCD[0] <= version <= BAD_ETCD[1]:
        return f"etcd {named} can corrupt its data: 3.4.22 or newer is needed, not 3.5.0 to 3.5.2"
    return ""


def _progress(words: str) -> None:
    click.echo(f"dev: {words}", err=True)


@contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Hold the cluster's lock, and put what the machine refuses into a sentence."""
    try:
        with state.locked(folder):
            yield
    except OSError as error:
        raise CliError(f"the cluster in {folder}: {error}") from error


def _running(layout: plan.Layout) -> dict[str, Any] | None:
    return _ask(layout.socket, {"do": "status"})


def _ask(path: Path, request: Mapping[str, object]) -> dict[str, Any] | None:
    """Return the supervisor's answer; None if none runs."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile().readline()
        except (FileNotFoundError, NotADirectoryError, ConnectionError):
            return None
        except PermissionError:
            raise CliError(f"{path} is root's: type it with sudo") from None
        except TimeoutError:
            raise CliError(f"the supervisor behind {path} does not answer") from None
    if not line:
        return None
    answer: dict[str, Any] = json.loads(line)
    return answer


def _clear(layout: plan.Layout) -> None:
    """Kill what is left of the cluster: programs, then containers."""
    if leftovers.kill_marked(layout.folder):
        _progress("cleared away what a killed supervisor had left")
    leftovers.remove_cgroups(layout.cgroup)


def _start_supervisor(layout: plan.Layout) -> None:
    layout.log("supervisor").parent.mkdir(exist_ok=True)
    with layout.log("supervisor").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli.dev.supervisor", str(layout.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env=os.environ | {leftovers.MARK: str(layout.folder)},
            start_new_session=True,
        )
    if child.stdout is None:
        raise CliError("the supervisor has no standard output")
    with child.stdout:
        line = child.stdout.readline()
    answer = json.loads(line) if line else {"error": "it ended without a word"}
    if "error" in answer:
        child.wait()
        raise CliError(f"the supervisor did not start: {answer['error']}")


def _start_stopped(layout: plan.Layout) -> None:
    running = _running(layout)
    for program in (running or {}).get("programs", ()):
        if program["state"] == "stopped":
            _progress(f"starting {program['name']}")
            ask(layout.folder, {"do": "start", "name": program["name"]})


def _end_supervisor(layout: plan.Layout) -> None:
    """Ask the supervisor to stop everything, and wait for its end. One that hangs is left."""
    try:
        answer = _ask(layout.socket, {"do": "down"})
    except CliError as error:
        _progress(f"{error}: killing it")
        return
    if answer is None:
        return
    _progress("stopping programs and containers")
    try:
        supervisor = os.pidfd_open(answer["pid"])
    except ProcessLookupError:
        return
    try:
        select.select([supervisor], [], [], DOWN_TIMEOUT_S)
    finally:
        os.close(supervisor)


def _wait_until_ready(layout: plan.Layout) -> None:
    """Wait until both members answer and every node is ready; say what comes when it comes.

    Raises:
        CliError: it did not; names the programs that do not stay up, or the nodes.
    """
    from controlplane.cli.connection import Connection, find

    environment = {"ESTIBA_DIR": str(layout.folder)}
    connection = Connection(find((), None, environment))
    deadline = time.monotonic() + READY_TIMEOUT_S
    last = ""
    try:
        while True:
            done, words, missing = _readiness(layout, connection)
            words += "" if done else _failing(layout, RESTARTS_WORTH_TELLING)
            if words != last:
                _progress(words)
                last = words
            if done:
                return
            if time.monotonic() > deadline:
                words += absent(missing)
                raise CliError(f"the cluster is not ready after {READY_TIMEOUT_S:g} s: {words}")
            time.sleep(LOOK_EVERY_S)
    finally:
        connection.close()


def absent(hostnames: Sequence[str]) -> str:
    """Say which nodes are missing, and where it stands why: one may have been removed."""
    if not hostnames:
        return ""
    verb = "is" if len(hostnames) == 1 else "are"
    see = f"see `estiba dev logs {hostnames[0]}-agent`"
    return f"; {', '.join(hostnames)} {verb} not ready, {see}"


def _readiness(layout: plan.Layout, connection: "Connection") -> tuple[bool, str, Sequence[str]]:
    """Return whether all is there, how far it is, and the host names of the missing nodes."""
    from controlplane.cli import listing
    from controlplane.cli.connection import NoAnswerError
    from estiba.v1 import control_pb2, types_pb2

    try:
        cluster = connection.call(
            lambda stub: stub.GetCluster, control_pb2.GetClusterRequest(), patience_s=0
        )
        nodes, _ = listing.nodes(connection)
    except NoAnswerError:
        return False, "waiting for the control plane", ()
    ready = {node.metadata.id for node in nodes if node.status.state == types_pb2.NODE_STATE_READY}
    missing = [seat.hostname for seat in layout.seats if seat.id not in ready]
    members, led = len(cluster.members), any(member.leader for member in cluster.members)
    done = members == len(plan.MEMBERS) and led and not missing
    words = f"{len(layout.seats) - len(missing)} of {len(layout.seats)} nodes"
    return done, f"{members} of {len(plan.MEMBERS)} members, {words}", missing


def _failing(layout: plan.Layout, restarts: int) -> str:
    """Name the programs that were restarted at least so often, and where they say why."""
    running = _running(layout)
    if running is None:
        raise CliError(f"the supervisor has ended, see {layout.log('supervisor')}")
    names = [program["name"] for program in running["programs"] if program["restarts"] >= restarts]
    if not names:
        return ""
    verb = "does" if len(names) == 1 else "do"
    return f"; {', '.join(names)} {verb} not stay up, see `estiba dev logs {names[0]}`"
