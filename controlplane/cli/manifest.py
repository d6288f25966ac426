"""Read services from YAML or JSON: the API's Service message in its JSON form. Pure.

Raises ValueError with a sentence that says which document, and where in it.
"""

from collections.abc import Iterator
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict, ParseError

from estiba.v1 import types_pb2


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, and a date is the text that was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ValueError(f"line {line}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> list[types_pb2.Service]:
    """Return the services of all documents, in their order. Lists of services count as several."""
    found = [_service(value, number) for number, value in enumerate(_values(text), start=1)]
    names = [service.metadata.name for service in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the service {name} is declared twice")
    if not found:
        raise ValueError("there is no service in it")
    return found


def _values(text: str) -> Iterator[object]:
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"it is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    for document in documents:
        if isinstance(document, list):
            yield from document
        elif document is not None:
            yield document


def _service(value: object, number: int) -> types_pb2.Service:
    if not isinstance(value, dict):
        raise ValueError(f"service {number} is no mapping with metadata and spec")  # noqa: TRY004
    try:
        service = ParseDict(value, types_pb2.Service())
    except ParseError as error:
        raise ValueError(f"service {number}: {' '.join(str(error).split())}") from None
    if not service.metadata.name:
        raise ValueError(f"service {number} has no metadata.name")
    if not service.HasField("spec"):
        raise ValueError(f"service {number}, {service.metadata.name}, has no spec")
    return service
