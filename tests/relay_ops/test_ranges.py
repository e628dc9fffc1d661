"""The range analysis: lemmas at their extremes, whole models inside their intervals, refusals."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from intformer.errors import RangeError
from intformer.ir import ranges
from intformer.ir.model import IntModel, Node, Value
from intformer.relay_ops import (
    OPS,
    attention,
    attention_ibert,
    gate,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_stream_norm,
    requantize16,
    rescale,
    rotary,
    weighted_pool,
)
from intformer.relay_ops.fixedpoint import make_dyadic
from intformer.relay_ops.interval import Interval

INT8 = Interval.of(-127, 127)
HIDDEN, HEADS, FFN, VOCAB, LENGTH = 24, 3, 40, 30, 16


def inside(array: np.ndarray, interval: Interval) -> bool:
    return bool((array >= interval.low).all() and (array <= interval.high).all())


# -- lemmas ----------------------------------------------------------------------------------------


def test_matmul_interval_is_reached_in_every_channel(rng):
    w = rng.integers(-127, 128, (9, 50)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 9).astype(np.int32)
    low, high = rng.integers(-127, 0, 50), rng.integers(0, 128, 50)
    interval = OPS["matmul"].bounds(Interval.of(low, high), w, bias)
    for n in range(9):
        for end, x in (("high", (w[n] > 0)), ("low", (w[n] < 0))):
            x = np.where(x, high, low).astype(np.int8)[None]
            assert OPS["matmul"].reference(x, w, bias)[0, n] == getattr(interval, end)[n]


@pytest.mark.parametrize("terms", [511, 512, 513, 1024, 3000])
@pytest.mark.parametrize("weight", [-128, 127])
def test_matmul_interval_is_exact_for_the_largest_terms(rng, terms, weight):
    """The sums of the analysis go through float32: every factor at its largest, odd ones too."""
    w = np.full((3, terms), weight, np.int8)
    w[1] = np.where(rng.random(terms) < 0.5, -128, 127)
    w[2, ::2] = 1
    interval = OPS["matmul"].bounds(Interval.of(-128, 127), w, np.zeros(3, np.int32))
    ends = np.sort(np.multiply.outer(w.astype(np.int64), [-128, 127]), -1).sum(1)
    assert ends.tolist() == [list(pair) for pair in zip(interval.low, interval.high, strict=True)]


def test_matmul_refuses_an_input_beyond_int8():
    with pytest.raises(RangeError, match="input can be -129"):
        OPS["matmul"].bounds(Interval.of(-129, 0), np.ones((1, 4), np.int8), np.zeros(1, np.int32))


@pytest.mark.parametrize("bits", [8, 40, 61, 62, 63, 70])
def test_dyadic_of_an_interval_is_exact_beyond_int64(rng, bits):
    """Inside int64 numpy computes it, beyond it Python's integers: the same numbers."""
    high = [int(b) << (bits - 8) for b in rng.integers(0, 256, 50)]
    high = np.array(
        [h + int(o) for h, o in zip(high, rng.integers(-3, 4, 50), strict=True)], object
    )
    shift = rng.integers(1, 62, 50)
    found = Interval(-high, high).dyadic(np.ones(50, np.int64), shift)
    for i in range(50):
        exact = [round(Fraction(sign * high[i], 1 << int(shift[i]))) for sign in (-1, 1)]
        assert [found.low[i], found.high[i]] == sorted(exact)


@pytest.mark.parametrize(
    ("terms", "weight", "bias", "legal"),
    [
        (1024, 127, 0, True),
        (4, 127, 2**31 - 1 - 4 * 127**2, True),
        (4, 127, 2**31 - 4 * 127**2, False),
        (4, -127, 2**31 - 1 - 4 * 127**2, False),  # fits signed; the folded bias does not
        (66_000, 127, 0, True),  # 66000 * 255 * 127 < 2^31
        (66_400, 127, 0, False),  # the unsigned form wraps though the signed one fits
        (140_000, 127, 0, False),
    ],
)
def test_matmul_covers_signed_and_unsigned_accumulators(terms, weight, bias, legal):
    w = np.full((1, terms), weight, np.int8)
    if legal:
        OPS["matmul"].bounds(INT8, w, np.array([bias], np.int32))
    else:
        with pytest.raises(RangeError, match="accumulator"):
            OPS["matmul"].bounds(INT8, w, np.array([bias], np.int32))


