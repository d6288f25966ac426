"""Who may call what, and how errors are told."""

import grpc
import pytest

from controlplane.api import access
from controlplane.api.status import CODES, status_of
from controlplane.api.writing import ChangedError
from controlplane.errors import DeniedError, EstibaError, InvalidError
from estiba.kit.tls import Identity, Role


def test_every_role_has_its_line_in_the_table() -> None:
    assert set(access.MAY_CALL) == set(Role)


def test_a_refusal_names_who_and_what() -> None:
    node = Identity(Role.NODE, "n1")
    access.check(node, "/estiba.v1.Dispatcher/Session")
    with pytest.raises(DeniedError, match=r"node:n1 may not call estiba\.v1\.Control/GetNode"):
        access.check(node, "/estiba.v1.Control/GetNode")


def test_a_service_that_nobody_listed_is_refused_to_all() -> None:
    for role in Role:
        with pytest.raises(DeniedError):
            access.check(Identity(role, "x"), "/estiba.v1.Other/Call")


def test_without_a_certificate_nobody_is_identified() -> None:
    with pytest.raises(DeniedError, match="a client certificate is needed"):
        access.identify({})


def test_every_error_has_a_code() -> None:
    def leaves(error: type[EstibaError]) -> list[type[EstibaError]]:
        below = [leaf for each in error.__subclasses__() for leaf in leaves(each)]
        return below or [error]

    # What other modules raise never leaves them.
    declared = [each for each in leaves(EstibaError) if each.__module__ == "controlplane.errors"]
    without = [each for each in declared if not any(base in CODES for base in each.__mro__)]
    assert without == []


def test_an_object_that_changed_is_named() -> None:
    code, message = status_of(ChangedError("service web", key="/estiba/service/1", read_at=41))
    assert code is grpc.StatusCode.ABORTED
    assert message == "service web has changed since revision 41: read it again"


def test_every_fault_has_a_line() -> None:
    code, message = status_of(InvalidError([("spec.a", "is wrong"), ("", "as a whole")]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "spec.a: is wrong\nas a whole"
