"""Files of services: read whole, refused by place."""

import json

import pytest
from google.protobuf.json_format import MessageToDict

from controlplane.cli import manifest
from estiba.v1 import types_pb2

WEB = """
metadata: {name: web, labels: {since: 2026-01-31}}
spec:
  replicated: {replicas: 2}
  template:
    container: {image: x, env: [A=1], stop_grace_period: 5s}
"""


def test_documents_and_lists_are_read_in_their_order() -> None:
    listed = "- {metadata: {name: b}, spec: {}}\n- metadata: {name: c}\n  spec: {}\n"
    text = f"{WEB}---\n---\n{listed}"
    assert [service.metadata.name for service in manifest.read(text)] == ["web", "b", "c"]


def test_a_date_stays_the_text_that_was_written() -> None:
    assert manifest.read(WEB)[0].metadata.labels["since"] == "2026-01-31"


def test_what_inspect_prints_is_read_back() -> None:
    service = manifest.read(WEB)[0]
    service.status.running = 2
    service.metadata.revision = 9
    printed = json.dumps([MessageToDict(service, preserving_proto_field_name=True)])
    assert manifest.read(printed) == [service]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metadata: {name: a}\nspec: {template: {container: {imagge: x}}}", "imagge"),
        ("metadata: {name: a}\nspec: {template: {container: {imagge: x}}}", "container"),
        ("metadata: {name: a}\nspec: {replicated: {replicas: many}}", "replicas"),
        ("spec: {}", "metadata.name"),
        ("metadata: {name: a}", "spec"),
        ("metadata: {name: a}\nmetadata: {name: b}", "line 2"),
        (f"{WEB}---{WEB}", "web is declared twice"),
        ("just words", "service 1"),
        ("{[", "neither YAML nor JSON"),
        ("", "no service"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        manifest.read(text)


def test_a_label_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        manifest.read("metadata: {name: a, labels: {on: [1]}}\nspec: {}")


def test_a_service_read_from_a_file_is_a_service() -> None:
    assert isinstance(manifest.read(WEB)[0], types_pb2.Service)
