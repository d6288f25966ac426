"""The network of a local cluster, read back from the kernel."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controlplane.cli.dev import fabric
from controlplane.cli.errors import CliError
from tests.support.footprint import Footprint

ADDRESSES = {"n1": IPv4Address("10.77.0.101"), "n2": IPv4Address("10.77.0.102")}


@pytest.fixture
async def built() -> AsyncIterator[fabric.Fabric]:
    made = fabric.Fabric()
    await made.build(ADDRESSES)
    yield made
    made.close()


async def test_members_reach_each_other_and_the_bridge(built: fabric.Fabric) -> None:
    for target in (*ADDRESSES.values(), "10.77.0.1"):
        await fabric.run(*built.enter("n1"), "busybox", "ping", "-c1", "-W2", str(target))


async def test_members_have_only_their_own_interface(built: fabric.Fabric) -> None:
    shown = await fabric.run(*built.enter("n1"), "ip", "-br", "-4", "addr")
    addresses = {line.split()[0].split("@")[0]: line.split()[2] for line in shown.splitlines()}
    assert addresses == {"lo": "127.0.0.1/8", "eth0": "10.77.0.101/16"}


async def test_the_bridges_port_of_a_member_carries_its_name(built: fabric.Fabric) -> None:
    shown = await fabric.run(
        *built.enter("fabric"), "ip", "-br", "link", "show", "master", "fabric"
    )
    assert {line.split("@")[0] for line in shown.splitlines()} == {"p-n1", "p-n2"}


async def test_the_host_gets_no_interface_and_no_rule_and_nothing_stays() -> None:
    before = Footprint.take()
    made = fabric.Fabric()
    await made.build(ADDRESSES)
    made_on_host = [
        thing
        for thing in before.left_behind(within_s=0)
        if thing.startswith(("interface ", "nft ", "mount "))
    ]
    assert made_on_host == []
    path = made.path("n1")
    made.close()
    with pytest.raises(CliError, match="nsenter"):
        await fabric.run("nsenter", f"--net={path}", "true")


@pytest.fixture
def shared_mounts() -> Iterator[int]:
    """Have a process whose mounts are as systemd has them: a change in a copy is one everywhere."""
    share = "mount --make-rshared / && echo ready && exec sleep infinity"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", share], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


async def test_the_way_out_leaves_the_mounts_of_a_machine_alone(
    built: fabric.Fabric, shared_mounts: int
) -> None:
    mounts = Path(f"/proc/{shared_mounts}/mountinfo")
    before = mounts.read_text()
    reading, writing = os.pipe()
    way_out = await asyncio.create_subprocess_exec(
        *("nsenter", f"--mount=/proc/{shared_mounts}/ns/mnt", "--"),
        *(*built.way_out(), f"--ready-fd={writing}"),
        pass_fds=(writing,),
    )
    os.close(writing)
    try:
        assert await asyncio.to_thread(os.read, reading, 1) == b"1"
        assert mounts.read_text() == before
    finally:
        way_out.terminate()
        await way_out.wait()
        os.close(reading)


async def test_a_failing_program_is_named_with_its_words() -> None:
    with pytest.raises(CliError, match=r"ip link show no-such failed: .*no-such"):
        await fabric.run("ip", "link", "show", "no-such")
