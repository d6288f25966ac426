"""System calls, each asked for in a child of its own and read back."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.kernel import files, pidfd, pipes
from agent.kernel.exits import Exits
from tests.support.waiting import eventually, stretched

SOURCES = Path(__file__).parents[2]


def in_child(code: str, *arguments: str) -> str:
    """Run code in a process that may do to itself what it likes; return what it prints."""
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-E",
            "-B",
            "-c",
            f"import sys; sys.path.insert(0, {str(SOURCES)!r})\n{code}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=stretched(30),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SWAP = """
import os
from agent.kernel import mounts, namespaces
namespaces.leave(namespaces.CLONE_NEWNS)
mounts.set_propagation("/", mounts.MS_PRIVATE)
new_root = sys.argv[1]
if sys.argv[2] == "bind":
    tree = mounts.clone_tree(new_root)
    target = os.open(new_root, os.O_PATH)
    mounts.attach(tree, target, new_root)
try:
    mounts.swap_root(new_root)
except OSError as error:
    print(error.errno, error.filename)
else:
    print(os.listdir("/"), open("/marker").read())
"""


def test_the_root_is_swapped_for_a_mount_and_the_old_one_is_gone(tmp_path: Path) -> None:
    (tmp_path / "marker").write_text("here")
    assert in_child(SWAP, str(tmp_path), "bind") == "['marker'] here\n"


def test_a_folder_that_is_no_mount_cannot_become_the_root(tmp_path: Path) -> None:
    assert in_child(SWAP, str(tmp_path), "plain") == f"{errno.EBUSY} {tmp_path}\n"


def test_a_child_is_born_into_new_namespaces_and_is_process_1() -> None:
    code = """
import os, socket
from agent.kernel import namespaces, pidfd
kinds = namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWNET
pid, descriptor = namespaces.fork_into(kinds)
if pid == 0:
    namespaces.set_hostname("inside")
    namespaces.bring_up_loopback()
    # Bound to the loopback address, which exists only while lo is up.
    socket.create_server(("127.0.0.1", 0))
    os._exit(7 if (os.getpid(), os.uname().nodename) == (1, "inside") else 8)
import select
select.select([descriptor], [], [])
print(os.waitstatus_to_exitcode(pidfd.reap(descriptor)), os.uname().nodename != "inside")
"""
    assert in_child(code) == "7 True\n"


def test_capabilities_are_dropped_from_all_sets() -> None:
    code = """
from agent.kernel import caps, prctl
wanted = caps.mask(["CAP_CHOWN", "CAP_KILL"])
caps.limit_bounding(wanted, caps.last_number())
caps.set_capabilities(wanted)
prctl.forbid_new_privileges()
prctl.set_name("a-name-that-is-too-long")
for line in open("/proc/self/status"):
    if line.startswith(("Cap", "NoNew", "Name")):
        print(line.split()[1])
"""
    both = f"{1 << 0 | 1 << 5:016x}"
    assert in_child(code).split() == ["a-name-that-is-", "0" * 16, both, both, both, "0" * 16, "1"]


def test_errors_name_the_path_and_keep_the_number(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(FileNotFoundError) as refused:
            files.open_beneath(folder, "none", os.O_RDONLY, resolve=files.RESOLVE_BENEATH)
        assert refused.value.filename == "none"
    finally:
        os.close(folder)


def test_no_link_leads_out_of_a_folder(tmp_path: Path) -> None:
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/secret").write_text("of the container")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secret").write_text("of the node")
    (inside / "absolute").symlink_to("/etc/secret")
    (inside / "relative").symlink_to("../../../etc/secret")
    (inside / "magic").symlink_to("/proc/self/root/etc/hostname")
    folder = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    try:
        for name in ("absolute", "relative"):
            found = files.open_beneath(folder, name, os.O_RDONLY, resolve=files.RESOLVE_IN_ROOT)
            with os.fdopen(found) as file:
                assert file.read() == "of the container"
            with pytest.raises(OSError, match="Invalid cross-device link"):
                files.open_beneath(folder, name, os.O_RDONLY, resolve=files.RESOLVE_BENEATH)
            with pytest.raises(OSError, match="Too many levels of symbolic links"):
                files.open_beneath(folder, name, os.O_RDONLY, resolve=files.RESOLVE_NO_SYMLINKS)
        with pytest.raises(FileNotFoundError):
            files.open_beneath(folder, "magic", os.O_RDONLY, resolve=files.RESOLVE_IN_ROOT)
    finally:
        os.close(folder)


def test_descriptors_are_closed_but_those_kept() -> None:
    code = """
import os
from agent.kernel import files
opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
kept = [opened[3], opened[4], opened[17]]
files.close_all_except(kept)
with os.scandir("/proc/self/fd") as entries:
    # The one that reads the folder took a number that was free.
    left = {int(entry.name) for entry in entries} - {min(set(opened) - set(kept))}
