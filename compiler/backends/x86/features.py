"""CPU features a library may be compiled for, by LLVM's names, and how CPUID shows them.

Source: Intel SDM volume 2A, CPUID; AMD64 APM volume 3, appendix E (lzcnt, leaf 0x80000001).
"""

from intformer.backends.cpu.host import cpuinfo

_YMM, _ZMM = 0x06, 0xE6  # XCR0: SSE + AVX state; the same + opmask, upper halves, zmm16..31
_AMX = 0x60000  # tile configuration and tile data, which Linux gives to those who ask (cpu.c)
_EAX, _EBX, _ECX, _EDX = range(4)

# name -> (leaf, subleaf, register, bit, XCR0 bits the operating system must have set)
CPU_FEATURES: dict[str, tuple[int, int, int, int, int]] = {
    "sse3": (1, 0, _ECX, 0, 0),
    "pclmul": (1, 0, _ECX, 1, 0),
    "ssse3": (1, 0, _ECX, 9, 0),
    "fma": (1, 0, _ECX, 12, _YMM),
    "cx16": (1, 0, _ECX, 13, 0),
    "sse4.1": (1, 0, _ECX, 19, 0),
    "sse4.2": (1, 0, _ECX, 20, 0),
    "movbe": (1, 0, _ECX, 22, 0),
    "popcnt": (1, 0, _ECX, 23, 0),
    "aes": (1, 0, _ECX, 25, 0),
    "avx": (1, 0, _ECX, 28, _YMM),
    "f16c": (1, 0, _ECX, 29, _YMM),
    "bmi": (7, 0, _EBX, 3, 0),
    "avx2": (7, 0, _EBX, 5, _YMM),
    "bmi2": (7, 0, _EBX, 8, 0),
    "avx512f": (7, 0, _EBX, 16, _ZMM),
    "avx512dq": (7, 0, _EBX, 17, _ZMM),
    "adx": (7, 0, _EBX, 19, 0),
    "avx512ifma": (7, 0, _EBX, 21, _ZMM),
    "avx512er": (7, 0, _EBX, 27, _ZMM),
    "avx512cd": (7, 0, _EBX, 28, _ZMM),
    "avx512bw": (7, 0, _EBX, 30, _ZMM),
    "avx512vl": (7, 0, _EBX, 31, _ZMM),
    "avx512vbmi": (7, 0, _ECX, 1, _ZMM),
    "avx512vbmi2": (7, 0, _ECX, 6, _ZMM),
    "gfni": (7, 0, _ECX, 8, 0),
    "vaes": (7, 0, _ECX, 9, _YMM),
    "vpclmulqdq": (7, 0, _ECX, 10, _YMM),
    "avx512vnni": (7, 0, _ECX, 11, _ZMM),
    "avx512bitalg": (7, 0, _ECX, 12, _ZMM),
    "avx512vpopcntdq": (7, 0, _ECX, 14, _ZMM),
    "amx-tile": (7, 0, _EDX, 24, _AMX),
    "amx-int8": (7, 0, _EDX, 25, _AMX),
    "avxvnni": (7, 1, _EAX, 4, _YMM),
    "lzcnt": (0x80000001, 0, _ECX, 5, 0),
}

# Linux's spelling where it is more than "_" for "." or nothing
_LINUX = {"bmi1": "bmi", "abm": "lzcnt", "pclmulqdq": "pclmul", "sse4_1": "sse4.1"}
_LINUX |= {"sse4_2": "sse4.2", "pni": "sse3", "amx_tile": "amx-tile", "amx_int8": "amx-int8"}


def host_features() -> set[str]:
    """Return the LLVM names of this machine's features, as far as /proc/cpuinfo tells."""
    flags = cpuinfo().get("flags", "").split()
    return {_LINUX.get(flag, flag.replace("_", "")) for flag in flags}
