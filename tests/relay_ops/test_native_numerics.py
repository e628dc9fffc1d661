"""The native recipe: its stated bounds, its stated widths, and its symmetries."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from intformer.errors import RangeError
from intformer.measure import op_errors
from intformer.relay_ops import attention, i_gelu, i_layernorm, requantize16, rescale
from intformer.relay_ops.fixedpoint import mul_round
from intformer.relay_ops.interval import Interval


@pytest.mark.parametrize(
    "row", list(op_errors.rows()), ids=lambda r: f"{r.op}-{r.recipe}-{r.measure}"
)
def test_error_is_within_its_bound(row):
    assert row.ok, row


# -- widths ----------------------------------------------------------------------------------------


def fits(bits: int, *values) -> bool:
    return all(np.abs(np.asarray(v, np.int64)).max() < 2 ** (bits - 1) for v in values)


GELU = [
    (form, k)
    for form, about in i_gelu.FORMS.items()
    for k in range(about.bits[0], about.bits[1] + 1)
]


@pytest.mark.parametrize(("form", "k"), GELU)
def test_gelu_fits_int16_for_every_input(form, k):
    """Every number a 16-bit lane holds, for every t; tail() computes them in int32."""
    edge, scale = (int(p) for p in i_gelu.point(k, form))
    t = np.arange(edge + 1)
    u = (t - (edge >> 1)) * scale
    assert fits(16, edge, scale, t, u) and np.abs(u).max() < 2**15
    h, *rest = i_gelu.FORMS[form].coefficients
    for c in rest:
        product = (h * u + 2**14) >> 15
        assert fits(16, product, c)
        h = product + c
        assert fits(16, h)
    g = (t * h + 2**14) >> 15
    assert (g == i_gelu.tail(t, i_gelu.point(k, form), form)).all()
    # the result: relu(x) - g(|x|) at x = +-t, and where t stays at the edge
    assert fits(16, i_gelu.LIMIT - g, -g) and g.min() >= 0


def test_gelu_of_both_signs_differs_by_x():
    """f(x) - f(-x) = x, exactly."""
    x = np.arange(i_gelu.LIMIT + 1, dtype=np.int16)[None]
    for form, k in GELU:
        both = [i_gelu.reference(s * x, i_gelu.point(k, form), form=form) for s in (1, -1)]
        assert (both[0].astype(int) - both[1] == x).all()


def test_exp_factors_fit_int16():
    f = np.arange(2**12)
    h = np.full_like(f, attention.C4)
    for c in (attention.C3, attention.C2, attention.C1):
        h = mul_round(h, f << 3) + c
        assert fits(16, h)
    p = attention.exp2_fraction(f)
    assert p.max() == p[0] <= 2**15 and p.min() >= 2**14


@pytest.mark.parametrize("score", [1e-12, 1e-7, 1e-4, 0.01, 0.34])
def test_numerators_span_0_to_top(score):
    mult, lift, most = attention.tables(score, 1.0, 1.0, 1, np.ones(1))["exp"].tolist()
    d = np.unique(np.concatenate([np.arange(2**16), np.geomspace(1, 2**30, 10**5).astype(int)]))
    e = attention.numerators(d, mult, lift, most)
    assert e[0] == e.max() == attention.TOP and np.diff(e).max() <= 1
    assert most == attention.MOST or e[-1] == 0
    true = attention.TOP * np.exp(-d * score)
    assert np.abs(e - true).max() <= 0.5 + 2e-4 * attention.TOP


def test_inverse_is_close_and_hardly_above(rng):
    """The lemma of `bounds`, m dense near the ends and where the seed errs most."""
    low, high = 2**31, 2**32
    dense = [np.arange(max(low, w - 2**15), min(high, w + 2**15)) for w in (low, 3 << 30, high)]
    m = np.concatenate([*dense, rng.integers(low, high, 10**6)])
    ratio = attention.inverse(m) / 2.0**30 * (m / 2.0**32)
    assert -2e-9 <= (ratio - 1).min() and (ratio - 1).max() <= 2**-28


def test_scores_too_coarse_are_refused():
    with pytest.raises(RangeError, match=r"halvings, above 0\.5"):
        attention.tables(0.4, 1.0, 1.0, 1, np.ones(1))
    for exp in ((2**30, 1, 5), (2**20, 12, 10**5), (-1, 0, 9)):
        with pytest.raises(RangeError, match="attention"):
            attention._check_exp(*exp)


# -- LayerNorm -------------------------------------------------------------------------------------


def test_inverse_root_is_close_and_hardly_above(rng):
    """The lemma of `bounds`: m of every size, dense near the ends and at the seed's worst."""
    low, high = 2**30, 2**32
    worst = [int(v * 2**30) for v in (1.0, 1.59, 4 - 2**-29)]  # where the seed errs most
    dense = [np.arange(max(low, w - 2**16), min(high, w + 2**16)) for w in worst]
    m = np.concatenate([*dense, np.arange(low, high, 3001), rng.integers(low, high, 10**6)])
    root = i_layernorm.inverse_root(m)
    assert root.max() < 2**31 and root.min() >= 2**30 - 64
    # above by e: root^2 m > (1 + e)^2 2^92; long double has 64 bits
    ratio = np.sqrt(m.astype(np.longdouble) / 2.0**30) * root / 2.0**31 - 1
    assert float(np.abs(ratio).max()) <= 1e-7 and float(ratio.max()) <= 2.0**-28


