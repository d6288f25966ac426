"""Run a command and kill it at a line that it prints, or when there is a file, or none any more.

interrupt.py line|file|gone WHAT group|alone COMMAND...; run in the machine. Prints what the command
said; exits with 0 if it was killed, with 1 if it ended before. ``alone`` leaves what the command
has started at work.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

LOOK_EVERY_S = 0.02


def main() -> None:
    kind, what, whom, *command = sys.argv[1:]
    process = subprocess.Popen(
        command, stdout=sys.stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def kill() -> None:
        (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGKILL)

    def look() -> None:
        while process.poll() is None and any(Path("/").glob(what.lstrip("/"))) != (kind == "file"):
            time.sleep(LOOK_EVERY_S)
        kill()

    if kind != "line":
        threading.Thread(target=look, daemon=True).start()
    assert process.stderr
    for line in process.stderr:
        sys.stderr.write(line)
        if kind == "line" and line.rstrip() == what:
            kill()
            break
    sys.exit(process.wait() != -signal.SIGKILL)


if __name__ == "__main__":
    main()
