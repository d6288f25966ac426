"""A storm over a dev cluster: seeded faults and wishes at random, and the history of both.

Every fault undoes itself after a while, and all of them when the storm ends. Wishes are
typed as people type them; one that failed may have been stored or not, both are allowed.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.dev import IMAGE, DevCluster

NODES = ("n1", "n2", "n3")
ON_NODES = ("agent", "launcher", "log-pump")
CENTRAL = ("etcd", "registry", "estibad-1", "estibad-2")
PROGRAMS = (*CENTRAL, *(f"{node}-{program}" for node in NODES for program in ON_NODES))
ON_THE_FABRIC = (*CENTRAL, *NODES)
# One serves and is asked whether it does, one does not end when asked to, one talks much.
SERVICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "red": (("--health-tcp", "8080", "--health-interval", "2s"), ()),
    "green": (
        ("--stop-grace-period", "2s"),
        ("sh", "-c", "trap '' TERM; while :; do sleep 1; done"),
    ),
    "blue": (
        ("--stop-grace-period", "1s"),
        ("sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"),
    ),
}
MOST_REPLICAS = 7
TYPING_TIMEOUT_S = 60.0

ONE_WAY = """
table bridge storm_{name} {{
  chain forward {{ type filter hook forward priority 0; {match} "p-{name}" drop; }}
  chain input {{ type filter hook input priority 0; {at_bridge} }}
  chain output {{ type filter hook output priority 0; {from_bridge} }}
}}
"""


Action = tuple[Callable[[], None], int]
"""What may happen, and how often beside the others."""


@dataclass(slots=True)
class Storm:
    """Disturbs one cluster; what it did and what is wanted afterwards can be read."""

    cluster: DevCluster
    seed: int
    longest_fault_s: float = 6.0
    history: list[str] = field(default_factory=list)
    allowed: dict[str, set[int]] = field(default_factory=dict)
    drained: set[str] = field(default_factory=set)
    _pending: list[tuple[float, str, Callable[[], None]]] = field(default_factory=list)
    _victims: set[str] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)

    def blow(self, *, for_s: float) -> None:
        """Disturb for a while, then undo every fault."""
        until = time.monotonic() + for_s
        with ThreadPoolExecutor(max_workers=1) as elsewhere:
            typing = elsewhere.submit(self._wish, until)
            try:
                self._break(until)
            finally:
                self._undo(before=float("inf"))
            typing.result()
        for node in sorted(self.drained):
            self.cluster.estiba("node", "update", "--availability", "active", node)

    def _break(self, until: float) -> None:
        random_ = random.Random(f"{self.seed} faults")
        actions = self._faults(random_)
        while time.monotonic() < until:
            self._undo(before=time.monotonic())
            _one_of(random_, actions)()
            time.sleep(random_.uniform(0.1, 1.0))

    def _wish(self, until: float) -> None:
        random_ = random.Random(f"{self.seed} wishes")
        actions = self._wishes(random_)
        while time.monotonic() < until:
            _one_of(random_, actions)()
            time.sleep(random_.uniform(0.2, 2.0))

    def told(self) -> str:
        return f"seed {self.seed}\n" + "\n".join(self.history)

    def note(self, what: str) -> None:
        self.history.append(f"{time.monotonic() - self._began:7.2f}  {what}")

    # ------------------------------------------------------------------ what may happen

    def _faults(self, random_: random.Random) -> list[Action]:
        def program() -> str:
            return random_.choice(PROGRAMS)

        def node() -> str:
            return random_.choice(NODES)

        def lasting() -> float:
            return random_.uniform(1.0, self.longest_fault_s)

        return [
            (lambda: self._kill(program()), 5),
            (lambda: self._kill_both(node()), 2),
            (lambda: self._kill_container(random_), 4),
            (lambda: self._freeze(program(), lasting()), 4),
            (lambda: self._stop(program(), lasting(), kill=random_.random() < 0.5), 2),
            (lambda: self._cut(random_.choice(ON_THE_FABRIC), lasting()), 3),
            (
                lambda: self._cut_one_way(
                    random_.choice(ON_THE_FABRIC), lasting(), inward=random_.random() < 0.5
                ),
                3,
            ),
            (lambda: self._forget(node(), lasting()), 1),
        ]

    def _wishes(self, random_: random.Random) -> list[Action]:
        def service() -> str:
            return random_.choice(sorted(SERVICES))

        return [
            (lambda: self._scale(service(), random_.randint(0, MOST_REPLICAS)), 6),
            (lambda: self._update(service(), random_.randrange(1000)), 3),
            (lambda: self._update_twice(service(), random_.randrange(1000)), 2),
            (lambda: self._remove(service()), 1),
            (lambda: self._drain(random_.choice(NODES)), 1),
        ]

    def _kill(self, name: str) -> None:
        if self._signal(name, signal.SIGKILL):
            self.note(f"killed {name}")

    def _kill_both(self, node: str) -> None:
        self.note(f"killing agent and launcher of {node}")
        for program in ("agent", "launcher"):
            self._signal(f"{node}-{program}", signal.SIGKILL)

    def _kill_container(self, random_: random.Random) -> None:
        pids = sorted(pid for found in self.cluster.inits().values() for pid in found)
        if pids:
            pid = random_.choice(pids)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.note(f"killed container with pid {pid}")

    def _freeze(self, name: str, lasting_s: float) -> None:
        pid = self.cluster.programs()[name]["pid"]
        if pid and self._take(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

            def thaw() -> None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

            self._later(name, lasting_s, thaw, f"froze {name}")

    def _stop(self, name: str, lasting_s: float, *, kill: bool) -> None:
        if not self._take(name):
            return
        self.cluster.estiba("dev", "stop", *(["--kill"] if kill else []), name)

        def start() -> None:
            self.cluster.estiba("dev", "start", name)

        self._later(name, lasting_s, start, f"stopped {name}")

    def _cut(self, name: str, lasting_s: float) -> None:
        if self._take(f"link of {name}"):
            self.cluster.cut(name)
            self._later(
                f"link of {name}", lasting_s, lambda: self.cluster.heal(name), f"cut {name} off"
            )

    def _cut_one_way(self, name: str, lasting_s: float, *, inward: bool) -> None:
        if not self._take(f"link of {name}"):
            return
        match = "oifname" if inward else "iifname"
        rules = ONE_WAY.format(
            name=name.replace("-", "_"),
            match=match,
            at_bridge="" if inward else f'iifname "p-{name}" drop;',
            from_bridge=f'oifname "p-{name}" drop;' if inward else "",
        ).replace(f'"p-{name.replace("-", "_")}"', f'"p-{name}"')
        self._nft(rules)

        def heal() -> None:
            self._nft(f"delete table bridge storm_{name.replace('-', '_')}")

        way = "to" if inward else "from"
        self._later(f"link of {name}", lasting_s, heal, f"nothing gets {way} {name}")

    def _nft(self, rules: str) -> None:
        relay = self.cluster.pid("relay")
        subprocess.run(
            ["nsenter", f"--net=/proc/{relay}/ns/net", "nft", "-f", "-"],
            input=rules,
            text=True,
            check=True,
        )

    def _forget(self, node: str, lasting_s: float) -> None:
        """Delete all that a node's agent wrote, also below its containers, while it is dead."""
        name = f"{node}-agent"
        if not self._take(name):
            return
        self.cluster.estiba("dev", "stop", "--kill", name)
        state = self.cluster.folder / "nodes" / node / "state"
        for path in state.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

        def start() -> None:
            self.cluster.estiba("dev", "start", name)

        self._later(name, lasting_s, start, f"{name} stopped, its folder deleted")

    # ------------------------------------------------------------------ wishes

    def _scale(self, service: str, replicas: int) -> None:
        if service in self.allowed:
            typed = self._type("service", "scale", "--detach", f"{service}={replicas}")
        else:
            options, command = SERVICES[service]
            typed = self._type(
                *("service", "create", "--detach", "--name", service),
                *("--replicas", str(replicas), *options, IMAGE, *command),
            )
        if typed:
            self.allowed[service] = {replicas}
        else:
            self.allowed.setdefault(service, {0}).add(replicas)

    def _update(self, service: str, number: int) -> None:
        self._type("service", "update", "--detach", "--env-add", f"NUMBER={number}", service)

    def _update_twice(self, service: str, number: int) -> None:
        """Two people change one service at once."""
        typing = [
            threading.Thread(target=self._update, args=(service, number + more)) for more in (1, 2)
        ]
        for each in typing:
            each.start()
        for each in typing:
            each.join()

    def _remove(self, service: str) -> None:
        if service in self.allowed:
            if self._type("service", "rm", service):
                del self.allowed[service]
            else:
                self.allowed[service].add(0)

    def _drain(self, node: str) -> None:
        """Drain one node, and let those drained before have tasks again."""
        for each in sorted(self.drained - {node}):
            if self._type("node", "update", "--availability", "active", each):
                self.drained.discard(each)
        self.drained.add(node)
        self._type("node", "update", "--availability", "drain", node)

    def _type(self, *words: str) -> bool:
        said = self.cluster.run(*words, timeout_s=TYPING_TIMEOUT_S)
        self.note(f"{' '.join(words)}: {said.err.strip() or said.code}")
        assert "Traceback" not in said.err, said.err
        return said.code == 0

    # ------------------------------------------------------------------ faults end

    def _signal(self, name: str, number: signal.Signals) -> bool:
        pid = self.cluster.programs()[name]["pid"]
        if pid == 0:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _take(self, victim: str) -> bool:
        """Say whether nothing lasting is being done to the victim, and mark it."""
        free = victim not in self._victims
        self._victims.add(victim)
        return free

    def _later(self, victim: str, after_s: float, undo: Callable[[], None], what: str) -> None:
        self.note(f"{what} for {after_s:.1f} s")
        self._pending.append((time.monotonic() + after_s, victim, undo))

    def _undo(self, *, before: float) -> None:
        for due in [each for each in self._pending if each[0] <= before]:
            _, victim, undo = due
            self._pending.remove(due)
            undo()
            self._victims.discard(victim)
            self.note(f"undone: {victim}")


def _one_of(random_: random.Random, actions: list[Action]) -> Callable[[], None]:
    (act,) = random_.choices([act for act, _ in actions], [often for _, often in actions])
    return act
