"""How processes end that are no children of ours, for kernels whose pidfds do not tell it.

The kernel's process connector announces the end of every thread on the machine; a filter lets
through only those that were asked for, so the others do not wake us. It speaks only to processes in
the machine's first network, pid and user namespaces. Anywhere else no end is heard of.

Source: Linux driver-api/connector; include/uapi/linux/cn_proc.h; filter.rst, "Structure".
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence

_NETLINK_CONNECTOR = 11
_PROCESSES = 1
_LISTEN = struct.pack("=I", 1)
_EXIT = 0x80000000

# nlmsghdr; cn_msg: group, value, sequence, ack, length, flags.
_HEADER = struct.Struct("=IHHII")
_CONNECTOR = struct.Struct("=IIIIHH")
_NLMSG_DONE = 3
# In what we receive: what happened; of an end pid, tgid, wait status.
_WHAT_AT, _TGID_AT, _STATUS_AT = 36, 56, 60
_MESSAGE_BYTES = 128

_SO_ATTACH_FILTER = 26
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALL = 0xFFFFFFFF
# The kernel takes 4096 instructions, two for each.
_MOST = 2000


class Exits:
    """Ends of the processes named, heard of from its making on."""

    def __init__(self, pids: Sequence[int]) -> None:
        """
        Raises:
            OSError: this kernel does not tell us.
        """
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_CONNECTOR)
        self._status: dict[int, int] = {}
        try:
            self._let_through(pids[:_MOST])
            self._socket.bind((0, _PROCESSES))
            wish = _CONNECTOR.pack(_PROCESSES, 1, 0, 0, len(_LISTEN), 0) + _LISTEN
            size = _HEADER.size + len(wish)
            self._socket.send(_HEADER.pack(size, _NLMSG_DONE, 0, 0, os.getpid()) + wish)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def listen(self) -> None:
        """Take note of what was announced."""
        while True:
            try:
                said = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Something was lost: what we know may not be the last that was said.
                self._status.clear()
                continue
            (tgid,) = struct.unpack_from("=I", said, _TGID_AT)
            (self._status[tgid],) = struct.unpack_from("=I", said, _STATUS_AT)

    def status(self, pid: int) -> int | None:
        """Return the wait status of a process whose pidfd says that it has ended, if known.

        That of the thread that ended last: the first one may have gone before, with a status
        of its own.
        """
        self.listen()
        return self._status.get(pid)

    def _let_through(self, pids: Sequence[int]) -> None:
        code = _filter(pids)
        text = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _filter(pids: Sequence[int]) -> bytes:
    """Assemble: of an end of one of these all of the message, else nothing.

    Words are loaded in network byte order, and the kernel wrote them in its own.
    """
    code = [
        _instruction(_LOAD_WORD, _WHAT_AT),
        _instruction(_JUMP_IF_EQUAL, socket.htonl(_EXIT), 1, 0),
        _instruction(_RETURN, 0),
        _instruction(_LOAD_WORD, _TGID_AT),
    ]
    for pid in pids:
        code += [
            _instruction(_JUMP_IF_EQUAL, socket.htonl(pid), 0, 1),
            _instruction(_RETURN, _ALL),
        ]
    return b"".join([*code, _instruction(_RETURN, 0)])


def _instruction(code: int, value: int, if_equal: int = 0, if_not: int = 0) -> bytes:
    """Return one; a comparison skips so many instructions."""
    return struct.pack("=HBBI", code, if_equal, if_not, value)
