"""Is every PTX instruction integer work? The driver compiles this text for newer chips.

An instruction is judged by its name and by the types that follow its dots. What is on no list here
is refused: a new instruction is read about first, then added.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from intformer.proof.finding import Finding

ALLOWED = frozenset(
    """
    abs add addc bfe bfi bfind bmsk brev clz cnot dp2a dp4a fns lop3 mad mad24 madc max min mul
    mul24 neg not and or xor popc sad set setp shf shl shr slct selp sub subc szext vote match
    activemask elect redux
    cvt cvta isspacep mov prmt shfl
    ld ldu ldmatrix st stmatrix movmatrix cp prefetch prefetchu discard applypriority createpolicy
    atom red membar fence mbarrier
    mma wgmma
    bar barrier bra brx call exit ret trap brkpt nanosleep griddepcontrol setmaxnreg
    div rem
""".split()
)
DIVISIONS = frozenset({"div", "rem"})
# Why a name is refused; one that is in neither list is unknown.
DENIED = {
    "float arithmetic": frozenset({"fma", "copysign", "testp"}),
    "float special function": frozenset("rcp sqrt rsqrt sin cos tanh lg2 ex2".split()),
    "float matrix product": frozenset({"wmma"}),  # also has integer forms, which mma.sync covers
}
FLOAT_TYPE = re.compile(r"b?f16(x2)?|tf32|f32(x2)?|f64|ue\d\w*|e\dm\d\w*")
FLOAT_NUMBER = re.compile(r"(?<!\w)0(?:[fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})(?!\w)")
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# directives that end with their line
_LINE = re.compile(r"(?m)^[ \t]*\.(version|target|address_size|file|loc|section)\b[^\n]*$")
_LABELS = re.compile(r"(?:[$%\w]+:(?!:)\s*)+")
_FUNCTION = re.compile(r"\.(?P<kind>entry|func)\s*(?:\([^)]*\)\s*)?(?P<name>[\w$%.]+)")
_INSTRUCTION = re.compile(
    r"(?:@!?[\w%$]+\s+)?(?P<opcode>[a-z]\w*(?:(?:\.|::)\w+)*)(?P<rest>.*)", re.DOTALL
)


@dataclass
class Ptx:
    """What a PTX text holds.

    instructions  how many there are
    opcodes       how often each occurs, names up to the first dot
    functions     names of kernels and of what they call, in order
    entries       names of kernels
    findings      what is no integer work
    """

    instructions: int = 0
    opcodes: Counter = field(default_factory=Counter)
    functions: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def check(ptx: str) -> Ptx:
    """Read every instruction of a PTX text and judge it; each kind of fault once a function."""
    found, here, seen = Ptx(), "PTX", set()
    for statement in statements(ptx):
        if statement.startswith("."):
            if function := _FUNCTION.search(statement):
                here = function["name"]
                found.functions.append(here)
                if function["kind"] == "entry":
                    found.entries.append(here)
            continue
        match = _INSTRUCTION.fullmatch(statement)
        if not match:
            found.findings.append(Finding(here, f"unknown statement: {short(statement)}"))
            continue
        opcode, rest = match["opcode"], match["rest"]
        name = opcode.partition(".")[0]
        found.instructions += 1
        found.opcodes[name] += 1
        reason = fault(opcode, rest)
        if reason and (here, reason, name) not in seen:
            seen.add((here, reason, name))
            found.findings.append(Finding(here, f"{reason}: {short(statement)}"))
    if not found.instructions:
        found.findings.append(Finding("PTX", "no code in it"))
    return found


def fault(opcode: str, operands: str = "") -> str | None:
    """Return why an integer-only kernel may not hold this instruction, None where it may.

    opcode    with all that follows its dots, as "mad.lo.s32"
    operands  "%r1, %r2, 7"
    """
    name, *rest = opcode.split(".")
    if name not in ALLOWED:
        fitting = (reason for reason, names in DENIED.items() if name in names)
        return next(fitting, "unknown instruction")
    if any(FLOAT_TYPE.fullmatch(part) for part in rest):
        return "float conversion" if name == "cvt" else "float type"
    if FLOAT_NUMBER.search(operands):
        return "float constant"
    if name in DIVISIONS and not NUMBER.fullmatch(operands.rpartition(",")[2].strip()):
        return "division by a variable, which becomes float"
    return None


def statements(ptx: str) -> list[str]:
    """Return instructions and directives in order, without comments, labels and outer braces."""
    text = _LINE.sub("", _COMMENT.sub(" ", ptx))
    found, start = [], 0

    def ended(end: int) -> str:
        nonlocal start
        statement, start = " ".join(text[start:end].split()), end + 1
        return _LABELS.sub("", statement)

    for mark in re.finditer(r"[{};]", text):
        sofar = _LABELS.sub("", text[start : mark.start()].strip())
        if mark[0] != ";" and sofar and not _FUNCTION.search(sofar):
            continue  # a vector, {%r1, %r2}, inside a statement
        if statement := ended(mark.start()):
            found.append(statement)
    if left := ended(len(text)):
        found.append(left)
    return found


def short(statement: str) -> str:
    """Return a statement in at most 80 characters."""
    return statement if len(statement) <= 80 else f"{statement[:77]}..."
