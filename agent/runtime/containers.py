"""The life of each container: made, started, ended, gone; and taken over after a restart.

Every end is read from the kernel. Where it is out of reach it is unknown, never 0.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from agent.kernel import namespaces, pidfd
from agent.kernel.exits import Exits
from agent.runtime import sandbox
from agent.runtime.bundle import Bundle, read_bundle
from agent.runtime.cgroups import Cgroups
from agent.runtime.container import (
    CREATED,
    CREATING,
    EXITED,
    REMOVING,
    RUNNING,
    STARTING,
    Container,
    Reply,
    StateFolder,
    exit_of,
    failure,
)
from agent.runtime.errors import ContainerError
from agent.runtime.loop import Loop
from agent.runtime.messages import MAX_MESSAGE_BYTES, close_all, decode
from agent.runtime.output import OutputPipes, PumpLink, make_pipes
from agent.runtime.processes import in_child, say
from agent.runtime.trees import remove_trees
from agent.runtime.users import Identity

_RETRY_S = 0.01
_PUMP_PATIENCE_S = 2.0


class Containers:
    """All containers of this launcher, by id."""

    def __init__(
        self,
        loop: Loop,
        *,
        state: Path,
        cgroups: Cgroups,
        pump_path: Path,
        open_files: tuple[int, int],
        ended: Callable[[Container], None],
    ) -> None:
        """
        Args:
            open_files: soft and hard limit of open files for containers.
            ended: called when a container that had been started has ended.
        """
        self._loop = loop
        self._state = StateFolder(state)
        self._cgroups = cgroups
        self._ended = ended
        self._containers: dict[str, Container] = {}
        self.pump = PumpLink(loop, pump_path, found=self._found_by_pump, synced=self._give_up_lost)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._open_files = open_files
        self._exits: Exits | None = None

    def __iter__(self) -> Iterator[Container]:
        return iter(self._containers.values())

    def __len__(self) -> int:
        return len(self._containers)

    def known(self, container_id: str) -> Container:
        """Return a container; raise ContainerError if there is none of that id."""
        container = self._containers.get(container_id)
        if container is None:
            raise ContainerError("request", f"there is no container {container_id}")
        return container

    def running(self, container_id: str) -> Container:
        """Return a container whose first process lives; raise ContainerError if it does not."""
        container = self.known(container_id)
        if container.exit or container.pidfd < 0:
            raise ContainerError("request", f"container {container_id} has ended")
        return container

    # ---------------------------------------------------------------- create

    def create(self, container_id: str, folder: Path, reply: Reply) -> None:
        """Make a container that waits to be started, or leave nothing of it behind."""
        if container_id in self._containers:
            raise ContainerError("request", f"container {container_id} exists")
        bundle = read_bundle(folder)
        container = Container(container_id, bundle.folder, waiting=reply)
        self._containers[container_id] = container
        try:
            self._prepare(container, bundle)
            self._spawn(container, bundle)
        except ContainerError as fault:
            self._fail(container, fault)
        except OSError as error:
            reason = f"{error.filename or 'a new process'}: {error.strerror}"
            self._fail(container, ContainerError("namespaces", reason))

    def _prepare(self, container: Container, bundle: Bundle) -> None:
        """Record the container, then make what it needs outside of its namespaces."""
        self._state.save(container)
        self._cgroups.create(container.id, bundle.limits)
        folders = (bundle.upper, bundle.work, bundle.root)
        # An upper folder that was mounted `volatile` before cannot be mounted again.
        remove_trees(folders)
        for folder in folders:
            folder.mkdir(mode=0o755)

    def _spawn(self, container: Container, bundle: Bundle) -> None:
        """Fork the child that becomes the container, and watch it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given: list[int] = []
        pipes: OutputPipes | None = None
        try:
            stdout = stderr = self._null
            if bundle.log:
                pipes, stdout, stderr = make_pipes()
                given += [stdout, stderr]
            entrances = [
                os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                for path in self._cgroups.entrances(container.id)
            ]
            given += entrances
            around = sandbox.Surroundings(
                entrances=entrances,
                cgroups=self._cgroups.binds(container.id),
                streams=sandbox.Streams(self._null, stdout, stderr),
                open_files=self._open_files,
            )
            pid, descriptor = namespaces.fork_into(sandbox.NAMESPACES)
            if pid == 0:
                sandbox.run(bundle, around, theirs)
        except OSError:
            ours.close()
            close_all(pipes.descriptors() if pipes else [])
            raise
        finally:
            theirs.close()
            close_all(given)
        container.pid, container.pidfd, container.control = pid, descriptor, ours
        container.start_time = pidfd.start_time(pid) or 0
        if bundle.log and pipes:
            container.output = f"{container.id}#{time.time_ns()}"
            self.pump.hold(container.output, bundle.log, pipes, descriptor)
        self._loop.watch(ours.fileno(), lambda: self._child_spoke(container))
        self._loop.watch(descriptor, lambda: self._child_ended(container))

    # ---------------------------------------------------------------- start

    def start(self, container_id: str, reply: Reply) -> None:
        """Let a created container execute its command."""
        container = self.known(container_id)
        if container.status != CREATED or container.control is None:
            raise ContainerError("request", f"container {container_id} is not waiting to start")
        container.status = STARTING
        container.started_at = time.time()
        container.waiting = reply
        # Recorded first: a container that runs is never unknown to the next launcher.
        self._state.save(container)
        # A child that is dead already is about to be noticed.
        with suppress(OSError):
            container.control.send(sandbox.START)

    def _child_spoke(self, container: Container) -> bool:
        """Read what the child tells of its set-up; silence at its end means it executes.

        Returns:
            Whether there may be more to read.
        """
        if container.control is None:
            return False
        try:
            data = container.control.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self._close_control(container)
            if container.status == STARTING and container.fault is None:
                container.status = RUNNING
                container.answer({})
            return False
        message = decode(data)
        if "ready" in message:
            ready = message["ready"]
            container.identity = Identity(**{**ready, "groups": tuple(ready["groups"])})
            container.status = CREATED
            container.answer({"pid": container.pid})
        else:
            container.fault = ContainerError(message["stage"], message["message"])
        return True

    def _close_control(self, container: Container) -> None:
        if container.control is not None:
            self._loop.forget(container.control.fileno())
            container.control.close()
            container.control = None

    # ---------------------------------------------------------------- end

    def _child_ended(self, container: Container) -> None:
        # What it said last comes before its end.
        while self._child_spoke(container):
            pass
        try:
            status = pidfd.reap(container.pidfd)
        except ChildProcessError:
            status = self._adopted_status(container)
        self._close_pidfd(container)
        if container.status in {CREATING, CREATED, STARTING}:
            self._fail(container, container.fault or _unexplained(status))
            return
        self._record_exit(container, status)

    def _adopted_status(self, container: Container) -> int | None:
        """Return the wait status of a process that is not our child, None if out of reach."""
        status = pidfd.exit_status(container.pidfd)
        if status is None:
            status = pidfd.zombie_status(container.pid, container.start_time)
        if status is None:
            # It may have been reaped between the two looks.
            status = pidfd.exit_status(container.pidfd)
        if status is None and self._exits is not None:
            status = self._exits.status(container.pid)
        return status

    def _record_exit(self, container: Container, status: int | None) -> None:
        container.exit = exit_of(
            status,
            oom_killed=self._cgroups.oom_kills(container.id) > 0,
            ended_at=time.time(),
        )
        self._finish(container)

    def _finish(self, container: Container) -> None:
        if container.status != REMOVING:
            container.status = EXITED
        self._state.save(container)
        self.pump.forget(container.output)
        self._ended(container)
        if container.status == REMOVING:
            self._clean(container)

    def _close_pidfd(self, container: Container) -> None:
        if container.pidfd >= 0:
            self._loop.forget(container.pidfd)
            os.close(container.pidfd)
            container.pidfd = -1

    def kill(self, container: Container) -> None:
        """Kill a container: with its first process goes the whole pid namespace."""
        if container.pidfd >= 0:
            with suppress(ProcessLookupError):
                pidfd.send_signal(container.pidfd, signal.SIGKILL)
        self._cgroups.thaw(container.id)

    # ---------------------------------------------------------------- remove

    def remove(self, container_id: str, reply: Reply) -> None:
        """Kill what is left of a container and remove every trace of it but logs and bundle.

        Answers when its output is in the log too, unless the pump is slow or away. Safe
        to repeat, and for a container that nobody knows.
        """
        container = self._containers.get(container_id)
        if container is None:
            # An earlier attempt may have left a cgroup.
            container = Container(container_id, Path("/nonexistent"), status=EXITED)
            self._containers[container_id] = container
        container.gone.append(reply)
        if container.status == REMOVING:
            return
        if container.status in {CREATING, CREATED}:
            # It never ran: its end is the end of a failed create.
            self.kill(container)
            return
        container.status = REMOVING
        self._state.save(container)
        container.answer(failure(ContainerError("request", f"{container_id} was removed")))
        if container.exit is None and container.pidfd >= 0:
            self.kill(container)
        else:
            self._clean(container)

    def _fail(self, container: Container, fault: ContainerError) -> None:
        """Leave nothing of a container that was never started, then say why."""
        waiting, container.waiting = container.waiting, None
        if waiting:
            container.gone.append(lambda _: waiting(failure(fault)))
        container.status = REMOVING
        self._close_control(container)
        self.pump.forget(container.output)
        self._clean(container)

    def _clean(self, container: Container) -> None:
        """Remove cgroups, then folders in a child, then the record; then tell who waits."""
        if not self._cgroups.remove(container.id):
            # Processes that are not in the pid namespace, or dying ones.
            self._cgroups.kill_all(container.id)
            self._loop.after(_RETRY_S, lambda: self._clean(container))
            return
        folders = [container.bundle / name for name in ("rootfs", "upper", "work")]
        if not any(folder.exists() for folder in folders):
            self._gone(container, 0)
            return
        in_child(
            self._loop, lambda: remove_trees(folders), lambda code: self._gone(container, code)
        )

    def _gone(self, container: Container, code: int) -> None:
        if code != 0:
            answer = failure(ContainerError("root", f"cannot remove {container.bundle}"))
        else:
            self._state.delete(container.id)
            answer = {}
        self._containers.pop(container.id, None)

        def tell() -> None:
            for reply in container.gone:
                reply(answer)

        self.pump.when_dry(container.output, tell)

    # ---------------------------------------------------------------- taking over

    def adopt(self) -> None:
        """Take over what an earlier launcher left: living containers, ends, half-done work."""
        for container, this_boot in self._state.load():
            self._containers[container.id] = container
            if not this_boot:
                container.pid = 0
        self._listen_to([each.pid for each in self if each.pid and each.exit is None])
        for container in list(self):
            if container.status in {CREATING, CREATED}:
                # Its child ended with the socket to the launcher that made it.
                self._fail(container, ContainerError("launcher", "it ended"))
            elif container.exit is None:
                self._watch_adopted(container)
            elif container.status == REMOVING:
                self._clean(container)
        for name in self._cgroups.names() - self._containers.keys():
            say(f"removing the cgroup of {name}, of which nothing is recorded")
            self.remove(name, lambda _: None)
        self._loop.after(_PUMP_PATIENCE_S, self._give_up_lost)

    def _listen_to(self, pids: list[int]) -> None:
        """Have the kernel tell how these end, if it does: they are not our children."""
        if pids:
            with suppress(OSError):
                self._exits = Exits(pids)
                self._loop.watch(self._exits.fileno(), self._exits.listen)

    def _watch_adopted(self, container: Container) -> None:
        if container.status == STARTING:
            container.status = RUNNING
        with suppress(ProcessLookupError):
            if container.pid:
                container.pidfd = pidfd.open_pidfd(container.pid)
                if pidfd.start_time(container.pid) != container.start_time:
                    # The number belongs to another process by now.
                    os.close(container.pidfd)
                    container.pidfd = -1
        if container.pidfd < 0:
            container.lost = True
            return
        self._loop.watch(container.pidfd, lambda: self._child_ended(container))
        # Nobody waits any longer for commands that the earlier launcher ran in it.
        self._cgroups.kill_inner_ones(container.id)
        if container.status == REMOVING:
            self.kill(container)

    def _found_by_pump(self, name: str, descriptor: int) -> bool:
        """Take a pidfd that the pump kept: it tells the end of a process that is gone."""
        known = {each.output: each for each in self._containers.values() if not each.exit}
        container = known.get(name)
        if container is None or not container.lost:
            os.close(descriptor)
            return container is not None
        container.lost = False
        container.pidfd = descriptor
        self._loop.watch(descriptor, lambda: self._child_ended(container))
        return True

    def _give_up_lost(self) -> None:
        """Record an unknown end for what is gone and of which the pump knows nothing either."""
        for container in list(self._containers.values()):
            if container.lost:
                container.lost = False
                self._record_exit(container, None)


def _unexplained(status: int | None) -> ContainerError:
    end = exit_of(status, oom_killed=False, ended_at=0.0)
    if end.signal:
        return ContainerError("namespaces", f"the set-up was killed by signal {end.signal}")
    return ContainerError("namespaces", f"the set-up ended with exit code {end.code}")
