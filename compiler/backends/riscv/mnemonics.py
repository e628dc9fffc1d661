"""The RISC-V instructions an integer-only program may hold.

Scalars are named as capstone names them, without its shorthands (li, mv, ret); vectors as in
vectors.py. What is in no list here is refused: a new instruction is read about first, then added.
Moves to and from float registers are refused too: no integer work needs them.
"""

import re

from intformer.backends import allow_list
from intformer.backends.allow_list import words

# RV64I and M
GENERAL = words("""
    add addi addiw addw and andi auipc beq bge bgeu blt bltu bne div divu divuw divw ebreak ecall
    fence fence.tso jal jalr lb lbu ld lh lhu lui lw lwu mul mulh mulhsu mulhu mulw or ori rem remu
    remuw remw sb sd sh sll slli slliw sllw slt slti sltiu sltu sra srai sraiw sraw srl srli srliw
    srlw sub subw sw unimp xor xori
""")
COMPRESSED = words("""
    c.add c.addi c.addi16sp c.addi4spn c.addiw c.addw c.and c.andi c.beqz c.bnez c.ebreak c.j c.jalr
    c.jr c.ld c.ldsp c.li c.lui c.lw c.lwsp c.mv c.nop c.or c.sd c.sdsp c.slli c.srai c.srli c.sub
    c.subw c.sw c.swsp c.unimp c.xor
""")
ATOMIC = frozenset(
    f"{name}.{width}{order}"
    for name in words("""
        amoadd amoand amomax amomaxu amomin amominu amoor amoswap amoxor lr sc
    """)
    for width in "wd"
    for order in ("", ".aq", ".rl", ".aq.rl", ".aqrl")
)


def in_forms(forms: str, text: str) -> frozenset[str]:
    """Names in each of some forms: operands are vectors (vv), a register (vx) or a number (vi)."""
    return frozenset(f"{name}.{form}" for name in words(text) for form in forms.split())


INTEGER_VECTORS = (
    in_forms("vv vx vi", """
        vadd vand vor vxor vrgather vadc vmadc vmerge vmseq vmsne vmsleu vmsle vsaddu vsadd vsll
        vsrl vsra vssrl vssra vnsrl vnsra vnclipu vnclip vslideup
    """)
    | in_forms("vv vx", """
        vsub vminu vmin vmaxu vmax vsbc vmsbc vmsltu vmslt vssubu vssub vsmul vaaddu vaadd vasubu
        vasub vdivu vdiv vremu vrem vmulhu vmul vmulhsu vmulh vmadd vnmsub vmacc vnmsac vwaddu vwadd
        vwsubu vwsub vwaddu.w vwadd.w vwsubu.w vwsub.w vwmulu vwmulsu vwmul vwmaccu vwmacc vwmaccsu
        vmv
    """)
    | in_forms("vx vi", "vrsub vmsgtu vmsgt vslidedown")
    | in_forms("vx", "vslide1up vslide1down vwmaccus")
    | in_forms("vv", """
        vwredsumu vwredsum vredsum vredand vredor vredxor vredminu vredmin vredmaxu vredmax vext
        vmask vcompress vmandn vmand vmor vmxor vmorn vmnand vmnor vmxnor
    """)
    | in_forms("vi", "vsmul")  # vmv1r.v and the like
)  # fmt: skip
_BITS, _FIELDS = (8, 16, 32, 64), ("", *(f"seg{n}" for n in range(2, 9)))
MEMORY = frozenset(
    f"v{way}{kind}{bits}"
    for way in "ls"
    for fields in _FIELDS
    for kind in (f"{fields}e", f"s{fields}e", f"ux{fields}ei", f"ox{fields}ei")
    for bits in _BITS
) | {f"v{way}{count}r" for way in "ls" for count in (1, 2, 4, 8)}
VECTORS = INTEGER_VECTORS | MEMORY | words("vlm vsm vsetvl csr.vxrm csr.vl csr.vtype csr.vlenb")

ALLOWED = GENERAL | COMPRESSED | ATOMIC | VECTORS

# Why a name is refused; the first match gives the reason. A name that matches none is unknown.
DENIED = {
    "float conversion": re.compile(r"fcvt\..*|vfcvt"),
    "float comparison": re.compile(r"(feq|flt|fle|fclass)\..*|vfcmp"),
    "float arithmetic": re.compile(
        r"f(n?madd|n?msub|add|sub|mul|div|sqrt|min|max|sgnj[nx]?)\..*|vfop"
    ),
    "float move": re.compile(r"fmv\..*|f[ls][hwdq]|c\.f[ls][wd](sp)?|vfmv"),
}


def fault(mnemonic: str) -> str | None:
    """Return why an integer-only program may not hold this instruction, None where it may."""
    return allow_list.fault(mnemonic, ALLOWED, DENIED)
