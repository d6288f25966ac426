"""A member of the control plane that only campaigns, in a process of its own.

Tests stop it with SIGSTOP. It says "leads REVISION", "lost" and "deposed" as they
happen, and answers each line on standard input with the outcome of a write that
carries the fence of its latest term of office.

    python -m tests.support.candidate ENDPOINT MEMBER_ID TTL_S
"""

import asyncio
import sys

from controlplane.errors import DeposedError
from controlplane.store.election import Election
from controlplane.store.etcd import EtcdStore
from controlplane.store.lease import LeaseKeeper
from controlplane.store.protocol import Fence, Put
from estiba.kit.clock import SystemClock


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def answer_writes(store: EtcdStore, terms: list[Fence]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        try:
            revision = await store.commit([terms[-1]], [Put("/estiba/written", line.strip())])
        except DeposedError:
            say("refused")
        else:
            say(f"written {revision}")


async def main(endpoint: str, member_id: str, ttl_s: int) -> None:
    clock = SystemClock()
    store = EtcdStore([endpoint], tls=None)
    keeper = LeaseKeeper(store, clock=clock, ttl_s=ttl_s, client=store.lease_client)
    election = Election(store, keeper, member_id=member_id, clock=clock)
    terms: list[Fence] = []

    async def lead(fence: Fence) -> None:
        terms.append(fence)
        say(f"leads {fence.create_revision}")
        try:
            await asyncio.Event().wait()
        finally:
            say("lost" if keeper.lost.is_set() else "deposed")

    async with asyncio.TaskGroup() as group:
        group.create_task(keeper.run())
        group.create_task(election.run(lead))
        group.create_task(answer_writes(store, terms))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
