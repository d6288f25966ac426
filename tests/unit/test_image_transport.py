"""Where registries are, when a request may go without TLS, and what challenges ask for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.errors import ImageError
from agent.images.tokens import parse_challenge
from agent.images.transport import Endpoints, Registry


@pytest.mark.parametrize(
    ("registries", "url", "allowed"),
    [
        ({}, "https://registry.estiba:5000/v2/", True),
        ({}, "http://registry.estiba:5000/v2/", False),
        ({}, "http://127.0.0.1:5000/v2/", True),
        ({}, "http://127.8.9.1:5000/v2/", True),
        ({}, "http://localhost:5000/v2/", True),
        ({}, "http://[::1]:5000/v2/", True),
        ({}, "http://10.0.0.1:5000/v2/", False),
        ({}, "http://127.0.0.1.example:5000/v2/", False),
        ({}, "ftp://127.0.0.1:5000/v2/", False),
        ({}, "file:///etc/passwd", False),
        (
            {"127.0.0.1:5000": Registry("127.0.0.1:5000", Path("ca"))},
            "http://127.0.0.1:5000",
            False,
        ),
        ({"127.0.0.1:5000": Registry("10.0.0.1:5000")}, "http://127.0.0.1:5000", False),
        ({"registry.estiba": Registry("127.0.0.1:5000")}, "http://registry.estiba", False),
    ],
)
def test_only_what_is_on_loopback_under_a_loopback_name_may_go_without_tls(
    registries: dict[str, Registry], url: str, allowed: bool
) -> None:
    assert Endpoints(registries).may_use(URL(url)) is allowed


async def test_an_ip_address_is_dialled_under_the_registrys_own_name() -> None:
    endpoints = Endpoints({"registry.estiba:5000": Registry("10.77.0.3:8443")})

    found = await endpoints.find(URL("https://registry.estiba:5000/v2/x"))

    assert found.url == URL("https://10.77.0.3:8443/v2/x")
    assert (found.host_header, found.server_name) == ("registry.estiba:5000", "registry.estiba")


async def test_a_name_as_address_is_spoken_to_as_itself() -> None:
    endpoints = Endpoints({"docker.io": Registry("mirror.example:5000")})

    for url in ("https://docker.io/v2/x", "https://mirror.example:5000/v2/x"):
        found = await endpoints.find(URL(url))
        assert found.url == URL("https://mirror.example:5000/v2/x")
        assert (found.host_header, found.server_name) == (None, None)


def test_an_address_that_is_none_is_refused_with_the_registrys_name() -> None:
    with pytest.raises(ImageError, match=r"registry registry\.estiba: '' is no address"):
        Endpoints({"registry.estiba": Registry("")})


def test_a_challenge_is_split_into_its_parameters() -> None:
    header = 'Bearer realm="https://a.example/token",service="x, y", scope="repository:a/b:pull"'

    assert parse_challenge(header) == (
        "bearer",
        {"realm": "https://a.example/token", "service": "x, y", "scope": "repository:a/b:pull"},
    )


@given(st.text(max_size=60))
def test_any_challenge_is_split_somehow(header: str) -> None:
    scheme, parameters = parse_challenge(header)

    assert scheme == scheme.lower()
    assert all(isinstance(value, str) for value in parameters.values())
