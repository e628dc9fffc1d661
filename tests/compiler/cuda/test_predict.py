"""The prediction: loops and their trips, the clocks of a multiprocessor, and what adds up."""

import types
from dataclasses import replace

import pytest

from intformer import cli
from intformer.backends.cuda import sass, toolchain
from intformer.backends.cuda.sass import Function, Instruction
from intformer.cli.bench import prediction_lines
from intformer.errors import IntformerError
from intformer.measure.prediction import chips, predict, trace
from intformer.measure.prediction import multiprocessor as sm
from intformer_testing import cuda_compilers

T4 = chips.CHIPS["t4"]
ROWS, COLUMNS, DEPTH = 8, 64, 768  # of a tile; of the product
SOURCE = """
extern "C" __global__ void __launch_bounds__(64)
dense_v0(const int *a, const int *b, int *o, const int *counts) {
  int row = blockIdx.y * 8;
  if (row >= counts[0]) return;
  int warp = threadIdx.x / 32, c0 = 0, c1 = 0;
#pragma unroll 1
  for (int k = 0; k < 768 / 16; ++k)
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a[row * 192 + k * 32 + threadIdx.x % 32]), "r"(b[k * 32 + threadIdx.x]));
  o[(blockIdx.x * 2 + warp) * 64 + threadIdx.x % 32] = c0;
  o[(blockIdx.x * 2 + warp) * 64 + threadIdx.x % 32 + 32] = c1;
}
extern "C" __global__ void __launch_bounds__(32)
attention_v0(const int *a, int *o, const int *counts) {
  int c0 = 0, c1 = 0;
#pragma unroll 1
  for (int k = 0; k < (counts[3] + 7) / 8; ++k)
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%2}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a[k * 32 + threadIdx.x]));
#pragma unroll 1
  for (int k = 0; k < (counts[3] + 7) / 8; ++k) {
#pragma unroll 1
    for (int j = 0; j < 3; ++j) c0 = c0 * c1 + a[k * 32 + j];
  }
  o[threadIdx.x] = c0 + c1;
}
"""


def named(text, guard=""):
    opcode, _, operands = text.partition(" ")
    return Instruction(0, guard, opcode, operands)


@pytest.fixture(scope="module")
def cubin():
    built = toolchain.build(SOURCE, "sm_75", compiler=cuda_compilers.any_compiler())
    if not toolchain.find_program("nvdisasm", sass.PACKAGES):
        pytest.skip(f"no nvdisasm: {sass.INSTALL}")
    return built.cubin


