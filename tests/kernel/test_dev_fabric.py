"""The network of a local cluster, read back from the kernel."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

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


async def test_a_failing_program_is_named_with_its_words() -> None:
    with pytest.raises(CliError, match=r"ip link show no-such failed: .*no-such"):
        await fabric.run("ip", "link", "show", "no-such")
