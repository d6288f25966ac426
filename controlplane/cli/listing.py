"""Whole lists, page after page, and single objects, from the cluster."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import grpc

from controlplane.cli.connection import Connection, RefusedError
from estiba.v1 import control_pb2, types_pb2

PAGE_SIZE = 500

T = TypeVar("T")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


P = TypeVar("P", bound=_Page)


def services(connection: Connection) -> list[types_pb2.Service]:
    def page(token: str) -> control_pb2.ListServicesResponse:
        request = control_pb2.ListServicesRequest(page_size=PAGE_SIZE, page_token=token)
        return connection.call(lambda stub: stub.ListServices, request)

    return [service for answer in _pages(page) for service in answer.services]


def tasks(
    connection: Connection, *, service: str = "", with_usage: bool = False
) -> tuple[list[types_pb2.Task], list[str], int]:
    """Return tasks, warnings, and the revision the list belongs to."""

    def page(token: str) -> control_pb2.ListTasksResponse:
        request = control_pb2.ListTasksRequest(
            page_size=PAGE_SIZE, page_token=token, service=service, with_usage=with_usage
        )
        return connection.call(lambda stub: stub.ListTasks, request)

    answers = _pages(page)
    found = [task for answer in answers for task in answer.tasks]
    return found, _distinct(answer.warnings for answer in answers), answers[0].revision


def nodes(
    connection: Connection, *, with_usage: bool = False
) -> tuple[list[types_pb2.Node], list[str]]:
    """Return nodes and warnings."""

    def page(token: str) -> control_pb2.ListNodesResponse:
        request = control_pb2.ListNodesRequest(
            page_size=PAGE_SIZE, page_token=token, with_usage=with_usage
        )
        return connection.call(lambda stub: stub.ListNodes, request)

    answers = _pages(page)
    found = [node for answer in answers for node in answer.nodes]
    return found, _distinct(answer.warnings for answer in answers)


def service(connection: Connection, name: str) -> types_pb2.Service:
    request = control_pb2.GetServiceRequest(service=name)
    return connection.call(lambda stub: stub.GetService, request)


def node(connection: Connection, name: str) -> types_pb2.Node:
    return connection.call(lambda stub: stub.GetNode, control_pb2.GetNodeRequest(node=name))


def _pages(page: Callable[[str], P]) -> list[P]:
    """Fetch all pages; from the start when the revision they belong to has become too old."""
    while True:
        answers = [page("")]
        try:
            while answers[-1].next_page_token:
                answers.append(page(answers[-1].next_page_token))
        except RefusedError as refusal:
            if refusal.code is not grpc.StatusCode.OUT_OF_RANGE:
                raise
        else:
            return answers


def _distinct(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(warning for group in groups for warning in group))


def change(make: Callable[[], T]) -> T:
    """Read, change and write, again when somebody else came between."""
    for _ in range(9):
        try:
            return make()
        except RefusedError as refusal:
            if refusal.code is not grpc.StatusCode.ABORTED:
                raise
    return make()