print(sorted(set(opened) & left) == kept)
"""
    assert in_child(code) == "True\n"


# ------------------------------------------------------------------ processes


def test_the_end_of_a_child_is_reaped_by_its_descriptor() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "read x; exit 9"], stdin=subprocess.PIPE)
    descriptor = pidfd.open_pidfd(child.pid)
    try:
        assert pidfd.reap(descriptor) is None
        assert pidfd.start_time(child.pid) is not None
        child.communicate(b"go\n")
        # subprocess has reaped it, so it is no child any more.
        with pytest.raises(ChildProcessError):
            pidfd.reap(descriptor)
        assert pidfd.start_time(child.pid) is None
        with pytest.raises(ProcessLookupError):
            pidfd.send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)


@pytest.mark.linux_since(6, 15)
def test_the_kernel_keeps_the_end_of_what_was_reaped() -> None:
    assert _end_of_what_was_reaped() == 9 << 8


@pytest.mark.linux_before(6, 15)
def test_an_older_kernel_does_not_keep_the_end_of_what_was_reaped() -> None:
    assert _end_of_what_was_reaped() is None


def _end_of_what_was_reaped() -> int | None:
    child = subprocess.Popen(["/bin/sh", "-c", "read x; exit 9"], stdin=subprocess.PIPE)
    descriptor = pidfd.open_pidfd(child.pid)
    try:
        child.communicate(b"go\n")
        return pidfd.exit_status(descriptor)
    finally:
        os.close(descriptor)


def test_the_ends_of_the_processes_asked_for_are_announced_and_no_others() -> None:
    children = [
        subprocess.Popen(["/bin/sh", "-c", f"read x; exit {number}"], stdin=subprocess.PIPE)
        for number in range(4)
    ]
    heard = Exits([child.pid for child in children[1:]])
    try:
        for child in children:
            child.communicate(b"go\n")
        assert [heard.status(child.pid) for child in children] == [None, 1 << 8, 2 << 8, 3 << 8]
    finally:
        heard.close()


def test_of_several_threads_the_last_one_tells_how_their_process_ended() -> None:
    code = (
        "import ctypes, os, sys, threading\n"
        "def last():\n"
        "    sys.stdin.read(1)\n"
        "    os._exit(7)\n"
        "threading.Thread(target=last).start()\n"
        "ctypes.CDLL(None).pthread_exit(0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    heard = Exits([child.pid])
    try:
        first = Path(f"/proc/{child.pid}/stat")
        eventually(
            lambda: first.read_text().rpartition(")")[2].split()[0] == "Z",
            within_s=10,
            what="the first thread has ended",
        )
        child.communicate(b"x")
        assert (child.returncode, heard.status(child.pid)) == (7, 7 << 8)
    finally:
        heard.close()


def test_the_end_of_a_zombie_is_read_from_proc() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "kill -9 $$"])
    started = pidfd.start_time(child.pid)
    assert started is not None
    descriptor = pidfd.open_pidfd(child.pid)
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert pidfd.exit_status(descriptor) is None
        assert pidfd.zombie_status(child.pid, started) == signal.SIGKILL
        assert pidfd.zombie_status(child.pid, started + 1) is None
        assert pidfd.reap(descriptor) == signal.SIGKILL
    finally:
        os.close(descriptor)
    child.returncode = -9


def test_a_living_process_has_no_end() -> None:
    descriptor = pidfd.open_pidfd(os.getpid())
    try:
        started = pidfd.start_time(os.getpid())
        assert started is not None
        assert pidfd.exit_status(descriptor) is None
        assert pidfd.zombie_status(os.getpid(), started) is None
    finally:
        os.close(descriptor)


def test_signals_are_read_from_a_descriptor_and_reset_before_exec() -> None:
    code = """
import os, signal
from agent.kernel import signals
descriptor = signals.signal_descriptor((signal.SIGTERM, signal.SIGINT))
os.kill(os.getpid(), signal.SIGTERM)
print(signals.take_signal(descriptor) == signal.SIGTERM)
signals.reset_signals()
for line in open("/proc/self/status"):
    if line.startswith(("SigBlk", "SigIgn", "SigCgt")):
        print(int(line.split()[1], 16))
"""
    assert in_child(code).split() == ["True", "0", "0", "0"]


# ------------------------------------------------------------------ pipes


def test_what_is_copied_stays_and_what_is_moved_goes() -> None:
    first, second, third = (os.pipe2(os.O_NONBLOCK) for _ in range(3))
    try:
        os.write(first[1], b"words")
        assert pipes.copy(first[0], second[1], 100) == 5
        assert pipes.waiting_bytes(first[0]) == pipes.waiting_bytes(second[0]) == 5
        assert pipes.move(first[0], third[1], 100) == 5
        assert pipes.waiting_bytes(first[0]) == 0
        assert os.read(second[0], 100) == os.read(third[0], 100) == b"words"
        with pytest.raises(BlockingIOError):
            pipes.copy(first[0], second[1], 100)
        with pytest.raises(BlockingIOError):
            pipes.move(first[0], third[1], 100)
        os.close(first[1])
        assert pipes.move(first[0], third[1], 100) == 0
    finally:
        for descriptor in (first[0], *second, *third):
            os.close(descriptor)


def test_a_pipe_can_be_made_larger() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        pipes.resize(writer, 1 << 20)
        assert os.write(writer, b"x" * (1 << 20)) == 1 << 20
    finally:
        os.close(reader)
        os.close(writer)


def test_calls_keep_apart_the_errors_of_threads() -> None:
    seen: list[str] = []

    def fail(name: str) -> None:
        folder = os.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            files.open_beneath(folder, name, os.O_RDONLY, resolve=files.RESOLVE_IN_ROOT)
        except OSError as error:
            seen.append(f"{name} {error.filename}")
        finally:
            os.close(folder)

    threads = [threading.Thread(target=fail, args=(f"none{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [f"none{n} none{n}" for n in range(8)]
