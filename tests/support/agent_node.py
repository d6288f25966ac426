"""A node whose agent is real, and whose launcher, images and network fail on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.assembly import Agent, Parts
from agent.config import Config
from estiba.kit.clock import SystemClock
from estiba.kit.notify import Notifier
from estiba.kit.tls import TlsFiles
from estiba.model import Resources
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration
from tests.support.certificates import Certificates
from tests.support.dispatcher import Dispatcher
from tests.support.faults import FakeCgroups, FakeImages, FakeLauncher, FakeNetwork
from tests.support.waiting import eventually

RUNNING, SHUTDOWN = v1.DESIRED_STATE_RUNNING, v1.DESIRED_STATE_SHUTDOWN
REMOVE = v1.DESIRED_STATE_REMOVE
TASK = "web0001.1.1.1"
ATTACHMENT = v1.NetworkAttachment(network_id="default", cidr="10.10.0.0/16", block="10.10.1.0/24")


@dataclass
class Node:
    """A machine on which an agent is started, and started again."""

    folder: Path
    certificates: Certificates
    launcher: FakeLauncher = field(default_factory=FakeLauncher)
    images: FakeImages = field(default_factory=FakeImages)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    environment: dict[str, str] = field(default_factory=dict)
    """Of the agent: where a service manager is told."""
    tls: TlsFiles | None = None
    """None: those that were issued to n1 for the whole run."""
    metrics_listen: str = "127.0.0.1:0"

    def config(self, *members: str) -> Config:
        return Config(
            node_id="node-1",
            hostname="n1",
            members=members,
            state_dir=self.folder,
            launcher_socket=self.folder / "launcher.sock",
            cgroup_parent="/estiba-test",
            address="127.0.0.1",
            metrics_listen=self.metrics_listen,
            metrics_advertise="127.0.0.1:7490",
            nameservers=("10.0.2.3",),
            log_level="info",
            tls=self.tls or self.certificates.of("n1"),
            registries={},
            capacity=Resources(4_000_000_000, 8 << 30),
        )

    @asynccontextmanager
    async def agent(self, *members: Dispatcher) -> AsyncIterator[None]:
        parts = Parts(
            self.launcher,
            self.images,
            self.network,
            FakeCgroups(),
            SystemClock(),
            Notifier(self.environment),
        )
        agent = Agent(self.config(*(member.address for member in members)), parts)
        running = asyncio.create_task(agent.run(), name="test.agent")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if not running.cancelled():
                running.result()


def assignment(
    task_id: str = TASK,
    *,
    slot: int = 1,
    desired: "v1.DesiredState.ValueType" = RUNNING,
    health: v1.HealthCheck | None = None,
    resources: v1.Resources | None = None,
) -> dispatch.Assignment:
    container = v1.ContainerSpec(image="hello", stop_grace_period=duration(0.2), health=health)
    return dispatch.Assignment(
        task_id=task_id,
        service_id="web0001",
        service_name="web",
        slot=slot,
        desired=desired,
        template=v1.TaskTemplate(container=container, resources=resources),
        attachments=[ATTACHMENT],
    )


def in_state(*states: "v1.TaskState.ValueType") -> Callable[[v1.TaskStatus], bool]:
    return lambda status: status.state in states


IS_RUNNING = in_state(v1.TASK_STATE_RUNNING)


async def told_later(true: Callable[[], bool]) -> None:
    """Wait for what no message tells."""
    await asyncio.to_thread(eventually, true, within_s=20, what="what the test waits for")
