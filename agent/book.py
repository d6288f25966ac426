"""Hold the assignments this node has accepted: on disk first, then with the runners."""

import logging

from agent.assignments import Forget, Known, accept
from agent.reporter import Reporter
from agent.tasks.journal import Journal
from agent.tasks.runners import Runners
from estiba.v1 import dispatcher_pb2 as dispatch

log = logging.getLogger(__name__)


class Book:
    def __init__(
        self, known: Known | None, *, journal: Journal, runners: Runners, reporter: Reporter
    ) -> None:
        self._known = known or Known()
        self._journal = journal
        self._runners = runners
        self._reporter = reporter

    @property
    def known(self) -> Known:
        return self._known

    async def accept(self, offered: dispatch.Assignments) -> None:
        """Apply a message of assignments; when this returns, every runner knows its part.

        Raises:
            StaleError: it is older than what was accepted.
        """
        self._known, changes = accept(self._known, offered)
        self._save()
        self._runners.apply(changes)
        for change in changes:
            if isinstance(change, Forget):
                self._reporter.forget(change.task_id)
        if offered.complete:
            await self._runners.settle()

    async def clear(self) -> None:
        """Leave nothing of any task: this node was removed from its cluster."""
        self._known = Known(epoch=self._known.epoch)
        self._save()
        for task_id in list(self._reporter.statuses):
            self._reporter.forget(task_id)
        await self._runners.clear()

    def _save(self) -> None:
        try:
            self._journal.save_assignments(self._known.message())
        except OSError as fault:
            # To go on with what runs is worth more than to come back without the last change.
            log.warning("the assignments are not on disk: %s", fault)
