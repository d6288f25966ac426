"""Build the disk of a Debian machine from the packages of this machine's own apt sources.

An image is made once and kept in a folder outside the clone, under a name made of all that went
into it. Nothing is mounted on the host; the builder works in namespaces that end with it.

    image = build(Recipe())
    image = build(Recipe(packages=(), repository=("etcd-server",), commands=("useradd ana",)))
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fcntl import LOCK_EX, flock
from pathlib import Path

CACHE = Path(os.environ.get("ESTIBA_VM_CACHE", "/var/cache/estiba-vm"))
BUILD_WITHIN_S = 900.0
KEEP_UNUSED_S = 7 * 24 * 3600.0

# What makes a machine that boots, is reached by ssh and runs Python.
BASE = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "kmod", "udev", "systemd-sysv"),
    *("dbus", "libpam-systemd", "openssh-server", "sudo", "procps", "iproute2", "iputils-ping"),
    *("ca-certificates", "python3", "python3-venv"),
)
# What an Estiba node and control plane want of Debian.
ESTIBA = (
    *("etcd-server", "docker-registry", "prometheus", "slirp4netns", "nftables"),
    *("util-linux", "busybox-static"),
)
REPOSITORY = "/opt/repository"
# Never started by themselves in a machine of the tests: services of packages, and what wants
# a network or wakes at an hour of the day.
HELD_BACK = (
    *("etcd.service", "docker-registry.service", "prometheus.service", "apt-daily.timer"),
    *("apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "logrotate.timer", "man-db.timer", "systemd-timesyncd.service"),
)
# An initial file system of what the disk needs alone: a machine in software emulation unpacks it.
INITRAMFS = "MODULES=list\nCOMPRESS=zstd\n"
INITRAMFS_MODULES = "virtio_pci\nvirtio_blk\next4\n"
# By its kernel name, so that the virtual interfaces of containers are left alone.
NETWORK = "[Match]\nName=en*\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv6\n"


class ImageError(Exception):
    """No image can be built here; says what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that goes into an image, beside the packages' own content."""

    packages: tuple[str, ...] = ESTIBA
    """Installed beside BASE, services held back."""
    repository: tuple[str, ...] = ()
    """Not installed: these and what they need lie in REPOSITORY, an apt source of the machine."""
    folders: tuple[tuple[Path, str], ...] = ()
    """Copied in: a folder of this machine, and where it is in the new one."""
    commands: tuple[str, ...] = ()
    """Shell commands run in the new root file system at the end."""
    suite: str = "bookworm"
    disk_mib: int = 6144


@dataclass(frozen=True, slots=True)
class Image:
    """A built image. Its disk is never written to: a machine has a layer of its own on it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """A raw ext4 file system, without partitions and boot loader."""
        return self.folder / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.img"

    @property
    def key(self) -> Path:
        """The private key that root of the machine accepts."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """The machine's own key, under the name ``machine``."""
        return self.folder / "known_hosts"


def build(recipe: Recipe) -> Image:
    """Return the image of a recipe; builds it if this machine has not got it yet.

    Raises:
        ImageError: it cannot be built here.
    """
    sources = apt_sources(recipe.suite)
    folder = CACHE / name_of(recipe, sources)
    with _locked(CACHE):
        _forget_unused(CACHE)
        if folder.exists():
            os.utime(folder)
        else:
            with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as work:
                _build(recipe, sources, Path(work))
                (Path(work) / "image").rename(folder)
    return Image(folder)


