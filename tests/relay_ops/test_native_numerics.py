"""The native recipe: its stated bounds, its stated widths, and its symmetries."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intformer import op_errors
from intformer.errors import RangeError
from intformer.relay_ops import attention, i_gelu, i_layernorm


@pytest.mark.parametrize(
    "row", list(op_errors.rows()), ids=lambda r: f"{r.op}-{r.recipe}-{r.measure}"
)
def test_error_is_within_its_bound(row):
    assert row.ok, row


# -- widths ----------------------------------------------------------------------------------------


def fits(bits: int, *values) -> bool:
    return all(np.abs(np.asarray(v, np.int64)).max() < 2 ** (bits - 1) for v in values)


@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu_factors_fit_int16_and_products_int32(form):
    v = np.arange(i_gelu.EDGE + 1, dtype=np.int64)
    c6, *rest = i_gelu.COEFFICIENTS[form]
    h = np.full_like(v, c6)
    for c, shift in zip(rest, i_gelu.SHIFTS, strict=True):
        assert fits(16, h, v) and fits(32, h * v, c, h * v + c)
        h = (h * v + c) >> shift
    square = (v * v) >> 13
    assert fits(16, h, square) and fits(32, v * v, h * square + 2**17)


def test_exp_factors_fit_int16_and_products_int32():
    f = np.arange(2**15)
    a = (f * attention.C3 + attention.C2) >> 17
    b = (f * a + attention.C1) >> 16
    last = f * b + (1 << 30) + (1 << 13)
    assert fits(16, f, a, b, attention.C3)
    assert fits(32, attention.C2, attention.C1, f * attention.C3 + attention.C2, f * a, last)
    p = attention.exp2_fraction(f)
    assert p.max() == p[0] == 65536 and p.min() >= 32765
    assert fits(32, p * attention.TOP)


def test_numerators_span_0_to_top():
    e = attention.numerators(np.arange(2**20), 2**30, 30)  # z = d
    assert e[0] == e.max() == attention.TOP and e[-1] == 0 and np.diff(e).max() <= 1
    assert attention.numerators(np.array([2**31 - 1]), 2**31 - 1, 1)[0] == 0


# -- LayerNorm -------------------------------------------------------------------------------------


def layernorm_in_python(x: list[int], eps: int) -> list[int]:
    """The module docstring's formulas in unbounded integers."""
    n = len(x)
    f = i_layernorm.fraction_bits(n)
    v = max(1, ((n * sum(a * a for a in x) - sum(x) ** 2) << f) + eps)
    assert v < 2**62
    k = (62 - v.bit_length()) // 2
    r = math.isqrt(v << (2 * k))
    assert 2**30 <= r < 2**31
    factor = (2**61 - 1) // r
    assert factor < 2**31 and 37 - k - f // 2 >= 0
    deviations = [n * a - sum(x) for a in x]
    assert all(abs(d) <= 2**30 for d in deviations)
    return [(d * factor) >> (37 - k - f // 2) for d in deviations]


values = st.integers(-(2**17), 2**17)
eps_integers = st.one_of(st.just(0), st.integers(0, 2**61 - 1), st.integers(0, 1000))


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), eps_integers)
def test_layernorm_normalises_as_stated(x, eps):
    y = i_layernorm.normalise(np.array([x], np.int32), np.array([eps], np.int64))
    assert y[0].tolist() == layernorm_in_python(x, eps)


