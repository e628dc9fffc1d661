"""Names of RISC-V's vector instructions, by the fields of their words: capstone has none of them.

Source: RISC-V "V" extension 1.0, sections 5.2, 7 and 10, and its listing of instructions.
"""

LOAD, STORE, ARITHMETIC, SYSTEM = 0x07, 0x27, 0x57, 0x73  # major opcodes
# control registers of vectors: how fixed-point numbers are rounded, and what vsetvl has set
CONTROL = {0x00A: "vxrm", 0xC20: "vl", 0xC21: "vtype", 0xC22: "vlenb"}
ELEMENTS = {0b000: 8, 0b101: 16, 0b110: 32, 0b111: 64}  # funct3 of vector loads: bits of elements
ADDRESSING = ("e", "uxei", "se", "oxei")  # mop
WHOLE, MASK = 0b01000, 0b01011  # lumop, sumop: whole registers, a mask
INTEGER = {0b000: "vv", 0b011: "vi", 0b100: "vx"}  # funct3 of OPIVV, OPIVI, OPIVX
PRODUCT = {0b010: "vv", 0b110: "vx"}  # OPMVV, OPMVX
FLOAT = {0b001: "vv", 0b101: "vf"}  # OPFVV, OPFVF
CONFIGURE = 0b111  # OPCFG


def _table(text: str) -> dict[int, str]:
    """Return funct6 -> name, of lines of eight from 0 on; a dash is reserved."""
    return {number: name for number, name in enumerate(text.split()) if name != "-"}


# of OPIVV, OPIVX and OPIVI
_INTEGERS = _table("""
    vadd vandn vsub vrsub vminu vmin vmaxu vmax
    - vand vor vxor vrgather - vslideup vslidedown
    vadc vmadc vsbc vmsbc - - - vmerge
    vmseq vmsne vmsltu vmslt vmsleu vmsle vmsgtu vmsgt
    vsaddu vsadd vssubu vssub - vsll - vsmul
    vsrl vsra vssrl vssra vnsrl vnsra vnclipu vnclip
    vwredsumu vwredsum
""")
# of OPMVV and OPMVX
_PRODUCTS = _table("""
    vredsum vredand vredor vredxor vredminu vredmin vredmaxu vredmax
    vaaddu vaadd vasubu vasub - - vslide1up vslide1down
    vmv - vext - vmask - - vcompress
    vmandn vmand vmor vmxor vmorn vmnand vmnor vmxnor
    vdivu vdiv vremu vrem vmulhu vmul vmulhsu vmulh
    - vmadd - vnmsub - vmacc - vnmsac
    vwaddu vwadd vwsubu vwsub vwaddu.w vwadd.w vwsubu.w vwsub.w
    vwmulu - vwmulsu vwmul vwmaccu vwmacc vwmaccus vwmaccsu
""")
del _INTEGERS[1]  # vandn is of another extension, Zvbb
_FLOAT_CONVERSION, _FLOAT_COMPARISON = {0b010010}, range(0b011000, 0b100000)
_FLOAT_MOVE = {0b010000, 0b010111, 0b001110, 0b001111}


def name(word: int) -> str | None:
    """Return the name of a vector instruction; None where a word is none, or a reserved one.

    The families that share a funct6, such as vsext.vf2 and vzext.vf4, have one name.
    """
    opcode, form, number = word & 0x7F, word >> 12 & 7, word >> 26
    if opcode in (LOAD, STORE) and form in ELEMENTS:
        return _memory(word, "l" if opcode == LOAD else "s")
    if opcode == SYSTEM and form:
        register = CONTROL.get(word >> 20)
        return register and f"csr.{register}"
    if opcode != ARITHMETIC:
        return None
    if form == CONFIGURE:
        return "vsetvl"
    if form in FLOAT:
        return _float(number)
    names = _INTEGERS if form in INTEGER else _PRODUCTS
    suffix = (INTEGER | PRODUCT)[form]
    return f"{names[number]}.{suffix}" if number in names else None


def _memory(word: int, way: str) -> str | None:
    """Return the name of a load or store."""
    if word >> 28 & 1:  # mew: reserved
        return None
    fields, addressing = (word >> 29) + 1, word >> 26 & 3
    bits, operand = ELEMENTS[word >> 12 & 7], word >> 20 & 31
    if addressing == 0 and operand == WHOLE:
        return f"v{way}{fields}r"
    if addressing == 0 and operand == MASK:
        return f"v{way}m"
    segments = f"seg{fields}" if fields > 1 else ""
    return f"v{way}{ADDRESSING[addressing].replace('e', segments + 'e', 1)}{bits}"


def _float(number: int) -> str:
    """Return a name that says what a float instruction is; none of them is allowed."""
    if number in _FLOAT_CONVERSION:
        return "vfcvt"
    if number in _FLOAT_COMPARISON:
        return "vfcmp"
    return "vfmv" if number in _FLOAT_MOVE else "vfop"
