"""Keep on disk what the agent must know when it comes back: assignments, and each task's record.

A file is replaced whole or not at all, by rename. Nothing is synced to the disk: that
protects from the death of the agent, not from that of the machine, which takes the
containers with it anyway and leaves older records, above which the control plane's
`last_run` lifts them.
"""

import json
import logging
from pathlib import Path

from google.protobuf.message import DecodeError

from agent.tasks.folders import Folders
from agent.tasks.machine import Record
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

SUFFIX = ".journal"
UNFINISHED = ".tmp"


class Journal:
    """Every write is a few tens of microseconds, so it is done in place, not on a thread."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def save(self, task_id: str, record: Record) -> None:
        """Replace the record. A full disk stops no task: the record on it is then an older one."""
        head = json.dumps({"failures": record.failures}).encode()
        try:
            _replace(self._path(task_id), head + b"\n" + record.status.SerializeToString())
        except OSError as fault:
            log.warning("the record of task %s is not on disk: %s", task_id, fault)

    def delete(self, task_id: str) -> None:
        self._path(task_id).unlink(missing_ok=True)

    def load(self) -> dict[str, Record]:
        """Read all records; one that cannot be read is as good as lost, and is said so."""
        for unfinished in self._folders.journals.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        records = {}
        for path in self._folders.journals.glob(f"*{SUFFIX}"):
            head, _, body = path.read_bytes().partition(b"\n")
            try:
                failures = int(json.loads(head)["failures"])
                record = Record(v1.TaskStatus.FromString(body), failures)
            except (ValueError, KeyError, DecodeError) as fault:
                log.warning("the journal %s is unreadable and counts as lost: %s", path, fault)
                continue
            records[path.name.removesuffix(SUFFIX)] = record
        return records

    def save_assignments(self, assignments: dispatch.Assignments) -> None:
        _replace(self._folders.assignments, assignments.SerializeToString(deterministic=True))

    def load_assignments(self) -> dispatch.Assignments | None:
        """Return what was accepted last, None if that is not known."""
        path = self._folders.assignments
        path.with_name(path.name + UNFINISHED).unlink(missing_ok=True)
        try:
            return dispatch.Assignments.FromString(path.read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError as fault:
            log.warning("the assignments in %s are unreadable: %s", path, fault)
            return None

    def _path(self, task_id: str) -> Path:
        return self._folders.journals / f"{task_id}{SUFFIX}"


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.write_bytes(content)
    unfinished.replace(path)
