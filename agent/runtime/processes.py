"""How launcher and log pump run: re-executed small, watched over, one line a message."""

import fcntl
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from agent.kernel import mounts, namespaces, notify, pidfd
from agent.runtime.loop import Loop

_SOURCES = Path(__file__).parents[2]
_LOCK_PATIENCE_S = 5.0


def re_execute(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one that runs ``module.main`` with nothing loaded but itself.

    No site packages (-S), no environment (-E), no byte code written (-B), nothing from
    the working directory (-P). The interpreter is executed through a read-only mount
    of its own file: a container that gets hold of /proc/PID/exe cannot write to it
    (CVE-2019-5736).
    """
    code = (
        f"import sys; sys.path.insert(0, {str(_SOURCES)!r});"
        f" from {module} import main; sys.exit(main())"
    )
    flags = ("-S", "-E", "-B", "-P", "-X", "utf8", "-c", code)
    interpreter = mounts.clone_tree(os.path.realpath(sys.executable))
    mounts.set_attributes(interpreter, mounts.ATTR_RDONLY)
    os.execve(interpreter, [sys.executable, *flags, *arguments], os.environ)  # noqa: S606


def stay_alive(loop: Loop) -> None:
    """Say that the loop turns, twice as often as the service manager demands."""
    period_s = notify.watchdog_s() / 2

    def beat() -> None:
        notify.notify("WATCHDOG=1")
        loop.after(period_s, beat)

    if period_s:
        beat()


def raise_open_files() -> tuple[int, int]:
    """Allow this process all the descriptors it may have; return what it was started with."""
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given[1], given[1]))
    return given


def lock_folder(folder: Path) -> int:
    """Make a folder this process's alone, as long as it lives.

    Raises:
        BlockingIOError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A child that was just forked when its parent was killed lets go at once.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return lock


def in_child(loop: Loop, work: Callable[[], None], done: Callable[[int], None]) -> None:
    """Do slow work in a forked child; call ``done`` with its exit code, 0 if it succeeded."""
    pid, descriptor = namespaces.fork_into(0)
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except OSError as error:
            say(str(error))
        finally:
            os._exit(code)

    def ended() -> None:
        status = pidfd.reap(descriptor)
        loop.forget(descriptor)
        os.close(descriptor)
        done(1 if status is None else status)

    loop.watch(descriptor, ended)


def say(text: str) -> None:
    """Write one line of the program's log to standard error."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    name = Path("/proc/self/comm").read_text().strip()
    sys.stderr.write(f"{stamp}.{int(now % 1 * 1000):03d}Z INFO {name}: {text}\n")
    sys.stderr.flush()