def test_layernorm_interval_holds_where_the_lemma_is_tight():
    """One deviating channel: |y| = sqrt(n - 1)."""
    for n in (2, 26, 768):
        gamma, beta = np.linspace(-2, 2, n), np.linspace(1, -1, n)
        scale16 = 3 * np.sqrt(n) / 32767
        table = i_layernorm.tables(1e-3, gamma, beta, 1e-12, scale16 * 256, scale16)
        intervals = OPS["i_layernorm"].bounds(Interval.of(-(2**17), 2**17), *table.values())
        x = np.concatenate([np.eye(n), -np.eye(n)]).astype(np.int32) * 2**17
        outs = OPS["i_layernorm"].reference(x, *table.values())
        assert all(inside(out, interval) for out, interval in zip(outs, intervals, strict=True))
        # tight to one LSB of int16, unless the clamp cut it
        assert np.abs(outs[1].max(0) - intervals[1].high).max() <= 1


def test_ibert_layernorm_lemma_at_its_extremes():
    """y F / 2 reaches 2^30 and stays within 2^31 whatever the saved shift floors away."""
    for prescale in (0, 3, 6, 9):
        n = 64
        x = np.concatenate([np.eye(n), -np.eye(n)]).astype(np.int64)
        for height in (1, 2**prescale, 2**prescale + 1, 2**21):
            y = i_layernorm_ibert.normalise(x * height, prescale)
            assert np.abs(y).max() <= 2**31


def test_attention_interval_is_reached_by_a_constant_v(rng):
    table = attention.tables(0.05, 0.05, 0.02, 8, np.full(8, 0.02))
    qkv = rng.integers(-127, 128, (9, 24)).astype(np.int8)
    bounds = Interval.of([-127] * 16 + [-90] * 8, [127] * 16 + [110] * 8)
    out = OPS["attention"].bounds(bounds, Interval.of(1, 9), *table.values(), heads=1, head_dim=8)
    for v, end in ((-90, out.low), (110, out.high)):
        qkv[:, 16:] = v
        y = attention.reference(qkv, np.array([0, 9]), *table.values(), heads=1, head_dim=8)
        assert np.abs(y - end).max() <= 1 and inside(y, out)


def test_distances_count_in_the_range_of_the_scores():
    """128 channels of 127 * 127 thrice are 6.2 million: the most that a score can be."""
    table = attention.tables(0.05, 0.05, 0.02, 128, np.full(128, 0.02))
    rows = np.full((7, 128), 127, np.int8)
    shape = {"heads": 1, "head_dim": 128}
    op = OPS["attention_relative"]
    op.bounds(INT8, Interval.of(1, 4), *table.values(), rows, rows, **shape)
    with pytest.raises(RangeError, match=r"a table of shape \[7, 128\] for 128 channels and 5"):
        op.bounds(INT8, Interval.of(1, 5), *table.values(), rows, rows, **shape)
    queries = Interval(np.where(np.arange(384) < 128, -(2**17), 0), np.zeros(384, np.int64))
    with pytest.raises(RangeError, match=r"scores reach 2130706432, beyond 2\^30"):  # 2^24 * 127
        op.bounds(queries, Interval.of(1, 4), *table.values(), rows, rows, **shape)


@pytest.mark.parametrize("op", ["attention", "attention_ibert"])
def test_attention_refuses_rows_that_are_too_long(op):
    table = (
        attention.tables(0.05, 0.05, 0.02, 8, np.full(8, 0.02))
        if op == "attention"
        else attention_ibert.tables(1e-3, 1e15, 0.02, 0.02, 8)
    )
    shape = {"heads": 1, "head_dim": 8}
    OPS[op].bounds(INT8, Interval.of(1, 8192), *table.values(), **shape)
    with pytest.raises(RangeError, match=op):
        OPS[op].bounds(INT8, Interval.of(1, 2**20), *table.values(), **shape)


