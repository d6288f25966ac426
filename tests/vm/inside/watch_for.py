"""Run a command, and see that a text stands in no process' command line once it has begun to print.

watch_for.py FILE COMMAND...; run in the machine. FILE holds the text. Exits as the command does, or
with 99 if the text was seen.
"""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

LOOK_EVERY_S = 0.05
SEEN = 99


def holders(text: bytes) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if text in path.read_bytes():
                found.append(str(path))
    return found


def main() -> None:
    text = Path(sys.argv[1]).read_bytes().strip()
    # The command's own words are in a file, or this program would be the first to show the text.
    process = subprocess.Popen(sys.argv[2:], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    sys.stderr.write(process.stderr.readline())
    seen: list[str] = []

    def look() -> None:
        while process.poll() is None:
            seen.extend(holders(text))
            time.sleep(LOOK_EVERY_S)

    looking = threading.Thread(target=look)
    looking.start()
    for line in process.stderr:
        sys.stderr.write(line)
    looking.join()
    sys.exit(SEEN if seen else process.wait())


if __name__ == "__main__":
    main()
