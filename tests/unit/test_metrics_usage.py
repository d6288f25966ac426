"""What a node and its containers use now."""

import asyncio

from agent.metrics import machine
from agent.metrics.usage import LONGEST_S, SHORTEST_S, UsageMeter
from tests.support.metrics import Cgroups, Stats, Table, view


class JumpingClock:
    """Sleeping takes no time, and moves the work on by what was slept."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self.passed_s = 1000.0
        self.slept = 0

    def now(self) -> float:
        return self.passed_s

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, delay_s: float) -> None:
        self.slept += 1
        self.work(delay_s)

    def work(self, length_s: float) -> None:
        """Let every container use half of a processor for so long."""
        self.passed_s += length_s
        for container_id, stats in self._cgroups.held.items():
            used_ns = stats.cpu_ns + round(length_s * 500_000_000)
            self._cgroups.held[container_id] = Stats(cpu_ns=used_ns, memory_bytes=4096, pids=3)


def meter() -> tuple[UsageMeter, JumpingClock, Cgroups, Table]:
    cgroups, table = Cgroups(), Table([view()])
    cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=77_000_000_000, memory_bytes=4096, pids=3)
    clock = JumpingClock(cgroups)
    return UsageMeter(tasks=table, cgroups=cgroups, clock=clock), clock, cgroups, table


async def test_the_first_answer_takes_two_looks() -> None:
    reader, clock, _, _ = meter()
    usage = (await reader.read()).tasks["svc.1.1.1"]
    assert (usage.nano_cpus, usage.memory_bytes, usage.pids) == (500_000_000, 4096, 3)
    assert clock.slept == 1


async def test_an_answer_soon_after_needs_one_look_and_no_wait() -> None:
    reader, clock, _, _ = meter()
    await reader.read()
    clock.work(3.0)
    assert (await reader.read()).tasks["svc.1.1.1"].nano_cpus == 500_000_000
    assert clock.slept == 1


async def test_an_old_look_is_not_averaged_over() -> None:
    reader, clock, cgroups, _ = meter()
    await reader.read()
    clock.passed_s += LONGEST_S  # the container was idle for that long
    assert (await reader.read()).tasks["svc.1.1.1"].nano_cpus == 500_000_000
    assert clock.slept == 2
    assert list(cgroups.held) == ["svc.1.1.1-r1"]


async def test_two_who_ask_at_once_get_one_answer() -> None:
    reader, clock, _, _ = meter()
    one, other = await asyncio.gather(reader.read(), reader.read())
    assert one == other
    assert clock.slept == 1


async def test_a_new_run_counts_from_its_own_start() -> None:
    reader, clock, cgroups, table = meter()
    await reader.read()
    table.views = [view(run=2)]
    cgroups.held = {"svc.1.1.1-r2": Stats()}
    clock.work(SHORTEST_S)
    assert (await reader.read()).tasks["svc.1.1.1"].nano_cpus == 500_000_000


async def test_a_task_without_a_container_uses_nothing_and_is_not_listed() -> None:
    reader, _, cgroups, _ = meter()
    cgroups.held.clear()
    usage = await reader.read()
    assert list(usage.tasks) == []
    assert usage.node.memory_bytes > 0
    assert usage.node.pids > 0


def test_the_files_of_the_machine_are_read_as_the_kernel_writes_them() -> None:
    stat = "cpu  10 2 3 1000 50 1 1 3 4 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    assert machine.busy_ns(stat) == 20 * 10_000_000
    meminfo = "MemTotal:       1000 kB\nMemFree:    1 kB\nMemAvailable:    400 kB\n"
    assert machine.used_bytes(meminfo) == 600 * 1024
    assert machine.threads("0.10 0.20 0.30 2/345 6789\n") == 345
