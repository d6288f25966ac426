"""The one serial planner: decides for all services, places for the whole cluster, stores.

It takes every service that waits, asks the orchestrator for actions and the scheduler for
places, and stores both in transactions that compare what was read. What the scheduler has
promised stays in the ledger until the view has caught up with the store; nothing is planned
before it has. Lives for one term of office.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from controlplane.errors import (
    CompactedError,
    ConflictError,
    OutcomeUnknownError,
    UnavailableError,
)
from controlplane.loops import drafts
from controlplane.loops.blocks import Blocks
from controlplane.loops.drafts import Draft, Transaction
from controlplane.loops.fenced import OWN_CONDITIONS, FencedStore
from controlplane.loops.instruments import Instruments
from controlplane.loops.settings import NetworkSettings, Timing
from controlplane.loops.templates import Templates
from controlplane.loops.view import View
from controlplane.orchestrator import CreateTask, Decision, plan_service
from controlplane.scheduler import Placement, Request, place
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Fence, Store
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock
from estiba.kit.workqueue import WorkQueue
from estiba.model import NodeId, ServiceId, TaskId
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

# Others on the event loop get their turn at least this often: heartbeats must not wait for plans.
SLICE_S = 0.02
PLACED_AT_ONCE = 500
# A service of so many tasks is decided on in a thread: the deciding code cannot take breath.
MANY_TASKS = 2000
LONGEST_PAUSE_S = 1.0
CATCH_UP_S = 5.0


@dataclass(slots=True)
class _Plan:
    """What one round does: drafts by task, in the order of decisions, and who needs a place."""

    drafts: dict[TaskId, Draft] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    revisions: dict[ServiceId, int] = field(default_factory=dict)
    """Of the services' specs: causes of the changes."""
    promised: list[TaskId] = field(default_factory=list)


