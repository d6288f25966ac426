"""install.sh on a machine with systemd: refused, killed, run again, upgraded, restarted, undone."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually
from tests.vm.installation import (
    ADDRESS,
    CALM_WITHIN_S,
    INSIDE,
    INSTALL_WITHIN_S,
    PATIENCE,
    ROOT,
    SOURCE,
    STEPS,
    WHEELS,
    Installation,
    installation,
    make_wheels,
)

# In software emulation Python packages take minutes to install, and one machine serves all tests.
pytestmark = pytest.mark.timeout(1800)

CONTROL_PLANE = ("--role", "control-plane")
SERVICES = ("estibad", "estiba-agent", "estiba-launcher", "estiba-log-pump")
HOLDER = "/sys/fs/cgroup/estiba.slice/estiba-containers.service"
# Of the machine itself, or changed by a control plane that only stands there.
COMING_AND_GOING = ("/tmp/", "/etc/resolv.conf", "/var/lib/estiba/etcd/")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with (
        make_wheels(tmp_path_factory.mktemp("wheels")) as wheels,
        installation(tmp_path_factory.mktemp("machine"), wheels) as made,
    ):
        yield made


def things(state: dict[str, Any]) -> dict[str, Any]:
    """Return what there is, without times of folders, which whatever was in them has changed."""
    kept = {
        name: state[name] for name in ("users", "cgroups", "links", "tables", "mounts", "ports")
    }
    kept["units"] = sorted(state["units"])
    # Those in parentheses are systemd's and udev's, not yet or no longer anything else.
    kept["processes"] = [
        name for name in state["processes"] if "systemd" not in name and name[0] != "("
    ]
    kept["passing files"] = state["passing files"]
    kept["files"] = {
        path: about[:5]
        for path, about in state["files"].items()
        if not path.startswith(COMING_AND_GOING)
    }
    return kept


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what is another in the two."""
    found = []
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict):
            changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
            found += [f"{name} {key}: {old.get(key)} {new.get(key)}" for key in sorted(changed)]
        else:
            found += [f"{name}: {each}" for each in sorted(set(old) ^ set(new))]
    return found


# ------------------------------------------------------------------------------------- refused

