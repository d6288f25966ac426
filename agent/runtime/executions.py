"""Run a command inside a running container, for health checks, and bring it to an end.

The command gets all of the container's namespaces, its cgroup, user, capabilities,
environment and working directory. It lives in a cgroup within the container's, so that
it can be killed with everything it started, and nothing else.
"""

import itertools
import os
import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from agent.kernel import caps, files, keys, namespaces, pidfd, prctl
from agent.runtime import sandbox
from agent.runtime.bundle import Bundle, read_bundle
from agent.runtime.cgroups import Cgroups
from agent.runtime.container import Container, Reply, exit_of, failure
from agent.runtime.errors import ContainerError
from agent.runtime.loop import Loop
from agent.runtime.messages import MAX_MESSAGE_BYTES, close_all, decode
from agent.runtime.users import Identity

MAX_OUTPUT_BYTES = 4096

_RETRY_S = 0.01
_READ_BYTES = 65536

_JOINED = (
    namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWNET
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWCGROUP
)


@dataclass(slots=True)
class _Execution:
    container_id: str
    # Of its cgroup within the container's.
    name: str
    reply: Reply
    pidfd: int
    control: socket.socket
    reader: int
    output: bytearray = field(default_factory=bytearray)
    timed_out: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class _Joining:
    """What the child needs to become a process of the container."""

    bundle: Bundle
    identity: Identity
    argv: Sequence[str]
    container: int
    entrances: Sequence[int]
    streams: sandbox.Streams
    open_files: tuple[int, int]


class Executions:
    def __init__(self, loop: Loop, cgroups: Cgroups, open_files: tuple[int, int]) -> None:
        self._loop = loop
        self._cgroups = cgroups
        self._open_files = open_files
        self._numbers = itertools.count()
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def run(
        self, container: Container, argv: Sequence[str], *, timeout_s: float, reply: Reply
    ) -> None:
        """Start a command; answer with its exit code and the first 4 KiB of its output.

        Raises:
            ContainerError: it cannot be started; a command that cannot be executed is
                told in the answer instead.
        """
        if container.identity is None:
            raise ContainerError("request", f"container {container.id} is not running")
        bundle = read_bundle(container.bundle)
        # Another launcher may have left cgroups of its own commands in there.
        name = f"exec-{os.getpid()}-{next(self._numbers)}"
        try:
            execution = self._spawn(container, container.identity, bundle, argv, name, reply)
        except OSError as error:
            self._sweep(container.id, name)
            raise ContainerError("namespaces", f"exec: {error.strerror}") from error
        self._loop.watch(execution.pidfd, lambda: self._child_ended(execution))
        self._loop.watch(execution.reader, lambda: self._read(execution))
        self._loop.after(timeout_s, lambda: self._time_out(execution))

    def _spawn(
        self,
        container: Container,
        identity: Identity,
        bundle: Bundle,
        argv: Sequence[str],
        name: str,
        reply: Reply,
    ) -> _Execution:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        # Nothing to read. Not the node's null device: a container could change its mode; nor
        # its own, in whose place the container may have put something else.
        nothing, nobody = os.pipe2(os.O_CLOEXEC)
        os.close(nobody)
        given = [writer, nothing]
        try:
            os.set_blocking(reader, False)
            entrances = [
                os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                for path in self._cgroups.create_inner(container.id, name)
            ]
            given += entrances
            streams = sandbox.Streams(nothing, writer, writer)
            joining = _Joining(
                bundle, identity, argv, container.pidfd, entrances, streams, self._open_files
            )
            descriptor = self._fork(joining, theirs)
        except OSError:
            ours.close()
            os.close(reader)
            raise
        finally:
            theirs.close()
            close_all(given)
        return _Execution(container.id, name, reply, descriptor, ours, reader)

    def _fork(self, joining: _Joining, parent: socket.socket) -> int:
        """Fork a child of ours that is born into the container's pid namespace."""
        namespaces.enter(joining.container, namespaces.CLONE_NEWPID)
        try:
            pid, descriptor = namespaces.fork_into(0)
            if pid == 0:
                _join(joining, parent)
        finally:
            namespaces.enter(self._own_pids, namespaces.CLONE_NEWPID)
        return descriptor

    def _read(self, execution: _Execution) -> None:
        try:
            data = os.read(execution.reader, _READ_BYTES)
        except BlockingIOError:
            return
        execution.output += data[: MAX_OUTPUT_BYTES - len(execution.output)]
        if not data:
            self._loop.forget(execution.reader)

    def _time_out(self, execution: _Execution) -> None:
        if not execution.ended:
            execution.timed_out = True
            self._sweep(execution.container_id, execution.name)

    def _child_ended(self, execution: _Execution) -> None:
        status = pidfd.reap(execution.pidfd)
        if status is None:
            return
        execution.ended = True
        self._loop.forget(execution.pidfd)
        self._read(execution)
        self._loop.forget(execution.reader)
        fault = _fault(execution.control)
        execution.control.close()
        close_all([execution.pidfd, execution.reader])
        self._sweep(execution.container_id, execution.name)
        if fault:
            execution.reply(failure(fault))
            return
        execution.reply(
            {
                "exit_code": exit_of(status, oom_killed=False, ended_at=0.0).code,
                "output": execution.output.decode(errors="replace"),
                "timed_out": execution.timed_out,
            }
        )

    def _sweep(self, container_id: str, name: str) -> None:
        """Kill what the command has left running, and remove its cgroup."""
        if not self._cgroups.kill_inner(container_id, name):
            self._loop.after(_RETRY_S, lambda: self._sweep(container_id, name))


def _fault(control: socket.socket) -> ContainerError | None:
    try:
        data = control.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        return None
    if not data:
        return None
    message = decode(data)
    return ContainerError(message["stage"], message["message"])


def _join(joining: _Joining, parent: socket.socket) -> NoReturn:
    """Become a process of the container and execute the command."""
    bundle, streams = joining.bundle, joining.streams
    with sandbox.Child(parent):
        kept = (parent.fileno(), joining.container, *joining.entrances, *streams.descriptors())
        files.close_all_except(kept)
        last_capability = caps.last_number()
        # Until it executes, it holds more than the container may have.
        prctl.forbid_tracing()
        os.setsid()
        keys.leave_session_keyring()
        sandbox.forget_imports()
        with sandbox.stage("namespaces"):
            namespaces.enter(joining.container, _JOINED)
            os.close(joining.container)
        sandbox.use_streams(streams)
        sandbox.enter_cgroup(joining.entrances)
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_NOFILE, joining.open_files)
        with sandbox.stage("command"):
            sandbox.become(bundle, joining.identity, last_capability)
            sandbox.execute(joining.argv, bundle.env, joining.identity)