def test_attention_lemmas_sum_and_probabilities(rng):
    """E <= sum E; 255 or 4096 at the maximum; sum of probabilities at most 256."""
    p = attention_ibert.tables(1e-3, 2.79e6 * 2.0**30, 1.0, 1.0, 1)["p"]
    for keys in (1, 2, 200):
        for d in (np.zeros((1, keys), int), rng.integers(0, 9000, (5, keys))):
            d = d - d.min(1, keepdims=True)
            prob = attention_ibert.probabilities(attention_ibert.numerators(-d, p))
            assert prob.sum(1).max() <= 256 and prob.min() >= 0 and prob.max() <= 255
            e = attention.numerators(
                d, *attention.tables(1e-3, 1, 1, 1, np.ones(1))["exp"].tolist()
            )
            assert (e.max(1) == attention.TOP).all()
    nothing = attention_ibert.probabilities(np.zeros((1, 3), np.int64))
    assert (nothing == 0).all()


def test_rows_of_a_stream_keep_17_bits_at_any_width():
    assert i_stream_norm.kept_bits(i_layernorm.MAX_CHANNELS) >= 17


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("n", [2, 64, 768, 1024, 4096])
def test_stream_norm_interval_holds_rows_at_every_limit(n, rms):
    top = i_stream_norm.INPUT_LIMIT
    table = i_stream_norm.tables(1e-3, np.ones(n), np.zeros(n), 1e-6, math.sqrt(n) / 100)
    kind = {"rms": rms, "dtype": "int8"}
    interval = OPS["i_stream_norm"].bounds(Interval.of(-top, top), *table.values(), **kind)
    one = top * np.eye(4, n)
    x = np.concatenate([one, -one, one + top // 2, top - 2 * one, np.full((1, n), top)])
    x = np.clip(x, -top, top).astype(np.int32)
    for size in (1, 2**4, 2**8, 2**15):
        y = i_stream_norm.reference(x // size, *table.values(), **kind)
        assert inside(y, interval)
    assert interval.max in (100, 101)
    with pytest.raises(RangeError, match="i_stream_norm"):
        OPS["i_stream_norm"].bounds(Interval.of(0, top + 1), *table.values(), **kind)


def test_stream_sum_must_fit():
    half = Interval.of(-(2**30), 2**30 - 1)
    assert OPS["stream_add"].bounds(half, half).max == 2**31 - 2
    with pytest.raises(RangeError, match="stream_add"):
        OPS["stream_add"].bounds(half, Interval.of(0, 2**30 + 1))


@pytest.mark.parametrize("form", i_gelu.FORMS)
def test_gelu_interval_is_reached(form):
    x = np.arange(-i_gelu.LIMIT, i_gelu.LIMIT + 1, dtype=np.int16)[:, None]
    least, most = i_gelu.FORMS[form].bits
    for k in range(least, most + 1):
        point = i_gelu.point(k, form)
        interval = OPS["i_gelu"].bounds(Interval.of(-i_gelu.LIMIT, i_gelu.LIMIT), point, form=form)
        y = OPS["i_gelu"].reference(x, point, form=form)
        assert inside(y, interval) and y.min() == interval.min
        assert interval.max - y.max() <= 8  # g at the edge
    with pytest.raises(RangeError, match="i_gelu"):
        OPS["i_gelu"].bounds(Interval.of(0, i_gelu.LIMIT + 1), point, form=form)
    with pytest.raises(RangeError, match="of no k"):
        OPS["i_gelu"].bounds(Interval.of(0, 1), point + 1, form=form)


def test_rescale_interval_is_reached(rng):
    mult = np.concatenate([rng.integers(2, 2**31, 40), 2 ** np.arange(1, 31), [0, 2**31 - 1]])
    offset = np.where(mult > 0, np.rint(2**31 / np.maximum(mult, 1)), 0).astype(np.int64)
    low, high = -rng.integers(0, 2**26, 72), rng.integers(0, 2**26, 72)
    for lift in (0, 4):
        limits = {"lift": lift, "lo": -9999, "hi": 9998, "dtype": "int16"}
        interval = OPS["rescale"].bounds(Interval.of(low, high), mult, offset, **limits)
        ends = np.stack([low, high]).astype(np.int32)
        ends = OPS["rescale"].reference(ends, mult, offset, **limits)
        assert (ends == np.stack([interval.low, interval.high])).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lo": -129}, "does not fit int8"),
        ({"lo": 9, "hi": 8}, "clamp 9..8"),
        ({"mult": -1}, "mult is -1"),
        ({"lift": 8}, "can be .*does not fit int32"),
        ({"offset": 2**31 - 1}, "can be .*does not fit int32"),
    ],
)
def test_rescale_refuses(changes, message):
    attrs = {"lift": 4, "lo": -127, "hi": 127, "dtype": "int8", "mult": 5, "offset": 6, **changes}
    tables = [np.array([attrs.pop(name)], np.int32) for name in ("mult", "offset")]
    with pytest.raises(RangeError, match=message):
        OPS["rescale"].bounds(Interval.of(-(2**25), 2**25), *tables, **attrs)


def test_requantize16_interval_is_reached(rng):
    x = np.arange(-(2**15) + 1, 2**15, dtype=np.int16)[:, None]
    tables = requantize16.tables(2.0 ** rng.uniform(-14, -1, 30))
    y = OPS["requantize16"].reference(x, *tables)
    interval = OPS["requantize16"].bounds(Interval.of(-(2**15) + 1, 2**15 - 1), *tables)
    assert (y.min(0) == interval.low).all() and (y.max(0) == interval.high).all()
    with pytest.raises(RangeError, match="beyond"):
        OPS["requantize16"].bounds(Interval.of(-(2**15), 0), *tables)
    with pytest.raises(RangeError, match="below 0"):
        OPS["requantize16"].bounds(Interval.of(-1, 0), tables[0], -tables[1])


def test_gate_interval_is_reached(rng):
    """By the largest activation or its least, and either end of the other factor."""
    limit, point = i_gelu.LIMIT, i_gelu.point(11, "silu")
    low, high = -rng.integers(1, limit, 20), rng.integers(1, limit, 20)
    tables = gate.tables(2.0 ** -rng.uniform(20, 23, 20))
    whole = np.full(20, limit)
    x = Interval.of(np.concatenate([-whole, low]), np.concatenate([whole, high]))
    about = {"form": "silu", "active": 0}
    interval = OPS["gate"].bounds(x, point, *tables, **about)
    every = np.arange(-limit, limit + 1)[:, None] + np.zeros(20, np.int64)
    found = [
        OPS["gate"].reference(
            np.concatenate([every, np.broadcast_to(end, every.shape)], 1).astype(np.int16),
            point,
            *tables,
            **about,
        )
        for end in (low, high)
    ]
    found = np.concatenate(found)
    assert inside(found, interval)
    assert np.abs(found.min(0) - interval.low).max() <= 1  # as near as GELU's interval is
    assert np.abs(found.max(0) - interval.high).max() <= 1
    with pytest.raises(RangeError, match="beyond"):
        OPS["gate"].bounds(Interval.of(-limit, limit + 1), point, *tables, **about)


def test_rotary_interval_is_reached(rng):
    """By the pair whose signs and position add up."""
    angles = rng.uniform(0, 7, (50, 3))
    cos, sin = rotary.tables(np.cos(angles), np.sin(angles))
    top = rng.integers(1, 2**13, 18)
    about = {"heads": 1, "head_dim": 6}
    interval = OPS["rotary"].bounds(Interval.of(-top, top), Interval.of(0, 49), cos, sin, **about)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 2)).reshape(2, -1).T  # of both channels of a pair
    x = np.stack([np.tile(np.repeat(s, 3), 3) * top for s in signs]).astype(np.int16)
    x, places = np.repeat(x, 50, 0), np.tile(np.arange(50), 4).astype(np.int32)
    found = OPS["rotary"].reference(x, places, cos, sin, **about)
    assert (found.max(0) == interval.high).all() and (found.min(0) >= interval.low).all()
    assert np.abs(found.min(0) - interval.low).max() <= 1  # the rounding is upwards
    with pytest.raises(RangeError, match="does not fit int16"):
        OPS["rotary"].bounds(Interval.of(0, 2**15), Interval.of(0, 49), cos, sin, **about)


