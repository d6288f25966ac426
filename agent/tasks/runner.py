"""Carry out the steps of one task, and keep its record: on disk and with the reporter.

`machine` decides; nothing here does. A runner that is cancelled touches no container:
whoever starts the next one finds it with the launcher and in the journal.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from agent.errors import AgentError, ImageError, LauncherLostError, LaunchError, NetworkError
from agent.health.checks import Checks
from agent.health.verdict import Verdict
from agent.images.reference import parse_reference
from agent.tasks import machine, results
from agent.tasks.admission import refusal
from agent.tasks.bundles import Bundles
from agent.tasks.folders import Folders, container_id, forget_old_runs
from agent.tasks.journal import Journal
from agent.tasks.machine import Event, Record
from agent.tasks.ports import Exit, Images, Launcher, Network
from estiba.kit.clock import Clock
from estiba.kit.threads import whole
from estiba.model import DesiredState, Resources, TaskState
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration_s, seconds

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_GRACE_S = 10.0
KILL_AGAIN_S = 5.0
LAUNCHER_RETRY_S = 0.2
CLEAN_AGAIN_S = 1.0
PROGRESS_EVERY_S = 0.5
# A container that has just ended cannot be signalled, and its exit is on its way to us.
EXIT_ON_ITS_WAY_S = 1.0


class Publish(Protocol):
    def __call__(self, task_id: str, status: v1.TaskStatus, *, passing: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What all runners of a node share."""

    launcher: Launcher
    images: Images
    network: Network
    checks: Checks
    bundles: Bundles
    folders: Folders
    journal: Journal
    clock: Clock
    capacity: Resources
    creating: asyncio.Semaphore
    """So many containers are made at the same time."""
    publish: Publish


