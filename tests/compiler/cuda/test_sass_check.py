"""The checks of PTX and SASS: float work is found, integer work passes, the unknown is refused."""

import pytest

from intformer.backends.cuda import ptx_check, sass, sass_check, toolchain
from intformer.backends.cuda.sass_opcodes import ALLOWED, fault, is_constant_move
from intformer.errors import CompileError
from intformer_testing import cuda_compilers

ARCHS = ["sm_75", "sm_80", "sm_90"]
GOOD = """
#include <stdint.h>
extern "C" __global__ void __launch_bounds__(256)
dense_mma(const int *a, const int *b, int *o, const int *counts) {
  __shared__ int tile[512];
  if (blockIdx.x * 8 >= counts[0]) return;
  int c0 = 0, c1 = 0;
  for (int i = 0; i < counts[1]; ++i) {
    tile[threadIdx.x] = a[i * 256 + threadIdx.x];
    __syncthreads();
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(tile[threadIdx.x ^ 1]), "r"(b[i]));
    __syncthreads();
  }
  o[2 * threadIdx.x] = c0;
  o[2 * threadIdx.x + 1] = c1;
}
extern "C" __global__ void dot(const int *a, const uint8_t *b, int64_t *o, const int *counts) {
  int s = 0;
  for (int i = threadIdx.x; i < counts[0]; i += 32) s = __dp4a(a[i], a[i + 1], s);
  for (int i = 16; i; i /= 2) s += __shfl_xor_sync(~0u, s, i);
  int64_t p = ((int64_t)s * 1717986919 + (1ll << 33)) >> 34;
  o[threadIdx.x] = p < -128 ? -128 : p > 127 ? 127 : p;
  o[blockIdx.x / 12] += __popc(s) + __clz(s) + abs(s) % 77 + (b[s & 7] == 3 ? s : -4);
  atomicAdd((int *)o + 1, s);
}
"""
# name -> (body, PTX finding, SASS finding)
BAD = {
    "add": ("((float *)o)[0] = ((float *)a)[0] + 1.5f;", "float type", "FADD"),
    "multiply": ("((float *)o)[0] = ((float *)a)[0] * ((float *)a)[1];", "mul.f32", "FMUL"),
    "divide": (
        "o[threadIdx.x] = a[threadIdx.x / counts[0]];",
        "division by a variable",
        "MUFU.RCP",
    ),
    "modulo": ("o[0] = a[0] % a[1];", "division by a variable", "I2F"),
    "divide64": ("((long long *)o)[0] = ((long long *)a)[0] / counts[0];", "division", "I2F"),
    "wide": ("o[0] = a[0] / 7.0;", "float", "DADD|DMUL|DFMA|I2F.F64"),
    "quick_divide": ("o[0] = __fdividef(a[0], a[1]);", "cvt.rn.f32.s32", "I2F"),
    "to_float": ("((float *)o)[0] = a[0];", "float conversion", "float conversion"),
    "compare": ("o[0] = ((float *)a)[0] < ((float *)a)[1];", "setp.lt.f32", "FSETP"),
    "half": (
        'asm("add.f16x2 %0, %1, %1;" : "=r"(o[0]) : "r"(a[0]));',
        "add.f16x2",
        "HADD2|HFMA2",
    ),
    "root": ("o[0] = sqrtf(a[0]);", "sqrt", "MUFU.RSQ"),
}


def kernel(name, body):
    head = f'extern "C" __global__ void {name}(const int *a, int *o, const int *counts)'
    return f"{head} {{ {body} }}\n"


def build(source, arch="sm_75"):
    return toolchain.build(source, arch, compiler=cuda_compilers.any_compiler())


@pytest.fixture(scope="module", autouse=True)
def tools():
    """Neither check can do without a compiler and nvdisasm."""
    cuda_compilers.any_compiler()
    if not toolchain.find_program("nvdisasm", sass.PACKAGES):
        pytest.skip(f"no nvdisasm: {sass.INSTALL}")


