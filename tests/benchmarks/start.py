"""One container through the launcher, created, started, ended and removed, beside `crun run`.

Both execute `true` from the same files and the same `config.json`, in turns, and are
timed from the request until the end is known and cgroup and folders are gone. crun has
a plain folder as root where we mount an overlay, and it writes no log. Neither filters
system calls: with its usual filter, which it compiles at each start, crun takes about
three times as long. Nor is anything prepared ahead.

crun refuses machines with cgroup version 1 and 2 side by side, so all of it runs in a
mount namespace in which the second is hidden.
"""

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.support.benchmark import Figure, tell, version_of
from tests.support.containers import Node, make_layer, running_node

INSIDE = "ESTIBA_BENCH_INSIDE"
HIDE = 'if [ -d "$0" ]; then mount -t tmpfs none "$0"; fi; exec "$@"'
UNIFIED = "/sys/fs/cgroup/unified"

ROUNDS = 150
ROUNDS_AFTER_IDLE = 40
IDLE_S = 0.1
AT_ONCE = 16
BURSTS = 6

Start = Callable[[str], Awaitable[float]]


class Ours:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.stages: dict[str, list[float]] = {}
        """Seconds by what they were spent on."""

    async def start(self, name: str) -> float:
        """Run one container to its end; return the seconds it took."""
        launcher = self._node.launcher
        bundle = self._node.bundle(name, "/bin/true")
        marks = [time.perf_counter()]
        await launcher.create(name, bundle)
        marks.append(time.perf_counter())
        await launcher.start(name)
        marks.append(time.perf_counter())
        ended = await self._node.end(name)
        marks.append(time.perf_counter())
        await launcher.remove(name)
        marks.append(time.perf_counter())
        stages = ("create", "start", "end", "remove")
        for stage, (since, until) in zip(stages, pairwise(marks), strict=True):
            self.stages.setdefault(stage, []).append(until - since)
        took = marks[-1] - marks[0]
        assert ended.exit_code == 0, ended
        shutil.rmtree(bundle)
        return took


class Crun:
    def __init__(self, node: Node, folder: Path) -> None:
        self._folder = folder
        self._parent = node.cgroup_parent
        described = json.loads((node.bundle("for-crun", "/bin/true") / "config.json").read_bytes())
        del described["annotations"]
        self._config = described
        self._root = make_layer(folder / "rootfs")

    async def start(self, name: str) -> float:
        """Run one container to its end; return the seconds it took."""
        bundle = self._folder / name
        bundle.mkdir()
        config = self._config | {"root": {"path": str(self._root)}}
        config["linux"] = config["linux"] | {"cgroupsPath": f"{self._parent}-crun/{name}"}
        (bundle / "config.json").write_text(json.dumps(config))
        command = ["crun", "--cgroup-manager=cgroupfs", "run", "--bundle", str(bundle), name]
        began = time.perf_counter()
        running = await asyncio.create_subprocess_exec(*command)
        code = await running.wait()
        took = time.perf_counter() - began
        assert code == 0, f"crun: exit code {code}"
        shutil.rmtree(bundle)
        return took

    def clean(self) -> None:
        """Remove the cgroups above those of crun's containers, which it leaves."""
        for controller in Path("/sys/fs/cgroup").iterdir():
            with suppress(OSError):
                (controller / f"{self._parent.strip('/')}-crun").rmdir()


async def in_turns(
    starts: Mapping[str, Start], rounds: int, idle_s: float
) -> dict[str, list[float]]:
    """Time each of ``starts`` once in every round, in random order."""
    times: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(rounds):
        for name in random.sample(sorted(starts), len(starts)):
            await asyncio.sleep(idle_s)
            times[name].append(await starts[name](f"{name}-{idle_s:g}-{number}"))
    return times


async def bursts(starts: Mapping[str, Start]) -> dict[str, list[float]]:
    """Time how long several containers take together, by turns."""
    times: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(BURSTS):
        for name in random.sample(sorted(starts), len(starts)):
            began = time.perf_counter()
            await asyncio.gather(
                *(starts[name](f"{name}-burst-{number}-{index}") for index in range(AT_ONCE))
            )
            times[name].append(time.perf_counter() - began)
    return times


def figures(what: str, times: dict[str, list[float]], shares: tuple[float, ...]) -> list[Figure]:
    found = []
    for share in shares:
        value = {
            name: sorted(taken)[min(int(len(taken) * share), len(taken) - 1)] * 1000
            for name, taken in times.items()
        }
        label = f"{what}, p{share * 100:.0f}"
        found.append(
            Figure(label, value["ours"], "ms", value["ours"] / value["crun"], "crun without filter")
        )
        found.append(Figure(f"{label}, crun", value["crun"], "ms"))
    return found


async def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="estiba-bench-") as name:
        folder = Path(name)
        for part in ("node", "crun"):
            (folder / part).mkdir()
        layer = make_layer(folder / "layer")
        async with running_node(folder / "node", layer) as node:
            crun = Crun(node, folder / "crun")
            ours = Ours(node)
            starts: dict[str, Start] = {"ours": ours.start, "crun": crun.start}
            try:
                await in_turns(starts, 5, 0.0)
                ours.stages.clear()
                back_to_back = await in_turns(starts, ROUNDS, 0.001)
                return [
                    *figures("back to back", back_to_back, (0.5, 0.99)),
                    *(
                        Figure(f"back to back, p50, {stage}", median(times) * 1000, "ms")
                        for stage, times in ours.stages.items()
                    ),
                    *figures(
                        f"after {IDLE_S:g} s of idleness",
                        await in_turns(starts, ROUNDS_AFTER_IDLE, IDLE_S),
                        (0.5, 0.99),
                    ),
                    *figures(f"{AT_ONCE} at once, all ended", await bursts(starts), (0.5,)),
                ]
            finally:
                crun.clean()


def main() -> None:
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        again = [sys.executable, "-m", "tests.benchmarks.start"]
        hidden = ["sh", "-c", HIDE, UNIFIED, *again]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *hidden])
    found = asyncio.run(measure())
    tell("start", found, {"crun": version_of("crun", "--version")})


if __name__ == "__main__":
    main()
