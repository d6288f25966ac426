"""From messages to stored bytes. Pure.

What is computed when an object is read is never stored, so `encode` leaves it out.
Fields that this version does not know stay in a message that was parsed, and are stored again.
"""

from google.protobuf.message import Message

from estiba.v1 import types_pb2 as v1

_COMPUTED: dict[type[Message], tuple[str, ...]] = {
    v1.Service: ("status",),
    v1.Task: ("status", "usage"),
    v1.Node: ("status",),
    v1.NodeStatus: ("usage", "tasks"),
    v1.Member: ("leader",),
}
_WITH_METADATA = (v1.Service, v1.Task, v1.Node, v1.JoinToken)


def encode(message: Message) -> bytes:
    """Return what is stored of ``message``; the same message gives the same bytes."""
    stored = type(message)()
    stored.CopyFrom(message)
    for field in _COMPUTED.get(type(message), ()):
        stored.ClearField(field)
    if isinstance(stored, _WITH_METADATA) and stored.HasField("metadata"):
        stored.metadata.ClearField("revision")
    return stored.SerializeToString(deterministic=True)


def prefix_end(prefix: str) -> bytes:
    """Return the first key after all that begin with ``prefix``, as etcd's ranges need it."""
    raw = prefix.encode()
    return raw[:-1] + bytes((raw[-1] + 1,))