REFUSALS = {
    "no-root": (
        "setpriv --reuid 65534 --clear-groups {install}",
        "users, units and folders of the system need root",
    ),
    "no-role": ("{bare}", "say what this machine is to be: --role control-plane or --role agent"),
    "another-system": (
        "echo 'ID=fedora VERSION_ID=40' >/root/os && mount --bind /root/os /etc/os-release; "
        "{install}",
        "Estiba installs on Debian 12, Debian 13 and Ubuntu 24.04, and this is fedora 40",
    ),
    "no-systemd": (
        "mount --bind /root /run/systemd; {install}",
        "systemd does not run here",
    ),
    "an-old-python": (
        "printf '#!/bin/sh\\necho Python 3.9.2; exit 1\\n' >/root/old && chmod 755 /root/old && "
        "mount --bind /root/old /usr/bin/python3; {install}",
        "Estiba needs Python 3.11 or newer, and /usr/bin/python3 is Python 3.9.2",
    ),
    "a-taken-port": (
        "busybox nc -l -p 7443 >/dev/null & "
        "until ss -Hltn | grep -q :7443; do sleep 0.1; done; "
        "{install}; code=$?; kill %1; (exit $code)",
        "port 7443 is taken by busybox, process",
    ),
    "a-user-of-that-name": (
        "useradd --system estiba; {install}; code=$?; userdel estiba; (exit $code)",
        "there is a user estiba already, who is not of Estiba",
    ),
    "a-command-of-that-name": (
        "touch /usr/local/bin/estiba; {install}; code=$?; rm /usr/local/bin/estiba; (exit $code)",
        "/usr/local/bin/estiba is there already and is not of this installation",
    ),
    "no-vxlan": (
        "modprobe -r vxlan; echo 'install vxlan /bin/false' >/etc/modprobe.d/no.conf; "
        "{agent}; code=$?; "
        "rm /etc/modprobe.d/no.conf; (exit $code)",
        "this kernel has no vxlan, which connects the containers of different machines",
    ),
    "no-overlay": (
        "modprobe -r overlay; echo 'install overlay /bin/false' >/etc/modprobe.d/no.conf; "
        "{agent}; code=$?; "
        "rm /etc/modprobe.d/no.conf; (exit $code)",
        "this kernel has no overlay, which holds the files of containers",
    ),
    "no-nf-tables": (
        "modprobe -r nf_tables; echo 'install nf_tables /bin/false' >/etc/modprobe.d/no.conf; "
        "{agent}; code=$?; "
        "rm /etc/modprobe.d/no.conf; (exit $code)",
        "this kernel has no nf_tables, which says which packets pass",
    ),
    "no-user-namespaces": (
        "sysctl -qw user.max_user_namespaces=0; {agent}; code=$?; "
        "sysctl -qw user.max_user_namespaces=1000; (exit $code)",
        "this kernel has no user namespaces, which set containers apart",
    ),
    "no-memory-controller": (
        "echo cpuset cpu io pids >/root/some && "
        "mount --bind /root/some /sys/fs/cgroup/cgroup.controllers; {agent}",
        "cgroup v2 has no controller memory, which limits containers",
    ),
    "the-older-cgroups": (
        "mount -t tmpfs none /sys/fs/cgroup; {agent}",
        "cgroup v2 is not mounted at /sys/fs/cgroup",
    ),
    "no-token": ("{agent} --join 127.0.0.1", "--join needs a token"),
    "a-token-file-that-is-not-there": (
        "{agent} --join 127.0.0.1 --token-file /root/none",
        "the file of the token cannot be read: /root/none",
    ),
    "nobody-to-join": (
        "ESTIBA_JOIN_TOKEN=any {agent} --join 127.0.0.1",
        "no control plane answers at 127.0.0.1:7444",
    ),
    "no-wheels": ("{bare} --role agent --wheels /root", "there is no wheel of Estiba in /root"),
    "an-unknown-word": ("{install} --fast", "unknown argument --fast"),
    "an-unknown-role": ("{bare} --role manager", "there is no role manager"),
}


def test_a_machine_that_will_not_do_is_told_why_in_one_sentence_and_left_as_it_was(
    machine: Installation,
) -> None:
    bare = f"{SOURCE}/deploy/install.sh"
    install = f"{bare} --wheels /opt/wheels --role"
    before = things(machine.at("bare").state())
    wrong = []
    for name, (command, sentence) in REFUSALS.items():
        words = {"bare": bare, "install": f"{install} control-plane", "agent": f"{install} agent"}
        # What it mounts is there for this command alone.
        shell = f"unshare --mount bash -c {shlex.quote(command.format(**words))}"
        done = machine.run(shell, check=False)
        said = [line for line in done.err.splitlines() if not line.startswith("== ")]
        if done.code != 1 or len(said) != 1 or not said[0].startswith(f"install: {sentence}"):
            wrong.append(f"{name}: {done}")
    assert wrong == []
    machine.run("rm -f /root/os /root/old /root/some")
    assert differences(before, things(machine.state())) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("3.4.21", "etcd 3.4.21 is too old: Estiba needs 3.4.22 or newer"),
        ("3.5.1", "etcd 3.5.1 can lose data when it is killed: Estiba needs 3.5.3 or newer"),
    ],
)
def test_an_etcd_that_can_lose_data_is_refused_and_nothing_but_packages_is_left(
    machine: Installation, version: str, sentence: str
) -> None:
    machine.at("packages")
    before = things(machine.state())
    machine.run(
        f"printf '#!/bin/sh\\necho etcd Version: {version}\\n' >/root/etcd && "
        "chmod 755 /root/etcd && mount --bind /root/etcd /usr/bin/etcd"
    )
    done = machine.install(*CONTROL_PLANE, check=False)
    assert done.code == 1
    assert f"install: {sentence}" in done.err.splitlines()
    machine.run("umount /usr/bin/etcd && rm /root/etcd")
    assert differences(before, things(machine.state())) == []


