"""Run an agent's network alone: one call a line, as JSON on standard input, and one answer."""

import asyncio
import json
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from agent.errors import NetworkError
from agent.net import netlink
from agent.net.network import Network
from estiba.v1 import types_pb2 as v1


async def serve(state_dir: Path) -> None:
    network = Network(state_dir)
    while line := await asyncio.to_thread(sys.stdin.readline):
        said: dict[str, Any]
        try:
            said = {"answer": await carry_out(network, **json.loads(line))}
        except NetworkError as error:
            said = {"error": str(error)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


async def carry_out(network: Network, call: str, arguments: list[Any]) -> Any:
    if call == "connect":
        container_id, pid, attachment = arguments
        return await network.connect(container_id, pid, v1.NetworkAttachment(**attachment))
    if call == "measure":
        return await measure(network, *arguments)
    if call == "spoil_routes":
        return spoil_routes()
    return await getattr(network, call)(*arguments)


async def measure(network: Network, pids: list[int], attachment: dict[str, Any]) -> list[float]:
    """Connect one container for each pid; return the milliseconds that each took."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    for pid in pids:
        began = loop.time()
        await network.connect(f"measured-{pid}", pid, v1.NetworkAttachment(**attachment))
        took.append((loop.time() - began) * 1000)
    return took


def spoil_routes() -> None:
    """Have the kernel refuse the last step of every connection from now on."""
    right = netlink.add_default_route
    wrong = IPv4Address("10.99.0.1")

    def spoiled(index: int, gateway: IPv4Address) -> netlink.Request:
        del gateway
        return right(index, wrong)

    netlink.add_default_route = spoiled


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