def test_add_takes_int16_alone():
    ends = Interval.of(-(2**15), 2**15 - 1)
    total = OPS["add"].bounds(ends, ends)
    assert (total.min, total.max) == (-(2**16), 2**16 - 2)
    with pytest.raises(RangeError, match="second term"):
        OPS["add"].bounds(ends, Interval.of(0, 2**15))


def test_layernorm_interval_holds_for_any_row(rng):
    n = 48
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    gamma[3] = 0
    for eps in (0.0, 1e-5, 1.0):
        table = i_layernorm.tables(1e-3, gamma, beta, eps, 0.03, 1e-3)
        intervals = OPS["i_layernorm"].bounds(Interval.of(-(2**17), 2**17), *table.values())
        x = rng.integers(-(2**17), 2**17 + 1, (200, n)) >> rng.integers(0, 18, (200, 1))
        outs = OPS["i_layernorm"].reference(x.astype(np.int32), *table.values())
        assert all(inside(out, interval) for out, interval in zip(outs, intervals, strict=True))


def test_ibert_gelu_interval_holds(rng):
    scale = np.exp(rng.uniform(np.log(1e-5), np.log(1e-2), 30))
    table = i_gelu_ibert.tables(scale, 0.02)
    x = rng.integers(-(2**25), 2**25, (400, 30)).astype(np.int32)
    x[:4] = np.array([[-(2**25)], [2**25], [0], [1]])
    interval = OPS["i_gelu_ibert"].bounds(
        Interval.of(-(2**25), 2**25), *table.values(), lo=-128, hi=127
    )
    assert inside(i_gelu_ibert.reference(x, *table.values(), lo=-128, hi=127), interval)


