"""The sample image: pushed by its program, fetched by the agent's code, run as pid 1."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.images import Image, Images
from controlplane.cli.dev.sample import PushError, build_sample, push_sample
from tests.support.registry import Authority, RunningRegistry, free_port, run_registry

# An overlay of the image, as pid 1 of its own namespaces, with nothing but a loopback interface.
RUN = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"
touch "$2/merged/dev/null"
mount --bind /dev/null "$2/merged/dev/null"
ip link set lo up
hostname sampled
exec unshare --pid --fork --kill-child --mount-proc="$2/merged/proc" \\
    chroot "$2/merged" /bin/sh -c "$3"
"""
# The server runs in the background of the outer shell's pid namespace, as its pid 1's child.
ASK = """
until wget -q -O - http://127.0.0.1:8080/; do usleep 20000; done
wget -q -O - http://127.0.0.1:8080/cgi-bin/index.cgi/deeper
"""


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    async with run_registry(tmp_path / "registry", Authority(tmp_path)) as running:
        yield running


@pytest.fixture
async def sample(tmp_path: Path, registry: RunningRegistry) -> Image:
    assert registry.ca is not None
    await push_sample(registry.address, registry.ca)
    images = Images(tmp_path / "images", registry.registries)
    return await images.ensure(f"{registry.name}/hello")


def in_sample(sample: Image, scratch: Path, script: str) -> list[str]:
    """Return the command that runs a script in the image, in namespaces of its own."""
    for name in ("upper", "work", "merged"):
        (scratch / name).mkdir(parents=True)
    lower = ":".join(str(path) for path in reversed(sample.layers))
    isolated = ("unshare", "--mount", "--net", "--uts")
    return [*isolated, "sh", "-ec", RUN, "run", lower, str(scratch), script]


async def test_the_program_pushes_what_the_agent_can_fetch(
    tmp_path: Path, registry: RunningRegistry
) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane.cli.dev.sample"),
        *("--registry", registry.address, "--ca", str(registry.ca), "--name", "team/web"),
        *("--tag", "v1"),
        stdout=subprocess.PIPE,
    )
    printed, _ = await program.communicate()

    images = Images(tmp_path / "images", registry.registries)
    found = await images.ensure(f"{registry.name}/team/web:v1")

    assert program.returncode == 0
    assert printed.decode().strip() == found.digest
    assert found.config.command == ("serve",)


async def test_the_same_busybox_gives_the_same_image() -> None:
    assert build_sample().manifest.digest == build_sample().manifest.digest


async def test_a_second_push_changes_nothing(registry: RunningRegistry) -> None:
    assert registry.ca is not None
    first = await push_sample(registry.address, registry.ca)

    assert await push_sample(registry.address, registry.ca) == first


async def test_a_registry_that_is_down_is_an_error_and_exit_code_1(
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    ca = Authority(tmp_path).ca

    with pytest.raises(PushError, match=rf"registry {address}: "):
        await push_sample(address, ca)


async def test_the_page_says_where_it_runs_and_what_was_asked_for(
    sample: Image, tmp_path: Path
) -> None:
    command = in_sample(sample, tmp_path / "run", f"serve & {ASK} kill %1; wait")

    answered = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=30
    )

    assert answered.stdout.splitlines() == [
        "hello from sampled, you asked for /",
        "hello from sampled, you asked for /cgi-bin/index.cgi/deeper",
    ]


async def test_as_pid_1_it_ends_at_once_and_well_when_told_to(
    sample: Image, tmp_path: Path
) -> None:
    # The shell becomes the server, so the server is pid 1; its child tells it to stop.
    script = (
        "(until wget -q -O - http://127.0.0.1:8080/; do usleep 20000; done; kill 1) & exec serve"
    )
    command = in_sample(sample, tmp_path / "run", script)

    ended = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=10
    )

    assert ended.stdout == "hello from sampled, you asked for /\n"
