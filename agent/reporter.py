"""Tell the control plane how tasks stand: the newest status of each, in batches, until stored.

One report is under way at a time; what changes meanwhile is merged into the next. What a
task only passes through is told if it lasts: a start is four changes within milliseconds.
After a reconnect everything is told again, since who was told may not have stored it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

# What a task passes through is told after so long, anything else at once.
PASSING_S = 0.1
REPORT_TASKS = 500
SEND_AGAIN_S = 5.0


class Reporter:
    def __init__(self) -> None:
        self._newest: dict[str, v1.TaskStatus] = {}
        # When each is due, by the monotonic clock.
        self._unsaid: dict[str, float] = {}
        self._under_way: list[str] = []
        self._number = 0
        self._something = asyncio.Event()
        self._stored = asyncio.Event()

    @property
    def statuses(self) -> dict[str, v1.TaskStatus]:
        """The newest status of every task of this node."""
        return self._newest

    def publish(self, task_id: str, status: v1.TaskStatus, *, passing: bool) -> None:
        """Have a status told.

        Args:
            passing: the next one is likely to follow at once.
        """
        self._newest[task_id] = status
        due_s = time.monotonic() + (PASSING_S if passing else 0.0)
        self._unsaid[task_id] = min(due_s, self._unsaid.get(task_id, due_s))
        self._something.set()

    def forget(self, task_id: str) -> None:
        self._newest.pop(task_id, None)
        self._unsaid.pop(task_id, None)

    def stored(self, number: int) -> None:
        """Take note that the report of this number is safe; one sent before it says nothing."""
        if number == self._number:
            self._under_way = []
            self._stored.set()

    async def run(self, send: Callable[[dispatch.Report], Awaitable[None]]) -> None:
        """Report through one session until it ends, beginning with everything."""
        self._unsaid = dict.fromkeys(self._newest, 0.0)
        while True:
            await self._wait_until_due()
            await send(self._next_report())
            try:
                async with asyncio.timeout(SEND_AGAIN_S):
                    await self._stored.wait()
            except TimeoutError:
                self._put_back()

    async def _wait_until_due(self) -> None:
        while True:
            self._something.clear()
            due_s = min(self._unsaid.values(), default=float("inf"))
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if left_s == float("inf") else left_s):
                    await self._something.wait()

    def _next_report(self) -> dispatch.Report:
        now_s = time.monotonic()
        due = [task_id for task_id, due_s in self._unsaid.items() if due_s <= now_s]
        self._under_way = due[:REPORT_TASKS]
        for task_id in self._under_way:
            del self._unsaid[task_id]
        self._stored.clear()
        self._number += 1
        reports = (
            dispatch.TaskReport(task_id=task_id, status=self._newest[task_id])
            for task_id in self._under_way
        )
        return dispatch.Report(number=self._number, tasks=reports)

    def _put_back(self) -> None:
        for task_id in self._under_way:
            if task_id in self._newest:
                self._unsaid[task_id] = 0.0
