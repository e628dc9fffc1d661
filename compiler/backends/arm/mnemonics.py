"""The AArch64 instructions an integer-only program may hold, named as capstone names them.

What is in no list here is refused: a new instruction is read about first, then added. fmov copies
bits. fneg flips the sign bit and rounds nothing: LLVM makes the constant 2^63 of lanes with it.
"""

import re

from intformer.backends import allow_list
from intformer.backends.allow_list import words


def with_upper(text: str) -> frozenset[str]:
    """Names that exist for the lower half of a register, and with a 2 for the upper half."""
    return words(text) | {f"{name}2" for name in words(text)}


GENERAL = words("""
    adc adcs add adds adr adrp and ands asr asrv bfc bfi bfxil bic bics bti ccmn ccmp cinc cinv
    cls clz cmn cmp cneg csel cset csetm csinc csinv csneg dmb dsb eon eor extr isb lsl lslv lsr
    lsrv madd mneg mov movk movn movz mrs msub mul mvn neg negs ngc ngcs nop orn orr prfm prfum
    rbit ret rev rev16 rev32 ror rorv sbc sbcs sbfiz sbfx sdiv smaddl smnegl smsubl smulh smull
    sub subs svc sxtb sxth sxtw tst ubfiz ubfx udiv umaddl umnegl umsubl umulh umull uxtb uxth
    yield hint autiasp paciasp udf brk
    b bl blr br cbnz cbz tbnz tbz
    b.al b.cc b.cs b.eq b.ge b.gt b.hi b.hs b.le b.lo b.ls b.lt b.mi b.ne b.pl b.vc b.vs
    clrex ldar ldarb ldarh ldaxp ldaxr ldaxrb ldaxrh ldnp ldp ldpsw ldr ldrb ldrh ldrsb ldrsh
    ldrsw ldur ldurb ldurh ldursb ldursh ldursw ldxp ldxr ldxrb ldxrh stlr stlrb stlrh stlxp
    stlxr stlxrb stlxrh stnp stp str strb strh stur sturb sturh stxp stxr stxrb stxrh
""")

MOVES = words("""
    dup ext fmov fneg ins ld1 ld1r ld2 ld2r ld3 ld3r ld4 ld4r movi mvni rev64 smov st1 st2 st3
    st4 tbl tbx trn1 trn2 umov uzp1 uzp2 zip1 zip2
""")

INTEGER_VECTORS = words("""
    abs addp addv bif bit bsl cmeq cmge cmgt cmhi cmhs cmle cmlt cmtst cnt mla mls not pmul
    saba sabd sadalp saddlp saddlv shadd shl shsub sli smax smaxp smaxv smin sminp sminv sqabs
    sqadd sqdmulh sqneg sqrdmulh sqrshl sqshl sqshlu sqsub srhadd sri srshl srshr srsra sshl sshr
    ssra suqadd uaba uabd uadalp uaddlp uaddlv uhadd uhsub umax umaxp umaxv umin uminp uminv uqadd
    uqrshl uqshl uqsub urhadd urshl urshr ursra ushl ushr usqadd usra
""") | with_upper("""
    addhn pmull raddhn rshrn rsubhn sabal sabdl saddl saddw shll shrn smlal smlsl smull sqdmlal
    sqdmlsl sqdmull sqrshrn sqrshrun sqshrn sqshrun sqxtn sqxtun sshll ssubl ssubw subhn sxtl
    uabal uabdl uaddl uaddw umlal umlsl umull uqrshrn uqshrn uqxtn ushll usubl usubw uxtl xtn
""")

# beyond ARMv8.0: mnemonic -> CPU feature, by LLVM's name
FEATURES = {
    **dict.fromkeys(("sdot", "udot"), "dotprod"),
    "crc32x": "crc",
    **dict.fromkeys(("smmla", "ummla", "usmmla", "usdot", "sudot"), "i8mm"),
}

ALLOWED = GENERAL | MOVES | INTEGER_VECTORS | FEATURES.keys()

# Why a name is refused; the first match gives the reason. A name that matches none is unknown.
DENIED = {
    "float conversion": re.compile(r"fcvt\w*|bfcvt\w*|fjcvtzs|[su]cvtf"),
    "float comparison": re.compile(r"fc(cmp|cmpe|mp|mpe|meq|mge|mgt|mle|mlt)|fac(ge|gt|le|lt)"),
    "float arithmetic": re.compile(r"f\w+|bfdot|bfml\w+|bfmmla|ursqrte|urecpe"),
}


def fault(mnemonic: str) -> str | None:
    """Return why an integer-only program may not hold this instruction, None where it may."""
    return allow_list.fault(mnemonic, ALLOWED, DENIED)