def name_of(recipe: Recipe, sources: str) -> str:
    """Return the name of an image: another for everything that would make another image."""
    files = [
        (target, str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest())
        for folder, target in recipe.folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    parts = [asdict(replace(recipe, folders=())), files, sources, Path(__file__).read_text()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def apt_sources(suite: str) -> str:
    """Return the Debian sources of this machine, for another suite if need be.

    Raises:
        ImageError: this machine's apt knows no Debian archive.
    """
    fields = "$(ORIGIN) $(CODENAME) $(RELEASE) $(COMPONENT) $(REPO_URI)"
    listed = _said("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    lines = set()
    for line in listed.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == "Debian" and words[3] == "main":
            here = words[1].partition("-")[0]
            lines.add(f"deb {words[4]} {words[2].replace(here, suite)} main")
    if not lines:
        raise ImageError("apt knows no Debian archive here: run apt-get update on a Debian")
    return "\n".join(sorted(lines)) + "\n"


def apt_options() -> str:
    """Return how this machine's apt reaches its sources: proxies, time-outs, checks of dates."""
    wanted = ("Acquire::http", "Acquire::Retries", "Acquire::Check-", "Acquire::ForceIPv")
    dumped = _said("apt-config", "dump").splitlines()
    return "".join(f"{line}\n" for line in dumped if line.startswith(wanted))


def _build(recipe: Recipe, sources: str, work: Path) -> None:
    image = work / "image"
    image.mkdir(mode=0o700)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(image / "key"))
    (work / "sources.list").write_text(sources)
    (work / "apt.conf").write_text(apt_options())
    for name, content in _files(image).items():
        path = work / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for folder, target in recipe.folders:
        shutil.copytree(folder, work / "files" / target.lstrip("/"), dirs_exist_ok=True)
    hooks = work / "hooks"
    hooks.mkdir()
    for name, script in {"early": EARLY, "last": _last(recipe)}.items():
        (hooks / name).write_text(f"#!/bin/sh\nset -eu\nfiles={work}/files\nroot=$1\n{script}")
        (hooks / name).chmod(0o755)
    root = work / "root"
    _run(
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"),
        f"--aptopt={work / 'apt.conf'}",
        f"--include={','.join((*BASE, *recipe.packages))}",
        f"--essential-hook={hooks / 'early'}",
        f"--customize-hook={hooks / 'last'}",
        *(recipe.suite, str(root), str(work / "sources.list")),
    )
    if recipe.repository:
        _index(root / REPOSITORY.lstrip("/"))
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), image / "vmlinuz")
    shutil.copy(next((root / "boot").glob("initrd.img-*")), image / "initrd.img")
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (image / "known_hosts").write_text(f"machine {host_key}")
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", str(root)),
        *(str(image / "disk.img"), f"{recipe.disk_mib}M"),
    )


def _files(image: Path) -> dict[str, str]:
    return {
        "etc/initramfs-tools/conf.d/machine": INITRAMFS,
        "etc/initramfs-tools/modules": INITRAMFS_MODULES,
        "etc/systemd/network/80-machine.network": NETWORK,
        "etc/hostname": "machine\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 machine\n::1 localhost\n",
        "root/.ssh/authorized_keys": (image / "key.pub").read_text(),
    }


# Before the kernel's package builds the initial file system. Also keep what nobody reads out.
EARLY = """
cp -a "$files/." "$root/"
chmod 700 "$root/root/.ssh"
mkdir -p "$root/etc/dpkg/dpkg.cfg.d"
printf 'path-exclude=/usr/share/%s/*\\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/short"
"""


def _last(recipe: Recipe) -> str:
    script = f"""
chroot "$root" systemctl enable systemd-networkd.service ssh.service
chroot "$root" systemctl disable {" ".join(HELD_BACK)} 2>/dev/null || true
chroot "$root" systemctl mask systemd-networkd-wait-online.service
"""
    if recipe.repository:
        script += f"""
chroot "$root" apt-get --yes --no-install-recommends --download-only install \\
  {" ".join(recipe.repository)}
mkdir -p "$root{REPOSITORY}"
cp "$root"/var/cache/apt/archives/*.deb "$root{REPOSITORY}/"
"""
    for command in recipe.commands:
        script += f"chroot \"$root\" /bin/sh -euc '{_quoted(command)}'\n"
    # How the host reaches its sources is no part of the image.
    script += """
cd "$root/etc"
rm -rf apt/apt.conf.d/99mmdebstrap apt/sources.list.d resolv.conf
mkdir apt/sources.list.d
"""
    source = f"deb [trusted=yes] file:{REPOSITORY} ./" if recipe.repository else ""
    return script + f'echo "{source}" >"$root/etc/apt/sources.list"\n'


def _index(repository: Path) -> None:
    """Write the list of a folder's packages that apt reads."""
    with (repository / "Packages").open("w") as packages:
        for path in sorted(repository.glob("*.deb")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            packages.write(_said("dpkg-deb", "--field", str(path)))
            packages.write(f"Filename: ./{path.name}\nSize: {path.stat().st_size}\n")
            packages.write(f"SHA256: {digest}\n\n")


def _quoted(command: str) -> str:
    return command.replace("'", "'\\''")


def _forget_unused(cache: Path) -> None:
    """Delete what nobody has asked for in a week, and what a killed builder left."""
    for folder in cache.iterdir():
        unused_s = time.time() - folder.stat().st_mtime
        if folder.is_dir() and (unused_s > KEEP_UNUSED_S or folder.name.startswith("building-")):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one at a time build; the lock goes with its holder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def _said(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_WITHIN_S,
    )
    if done.returncode:
        raise ImageError(f"{argv[0]} ended with {done.returncode}: {done.stdout[-4000:]}")
