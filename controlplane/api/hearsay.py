"""What nodes say of themselves and of their tasks, before it is stored and shown. Pure.

A node may be in the hands of a stranger, who must neither fill the store, nor end a
member with what the store refuses, nor write on the terminals of users, nor have sums
overflow. What is too long is cut; what cannot be is refused as a whole.
"""

import re
from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.errors import InvalidError
from controlplane.validate import MOST_MEMORY_BYTES, MOST_NANO_CPUS
from estiba.kit.text import plain
from estiba.v1 import types_pb2 as v1
from estiba.wire import NOTES_KEPT

# So that as many statuses as are stored together fit into one transaction of etcd, 1.5 MiB.
MOST_BYTES = 24 * 1024
_MESSAGE_LENGTH = 600
_NOTE_LENGTH = 200
_WORD_LENGTH = 255

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
# From the year 1 to the year 9999: what JSON can show. Source: timestamp.proto.
_EARLIEST_S, _LATEST_S = -62_135_596_800, 253_402_300_799


def task_status(said: v1.TaskStatus) -> v1.TaskStatus:
    """Return a task's status as it may be stored.

    Raises:
        InvalidError: it holds a time that is none, or is too large even so.
    """
    status = v1.TaskStatus()
    status.CopyFrom(said)
    del status.notes[:-NOTES_KEPT]
    for note in status.notes:
        note.message = plain(note.message, most=_NOTE_LENGTH)
    status.message = plain(status.message, most=_MESSAGE_LENGTH)
    status.address = plain(status.address, most=_WORD_LENGTH)
    status.image_digest = plain(status.image_digest, most=_WORD_LENGTH)
    if status.HasField("last_run"):
        status.last_run.message = plain(status.last_run.message, most=_MESSAGE_LENGTH)
    for moment in _times(status):
        if not is_time(moment):
            raise InvalidError([("report", "holds a time that is none")])
    if status.ByteSize() > MOST_BYTES:
        raise InvalidError([("report", f"a status of {status.ByteSize()} bytes is too large")])
    return status


def description(said: v1.NodeDescription) -> v1.NodeDescription:
    """Return a node's description as it may be stored.

    Raises:
        InvalidError: its capacity or one of its addresses cannot be, or it is too large.
    """
    faults = []
    if not 0 <= said.nano_cpus <= MOST_NANO_CPUS:
        faults.append(("description.nano_cpus", f"{said.nano_cpus} is no capacity"))
    if not 0 <= said.memory_bytes <= MOST_MEMORY_BYTES:
        faults.append(("description.memory_bytes", f"{said.memory_bytes} is no capacity"))
    if said.hostname and not _HOSTNAME.fullmatch(said.hostname):
        faults.append(("description.hostname", f"{plain(said.hostname)!r} is no host name"))
    if said.metrics_address and not _HOST_AND_PORT.fullmatch(said.metrics_address):
        sentence = f"{plain(said.metrics_address)!r} is not HOST:PORT"
        faults.append(("description.metrics_address", sentence))
    known = v1.NodeDescription()
    known.CopyFrom(said)
    for name in ("os", "architecture", "agent_version", "address", "kernel"):
        setattr(known, name, plain(getattr(known, name), most=_WORD_LENGTH))
    if known.ByteSize() > MOST_BYTES:
        faults.append(("description", f"{known.ByteSize()} bytes are too many"))
    if faults:
        raise InvalidError(faults)
    return known


def is_time(moment: Timestamp) -> bool:
    """Say whether a time can be shown: other numbers than these make JSON's encoder fail."""
    return _EARLIEST_S <= moment.seconds <= _LATEST_S and 0 <= moment.nanos < 10**9


def _times(status: v1.TaskStatus) -> Iterator[Timestamp]:
    yield from (status.at, status.waiting_until, status.started_at)
    yield from (status.last_run.started_at, status.last_run.ended_at)
    yield from (note.at for note in status.notes)
