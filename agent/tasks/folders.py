"""Where what the agent keeps lies below its state folder. Names only; no I/O but what they say."""

from dataclasses import dataclass
from pathlib import Path

LOGS_OF_RUNS_KEPT = 5


def container_id(task_id: str, run: int) -> str:
    return f"{task_id}-r{run}"


def task_of(container: str) -> tuple[str, int]:
    """Return task id and run; run 0 for a container that is none of ours."""
    task_id, dash, run = container.rpartition("-r")
    return (task_id, int(run)) if dash and run.isdecimal() else (container, 0)


@dataclass(frozen=True, slots=True)
class Folders:
    state: Path

    @property
    def assignments(self) -> Path:
        return self.state / "assignments"

    @property
    def journals(self) -> Path:
        return self.state / "tasks"

    @property
    def containers(self) -> Path:
        return self.state / "containers"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def bundle(self, container: str) -> Path:
        return self.containers / container

    def task_logs(self, task_id: str) -> Path:
        return self.logs / task_id

    def run_log(self, task_id: str, run: int) -> Path:
        return self.task_logs(task_id) / f"{run}.log"

    def make(self) -> None:
        """Make them, for root alone: containers' files and what they print are nobody else's."""
        self.state.mkdir(parents=True, exist_ok=True)
        # Whoever made it before us may have let others in: assignments hold environments,
        # and the folders of containers set-id programs.
        self.state.chmod(0o700)
        for folder in (self.journals, self.containers, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def forget_old_runs(task_logs: Path) -> None:
    """Delete the logs of all but the last five runs that wrote any."""
    runs: dict[int, list[Path]] = {}
    for file in task_logs.glob("*.log*"):
        number = file.name.partition(".")[0]
        if number.isdecimal():
            runs.setdefault(int(number), []).append(file)
    for run in sorted(runs)[:-LOGS_OF_RUNS_KEPT]:
        for file in runs[run]:
            file.unlink(missing_ok=True)
