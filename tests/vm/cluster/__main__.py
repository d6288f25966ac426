"""Three machines by the project's own Vagrantfile, in namespaces that end with this program.

python -m tests.vm.cluster      from the root of the clone, as root
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.footprint import Footprint
from tests.vm.cluster.hypervisor import (
    RECIPE,
    SCRATCH,
    leave_host,
    libvirt,
    make_box,
    use_scratch,
)
from tests.vm.cluster.machines import Machine
from tests.vm.cluster.story import Story
from tests.vm.cluster.vagrant import ROOT, Vagrant
from tests.vm.image import Image, build

NETWORK = "192.168.56"
SETTINGS = {"ESTIBA_AGENTS": "2", "ESTIBA_CPUS": "1", "ESTIBA_MEMORY": "768"}
# The first process of a namespace must collect those whose parent has ended: a shell does.
FIRST = ("sh", "-c", '"$@"; exit $?', "sh")
APART = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
LEFT_WITHIN_S = 30.0


def main() -> int:
    if sys.argv[1:2] == ["apart"]:
        return apart(Image(Path(sys.argv[2])))
    image = build(RECIPE)
    before = Footprint.take()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    words = (*APART, *FIRST, sys.executable, "-m", "tests.vm.cluster", "apart", str(image.folder))
    running = subprocess.Popen(words, cwd=ROOT)
    try:
        code = running.wait()
    finally:
        running.kill()
        running.wait()
    left = before.left_behind(within_s=LEFT_WITHIN_S)
    if left:
        sys.stderr.write("left behind:\n  " + "\n  ".join(left) + "\n")
    return code or int(bool(left))


def apart(image: Image) -> int:
    """Run everything; in namespaces of our own."""
    began = time.monotonic()
    use_scratch()
    wheels = fill(ROOT, "wheels")
    newer = fill(newer_version(), "newer-wheels")
    leave_host()
    with libvirt():
        vagrant = Vagrant.with_box(make_box(image), {**SETTINGS, "ESTIBA_WHEELS": str(wheels)})
        story = Story(
            vagrant,
            Machine("control-plane", f"{NETWORK}.10", image),
            (
                Machine("agent-1", f"{NETWORK}.11", image),
                Machine("agent-2", f"{NETWORK}.12", image),
            ),
            wheels,
            next(newer.glob("estiba-*.whl")),
            began,
        )
        story.tell()
    sys.stdout.write("\n" + "\n".join(story.told))
    sys.stdout.write(f"\n\n{len(story.told)} passed, 0 failed\n")
    return 0


def fill(root: Path, name: str) -> Path:
    folder = SCRATCH / name
    environment = os.environ | {"TMPDIR": str(SCRATCH)}
    subprocess.run([root / "deploy/wheels.sh", folder, "3.11"], env=environment, check=True)
    return folder


def newer_version() -> Path:
    """Copy the clone, with a later number of its version."""
    copy = SCRATCH / "newer"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    project = copy / "pyproject.toml"
    text = re.sub(r'(?m)^version = "(.*)"$', r'version = "\1+newer"', project.read_text(), count=1)
    project.write_text(text)
    return copy


if __name__ == "__main__":
    sys.exit(main())
