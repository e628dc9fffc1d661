"""Keeps a process at the VNNI level on a CPU that has more.

The usual environment caps, and a seccomp filter under which the kernel refuses the permission that
every user of AMX must ask for: a runtime that ignores its cap dies instead of giving AMX figures.
"""

import ctypes
import struct

VNNI_ENVIRONMENT = {
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
    "DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1",  # AVX-512 with VNNI
    "ATEN_CPU_CAPABILITY": "avx512",
}
_ARCH_PRCTL, _REQUEST_PERMISSION = 158, 0x1023  # x86-64; ARCH_REQ_XCOMP_PERM
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2  # of prctl
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF
_REFUSE, _ALLOW = 0x00050001, 0x7FFF0000  # errno EPERM


def deny_amx() -> None:
    """Make arch_prctl(ARCH_REQ_XCOMP_PERM, ...) fail in this process and what it starts."""
    number, argument = 0, 16  # offsets in struct seccomp_data; the low half of the argument
    steps = (
        (_LOAD, 0, 0, number),
        (_JUMP_EQUAL, 0, 3, _ARCH_PRCTL),
        (_LOAD, 0, 0, argument),
        (_JUMP_EQUAL, 0, 1, _REQUEST_PERMISSION),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("H6xQ", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _SET_SECCOMP, _FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
