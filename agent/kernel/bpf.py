"""The device filter of cgroup version 2, which exists only as a BPF program."""

import ctypes
import os
import struct
from collections.abc import Sequence

from agent.kernel.libc import check, system_call

_SYSTEM_CALL = {"x86_64": 321, "aarch64": 280}
"""bpf(2) is older than the numbers that all architectures share."""

_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6

_ACCESS_MKNOD = 1
_DEVICE_CHARACTER = 2

# Instruction codes. Source: Linux bpf/standardization/instruction-set.
_LOAD_WORD = 0x61
_AND = 0x57
_SHIFT_RIGHT = 0x77
_MOVE = 0xB7
_COPY = 0xBF
_JUMP_IF_NOT = 0x55
_EXIT = 0x95


def allow_devices(cgroup: int, devices: Sequence[tuple[int, int | None]]) -> None:
    """Let processes below a cgroup open only these character devices, and make any node.

    Done again, it replaces what was there.

    Args:
        cgroup: descriptor of the cgroup's folder.
        devices: (major, minor); no minor stands for all.

    Source: bpf(2); BPF_PROG_TYPE_CGROUP_DEVICE in include/uapi/linux/bpf.h, struct
    bpf_cgroup_dev_ctx; since Linux 4.15.
    """
    call = system_call(
        _SYSTEM_CALL[os.uname().machine], ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    )
    text = _device_program(devices)
    code = ctypes.create_string_buffer(text, len(text))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    load = struct.pack(
        "=IIQQIIQII",
        *(_PROG_TYPE_CGROUP_DEVICE, len(text) // 8),
        *(ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0),
    )
    program = check(call(_PROG_LOAD, load, len(load)), "device filter")
    try:
        attach = struct.pack("=IIII", cgroup, program, _ATTACH_CGROUP_DEVICE, 0)
        check(call(_PROG_ATTACH, attach, len(attach)), "device filter")
    finally:
        os.close(program)


def _device_program(devices: Sequence[tuple[int, int | None]]) -> bytes:
    """Assemble: r2 = type, r3 = access, r4 = major, r5 = minor; r0 = 1 allows."""
    code = [
        _instruction(_LOAD_WORD, target=2, source=1, offset=0),
        _instruction(_COPY, target=3, source=2),
        _instruction(_AND, target=2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, target=3, value=16),
        _instruction(_LOAD_WORD, target=4, source=1, offset=4),
        _instruction(_LOAD_WORD, target=5, source=1, offset=8),
        # Making a node alone opens nothing.
        *_answer_if([(3, _ACCESS_MKNOD)]),
    ]
    for major, minor in devices:
        wanted = [(2, _DEVICE_CHARACTER), (4, major)]
        if minor is not None:
            wanted.append((5, minor))
        code += _answer_if(wanted)
    code += [_instruction(_MOVE, target=0, value=0), _instruction(_EXIT)]
    return b"".join(code)


def _answer_if(equal: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return "if all these registers hold these values, allow": else it falls through."""
    code = []
    for index, (register, value) in enumerate(equal):
        past = len(equal) - index + 1
        code.append(_instruction(_JUMP_IF_NOT, target=register, offset=past, value=value))
    return [*code, _instruction(_MOVE, target=0, value=1), _instruction(_EXIT)]


def _instruction(
    code: int, *, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)
