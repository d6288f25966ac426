"""What Prometheus' own tool says of our metrics and of our configuration."""

import subprocess
from pathlib import Path


def complaints_about(exposition: bytes) -> str:
    """Run ``promtool check metrics``; return everything it prints, "" when it finds nothing."""
    return _run("check", "metrics", text=exposition)


def complaints_about_configuration(path: Path) -> str:
    """Run ``promtool check config``; return what it prints when it does not accept the file."""
    return _run("check", "config", str(path), only_faults=True)


def _run(*words: str, text: bytes = b"", only_faults: bool = False) -> str:
    done = subprocess.run(["promtool", *words], input=text, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    if done.returncode == 0:
        return "" if only_faults else said
    return said or f"exit code {done.returncode}"
