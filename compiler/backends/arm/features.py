"""CPU features a library may be compiled for, by LLVM's names, and how the kernel shows them.

Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst and arch/arm64/include/uapi/asm/hwcap.h.
"""

from intformer.backends.cpu.host import cpuinfo

AT_HWCAP, AT_HWCAP2 = 16, 26  # words of the auxiliary vector: linux/auxvec.h

# name -> the numbers of plan_feature in link/c/plan.h: the word, 0, 0, its bit, 0
CPU_FEATURES: dict[str, tuple[int, int, int, int, int]] = {
    "dotprod": (AT_HWCAP, 0, 0, 20, 0),
    "i8mm": (AT_HWCAP2, 0, 0, 13, 0),
}

_LINUX = {"asimd": "neon", "asimddp": "dotprod"}  # Linux's spelling in /proc/cpuinfo


def host_features() -> set[str]:
    """Return the LLVM names of this machine's features, as far as /proc/cpuinfo tells."""
    return {_LINUX.get(flag, flag) for flag in cpuinfo().get("Features", "").split()}