def test_a_clock_that_is_off_by_a_day_is_seen_before_anything_is_installed(
    machine: Installation,
) -> None:
    machine.at("bare")
    _impersonate(machine, ahead_s=86400)
    before = things(machine.state())
    machine.run("echo any >/root/token")
    done = machine.install(
        *("--role", "agent", "--join", "127.0.0.1", "--token-file", "/root/token"), check=False
    )
    assert done.code == 1
    assert "this machine's clock is 24.0 hours behind the control plane's" in done.err
    machine.run("rm /root/token")
    assert differences(before, things(machine.state())) == []


def test_a_first_installation_whose_join_fails_is_undone(machine: Installation) -> None:
    before = things(machine.at("packages").state())
    machine.at("programs")
    _impersonate(machine)
    secret = "b" * 26
    machine.run(f"echo estiba-1-{'a' * 52}-{'c' * 8}-{secret} >/root/token")
    done = machine.install(
        *("--role", "agent", "--join", "127.0.0.1", "--token-file", "/root/token"), check=False
    )
    assert done.code != 0
    assert "nothing is left of this attempt but Debian packages" in done.err
    assert secret not in done.err + done.out
    machine.run("systemctl stop impostor; rm -r /root/token /root/impostor.py")
    assert differences(before, things(machine.state())) == []


def test_a_join_that_fails_leaves_a_control_plane_as_it_was(machine: Installation) -> None:
    before = things(machine.at("controlled").state())
    machine.run(f"umask 077; echo {machine.token()} >/root/token")
    machine.run("estiba cluster token rm $(cut -d- -f4 /root/token)")
    done = machine.install(
        *("--role", "agent", "--join", ADDRESS, "--token-file", "/root/token"), check=False
    )
    assert done.code != 0
    assert "nothing is left of this attempt at the role agent" in done.err
    machine.run("rm /root/token")
    assert differences(before, things(machine.state())) == []


def _impersonate(machine: Installation, *, ahead_s: int = 0) -> None:
    """Have somebody answer where machines join."""
    with (INSIDE / "impostor.py").open("rb") as script:
        machine.machine.run("cat >/root/impostor.py", stdin=script)
    machine.run(
        "systemd-run --quiet --unit impostor --property Type=notify --property NotifyAccess=all "
        f"python3 /root/impostor.py {ahead_s}"
    )


# ------------------------------------------------------------------------------------- installed


def test_an_installation_that_was_killed_at_every_step_is_finished_by_the_next(
    machine: Installation,
) -> None:
    machine.at("installed")
    (node,) = machine.estiba("node", "ls")
    assert node["status"]["state"] == "NODE_STATE_READY"
    state = machine.state()
    for name in SERVICES:
        unit = state["units"][f"{name}.service"]
        assert (unit["ActiveState"], unit["UnitFileState"]) == ("active", "enabled")
    left = [
        path
        for path in state["files"]
        if path.startswith(("/opt/estiba/build", "/opt/estiba/stale"))
    ]
    left += [path for path in state["files"] if path.endswith(".new") and "/opt/" not in path]
    assert left == []
    assert not any(
        "etcd.service" in line
        for line in machine.run("ls /etc/systemd/system/*.wants").out.split()
        if "estiba" not in line
    )
    assert machine.run("ls /usr/sbin/policy-rc.d", check=False).code != 0


def test_the_control_plane_says_how_machines_join_it(machine: Installation) -> None:
    machine.at("installed")
    assert re.search(
        rf"^estiba node join --token estiba-1-\S+ {ADDRESS}:7444$", machine.offered, re.MULTILINE
    )


def test_a_service_runs_under_the_limits_of_cgroup_v2(machine: Installation) -> None:
    state = machine.at("serving").state()
    assert len(state["containers"]) == 2
    for name in state["containers"]:
        folder = f"{HOLDER}/containers/{name}"
        read = machine.run(f"cd {folder} && cat memory.max cpu.max pids.max").out
        assert read.splitlines() == [str(64 << 20), "50000 100000", "50"]


