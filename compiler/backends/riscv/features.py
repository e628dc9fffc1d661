"""CPU features a library may be compiled for, by LLVM's names, and how the kernel shows them.

Source: Linux, arch/riscv/include/uapi/asm/hwcap.h and Documentation/arch/riscv/uabi.rst: AT_HWCAP
has a bit for each single-letter extension; v is version 1.0 of the vectors.
"""

import re

from intformer.backends.cpu.host import cpuinfo

AT_HWCAP = 16  # word of the auxiliary vector: linux/auxvec.h

# name -> the numbers of plan_feature in link/c/plan.h: the word, 0, 0, its bit, 0
CPU_FEATURES: dict[str, tuple[int, int, int, int, int]] = {
    "v": (AT_HWCAP, 0, 0, ord("v") - ord("a"), 0),
}


def host_features() -> set[str]:
    """Return this machine's extensions of one letter, as far as /proc/cpuinfo tells."""
    letters = re.match(r"rv64([a-z]*)", cpuinfo().get("isa", ""))
    return set(letters[1]) if letters else set()
