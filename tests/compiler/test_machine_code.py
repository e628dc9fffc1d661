"""The machine-code check: float work is found, integer work passes, the unknown is refused."""

import shutil
import subprocess

import pytest

from intformer.backends.x86 import machine_code
from intformer.backends.x86 import mnemonics as x86_mnemonics
from intformer.errors import IntformerError

pytest.importorskip("iced_x86", reason="needs the compiler extra")

INTEGERS = """
#include <stdint.h>
void sum(const int8_t *a, const int8_t *b, int32_t *c, int n) {
  for (int i = 0; i < n; i++) c[i] += (a[i] * b[i]) >> 3;
}
int64_t mean(const int64_t *a, int n) {
  int64_t s = 0;
  for (int i = 0; i < n; i++) s += a[i];
  return s / n;
}
"""


@pytest.fixture
def build(tmp_path):
    """Return a function that compiles C to a shared library."""
    cc = shutil.which("cc")
    if not cc:
        pytest.skip("no C compiler")

    def compile_c(source, *options, libraries=()):
        file, library = tmp_path / "a.c", tmp_path / "a.so"
        file.write_text(source)
        flags = ("-O3", "-shared", "-fPIC", "-nostartfiles", *options)
        command = [cc, *flags, str(file), "-o", str(library), *libraries]
        subprocess.run(command, check=True)
        return library

    return compile_c


@pytest.mark.parametrize(
    "options", [(), ("-mavx2",), ("-march=cascadelake", "-mprefer-vector-width=512")], ids=str
)
def test_integer_code_passes(build, options):
    code = machine_code.check(build(INTEGERS, *options))
    assert code.findings == []
    assert code.instructions == sum(code.mnemonics.values()) > 50
    assert ("AVX512BW" in code.features) == ("-march=cascadelake" in options)


@pytest.mark.parametrize(
    ("source", "reason", "instruction"),
    [
        ("float f(float a, float b) { return a * b; }", "float arithmetic", "mulss"),
        ("int f(double a) { return a; }", "float conversion", "cvttsd2si"),
        ("int f(float a, float b) { return a < b; }", "float comparison", "comiss"),
        ("long double f(long double a) { return a + 1; }", "x87 float", "fld"),
    ],
)
def test_float_work_is_found_and_located(build, source, reason, instruction):
    (finding, *_) = machine_code.check(build(source)).findings
    assert finding.where.startswith("f+0x")
    assert finding.what.startswith(f"{reason}: ")
    assert instruction in finding.what


def test_the_vector_shift_that_turns_float_is_found(build):
    """x86-64 without AVX2 has no shift by lane; compilers multiply by a float power of two."""
    shift = "typedef int v __attribute__((vector_size(16))); v f(v a) { return 1 << a; }"
    if machine_code.check(build(shift, "-mavx2")).findings:
        pytest.fail("AVX2 shifts every lane by its own amount")
    # spelled out, since not every compiler takes the float road
    source = """
    #include <emmintrin.h>
    __m128i f(__m128i a) { return _mm_cvttps_epi32(_mm_castsi128_ps(a)); }
    """
    (finding,) = machine_code.check(build(source)).findings
    assert "cvttps2dq" in finding.what


def test_float_functions_of_libm_are_found(build):
    source = "float expf(float); float (*f(void))(float) { return expf; }"
    (finding,) = machine_code.check(build(source, libraries=("-lm",))).findings
    assert finding.where == "imports"
    assert "expf from libm.so" in finding.what


def test_amx_and_vnni_are_known(build):
    source = """
    void f(void *a) {
      __asm__ volatile("tdpbssd %tmm1, %tmm2, %tmm3\\n\\ttilestored %tmm3, (%rdi,%rsi,1)");
      __asm__ volatile("vpdpbusd %zmm1, %zmm2, %zmm3\\n\\t{vex} vpdpbusd %ymm1, %ymm2, %ymm3");
    }
    """
    code = machine_code.check(build(source))
    assert code.findings == []
    assert {"AMX_INT8", "AVX512_VNNI", "AVX_VNNI"} <= code.features


def test_bytes_that_are_no_instruction_are_refused(build):
    (finding, *_) = machine_code.check(build('__asm__(".text\\n.byte 0x06");')).findings
    assert finding.what.startswith("unknown instruction")


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF\x01\x01" + bytes(80)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.so"
    path.write_bytes(content)
    with pytest.raises(IntformerError, match=r"(not a|a damaged) little-endian ELF file"):
        machine_code.check(path)


def test_no_name_is_both_allowed_and_denied():
    for name in x86_mnemonics.ALLOWED:
        for reason, pattern in x86_mnemonics.DENIED.items():
            assert not pattern.fullmatch(name), f"{name} is allowed, and refused as {reason}"


def test_every_allowed_name_exists():
    import iced_x86

    existing = {name.lower() for name in vars(iced_x86.Mnemonic)}
    # lists with an automatic v in front may name a form that does not exist
    missing = {name for name in x86_mnemonics.ALLOWED - existing if name[1:] not in existing}
    assert missing == set()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vfmadd231ps", "float arithmetic"),
        ("vrndscaleps", "float arithmetic"),
        ("vrcp14ps", "float arithmetic"),
        ("vaddph", "float arithmetic"),
        ("tdpbf16ps", "float arithmetic"),
        ("vcvtdq2ph", "float conversion"),
        ("cvtsi2sd", "float conversion"),
        ("vcmpps", "float comparison"),
        ("ucomisd", "float comparison"),
        ("ldmxcsr", "float control"),
        ("fild", "x87 float"),
        ("brandnew", "unknown instruction"),
        ("vpdpbusd", None),
        ("vpternlogd", None),
        ("vmovaps", None),
        ("pmaxsd", None),
    ],
)
def test_reasons(name, reason):
    assert x86_mnemonics.fault(name) == reason


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
def test_decoder_agrees_with_objdump(build):
    """Two decoders read the same number of instructions from the same bytes."""
    library = build(INTEGERS, "-march=cascadelake", "-mprefer-vector-width=512")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in listing.splitlines() if line.startswith(" ") and ":\t" in line]
    assert machine_code.check(library).instructions == len(lines)