def test_a_second_run_changes_nothing_and_says_so(machine: Installation) -> None:
    before = machine.at("serving").state()
    done = machine.install(*CONTROL_PLANE)
    assert re.search(r"^nothing to change: Estiba \S+ is installed$", done.err, re.MULTILINE)
    assert [f"== {step}" for step in STEPS] == [
        line for line in done.err.splitlines() if line.startswith("== ")
    ][: len(STEPS)]
    after = machine.state()
    assert after["units"] == before["units"]
    assert after["containers"] == before["containers"]
    ours = ("/opt/", "/etc/", "/usr/", "/var/lib/estiba/launcher", "/var/lib/estiba/agent-pki")
    for path in before["files"].keys() | after["files"].keys():
        if path.startswith(ours) and not path.startswith(COMING_AND_GOING):
            assert after["files"].get(path) == before["files"].get(path), path
    assert things(before)["users"] == things(after)["users"]


def test_only_what_has_changed_is_restarted(machine: Installation) -> None:
    machine.at("serving").run("echo '# changed' >>/etc/systemd/system/estibad.service")
    before = machine.state()
    done = machine.install()
    assert "restarted estibad.service" in done.err
    after = machine.state()
    changed = [name for name in before["units"] if before["units"][name] != after["units"][name]]
    assert changed == ["estibad.service"]
    assert after["containers"] == before["containers"]


def test_containers_survive_whatever_is_restarted_or_loaded_again(machine: Installation) -> None:
    before = machine.at("serving").state()
    for command in (
        "systemctl daemon-reload",
        "systemctl daemon-reexec",
        "systemctl restart estiba-log-pump.service estiba-launcher.service estiba-agent.service",
        "systemctl restart estiba-log-pump.service; systemctl restart estiba-launcher.service",
        "systemctl restart estiba-launcher.service; systemctl restart estiba-log-pump.service",
        "systemctl kill --signal KILL estiba-agent.service estiba-launcher.service",
        f"{SOURCE}/deploy/install.sh --wheels /opt/wheels",
    ):
        machine.run(command)
        assert machine.calm(2)["containers"] == before["containers"], command
    assert _answers(machine).count("hello from") == 2


def test_containers_are_replaced_when_their_holder_is_killed(machine: Installation) -> None:
    before = machine.at("serving").state()["containers"]
    machine.run("systemctl kill --kill-whom main --signal KILL estiba-containers.service")
    eventually(
        lambda: not machine.state()["containers"].keys() & before.keys(),
        within_s=CALM_WITHIN_S,
        what="the former containers are gone",
    )
    machine.calm(2)
    assert _answers(machine).count("hello from") == 2


def _answers(machine: Installation) -> str:
    """Ask each replica."""
    tasks = machine.estiba("service", "ps", "hello")
    addresses = [task["status"]["address"] for task in tasks if "address" in task["status"]]
    return "\n".join(
        machine.run(f"busybox wget -q -O - http://{address}:8080/").out for address in addresses
    )


def test_the_token_stands_in_no_command_line_and_no_log(machine: Installation) -> None:
    machine.at("installed").run("estiba node leave")
    machine.run(f"umask 077; echo {machine.token()} >/root/token")
    machine.run(
        f"echo 'exec {SOURCE}/deploy/install.sh --wheels /opt/wheels --role agent "
        f"--join {ADDRESS} --token '$(cat /root/token) >/root/join.sh"
    )
    done = machine.inside("watch_for.py", "/root/token", "sh", "/root/join.sh", check=False)
    assert done.code == 0, done
    secret = machine.run("cut -d- -f5 /root/token").out.strip()
    logs = f"journalctl --no-pager | grep {secret}; grep -rl {secret} /var/log /etc/estiba"
    assert machine.run(logs, check=False).out == ""


# ------------------------------------------------------------------------------------- upgraded


