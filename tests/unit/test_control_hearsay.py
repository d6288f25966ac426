"""What a node says is cut, cleaned or refused before it is stored."""

from typing import Any

import pytest

from controlplane.api import hearsay
from controlplane.api.presence_writer import MOST_TOGETHER
from controlplane.errors import InvalidError
from estiba.v1 import types_pb2 as v1

ETCD_TAKES_BYTES = 1.5 * 1024 * 1024


def longest() -> v1.TaskStatus:
    """Return the status of a container whose every word is long, and not ASCII."""
    words = "\N{SHIP}" * 5000
    return v1.TaskStatus(
        message=words,
        address=words,
        image_digest=words,
        last_run=v1.RunResult(message=words),
        notes=[v1.Note(message=words) for _ in range(100)],
    )


def test_words_without_end_are_cut_and_the_newest_notes_stay() -> None:
    said = longest()
    said.notes[-1].message = "the newest"
    stored = hearsay.task_status(said)
    assert len(stored.notes) == 20
    assert stored.notes[-1].message == "the newest"
    assert stored.ByteSize() <= hearsay.MOST_BYTES


def test_as_many_statuses_as_are_stored_together_fit_into_one_transaction() -> None:
    assert MOST_TOGETHER * hearsay.MOST_BYTES < ETCD_TAKES_BYTES * 0.95


def test_what_is_not_known_here_is_kept_unless_it_is_too_much() -> None:
    unknown = b"\xfa\x3f"  # Field 1023, of bytes.
    said = v1.TaskStatus.FromString(unknown + b"\x03new")
    assert b"new" in hearsay.task_status(said).SerializeToString()
    said = v1.TaskStatus.FromString(unknown + b"\x80\x80\x08" + bytes(1 << 17))
    with pytest.raises(InvalidError, match="is too large"):
        hearsay.task_status(said)


def test_no_terminal_obeys_a_node() -> None:
    said = v1.TaskStatus(message="\x1b[2Jready", notes=[v1.Note(message="a\nb")])
    stored = hearsay.task_status(said)
    assert (stored.message, stored.notes[0].message) == ("?[2Jready", "a b")
    described = hearsay.description(v1.NodeDescription(kernel="6.1\x1b]0;x\x07"))
    assert described.kernel == "6.1?]0;x?"


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 60, 0), (-(1 << 60), 0), (1, -1), (1, 10**9)])
def test_a_time_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    said = v1.TaskStatus()
    said.last_run.ended_at.seconds = seconds
    said.last_run.ended_at.nanos = nanos
    with pytest.raises(InvalidError, match="a time that is none"):
        hearsay.task_status(said)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nano_cpus", -1),
        ("nano_cpus", 1 << 62),
        ("memory_bytes", -1),
        ("memory_bytes", (1 << 63) - 1),
        ("hostname", "n1\nn2"),
        ("hostname", "../n1"),
        ("hostname", "x" * 300),
        ("metrics_address", "10.0.0.1:80/secrets?"),
        ("metrics_address", "10.0.0.1"),
        ("metrics_address", "user@host:80"),
    ],
)
def test_a_description_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=rf"description\.{field}: "):
        hearsay.description(v1.NodeDescription(**{field: value}))


def test_a_true_description_stays_as_it_is() -> None:
    said = v1.NodeDescription(
        hostname="n1.example.org",
        os="linux",
        architecture="x86_64",
        nano_cpus=4_000_000_000,
        memory_bytes=8 << 30,
        address="fd00::1",
        metrics_address="[fd00::1]:7490",
        kernel="6.1.0-18-amd64",
        cgroup_version=2,
    )
    assert hearsay.description(said) == said
