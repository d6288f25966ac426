"""Remember what tags meant when they were last pulled, across restarts."""

import json
import threading
from pathlib import Path

from agent.images.files import write_durably
from agent.images.reference import is_digest


class Names:
    """Full references with a tag, and the digest each had. All in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: dict[str, str] = {}
        self._writing = threading.Lock()

    def load(self) -> None:
        """Read the file, if there is one. Blocks."""
        try:
            document = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            # Without it, the next pull asks the registry: nothing is lost.
            return
        if isinstance(document, dict):
            digests = {str(name): str(digest) for name, digest in document.items()}
            self._digests = {name: one for name, one in digests.items() if is_digest(one)}

    def get(self, reference: str) -> str | None:
        return self._digests.get(reference)

    def put(self, reference: str, digest: str) -> None:
        """Remember, and write it down if it is news. Blocks."""
        with self._writing:
            if self._digests.get(reference) == digest:
                return
            self._digests = {**self._digests, reference: digest}
            write_durably(self._path, json.dumps(self._digests, indent=1, sort_keys=True))