def layernorm_in_python(x: list[int], eps: int) -> list[int]:
    """The module docstring's formulas in unbounded integers; every stated width is asserted."""
    n = len(x)
    f = i_layernorm.fraction_bits(n)
    s1, s2 = sum(x), sum(a * a for a in x)
    v = max(1, ((n * s2 - s1**2) << f) + eps)
    assert v < 2**62 and abs(s1) < 2**31 and n * s2 <= 2**58
    h = (v.bit_length() + 1) // 2
    m = (v << (62 - 2 * h)) >> 30
    assert 2**30 <= m < 2**32
    y = i_layernorm.SEED - ((m * i_layernorm.SLOPE) >> 30)
    for _ in range(3):
        squared = (y * y) >> 32
        step = 3 * 2**30 - ((m * squared) >> 30)
        assert y * y < 2**63 and m * squared < 2**63 and 0 <= y * step < 2**63
        y = (y * step) >> 31
    rho = min(y, 2**31 - 1)
    shift = 25 + f // 2 - h
    out = []
    for a in x:
        d = ((n * a - s1) << max(shift, 0)) >> max(-shift, 0)
        assert abs(n * a - s1) <= 2**30 and -(2**31) <= d < 2**31
        if shift > 0:  # the kernel's x (n 2^shift) - s1 2^shift in uint32, left part first
            gain, mean = (n << shift) % 2**32, (s1 << shift) % 2**32
            assert (a * gain - mean - d) % 2**32 == 0
        out.append((d * rho) >> 32)
    return out


values = st.integers(-(2**17), 2**17)
eps_integers = st.one_of(st.just(0), st.integers(0, 2**61 - 1), st.integers(0, 1000))


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), eps_integers)
def test_layernorm_normalises_as_stated(x, eps):
    y = i_layernorm.normalise(np.array([x], np.int32), np.array([eps], np.int64))
    assert y[0].tolist() == layernorm_in_python(x, eps)


