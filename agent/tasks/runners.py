"""Keep one runner for each assigned task, and see that nothing else is left on the node."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence

from agent.assignments import Assign, Change, Forget, Known
from agent.errors import LauncherLostError, LaunchError, NetworkError
from agent.metrics.sources import TaskView
from agent.tasks import machine, results
from agent.tasks.folders import task_of
from agent.tasks.machine import Record
from agent.tasks.ports import ContainerExit, ContainerInfo, Exit
from agent.tasks.runner import LAUNCHER_RETRY_S, Runner, Tools
from estiba.model import DesiredState, TaskState, task_name
from estiba.v1 import dispatcher_pb2 as dispatch

log = logging.getLogger(__name__)

CLEARED = "this node was removed from the cluster"
FORGOTTEN = "the control plane has forgotten the task"
HAVE_A_CONTAINER = {TaskState.READY, TaskState.STARTING, TaskState.RUNNING}


class Runners:
    """`adopt` first, then `run` for as long as the agent lives; `apply` any time after `adopt`."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._group: asyncio.TaskGroup | None = None
        self._runners: dict[str, Runner] = {}
        # A forgotten task that is assigned again before the last of it is gone.
        self._again: dict[str, Assign] = {}
        self._idle = asyncio.Event()
        # What an earlier agent left and no runner has taken up yet.
        self._found: dict[str, ContainerInfo] = {}
        self._bundles: set[str] = set()
        self._records: dict[str, Record] = {}
        self._exits: dict[str, Exit] = {}
        self._certain = False
        self._swept = False
        self._on_exit: list[Callable[[str], None]] = []
        tools.launcher.on_exit(self._exited)

    def tasks(self) -> Sequence[TaskView]:
        """Return how all tasks of this node stand."""
        return [
            TaskView(
                task_id=task_id,
                service_name=runner.assignment.service_name,
                slot=runner.assignment.slot,
                container_id=runner.container_id,
                status=runner.record.status,
            )
            for task_id, runner in self._runners.items()
        ]

    def name_of(self, task_id: str) -> str:
        """Return a task's name for people, "" if it is none of this node's."""
        runner = self._runners.get(task_id)
        if runner is None:
            return ""
        return task_name(runner.assignment.service_name, runner.assignment.slot)

    def on_exit(self, callback: Callable[[str], None]) -> None:
        """Have a container's id told when it has ended, while its cgroup is still there."""
        self._on_exit.append(callback)

    # ---------------------------------------------------------------- coming back

    async def adopt(self, known: Known | None) -> None:
        """Compare the journal with what the launcher has, and go on from there.

        A container whose task is assigned and whose run is current is not touched. All
        others are removed; but if the assignments on disk are lost (None), only once the
        control plane has said what belongs here.
        """
        self._certain = known is not None
        self._records = self._tools.journal.load()
        self._found = {each.container_id: each for each in await self._list()}
        self._bundles = {each.name for each in self._tools.folders.containers.iterdir()}
        await self._tools.network.adopt(set(self._found))
        if known is not None:
            for task_id, assignment in known.tasks.items():
                self._runners[task_id] = self._take_up(assignment)

    async def _list(self) -> Sequence[ContainerInfo]:
        while True:
            try:
                return await self._tools.launcher.list()
            except LauncherLostError as fault:
                log.info("waiting for the launcher: %s", fault)
                await self._tools.clock.sleep(LAUNCHER_RETRY_S)

    def _take_up(self, assignment: dispatch.Assignment) -> Runner:
        """Make the runner of a task, with what an earlier agent has left of it."""
        task_id = assignment.task_id
        record = self._records.pop(task_id, None)
        left = map(task_of, self._bundles | set(self._found))
        last_run = max((run for task, run in left if task == task_id), default=0)
        last_run = max(last_run, assignment.last_run)
        if record is None or record.run < last_run:
            # Lost, or older than what was done: the machine stopped before it was on disk.
            return Runner(assignment, self._new_record(assignment, last_run), self._tools)
        runner = Runner(assignment, record, self._tools)
        container = self._found.get(runner.container_id)
        if runner.record.state in HAVE_A_CONTAINER:
            if container is None:
                runner.vanished(results.LAUNCHER_LOST)
            else:
                self._take_over(runner, container)
        elif runner.record.state is TaskState.PREPARING:
            # Half-made under the name of this run: the next run makes another.
            runner.vanished(results.INTERRUPTED)
        return runner

    def _take_over(self, runner: Runner, container: ContainerInfo) -> None:
        name = container.container_id
        del self._found[name]
        self._bundles.discard(name)
        ended = self._exits.pop(name, container.exit)
        started = container.state in {"running", "exited"}
        if started and runner.record.state is not TaskState.RUNNING:
            runner.found_running()
        if ended is not None:
            runner.exited(name, ended)

    def _new_record(self, assignment: dispatch.Assignment, last_run: int) -> Record:
        return machine.new_record(
            last_run=last_run,
            last_seq=assignment.last_seq,
            desired=DesiredState(assignment.desired or DesiredState.RUNNING),
            now_s=self._tools.clock.now(),
        )

    async def _sweep(self) -> None:
        """Remove what an earlier agent left and no assigned task owns."""
        self._certain = self._swept = True
        self._exits = {}
        strangers = self._bundles | set(self._found)
        self._found, self._bundles = {}, set()
        for name in sorted(strangers):
            log.info("removing container %s: it is no run of an assigned task", name)
            await self._remove(name)
        for task_id in self._records:
            if task_id not in self._runners:
                self._tools.journal.delete(task_id)
        self._records = {}
        for logs in self._tools.folders.logs.iterdir():
            if logs.name not in self._runners:
                await asyncio.to_thread(shutil.rmtree, logs, ignore_errors=True)

    async def _remove(self, container: str) -> None:
        while True:
            try:
                await self._tools.launcher.remove(container)
                await self._tools.network.disconnect(container)
                await asyncio.to_thread(self._tools.bundles.delete, container)
            except LauncherLostError:
                await self._tools.clock.sleep(LAUNCHER_RETRY_S)
                continue
            except (LaunchError, NetworkError, OSError) as fault:
                # Left for the next start of the agent, which sweeps again.
                log.warning("container %s cannot be removed: %s", container, fault)
            return

    # ---------------------------------------------------------------- working

    async def run(self) -> None:
        """Run all runners; a failure of one is a bug, and ends the agent, not its containers."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for runner in list(self._runners.values()):
                self._launch(runner)
            if self._certain:
                group.create_task(self._sweep(), name="tasks.sweep")
            await asyncio.Event().wait()

    def _launch(self, runner: Runner) -> None:
        self._runners[runner.task_id] = runner
        runner.publish()
        if self._group is not None:
            self._group.create_task(self._drive(runner), name=f"task.{runner.task_id}")

    async def _drive(self, runner: Runner) -> None:
        await runner.run()
        del self._runners[runner.task_id]
        again = self._again.pop(runner.task_id, None)
        if again is not None:
            self._assign(again)
        if not self._runners:
            self._idle.set()

    def apply(self, changes: Iterable[Change]) -> None:
        """Hand changes to the runners; they are at work when this returns."""
        for change in changes:
            match change:
                case Assign():
                    self._assign(change)
                case Forget(task_id):
                    self._again.pop(task_id, None)
                    if task_id in self._runners:
                        self._runners[task_id].forget(FORGOTTEN)

    def _assign(self, change: Assign) -> None:
        runner = self._runners.get(change.assignment.task_id)
        if runner is None:
            self._launch(self._take_up(change.assignment))
        elif runner.forgotten:
            self._again[runner.task_id] = change
        else:
            runner.assign(change.assignment, revision=change.revision)

    async def settle(self) -> None:
        """After complete assignments: remove what `adopt` had to leave in doubt."""
        if not self._certain:
            await self._sweep()

    async def clear(self) -> None:
        """Stop everything and leave nothing: the node is none of the cluster's any more."""
        self._again.clear()
        self._idle.clear()
        for runner in self._runners.values():
            runner.forget(CLEARED)
        if self._runners:
            await self._idle.wait()
        await self._sweep()

    def _exited(self, ended: ContainerExit) -> None:
        name = ended.container_id
        for callback in self._on_exit:
            callback(name)
        runner = self._runners.get(task_of(name)[0])
        if runner is not None and name not in self._found:
            runner.exited(name, ended)
        elif not self._swept:
            self._exits[name] = ended