@pytest.mark.parametrize("n", [1, 2, 3, 312, 2048, 4096])
def test_layernorm_at_the_extremes(n, rng):
    """|y| <= sqrt(n - 1), reached by one deviating channel; full scale; a constant row."""
    peak = 2**17
    one_hot = np.full(n, -peak)
    one_hot[0] = peak
    half = np.where(np.arange(n) < n // 2, -peak, peak)
    ones = np.zeros(n, np.int64)
    ones[-1] = 1
    x = np.array([one_hot, -one_hot, half, ones, np.full(n, peak)])
    y = i_layernorm.normalise(x, np.array([0]))
    for row, out in zip(x.tolist(), y.tolist(), strict=True):
        assert out == layernorm_in_python(row, 0)
    top = math.isqrt((n - 1) << (2 * i_layernorm.Y_BITS)) + 4
    assert np.abs(y).max() <= top < 2**30 and (n == 1 or np.abs(y).max() >= top - 8)
    assert (y[-1] == 0).all()
    # a wide V does not overflow: eps at its limit as well
    assert layernorm_in_python(half.tolist(), 2**61 - 1) == (
        i_layernorm.normalise(half[None], np.array([2**61 - 1]))[0].tolist()
    )


def test_layernorm_is_sign_symmetric(rng):
    n = 312
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    gamma[:2], beta[:2] = (0.0, -0.0), (0.7, 0.0)
    x = rng.integers(-(2**17), 2**17, (64, n)).astype(np.int32)
    out = [
        i_layernorm.reference(
            x, *i_layernorm.tables(1e-3, s * gamma, s * beta, 1e-12, 0.03, 1e-4).values()
        )
        for s in (1, -1)
    ]
    assert all((a == -b).all() for a, b in zip(*out, strict=True))


def test_layernorm_gamma_zero_and_constant_rows_give_beta(rng):
    gamma, beta = np.array([0.0, 1.5, -3.0, 0.0]), np.array([1.0, -1.0, 0.26, 0.0])
    for eps in (1e-12, 1e-5):
        table = i_layernorm.tables(1e-3, gamma, beta, eps, 1 / 16, 1 / 4096)
        out8, out16 = i_layernorm.reference(np.full((1, 4), 99, np.int32), *table.values())
        assert out8.tolist() == [[16, -16, 4, 0]] and out16.tolist() == [[4096, -4096, 1065, 0]]
    out8, _ = i_layernorm.reference(np.array([[1, -5, 70, 900]], np.int32), *table.values())
    assert out8[0, 0] == 16 and out8[0, 3] == 0


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-(2.0**20), 2.0**20),
    st.floats(-(2.0**20), 2.0**20),
    st.floats(2.0**-20, 2.0**4),
)
def test_layernorm_tables_hold_their_own_range(gamma, beta, scale):
    table = i_layernorm.tables(1e-3, np.array([gamma, 1]), np.array([beta, 0]), 1e-5, scale, scale)
    x = np.array([[131072, -131072], [-131072, 131072]], np.int32)  # y = 1, -1; -1, 1
    out8, _ = i_layernorm.reference(x, *table.values())
    true = np.clip((gamma * np.array([1, -1]) + beta) / scale, -127, 127)
    assert np.abs(out8[:, 0] - true).max() <= 0.51 + abs(gamma) / scale * 2.0**-23


def test_layernorm_says_that_the_input_scale_is_too_small():
    for n, eps in ((768, 1e-5), (4096, 1e-12)):
        scale = i_layernorm.min_scale(n, eps)
        i_layernorm.tables(scale * 1.0001, np.ones(n), np.zeros(n), eps, 0.1, 0.1)
        with pytest.raises(RangeError, match="scale is too small"):
            i_layernorm.tables(scale * 0.9999, np.ones(n), np.zeros(n), eps, 0.1, 0.1)


# -- attention -------------------------------------------------------------------------------------


def attention_in_python(qkv, lengths, table, heads, head_dim):
    """The module docstring's formulas in unbounded integers."""
    mult, shift = (int(v) for v in table["exp"])
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
                    z = min((d * mult) >> shift, attention.Z_MAX)
                    p = int(attention.exp2_fraction(np.array((z & 0xFFFF) >> 1)))
                    e.append(((p * 4095 >> (z >> 16)) + 2**15) >> 16)
                rec = (2**32 - 1) // sum(e)
                for c in range(head_dim):
                    t = (sum(a * v[c] for a, v in zip(e, vs, strict=True)) * rec) >> 17
                    m, r = (int(table[x][part][c]) for x in ("ctx_mult", "ctx_shift"))
                    line.append(max(-127, min(127, round(t * m / 2**r))))  # below 2^53
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


def test_uint8_numerators_would_not_do(rng):
    """Why E has 12 bits: with 255 at the row maximum the stated 35 dB cannot be had."""
    d = np.rint(np.abs(rng.normal(size=(64, 512)) * 2 + 6) * 1024)
    true = np.exp(-(d - d.min(1, keepdims=True)) / 1024)
    e8 = np.rint(255 * true)
    assert (1 - e8.sum(1) / (255 * true).sum(1)).max() * 127 > 1