@pytest.mark.parametrize("n", [1, 2, 3, 312, 768, 1024, 2048, 4096])
def test_layernorm_at_the_extremes(n, rng):
    """|y| <= sqrt(n - 1), reached by one deviating channel; full scale; a constant row."""
    peak = 2**17
    one_hot = np.full(n, -peak)
    one_hot[0] = peak
    half = np.where(np.arange(n) < n // 2, -peak, peak)
    ones = np.zeros(n, np.int64)
    ones[-1] = 1
    deviating = [height * ones for height in (2, 3, 100, 12345, peak - 1, -peak)]
    x = np.array([one_hot, -one_hot, half, ones, -ones, *deviating, np.full(n, peak)])
    y = i_layernorm.normalise(x, np.array([0]))
    for row, out in zip(x.tolist(), y.tolist(), strict=True):
        assert out == layernorm_in_python(row, 0)
    top = math.isqrt((n - 1) << (2 * i_layernorm.Y_BITS)) + 4
    assert np.abs(y).max() <= top < 2**29 + 4
    if n > 1:  # 1e-7 of it and the floors are all that is missing
        assert np.abs(y).max() >= top * (1 - 1e-7) - 8
    assert (y[-1] == 0).all()
    # a wide V does not overflow: eps at its limit as well
    for row in (half, one_hot):
        assert layernorm_in_python(row.tolist(), 2**61 - 1) == (
            i_layernorm.normalise(row[None], np.array([2**61 - 1]))[0].tolist()
        )


def test_layernorm_is_sign_symmetric(rng):
    """Negated gamma and beta negate the output, but for floors at exact halves and of d rho."""
    n = 312
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    gamma[:2], beta[:2] = (0.0, -0.0), (0.7, 0.0)
    x = rng.integers(-(2**17), 2**17, (64, n)).astype(np.int32)
    tables = [i_layernorm.tables(1e-3, s * gamma, s * beta, 1e-12, 0.03, 3e-4) for s in (1, -1)]
    half = 1 << (i_layernorm.OUT_BITS - 1)
    for g in "gr":
        assert (tables[0][f"{g}_mult"] == -tables[1][f"{g}_mult"]).all()
        assert (tables[0][f"{g}_bias"] - half == half - tables[1][f"{g}_bias"]).all()
    out = [i_layernorm.reference(x, *t.values()) for t in tables]
    # a floor in Q7 takes the step that its negative does not: one output in 2^7 moves by one
    for a, b in zip(*out, strict=True):
        moved = a.astype(int) + b
        assert np.abs(moved).max() <= 1 and np.count_nonzero(moved) <= 0.03 * moved.size
        assert (moved[:, :2] == 0).all()  # gamma 0: exactly


def test_layernorm_gamma_zero_and_constant_rows_give_beta(rng):
    gamma, beta = np.array([0.0, 1.5, -3.0, 0.0]), np.array([1.0, -1.0, 0.26, 0.0])
    for eps in (0.0, 1e-12, 1e-5):
        table = i_layernorm.tables(1e-3, gamma, beta, eps, 1 / 16, 1 / 4096)
        assert (table["eps"][0] == 0) == (eps < 1e-9)
        for constant in (0, 99, -(2**17), 2**17):
            x = np.full((1, 4), constant, np.int32)
            out8, out16 = i_layernorm.reference(x, *table.values())
            assert out8.tolist() == [[16, -16, 4, 0]]
            assert out16.tolist() == [[4096, -4096, 1065, 0]]
        out8, _ = i_layernorm.reference(np.array([[1, -5, 70, 900]], np.int32), *table.values())
        assert out8[0, 0] == 16 and out8[0, 3] == 0


@settings(max_examples=100, deadline=None)
@given(st.floats(-(2.0**14), 2.0**14), st.floats(-(2.0**14), 2.0**14), st.floats(2.0**-20, 2.0**4))
def test_layernorm_tables_hold_their_own_range(gamma, beta, scale):
    """Whatever `least_scale` allows is expressed; just below it is refused."""
    least = i_layernorm.least_scale(np.array([gamma, 1.0]), np.array([beta, 0.0]))
    scale = max(scale, float(least.max()))
    table = i_layernorm.tables(1e-3, np.array([gamma, 1]), np.array([beta, 0]), 1e-5, scale, scale)
    x = np.array([[131072, -131072], [-131072, 131072]], np.int32)  # y = 1, -1; -1, 1
    out8, _ = i_layernorm.reference(x, *table.values())
    true = np.clip((gamma * np.array([1, -1]) + beta) / scale, -127, 127)
    assert np.abs(out8[:, 0] - true).max() <= 0.51 + abs(gamma) / scale * 2.0**-22


def test_layernorm_refuses_a_scale_below_the_least():
    for gamma, beta in ((1.0, 0.0), (-3.0, 0.1), (0.0, 5.0), (1e-3, -700.0)):
        least = float(i_layernorm.least_scale(np.array(gamma), np.array(beta)))
        for ratio in (1.0, 0.999):
            arguments = 1e-3, np.array([gamma, 0.0]), np.array([beta, 0.0]), 1e-5
            if ratio == 1:
                i_layernorm.tables(*arguments, least, 1.0)
                i_layernorm.tables(*arguments, 1.0, least)
            else:
                with pytest.raises(RangeError, match="output scale is far too small"):
                    i_layernorm.tables(*arguments, least * ratio, 1.0)


def test_layernorm_says_that_the_input_scale_is_too_small():
    for n, eps in ((768, 1e-5), (4096, 1e-12)):
        scale = i_layernorm.min_scale(n, eps)
        i_layernorm.tables(scale * 1.0001, np.ones(n), np.zeros(n), eps, 0.1, 0.1)
        with pytest.raises(RangeError, match="scale is too small"):
            i_layernorm.tables(scale * 0.9999, np.ones(n), np.zeros(n), eps, 0.1, 0.1)


# -- change of scale -------------------------------------------------------------------------------

int32s = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=300, deadline=None)
@given(
    x=int32s,
    mult=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**30),
    lift=st.integers(0, 8),
)
def test_rescale_is_the_floor_of_the_exact_product(x, mult, offset, lift):
    """All of int32 that the sum leaves; beyond it the reference raises and so does the analysis."""
    args = np.array([mult], np.int32), np.array([offset], np.int32)
    limits = {"lift": lift, "lo": -(2**15), "hi": 2**15 - 1, "dtype": "int16"}
    total = x * 2**lift + offset
    array = np.array([[x]], np.int32)
    if not -(2**31) <= total < 2**31:
        with pytest.raises(RangeError, match="rescale"):
            rescale.reference(array, *args, **limits)
        with pytest.raises(RangeError, match="rescale"):
            rescale.bounds(Interval.of([x], [x]), *args, **limits)
        return
    out = rescale.reference(array, *args, **limits)
    want = min(max(total * mult // 2**32, -(2**15)), 2**15 - 1)
    assert out.tolist() == [[want]]
    interval = rescale.bounds(Interval.of([x], [x]), *args, **limits)
    assert (interval.min, interval.max) == (want, want)


@settings(max_examples=300, deadline=None)
@given(
    reach=st.integers(1, 2**28),
    ratio=st.floats(2.0**-34, 4.0),
    dtype=st.sampled_from(["int8", "int16"]),
    seed=st.integers(0, 99),
)
def test_rescale_rounds_within_one_step(reach, ratio, dtype, seed):
    """The lift chosen for any reach and ratio never wraps, and costs what `lift_bits` says.

    Results beyond 2^28 are refused.
    """
    assume(reach * ratio < 2**28)
    top = 2 ** (7 if dtype == "int8" else 15) - 1
    lift = rescale.lift_bits(np.array([ratio]), np.array([reach]), dtype)
    x = np.random.default_rng(seed).integers(-reach, reach + 1, (50, 1)).astype(np.int32)
    x[:2] = [[reach], [-reach]]
    table = rescale.tables(np.array([ratio]), lift)
    out = rescale.reference(x, *table, lift=lift, lo=-top, hi=top, dtype=dtype)
    true = np.clip(x * ratio, -top, top)
    cost = ratio * 2.0 ** -(lift + 1) + reach * 2.0 ** (lift - 33)
    assert np.abs(out - true).max() <= 0.5 + 1.01 * cost + 1e-9
    if ratio < 2**-4 and reach < 2**22:
        assert lift == rescale.USUAL_LIFT[dtype] and cost < rescale.WELL[dtype]


@settings(max_examples=200, deadline=None)
@given(ratio=st.floats(2.0**-12, 0.4), zero=st.integers(-128, 127), seed=st.integers(0, 99))
def test_rescale_adds_its_zero_point_last(ratio, zero, seed):
    reach = 2**15
    lift = rescale.lift_bits(np.array([ratio]), np.array([reach]), "int8")
    x = np.random.default_rng(seed).integers(-reach, reach + 1, (50, 1)).astype(np.int32)
    table = rescale.tables(np.array([ratio]), lift, zero)
    out = rescale.reference(x, *table, lift=lift, lo=-128, hi=127, dtype="int8")
    true = np.clip(x * ratio + zero, -128, 127)
    assert np.abs(out - true).max() <= 0.5 + 2 * rescale.WELL["int8"]


def test_rescale_refuses_a_zero_point_beyond_its_input():
    with pytest.raises(RangeError, match="zero point of 100"):
        rescale.tables(np.array([2.0**-30]), 0, 100)


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-13, 0.5, exclude_max=True))
def test_requantize16_tables_are_precise(ratio):
    """Half of the smallest mult, 2^14, is 2^-15 of it; the largest one stands for a bit more."""
    mult, down = (int(t[0]) for t in requantize16.tables(np.array([ratio])))
    assert 2**14 <= mult < 2**15 and down in {1 << b for b in range(1, 15)}
    assert abs(mult * down / 2**30 / ratio - 1) <= 2.0**-15 * (1 + 2**-14)


