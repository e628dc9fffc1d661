"""Libraries for RISC-V from this machine: linked, read, refused here, and run by an emulator.

Tolerance 0: every value that a library shows equals the NumPy reference.
"""

import struct
from functools import partial

import pytest

import intformer
from intformer.backends.cpu import code_bytes
from intformer.backends.riscv import machine_code, vectors
from intformer.backends.riscv.mnemonics import MEMORY, VECTORS, fault
from intformer.errors import LibraryError
from intformer.link.elf import Elf
from intformer.proof.verify import verify
from intformer_testing import emulated, emulated_models
from intformer_testing.libc import needs_zig, only_in_glibc

VECTOR_CPU = "rv64,v=true,vext_spec=v1.0,vlen="
CPUS = {"riscv64-v": VECTOR_CPU + "128", "riscv64": "rv64"}
FIRST = "native/bert/sequence-classification"
FAST = {FIRST: tuple(CPUS)}  # the others are slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return emulated_models.Models(tmp_path_factory)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return emulated.program(tmp_path_factory.mktemp("program"), "riscv64")


@emulated_models.each(CPUS, FAST)
def test_models_equal_the_reference(made, program, case, target):
    path, model = made(case, target)
    finding, compared = emulated.difference(emulated.Emulated(path, program, CPUS[target]), model)
    assert finding is None
    assert compared > 10_000


@pytest.mark.parametrize("target", [emulated.needs("riscv64-v")])
@pytest.mark.parametrize("bits", [256, pytest.param(1024, marks=pytest.mark.slow)])
def test_longer_registers_give_the_same(made, program, target, bits):
    path, model = made(FIRST, target)
    library = emulated.Emulated(path, program, f"{VECTOR_CPU}{bits}")
    assert emulated.difference(library, model)[0] is None


@pytest.mark.parametrize("target", [emulated.needs("riscv64-v")])
def test_a_cpu_without_vectors_refuses(made, program, target):
    path, model = made(FIRST, target)
    library = emulated.Emulated(path, program, CPUS["riscv64"])
    with pytest.raises(LibraryError, match=r"this CPU \(or the system\) lacks v "):
        emulated.difference(library, model)


@needs_zig
@pytest.mark.parametrize("target", CPUS)
def test_read_but_not_run_here(made, target):
    path, _ = made(FIRST, target)
    assert verify(path, run=False).ok
    with pytest.raises(LibraryError, match=f"library is for {target}, ELF machine 243"):
        intformer.load(path)
    assert not only_in_glibc(path)
    assert Elf(path).glibc_floor() <= (2, 27)
    code = machine_code.check(path)
    assert code.features == ({"v"} if target == "riscv64-v" else set())


@pytest.fixture
def built(tmp_path):
    return partial(emulated_models.library_of, tmp_path, "riscv64")


def assembly(*lines: str) -> str:
    """Return C source of a library with a function `f` of these instructions."""
    head = (".text", ".option arch, +v", ".globl f", ".type f,@function", "f:")
    return "".join(f'__asm__("{line}");\n' for line in (*head, *lines))


@needs_zig
@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("float f(float a, float b) { return a + b; }", "float arithmetic: fadd.s"),
        ("double f(double *a) { return a[0] * a[1] + a[2]; }", "float arithmetic: fm"),
        ("float f(int a) { return a; }", "float conversion: fcvt.s.w"),
        ("int f(double a) { return a; }", "float conversion: fcvt.w.d"),
        ("int f(float a) { return a < 3; }", "float comparison: flt.s"),
        (assembly("fmv.x.w a0, fa0"), "float move: fmv.x.w"),
        (assembly("c.fld fa0, 8(a0)"), "float move: c.fld"),
        (assembly("vfadd.vv v0, v1, v2"), "float arithmetic: vfop"),
        (assembly("vfwmacc.vf v0, fa0, v2"), "float arithmetic: vfop"),
        (assembly("vfcvt.x.f.v v0, v1"), "float conversion: vfcvt"),
        (assembly("vmflt.vv v0, v1, v2"), "float comparison: vfcmp"),
        (assembly("csrw frm, a0"), "unknown instruction"),
        (assembly(".word 0xffffffff"), "unknown instruction: 0xffffffff"),
        ("double sin(double); double f(double a) { return sin(a); }", "float function: sin"),
    ],
)
def test_float_code_is_refused(built, source, fault):
    found = [finding.what for finding in machine_code.check(built(source)).findings]
    assert any(what.startswith(fault) for what in found), found


