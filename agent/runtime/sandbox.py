"""The child that becomes a container: it sets itself up, waits for the word, executes.

Runs after `fork_into`, so it must end in exec or ``os._exit``. It tells its parent over
a socket: once that it is ready, or one fault and nothing more. The socket closes by
itself when the program has been executed.
"""

import errno
import gc
import json
import os
import resource
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from agent.kernel import caps, files, keys, namespaces, prctl, signals
from agent.runtime.bundle import Bundle
from agent.runtime.errors import ContainerError
from agent.runtime.rootfs import enter_root
from agent.runtime.users import Identity, UserError, resolve_user

START = b"start"
EXIT_FAULT = 125

NAMESPACES = (
    namespaces.CLONE_NEWPID
    | namespaces.CLONE_NEWNET
    | namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
)

_MAX_ACCOUNTS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Streams:
    """What becomes standard input, output and error."""

    stdin: int
    stdout: int
    stderr: int

    def descriptors(self) -> tuple[int, int, int]:
        return (self.stdin, self.stdout, self.stderr)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the launcher prepared for the child."""

    # Descriptors of cgroup.procs, to be entered last.
    entrances: Sequence[int]
    cgroups: Sequence[tuple[str, Path]]
    streams: Streams
    # Soft and hard limit of open files for the container.
    open_files: tuple[int, int]


def run(bundle: Bundle, around: Surroundings, parent: socket.socket) -> NoReturn:
    """Set up the container in this process, wait for START, execute its command."""
    with Child(parent):
        last_capability = caps.last_number()
        identity = _set_up(bundle, around, parent)
        parent.send(json.dumps({"ready": asdict(identity)}).encode())
        if parent.recv(64) != START:
            os._exit(EXIT_FAULT)
        with stage("command"):
            become(bundle, identity, last_capability)
            execute(bundle.args, bundle.env, identity)


class Child:
    """The frame of a forked child: tells its parent of a fault, and never returns."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent

    def __enter__(self) -> None:
        gc.disable()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> NoReturn:
        try:
            if isinstance(error, ContainerError):
                fault = {"stage": error.stage, "message": error.message}
                self._parent.send(json.dumps(fault).encode())
            elif error is not None:
                # No traceback: printing one would read the container's files.
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(EXIT_FAULT)


def forget_imports() -> None:
    """Make it impossible to import anything from the container's files."""
    sys.meta_path.clear()
    sys.path.clear()


def _set_up(bundle: Bundle, around: Surroundings, parent: socket.socket) -> Identity:
    streams = around.streams
    files.close_all_except((parent.fileno(), *around.entrances, *streams.descriptors()))
    prctl.set_name("estiba-init")
    os.setsid()
    keys.leave_session_keyring()
    os.umask(0)
    with stage("namespaces"):
        if bundle.hostname:
            namespaces.set_hostname(bundle.hostname)
        namespaces.bring_up_loopback()
        set_sysctls(bundle)
        set_oom_score(bundle.oom_score_adj)
    forget_imports()
    with stage("root"):
        enter_root(bundle, around.cgroups)
    with stage("user"):
        identity = identify(bundle.user)
    with stage("workdir", f"working directory {bundle.cwd}"):
        os.umask(0o022)
        make_working_directory(bundle.cwd)
    with stage("root"):
        for descriptor in (streams.stdout, streams.stderr):
            # So that a program that is not root can open /dev/stdout.
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.fchown(descriptor, identity.uid, identity.gid)
        use_streams(streams)
        use_own_null()
        resource.setrlimit(resource.RLIMIT_NOFILE, around.open_files)
    enter_cgroup(around.entrances)
    with stage("namespaces"):
        # After the cgroup was entered: a cgroup namespace begins where its maker is.
        namespaces.leave(namespaces.CLONE_NEWCGROUP)
    return identity


def set_sysctls(bundle: Bundle) -> None:
    """Write the parameters of this process's own network namespace."""
    for name, value in bundle.sysctls.items():
        if not name.startswith("net.") or "/" in name:
            raise ContainerError(
                "bundle", f"sysctl {name} would change the node, not the container"
            )
        Path("/proc/sys", *name.split(".")).write_text(value)