@pytest.fixture(scope="module")
def bad():
    """One module with every bad kernel."""
    return build("".join(kernel(name, body) for name, (body, *_) in BAD.items()))


@pytest.mark.parametrize("arch", ARCHS)
def test_integer_kernels_pass(arch):
    built = build(GOOD, arch)
    ptx, code = ptx_check.check(built.ptx.decode()), sass_check.check(built.cubin)
    assert ptx.findings == [] and set(ptx.functions) == {"dense_mma", "dot"}
    assert ptx.opcodes["mma"] == ptx.opcodes["atom"] + ptx.opcodes["red"] == 1
    assert ptx.instructions == ptx.opcodes.total() > 80
    assert code.findings == [] and code.functions.keys() == {"dense_mma", "dot"}
    assert code.opcodes["IMMA"] == 1 and code.opcodes["IDP"] >= 1
    assert code.instructions == code.opcodes.total() > 80
    for name, usage in built.usage.items():
        function = code.functions[name]
        assert (function.registers, function.shared) == (usage.registers, usage.shared)


@pytest.mark.parametrize("name", BAD)
def test_float_work_is_found(bad, name):
    _, ptx, sass_text = BAD[name]
    wrong = [f.what for f in ptx_check.check(bad.ptx.decode()).findings if f.where == name]
    assert any(ptx in what for what in wrong), wrong
    findings = sass_check.check(bad.cubin).findings
    wrong = [f.what for f in findings if f.where.startswith(f"{name}+")]
    assert any(part in what for part in sass_text.split("|") for what in wrong), wrong


def test_tensor_cores_are_asked_for():
    cubin = build(kernel("dense_plain", "o[0] = a[0] * a[1];")).cubin
    (finding,) = sass_check.check(cubin).findings
    assert finding.where == "dense_plain" and "IMMA" in finding.what
    assert sass_check.check(cubin, tensor_cores=("attention",)).findings == []


def test_spills_are_found():
    body = """const volatile int *p = a; int v[96];
#pragma unroll
for (int i = 0; i < 96; ++i) v[i] = p[i * 1024 + threadIdx.x];
__syncthreads();
#pragma unroll
for (int i = 0; i < 96; ++i) o[i * 1024 + threadIdx.x] = v[i] * i + v[95 - i];"""
    source = kernel("dense_big", body).replace("void", "void __launch_bounds__(1024)")
    built = build(source)
    assert built.usage["dense_big"].spill_stores > 0
    code = sass_check.check(built.cubin, tensor_cores=())
    assert [finding.what for finding in code.findings] == ["uses local memory: registers spill"]
    assert code.functions["dense_big"].stack == built.usage["dense_big"].stack > 0
    assert sass_check.check(built.cubin, tensor_cores=(), no_spills=()).findings == []


def test_registers_times_threads_are_judged():
    cubin = build(kernel("fine", "o[0] = a[0];")).cubin
    assert sass_check.check(cubin, threads={"fine": 1024}).findings == []
    (finding,) = sass_check.check(cubin, threads={"fine": 8193}).findings
    assert "registers x 8193 threads" in finding.what


def test_shared_memory_is_judged():
    function = sass.Function("big", shared=48 * 1024 + 4)
    (finding,) = sass_check.judge_limits(function, None)
    assert finding.what == "49156 bytes of shared memory; a block may have 49152"


def test_an_empty_cubin_is_no_proof():
    built = build("__device__ int data;")
    assert [finding.what for finding in sass_check.check(built.cubin).findings] == ["no code in it"]
    assert [f.what for f in ptx_check.check(built.ptx.decode()).findings] == ["no code in it"]