@needs_zig
@pytest.mark.parametrize(
    "jump",
    [
        ".word 0x00050363",  # beqz a0, 6
        ".word 0x0060056f",  # jal a0, 6
        ".half 0xa011",  # c.j 4
        ".half 0xc111",  # c.beqz a0, 4
        ".half 0xe111",  # c.bnez a0, 4
        "auipc a1, 0; jalr a0, 10(a1)",
    ],
)
def test_code_inside_other_instructions_is_read(built, jump):
    """Of lui a0, 0x75530 and c.addi ra, 13 the middle is fadd.s fa0, fa0, fa1."""
    hidden = ".half 0x0537, 0x7553, 0x00b5"
    found = machine_code.check(built(assembly(".option norelax", jump, hidden, "ret"))).findings
    assert [f.what for f in found] == ["float arithmetic: fadd.s fa0, fa0, fa1"]
    assert not machine_code.check(built(assembly(hidden, "ret"))).findings


OPERANDS = {"vv": "v8, v16, v24", "vx": "v8, v16, a0", "vi": "v8, v16, 1"}
MASKS = ("vmandn", "vmand", "vmor", "vmxor", "vmorn", "vmnand", "vmnor", "vmxnor")
OTHERS = {  # instructions that share a name, or have operands of their own
    "vmv.x.s a0, v8": "vmv.vv", "vcpop.m a0, v8": "vmv.vv", "vfirst.m a0, v8": "vmv.vv",
    "vmv.s.x v8, a0": "vmv.vx", "vzext.vf2 v8, v16": "vext.vv", "vsext.vf8 v8, v16": "vext.vv",
    "vid.v v8": "vmask.vv", "viota.m v8, v16": "vmask.vv", "vmsbf.m v8, v16": "vmask.vv",
    "vcompress.vm v8, v16, v24": "vcompress.vv", "vmv.v.v v8, v16": "vmerge.vv",
    "vmv.v.x v8, a0": "vmerge.vx", "vmv.v.i v8, 3": "vmerge.vi", "vmv2r.v v8, v16": "vsmul.vi",
    "vrgatherei16.vv v8, v16, v24": "vslideup.vv", "vsetvli a0, a1, e8, m1, ta, ma": "vsetvl",
    "vsetivli a0, 4, e8, m1, ta, ma": "vsetvl", "vsetvl a0, a1, a2": "vsetvl",
    "vlm.v v8, (a0)": "vlm", "vsm.v v8, (a0)": "vsm", "csrwi vxrm, 2": "csr.vxrm",
    "csrr a0, vlenb": "csr.vlenb", "csrr a0, vl": "csr.vl", "csrr a0, vtype": "csr.vtype",
    **{f"vl{n}re16.v v8, (a0)": f"vl{n}r" for n in (1, 2, 4, 8)},
    **{f"vs{n}r.v v8, (a0)": f"vs{n}r" for n in (1, 2, 4, 8)},
}  # fmt: skip


def spelled(name: str) -> str:
    """Return assembly with a name of mnemonics.py, which is that of the instruction or near it."""
    if name in MEMORY:
        more = ", v16" if "x" in name else ", a1" if name[2] == "s" and name[3] != "g" else ""
        return f"{name}.v v8, (a0){more if name[2:5] != 'seg' else ''}"
    stem, _, form = name.rpartition(".")
    operands = OPERANDS[form]
    if stem in ("vadc", "vsbc", "vmerge", "vmadc", "vmsbc"):
        return f"{stem}.{form}m {operands}, v0"
    if stem.endswith(".w"):
        return f"{stem}{form[1]} {operands}"  # vwadd.wv
    if stem.startswith(("vnsr", "vncl")):
        return f"{stem}.w{form[1]} {operands}"
    if stem.startswith(("vred", "vwred")):
        return f"{stem}.vs {operands}"
    if stem in MASKS:
        return f"{stem}.mm {operands}"
    if stem.startswith(("vmacc", "vnmsac", "vmadd", "vnmsub", "vwmacc")):
        return f"{stem}.{form} v8, {'a0' if form == 'vx' else 'v16'}, v24"
    return f"{stem}.{form} {operands}"


@needs_zig
def test_vectors_are_named_as_llvm_assembles_them(built):
    """Every name of the list is what LLVM's assembler makes of it, decoded."""
    known = {spelled(name): name for name in VECTORS - set(OTHERS.values())} | OTHERS
    path = built(assembly(".option norvc", *known))
    elf, functions = Elf(path), code_bytes.Functions(Elf(path))
    (region,) = code_bytes.regions(elf, path)
    start = functions.addresses[functions.names.index("f")] - region.address
    words = struct.unpack_from(f"<{len(known)}I", region.code, start)
    found = [vectors.name(word) for word in words]
    assert dict(zip(known, found, strict=True)) == known
    assert set(found) == VECTORS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vwmacc.vx", None),
        ("csr.vxrm", None),
        ("csrrw", "unknown instruction"),
        ("fmadd.d", "float arithmetic"),
        ("fsgnjx.s", "float arithmetic"),
        ("fclass.d", "float comparison"),
        ("fmv.d.x", "float move"),
        ("c.fsdsp", "float move"),
        ("vfmv", "float move"),
        ("sh1add", "unknown instruction"),
    ],
)
def test_words_of_instructions(name, reason):
    assert fault(name) == reason
