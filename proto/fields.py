"""List every field of every message, one a line: what may never change its meaning.

`regenerate.sh` writes the list to fields.txt; a test fails when a line of it is
gone, since a number that changes its name or type silently corrupts what is stored.
"""

import sys
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from estiba.v1 import certificates_pb2, control_pb2, dispatcher_pb2, types_pb2

FILES = (
    types_pb2.DESCRIPTOR,
    control_pb2.DESCRIPTOR,
    dispatcher_pb2.DESCRIPTOR,
    certificates_pb2.DESCRIPTOR,
)

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def lines(file: FileDescriptor) -> Iterator[str]:
    """Yield ``MESSAGE NUMBER NAME TYPE`` for fields and ``ENUM NUMBER NAME`` for enum values."""
    for enum in file.enum_types_by_name.values():
        yield from _enum_lines(enum)
    for message in file.message_types_by_name.values():
        yield from _message_lines(message)


def _message_lines(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        kind = _SCALARS[field.type]
        if field.message_type is not None:
            kind = field.message_type.full_name
        elif field.enum_type is not None:
            kind = field.enum_type.full_name
        prefix = "repeated " if field.is_repeated else ""
        yield f"{message.full_name} {field.number} {field.name} {prefix}{kind}"
    for enum in message.enum_types:
        yield from _enum_lines(enum)
    for nested in message.nested_types:
        yield from _message_lines(nested)


def _enum_lines(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"{enum.full_name} {value.number} {value.name}"


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for file in FILES for line in lines(file)))
