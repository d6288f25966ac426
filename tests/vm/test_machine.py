"""The machines that other tests run on: what is in them, what they do, and that they end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from tests.vm.image import Image, Recipe, apt_sources, build, name_of
from tests.vm.machine import Machine, MachineError

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(
    packages=("etcd-server",), repository=("busybox-static",), commands=("echo 'it' >/x",)
)

STARTS = """\
import sys
from pathlib import Path
from tests.vm.machine import Machine
from tests.vm.image import build
from tests.vm.test_machine import RECIPE
machine = Machine.start(build(RECIPE), Path(sys.argv[1]))
print(machine.pid, flush=True)
machine.run("sleep 1000", timeout_s=1000)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine.start(build(RECIPE), tmp_path_factory.mktemp("machine")) as machine:
        yield machine


def test_an_image_is_built_once() -> None:
    first = build(RECIPE)
    built_ns = first.disk.stat().st_mtime_ns
    assert build(RECIPE).disk.stat().st_mtime_ns == built_ns


def test_another_recipe_or_another_file_in_it_is_another_image(tmp_path: Path) -> None:
    sources = apt_sources("bookworm")
    (tmp_path / "file").write_text("one")
    names = {
        name_of(RECIPE, sources),
        name_of(Recipe(), sources),
        name_of(Recipe(), sources + "deb more"),
        name_of(Recipe(folders=((tmp_path, "/opt/x"),)), sources),
        name_of(Recipe(folders=((tmp_path, "/opt/y"),)), sources),
    }
    (tmp_path / "file").write_text("two")
    names.add(name_of(Recipe(folders=((tmp_path, "/opt/x"),)), sources))
    assert len(names) == 6


def test_a_machine_has_systemd_and_version_2_of_cgroups(machine: Machine) -> None:
    assert machine.run("readlink /sbin/init").out == "/lib/systemd/systemd\n"
    assert machine.run("stat -fc %T /sys/fs/cgroup").out == "cgroup2fs\n"


def test_services_of_packages_are_installed_and_held_back(machine: Machine) -> None:
    said = machine.run("systemctl is-enabled etcd.service", check=False)
    assert (said.code, said.out) == (1, "disabled\n")
    assert machine.run("systemctl is-active etcd.service", check=False).out == "inactive\n"


def test_packages_of_its_repository_can_be_installed_without_a_network(machine: Machine) -> None:
    assert machine.run("busybox", check=False).code == 127
    machine.run("apt-get update && apt-get install --yes busybox-static")
    assert "BusyBox" in machine.run("busybox").out


def test_it_reaches_nothing_and_knows_nothing_of_where_it_was_built(machine: Machine) -> None:
    # QEMU's own address, behind which the host would be.
    said = machine.run("ping -c1 -W1 10.0.2.2; exec 3<>/dev/tcp/10.0.2.2/22", check=False)
    assert said.code != 0
    found = machine.run("grep -rhE '^(deb|URIs:|Acquire)' /etc/apt").out
    assert set(found.splitlines()) == {"deb [trusted=yes] file:/opt/repository ./"}
    assert machine.run("cat /x").out == "it\n"


def test_a_command_tells_its_exit_code_its_output_and_its_errors(machine: Machine) -> None:
    said = machine.run("echo out; echo err >&2; exit 3", check=False)
    assert (said.code, said.out, said.err) == (3, "out\n", "err\n")
    with pytest.raises(MachineError, match=r"exit 4: why\?"):
        machine.run("echo 'why?' >&2; exit 4")
    with pytest.raises(TimeoutError, match="longer than 1 s: sleep 60"):
        machine.run("sleep 60", timeout_s=1)


def test_a_folder_is_carried_in_with_what_is_in_it(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "a/b/program").chmod(0o755)
    machine.copy_in(tmp_path, "/srv/carried")
    assert machine.run("/srv/carried/a/b/program").out == "ran\n"


def test_it_restarts_is_reset_and_keeps_its_disk(machine: Machine) -> None:
    boots = set()
    for again in (machine.restart, machine.reset):
        boots.add(machine.run("cat /proc/sys/kernel/random/boot_id").out)
        machine.run("echo kept >/root/kept; sync")
        again()
        assert machine.run("cat /root/kept").out == "kept\n"
    boots.add(machine.run("cat /proc/sys/kernel/random/boot_id").out)
    assert len(boots) == 3


def test_what_was_saved_is_there_again_with_its_memory(machine: Machine) -> None:
    machine.run("echo before >/run/word")
    machine.save("before")
    machine.run("echo after >/run/word")
    machine.restore("before")
    assert machine.run("cat /run/word").out == "before\n"


def test_it_ends_with_a_test_that_is_killed(tmp_path: Path) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starting.stdout
    with starting:
        machine = Path("/proc", starting.stdout.readline().strip())
        assert machine.exists()
        os.kill(starting.pid, signal.SIGKILL)
    eventually(lambda: not machine.exists(), within_s=10, what="QEMU has ended")


def test_one_that_does_not_boot_says_what_its_console_said(tmp_path: Path) -> None:
    broken, folder = Image(tmp_path / "image"), tmp_path / "machine"
    broken.folder.mkdir()
    folder.mkdir()
    for path in build(RECIPE).folder.iterdir():
        (broken.folder / path.name).symlink_to(path)
    broken.disk.unlink()
    broken.disk.write_bytes(bytes(1 << 20))
    with pytest.raises(MachineError, match=r"no ssh within 40 s: (?s:.*)/dev/vda"):
        Machine.start(broken, folder, boot_within_s=40)
