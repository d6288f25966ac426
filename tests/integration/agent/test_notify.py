"""The agent and a service manager: it is ready without any member, and says which one serves it."""

import asyncio
from pathlib import Path

from tests.support.agent_node import Node
from tests.support.certificates import Certificates
from tests.support.dispatcher import Dispatcher
from tests.support.notify import listening

UNSERVED = "STATUS=node n1: no member serves this node"


async def test_an_agent_is_ready_before_a_member_serves_it_and_says_when_one_does(
    node: Node, member: Dispatcher, certificates: Certificates, tmp_path: Path
) -> None:
    with listening(tmp_path / "notify") as manager:
        node.environment = manager.watching(within_s=1.0)
        address = member.address
        await member.stop()
        async with node.agent(member):
            heard = await asyncio.to_thread(manager.hear, "WATCHDOG=1")
            assert heard == ["READY=1", UNSERVED, "WATCHDOG=1"]
            await member.start(certificates.of("estibad-1"), address=address)
            await asyncio.to_thread(manager.hear, "STATUS=node n1: member estibad-1 serves it")
            await member.stop()
            await asyncio.to_thread(manager.hear, UNSERVED)
