"""Read the machine code of a library: is every instruction integer work?

Every byte of every executable segment is decoded (compilers for x86-64 keep tables in .rodata, so
code is all there is) and every mnemonic looked up in mnemonics.py. Functions imported from libm
count as float too.
"""

from pathlib import Path

from intformer.backends.cpu.code_bytes import Functions, Kind, Region, judged, opened, regions
from intformer.backends.cpu.machine_code import MachineCode
from intformer.backends.x86.backend import X86
from intformer.backends.x86.mnemonics import fault


def check(path: Path) -> MachineCode:
    """Decode every executable byte of an ELF file, and judge it.

    Executable is what the program headers map so: section headers are believed for names alone.
    Of an object, which has no program headers, its executable sections are read. Decoding starts
    at the first byte, and again at every target of a jump, call or address in the code and at
    every address of code in the data, until it meets an instruction that is decoded already: so
    code that hides inside other instructions is read as it would run.
    """
    import iced_x86

    elf = opened(path, X86.elf_machine, "x86-64")
    kinds = Kinds()
    found, functions = regions(elf, path), Functions(elf)
    decoded: dict[int, tuple] = {}  # address -> what its instruction is
    for region in found:
        decoded |= decode(region, functions.addresses, kinds)
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
    return judged(path, elf, found, functions, decoded, formatter.format)


class Kinds:
    """What is known of an instruction by its opcode: mnemonic, fault, CPUID features."""

    def __init__(self):
        """Collect iced's names of mnemonics and features."""
        import iced_x86

        self.names = _names(iced_x86.Mnemonic)
        self.features = _names(iced_x86.CpuidFeature)
        self.known: dict[int, Kind] = {}

    def of(self, instruction) -> Kind:
        """Return (mnemonic, fault or None, features)."""
        if instruction.code not in self.known:
            name = self.names[instruction.mnemonic].lower()
            features = {self.features[f] for f in instruction.cpuid_features()}
            self.known[instruction.code] = name, fault(name), features
        return self.known[instruction.code]


def _names(kind: object) -> dict[int, str]:
    return {number: name for name, number in vars(kind).items() if isinstance(number, int)}


def decode(region: Region, hints: list[int], kinds: Kinds) -> dict[int, tuple]:
    """Return address -> (instruction, kind) of everything that can run in a region.

    hints  more addresses to start at, such as those of symbols: they can only add code
    """
    import iced_x86

    code, base = region.code, region.address
    end = base + len(code)
    branch, call = iced_x86.OpKind.NEAR_BRANCH64, iced_x86.Register.RIP
    memory = iced_x86.OpKind.MEMORY
    found: dict[int, tuple] = {}
    starts = [base, *region.entries, *hints]
    while starts:
        start = starts.pop()
        if not base <= start < end or start in found:
            continue
        for instruction in iced_x86.Decoder(64, code[start - base :], ip=start):
            if instruction.ip in found:
                break
            found[instruction.ip] = instruction, kinds.of(instruction)
            if instruction.op_count:
                if instruction.op0_kind == branch:
                    starts.append(instruction.near_branch_target)
                elif instruction.memory_base == call and memory in (
                    instruction.op0_kind,
                    instruction.op1_kind,
                ):
                    starts.append(instruction.memory_displacement)
    return found
