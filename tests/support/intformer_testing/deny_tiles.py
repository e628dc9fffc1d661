"""A kernel that keeps AMX tiles from this process, for tests of what libraries do then."""

import ctypes
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
ARCH_PRCTL, REQUEST_PERMISSION = 158, 0x1023
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # classic BPF
EPERM, ALLOW = 0x00050001, 0x7FFF0000


def deny_tiles() -> None:
    """Let arch_prctl(ARCH_REQ_XCOMP_PERM) fail with EPERM from now on (seccomp, x86-64)."""
    steps = [
        (LOAD, 0, 0, 0),  # number of the system call
        (JUMP_IF_EQUAL, 0, 3, ARCH_PRCTL),
        (LOAD, 0, 0, 16),  # low half of its first argument
        (JUMP_IF_EQUAL, 0, 1, REQUEST_PERMISSION),
        (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, header):
        raise OSError(ctypes.get_errno(), "seccomp")