@pytest.fixture(scope="module")
def library(cubin):
    """What predict reads of a library: two steps on made-up buffers."""

    def version(function, threads, *grid):
        about = {"function": function, "limit": None, "rows": "token"}
        return about | {"threads": threads, "grid": [*grid, ("one", 1, 1)]}

    launches = {
        "dense": [version("dense_v0", 64, ("one", 1, COLUMNS // 16), ("token", ROWS, 1))],
        "attention": [version("attention_v0", 32, ("sequence", 1, 4), ("longest", 8, 1))],
    }
    steps = [
        {"kernel": "dense", "args": ["x", "w", "y"], "outputs": ["y"]},
        {"kernel": "attention", "args": ["y", "z"], "outputs": ["z"]},
    ]
    buffers = {
        "x": {"dtype": "uint8", "rows": "token", "width": DEPTH},
        "y": {"dtype": "int32", "rows": "token", "width": COLUMNS},
        "z": {"dtype": "int8", "rows": "token", "width": 64},
    }
    variants = [{"name": "t4", "arch": "sm_75"}]
    return types.SimpleNamespace(
        path="made-up.so",
        metadata={"variants": variants, "max_length": 512, "layers": 12, "hidden": 768},
        plan={"steps": steps, "launches": launches, "buffers": buffers},
        packing={"w": {"dtype": "int8", "shape": [COLUMNS, DEPTH], "packing": {"kind": "rows"}}},
        section={"cuda/t4.cubin": cubin}.__getitem__,
    )


# ---- the code of a warp ----


def test_loops_and_their_trips(cubin):
    functions = sass.disassemble(cubin).functions
    (loop,) = trace.loops(functions["dense_v0"])
    assert loop.trips == DEPTH // 16
    executed = trace.unroll(functions["dense_v0"], lambda loop: loop.trips)
    assert sum(i.name == "IMMA" for i in executed) == DEPTH // 16
    assert sum(map(sm.macs, executed)) == 8 * 8 * DEPTH
    assert executed[-1].name == "EXIT"
    first, inner, outer = split(functions["attention_v0"])
    assert (first.trips, inner.trips, outer.trips) == (None, 3, None)
    assert outer.holds(inner) and not outer.holds(first) and not outer.holds(outer)
    executed = trace.unroll(functions["attention_v0"], lambda loop: loop.trips or 5)
    assert sum(i.name == "IMMA" for i in executed) == 5
    assert sum(i.name == "IMAD" and i.operands.count("R") >= 3 for i in executed) >= 15


def split(function):
    """Return the loop before, the inner and the outer one of the attention kernel."""
    inner, *others = trace.loops(function)
    outer = next(loop for loop in others if loop.holds(inner))
    (first,) = (loop for loop in others if loop is not outer)
    return first, inner, outer


def test_an_endless_branch_behind_the_end_is_no_loop():
    code = [named("EXIT"), named("BRA .L"), named("NOP")]
    function = Function("f", code, {".L": 1})
    assert trace.path(function) == [0] and trace.loops(function) == []


# ---- one part of a multiprocessor ----


def test_registers_of_instructions():
    def of(text, guard=""):
        return sm.registers(named(text, guard))

    assert of("IMAD.WIDE.U32 R2, R7, R5, c[0x0][0x160]") == (("R7", "R5"), ("R2", "R3"))
    assert of("LDG.E.128.SYS R4, [R2.64+UR4]", "P0") == (
        ("P0", "R2", "R3", "UR4"),
        ("R4", "R5", "R6", "R7"),
    )
    assert of("ISETP.GE.AND P0, PT, R7, R8, PT") == (("R7", "R8"), ("P0",))
    assert of("IADD3 R4, P1, R5, 0x40, RZ") == (("R5",), ("R4", "P1"))
    assert of("STS.128 [R122+UR5], R64")[1] == ()
    assert of("IMMA.8816.S8.S8 R34, R8.reuse.ROW, R20.COL, R34") == (
        ("R8", "R20", "R34"),
        ("R34", "R35"),
    )


def run(code, warps=1, blocks=None, memory=False, chip=T4):
    return sm.clocks([code] * warps, blocks or list(range(warps)), chip, memory)


def test_a_chain_waits_and_what_is_independent_does_not():
    chain = [named("IMAD R2, R2, R3, R4")] * 100
    apart = [named(f"IMAD R{8 + i}, R2, R3, R4") for i in range(100)]
    assert run(chain) == pytest.approx(100 * T4.latency.imad, rel=0.05)
    assert run(apart) == pytest.approx(100 * 2, rel=0.05)  # 64 lanes, four parts, 32 threads
    assert run(chain, warps=4) == pytest.approx(4 * 100 * 2, rel=0.05)  # the pipe binds, not waits
    wide = [named(f"IMAD.WIDE R{8 + 2 * i}, R2, R3, R4") for i in range(100)]
    assert run(wide) == pytest.approx(2 * run(apart), rel=0.05)


def test_tensor_cores_reach_the_rate_of_the_chip():
    code = [named(f"IMMA.8816.S8.S8 R{8 + 2 * i % 64}, R2.ROW, R3.COL, RZ") for i in range(1000)]
    time = run(code, warps=2)
    assert 2 * 1000 * 1024 / time == pytest.approx(T4.macs / sm.PARTS, rel=0.05)
    rate = 2 * T4.macs * T4.sms * T4.ghz / 1e3
    assert rate == pytest.approx(130, rel=0.01)  # TOP/s of the data sheet


def test_loads_wait_for_memory_and_overlap():
    one = [named("LDG.E.SYS R4, [R2]"), named("IADD3 R5, R4, 0x1, RZ")]
    two = [named("LDG.E.SYS R4, [R2]"), named("LDG.E.SYS R6, [R2]"), *one[1:]]
    assert T4.latency.cache <= run(one) < run(one, memory=True)
    assert run(two) < run(one) + 50


def test_warps_of_a_block_wait_at_a_barrier():
    slow = [named("IMAD R2, R2, R3, R4")] * 200
    tail = [named("BAR.SYNC 0x0"), *[named("IMAD R2, R2, R3, R4")] * 100]
    together = sm.clocks([slow + tail, tail], [0, 0], T4, False)
    apart = sm.clocks([slow + tail, tail], [0, 1], T4, False)
    assert together >= apart > 300 * T4.latency.imad * 0.99
    alone = sm.clocks([tail], [0], T4, False)
    assert alone == pytest.approx(100 * T4.latency.imad + sm.BARRIER, rel=0.1)


# ---- libraries ----


def test_launches_of_a_run(library):
    dense, attention = predict.Model(library, T4).run(3, 128)
    assert (dense.blocks, attention.blocks) == (COLUMNS // 16 * 3 * 128 // ROWS, 3 * 4 * 128 // 8)
    assert dense.macs == 3 * 128 * COLUMNS * DEPTH
    # 8 rows x 8 keys x 16 channels of a head in a trip
    assert attention.macs == 3 * 4 * 128 * 128 * 16
    assert dense.dram == 0  # the weights of so small a model stay in the cache
    assert dense.cache > COLUMNS * DEPTH


def test_large_weights_come_from_memory(library):
    model = predict.Model(library, replace(T4, l2=1000))
    assert model.run(1, 128)[0].dram >= COLUMNS * DEPTH


def test_a_table_is_read_by_the_row(library):
    model = predict.Model(library, T4)
    assert model.weights == model.touched("w", None) == COLUMNS * DEPTH
    assert model.touched("w", 3) == 3 * DEPTH
    assert model.touched("w", 1000) == COLUMNS * DEPTH
    assert model.touched("x", 3) == 0


def test_more_work_takes_longer_and_a_lower_clock_too(library):
    def total(shape, **options):
        (one,) = predict.predict(library, "t4", [shape], **options).shapes
        return one.milliseconds - one.gaps

    assert total((1, 128)) < total((8, 128)) < total((8, 256))
    assert total((8, 256), ghz=0.795) > 1.5 * total((8, 256))


def test_a_power_cap_lowers_the_clock(library):
    (free,) = predict.predict(library, "t4", [(8, 256)]).shapes
    (capped,) = predict.predict(library, "t4", [(8, 256)], watts=20).shapes
    assert free.ghz == T4.ghz
    assert predict.SLOWEST * T4.ghz < capped.ghz < free.ghz
    assert capped.milliseconds > free.milliseconds
    assert capped.watts == pytest.approx(20, rel=0.01) and 20 < free.watts < 70


def test_small_launches_choose_their_version(library):
    plan = library.plan
    small = {**plan["launches"]["dense"][0], "limit": 64, "function": "attention_v0"}
    launches = {**plan["launches"], "dense": [small, *plan["launches"]["dense"]]}
    other = types.SimpleNamespace(**{**vars(library), "plan": {**plan, "launches": launches}})
    model = predict.Model(other, T4)
    assert [model.run(1, n)[0].function for n in (64, 65)] == ["attention_v0", "dense_v0"]


def test_blocks_that_a_multiprocessor_holds(library):
    model = predict.Model(library, T4)
    assert model.resident(Function("f", registers=16), 32) == 16
    assert model.resident(Function("f", registers=16), 256) == 4
    assert model.resident(Function("f", registers=128), 128) == 4
    assert model.resident(Function("f", registers=129), 256) == 1
    assert model.resident(Function("f", registers=16, shared=33 << 10), 64) == 1


def test_code_for_another_chip_is_refused(library):
    with pytest.raises(IntformerError, match=r"it is for sm_75; code for sm_90"):
        predict.predict(library, "h200")
    with pytest.raises(IntformerError, match="known: t4, a100, h100, h200"):
        predict.predict(library, "t5")
    with pytest.raises(IntformerError, match="513 tokens"):
        predict.predict(library, "t4", [(1, 513)])


def test_the_report_says_that_it_is_unchecked(library):
    found = predict.predict(library, "t4", [(1, 128), (1, 64)])
    lines = prediction_lines(found)
    assert "UNCHECKED" in lines[0] and "Tesla T4" in lines[0]
    assert any("TensorRT INT8" in line for line in lines)
    assert all(any(text in line for line in lines) for text in predict.ASSUMPTIONS)
    assert any(line.startswith("dense_v0") for line in lines)
    plain = found.to_json()
    assert plain["shapes"][0]["published"]["TensorRT INT8"] == 1.69
    assert plain["shapes"][1]["published"] == {} and not plain["checked"]


@pytest.mark.parametrize("arguments", [["--shapes", "1x"], ["--clock", "0"], ["--watts", "x"]])
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["bench", "a.so", "--predict", "t4", *arguments])
