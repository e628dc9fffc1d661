"""Every op and every fused group, compiled alone for every target: equal to the reference.

Inputs are made to be hard: whole domains, saturation, exact ties, both signs of every multiplier,
widths that are no multiple of a vector, all lengths. Nothing is compared with a tolerance.
"""

import functools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import te
from tvm.runtime import tensor
from tvm.s_tir import Schedule

from intformer.backends.targets import TARGETS
from intformer.passes.fuse import CHAINS
from intformer.relay_ops import (
    OPS,
    attention,
    attention_ibert,
    expr,
    gate,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_stream_norm,
    i_tanh,
    rotary,
    weighted_pool,
)
from intformer.relay_ops.fixedpoint import dyadic, make_dyadic, mul_round
from intformer.schedules.kernels import cpu_attention_tiled
from intformer.schedules.space import CHUNK_BYTES
from intformer_testing.kernels import (
    Chain,
    Graph,
    Program,
    built,
    integers,
    on_every_cpu,
    on_every_target,
)

INT32_MAX = 2**31 - 1
IDENTITY, HALF = (2**30, 30), (2**30, 31)
WIDTHS = (1, 2, 3, 60, 312)
MIXED = (1, 2, 3, 5, 8, 9, 31, 32, 33)
LONG = (511, 3, 512)
few = settings(
    derandomize=True,
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def i32(*x):
    return np.array(x, np.int32)


def offsets(lengths):
    return np.cumsum([0, *lengths]).astype(np.int32)


def wide(rng, limit, shape):
    """Random integers of every magnitude up to limit (a number or one per column), both signs."""
    size = np.exp(rng.uniform(0, np.log(np.maximum(limit, 1) + 0.0), shape)).astype(np.int64)
    return np.minimum(size, limit) * rng.choice([-1, 1], shape)


# -- change of scale -------------------------------------------------------------------------------


def every_shift():
    """Mult and shift [372]: every shift, both signs, ends, a power of two, a small one and 0."""
    mults = (INT32_MAX, -INT32_MAX, -(2**30), 2**20, 12, 0)
    mult, shift = np.meshgrid(mults, np.arange(1, 63))
    return mult.ravel().astype(np.int32), shift.ravel().astype(np.int32)


def reach(mult, shift, limit=INT32_MAX):
    """Largest |x| per channel, up to 2^31 - 1, with |x mult / 2^shift| <= limit."""
    return np.array(
        [
            min(INT32_MAX, (limit << int(s)) // abs(int(m)) if m else INT32_MAX)
            for m, s in zip(mult, shift, strict=True)
        ]
    )


def rows_for(mult, shift, rng, limit=INT32_MAX):
    """x int64 [r, C]: ends of the legal range, exact halves, their neighbours, random numbers."""
    top = reach(mult, shift, limit)
    # x mult is 2^(shift - 1) times an odd number where x is `step` times an odd number
    twos = np.array([(int(m) & -int(m)).bit_length() - 1 if m else 0 for m in mult])
    step = np.left_shift(np.int64(1), np.maximum(shift - 1 - twos, 0).astype(np.int64))
    odd = np.array([1, 3, 5, 7, 1001, 2**20 + 1])[:, None]
    ties = step * np.minimum(odd, (top // step - 1) | 1)
    ties = np.concatenate([ties, -ties])
    ends = np.stack([top, -top, top - 1, 1 - top, 0 * top, 0 * top + 1, 0 * top - 1])
    x = np.concatenate([ends, ties, ties + 1, ties - 1, wide(rng, top, (40, len(top)))])
    return np.clip(x, -top, top)


LIMITS = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1), "int32": (-(2**31), INT32_MAX)}
RESCALED = [  # given value, its type, result's type, which of them a matmul reads too
    ("a", "int32", "int32", ""),
    ("b", "int32", "int8", "result"),
    ("c", "int16", "int32", ""),
    ("d", "int8", "int16", "source"),
    ("e", "int8", "int8", ""),
]


@functools.cache
def rescaling(target):
    """Requantize alone, between all types, by `every_shift`."""
    g = Graph()
    for name, source, result, operand in RESCALED:
        g.given(name, source, 372)
        lo, hi = LIMITS[result]
        g.op("requantize", [name, *every_shift()], f"{name}y", result, 372, lo=lo, hi=hi)
        if operand:
            g.operand(name if operand == "source" else f"{name}y")
    return Program(g, target)


@on_every_target
def test_requantize(target):
    mult, shift = every_shift()
    x = rows_for(mult, shift, np.random.default_rng(0))
    lowest = np.where(mult == 0, -(2**31), 0)[None]
    bytes_ = np.broadcast_to(np.arange(-128, 128)[:, None], (256, 372))
    top = reach(mult, shift)
    arrays = {}
    for name, source, _, _ in RESCALED:
        low, high = LIMITS[source]
        rows = np.concatenate([x, lowest] if source == "int32" else [x, bytes_])
        rows = rows.clip(low, high).clip(-top - (mult == 0), top)
        arrays[name] = rows.astype(source)
    rescaling(target).check(arrays)


@on_every_target
@few
@given(seed=st.integers(0, 2**32))
def test_requantize_by_any_multiplier(target, seed):
    rng = np.random.default_rng(seed)
    mult = wide(rng, INT32_MAX, 372).astype(np.int32)
    shift = integers(rng, 1, 62, 372, np.int32)
    x = rows_for(mult, shift, rng)
    arrays, tables = {}, {}
    for name, source, _, _ in RESCALED:
        arrays[name] = x.clip(*LIMITS[source]).astype(source)
        tables |= {f"{name}y.1": mult, f"{name}y.2": shift}
    rescaling(target).check(arrays, tables)


@functools.cache
def rescaled(target):
    """Rescale alone: to int8 as an operand and not, to int16; no lift, a small and a large one."""
    g = Graph()
    tables = np.ones(CHANNELS, np.int32), np.zeros(CHANNELS, np.int32)
    for name, result, lift in (("a", "int8", 0), ("b", "int8", 3), ("c", "int16", 4)):
        g.given(name, "int32", CHANNELS)
        lo, hi = LIMITS[result]
        limits = {"lift": lift, "lo": lo + 1, "hi": hi}
        g.op("rescale", [name, *tables], f"{name}y", result, CHANNELS, **limits)
    g.operand("by")
    return Program(g, target)


CHANNELS = 83  # five vectors of 16 and a part of one


def check_rescale(program, mult, rng):
    """x to both ends of the sum in int32; results around every rounding."""
    offset = np.where(mult > 1, np.rint(2**31 / np.maximum(mult, 2)), 0).astype(np.int64)
    arrays, tables = {}, {}
    for name, lift in (("a", 0), ("b", 3), ("c", 4)):
        low = np.maximum(-(-(-(2**31) - offset) // 2**lift), -(2**31))  # rounded up
        high = (2**31 - 1 - offset) // 2**lift
        step = np.maximum(2**32 / np.maximum(mult, 1) / 2**lift, 1e-9)  # of x, per output LSB
        at = np.arange(-140, 141)[:, None] * step + rng.integers(-1, 2, (281, CHANNELS))
        random = rng.integers(low, high + 1, (40, CHANNELS))
        rows = np.concatenate([[low, high, 0 * low, low + 1, high - 1], at, at + step / 2, random])
        arrays[name] = np.clip(rows, low, high).astype(np.int32)
        tables |= {f"{name}y.1": mult.astype(np.int32), f"{name}y.2": offset.astype(np.int32)}
    program.check(arrays, tables)


@on_every_target
def test_rescale(target):
    rng = np.random.default_rng(0)
    special = [0, 2, 3, 2**16, 2**16 + 1, 2**30, 2**30 - 1, INT32_MAX, INT32_MAX - 1]
    check_rescale(rescaled(target), np.resize(np.array(special), CHANNELS), rng)
    check_rescale(rescaled(target), (2 ** rng.uniform(1, 31, CHANNELS)).astype(np.int64), rng)


@on_every_target
def test_requantize16(target):
    """Every int16 but -2^15, as an operand and not; every down, mult at its ends."""
    g = Graph()
    tables = np.ones(CHANNELS, np.int16), np.ones(CHANNELS, np.int16)
    x = g.given("x", "int16", CHANNELS)
    for out in ("y", "z"):
        g.op("requantize16", [x, *tables], out, "int8", CHANNELS)
    g.operand("z")
    mults = np.resize(np.array([2**14, 2**15 - 1, 0, 1, 23170, 2**14 + 1], np.int16), CHANNELS)
    downs = np.resize(2 ** np.arange(15), CHANNELS).astype(np.int16)
    tables = {"y.1": mults, "y.2": downs, "z.1": np.roll(mults, 1), "z.2": downs}
    x = np.arange(-(2**15) + 1, 2**15)
    x = np.stack([np.resize(np.roll(x, shift * 1000), 9999) for shift in range(CHANNELS)], 1)
    Program(g, target).check({"x": x.astype(np.int16)}, tables)


@on_every_target
def test_add(target):
    g = Graph()
    terms = [g.given(name, "int16", 60) for name in "ab"]
    g.op("add", terms, "y", "int32", 60)
    rng = np.random.default_rng(0)
    a, b = (integers(rng, -(2**15), 2**15 - 1, (9, 60), np.int16) for _ in "ab")
    a[:2], b[:2] = [[-(2**15)], [2**15 - 1]], [[-(2**15)], [2**15 - 1]]
    Program(g, target).check({"a": a, "b": b})


def lanes_of(target, op, lanes, a, b):
    """Apply expr.`op` to a and b [n] in vectors of `lanes`."""
    first, second = (te.placeholder(x.shape, str(x.dtype)) for x in (a, b))
    out = te.compute(a.shape, lambda i: getattr(expr, op)(first[i], second[i]), name="out")
    sch = Schedule(te.create_prim_func([first, second, out]))
    if lanes > 1:
        sch.vectorize(sch.split(sch.get_loops(sch.get_sblock("out"))[0], [None, lanes])[1])
    functions = built(sch.mod, target)
    result = tensor(np.zeros_like(a))
    functions["main"](tensor(a), tensor(b), result)
    return result.numpy()


@on_every_cpu
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_high_products(target, lanes):
    """The op of 32 x 32 bits, whatever the vectorizer makes of it."""
    rng = np.random.default_rng(0)
    special = [-(2**31), 1 - 2**31, -(2**30), -1, 0, 1, 2, 2**16, 2**30, INT32_MAX]
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    a, b = (np.concatenate([x, wide(rng, INT32_MAX, 924)]).astype(np.int32) for x in (a, b))
    want = (a.astype(np.int64) * b) >> 32
    assert (lanes_of(target, "mul_high", lanes, a, b) == want).all()


@on_every_cpu
@pytest.mark.parametrize("lanes", [1, 4, 8, 16, 32])
def test_rounded_products(target, lanes):
    features = TARGETS[target].features
    needs = {16: "avx2", 32: "avx512bw"} if TARGETS[target].backend.name == "x86" else {}
    needs = needs.get(lanes)
    if needs and needs not in features:
        pytest.skip(f"{target} has no vectors of {lanes} int16")
    rng = np.random.default_rng(0)
    special = [-(2**15), 1 - 2**15, -(2**14), -1, 0, 1, 2**14, 2**15 - 1]
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    a, b = (np.concatenate([x, wide(rng, 2**15, 960)]) for x in (a, b))
    b = np.where((a == -(2**15)) & (b == -(2**15)), 5, b)  # the one product that does not fit
    a, b = (x.clip(*LIMITS["int16"]).astype(np.int16) for x in (a, b))
    want = mul_round(a, b)
    assert want.max() == 2**15 - 1
    assert (lanes_of(target, "mul_round", lanes, a, b) == want).all()


@on_every_target
def test_residual_add(target):
    """Both ends of int32, every int8, halves; the residual stored as int8, unsigned, and wider."""
    g = Graph()
    ends = {"lo": -(2**31), "hi": INT32_MAX}
    dtypes = ("int8", "int16", "int32")
    for dtype in dtypes:
        terms = [g.given(f"{dtype}_a", "int32", 60), g.given(f"{dtype}_b", dtype, 60)]
        g.op("residual_add", [*terms, i32(1), i32(1)], dtype, "int32", 60, **ends)
    g.operand("int8_b")
    program = Program(g, target)
    rng = np.random.default_rng(0)
    for mult, shift in (HALF, (-(2**30), 31), IDENTITY, (-INT32_MAX, 31), (3, 2), (7, 62), (0, 1)):
        arrays, tables = {}, {}
        limit = reach([mult], [shift], 2**30)
        for dtype in dtypes:
            low, high = LIMITS[dtype]
            every = np.broadcast_to(np.arange(-128, 128)[:, None], (256, 60)) * (high // 127)
            b = np.concatenate([every, wide(rng, high, (100, 60))])
            b = b.clip(low, high).clip(-limit, limit)
            share = dyadic(b, mult, shift)
            a = wide(rng, 2**30, b.shape)
            a[:2] = np.clip([[INT32_MAX], [-(2**31)]] - share[:2], -(2**31), INT32_MAX)
            a[2:9] = np.arange(-3, 4)[:, None]
            arrays |= {f"{dtype}_a": a.astype(np.int32), f"{dtype}_b": b.astype(dtype)}
            tables |= {f"{dtype}.2": i32(mult), f"{dtype}.3": i32(shift)}
        program.check(arrays, tables)


@on_every_target
def test_residual_add_clamps(target):
    g = Graph()
    a, b = g.given("a", "int32", 256), g.given("b", "int8", 256)
    tables = [i32(2**30), i32(31)]
    g.op("residual_add", [a, b, *tables], "y", "int32", 256, lo=-150, hi=149)
    every, column = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    program = Program(g, target)
    program.check({"a": 2 * every.astype(np.int32), "b": column.astype(np.int8)})


@on_every_target
@pytest.mark.parametrize("width", [1, 60])
def test_relu_and_add_bias_at_the_ends_of_int32(target, width):
    rng = np.random.default_rng(0)
    bias = integers(rng, -(2**31), INT32_MAX, width, np.int32)
    g = Graph()
    x = g.given("x", "int32", width)
    g.op("relu", [x], "positive", "int32", width)
    g.op("add_bias", [x, bias], "moved", "int32", width)
    ends = np.clip([[-(2**31)], [INT32_MAX]] - bias.astype(np.int64), -(2**31), INT32_MAX)
    fits = integers(rng, -(2**31), INT32_MAX, (20, width), np.int64)
    x = np.concatenate([ends, np.clip(fits, ends[0], ends[1])])
    Program(g, target).check({"x": x.astype(np.int32)})


# -- functions -------------------------------------------------------------------------------------


@on_every_target
def test_gelu_of_every_legal_input(target):
    """Every form at every number of fraction bits, one kernel for each form."""
    g = Graph()
    g.given("x", "int16", 1001)
    for form, about in i_gelu.FORMS.items():
        for k in range(about.bits[0], about.bits[1] + 1):
            g.op("i_gelu", ["x", i_gelu.point(k, form)], f"{form}{k}", "int16", 1001, form=form)
    program = Program(g, target)
    assert len(set(program.kernels)) == len(i_gelu.FORMS)
    x = np.arange(-i_gelu.LIMIT, i_gelu.LIMIT + 1)
    program.check({"x": np.resize(x, (-(-len(x) // 1001), 1001)).astype(np.int16)})


@on_every_target
def test_gates(target):
    """Either half activated, as an operand and not; halves that are no whole vectors; extremes."""
    g, rng, arrays = Graph(), np.random.default_rng(0), {}
    for width in (3, 60, 64):
        x = g.given(f"x{width}", "int16", 2 * width)
        mult, offset = gate.tables(2.0 ** -rng.uniform(1, 23, width))
        for active, form in enumerate(("silu", "erf")):
            point = i_gelu.point(9 + active, form)
            more = {"form": form, "active": active}
            g.op("gate", [x, point, mult, offset], f"y{active}_{width}", "int8", width, **more)
        g.operand(f"y0_{width}")
        arrays[x] = integers(rng, -i_gelu.LIMIT, i_gelu.LIMIT, (41, 2 * width), np.int16)
        arrays[x][:2], arrays[x][2, ::2] = [[-i_gelu.LIMIT], [i_gelu.LIMIT]], -i_gelu.LIMIT
    Program(g, target).check(arrays)


@on_every_target
@pytest.mark.parametrize(("heads", "size"), [(3, 64), (2, 20), (1, 2)])
def test_rotary(target, heads, size):
    """Halves of whole vectors and not; every position, in any order; pairs that overflow int8."""
    g, rng = Graph(), np.random.default_rng(0)
    x = g.given("x", "int16", 3 * heads * size)
    angles = np.arange(37)[:, None] * rng.uniform(0, 1, size // 2)
    tables = rotary.tables(np.cos(angles), np.sin(angles))
    about = {"heads": heads, "head_dim": size}
    g.op("rotary", [x, "position_ids", *tables], "y", "int8", 3 * heads * size, **about)
    program = Program(g, target)
    for rows in (1, 8, 37):
        qkv = integers(rng, -(2**15) + 1, 2**15 - 1, (rows, 3 * heads * size), np.int16)
        qkv[0] = 2**15 - 1
        places = rng.permutation(37)[:rows].astype(np.int32)
        program.check({"x": qkv, "position_ids": places, "cu_seqlens": offsets([rows])})


@on_every_target
def test_attention_of_turned_heads(target):
    """Heads whose halves are padded apart: attention reads them so, and its context is so."""
    heads, size, rng = 2, 20, np.random.default_rng(0)
    g = Graph(64)
    x = g.given("x", "int16", 3 * heads * size)
    angles = np.arange(64)[:, None] * rng.uniform(0, 1, size // 2)
    about = {"heads": heads, "head_dim": size}
    inputs = [x, "position_ids", *rotary.tables(np.cos(angles), np.sin(angles))]
    g.op("rotary", inputs, "y", "int8", 3 * heads * size, **about)
    tables = attention.tables(0.01, 1.0, 0.02, size, np.full(heads * size, 0.02))
    inputs = ["y", "cu_seqlens", *tables.values()]
    g.op("attention", inputs, "context", "int8", heads * size, **about)
    lengths = (1, 17, 8, 33)
    places = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    qkv = integers(rng, -(2**14), 2**14, (len(places), 3 * heads * size), np.int16)
    arrays = {"x": qkv, "position_ids": places, "cu_seqlens": offsets(lengths)}
    Program(g, target).check(arrays)


@on_every_target
def test_tanh_of_every_input(target):
    g = Graph()
    g.op("i_tanh", [g.given("x", "int32", 312)], "y", "int32", 312)
    x = np.arange(-i_tanh.EDGE - 5, i_tanh.EDGE + 6)
    x = np.resize(x, (-(-len(x) // 312), 312)).astype(np.int32)
    ends = np.resize(i32(-(2**31), 1 - 2**31, INT32_MAX, -(2**30), 2**30), (1, 312))
    Program(g, target).check({"x": np.concatenate([x, ends])})


@functools.cache
def ibert_gelu(target):
    g = Graph()
    tables = i_gelu_ibert.tables(np.full(60, 1e-3), 0.05)
    x = g.given("x", "int32", 60)
    y = g.op("i_gelu_ibert", [x, *tables.values()], "y", "int8", 60, lo=-128, hi=127)
    g.operand(y)
    return Program(g, target)


def check_ibert_gelu(program, scale, ratio, rng):
    scale = np.broadcast_to(np.float32(scale), 60)
    scale_out = -i_gelu_ibert.product_scale(scale).min() / ratio
    tables = i_gelu_ibert.tables(scale, scale_out)
    edge = -tables["b"].astype(np.int64)
    # the largest |x| that bounds allows
    peak = (np.maximum(abs(tables["c"]), abs(edge**2 + tables["c"])) >> 14) + 1 + abs(tables["one"])
    top = np.minimum(INT32_MAX, 2**61 // peak - 1)
    ends = np.stack([top, -top, edge, -edge, edge - 1, 1 - edge, edge + 1, 0 * top, 0 * top + 1])
    near = integers(rng, -1, 1, (40, 60), np.int64) * np.minimum(2 * edge, top)
    near = (near * rng.uniform(0, 1, near.shape)).astype(np.int64)
    x = np.concatenate([ends, near, wide(rng, top, (40, 60))]).clip(-top, top)
    tables = {f"y.{i + 1}": table for i, table in enumerate(tables.values())}
    program.check({"x": x.astype(np.int32)}, tables)


@on_every_target
def test_ibert_gelu(target):
    rng = np.random.default_rng(0)
    for scale in (i_gelu_ibert.MIN_SCALE, 1e-5, np.geomspace(1e-6, 1e-1, 60), 0.7):
        for ratio in (0.2, 1e-4, 1e-9):
            check_ibert_gelu(ibert_gelu(target), scale, ratio, rng)


@on_every_target
@pytest.mark.parametrize("sign", [1, -1])
def test_ibert_gelu_ties(target, sign):
    """b = c = 0 leave x mult / 2^shift: exact halves, and what is next to them by the low word."""
    shift = np.resize(np.arange(33, 61), 60).astype(np.int32)
    half = np.left_shift(np.int64(1), shift.astype(np.int64) - 31)  # mult is 2^30
    odd = np.array([1, -1, 3, -3, 5, 7, 1001])[:, None]
    x = np.concatenate([odd * half + near for near in (-1, 0, 1)])
    tables = [np.zeros(60, np.int32), np.zeros(60, np.int64), np.ones(60, np.int32)]
    tables += [np.full(60, sign * 2**30, np.int32), shift]
    tables = {f"y.{i + 1}": table for i, table in enumerate(tables)}
    x = np.where(np.abs(x) <= INT32_MAX, x, half)
    ibert_gelu(target).check({"x": x.astype(np.int32)}, tables)


@on_every_target
def test_ibert_gelu_at_the_ends_of_mult_and_shift(target):
    x = np.concatenate([np.arange(-40, 40), [INT32_MAX, -(2**31)]])[:, None] * np.ones(60, np.int64)
    one = np.resize(i32(1, -1, 2, 4, 2**29, -(2**29), 3, 2**9, 2**16, 0), 60)
    for mult, shift in ((2**30, 40), (INT32_MAX, 93), (-INT32_MAX, 60), (INT32_MAX, 61), (0, 33)):
        tables = [np.zeros(60, np.int32), np.zeros(60, np.int64), one]
        tables += [np.full(60, mult, np.int32), np.full(60, shift, np.int32)]
        tables = {f"y.{i + 1}": table for i, table in enumerate(tables)}
        ibert_gelu(target).check({"x": x.astype(np.int32)}, tables)


# -- dense -----------------------------------------------------------------------------------------

DENSE = [(1, 1), (3, 2), (26, 60), (60, 312), (312, 26), (33, 3072)]


@functools.cache
def dense(target, n, k):
    """Matmul, and a requantize that keeps the accumulator as it is."""
    g = Graph()
    x = g.given("x", "int8", k)
    acc = g.op("matmul", [x, np.ones((n, k), np.int8), np.zeros(n, np.int32)], "acc", "int32", n)
    scale = np.full(n, IDENTITY[0], np.int32), np.full(n, IDENTITY[1], np.int32)
    ends = {"lo": -(2**31), "hi": INT32_MAX}
    g.op("requantize", [acc, *scale], "y", "int32", n, **ends)
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize(("n", "k"), DENSE)
def test_matmul_accumulators(target, n, k):
    """Saturated, alternating and random operands; sums that end at either end of int32."""
    program = dense(target, n, k)
    assert program.kernels == ["dense_0"]
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(k) % 2, 1, -1)
    rows = [np.full(k, v) for v in (127, -127, -128, 0)] + [127 * sign, -128 * sign]
    w = np.stack([*(np.resize(r, k) for r in rows), *integers(rng, -127, 127, (n, k), np.int64)])
    x = np.concatenate([rows, integers(rng, -128, 127, (11, k), np.int64)])
    for start in (0, 4):
        weight = w[start : start + n].astype(np.int8)
        reached = np.abs(weight.astype(np.int64)).sum(1) * 255  # of the unsigned form
        for bias in (np.zeros(n), INT32_MAX - reached, reached - 2**31, wide(rng, 2**20, n)):
            bias = bias.astype(np.int32)
            program.check({"x": x.astype(np.int8)}, {"acc.1": weight, "acc.2": bias})


@on_every_target
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_any_number_of_rows(target, chunk):
    """Around every multiple of eight rows, and of the rows that pass by one tile of columns."""
    rng = np.random.default_rng(chunk)
    weight = integers(rng, -127, 127, (33, 3072), np.int8)
    first = chunk * (CHUNK_BYTES // (8 * 3072)) * 8
    for count in (first - 1, first, first + 1, first + 8, first + 16):
        if count > 0:
            x = integers(rng, -128, 127, (count, 3072), np.int8)
            dense(target, 33, 3072).check({"x": x}, {"acc.1": weight})


# -- chains ----------------------------------------------------------------------------------------


EVERY_CHAIN = [(name, chain) for name, chains in CHAINS.items() for chain in chains]


@on_every_target
@pytest.mark.parametrize(("name", "ops"), EVERY_CHAIN, ids=["-".join(c) for _, c in EVERY_CHAIN])
def test_every_fused_chain(target, name, ops):
    chain = Chain(ops, 60, 26)
    program = Program(chain.graph, target)
    assert program.kernels == [f"{name}_0"]
    program.check(chain.arrays)


NATIVE_CHAINS = [ops for _, ops in EVERY_CHAIN if {"rescale", "add"} & set(ops)]


@on_every_target
@pytest.mark.parametrize("ops", NATIVE_CHAINS, ids=["-".join(ops) for ops in NATIVE_CHAINS])
@pytest.mark.parametrize("width", [16, 48, 80])
def test_native_chains_of_an_odd_number_of_vectors(target, ops, width):
    """Blocks of 16-bit numbers want twice the lanes, which these tiles do not have everywhere."""
    chain = Chain(ops, 128, width, seed=width)
    program = Program(chain.graph, target)
    assert len(program.kernels) == 1
    program.check(chain.arrays)


# -- LayerNorm -------------------------------------------------------------------------------------


def norm_rows(n, limit, rng):
    """x int32 [r, n] with |x| <= limit: constant, of one LSB, of one channel, saturated, random."""
    one = np.eye(n, dtype=np.int64)[[0, n // 2, n - 1]]
    sign = np.where(np.arange(n) % 2, 1, -1)
    rows = [np.full(n, v) for v in (0, 1, -1, 77, limit, -limit)]
    rows += [c + o for c in (0, -5, limit - 1, -limit) for o in one]
    rows += [s * limit * o for s in (1, -1) for o in one]
    rows += [limit * sign, 4 * sign, limit - (sign > 0), np.where(np.arange(n) < 4, 4 * sign, 0)]
    rows += [integers(rng, -m, m, n, np.int64) for m in (1, 3, 100, 5000, limit, limit, limit)]
    rows += [c + integers(rng, -3, 3, n, np.int64) for c in (1000, 3 - limit, limit - 3)]
    return np.stack(rows).astype(np.int32)


@functools.cache
def norm(target, n):
    g = Graph()
    tables = i_layernorm.tables(1e-3, np.ones(n), np.zeros(n), 1e-12, 1.0, 1.0)
    x = g.given("x", "int32", n)
    inputs = [x, *tables.values()]
    g.op("i_layernorm", inputs, ("y8", "y16"), ("int8", "int16"), n)
    g.operand("y8")
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize("n", [*WIDTHS, 4096])
def test_layernorm(target, n):
    program = norm(target, n)
    assert program.kernels == ["layernorm_0"]
    rng = np.random.default_rng(n)
    x = norm_rows(n, i_layernorm.INPUT_LIMIT, rng)
    gamma = rng.uniform(0.1, 3, n) * rng.choice([-1, 1], n)
    gamma[n // 3] = 0
    beta = rng.normal(size=n)
    for scale, eps, step8 in ((1e-3, 1e-12, 0.02), (1e-5, 1e-12, 1.0), (0.3, 1e-5, 0.1)):
        tables = i_layernorm.tables(scale, gamma, beta, eps, step8, step8 / 200)
        named = {f"y8.{i + 1}": table for i, table in enumerate(tables.values())}
        for whole_eps in (tables["eps"][0], 0, 1, i_layernorm.EPS_LIMIT - 1):
            program.check({"x": x}, {**named, "y8.1": np.array([whole_eps])})


@on_every_target
def test_layernorm_affine_extremes(target):
    """Largest mult and bias of either sign, beta on and next to a rounding, mult of few bits."""
    n = 60
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(n) % 2, 1, -1)
    largest, zero = (INT32_MAX * sign).astype(np.int32), np.zeros(n, np.int32)
    limit = (i_layernorm.BIAS_LIMIT * sign).astype(np.int32)
    near = (np.arange(n) - 30).astype(np.int32) * 64 + integers(rng, -1, 1, n, np.int32)
    power = np.resize(i32(0, 1, -1, 2**10, -(2**20)), n)
    x = norm_rows(n, i_layernorm.INPUT_LIMIT, rng)
    for mult, bias in ((zero, limit), (zero, near), (power, near), (largest, limit)):
        tables = {"y8.2": mult, "y8.3": bias, "y8.4": mult[::-1], "y8.5": -bias}
        norm(target, n).check({"x": x}, tables)


@on_every_target
def test_layernorm_of_int16(target):
    """GELU's int16 goes into a LayerNorm as it is."""
    n = 60
    g = Graph()
    tables = i_layernorm.tables(2.0**-12, np.ones(n), np.zeros(n), 1e-12, 0.03, 1e-3)
    x = g.given("x", "int16", n)
    g.op("i_layernorm", [x, *tables.values()], ("y8", "y16"), ("int8", "int16"), n)
    x = norm_rows(n, 2**15 - 1, np.random.default_rng(0)).astype(np.int16)
    Program(g, target).check({"x": x})


@functools.cache
def stream_norm(target, n, rms, dtype):
    g = Graph()
    tables = i_stream_norm.tables(1e-3, np.ones(n), np.zeros(n), 1e-5, 1.0)
    inputs = [g.given("x", "int32", n), *tables.values()]
    y = g.op("i_stream_norm", inputs, "y", dtype, n, rms=rms)
    if dtype == "int8":
        g.operand(y)
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("n", [1, 3, 60, 312, 4096])
def test_stream_norm(target, n, rms):
    """Rows on both sides of where they lose bits, and at the limit."""
    rng = np.random.default_rng(n)
    kept = 2 ** i_stream_norm.kept_bits(n)
    sizes = {i_stream_norm.INPUT_LIMIT, 2**16, kept, kept + 1}
    x = np.concatenate([norm_rows(n, min(size, 2**25), rng) for size in sizes])
    gamma = rng.uniform(0.1, 3, n) * rng.choice([-1, 1], n)
    program = stream_norm(target, n, rms, "int16" if n == 60 else "int8")
    assert program.kernels == ["layernorm_0"]
    for scale, eps, step in ((1e-3, 1e-12, 0.02), (1e-5, 1e-6, 1.0), (0.3, 1e-5, 0.1)):
        tables = i_stream_norm.tables(scale, gamma, rng.normal(size=n), eps, step)
        named = {f"y.{i + 1}": table for i, table in enumerate(tables.values())}
        for whole_eps in (tables["eps"][0], i_layernorm.EPS_LIMIT - 1):
            program.check({"x": x}, {**named, "y.1": np.array([whole_eps])})


@functools.cache
def ibert_norm(target, n):
    g = Graph()
    tables = i_layernorm_ibert.tables(np.ones(n), np.zeros(n), 0.05)
    inputs = [g.given("x", "int32", n), *tables.values(), i32(0)]
    y = g.op("i_layernorm_ibert", inputs, "y", "int8", n, lo=-128, hi=127)
    g.operand(y)
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize("n", [*WIDTHS, 768])
def test_ibert_layernorm(target, n):
    program = ibert_norm(target, n)
    assert program.kernels == ["layernorm_0"]
    rng = np.random.default_rng(n)
    x = norm_rows(n, i_layernorm_ibert.INPUT_LIMIT, rng)
    gamma = rng.uniform(0.1, 3, n) * rng.choice([-1, 1], n)
    beta = rng.uniform(-1, 1, n) * np.abs(gamma)
    for prescale in (0, 1, 2, 5, 10, 16):
        for scale_out in (0.001, 0.02, 0.5):
            tables = i_layernorm_ibert.tables(gamma, beta, scale_out).values()
            named = {f"y.{i + 1}": table for i, table in enumerate([*tables, i32(prescale)])}
            program.check({"x": x}, named)


@on_every_target
def test_ibert_layernorm_ties(target):
    """y + bias is a multiple of 2^k or half way between two; mult a power of two of either sign."""
    n = 60
    x = norm_rows(n, 2**10, np.random.default_rng(0))
    for shift in (1, 10, 24, 31, 62):
        named = {
            "y.1": np.arange(n).astype(np.int32) * 2**9 - 2**12,
            "y.2": np.resize(i32(1, -1, 2**5, -(2**10), 2**20, 0), n),
            "y.3": np.full(n, shift, np.int32),
            "y.4": i32(0),
        }
        ibert_norm(target, n).check({"x": x}, named)


@on_every_target
@few
@given(seed=st.integers(0, 2**32), size=st.integers(0, 22))
def test_both_layernorms_on_any_rows(target, seed, size):
    rng = np.random.default_rng(seed)
    x = integers(rng, -(2**size), 2**size, (24, 60), np.int32)
    x += integers(rng, -(2 ** (22 - size)), 2 ** (22 - size), (24, 1), np.int32)
    ibert_norm(target, 60).check({"x": x.clip(-(2**22), 2**22)}, {"y.4": i32(seed % 17)})
    gamma, beta = rng.normal(size=60), rng.normal(size=60)
    tables = i_layernorm.tables(2.0**-size, gamma, beta, 1e-12, 0.05, 3e-4)
    named = {f"y8.{i + 1}": table for i, table in enumerate(tables.values())}
    norm(target, 60).check({"x": x.clip(-(2**17), 2**17)}, named)


# -- attention -------------------------------------------------------------------------------------

HEADS = {16: 3, 26: 3, 32: 2, 48: 1, 64: 2, 80: 1}
ATTENTION = ("attention", "attention_bias", "attention_ibert")
SHAPES = [(op, dim, 512) for op in ATTENTION for dim in HEADS]
SHAPES += [("attention", 16, 1), ("attention", 128, 40), ("attention_ibert", 16, 33)]
SHAPES += [("attention_bias", 16, 1), ("attention_bias", 26, 33), ("attention_bias", 64, 40)]
SHAPES += [("attention_relative", dim, n) for dim, n in ((16, 1), (26, 33), (64, 512))]
LONGER = [*((op, dim) for op in ATTENTION for dim in HEADS), ("attention_relative", 64)]


@functools.cache
def attending(target, op, dim, max_length, **attrs):
    heads = HEADS.get(dim, 1)
    channels = heads * dim
    g = Graph(max_length)
    if op != "attention_ibert":
        tables = attention.tables(0.05, 0.05, 0.05, dim, np.full(channels, 0.03))
        if op == "attention_bias":
            tables["bias"] = distances(heads, max_length, 2000)
        if op == "attention_relative":
            tables |= operands_of_distances(channels, max_length, 127)
    else:
        tables = attention_ibert.tables(1e-3, 2.79e6 * 2.0**30, 0.05, 0.03, channels)
    qkv = g.given("qkv", "int8", 3 * channels)
    inputs = [qkv, "cu_seqlens", *tables.values()]
    out = g.op(op, inputs, "out", "int8", channels, heads=heads, head_dim=dim, **attrs)
    if dim != 32:
        g.operand(out)
    return Program(g, target)


def distances(heads, longest, most):
    """A bias for every head and distance, no two alike in sign and size; up to +-most."""
    rng = np.random.default_rng(longest)
    return integers(rng, -most, most, (heads, 2 * longest - 1), np.int32)


def operands_of_distances(channels, longest, most):
    """Keys and queries of every distance, no two alike; up to +-most."""
    rng = np.random.default_rng(longest)
    shape = 2 * longest - 1, channels
    return {name: integers(rng, -most, most, shape, np.int8) for name in ("keys", "queries")}


def relative_tables(dim, channels, rng, longest):
    """Tables by name: those of native_tables, with distances that decide nothing, little, much."""
    for number, table in enumerate(native_tables(dim, channels, rng)):
        made = operands_of_distances(channels, longest, (0, 1, 12, 127)[number % 4])
        if number % 4 == 3:  # all at once: the largest scores
            made["keys"][::2], made["queries"][1::3] = 127, -127
        yield table | {"out.5": made["keys"], "out.6": made["queries"]}


def biased_tables(dim, channels, rng, longest):
    """Tables by name: those of native_tables, with a bias that decides little, much, or all."""
    heads = channels // dim
    for number, table in enumerate(native_tables(dim, channels, rng)):
        most = (0, 1, 300, 10**4, 2**20, 2**29)[number % 6]
        yield table | {"out.5": distances(heads, longest, most)}


def native_tables(dim, channels, rng):
    """Tables by name of a usual head, flat ones, and one whose maximum takes nearly all."""
    for score in (0.05**2, 0.0, 1e-9, 1e-6, 1e-4, 0.34):  # real units per LSB of q . k
        for ratio in (rng.uniform(0.3, 3, channels), rng.uniform(1e-6, 300, channels)):
            tables = attention.tables(score * np.sqrt(dim), 1.0, ratio, dim, 1.0)
            names = ("out.2", "out.3", "out.4")
            yield dict(zip(names, tables.values(), strict=True))


def ibert_tables(dim, channels, rng):
    """Tables by name: usual scores, coarse and fine ones, numerators all 0 and all at the limit."""
    mixed = make_dyadic(rng.choice([-1, 0, 1], channels) * rng.uniform(1e-3, 1e-1, channels))
    tie = np.resize(i32(1, -1, 3, 2**15), channels), np.resize(i32(1, 2, 3, 19), channels)
    for scale, act in ((1e-3, 1), (0.05, 1), (0.6, 1.7), (5.2e-6, 2), (1e-3, 1e9), (0.02, 1e-6)):
        c = np.floor(attention_ibert.C / attention_ibert.A / scale**2)
        tables = attention_ibert.tables(scale, act * c * 2.0**30 * 2, 0.05, 0.03, channels)
        mult, shift = tie if act == 2 else mixed
        yield {"out.2": tables["p"], "out.3": mult, "out.4": shift}
    # numerators with r = -63..0: (r^2 + 512 r + 2^20) / 2^(9 + q), halves at r = -16 and -48;
    # (r^2 + r + 80) (1 + 2^-30) / 2^(5 + q), above a half by the low word alone at r = 0
    for b, c, mult, exponent in ((512, 2**20, 2**30, 69), (1, 80, 2**30 + 1, 65)):
        p = [-64, b, c, mult, exponent, attention_ibert.inverse(-64)]
        yield {"out.2": np.array(p, np.int64), "out.3": mixed[0], "out.4": mixed[1]}


def attention_inputs(n, width, low, rng):
    """q, k, v side by side: random, small, all equal (saturated, 0), one key above the others."""
    random = integers(rng, low, 127, (n, 3 * width), np.int8)
    yield random
    yield (random // 16).astype(np.int8)
    for value in (low, 0):
        flat = random.copy()
        flat[:, : 2 * width] = value
        yield flat
    lone = random.copy()
    lone[:, :width] = 127
    lone[:, width : 2 * width] = low
    lone[:: max(1, n // 7), width : 2 * width] = 127
    lone[:, 2 * width :] = np.where(rng.random((n, width)) < 0.5, low, 127)
    yield lone


@on_every_target
@pytest.mark.parametrize(("op", "dim", "max_length"), SHAPES)
def test_attention(target, op, dim, max_length):
    program = attending(target, op, dim, max_length)
    width = HEADS.get(dim, 1) * dim
    rng = np.random.default_rng(dim)
    low = -128 if op == "attention_ibert" else -127
    lengths = [length for length in (*MIXED, max_length) if length <= min(max_length, 40)]
    cu = offsets(lengths)
    tables = {
        "attention": native_tables,
        "attention_bias": functools.partial(biased_tables, longest=max_length),
        "attention_ibert": ibert_tables,
        "attention_relative": functools.partial(relative_tables, longest=max_length),
    }
    for table in tables[op](dim, width, rng):
        for qkv in attention_inputs(cu[-1], width, low, rng):
            program.check({"qkv": qkv, "cu_seqlens": cu}, table)


@on_every_target
@pytest.mark.parametrize(("op", "dim"), LONGER)
def test_attention_over_long_sequences(target, op, dim):
    program = attending(target, op, dim, 512)
    width = HEADS[dim] * dim
    rng = np.random.default_rng(dim)
    cu = offsets(LONG)
    low = -128 if op == "attention_ibert" else -127
    *_, flat, _ = inputs = list(attention_inputs(cu[-1], width, low, rng))
    for qkv in (inputs[1], flat):
        program.check({"qkv": qkv, "cu_seqlens": cu})


@on_every_target
@pytest.mark.parametrize(("dim", "window"), [(64, 0), (16, 1), (26, 7), (48, 64)])
def test_attention_through_a_window(target, dim, window):
    """Around the window's edges and the blocks of rows and keys; the longest see far less."""
    program = attending(target, "attention", dim, 300, window=window)
    width = HEADS[dim] * dim
    rng = np.random.default_rng(dim)
    edges = {n for at in (window, 2 * window) for n in (at, at + 1, at + 2)}
    cu = offsets([n for n in sorted(edges | {8, 33, 200}) if n])
    tables = [{}, *native_tables(dim, width, rng)][::5]
    for table, (*_, flat, _, lone) in zip(
        tables, (attention_inputs(cu[-1], width, -127, rng) for _ in tables), strict=True
    ):
        program.check({"qkv": flat, "cu_seqlens": cu}, table)
        program.check({"qkv": lone, "cu_seqlens": cu}, table)


@on_every_target
@pytest.mark.parametrize("op", ["attention", "attention_bias", "windowed"])
def test_attention_in_tiles(target, op, monkeypatch):
    """Tiles of 64 keys in place of many, and contexts that are halved beyond 100."""
    monkeypatch.setattr(cpu_attention_tiled, "TILE", 64)
    monkeypatch.setattr(attention, "PART", 100)
    window = {"window": 51} if op == "windowed" else {}
    program = attending.__wrapped__(target, op.replace("windowed", "attention"), 48, 150, **window)
    cu = offsets([64, 2, 100, 101, 150])
    rng = np.random.default_rng(0)
    random, _, flat, _, lone = attention_inputs(cu[-1], 48, -127, rng)
    late = lone.copy()  # the maximum of every row is the last key
    late[:, 48:96] = -127
    late[cu[1:] - 1, 48:96] = 127
    for qkv in (random, flat, lone, late):
        program.check({"qkv": qkv, "cu_seqlens": cu})


@pytest.mark.slow
@on_every_target
@pytest.mark.parametrize("window", [None, 2100])
def test_attention_over_more_keys_than_an_accumulator_holds(target, window):
    """Keys that all have the largest numerator, of values that all have one sign."""
    program = attending(target, "attention", 48, 8192, **({"window": window} if window else {}))
    cu = offsets([attention.PART, attention.PART + 1])
    qkv = np.zeros((cu[-1], 3 * 48), np.int8)
    qkv[:, 2 * 48 :] = np.where(np.arange(48) % 2, 127, -127)
    out = program.check({"qkv": qkv, "cu_seqlens": cu})["out"]
    assert (np.abs(out) == 127).all()


@on_every_target
@few
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    spread=st.integers(0, 7),
)
def test_attention_over_any_batch(target, lengths, seed, spread):
    rng = np.random.default_rng(seed)
    cu = offsets(lengths)
    qkv = integers(rng, -(2**spread) + 1, 2**spread - 1, (cu[-1], 3 * 78), np.int8)
    exp = attention.tables(10 ** rng.uniform(-12, -0.5), 1, 1, 1, np.ones(1))["exp"]
    program = attending(target, "attention", 26, 512)
    program.check({"qkv": qkv, "cu_seqlens": cu}, {"out.2": exp})
    act = float(rng.uniform(1, 4))
    (p, *_) = attention_ibert.tables(10 ** rng.uniform(-5, -0.3), act * 2**40, 1, 1, 78).values()
    program = attending(target, "attention_ibert", 26, 512)
    program.check({"qkv": qkv, "cu_seqlens": cu}, {"out.2": p})


# -- rows ------------------------------------------------------------------------------------------


def embedding_tables(vocabulary, width, dtype, rng):
    """Table, mult, shift: every shift, both signs, ties; a row scaled is below 2^28."""
    info = np.iinfo(dtype)
    table = integers(rng, info.min, info.max, (vocabulary, width), dtype)
    table[0], table[-1] = info.min, info.max
    table[vocabulary // 2] = np.arange(width) % 5 - 2
    shift = np.resize(np.arange(1, 63), vocabulary).astype(np.int32)
    top = np.array([min(INT32_MAX, (2**28 << int(s)) // -int(info.min)) for s in shift])
    power = np.left_shift(1, np.minimum(shift - 1, np.log2(top).astype(np.int64)))
    mult = np.where(np.arange(vocabulary) // 62 % 2, top, power) * rng.choice([-1, 1], vocabulary)
    mult[vocabulary // 3] = 0
    return table, mult.astype(np.int32), shift


@on_every_target
@pytest.mark.parametrize(("types", "positions"), [(0, 1), (1, 1), (1, 0), (0, 0)])
def test_embed(target, types, positions):
    rng = np.random.default_rng(types)
    ids = ["input_ids", *["token_type_ids"] * types, *["position_ids"] * positions]
    sizes = (130, *[124] * types, *[127] * positions)
    kinds = ("int8", *["int16"] * (types + positions))
    about = {"types": types} if positions else {"types": types, "positions": 0}
    g = Graph()
    tables = [t for s, k in zip(sizes, kinds, strict=True) for t in embedding_tables(s, 60, k, rng)]
    for out, limit in (("clamped", 2**17 - 1), ("whole", INT32_MAX)):
        g.op("embed", [*ids, *tables], out, "int32", 60, **about, lo=-limit, hi=limit)
    program = Program(g, target)
    for n in (1, 8, 131):
        rows = {i: integers(rng, 0, s - 1, n, np.int32) for i, s in zip(ids, sizes, strict=True)}
        for i, size in zip(ids, sizes, strict=True):
            rows[i][0] = size - 1
            rows[i][-1] = 0 if n > 1 else size - 1
        if n == 131:  # every row of the word table
            rows["input_ids"] = np.arange(131, dtype=np.int32) % 130
        program.check(rows)


@on_every_target
def test_embed_from_the_table_a_decoder_multiplies_with(target):
    """One copy of the word table, packed as the matmul's weight, serves both."""
    rng, width = np.random.default_rng(0), 60
    g = Graph()
    table, mult, shift = embedding_tables(101, width, "int8", rng)
    table = np.maximum(table, -127)
    word = [g.constant("word", table), g.constant("mult", mult), g.constant("shift", shift)]
    position = embedding_tables(40, width, "int16", rng)
    ids = ["input_ids", "position_ids"]
    limits = {"lo": -INT32_MAX, "hi": INT32_MAX}
    g.op("embed", [*ids, *word, *position], "sum", "int32", width, types=0, **limits)
    x = g.given("x", "int8", width)
    g.op("matmul", [x, "word", wide(rng, 2**20, 101).astype(np.int32)], "acc", "int32", 101)
    program = Program(g, target)
    assert program.layout.packing["word"]["kind"] == TARGETS[target].backend.weight_packing
    assert not any(name.startswith("word#") for name in program.layout.packing)
    inputs = {
        "input_ids": np.arange(101, dtype=np.int32)[::-1],
        "position_ids": integers(rng, 0, 39, 101, np.int32),
        "x": integers(rng, -128, 127, (101, width), np.int8),
    }
    program.check(inputs)


@on_every_target
def test_take_rows(target):
    g = Graph()
    for dtype in ("int8", "int16", "int32"):
        g.given(dtype, dtype, 26)
        for rows, index in (("sequence", "cu_seqlens"), ("position", "positions")):
            g.op("take_rows", [dtype, index], f"{rows}_{dtype}", dtype, 26, rows)
        ends = [dtype, "cu_seqlens"]
        g.op("take_rows", ends, f"last_{dtype}", dtype, 26, "sequence", last=True)
    g.operand("int8")
    g.operand("sequence_int8")
    program = Program(g, target)
    rng = np.random.default_rng(0)
    for lengths in ((1,), (8,), (3, 1, 2), (1,) * 8, (2,) * 9, MIXED):
        cu = offsets(lengths)
        positions = integers(rng, 0, cu[-1] - 1, 2 * len(lengths) + 1, np.int32)
        positions[0], positions[-1] = cu[-1] - 1, 0
        arrays = {"cu_seqlens": cu, "positions": positions}
        for dtype in ("int8", "int16", "int32"):
            arrays[dtype] = integers(rng, *LIMITS[dtype], (cu[-1], 26), dtype)
        program.check(arrays)


@functools.cache
def pooling(target, width, max_length, fraction_bits):
    g = Graph(max_length)
    inputs = [g.given("x", "int16", width), "cu_seqlens"]
    g.op("mean_pool", inputs, "y", "int32", width, "sequence", fraction_bits=fraction_bits)
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize(("width", "max_length", "bits"), [(3, 512, 8), (26, 31, 12), (60, 1, 8)])
def test_mean_pool(target, width, max_length, bits):
    """Every length; saturated either way; sums that end exactly half way."""
    program = pooling(target, width, max_length, bits)
    rng = np.random.default_rng(0)
    every = np.arange(1, max_length + 1)
    cu = offsets(every)
    for low, high in ((-(2**15), 2**15 - 1), (-2, 2), (-(2**15), -(2**15)), (2**15 - 1, 2**15 - 1)):
        x = integers(rng, low, high, (cu[-1], width), np.int16)
        program.check({"x": x, "cu_seqlens": cu})
    # sum 2^bits / length is an odd number of halves where length = 2^(bits + 1) or divides so
    lengths = every[every & (every - 1) == 0]
    cu = offsets(lengths)
    x = np.zeros((cu[-1], width), np.int16)
    x[cu[:-1]] = np.arange(width) * 2 - width
    program.check({"x": x, "cu_seqlens": cu})


@on_every_target
def test_mean_pool_counts_few_sequences(target):
    for lengths in ((1,), (2, 3), (1,) * 8, (5,) * 9):
        cu = offsets(lengths)
        x = integers(np.random.default_rng(0), -99, 99, (cu[-1], 3), np.int16)
        got = pooling(target, 3, 512, 8).check({"x": x, "cu_seqlens": cu})["y"]
        assert got.shape == (len(lengths), 3)
        for row, (start, stop) in zip(got, pairwise(cu), strict=True):
            assert row.tolist() == [round(v * 256 / (stop - start)) for v in x[start:stop].sum(0)]


@functools.cache
def max_pooling(target, width, dtype):
    g = Graph(512)
    g.op("max_pool", [g.given("x", dtype, width), "cu_seqlens"], "y", dtype, width, "sequence")
    return Program(g, target)


@on_every_target
@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("width", [3, 60, 1030])
def test_max_pool(target, width, dtype):
    """Every place of the maximum; all negative; the limits of the type; many short sequences."""
    program = max_pooling(target, width, dtype)
    rng = np.random.default_rng(0)
    for lengths in ((1,), (2, 3), (1,) * 8, (5,) * 9, MIXED):
        cu = offsets(lengths)
        for low, high in (LIMITS[dtype], (-9, -1), (LIMITS[dtype][0],) * 2):
            x = integers(rng, low, high, (cu[-1], width), dtype)
            program.check({"x": x, "cu_seqlens": cu})
    cu = offsets((9,) * 9)
    x = np.full((81, width), -5, dtype)
    x[cu[:-1] + np.arange(9)] = 7
    got = program.check({"x": x, "cu_seqlens": cu})["y"]
    assert got.shape == (9, width) and (got == 7).all()


@functools.cache
def weighted_pooling(target, width, max_length):
    """Both forms; the divisors go further than the sequences do, as those of a model."""
    g = Graph(max_length)
    g.given("x", "int16", width)
    for form, shift in ((weighted_pool.MEAN_SQRT, 33), (weighted_pool.WEIGHTED_MEAN, 12)):
        inputs = ["x", "cu_seqlens", weighted_pool.divisors(form, 4096)]
        about = {"shift": shift, "rising": form == weighted_pool.WEIGHTED_MEAN}
        g.op("weighted_pool", inputs, form, "int32", width, "sequence", **about)
    return Program(g, target)


@on_every_target
def test_weighted_pool(target):
    """Every length; saturated either way."""
    program = weighted_pooling(target, 26, 150)
    rng = np.random.default_rng(0)
    cu = offsets(np.arange(1, 151))
    for low, high in ((-(2**15), 2**15 - 1), (-2, 2), (-(2**15), -(2**15)), (2**15 - 1, 2**15 - 1)):
        x = integers(rng, low, high, (cu[-1], 26), np.int16)
        program.check({"x": x, "cu_seqlens": cu})


@on_every_target
def test_weighted_pool_of_the_longest_sequence(target):
    """Sums past int32 and quotients of as many bits as there can be."""
    program = weighted_pooling(target, 3, 4096)
    for value in (-(2**15), 2**15 - 1):
        x = np.full((4097, 3), value, np.int16)
        program.check({"x": x, "cu_seqlens": offsets((4096, 1))})


@on_every_target
def test_concat(target):
    """Borders inside and at the ends of vectors; operands of a matrix product, int16, int32."""
    rng = np.random.default_rng(0)
    g = Graph()
    shapes = [("int8", 3, 20), ("int16", 16, 5), ("int32", 60, 60), ("int32", 20, 1)]
    for i, (dtype, left, right) in enumerate(shapes):
        parts = [
            g.given(f"a{i}", dtype, left, "sequence"),
            g.given(f"b{i}", dtype, right, "sequence"),
        ]
        g.op("concat", parts, f"y{i}", dtype, left + right, "sequence", border=left)
    g.operand("y0")
    program = Program(g, target)
    for rows in (1, 8, 9):
        arrays = {"cu_seqlens": offsets((1,) * rows)}
        for i, (dtype, left, right) in enumerate(shapes):
            for name, width in ((f"a{i}", left), (f"b{i}", right)):
                arrays[name] = integers(rng, *LIMITS[dtype], (rows, width), dtype)
        program.check(arrays)


def test_no_op_is_forgotten():
    """Every op has a test above: alone, or in a chain that the fusion makes."""
    alone = {*("requantize", "residual_add", "relu", "add_bias", "i_gelu", "i_tanh", "matmul")}
    alone |= {*("rescale", "requantize16", "add", "gate", "rotary")}
    alone |= {*("i_gelu_ibert", "i_layernorm", "i_layernorm_ibert", "attention")}
    alone |= {*("attention_bias", "attention_ibert", "attention_relative")}
    alone |= {*("embed", "take_rows", "mean_pool")}
    alone |= {"max_pool", "weighted_pool", "concat", "i_stream_norm", "stream_add"}
    assert set(OPS) == alone
