"""Replace what a caller knows of a stored message, and keep what only others know. Pure."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet


def replace_known(stored: Message, wanted: Message) -> None:
    """Make ``stored`` say what ``wanted`` says, in place.

    Every field this version knows is taken from ``wanted``, absent ones too. Fields it
    does not know stay as they are stored, at every depth, unless ``wanted`` brings its
    own: then a newer program has read and changed them.
    """
    if len(UnknownFieldSet(wanted)) > 0:
        stored.CopyFrom(wanted)
        return
    rest = type(wanted)()
    rest.CopyFrom(wanted)
    for field in stored.DESCRIPTOR.fields:
        single = field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated
        if not single or not wanted.HasField(field.name):
            stored.ClearField(field.name)
        else:
            rest.ClearField(field.name)
            inner: Message = getattr(stored, field.name)
            inner.SetInParent()
            replace_known(inner, getattr(wanted, field.name))
    stored.MergeFrom(rest)
