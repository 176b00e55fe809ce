"""One tc program: hands a packet to the egress device, its Ethernet addresses looked up by the kernel.

    r1 = index of the egress device; r2 = r3 = r4 = 0; call bpf_redirect_neigh; exit

The second way from the inject TAP to the wire, where `mirred` is not to be had.  Loading it needs CAP_BPF
(or CAP_SYS_ADMIN), which a container rarely has.  It is six instructions, written out: no compiler, no
library, nothing pinned; it goes when the filter that holds it does.

Heads up: read bpf(2) and bpf-helpers(7) before changing this file.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from overlay.errors import DeviceError

# From the specification: bpf(2), <linux/bpf.h>, each architecture's <asm/unistd.h>
SYSTEM_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386}
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_SCHED_CLS = 3
MOVE, CALL, EXIT = 0xB7, 0x85, 0x95  # opcodes: dst = immediate; call a helper; return r0
REDIRECT_NEIGH = 152  # helper number; Linux ≥ 5.10
ATTRIBUTE_LENGTH = 128

_Instruction = struct.Struct("=BBhi")


def load_redirect(index: int) -> int:
    """A descriptor of the program that redirects to the device of this index.  The caller's to close.

    Raises:
        DeviceError: EPERM, no CAP_BPF; ENOSYS, no bpf here; EINVAL, a kernel without the helper.
    """
    number = SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise DeviceError("bpf", errno.ENOSYS, why=f"its number is not known on {platform.machine()}")
    arguments = [(MOVE, 1, index), *((MOVE, register, 0) for register in (2, 3, 4))]
    steps = [*arguments, (CALL, 0, REDIRECT_NEIGH), (EXIT, 0, 0)]
    program = ctypes.create_string_buffer(
        b"".join(_Instruction.pack(opcode, register, 0, value) for opcode, register, value in steps)
    )
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQ", BPF_PROG_TYPE_SCHED_CLS, len(steps), ctypes.addressof(program), ctypes.addressof(licence)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(attributes, ATTRIBUTE_LENGTH)
    descriptor: int = libc.syscall(number, BPF_PROG_LOAD, room, ATTRIBUTE_LENGTH)
    if descriptor < 0:
        raise DeviceError("bpf", ctypes.get_errno(), why="loading a tc program needs CAP_BPF")
    return descriptor
