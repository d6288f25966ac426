"""Enter another network namespace for the length of one call, and be sure to come back.

Only for the network thread: a thread's namespace decides where every socket it opens
lives, and the event loop's thread must never be elsewhere.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from agent.kernel.namespaces import CLONE_NEWNET, enter

log = logging.getLogger(__name__)

_OWN = "/proc/thread-self/ns/net"


class Namespace:
    """A network namespace, kept alive by a file descriptor."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.fd).st_ino

    @classmethod
    def of_this_thread(cls) -> Self:
        return cls(_OWN)

    @classmethod
    def of_process(cls, pid: int) -> Self:
        """Open a process's namespace.

        Raises:
            OSError: there is no such process.
        """
        return cls(f"/proc/{pid}/ns/net")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def inside(namespace: Namespace, *, home: Namespace) -> Iterator[None]:
    """Be in ``namespace`` for the block, then in ``home`` again.

    A thread that could not come back would set up the node's network inside a
    container, so then the process ends at once; it is started again, and no container
    depends on it.

    Raises:
        OSError: the namespace could not be entered.
    """
    enter(namespace.fd, CLONE_NEWNET)
    try:
        yield
    finally:
        try:
            enter(home.fd, CLONE_NEWNET)
            came_back = Path(_OWN).stat().st_ino == home.inode
        except OSError as fault:
            log.critical("cannot leave a container's network namespace: %s", fault)
            came_back = False
        if not came_back:
            os.abort()
