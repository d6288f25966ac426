"""Write what the launcher needs of one run: `config.json` and the files that name the container."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.runtime.spec import Bind, ContainerSettings, LogSettings, build_spec
from agent.tasks.admission import limits_of
from agent.tasks.folders import Folders, container_id
from agent.tasks.ports import Image
from agent.tasks.results import signal_number
from estiba.model import task_name
from estiba.v1 import dispatcher_pb2 as dispatch

STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"
DEFAULT_STOP_SIGNAL = "SIGTERM"
DEFAULT_LOG_BYTES = 10 * 1024 * 1024
DEFAULT_LOG_FILES = 2
HOSTNAME_MAX = 64

LOCAL_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class Bundles:
    def __init__(self, folders: Folders, *, nameservers: Sequence[str]) -> None:
        self._folders = folders
        self._nameservers = tuple(nameservers)

    def write(self, assignment: dispatch.Assignment, run: int, image: Image) -> Path:
        """Write the bundle of one run, and make the folder that its output goes to.

        Raises:
            OSError: the disk refuses.
            ValueError: a limit is below what the kernel accepts; `admission` says it first.
        """
        bundle = self._folders.bundle(container_id(assignment.task_id, run))
        # Its upper folder shows what the container wrote to whoever may pass through here.
        bundle.mkdir(mode=0o700)
        self._folders.task_logs(assignment.task_id).mkdir(mode=0o700, exist_ok=True)
        hostname = hostname_of(assignment)
        for name, content in (
            ("hostname", f"{hostname}\n"),
            ("resolv.conf", "".join(f"nameserver {each}\n" for each in self._nameservers)),
            ("hosts", LOCAL_HOSTS),
        ):
            path = bundle / name
            path.write_text(content)
            path.chmod(0o644)
        settings = settings_of(assignment, run, image, folders=self._folders, bundle=bundle)
        (bundle / "config.json").write_text(json.dumps(build_spec(settings)))
        return bundle

    def write_hosts(self, assignment: dispatch.Assignment, run: int, address: str) -> None:
        """Name the container's own address, which is known only once it is connected."""
        if address:
            # Appended to, not replaced: the container has mounted this very file.
            path = self._folders.bundle(container_id(assignment.task_id, run)) / "hosts"
            with path.open("a") as hosts:
                hosts.write(f"{address}\t{hostname_of(assignment)}\n")

    def stop_signal(self, assignment: dispatch.Assignment, run: int) -> int:
        """Return the signal that asks this run to end: the service's, the image's, SIGTERM."""
        path = self._folders.bundle(container_id(assignment.task_id, run)) / "config.json"
        try:
            annotations = json.loads(path.read_bytes()).get("annotations", {})
            return signal_number(annotations.get(STOP_SIGNAL_ANNOTATION, DEFAULT_STOP_SIGNAL))
        except (OSError, ValueError):
            return signal_number(DEFAULT_STOP_SIGNAL)

    def delete(self, container: str) -> None:
        """Delete a bundle, and what the container wrote outside its volumes."""
        shutil.rmtree(self._folders.bundle(container), ignore_errors=True)


def hostname_of(assignment: dispatch.Assignment) -> str:
    """Return the name it was given, else the task's, as far as the kernel takes it."""
    given = assignment.template.container.hostname
    return (given or task_name(assignment.service_name, assignment.slot))[:HOSTNAME_MAX]


def settings_of(
    assignment: dispatch.Assignment, run: int, image: Image, *, folders: Folders, bundle: Path
) -> ContainerSettings:
    """Combine what the service says with what its image says; the service has the last word."""
    container = assignment.template.container
    logs = assignment.template.logs
    config = image.config
    # As Docker does it: a new entry point does not get the image's arguments.
    entrypoint = tuple(container.command) or tuple(config.entrypoint)
    default_args = () if container.command else tuple(config.command)
    return ContainerSettings(
        args=(*entrypoint, *(tuple(container.args) or default_args)),
        layers=tuple(str(layer) for layer in image.layers),
        hostname=hostname_of(assignment),
        env=(*config.env, *container.env),
        cwd=container.workdir or config.workdir or "/",
        user=container.user or config.user,
        log=LogSettings(
            path=str(folders.run_log(assignment.task_id, run)),
            max_size_bytes=logs.max_size_bytes or DEFAULT_LOG_BYTES,
            max_files=logs.max_files or DEFAULT_LOG_FILES,
        ),
        limits=limits_of(assignment.template.resources.limits),
        binds=tuple(
            Bind(source=str(bundle / name), destination=f"/etc/{name}")
            for name in ("hostname", "hosts", "resolv.conf")
        ),
        annotations={
            **container.labels,
            STOP_SIGNAL_ANNOTATION: container.stop_signal
            or config.stop_signal
            or DEFAULT_STOP_SIGNAL,
        },
    )