class Planner:
    def __init__(
        self,
        store: Store,
        cache: Cache,
        *,
        fence: Fence,
        clock: Clock,
        backoff: Backoff,
        network: NetworkSettings,
        timing: Timing,
        instruments: Instruments,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._backoff = backoff
        self._timing = timing
        self._instruments = instruments
        self._store = FencedStore(store, fence)
        self._blocks = Blocks(self._store, cache, network)
        self._view = View(cache, clock)
        self._templates = Templates(self._store, cache, self._view, clock)
        self._view_moved = asyncio.Event()
        self._queue: WorkQueue[ServiceId] = WorkQueue()
        self._queued_at_s: dict[ServiceId, float] = {}
        self._wakes: dict[ServiceId, asyncio.TimerHandle] = {}
        self._begun = False
        self._written = 0
        """The revision of our last write: nothing is planned before the view contains it."""
        self._unanswered = False
        self._breath_s = 0.0
        self._thought_s = 0.0

    async def run(self) -> None:
        """Plan until cancelled.

        Raises:
            DeposedError: another member leads.
        """
        await self._cache.ready.wait()
        self._look_at(self._view.load())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(), name="planner.feed")
                group.create_task(self._resync(), name="planner.resync")
                group.create_task(self._work(), name="planner.work")
        finally:
            for wake in self._wakes.values():
                wake.cancel()

    # ------------------------------------------------------------------ what to look at

    async def _feed(self) -> None:
        while True:
            try:
                async for batch in self._cache.changes(self._view.revision):
                    self._look_at(self._view.take(batch))
                    self._view_moved.set()
                    await self._breathe()
            except CompactedError as gap:
                log.info("looking at every service again: %s", gap)
                self._look_at(self._view.load())
                self._view_moved.set()

    async def _resync(self) -> None:
        while True:
            await self._clock.sleep(self._timing.resync_s)
            self._look_at(ServiceId(each) for each in self._cache.services)

    def _look_at(self, service_ids: Iterable[ServiceId]) -> None:
        now_s = self._clock.monotonic()
        for service_id in service_ids:
            self._queued_at_s.setdefault(service_id, now_s)
            self._queue.add(service_id)

    def _wake_after(self, service_id: ServiceId, delay_s: float | None) -> None:
        """Look at the service again after a while, unless something else decides so earlier."""
        earlier = self._wakes.pop(service_id, None)
        if earlier is not None:
            earlier.cancel()
        if delay_s is not None:
            loop = asyncio.get_running_loop()
            self._wakes[service_id] = loop.call_later(delay_s, self._look_at, (service_id,))

    # ------------------------------------------------------------------ one round

    async def _work(self) -> None:
        while True:
            async with self._queue.take_all() as service_ids:
                try:
                    await self._settle()
                    with self._instruments.reconcile.time():
                        await self._round(service_ids)
                except (ConflictError, UnavailableError, OutcomeUnknownError) as error:
                    self._unanswered = self._unanswered or isinstance(error, OutcomeUnknownError)
                    delay_s = self._backoff.next_s()
                    log.info("%d services wait %.1f s: %s", len(service_ids), delay_s, error)
                    await self._clock.sleep(delay_s)
                    self._look_at(service_ids)
                else:
                    self._backoff.reset()
                # At most half of the time goes into deciding: of changes that come meanwhile, many
                # are then looked at in one go.
                await self._clock.sleep(min(self._thought_s, LONGEST_PAUSE_S))

    async def _settle(self) -> None:
        """Wait until the view contains every write of ours, whatever became of it."""
        if not self._begun:
            await self._store.begin()
            self._begun = True
            await self._cache.catch_up()
        if self._unanswered:
            await self._store.void_unanswered()
            self._unanswered = False
            await self._cache.catch_up()
        written = max(self._written, self._templates.written)
        await self._cache.wait_for(written, timeout_s=CATCH_UP_S)
        await self._view_reaches(self._cache.revision)

    async def _view_reaches(self, revision: int) -> None:
        while self._view.revision < revision:
            self._view_moved.clear()
            await self._view_moved.wait()

    async def _round(self, service_ids: list[ServiceId]) -> None:
        begun_s = self._clock.monotonic()
        queued_at_s = {each: self._queued_at_s.pop(each, begun_s) for each in service_ids}
        now_s = self._clock.now()
        plan = _Plan()
        for service_id in service_ids:
            await self._decide(service_id, plan, now_s=now_s)
        self._thought_s = self._clock.monotonic() - begun_s
        try:
            await self._place(plan, now_s=now_s)
            await self._commit(plan, queued_at_s)
        except BaseException:
            # What was promised and not stored is free again; what was stored comes with the view.
            self._view.recount(plan.promised)
            raise
        await self._cache.wait_for(self._written, timeout_s=CATCH_UP_S)
        for service_id in service_ids:
            again_after_s = await self._templates.clean(service_id)
            if again_after_s is not None:
                self._wake_after(service_id, again_after_s)
        await self._blocks.release(self._view.gone_nodes, within_s=CATCH_UP_S)

    async def _decide(self, service_id: ServiceId, plan: _Plan, *, now_s: float) -> None:
        message = self._cache.services.get(service_id)
        service = self._view.service(service_id)
        tasks = self._view.tasks_of(service_id)
        decide = partial(plan_service, now_s=now_s, grace_s=self._timing.unknown_grace_s)
        if len(tasks) < MANY_TASKS:
            await self._breathe()
            decision = decide(service, tasks, self._view.nodes)
        else:
            decision = await asyncio.to_thread(decide, service, tasks, dict(self._view.nodes))
        self._instruments.reconciled.inc()
        self._wake_after(service_id, decision.wake_after_s)
        plan.revisions[service_id] = service.revision if service is not None else 0
        avoid = await self._draft(decision, message, plan, now_s=now_s)
        if service is None:
            return
        for task in tasks:
            draft = plan.drafts.get(task.id)
            stays = draft is None or draft.task.desired <= v1.DESIRED_STATE_RUNNING
            if task.wanted and task.node_id is None and stays:
                if draft is None:
                    plan.drafts[task.id] = self._read(task.id)
                avoid[task.id] = frozenset()
        plan.requests += [
            Request.of(service, task_id, avoid=nodes) for task_id, nodes in avoid.items()
        ]

    async def _draft(
        self, decision: Decision, service: v1.Service | None, plan: _Plan, *, now_s: float
    ) -> dict[TaskId, frozenset[NodeId]]:
        """Apply a decision's actions to drafts; return the new tasks, with nodes to avoid."""
        created: dict[TaskId, frozenset[NodeId]] = {}
        for action in decision.actions:
            await self._breathe()
            if isinstance(action, CreateTask):
                if service is None:
                    raise ValueError(f"task {action.task_id} is to be created without a service")
                plan.drafts[action.task_id] = drafts.create(action, service, now_s=now_s)
                created[action.task_id] = action.avoid
                continue
            draft = plan.drafts.get(action.task_id)
            if draft is None:
                draft = plan.drafts[action.task_id] = self._read(action.task_id)
            revision = plan.revisions[draft.slot[0]]
            drafts.change(draft, action, now_s=now_s, revision=revision)
        return created

    def _read(self, task_id: TaskId) -> Draft:
        read_at = self._cache.key_revision(keys.task(task_id))
        return drafts.read(self._cache.tasks[task_id], read_at=read_at)

    # ------------------------------------------------------------------ places

    async def _place(self, plan: _Plan, *, now_s: float) -> None:
        placements = await self._places(plan, plan.requests)
        nodes = {each.node_id for each in placements if each.node_id is not None}
        shortage = await self._blocks.claim(nodes, within_s=CATCH_UP_S)
        if shortage:
            placements = await self._place_elsewhere(plan, placements, shortage)
        for placement in placements:
            await self._breathe()
            block = self._blocks.held(placement.node_id) if placement.node_id else None
            draft = plan.drafts[placement.task_id]
            revision = plan.revisions[draft.slot[0]]
            drafts.put_in_place(draft, placement, block, now_s=now_s, revision=revision)

    async def _places(self, plan: _Plan, requests: list[Request]) -> list[Placement]:
        """Ask the scheduler, a slice at a time; the ledger is promised what it answers."""
        placements: list[Placement] = []
        for start in range(0, len(requests), PLACED_AT_ONCE):
            part = place(requests[start : start + PLACED_AT_ONCE], self._view.ledger)
            for placement in part:
                if placement.node_id is not None:
                    self._promise(plan, placement)
            placements += part
            await self._breathe()
        return placements

    async def _place_elsewhere(
        self, plan: _Plan, placements: list[Placement], shortage: str
    ) -> list[Placement]:
        """Place again what went to nodes that got no addresses; what must be there waits."""
        without = frozenset(
            each.node_id
            for each in placements
            if each.node_id is not None and self._blocks.held(each.node_id) is None
        )
        stranded = {each.task_id for each in placements if each.node_id in without}
        self._view.recount(stranded)
        again = [
            replace(request, avoid=request.avoid | without)
            for request in plan.requests
            if request.task_id in stranded
        ]
        answers = {each.task_id: each for each in await self._places(plan, again)}
        waiting = [each.task_id for each in answers.values() if each.node_id in without]
        self._view.recount(waiting)
        answers |= {task_id: Placement(task_id, None, shortage) for task_id in waiting}
        return [answers.get(each.task_id, each) for each in placements]

    def _promise(self, plan: _Plan, placement: Placement) -> None:
        copy = v1.Task()
        copy.CopyFrom(plan.drafts[placement.task_id].task)
        copy.node_id = placement.node_id or ""
        self._view.ledger.put_task(self._view.task(copy))
        plan.promised.append(placement.task_id)

    # ------------------------------------------------------------------ storing

    async def _commit(self, plan: _Plan, queued_at_s: dict[ServiceId, float]) -> None:
        """Store every transaction that can be; raise what kept the last one from it."""
        refused: ConflictError | None = None
        for transaction in drafts.transactions(plan.drafts.values(), reserved=OWN_CONDITIONS):
            try:
                self._written = await self._store.commit(
                    list(transaction.conditions), transaction.writes
                )
            except ConflictError as error:
                refused = error
            else:
                self._observe(transaction, queued_at_s)
        if refused is not None:
            raise refused

    def _observe(self, transaction: Transaction, queued_at_s: dict[ServiceId, float]) -> None:
        now_s = self._clock.monotonic()
        for draft in transaction.drafts:
            if draft.block is not None:
                self._instruments.scheduling_latency.observe(now_s - queued_at_s[draft.slot[0]])

    # ------------------------------------------------------------------ turns

    async def _breathe(self) -> None:
        """Let others on the event loop go on when this slice has been long enough."""
        if self._clock.monotonic() - self._breath_s > SLICE_S:
            await asyncio.sleep(0)
            self._breath_s = self._clock.monotonic()
