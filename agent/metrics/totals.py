"""Add up what the runs of each task have used, so that a task's counters never go back.

A cgroup ends with its run, and the next begins at zero. What ended runs used is kept
here, and on disk when a run ends, so that it outlives the agent.
"""

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from agent.metrics.sources import ContainerStats
from agent.tasks.folders import task_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Used:
    """What a container, or a task in all its runs, has used so far."""

    cpu_ns: int = 0
    throttled_ns: int = 0
    oom_kills: int = 0

    def __add__(self, other: Self) -> "Used":
        return Used(
            self.cpu_ns + other.cpu_ns,
            self.throttled_ns + other.throttled_ns,
            self.oom_kills + other.oom_kills,
        )

    def at_least(self, other: Self) -> "Used":
        return Used(
            max(self.cpu_ns, other.cpu_ns),
            max(self.throttled_ns, other.throttled_ns),
            max(self.oom_kills, other.oom_kills),
        )


def used_by(stats: ContainerStats) -> Used:
    return Used(stats.cpu_ns, stats.throttled_ns, stats.oom_kills)


@dataclass(frozen=True, slots=True)
class Total:
    """One task: what its earlier runs used together, and its latest run as last read."""

    earlier: Used = Used()
    run: int = 0
    latest: Used = Used()

    @property
    def used(self) -> Used:
        return self.earlier + self.latest

    def after(self, run: int, reading: Used) -> "Total":
        """Take a reading; one of a run before the latest says nothing new."""
        if run < self.run:
            return self
        if run == self.run:
            return Total(self.earlier, run, self.latest.at_least(reading))
        return Total(self.used, run, reading)


class Totals:
    """All tasks of the node. A file that cannot be read or written costs counts, no task."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._totals = _load(path)

    def of(self, task_id: str) -> Used:
        return self._totals.get(task_id, Total()).used

    def observe(self, container_id: str, stats: ContainerStats) -> None:
        task_id, run = task_of(container_id)
        total = self._totals.get(task_id, Total())
        self._totals[task_id] = total.after(run, used_by(stats))

    def keep_only(self, task_ids: Collection[str]) -> None:
        for gone in self._totals.keys() - set(task_ids):
            del self._totals[gone]

    def save(self) -> None:
        content = {task_id: asdict(total) for task_id, total in self._totals.items()}
        draft = self._path.with_name(f"{self._path.name}.new")
        try:
            draft.write_text(json.dumps(content))
            draft.replace(self._path)
        except OSError as fault:
            log.warning("what ended runs have used is not on disk: %s", fault)


def _load(path: Path) -> dict[str, Total]:
    try:
        content = json.loads(path.read_text())
        return {task_id: _total_of(entry) for task_id, entry in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        log.warning("%s is damaged, counting begins anew: %s", path, fault)
        return {}


def _total_of(entry: dict[str, dict[str, int]]) -> Total:
    return Total(
        earlier=Used(**entry["earlier"]), run=int(str(entry["run"])), latest=Used(**entry["latest"])
    )
