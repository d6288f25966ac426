"""A machine in software emulation: boot it, run commands in it, carry folders in, stop it.

Its only network is a port of the host's loopback that leads to its ssh. It ends with the thread
that started it, however that ends.

    with Machine.start(build(), folder) as machine:
        machine.copy_in(wheels, "/opt/wheels")
        print(machine.run("uname -r").out)
"""

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from tests.vm.image import Image

BOOT_WITHIN_S = 180.0
STOP_WITHIN_S = 60.0
# Without randomized addresses: QEMU translates code anew for each address that it is mapped at,
# which makes starting a program take three times as long.
KERNEL_ARGUMENTS = "root=/dev/vda rw console=ttyS0 quiet mitigations=off norandmaps"
# Ends a program with the thread that started it.
MORTAL = ("setpriv", "--pdeathsig", "KILL")
SSH = ("ssh", "-F", "none", "-o", "ControlPath=ssh.sock", "-o", "BatchMode=yes")


class MachineError(Exception):
    """A machine does not do what it should; tells what it said."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command in a machine ended."""

    code: int
    out: str
    err: str


class Machine:
    """One running machine. Use `start`; as a context manager it ends the machine."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self._open = ExitStack()
        self._qemu: subprocess.Popen[str]
        self._ssh: subprocess.Popen[bytes] | None = None
        self._port = 0

    @classmethod
    def start(
        cls,
        image: Image,
        folder: Path,
        *,
        cpus: int = 2,
        memory_mib: int = 2048,
        disks: Sequence[Path] = (),
        boot_within_s: float = BOOT_WITHIN_S,
    ) -> "Machine":
        """Boot a machine from an image; return when it can be spoken to.

        Args:
            image: stays as it is; what the machine writes goes to ``folder``.
            folder: an empty folder for the machine's disk, its console's output and its sockets.
            cpus: how many processors it has.
            memory_mib: how much memory it has.
            disks: raw file systems it may read: /dev/vdb and on.
            boot_within_s: how long it may take.

        Raises:
            MachineError: it does not come up.
        """
        machine = cls(image, folder)
        try:
            machine._boot(cpus, memory_mib, disks)
            machine.wait(within_s=boot_within_s)
        except BaseException:
            machine.kill()
            raise
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._qemu.pid

    @property
    def console(self) -> str:
        """What the machine wrote to its serial console."""
        return (self.folder / "console.log").read_text(errors="replace")

    # ------------------------------------------------------------------ its life

    def _boot(self, cpus: int, memory_mib: int, disks: Sequence[Path]) -> None:
        disk = self.folder / "disk.qcow2"
        subprocess.run(
            [
                *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"),
                *("-b", str(self.image.disk), str(disk)),
            ],
            check=True,
        )
        drives = [f"file={disk},if=virtio,format=qcow2,cache=unsafe"]
        drives += [f"file={each},if=virtio,format=raw,readonly=on" for each in disks]
        errors = self._open.enter_context((self.folder / "qemu.log").open("wb"))
        self._qemu = subprocess.Popen(
            [
                *MORTAL,
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-qmp", "stdio"),
                # Never KVM, though the device may be there: see the README.
                *("-machine", "q35", "-cpu", "Nehalem", "-accel", "tcg,thread=multi,tb-size=1024"),
                *("-smp", str(cpus), "-m", str(memory_mib), "-serial", "file:console.log"),
                *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
                *(
                    "-append",
                    KERNEL_ARGUMENTS,
                    "-object",
                    "rng-random,id=rng,filename=/dev/urandom",
                ),
                *("-device", "virtio-rng-pci,rng=rng", "-device", "virtio-net-pci,netdev=net"),
                *("-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
                *(word for drive in drives for word in ("-drive", drive)),
            ],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self._read_answer("QMP")
        self._qmp("qmp_capabilities")
        # TCP[HOST_FORWARD]  12  127.0.0.1 40001  10.0.2.15 22  0 0
        shown = self._monitor("info usernet")
        self._port = next(
            int(line.split()[3]) for line in shown.splitlines() if "HOST_FORWARD" in line
        )

    def wait(self, *, within_s: float = BOOT_WITHIN_S) -> None:
        """Wait until the machine answers over ssh and has started all its services."""
        deadline = time.monotonic() + within_s
        while not self._connected():
            if self._qemu.poll() is not None:
                raise MachineError(f"it ended: {(self.folder / 'qemu.log').read_text()}")
            if time.monotonic() > deadline:
                raise MachineError(f"no ssh within {within_s:.0f} s: {self.console[-2000:]}")
            time.sleep(0.5)
        state = self.run("systemctl is-system-running --wait", check=False).out.strip()
        if state != "running":
            failed = self.run("systemctl --failed --no-legend --plain", check=False).out
            raise MachineError(f"it is {state}, not running: {failed}")

    def restart(self) -> None:
        """Restart it in good order, and wait for it."""
        before = self._boot_id()
        self.run("systemctl reboot", check=False)
        deadline = time.monotonic() + BOOT_WITHIN_S
        # It may still answer while it goes down, and then breaks off.
        while (now := self._boot_id()) in {before, ""}:
            if time.monotonic() > deadline:
                raise MachineError(f"it did not restart: {self.console[-2000:]}")
            if not now:
                self._disconnect()
                self.wait()

    def reset(self) -> None:
        """Restart it as if the power had failed, and wait for it."""
        self._qmp("system_reset")
        self._disconnect()
        self.wait()

    def save(self, name: str) -> None:
        """Keep the machine as it is, memory and all, for `restore`."""
        self._change(f"savevm {name}")

    def restore(self, name: str) -> None:
        """Have it be again what `save` kept under a name. With the clock source hpet its time goes
        on from there; by its time-stamp counter much time has passed.
        """
        self._disconnect()
        self._change(f"loadvm {name}")
        self.wait()

    def stop(self) -> None:
        """Shut it down in good order."""
        self.run("systemctl poweroff", check=False)
        self._disconnect()
        self._qemu.wait(STOP_WITHIN_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, if it runs; also safe after `stop`."""
        self._disconnect()
        if hasattr(self, "_qemu"):
            self._qemu.kill()
            self._qemu.communicate()
        self._open.close()

    def _boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id", check=False).out

    # ------------------------------------------------------------------ speaking to it

    def run(
        self,
        command: str,
        *,
        stdin: IO[bytes] | None = None,
        timeout_s: float = 120.0,
        check: bool = True,
    ) -> Done:
        """Run a shell command as root. Exit code 255 also means that the connection ended.

        Raises:
            MachineError: it failed, and ``check`` was asked for.
            TimeoutError: it took longer than ``timeout_s``.
        """
        try:
            done = subprocess.run(
                [*self._client(), command],
                cwd=self.folder,
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"longer than {timeout_s:.0f} s: {command}") from error
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode:
            raise MachineError(f"{command}: exit {done.returncode}: {err}{out}")
        return Done(done.returncode, out, err)

    def follow(self, command: str, *, timeout_s: float) -> int:
        """Run a shell command as root, its output on ours; return its exit code.

        Raises:
            TimeoutError: it took longer than ``timeout_s``.
        """
        try:
            return subprocess.run(
                [*self._client(), command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"longer than {timeout_s:.0f} s: {command}") from error

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a folder's content into a folder of the machine, which is made if need be."""
        packing = subprocess.Popen(
            ["tar", "--create", "--directory", str(source), "."], stdout=subprocess.PIPE
        )
        with packing:
            self.run(
                f"mkdir -p {target} && tar -x --no-same-owner -C {target}", stdin=packing.stdout
            )
        if packing.returncode:
            raise MachineError(f"tar of {source} ended with {packing.returncode}")

    def _client(self) -> list[str]:
        """Return the command that speaks over the connection of `_connected`, and else fails."""
        return [*SSH, "-o", "ProxyCommand=false", "machine"]

    def _connected(self) -> bool:
        """Try to have a connection, over which all commands run."""
        self._disconnect()
        log = self._open.enter_context((self.folder / "ssh.log").open("wb"))
        self._ssh = subprocess.Popen(
            [
                *(*MORTAL, *SSH, "-o", "ControlMaster=yes", "-N", "-T"),
                *("-p", str(self._port), "-l", "root", "-i", str(self.image.key)),
                *("-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={self.image.known_hosts}"),
                *("-o", "HostKeyAlias=machine", "-o", "ConnectTimeout=20", "127.0.0.1"),
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        while self._ssh.poll() is None:
            if (self.folder / "ssh.sock").exists():
                return True
            time.sleep(0.05)
        return False

    def _disconnect(self) -> None:
        if self._ssh:
            self._ssh.kill()
            self._ssh.wait()
            self._ssh = None
        (self.folder / "ssh.sock").unlink(missing_ok=True)

    def _change(self, command: str) -> None:
        """Have QEMU's monitor do what it says nothing about unless it fails."""
        if said := self._monitor(command).strip():
            raise MachineError(f"{command}: {said}")

    def _monitor(self, command: str) -> str:
        return str(self._qmp("human-monitor-command", {"command-line": command}))

    def _qmp(self, command: str, arguments: dict[str, str] | None = None) -> Any:
        """Have QEMU carry out a command; return what it answers."""
        assert self._qemu.stdin
        message = {"execute": command, "arguments": arguments or {}}
        with suppress(BrokenPipeError):
            self._qemu.stdin.write(json.dumps(message) + "\n")
            self._qemu.stdin.flush()
        return self._read_answer("return")

    def _read_answer(self, name: str) -> Any:
        """Read on until a message with a field, over events."""
        assert self._qemu.stdout
        for line in self._qemu.stdout:
            message = json.loads(line)
            if "error" in message:
                raise MachineError(f"QEMU refuses: {message['error']['desc']}")
            if name in message:
                return message[name]
        raise MachineError(f"QEMU ended: {(self.folder / 'qemu.log').read_text()}")
