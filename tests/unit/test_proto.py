"""Stored messages outlive the program that wrote them, so their fields never change meaning."""

import importlib.util
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from estiba.v1 import types_pb2 as v1

PROTO = Path(__file__).parents[2] / "proto"

# Fields that were once released and are reserved now, as lines of fields.txt.
RETIRED: frozenset[str] = frozenset()


def _fields() -> ModuleType:
    spec = importlib.util.spec_from_file_location("proto_fields", PROTO / "fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _now() -> set[str]:
    module = _fields()
    return {line for file in module.FILES for line in module.lines(file)}


def test_every_field_that_was_ever_listed_still_has_its_number_name_and_type() -> None:
    listed = set((PROTO / "fields.txt").read_text().splitlines())

    assert listed - RETIRED <= _now()


def test_every_field_is_listed() -> None:
    assert _now() <= set((PROTO / "fields.txt").read_text().splitlines())


def test_states_are_numbered_in_the_order_in_which_a_run_passes_them() -> None:
    numbers = v1.TaskState.values()

    assert numbers == sorted(numbers)
    assert all(later - earlier >= 64 for earlier, later in pairwise(numbers))


def test_a_field_this_version_does_not_know_survives_a_change_of_the_message() -> None:
    newer = _service_with_a_field_of_tomorrow()
    stored = newer(tomorrow="keep me").SerializeToString()

    message = v1.Service.FromString(stored)
    message.spec.replicated.replicas = 5

    assert newer.FromString(message.SerializeToString()).tomorrow == "keep me"


def _service_with_a_field_of_tomorrow() -> Any:
    file = descriptor_pb2.FileDescriptorProto()
    v1.DESCRIPTOR.CopyToProto(file)
    file.name = "tomorrow.proto"
    file.package = "estiba.v1tomorrow"
    _rename_types(file)
    service = next(message for message in file.message_type if message.name == "Service")
    service.field.add(name="tomorrow", number=1000, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    for dependency in v1.DESCRIPTOR.dependencies:
        pool.AddSerializedFile(dependency.serialized_pb)
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("estiba.v1tomorrow.Service")
    return message_factory.GetMessageClass(descriptor)


def _rename_types(file: descriptor_pb2.FileDescriptorProto) -> None:
    pending = list(file.message_type)
    while pending:
        message = pending.pop()
        pending += message.nested_type
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".estiba.v1.", ".estiba.v1tomorrow.")
