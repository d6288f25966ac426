"""Tell the control plane how tasks stand: the newest status of each, in batches, until stored.

One report is under way at a time; what changes meanwhile is merged into the next.
After a reconnect everything is told again, since who was told may not have stored it.
"""

import asyncio
from collections.abc import Awaitable, Callable

from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

COALESCE_S = 0.02
REPORT_TASKS = 500
SEND_AGAIN_S = 5.0


class Reporter:
    def __init__(self) -> None:
        self._newest: dict[str, v1.TaskStatus] = {}
        # In the order of change; a dict because a set has none.
        self._unsaid: dict[str, None] = {}
        self._under_way: list[str] = []
        self._number = 0
        self._something = asyncio.Event()
        self._stored = asyncio.Event()

    @property
    def statuses(self) -> dict[str, v1.TaskStatus]:
        """The newest status of every task of this node."""
        return self._newest

    def publish(self, task_id: str, status: v1.TaskStatus) -> None:
        self._newest[task_id] = status
        self._unsaid[task_id] = None
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
        self._unsaid = dict.fromkeys(self._newest)
        if self._unsaid:
            self._something.set()
        while True:
            await self._something.wait()
            # A start is four changes within milliseconds: one of them is worth a write.
            await asyncio.sleep(COALESCE_S)
            await send(self._next_report())
            try:
                async with asyncio.timeout(SEND_AGAIN_S):
                    await self._stored.wait()
            except TimeoutError:
                self._put_back()

    def _next_report(self) -> dispatch.Report:
        self._under_way = list(self._unsaid)[:REPORT_TASKS]
        for task_id in self._under_way:
            del self._unsaid[task_id]
        if not self._unsaid:
            self._something.clear()
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
                self._unsaid[task_id] = None
                self._something.set()
