"""`estiba cluster token` with real members: what is printed where, and that it lets machines in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from estiba.kit import jointoken
from tests.support.estibad import ControlPlane, control_plane
from tests.support.joiner import Joiner

PROGRAM = Path(sys.executable).parent / "estiba"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    # The member that is asked first holds no authority: the next one answers.
    with control_plane(tmp_path_factory.mktemp("plane"), with_authority=1) as running:
        yield running


def token(plane: ControlPlane, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `estiba cluster token` to its end."""
    tls = plane.certificates.of("user")
    known = {"CA": tls.ca, "CERT": tls.cert, "KEY": tls.key}
    servers = ",".join(each.address for each in reversed(plane.members))
    return subprocess.run(
        [PROGRAM, "--server", servers, "cluster", "token", *words],
        env=os.environ | {f"ESTIBA_TLS_{name}": str(path) for name, path in known.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def made(plane: ControlPlane, *words: str) -> jointoken.JoinToken:
    return jointoken.parse(token(plane, "create", "-q", *words).stdout)


def test_a_token_is_printed_as_the_command_that_joins_a_machine(plane: ControlPlane) -> None:
    ended = token(plane, "create", "--ttl", "1h", "--uses", "3")

    command, _, rest = ended.stdout.partition("\n")
    words = command.split(" ")
    assert words[:4] == ["estiba", "node", "join", "--token"]
    # The first that is registered, which need not be the first that was started.
    assert len(words) == 6
    assert words[5] in {each.join_address for each in plane.members}
    assert not rest
    text = jointoken.parse(words[4])
    assert ended.stderr.endswith(
        f"estiba: token {text.id} admits 3 machines for 60 min; on each, as root:\n"
    )


async def test_what_is_printed_lets_a_machine_in(plane: ControlPlane) -> None:
    joiner = Joiner(plane.certificates.of("user").ca)
    text = made(plane)
    await joiner.join(plane.members[0].join_address, text)

    listed = json.loads(token(plane, "ls", "-o", "json").stdout)
    found = next(each for each in listed if each["metadata"]["id"] == text.id)
    assert found["admitted"] == [joiner.id]
    assert found["uses"] == 10
    assert "secret_sha256" not in found
    line = next(line for line in token(plane, "ls").stdout.splitlines() if line.startswith(text.id))
    assert "1/10" in line
    assert joiner.id in line


def test_a_token_in_json_carries_its_text(plane: ControlPlane) -> None:
    answer = json.loads(token(plane, "create", "-o", "json").stdout)
    assert jointoken.parse(answer["text"]).id == answer["token"]["metadata"]["id"]
    assert answer["join_addresses"] == [plane.members[0].join_address]


def test_tokens_that_are_removed_are_gone(plane: ControlPlane) -> None:
    one, two = made(plane), made(plane)
    removed = token(plane, "rm", one.id, two.id)
    assert removed.stdout == f"{one.id}\n{two.id}\n"
    assert one.id not in token(plane, "ls", "-q").stdout.split()

    again = token(plane, "rm", one.id)
    assert again.returncode == 1
    assert again.stderr == f"estiba: there is no join token {one.id}\n"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--ttl", "31d"), 1, "estiba: life: must be more than 0 and at most 30 days\n"),
        (("--ttl", "0"), 1, "estiba: life: must be more than 0 and at most 30 days\n"),
        (("--uses", "20000"), 1, "estiba: uses: 20000, 10000 at most\n"),
        (("--uses", "0"), 2, "Error: Invalid value for --uses: it would admit nobody\n"),
        (("--ttl", "soon"), 2, "'soon' is not a duration"),
    ],
)
def test_what_makes_no_token_is_refused_in_a_sentence(
    plane: ControlPlane, words: tuple[str, ...], code: int, sentence: str
) -> None:
    ended = token(plane, "create", *words)
    assert ended.returncode == code
    assert sentence in ended.stderr
    assert not ended.stdout