def test_mean_pool_bounds():
    bounds = OPS["mean_pool"].bounds
    interval = bounds(Interval.of(-32767, 32767), Interval.of(1, 512), fraction_bits=12)
    assert interval.max == 32767 << 12
    for x, bits in ((Interval.of(0, 2**15), 17), (Interval.of(0, 2**15), 7)):
        with pytest.raises(RangeError, match="mean_pool"):
            bounds(x, Interval.of(1, 512), fraction_bits=bits)


@pytest.mark.parametrize("rising", [False, True])
def test_weighted_pool_bounds(rising):
    """The interval is reached, by the length whose quotient is largest."""
    form = weighted_pool.WEIGHTED_MEAN if rising else weighted_pool.MEAN_SQRT
    table, shift = weighted_pool.divisors(form, 64), 12 if rising else 33
    bounds, lengths = OPS["weighted_pool"].bounds, Interval.of(1, 64)
    about = {"shift": shift, "rising": rising}
    interval = bounds(Interval.of(-32767, 32767), lengths, table, **about)
    x = np.full((64, 1), 32767, np.int16)
    out = weighted_pool.reference(x, np.array([0, 64]), table, **about)
    assert interval.max == out[0, 0] == 32767 << (12 if rising else 9 + 3)
    for wrong, more in ((table[:64], 0), (0 * table, 0), (table, 8), (table, 40)):
        with pytest.raises(RangeError, match="weighted_pool"):
            bounds(Interval.of(0, 2**15), lengths, wrong, shift=shift + more, rising=rising)


def test_concat_bounds():
    bounds = OPS["concat"].bounds
    a, b = Interval.of([-1, 2], [3, 4]), Interval.of([5], [6])
    joined = bounds(a, b, border=2)
    assert joined.low.tolist() == [-1, 2, 5] and joined.high.tolist() == [3, 4, 6]
    joined = bounds(a, Interval.of(-9, 0), border=2)
    assert (joined.min, joined.max) == (-9, 4)


def test_max_pool_bounds():
    interval = OPS["max_pool"].bounds(Interval.of(-(2**31), 2**31 - 1), Interval.of(1, 512))
    assert (interval.min, interval.max) == (-(2**31), 2**31 - 1)


# -- whole models ----------------------------------------------------------------------------------


