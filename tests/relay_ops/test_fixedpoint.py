"""Fixed-point primitives against Python's unbounded integers and fractions, over full ranges."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.ibert.quant_modules import batch_frexp

from intformer.errors import RangeError
from intformer.relay_ops import fixedpoint as fp
from intformer.relay_ops.interval import Interval

int32s = st.integers(*fp.INT32)
mults = st.integers(-(2**31) + 1, 2**31 - 1)
shifts = st.integers(1, fp.MAX_SHIFT)


def rhe(x: int, divisor: int) -> int:
    return round(Fraction(x, divisor))  # Python rounds a Fraction half to even


@pytest.mark.parametrize(
    ("x", "shift", "expected"),
    # 2.5 -> 2, 3.5 -> 4, -2.5 -> -2, -3.5 -> -4, 2.75 -> 3, -2.75 -> -3
    [(5, 1, 2), (7, 1, 4), (-5, 1, -2), (-7, 1, -4), (11, 2, 3), (-11, 2, -3), (0, 62, 0)],
)
def test_round_shift_on_paper(x, shift, expected):
    assert fp.round_shift(x, shift) == expected


@settings(max_examples=500)
@given(int32s, mults, shifts)
@example(-(2**31), -(2**31) + 1, 62)
@example(-(2**31), 2**31 - 1, 1)
@example(3, 2**30, 31)  # 1.5 -> 2
@example(1, 2**30, 31)  # 0.5 -> 0
def test_dyadic(x, mult, shift):
    assert fp.dyadic(x, mult, shift) == rhe(x * mult, 2**shift)


@settings(max_examples=500)
@given(st.data(), st.sampled_from([8, 32]), mults)
def test_split_dyadic(data, split, mult):
    x = data.draw(st.integers(-(2 ** min(62, 30 + split)), 2 ** min(62, 30 + split)))
    shift = data.draw(st.integers(split + 1, split + 61))
    assert fp.split_dyadic(x, mult, shift, split) == rhe(x * mult, 2**shift)


@pytest.mark.parametrize("split", [8, 32])
def test_split_dyadic_ties(split):
    # x * 2^30 / 2^(split + 31) is k + 1/2 at x = (2k + 1) 2^split: exact ties, and one LSB beside
    for k in range(-3, 4):
        x = (2 * k + 1) << split
        for offset in (-1, 0, 1):
            expected = rhe((x + offset) * 2**30, 2 ** (split + 31))
            assert fp.split_dyadic(x + offset, 2**30, split + 31, split) == expected


@settings(max_examples=500)
@given(st.integers(0, 2**62 - 1))
@example(2**62 - 1)
def test_isqrt(x):
    assert fp.isqrt(x) == math.isqrt(x)


def test_isqrt_beside_squares():
    roots = np.concatenate([np.arange(1, 2000), 2**31 - 1 - np.arange(2000)])
    for offset in (-1, 0, 1):
        assert (fp.isqrt(roots * roots + offset) == roots - (offset < 0)).all()


@given(st.integers(1, 2**62), st.integers(1, 62))
def test_reciprocal(x, bits):
    assert fp.reciprocal(x, bits) == (2**bits - 1) // x


@settings(max_examples=300)
@given(st.integers(-(2**60), 2**60), st.integers(1, 2**40))
def test_round_divide(x, divisor):
    assert fp.round_divide(x, divisor) == rhe(x, divisor)


def test_round_divide_ties():
    assert fp.round_divide(np.array([-5, -3, -1, 1, 3, 5]), 2).tolist() == [-2, -2, 0, 0, 2, 2]


# -- make_dyadic -----------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.floats(2.0**-39, 2.0**29), st.booleans())
def test_make_dyadic_is_close(ratio, negative):
    ratio = -ratio if negative else ratio
    mult, shift = (int(v) for v in fp.make_dyadic(ratio))
    assert abs(mult) < 2**31 and 1 <= shift <= 62
    # half an LSB of 31 bits, or of 2^-62
    tolerance = max(abs(ratio) * 2.0**-31, 2.0**-63)
    assert abs(Fraction(mult, 2**shift) - Fraction(ratio)) <= tolerance


def test_make_dyadic_equals_batch_frexp(rng):
    ratio = rng.uniform(1, 2, 2000) * 2.0 ** rng.integers(-30, 20, 2000)
    ratio *= rng.choice([-1, 1], 2000)
    m, e = batch_frexp(torch.tensor(ratio))
    mult, shift = fp.make_dyadic(ratio)
    assert (mult == m.numpy()).all() and (shift == e.numpy()).all()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, (2**30, 31)),
        (1.0, (2**30, 30)),
        (-0.75, (-3 * 2**29, 31)),
        (1 - 2.0**-40, (2**30, 30)),  # rounds to 2^31: renormalised
        (2.0**-40, (2**22, 62)),  # the shift stops at 62
        (2.0**-41, (0, 1)),
        (0.0, (0, 1)),
        (-(2.0**-50), (0, 1)),
        (2.0**30 - 1, (2**30 - 1 << 1, 1)),
    ],
)
def test_make_dyadic_edges(ratio, expected):
    assert tuple(int(v) for v in fp.make_dyadic(ratio)) == expected


@pytest.mark.parametrize("ratio", [2.0**30, np.inf, np.nan])
def test_make_dyadic_refuses(ratio):
    with pytest.raises(RangeError):
        fp.make_dyadic(ratio)


@given(st.floats(2.0**-60, 2.0**-3), st.sampled_from([8, 32]))
def test_make_split_dyadic_is_close(ratio, split):
    mult, shift = (int(v) for v in fp.make_split_dyadic(ratio, split))
    assert 0 <= mult < 2**31 and split < shift <= split + 61
    assert abs(Fraction(mult, 2**shift) - Fraction(ratio)) <= max(
        ratio * 2.0**-31, 2.0 ** -(split + 62)
    )


# -- intervals -------------------------------------------------------------------------------------


@given(int32s, int32s, mults, shifts, st.floats(0, 1))
def test_interval_of_dyadic_holds_and_is_reached(a, b, mult, shift, where):
    low, high = min(a, b), max(a, b)
    interval = Interval.of(low, high).dyadic(mult, shift)
    ends = sorted(int(fp.dyadic(x, mult, shift)) for x in (low, high))
    assert [interval.min, interval.max] == ends
    x = low + int((high - low) * where)
    assert interval.min <= fp.dyadic(x, mult, shift) <= interval.max


def test_interval_names_op_value_and_channel():
    with pytest.raises(RangeError, match=r"sum \(channel 1\).*int8.*some_op"):
        Interval.of([0, -200], [5, 7]).fits("int8", "some_op", "sum")
