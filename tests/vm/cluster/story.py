"""What three machines show, in order. Each step is a sentence, true when the step has ended."""

import json
import re
import shutil
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually
from tests.vm.cluster.hypervisor import power_off
from tests.vm.cluster.machines import Cluster, Machine, MachineError
from tests.vm.cluster.vagrant import Vagrant

# Software emulation: ten times what real machines need, and more.
SOON_S = 240.0
EVERY_S = 2.0
DOWN_AFTER_S = 30
# The secret of a token follows digest and id.
SECRET = re.compile(r"estiba-1-[a-z2-7]{52}-[a-z2-7]{8}-([a-z2-7]{26})")
LIMITS = {"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "50"}
IMAGE = "registry.estiba:5000/hello"
# The inner shell ends where it may have no further process; the outer one is busy for ever.
FORKING = "(i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done); while :; do :; done"


@dataclass(slots=True)
class Story:
    vagrant: Vagrant
    control_plane: Machine
    agents: tuple[Machine, Machine]
    wheels: Path
    """What the machines install from."""
    newer_wheel: Path
    began: float = field(default_factory=time.monotonic)
    told: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.control_plane)

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.control_plane, *self.agents)

    def tell(self) -> None:
        first, second = self.agents
        with self.step("the project's Vagrantfile is valid"):
            self.vagrant.run("validate")
        with self.step("`vagrant up` ends with a cluster, a service and Prometheus"):
            self.vagrant.run("up")
            self.have_patience()
        with self.step("both agents joined by a token of their own, and no secret was printed"):
            self.joined_by_token()
        with self.step("provisioning again changes nothing"):
            self.nothing_to_change(first)
        with self.step("a service is scaled over the machines, and every replica answers"):
            self.scaled(6)
        with self.step("limits are in the kernel"):
            self.limits_are_set()
        with self.step("a process beyond memory is killed, one beyond processor time is held back"):
            self.limits_are_enforced()
        with self.step("Prometheus counts as many tasks as the machines have processes"):
            self.prometheus_agrees(6)
        with self.step("an agent is upgraded by install.sh, and no container is restarted"):
            self.upgraded(first)
        with self.step("a machine is killed, and its tasks run on the other"):
            self.killed(second, survivor=first)
        with self.step("the machine is back, clean, and takes tasks"):
            self.back(second)
        with self.step("the control plane is rebooted, and no container notices"):
            self.control_plane_rebooted()
        with self.step("an agent is rebooted, and everything runs again by itself"):
            self.agent_rebooted(first)
        with self.step("Prometheus counts as many tasks as the machines have processes, again"):
            self.prometheus_agrees(8)
        with self.step("an agent is destroyed, and its node leaves the cluster"):
            self.destroyed(second)
        with self.step("`vagrant destroy` leaves no machine"):
            self.vagrant.run("destroy", "--force")

    @contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        say(f"\n== {sentence}")
        began = time.monotonic()
        yield
        now = time.monotonic()
        line = f"{now - self.began:7.1f} s  {sentence}, in {now - began:.1f} s"
        self.told.append(line)
        say(f"   {line}")

    # ------------------------------------------------------------------ the steps

    def have_patience(self) -> None:
        """Let nodes be silent for as long as emulated machines take to start an agent."""
        self.control_plane.run(
            f"sed -i '1i down_after_s = {DOWN_AFTER_S}' /etc/estiba/estibad.toml"
            " && systemctl restart estibad"
        )

    def joined_by_token(self) -> None:
        names = {agent.name for agent in self.agents}
        self.wait(lambda: self.cluster.ready() == names, f"{names} are ready")
        tokens = self.cluster.json("cluster", "token", "ls")
        admitted = [node for token in tokens for node in token.get("admitted", [])]
        ids = {node["metadata"]["id"] for node in self.cluster.nodes().values()}
        assert ids <= set(admitted), f"{ids} were not all admitted by {tokens}"
        for where, text in self.what_was_written():
            assert not SECRET.search(text), f"a token's secret is in {where}"

    def what_was_written(self) -> Iterator[tuple[str, str]]:
        """Yield what Vagrant printed, and what the machines hold in journals and files."""
        yield "Vagrant's output", "\n".join(self.vagrant.printed)
        for machine in self.machines:
            yield f"the journal of {machine.name}", machine.run("journalctl --no-pager")
            found = machine.run(
                "grep -rsIE 'estiba-1-[a-z2-7]{52}-' /run /tmp /var/log /var/lib/estiba /etc /home",
                check=False,
            )
            yield f"a file of {machine.name}", found

    def nothing_to_change(self, agent: Machine) -> None:
        self.vagrant.run("provision", agent.name, "--provision-with", "token,install")
        assert any("nothing to change" in line for line in self.vagrant.printed[-20:])

    def scaled(self, replicas: int) -> None:
        self.cluster.estiba("service", "scale", f"hello={replicas}")
        running = self.cluster.running("hello")
        assert set(running) == {agent.name for agent in self.agents}, running
        assert sorted(map(len, running.values())) == [replicas // 2] * 2, running
        for task in self.cluster.json("service", "ps", "hello"):
            address = task["status"]["address"]
            node = self.agent_of(task)
            answer = node.run(f"busybox wget -q -O - http://{address}:8080/")
            assert answer.startswith("hello from "), answer

    def agent_of(self, task: dict[str, Any]) -> Machine:
        names = {node["metadata"]["id"]: name for name, node in self.cluster.nodes().items()}
        return next(each for each in self.agents if each.name == names[task["node_id"]])

    def limits_are_set(self) -> None:
        for agent in self.agents:
            for name, container in agent.look()["containers"].items():
                found = {file: container["files"][file] for file in LIMITS}
                assert found == LIMITS, f"{name} on {agent.name}: {found}"

    def limits_are_enforced(self) -> None:
        common = ("service", "create", "--detach", "--stop-grace-period", "1s")
        self.cluster.estiba(
            *(*common, "--name", "hungry", "--limit-memory", "16m", IMAGE),
            *("sh", "-c", "'tail /dev/zero'"),
        )
        self.cluster.estiba(
            *(*common, "--name", "busy", "--limit-cpu", "0.1", "--limit-pids", "20", IMAGE),
            *("sh", "-c", f"'{FORKING}'"),
        )
        self.wait(self.was_killed_for_memory, "hungry was killed for want of memory")
        self.wait(self.is_held_back, "busy is held back")
        self.cluster.estiba("service", "rm", "hungry", "busy")
        self.wait(self.only_hello, "nothing is left of hungry and busy")

    def was_killed_for_memory(self) -> bool:
        runs = [task["status"].get("last_run", {}) for task in self.tasks("hungry")]
        said = "".join(agent.run("journalctl --dmesg --no-pager") for agent in self.agents)
        return any(run.get("oom_killed") for run in runs) and "Memory cgroup out of memory" in said

    def is_held_back(self) -> bool:
        tasks = [task["metadata"]["id"] for task in self.tasks("busy")]
        for agent in self.agents:
            for name, container in agent.look()["containers"].items():
                if name.rpartition("-r")[0] in tasks:
                    files = {file: numbers(text) for file, text in container["files"].items()}
                    throttled = files["cpu.stat"].get("nr_throttled", 0)
                    return throttled > 0 and files["pids.events"].get("max", 0) > 0
        return False

    def upgraded(self, agent: Machine) -> None:
        before, version = self.processes(agent), agent.run("readlink /opt/estiba/current")
        launched = agent.run("systemctl show -p MainPID --value estiba-agent")
        for old in self.wheels.glob("estiba-*.whl"):
            old.unlink()
        shutil.copy(self.newer_wheel, self.wheels)
        self.vagrant.run("rsync", agent.name)
        self.vagrant.run("provision", agent.name, "--provision-with", "install")
        assert agent.run("readlink /opt/estiba/current") != version
        assert agent.run("systemctl show -p MainPID --value estiba-agent") != launched
        self.wait(lambda: agent.name in self.cluster.ready(), f"{agent.name} is ready")
        assert self.processes(agent) == before, "containers were restarted"

    def killed(self, machine: Machine, *, survivor: Machine) -> None:
        wanted = sum(map(len, self.cluster.running("hello").values()))
        power_off(machine.domain)
        self.wait(lambda: self.cluster.ready() == {survivor.name}, f"{machine.name} is down")
        self.wait(
            lambda: len(self.cluster.running("hello").get(survivor.name, ())) == wanted,
            f"all {wanted} tasks run on {survivor.name}",
        )
        self.wait(lambda: len(self.processes(survivor)) == wanted, "so many processes")

    def back(self, machine: Machine) -> None:
        self.vagrant.run("up", machine.name)
        self.wait(lambda: machine.name in self.cluster.ready(), f"{machine.name} is ready")
        self.wait(lambda: self.is_clean(machine), f"nothing stale is on {machine.name}")
        self.cluster.estiba("service", "scale", "hello=8")
        running = self.cluster.running("hello")
        assert len(running[machine.name]) >= 2, running
        self.wait(self.only_hello, "the machines have what the control plane says")

    def control_plane_rebooted(self) -> None:
        before = {agent.name: self.processes(agent) for agent in self.agents}
        self.reboot(self.control_plane)
        names = {agent.name for agent in self.agents}
        self.wait(lambda: self.cluster.ready() == names, f"{names} are ready again")
        assert {agent.name: self.processes(agent) for agent in self.agents} == before

    def agent_rebooted(self, agent: Machine) -> None:
        self.reboot(agent)
        self.wait(lambda: agent.name in self.cluster.ready(), f"{agent.name} is ready again")
        self.wait(lambda: self.running_count() == 8, "all eight run")
        self.wait(self.only_hello, "nothing stale is on the machines")

    def destroyed(self, machine: Machine) -> None:
        self.vagrant.run("destroy", "--force", machine.name)
        assert machine.name not in self.cluster.nodes()
        self.wait(lambda: self.running_count() == 8, "all eight run on the other")

    def prometheus_agrees(self, tasks: int) -> None:
        def agreed() -> bool:
            said = self.ask_prometheus("sum(estiba_service_replicas_running)")
            counted = sum(len(self.processes(agent)) for agent in self.agents)
            return said == counted == tasks

        self.wait(agreed, f"Prometheus and the machines both count {tasks}")
        assert self.ask_prometheus("sum(up)") == 3

    # ------------------------------------------------------------------ looking

    def ask_prometheus(self, expression: str) -> float | None:
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://{self.control_plane.address}:9090/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def tasks(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.json("service", "ps", service)
        return found

    def running_count(self) -> int:
        return sum(map(len, self.cluster.running("hello").values()))

    def processes(self, machine: Machine) -> dict[str, tuple[int, int]]:
        """Return who the first process of each container is: pid and start, by container."""
        found = {}
        for name, container in machine.look()["containers"].items():
            for process in container["processes"]:
                if process["inner_pid"] == 1:
                    found[name] = (process["pid"], process["started"])
        return found

    def only_hello(self) -> bool:
        return all(self.is_clean(agent) for agent in self.agents)

    def is_clean(self, machine: Machine) -> bool:
        """Say whether a machine has all of what its tasks need, and nothing else."""
        tasks = sorted(self.cluster.running("hello").get(machine.name, ()))
        seen = machine.look()
        containers = sorted(name.rpartition("-r")[0] for name in seen["containers"])
        bundles = sorted(name.rpartition("-r")[0] for name in seen["bundles"])
        records = sorted(name.rpartition("-r")[0] for name in seen["records"])
        ends = [link for link in seen["links"] if not link.startswith("br")]
        return containers == bundles == records == tasks and len(ends) == len(tasks)

    def reboot(self, machine: Machine) -> None:
        before = machine.boot_id()
        machine.reboot()
        self.wait(lambda: machine.boot_id() not in {"", before}, f"{machine.name} is up again")

    def wait(self, look: Callable[[], Any], what: str) -> None:
        """Look until it is so; while machines and programs start, they may not answer."""
        faults: list[MachineError] = []

        def seen() -> Any:
            try:
                return look()
            except MachineError as fault:
                faults.append(fault)
                return None

        try:
            eventually(seen, within_s=SOON_S, what=what, every_s=EVERY_S)
        except AssertionError as late:
            raise AssertionError(f"{late}, {faults[-1:]}") from late


def numbers(text: str) -> dict[str, int]:
    """Read a file of a cgroup that has a name and a number on each line."""
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
