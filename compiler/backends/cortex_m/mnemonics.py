"""The Thumb instructions an integer-only program may hold, named as capstone names them.

Names are without conditions and widths. What is in no list here is refused: a new instruction is
read about first, then added. Every name of the floating-point unit starts with a v.
"""

import re

from intformer.backends import allow_list
from intformer.backends.allow_list import words

GENERAL = words("""
    adc add adr and asr b bfc bfi bic bkpt bl blx bx cbnz cbz clz cmn cmp eor hint it ldm ldr ldrb
    ldrd ldrh ldrsb ldrsh lsl lsr mla mls mov movs movt movw mrs msr mul mvn nop orn orr pop push
    rbit rev rev16 revsh ror rrx rsb sbc sbfx sdiv smlal smull stm stmdb str strb strd strh sub svc
    sxtb sxth tbb tbh tst teq udf udiv ubfx umlal umull uxtb uxth
""")
DSP = words("""
    pkhbt pkhtb qadd qadd16 qadd8 qdadd qdsub qsub qsub16 qsub8 sadd16 sadd8 sel shadd16 shadd8
    smlabb smlabt smlad smladx smlalbb smlalbt smlald smlaldx smlaltb smlaltt smlatb smlatt smlawb
    smlawt smlsd smlsdx smmla smmlar smmls smmlsr smmul smmulr smuad smuadx smulbb smulbt smultb
    smultt smulwb smulwt smusd smusdx ssat ssat16 ssub16 ssub8 sxtab sxtab16 sxtah sxtb16 uadd16
    uadd8 uhadd16 uhadd8 umaal usat usat16 usub16 usub8 uxtab uxtab16 uxtah uxtb16
""")

ALLOWED = GENERAL | DSP

# Why a name is refused; the first match gives the reason. A name that matches none is unknown.
DENIED = {"floating-point unit": re.compile(r"f?v\w+|f(ld|st|mr)\w+")}


def fault(mnemonic: str) -> str | None:
    """Return why an integer-only program may not hold this instruction, None where it may."""
    return allow_list.fault(mnemonic, ALLOWED, DENIED)