class Builder:
    """A one-layer encoder with random weights, in either recipe."""

    def __init__(self, recipe: str, seed: int):
        self.rng, self.recipe = np.random.default_rng(seed), recipe
        self.nodes, self.tensors, self.values = [], {}, {}

    def node(self, op, inputs, outputs, dtypes, channels, tensors=(), rows="token", **attrs):
        names = [f"{outputs[0]}.{i}" for i in range(len(tensors))]
        self.tensors |= dict(zip(names, tensors, strict=True))
        for name, dtype in zip(outputs, dtypes, strict=True):
            self.values[name] = Value(dtype, rows, channels, None, "test")
        self.nodes.append(Node(op, (*inputs, *names), tuple(outputs), attrs))
        return outputs[0]

    def matmul(self, x, out, n, k):
        w = self.rng.integers(-127, 128, (n, k)).astype(np.int8)
        bias = self.rng.integers(-5000, 5000, n).astype(np.int32)
        return self.node("matmul", [x], [out], ["int32"], n, [w, bias])

    def requantize(self, x, out, n, dtype, ratio, limit):
        mult, shift = make_dyadic(np.full(n, ratio))
        return self.node(
            "requantize", [x], [out], [dtype], n, [mult, shift], lo=-limit, hi=limit, dtype=dtype
        )

    def norm(self, x, out):
        gamma = self.rng.uniform(0.5, 2, HIDDEN) * self.rng.choice([-1, 1], HIDDEN)
        beta = self.rng.normal(size=HIDDEN) * 0.3
        outs, dtypes = [out + "8", out + "16"], ["int8", "int16"]
        if self.recipe == "native":
            table = i_layernorm.tables(1e-3, gamma, beta, 1e-12, 4 / 127, 16 / 32767)
            return self.node("i_layernorm", [x], outs, dtypes, HIDDEN, list(table.values()))
        table = [*i_layernorm_ibert.tables(gamma, beta, 4 / 127).values(), np.array([0], np.int32)]
        return self.node(
            "i_layernorm_ibert", [x], outs[:1], dtypes[:1], HIDDEN, table, lo=-128, hi=127
        )

    def rescale(self, x, out, n, dtype, ratio, limit):
        tables = rescale.tables(np.full(n, ratio), rescale.USUAL_LIFT[dtype])
        attrs = {"lift": rescale.USUAL_LIFT[dtype], "dtype": dtype}
        return self.node("rescale", [x], [out], [dtype], n, tables, lo=-limit, hi=limit, **attrs)

    def residual(self, acc, x, out):
        """acc + x: native in int16 at the scale of x."""
        if self.recipe == "native":
            self.rescale(acc, out + "_term", HIDDEN, "int16", 0.05, 2**15 - 1)
            return self.node("add", [out + "_term", x], [out], ["int32"], HIDDEN)
        self.requantize(acc, out + "_term", HIDDEN, "int32", 0.5, 2**20)
        scale = make_dyadic(np.array([64.0]))
        ends, limits = [out + "_term", x], {"lo": -(2**17), "hi": 2**17}
        return self.node("residual_add", ends, [out], ["int32"], HIDDEN, scale, **limits)

    def model(self) -> IntModel:
        rng, native = self.rng, self.recipe == "native"
        tables = []
        for count in (VOCAB, 2, LENGTH):
            table = rng.integers(-127, 128, (count, HIDDEN)).astype(np.int8)
            tables += [table, *make_dyadic(rng.uniform(10, 100, count))]
        ids = ["input_ids", "token_type_ids", "position_ids"]
        limit = {"lo": -(2**17) + 1, "hi": 2**17 - 1}
        x = self.node("embed", ids, ["sum"], ["int32"], HIDDEN, tables, types=1, **limit)
        x = self.norm(x, "embedded")
        self.matmul(x, "qkv", 3 * HIDDEN, HIDDEN)
        to8 = self.rescale if native else self.requantize
        to8("qkv", "qkv8", 3 * HIDDEN, "int8", 2e-3, 127)
        shape = {"heads": HEADS, "head_dim": HIDDEN // HEADS}
        if native:
            table = attention.tables(0.05, 0.05, 0.05, HIDDEN // HEADS, np.full(HIDDEN, 0.03))
        else:
            table = attention_ibert.tables(1e-3, 2.79e6 * 2.0**30, 0.05, 0.03, HIDDEN)
        op = "attention" if native else "attention_ibert"
        tensors = list(table.values())
        ends = ["qkv8", "cu_seqlens"]
        self.node(op, ends, ["context"], ["int8"], HIDDEN, tensors, **shape)
        self.matmul("context", "out", HIDDEN, HIDDEN)
        self.residual("out", "embedded16" if native else "embedded8", "attended")
        x = self.norm("attended", "mid")
        self.matmul(x, "up", FFN, HIDDEN)
        if native:
            self.rescale("up", "up16", FFN, "int16", 0.05, i_gelu.LIMIT)
            self.node("i_gelu", ["up16"], ["gelu"], ["int16"], FFN, [i_gelu.point(12)], form="erf")
            tables = requantize16.tables(np.full(FFN, 1e-3))
            self.node("requantize16", ["gelu"], ["gelu8"], ["int8"], FFN, tables)
        else:
            table = list(i_gelu_ibert.tables(np.full(FFN, 5e-5), 0.05).values())
            self.node("i_gelu_ibert", ["up"], ["gelu8"], ["int8"], FFN, table, lo=-128, hi=127)
        self.matmul("gelu8", "down", HIDDEN, FFN)
        self.residual("down", "mid16" if native else "mid8", "done")
        self.norm("done", "last")
        if native:
            self.node(
                "mean_pool",
                ["last16", "cu_seqlens"],
                ["pooled"],
                ["int32"],
                HIDDEN,
                rows="sequence",
                fraction_bits=8,
            )
        first = ["last8", "cu_seqlens"]
        take = {"rows": "sequence"}
        self.nodes.append(Node("take_rows", tuple(first), ("first",), take))
        self.values["first"] = Value("int8", "sequence", HIDDEN, None, "test")
        self.matmul("first", "dense", HIDDEN, HIDDEN)
        self.requantize("dense", "dense12", HIDDEN, "int32", 0.3, 2**18)
        self.node("i_tanh", ["dense12"], ["tanh"], ["int32"], HIDDEN)
        self.requantize("tanh", "logits", HIDDEN, "int32", 4.0, 2**20)
        meta = {"max_length": LENGTH, "recipe": self.recipe}
        return IntModel(self.nodes, self.tensors, self.values, "logits", meta)


@pytest.fixture(params=["native", "ibert"])
def model(request):
    return Builder(request.param, 1).model()


def test_every_value_of_a_model_is_inside_its_interval(model, rng):
    intervals = ranges.check(model)
    assert intervals.keys() == model.values.keys()
    for lengths in ((1,), (16, 1, 3), (2,) * 8):
        n, offsets = sum(lengths), np.concatenate([[0], np.cumsum(lengths)])
        seen = model.run(
            {
                "input_ids": rng.integers(0, VOCAB, n),
                "token_type_ids": rng.integers(0, 2, n),
                "position_ids": np.concatenate([np.arange(k) for k in lengths]),
                "cu_seqlens": offsets,
            }
        )
        for name, array in seen.items():
            assert inside(array, intervals[name]), name
            assert array.dtype == model.values[name].dtype, name
            assert array.shape[1] == model.values[name].channels, name


def test_the_model_survives_json_and_stays_in_range(model):
    again = IntModel.from_json(model.to_json(), model.tensors, {})
    assert ranges.check(again).keys() == model.values.keys()


@pytest.mark.parametrize(
    ("recipe", "tensor", "value", "op"),
    [
        ("native", "qkv.1", 2**31 - 1, "matmul qkv"),
        ("ibert", "qkv.1", 2**31 - 1, "matmul qkv"),
        ("native", "up.1", -(2**31), "matmul up"),
        ("ibert", "attended.0", 2**31 - 1, "residual_add attended"),
        ("native", "attended_term.1", 2**31 - 1, "rescale attended_term"),
        ("native", "gelu.0", 12345, "i_gelu gelu"),
        ("native", "gelu8.1", -1, "requantize16 gelu8"),
    ],
)
def test_an_overflowing_model_is_refused_by_name(recipe, tensor, value, op):
    model = Builder(recipe, 1).model()
    tensors = {**model.tensors, tensor: np.full_like(model.tensors[tensor], value)}
    if tensor == "attended.0":
        tensors["attended.1"] = np.array([1], np.int32)
    with pytest.raises(RangeError) as error:
        ranges.check(replace(model, tensors=tensors))
    assert error.value.where == op


def test_a_value_that_does_not_fit_its_declared_type_is_refused(model):
    values = {**model.values, "dense": replace(model.values["dense"], dtype="int16")}
    with pytest.raises(RangeError, match=r"dense.*int16"):
        ranges.check(replace(model, values=values))


def test_wrong_tables_are_refused():
    model = Builder("ibert", 2).model()
    p = model.tensors["context.0"].copy()
    p[5] += 1  # the magic number of the division by x0
    with pytest.raises(RangeError, match="attention_ibert context"):
        ranges.check(replace(model, tensors={**model.tensors, "context.0": p}))
    model = Builder("native", 2).model()
    bias = np.full(HIDDEN, 2**31 - 1)
    with pytest.raises(RangeError, match="i_layernorm mid8"):
        ranges.check(replace(model, tensors={**model.tensors, "mid8.2": bias}))
