"""The SASS instructions (Turing to Hopper) that an integer-only kernel may hold.

What is in no list here is refused: a new instruction is read about first, then added. Names are
those nvdisasm prints, up to the first dot; what follows the dots is judged by `fault`.

Moves are integer work whatever pipe they take. ptxas is known to load a constant by
`HFMA2.MMA Rd, -RZ, RZ, imm, imm`: 0 * 0 + constant, whose bits are the integer wanted. No datum
enters, so this one form counts as a move and is counted apart; any other register in it is refused.
FSEL and FMNMX, which also copy bits (but flush or order them as floats), are refused: no integer
kernel was seen to need them.
"""

import re

from intformer.backends import allow_list
from intformer.backends.allow_list import words

INTEGER = words("""
    BMSK BREV FLO IABS IADD IADD3 IADD32I IDP IDP4A IMAD IMNMX IMUL IMUL32I ISCADD ISCADD32I ISETP
    ISAD LEA LOP LOP3 LOP32I POPC SHF SHL SHR SGXT VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX
    VIMNMX3 VHMNMX
    UBMSK UBREV UFLO UIADD3 UIMAD UIMNMX UISETP ULEA ULOP ULOP3 ULOP32I UPOPC USHF USHL USHR USGXT
    UVIADD UVIMNMX
""")

MOVES = words("""
    CS2R CS2UR MOV MOV32I MOVM PLOP3 PRMT P2R R2P R2UR S2R S2UR SEL SHFL
    UMOV UPLOP3 UPRMT UP2UR UR2UP USEL UCLEA
""")

# integer matrix products: mma.sync, and wgmma of Hopper
MATRIX = words("IMMA IGMMA")

MEMORY = words("""
    ALD AST ATOM ATOMG ATOMS CCTL CCTLL CCTLT ERRBAR FENCE LD LDC LDG LDGDEPBAR LDGSTS LDL LDS
    LDSM LDU MEMBAR RED REDG REDS ST STG STL STS STSM UCGABAR_WAIT ULDC
    MATCH REDUX QSPC VOTE VOTEU
""")

CONTROL = words("""
    ACQBULK BAR BMOV BPT BRA BREAK BRX BRXU BSSY BSYNC CALL DEPBAR ELECT EXIT JMP JMX JMXU KILL
    LEPC NANOSLEEP NOP PREEXIT RET RPCMOV RTT WARPGROUP WARPSYNC YIELD
""")

ALLOWED = INTEGER | MOVES | MATRIX | MEMORY | CONTROL

# Why a name is refused; the first match gives the reason. A name that matches none is unknown.
DENIED = {
    "float conversion": re.compile(r"U?(I2F|I2FP|F2I|F2IP|F2F|F2FP|FRND|I2HP|I2H|H2I)"),
    "float special function": re.compile(r"MUFU|RRO"),
    "float matrix product": re.compile(r"[HDQ]MMA|[HDQ]GMMA"),
    "float selection or comparison": re.compile(
        r"U?(FSEL|FMNMX\d?|FCMP|FSET|FSETP|FCHK|FSWZADD|HMNMX2|HSET2|HSETP2|DSETP|DSET|DMNMX)"
    ),
    "float arithmetic": re.compile(
        r"U?(FADD|FADD32I|FADD2|FMUL|FMUL32I|FMUL2|FFMA|FFMA32I|FFMA2"
        r"|HADD2|HMUL2|HFMA2|HADD2_32I|HMUL2_32I|HFMA2_32I|DADD|DMUL|DFMA)"
    ),
}
FLOAT_TYPE = re.compile(r"(B?F(16|32|64)|TF32|E[45]M[23]|F16x2|BF16x2|F16_V\d|BF16_V\d)\w*")
CONSTANT_MOVE = re.compile(r"R\d+,-?RZ,-?RZ,[^,RUc]+,[^,RUc]+")
# integer conversions: narrowing with saturation
CONVERSIONS = words("I2I I2IP")
INTEGER_TYPES = words("S4 S8 S16 S32 S64 U4 U8 U16 U32 U64 SAT B1 B2 B3 H0 H1")


def fault(opcode: str, operands: str = "") -> str | None:
    """Return why an integer-only kernel may not hold this instruction, None where it may.

    opcode    with all that follows its dots, as "IMAD.WIDE.U32"
    operands  "R2, R3, 0x4, RZ"
    """
    name, *rest = opcode.split(".")
    if name in CONVERSIONS:
        return None if INTEGER_TYPES.issuperset(rest) else "float conversion"
    if is_constant_move(opcode, operands):
        return None
    if reason := allow_list.fault(name, ALLOWED, DENIED):
        return reason
    if any(FLOAT_TYPE.fullmatch(part) for part in rest):
        return "float type"
    return None


def is_constant_move(opcode: str, operands: str) -> bool:
    """Tell whether an instruction loads a constant by way of the half-precision pipe."""
    if opcode.split(".")[0] != "HFMA2":
        return False
    return bool(CONSTANT_MOVE.fullmatch(operands.replace(" ", "")))
