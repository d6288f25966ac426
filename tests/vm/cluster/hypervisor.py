"""libvirt in namespaces of the test's own, and a box for Vagrant to start machines from.

All files lie in memory below SCRATCH, which the mount namespace takes with it; bridges, taps and
the programs go with the network and the process namespace. So nothing outlives the test, even if
it is killed.
"""

import ctypes
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.image import ESTIBA, Image, Recipe

SCRATCH = Path("/mnt")
SCRATCH_SIZE = "10g"
URI = "qemu:///system"
BOX = "estiba-test"
LIBVIRT_WITHIN_S = 60.0

CLONE_NEWNET = 0x40000000

# Where libvirt writes: all of it becomes a folder of SCRATCH.
WRITTEN = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")

QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
"""
LIBVIRTD_CONF = """\
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""

# The user that Vagrant expects in a box, who may become root; the key is the image's.
BOX_COMMANDS = (
    "useradd --create-home --shell /bin/bash vagrant",
    "echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/vagrant",
    "install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh",
    "install -m 600 -o vagrant -g vagrant /root/.ssh/authorized_keys /home/vagrant/.ssh/",
)
RECIPE = Recipe(packages=(*ESTIBA, "rsync"), commands=BOX_COMMANDS)

# The settings for software emulation. The project's Vagrantfile is merged over this one.
BOX_VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.ssh.private_key_path = "{key}"
  config.vm.boot_timeout = 900
  config.vm.provider "libvirt" do |libvirt|
    libvirt.driver = "qemu"
    libvirt.machine_type = "q35"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "Nehalem"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
    libvirt.disk_driver cache: "unsafe"
    libvirt.kernel = "{kernel}"
    libvirt.initrd = "{initrd}"
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 quiet mitigations=off norandmaps"
  end
end
"""


class HypervisorError(Exception):
    """libvirt does not start; tells what it said."""


def use_scratch() -> None:
    """Have a folder in memory. For a mount namespace of one's own alone."""
    _run("mount", "-t", "tmpfs", "-o", f"size={SCRATCH_SIZE},mode=0700", "scratch", str(SCRATCH))


def leave_host() -> None:
    """Have an empty network, and write nothing of libvirt's to the host from here on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("ip", "link", "set", "lo", "up")
    for target in WRITTEN:
        folder = SCRATCH / "host" / target.lstrip("/")
        folder.mkdir(parents=True)
        Path(target).mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(folder), target)
    Path("/var/lib/libvirt/images").mkdir()
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)


@contextmanager
def libvirt() -> Iterator[None]:
    """Have libvirtd run."""
    log = SCRATCH / "libvirtd.log"
    with log.open("wb") as said:
        daemon = subprocess.Popen(["libvirtd"], stdout=said, stderr=said)
    deadline = time.monotonic() + LIBVIRT_WITHIN_S
    while not virsh_answers():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise HypervisorError(f"libvirtd does not serve: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)


def virsh_answers() -> bool:
    words = ["virsh", "--connect", URI, "version"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def power_off(domain: str) -> None:
    """Take the power from a machine."""
    _run("virsh", "--connect", URI, "destroy", domain)


def make_box(image: Image) -> Path:
    """Make a box whose disk is no more than a reference to the image's."""
    folder = SCRATCH / "box"
    folder.mkdir()
    disk = folder / "box.img"
    size = f"{RECIPE.disk_mib}M"
    _run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        str(image.disk),
        str(disk),
        size,
    )
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": RECIPE.disk_mib // 1024}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    settings = BOX_VAGRANTFILE.format(key=image.key, kernel=image.kernel, initrd=image.initrd)
    (folder / "Vagrantfile").write_text(settings)
    box = SCRATCH / "test.box"
    with tarfile.open(box, "w") as packed:
        for path in sorted(folder.iterdir()):
            packed.add(path, path.name)
    shutil.rmtree(folder)
    return box


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise HypervisorError(f"{' '.join(argv)}: {done.stderr.strip()}")