def test_an_upgrade_from_the_first_version_restarts_programs_and_touches_no_container(
    machine: Installation,
) -> None:
    before = machine.at("former").state()
    former = machine.run("readlink /opt/estiba/current").out.strip()
    machine.run("mkdir -p /opt/estiba/versions/0.0.1-interrupted/bin")
    # The former control plane would not wait as long as an agent takes to start in emulation.
    machine.run(f"systemctl stop estibad.service && {PATIENCE}")
    # Killed when the new version is current, and nothing runs it yet.
    machine.kill_install(line="Services")
    machine.install()
    after = machine.calm(2)
    assert after["containers"] == before["containers"]
    current = machine.run("readlink /opt/estiba/current").out.strip()
    assert current != former
    assert machine.run("readlink /opt/estiba/previous").out.strip() == former
    kept = machine.run("ls -d /opt/estiba/versions/*").out.split()
    assert sorted(kept) == sorted(f"/opt/estiba/{each}" for each in (current, former))
    for name in SERVICES:
        pid = machine.run(f"systemctl show --property MainPID --value {name}").out.strip()
        assert f"/opt/estiba/{current}/" in machine.run(f"tr '\\0' ' ' </proc/{pid}/cmdline").out
    holder = "estiba-containers.service"
    assert before["units"][holder] == after["units"][holder]
    assert _answers(machine).count("hello from") == 2


# ------------------------------------------------------------------------------------- restarted


@pytest.mark.parametrize("way", ["in-good-order", "power-cut"])
def test_after_a_restart_of_the_machine_all_runs_again_and_nothing_stale_is_left(
    machine: Installation, way: str
) -> None:
    machine.at("serving").run("systemctl stop registry.service")
    before = machine.state()
    if way == "power-cut":
        machine.run("sync")
        machine.machine.reset()
    else:
        machine.machine.restart()
    after = machine.calm(2)
    for name in ("cgroups", "tables", "mounts", "ports"):
        assert len(after[name]) == len(before[name]), (before[name], after[name])
    assert len(after["links"]) == len(before["links"]), after["links"]
    assert before["units"].keys() == after["units"].keys()
    assert machine.run("ls /var/lib/estiba/launcher/*.json | wc -l").out.strip() == "2"
    assert machine.run("ls /var/lib/estiba/agent/containers | wc -l").out.strip() == "2"
    assert _answers(machine).count("hello from") == 2


# ------------------------------------------------------------------------------------- removed


@pytest.mark.parametrize("stage", ["programs", "installed", "serving"])
def test_after_an_uninstallation_nothing_is_left_but_debian_packages(
    machine: Installation, stage: str
) -> None:
    before = things(machine.at("packages").state())
    machine.at(stage)
    machine.uninstall()
    machine.run("systemctl stop registry; rm -rf /root/token /root/registry*", check=False)
    assert differences(before, things(machine.state())) == []
    done = machine.uninstall()
    assert "nothing of Estiba is installed here" in done.err


def test_an_uninstallation_that_was_killed_is_finished_by_the_next(machine: Installation) -> None:
    before = things(machine.at("packages").state())
    machine.at("installed")
    for gone in ("/etc/systemd/system/estiba-agent.service", "/etc/estiba"):
        machine.inside(
            "interrupt.py",
            *("gone", gone, "group", f"{SOURCE}/deploy/install.sh", "--uninstall"),
        )
    machine.uninstall()
    machine.run("rm -f /root/token")
    assert differences(before, things(machine.state())) == []


# ------------------------------------------------------------------------------------- as shown


def test_every_command_that_the_pages_show_to_root_works_without_wheels(
    machine: Installation,
) -> None:
    """An index there is not: pip is configured to find in a folder what a machine would fetch."""
    machine.at("bare")
    machine.run(f"printf '[global]\\nno-index = true\\nfind-links = {WHEELS}\\n' >/etc/pip.conf")
    token = ""
    for page in ("README.md", "deploy/OPERATIONS.md"):
        shown = commands_of(ROOT / page)
        assert shown
        for command in shown:
            real = re.sub(r"\bTOKEN\b", token, command).replace("ADDRESS", ADDRESS)
            done = machine.run(f"cd {SOURCE} && {real}", timeout_s=INSTALL_WITHIN_S)
            token = (re.findall(r"estiba-1-\S+", done.out) or [token])[0]


def commands_of(page: Path) -> list[str]:
    """Return the lines after ``#``, root's prompt, of a page's console blocks."""
    blocks = page.read_text().split("```console\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]