class Runner:
    """One task. `assign`, `forget` and `exited` may be called at any time; `run` does the work."""

    def __init__(self, assignment: dispatch.Assignment, record: Record, tools: Tools) -> None:
        self._assignment = assignment
        self._record = record
        self._tools = tools
        self._changed = asyncio.Event()
        self._exited = asyncio.Event()
        self._exit: Exit | None = None
        self._interruptible: asyncio.Timeout | None = None
        self._forgotten = False
        self._stop_reason = ""
        self._revision = 0
        self._progress_due_s = 0.0

    @property
    def task_id(self) -> str:
        return self._assignment.task_id

    @property
    def assignment(self) -> dispatch.Assignment:
        return self._assignment

    @property
    def record(self) -> Record:
        return self._record

    @property
    def forgotten(self) -> bool:
        return self._forgotten

    @property
    def container_id(self) -> str:
        return container_id(self.task_id, self._record.run)

    @property
    def desired(self) -> DesiredState:
        if self._forgotten:
            return DesiredState.REMOVE
        return DesiredState(self._assignment.desired or DesiredState.RUNNING)

    # ---------------------------------------------------------------- what others tell it

    def assign(self, assignment: dispatch.Assignment, *, revision: int) -> None:
        self._assignment = assignment
        self._revision = revision
        self._wish_changed()

    def forget(self, reason: str) -> None:
        """Leave nothing, report nothing, and end."""
        self._forgotten = True
        self._stop_reason = reason
        self._wish_changed()

    def exited(self, container: str, ended: Exit) -> None:
        """Take note of an exit; one told twice, or of an earlier run, changes nothing."""
        if container != self.container_id or self._exit is not None:
            return
        if self._record.state not in {TaskState.READY, TaskState.STARTING, TaskState.RUNNING}:
            return
        self._exit = ended
        self._exited.set()
        self._changed.set()

    def vanished(self, reason: str) -> None:
        """The container of the current run is gone, and nobody saw how it ended."""
        if self._record.state is TaskState.RUNNING:
            result = self._unseen_end(reason)
        else:
            now_s = self._tools.clock.now()
            result = results.never_started(self._record.run, reason, now_s=now_s)
        self._advance(machine.RunEnded(result, self._assignment.template.restart))

    def found_running(self) -> None:
        """The container was started by an agent that did not live to write it down."""
        self._advance(machine.RunStarted(checked=self._check is not None))

    def _wish_changed(self) -> None:
        self._changed.set()
        if self._interruptible is not None and self.desired >= DesiredState.SHUTDOWN:
            self._interruptible.reschedule(asyncio.get_running_loop().time())

    # ---------------------------------------------------------------- the work

    async def run(self) -> None:
        """Work until nothing is left of a forgotten task."""
        refused = refusal(self._assignment, self._tools.capacity)
        if refused and self._record.state is TaskState.ACCEPTED:
            self._advance(machine.TaskRefused(refused))
        while not (self._forgotten and self._record.state is TaskState.REMOVED):
            self._changed.clear()
            if self._record.run < self._assignment.last_run:
                await self._catch_up()
                continue
            if self._exit is not None:
                await self._end_run(self._result_of(self._exit))
                continue
            now_s = self._tools.clock.now()
            await self._carry_out(machine.next_step(self._record, self.desired, now_s=now_s))

    async def _carry_out(self, step: machine.Step) -> None:
        match step:
            case machine.Prepare(run):
                await self._begin(lambda: self._prepare(run))
            case machine.Start():
                await self._begin(self._start)
            case machine.Watch():
                await self._watch()
            case machine.Wait(until_s):
                await self._wait(until_s)
            case machine.EndRun():
                ended = await self._halt(self._record.status.message)
                await self._end_run(ended or self._unseen_end(results.UNSEEN))
            case machine.Stop():
                await self._stop()
            case machine.Erase():
                await self._erase()

    async def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Bring a container nearer to running, unless the task is told to stop meanwhile."""
        if self.desired >= DesiredState.SHUTDOWN:
            return
        try:
            async with asyncio.timeout(None) as self._interruptible:
                await self._try(work)
        except TimeoutError:
            log.info("task %s was told to stop before it ran", self.task_id)
        finally:
            self._interruptible = None

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (ImageError, LaunchError, LauncherLostError, NetworkError, OSError) as fault:
            reason = str(fault) if isinstance(fault, AgentError) else f"cannot be prepared: {fault}"
            now_s = self._tools.clock.now()
            await self._end_run(results.never_started(self._record.run, reason, now_s=now_s))

    async def _prepare(self, run: int) -> None:
        container = self._assignment.template.container
        tools = self._tools
        wanted = container.image
        if self._record.status.image_digest:
            # What a tag meant to the first run is what all runs of a task run.
            wanted = str(parse_reference(wanted).pinned(self._record.status.image_digest))
        self._advance(machine.PreparationBegan(run, f"preparing the image {container.image}"))
        image = await tools.images.ensure(wanted, progress=self._progressed)
        async with tools.creating:
            # Half a dozen small files take milliseconds on a busy disk, and whoever deletes them
            # next must find all of them.
            bundle = await whole(lambda: tools.bundles.write(self._assignment, run, image))
            pid = await tools.launcher.create(self.container_id, bundle)
            address = ""
            for attachment in self._assignment.attachments:
                address = await tools.network.connect(self.container_id, pid, attachment)
            tools.bundles.write_hosts(self._assignment, run, address)
        self._advance(machine.Prepared(pid, address, image.digest))

    def _progressed(self, message: str) -> None:
        now_s = self._tools.clock.monotonic()
        if now_s >= self._progress_due_s and message != self._record.status.message:
            self._progress_due_s = now_s + PROGRESS_EVERY_S
            self._advance(machine.Progressed(message))

    async def _start(self) -> None:
        if self._record.state is not TaskState.STARTING:
            self._advance(machine.StartBegan())
        await self._tools.launcher.start(self.container_id)
        self._advance(machine.RunStarted(checked=self._check is not None))

    @property
    def _check(self) -> v1.HealthCheck | None:
        container = self._assignment.template.container
        has_kind = container.health.WhichOneof("kind") is not None
        return container.health if has_kind else None

    async def _watch(self) -> None:
        check = self._check
        if check is None:
            await self._changed.wait()
            return
        async with asyncio.TaskGroup() as group:
            checking = group.create_task(
                self._tools.checks.watch(
                    check,
                    self.container_id,
                    self._record.status.address,
                    started_at_s=seconds(self._record.status.started_at),
                    before=Verdict(self._record.status.health),
                    changed=self._judged,
                ),
                name=f"health.{self.task_id}",
            )
            await self._changed.wait()
            checking.cancel()

    def _judged(self, verdict: Verdict) -> None:
        self._advance(machine.HealthJudged(verdict.health, verdict.message))
        if verdict.health == v1.HEALTH_UNHEALTHY:
            self._changed.set()

    async def _wait(self, until_s: float) -> None:
        delay_s = until_s - self._tools.clock.now()
        try:
            async with asyncio.timeout(None if delay_s == float("inf") else max(delay_s, 0.0)):
                await self._changed.wait()
        except TimeoutError:
            return

    # ---------------------------------------------------------------- ends

    async def _end_run(self, result: v1.RunResult) -> None:
        container = self.container_id
        self._exit = None
        self._exited.clear()
        policy = self._assignment.template.restart
        self._advance(machine.RunEnded(result, policy))
        await self._clean(container)
        forget_old_runs(self._tools.folders.task_logs(self.task_id))

    async def _catch_up(self) -> None:
        """End the run, and go on above those that the control plane knows of."""
        last_run, last_seq = self._assignment.last_run, self._assignment.last_seq
        if self._record.state is TaskState.RUNNING:
            await self._halt(f"stopping: the control plane knows of runs up to {last_run}")
        if not self._record.state.ended:
            await self._clean(self.container_id)
        self._exit = None
        self._exited.clear()
        self._advance(machine.JournalBehind(last_run, last_seq))

    async def _stop(self) -> None:
        result = None
        if self._record.state is TaskState.RUNNING:
            result = await self._halt(self._why_stopped()) or self._unseen_end(results.UNSEEN)
        await self._clean(self.container_id)
        self._exit = None
        self._exited.clear()
        self._advance(machine.TaskStopped(result))

    def _why_stopped(self) -> str:
        if self._stop_reason:
            return f"stopping: {self._stop_reason}"
        return "stopping, as the control plane wants it"

    async def _halt(self, reason: str) -> v1.RunResult | None:
        """Signal, give the grace, kill. Return how it ended, None if nobody saw it."""
        self._advance(machine.StopBegan(reason, self._revision))
        launcher, container = self._tools.launcher, self.container_id
        try:
            number = self._tools.bundles.stop_signal(self._assignment, self._record.run)
            await self._insist(lambda: launcher.signal(container, number))
            if not await self._ends_within(self._grace_s):
                await self._insist(lambda: launcher.kill(container))
                while not await self._ends_within(KILL_AGAIN_S):
                    log.warning("container %s does not end; killing it again", container)
                    await self._insist(lambda: launcher.kill(container))
        except LaunchError as fault:
            log.info("container %s cannot be signalled: %s", container, fault)
            await self._ends_within(EXIT_ON_ITS_WAY_S)
        return None if self._exit is None else self._result_of(self._exit)

    @property
    def _grace_s(self) -> float:
        container = self._assignment.template.container
        if container.HasField("stop_grace_period"):
            return duration_s(container.stop_grace_period)
        return DEFAULT_GRACE_S

    async def _ends_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    async def _erase(self) -> None:
        await asyncio.to_thread(
            shutil.rmtree, self._tools.folders.task_logs(self.task_id), ignore_errors=True
        )
        self._advance(machine.TaskErased())

    async def _clean(self, container: str) -> None:
        """Leave nothing of one container but its logs, however long that takes."""
        while True:
            try:
                await self._insist(lambda: self._tools.launcher.remove(container))
                await self._tools.network.disconnect(container)
                await asyncio.to_thread(self._tools.bundles.delete, container)
            except (LaunchError, NetworkError, OSError) as fault:
                log.warning("container %s cannot be cleaned up: %s", container, fault)
                self._advance(machine.Progressed(f"cannot be cleaned up yet: {fault}"))
                await self._tools.clock.sleep(CLEAN_AGAIN_S)
            else:
                return

    # ---------------------------------------------------------------- small tools

    def _result_of(self, ended: Exit) -> v1.RunResult:
        limit = self._assignment.template.resources.limits.memory_bytes
        return results.of_exit(self._record.run, ended, memory_limit_bytes=limit)

    def _unseen_end(self, reason: str) -> v1.RunResult:
        return results.unknown(
            self._record.run,
            reason,
            started_at_s=seconds(self._record.status.started_at),
            now_s=self._tools.clock.now(),
        )

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the launcher again until it answers: for what must be done before going on."""
        while True:
            try:
                return await ask()
            except LauncherLostError as fault:
                log.info("waiting for the launcher: %s", fault)
                await self._tools.clock.sleep(LAUNCHER_RETRY_S)

    def _advance(self, event: Event) -> None:
        self._record = machine.advance(self._record, event, now_s=self._tools.clock.now())
        if self._record.state is TaskState.REMOVED:
            self._tools.journal.delete(self.task_id)
        else:
            self._tools.journal.save(self.task_id, self._record)
        if not self._forgotten:
            self.publish()

    def publish(self) -> None:
        """Have the status told: soon if the task stays as it is, later if it is on its way."""
        passing = self._record.state < self.desired
        self._tools.publish(self.task_id, self._record.status, passing=passing)