# -- attention -------------------------------------------------------------------------------------


def attention_in_python(qkv, lengths, table, heads, head_dim):
    """The module docstring's formulas in unbounded integers."""
    mult, lift, most = (int(v) for v in table["exp"])
    width, start, out = heads * head_dim, 0, []
    for length in lengths:
        rows = qkv[start : start + length].tolist()
        start += length
        for q in rows:
            line = []
            for h in range(heads):
                part = slice(h * head_dim, (h + 1) * head_dim)
                ks, vs = ([r[i * width : (i + 1) * width][part] for r in rows] for i in (1, 2))
                s = [sum(a * b for a, b in zip(q[part], k, strict=True)) for k in ks]
                e = []
                for d in (max(s) - a for a in s):
                    z = (min(d, most) * 2**lift * mult) >> 32
                    p = int(attention.exp2_fraction(np.array(z % 4096)))
                    e.append(((p >> ((z // 4096) + 2)) + 1) >> 1)
                bits = sum(e).bit_length()
                rec = int(attention.inverse(np.array(sum(e) << (32 - bits))))
                rec, up = rec >> max(bits - 18, 0), max(18 - bits, 0)
                for c in range(head_dim):
                    acc = sum(a * v[c] for a, v in zip(e, vs, strict=True))
                    u = (acc * 2**up * rec) >> 32
                    m, r = (int(table[x][part][c]) for x in ("ctx_mult", "ctx_offset"))
                    line.append(max(-127, min(127, ((u + r) * m) >> 32)))
            out.append(line)
    return out


def test_attention_equals_plain_python(rng):
    heads, head_dim, lengths = 2, 3, (1, 2, 5)
    qkv = rng.integers(-127, 128, (8, 18)).astype(np.int8)
    table = attention.tables(0.02, 0.02, 0.02, head_dim, rng.uniform(0.01, 0.02, 6))
    out = attention.reference(
        qkv, np.array([0, 1, 3, 8]), *table.values(), heads=heads, head_dim=head_dim
    )
    assert out.tolist() == attention_in_python(qkv, lengths, table, heads, head_dim)


def test_attention_does_not_see_its_neighbours(rng):
    qkv = rng.integers(-127, 128, (40, 48)).astype(np.int8)
    table = attention.tables(0.05, 0.05, 0.02, 8, np.full(16, 0.02))
    offsets = np.array([0, 1, 4, 21, 40])
    shape = {"heads": 2, "head_dim": 8}
    together = attention.reference(qkv, offsets, *table.values(), **shape)
    for start, stop in pairwise(offsets):
        alone = attention.reference(
            qkv[start:stop], np.array([0, stop - start]), *table.values(), **shape
        )
        assert (together[start:stop] == alone).all()


@pytest.mark.parametrize("keys", [1, 2, 33, 512])
@pytest.mark.parametrize("peak", [1, 127])
def test_constant_v_comes_back(rng, keys, peak):
    for v in (-127, -64, 1, 127):
        qkv = rng.integers(-peak, peak + 1, (keys, 24)).astype(np.int8)
        qkv[:, 16:] = v
        table = attention.tables(0.03, 0.03, 0.02, 8, np.full(8, 0.02))
        out = attention.reference(qkv, np.array([0, keys]), *table.values(), heads=1, head_dim=8)
        assert np.abs(out.astype(int) - v).max() <= 1


@pytest.mark.parametrize(("zero_v", "zero_out"), [(5, 0), (0, -30), (-20, 11)])
def test_zero_points_of_values_and_context(rng, zero_v, zero_out):
    """Values 40 times 0.02 come back at 0.04 as 20, whatever their integers are called."""
    qkv = rng.integers(-100, 101, (33, 24)).astype(np.int8)
    qkv[:, 16:] = 40 + zero_v
    table = attention.tables(0.03, 0.03, 0.02, 8, np.full(8, 0.04), zero_v, zero_out)
    out = attention.reference(qkv, np.array([0, 33]), *table.values(), heads=1, head_dim=8)
    assert np.abs(out.astype(int) - (20 + zero_out)).max() <= 1


def test_layernorm_zero_point_is_added_to_its_int8_output(rng):
    gamma, beta = rng.normal(size=24), rng.normal(size=24)
    x = rng.integers(-9000, 9000, (60, 24)).astype(np.int32)
    plain, shifted = (
        i_layernorm.reference(
            x, *i_layernorm.tables(1e-3, gamma, beta, 1e-12, 1 / 16, 1 / 4096, zero).values()
        )
        for zero in (0, -9)
    )
    np.testing.assert_array_equal(shifted[0], np.maximum(plain[0].astype(int) - 9, -127))
    np.testing.assert_array_equal(shifted[1], plain[1])


def test_uint8_numerators_would_not_do(rng):
    """Why E has 12 bits: with 255 at the row maximum the stated 35 dB cannot be had."""
    d = np.rint(np.abs(rng.normal(size=(64, 512)) * 2 + 6) * 1024)
    true = np.exp(-(d - d.min(1, keepdims=True)) / 1024)
    e8 = np.rint(255 * true)
    assert (1 - e8.sum(1) / (255 * true).sum(1)).max() * 127 > 1