def test_what_is_no_cubin_is_refused():
    with pytest.raises(CompileError):
        sass.disassemble(b"\x7fELF nothing")


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sass, "find_program", lambda *names: None)
    with pytest.raises(CompileError, match=r"no nvdisasm.*pip install 'intformer\[cuda\]'"):
        sass.disassemble(b"")


def test_an_instruction_printed_oddly_is_refused():
    text = '.section .text.f,"ax",@progbits\n/*0010*/  {weird} R0 ;\n'
    with pytest.raises(CompileError, match="oddly"):
        sass.read_text(text)


@pytest.mark.parametrize(
    ("opcode", "operands", "reason"),
    [
        ("IMAD.WIDE.U32", "R2, R3, 0x4, R4", None),
        ("I2I.U8.S32.SAT", "R2, R3", None),
        ("I2IP.S8.S32.SAT", "R2, R3, R4, RZ", None),
        ("HFMA2.MMA", "R5, -RZ, RZ, 0, 5.9604644775390625e-08", None),
        ("HFMA2.MMA", "R5, -RZ, RZ, 0, R4", "float arithmetic"),
        ("HFMA2.MMA", "R5, R4, R3, 0, 0", "float arithmetic"),
        ("HFMA2", "R5, -RZ, RZ, 0, c[0x0][0x160]", "float arithmetic"),
        ("FSEL", "R0, R1, R2, P0", "float selection or comparison"),
        ("FMNMX", "R0, R1, R2, PT", "float selection or comparison"),
        ("HMMA.1688.F32", "R0, R1, R2, R3", "float matrix product"),
        ("ATOM.E.ADD.F16x2.RN", "R0, [R2], R1", "float type"),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "[R2], R1", "float type"),
        ("UI2F.S32", "UR0, UR1", "float conversion"),
        ("I2FP.F32.S32", "R0, R1", "float conversion"),
        ("I2I.F16", "R0, R1", "float conversion"),
        ("QUX.U32", "R0, R1", "unknown instruction"),
    ],
)
def test_sass_opcodes(opcode, operands, reason):
    assert fault(opcode, operands) == reason
    assert is_constant_move(opcode, operands) == (reason is None and "HFMA2" in opcode)


def test_no_allowed_name_is_denied():
    from intformer.backends.cuda.sass_opcodes import DENIED

    assert [n for n in ALLOWED if any(pattern.fullmatch(n) for pattern in DENIED.values())] == []


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("div.u32 %r1, %r2, 7", None),
        ("div.u32 %r1, %r2, %r3", "division by a variable, which becomes float"),
        ("rem.s64 %rd1, 100, %rd3", "division by a variable, which becomes float"),
        ("@!%p3 bra.uni $L__BB0_2", None),
        ("ld.global.nc.L2::128B.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]", None),
        ("mov.b32 %r1, 0f3F800000", "float constant"),
        ("mov.b32 %r1, 0x0f3F8000", None),
        ("cvt.rni.s32.f32 %r1, %f1", "float conversion"),
        ("cvt.sat.s8.s32 %r1, %r2", None),
        ("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4}", None),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}", "float type"),
        ("ex2.approx.f32 %f1, %f2", "float special function"),
        ("tex.2d.v4.u32.s32 {%r1}, [t, {%r2}]", "unknown instruction"),
    ],
)
def test_ptx_statements(statement, reason):
    head = ".version 9.0\n.target sm_75\n.visible .entry f(\n.param .u64 p\n)"
    text = f"{head}\n{{\n$L: {statement};\n}}"
    found = ptx_check.check(text)
    assert (found.functions, found.instructions) == (["f"], 1)
    assert [finding.where for finding in found.findings] == ["f"] * (reason is not None)
    assert all(finding.what.startswith(f"{reason}: ") for finding in found.findings)


def test_a_ptx_statement_that_is_no_instruction_is_found():
    (finding,) = ptx_check.check(".entry f() { ADD R1; mov.u32 %r1, 1; }").findings
    assert finding.what == "unknown statement: ADD R1"