def set_oom_score(wanted: int) -> None:
    """Undo what the launcher's own protection would hand down. Source: proc(5), oom_score_adj."""
    path = Path("/proc/self/oom_score_adj")
    if int(path.read_text()) != wanted:
        path.write_text(str(wanted))


def make_working_directory(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ContainerError("workdir", f"working directory {path} is not a folder") from error


def identify(user: str) -> Identity:
    """Look a user up in /etc/passwd and /etc/group of this process's root."""
    try:
        return resolve_user(user, _accounts("/etc/passwd"), _accounts("/etc/group"))
    except UserError as error:
        raise ContainerError("user", str(error)) from error


def _accounts(path: str) -> str:
    """Return the text of a file of the image; none if it is absent or no regular file."""
    try:
        # Looked at first, since to open a device of an image may have effects by itself.
        # Nothing runs in the container yet that could put another file in its place.
        if not Path(path).is_file():
            return ""
        with Path(path).open("rb") as file:
            return file.read(_MAX_ACCOUNTS_BYTES).decode(errors="replace")
    except OSError:
        return ""


def enter_cgroup(entrances: Sequence[int]) -> None:
    """Move this process into the container's cgroups, whose cgroup.procs files are given.

    This late, set-up costs the container neither memory nor processor time.
    """
    with stage("cgroup"):
        for descriptor in entrances:
            os.write(descriptor, b"0")
            os.close(descriptor)


def use_streams(streams: Streams) -> None:
    for target, source in enumerate(streams.descriptors()):
        os.dup2(source, target)


def use_own_null() -> None:
    """Replace the node's null device, where it is a stream, by the container's own.

    Who has a descriptor of the node's may change who can open it, for all of the node.
    """
    own = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    for target in range(3):
        if stat.S_ISCHR(os.fstat(target).st_mode):
            os.dup2(own, target)
    os.close(own)


def become(bundle: Bundle, identity: Identity, last_capability: int) -> None:
    """Give up what the container must not have, and become its user in its folder."""
    # As root, since Docker lets a user start in a folder that is closed to him.
    with stage("workdir", f"working directory {bundle.cwd}"):
        os.chdir(bundle.cwd)
    caps.limit_bounding(bundle.capabilities, last_capability)
    os.setgroups(identity.groups)
    # To another user than root this leaves no capability at all.
    needed = caps.mask(("CAP_SETUID", "CAP_SETGID"))
    caps.set_capabilities(bundle.capabilities | needed)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if identity.uid == 0:
        caps.set_capabilities(bundle.capabilities)
    if bundle.no_new_privileges:
        prctl.forbid_new_privileges()


def execute(args: Sequence[str], env: Sequence[str], identity: Identity) -> NoReturn:
    """Execute a command found as a shell would find it; return only by ContainerError."""
    variables = dict(entry.split("=", 1) for entry in env if "=" in entry)
    variables.setdefault("HOME", identity.home)
    signals.reset_signals()
    files.close_all_at_exec()
    name = args[0]
    tried: OSError | None = None
    for path in _candidates(name, variables.get("PATH", "")):
        try:
            os.execve(path, list(args), variables)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError) as error:
            if Path(path).exists():
                raise ContainerError(
                    "command", f"{path} needs an interpreter that the image does not have"
                ) from error
        except OSError as error:
            tried = tried or error
            if error.errno != errno.EACCES:
                break
    raise ContainerError("command", _refusal(name, tried))


def _refusal(name: str, error: OSError | None) -> str:
    if error is None:
        return f"command not found: {name}"
    if error.errno == errno.EACCES:
        return f"permission denied: {error.filename or name}"
    if error.errno == errno.ENOEXEC:
        return f"{error.filename or name} is not a program that this machine can execute"
    return f"{error.filename or name}: {error.strerror}"


def _candidates(name: str, path: str) -> list[str]:
    if "/" in name:
        return [name]
    return [f"{folder or '.'}/{name}" for folder in path.split(":")]


@contextmanager
def stage(name: str, subject: str = "") -> Iterator[None]:
    """Turn what the kernel refuses into a fault of this stage."""
    try:
        yield
    except OSError as error:
        about = subject or error.filename
        reason = error.strerror or str(error)
        if not subject and not about:
            raise ContainerError(name, reason) from error
        raise ContainerError(name, f"{about}: {reason}") from error
