"""Libraries for ARM from this machine: linked, read, refused here, and run by an emulator.

Tolerance 0: every value that a library shows equals the NumPy reference.
"""

from functools import partial

import pytest

import intformer
from intformer.backends.arm import machine_code
from intformer.backends.arm.mnemonics import fault
from intformer.backends.targets import TARGETS
from intformer.errors import LibraryError
from intformer.link import build as linker
from intformer.link.elf import Elf
from intformer.proof.verify import verify
from intformer.runtime import LibraryFile
from intformer_testing import emulated, emulated_models
from intformer_testing.c_program import run_c
from intformer_testing.libc import needs_zig, only_in_glibc

# the fastest target that each runs
CPUS = {"aarch64-i8mm": "max", "aarch64-dotprod": "neoverse-n1", "aarch64": "cortex-a53"}
AUTO = "aarch64-auto"
FIRST = "native/bert/sequence-classification"  # its library of all variants is fast
FAST = {  # the others are slow
    "native/mpnet/features": ("aarch64-dotprod",),
    "native/bert/sentence-embedding": ("aarch64-i8mm",),
    "ibert/hf_compat/token-classification": ("aarch64",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return emulated_models.Models(tmp_path_factory)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return emulated.program(tmp_path_factory.mktemp("program"), "aarch64")


@emulated_models.each(CPUS, FAST)
def test_models_equal_the_reference(made, program, case, target):
    path, model = made(case, target)
    library = emulated.Emulated(path, program, CPUS[target])
    finding, compared = emulated.difference(library, model)
    assert finding is None
    assert compared > 10_000


@pytest.mark.parametrize("target", [emulated.needs(AUTO)])
@pytest.mark.parametrize("fastest", CPUS)
def test_the_fastest_variant_runs(made, program, target, fastest):
    path, model = made(FIRST, target)
    library = emulated.Emulated(path, program, CPUS[fastest])
    finding, compared = emulated.difference(library, model)
    assert finding is None and compared > 10_000
    assert library.variant == fastest


@pytest.mark.parametrize("target", [emulated.needs(AUTO)])
def test_another_variant_by_name(made, program, target):
    path, model = made(FIRST, target)
    slowest = emulated.Emulated(path, program, "max", INTFORMER_VARIANT="aarch64")
    assert emulated.difference(slowest, model)[0] is None
    assert slowest.variant == "aarch64"
    absent = emulated.Emulated(path, program, "neoverse-n1", INTFORMER_VARIANT="aarch64-i8mm")
    with pytest.raises(LibraryError, match=r"this CPU \(or the system\) lacks i8mm"):
        emulated.difference(absent, model)


@needs_zig
@pytest.mark.slow
def test_weights_are_there_once(made):
    auto, alone = (LibraryFile(made(FIRST, target)[0]) for target in (AUTO, "aarch64"))
    names = {n for n in auto.sections() if not n.startswith("tir/")}
    assert names == {n for n in alone.sections() if not n.startswith("tir/")}
    for name in names:
        if name.startswith("constants/"):
            assert auto.section(name) == alone.section(name)


@pytest.mark.slow
@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
def test_a_cpu_without_the_feature_refuses(made, program, target):
    path, model = made(FIRST, target)
    library = emulated.Emulated(path, program, CPUS["aarch64"])
    with pytest.raises(LibraryError, match=r"this CPU \(or the system\) lacks dotprod"):
        emulated.difference(library, model)


@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
def test_verified_by_an_emulator(made, target):
    path, _ = made(FIRST, target)
    report = verify(path, via="qemu-aarch64 -cpu max")
    assert report.ok and all(check.ran for check in report.checks), report
    results = next(check for check in report.checks if check.name == "results")
    assert results.detail.endswith("numbers equal, via qemu-aarch64 -cpu max")
    report = verify(path, via=f"qemu-aarch64 -cpu {CPUS['aarch64']}")
    assert not report.ok
    assert [check.name for check in report.checks if not check.ok] == ["results", "defaults"]
    assert "lacks dotprod" in report.checks[-1].findings[0].what


@needs_zig
@pytest.mark.parametrize("target", [AUTO, *(pytest.param(t, marks=pytest.mark.slow) for t in CPUS)])
def test_read_but_not_run_here(made, tmp_path, target):
    path, _ = made(FIRST, target)
    report = verify(path)
    assert [c.name for c in report.checks if not c.ran] == ["results", "defaults"]
    assert all(c.ok for c in report.checks if c.ran)
    assert not report.ok
    assert verify(path, run=False).ok
    with pytest.raises(LibraryError, match=f"library is for {target}, ELF machine 183"):
        intformer.load(path)
    assert not only_in_glibc(path)
    assert Elf(path).glibc_floor() <= (2, 17)
    assert not [name for name in Elf(path).symbols() if "hf" in name]  # conversions of float16
    source = f"""
        int main(void) {{
          char err[300];
          if (!intformer_open("{path}", err, sizeof err)) puts(err);
          return 0;
        }}
    """
    said = run_c(tmp_path, source, linker.SOURCES / "intformer_open.c")
    assert said.startswith("library has code for ELF machine 183, this program runs 62")


@pytest.fixture
def built(tmp_path):
    return partial(emulated_models.library_of, tmp_path, "aarch64")


@needs_zig
@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("float f(float a, float b) { return a + b; }", "float arithmetic: fadd"),
        ("double f(double *a) { return a[0] * a[1] + a[2]; }", "float arithmetic: fm"),
        ("float f(int a) { return a; }", "float conversion: scvtf"),
        ("int f(double a) { return a; }", "float conversion: fcvtzs"),
        ("int f(float a) { return a < 3; }", "float comparison: fcmp"),
        (
            '__asm__(".text\\n.word 0xffffffff"); int f(int a) { return a; }',
            "unknown instruction: 0xffffffff",
        ),
        ("double sin(double); double f(double a) { return sin(a); }", "float function: sin"),
    ],
)
def test_float_code_is_refused(built, source, fault):
    found = [finding.what for finding in machine_code.check(built(source)).findings]
    assert any(what.startswith(fault) for what in found), found


@needs_zig
def test_integer_code_is_allowed(built):
    source = "int f(int *a, int n) { int s = 0; while (n--) s += a[n] / (n + 1); return s; }"
    code = machine_code.check(built(source))
    assert not code.findings and not code.features
    assert code.mnemonics["sdiv"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sdot", None),
        ("fneg", None),
        ("fmla", "float arithmetic"),
        ("frintn", "float arithmetic"),
        ("ucvtf", "float conversion"),
        ("fccmp", "float comparison"),
        ("smmla", None),
        ("bfdot", "float arithmetic"),
        ("ld64b", "unknown instruction"),
        ("bfmmla", "float arithmetic"),
    ],
)
def test_words_of_instructions(name, reason):
    assert fault(name) == reason


@needs_zig
def test_code_for_another_machine(built):
    with pytest.raises(LibraryError, match="code for ELF machine 183; x86-64 is 62"):
        TARGETS["x86-64"].backend.read_code(built("int f(int a) { return a; }"))
