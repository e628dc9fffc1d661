"""The ibert ops against transformers' own modules, in float32 (the tables) and float64 (the rest).

float64 runs the same module code on exact integers, so equality is demanded; the only exceptions
are those the design writes down: 256 in a uint8, a constant row, an exact square root.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers.models.ibert.quant_modules import (
    FixedPointMul,
    IntGELU,
    IntLayerNorm,
    IntSoftmax,
    QuantAct,
)

from intformer.errors import RangeError
from intformer.relay_ops import attention_ibert, i_gelu_ibert, i_layernorm_ibert
from intformer.relay_ops.fixedpoint import dyadic, make_dyadic

torch.set_num_threads(1)


def quant_act(bits: int, peak: float) -> QuantAct:
    act = QuantAct(bits, quant_mode=True).eval()
    act.x_max.fill_(peak)
    act.x_min.fill_(-peak)
    return act


def act_scale(act: QuantAct, bits: int) -> np.float32:
    return np.float32(np.maximum(act.x_max.numpy()[0], np.float32(1e-8)) / (2 ** (bits - 1) - 1))


# -- QuantAct --------------------------------------------------------------------------------------


def test_requantize_equals_fixed_point_mul(rng):
    acc = rng.integers(-(2**24), 2**24, (1, 64, 96))
    scale = rng.uniform(1e-5, 1e-3, 96).astype(np.float32)
    act = quant_act(8, 11.3)
    theirs, out_scale = act(
        torch.tensor(acc, dtype=torch.float64) * torch.tensor(scale), torch.tensor(scale)
    )
    mult, shift = make_dyadic(scale.astype(np.float64) / np.float64(out_scale.item()))
    ours = np.clip(dyadic(acc[0], mult, shift), -128, 127)
    assert (ours == np.rint(theirs[0].numpy() / out_scale.item())).all()


def test_ties_round_to_even():
    # ratio 1/2: every odd integer is a tie
    z = torch.arange(-9, 10, dtype=torch.float64)[None, None]
    theirs = FixedPointMul.apply(z, torch.ones(1), 8, torch.full((1,), 2.0))[0, 0]
    ours = dyadic(np.arange(-9, 10), *make_dyadic(0.5))
    assert (ours == theirs.numpy()).all()


# -- IntGELU ---------------------------------------------------------------------------------------


def test_gelu_tables_equal_the_modules_float32():
    scale = np.exp(np.linspace(np.log(i_gelu_ibert.MIN_SCALE), np.log(2e-2), 4001))
    scale = scale.astype(np.float32)
    tables = i_gelu_ibert.tables(scale, 0.05)
    gelu, s = IntGELU(quant_mode=True), torch.tensor(scale)
    b = torch.floor(gelu.coeff[1] / (s / gelu.k))
    c = torch.floor(gelu.coeff[2] / (s / gelu.k) ** 2)
    _, erf_scale = gelu.int_erf(torch.ones_like(s), s / gelu.k)
    assert (tables["b"] == b.numpy()).all()
    assert (tables["c"] == c.numpy()).all()
    assert (tables["one"] == (1.0 // erf_scale).numpy()).all()


@pytest.mark.parametrize("peak", [0.7, 6.0])
def test_gelu_equals_the_module(rng, peak):
    channels = 64
    scale = np.exp(rng.uniform(np.log(2e-5), np.log(5e-3), channels)).astype(np.float32)
    act = quant_act(8, peak)
    real = rng.normal(size=(200, channels)) * 2.5
    acc = np.rint(real / scale).astype(np.int32)
    ours = i_gelu_ibert.reference(
        acc, *i_gelu_ibert.tables(scale, act_scale(act, 8)).values(), lo=-128, hi=127
    )
    # the module on exact integers: float64 activations, its own float32 tables
    gelu, s = IntGELU(quant_mode=True), torch.tensor(scale)
    b = torch.floor(gelu.coeff[1] / (s / gelu.k)).double()
    c = torch.floor(gelu.coeff[2] / (s / gelu.k) ** 2).double()
    erf_scale = (s / gelu.k) ** 2 * gelu.coeff[0] * 2**gelu.const
    x = torch.tensor(acc, dtype=torch.float64)
    z = torch.floor(x.sign() * ((torch.minimum(x.abs(), -b) + b) ** 2 + c) / 2**gelu.const)
    y = x * (z + (1.0 // erf_scale).double())
    out_scale = s * erf_scale / 2
    theirs, q = act((y * out_scale.double())[None], out_scale.double())
    assert (ours == np.rint(theirs[0].numpy() / q.item())).all()
    # and the module as it is, float32 throughout
    y32, s32 = gelu(torch.tensor(acc, dtype=torch.float32)[None] * s, s)
    theirs, q = act(y32, s32)
    assert (ours == np.rint((theirs[0] / q).numpy())).mean() > 0.9999


# -- IntSoftmax ------------------------------------------------------------------------------------


def softmax_ours(s: np.ndarray, scale: np.float32, act_max: float) -> np.ndarray:
    p = attention_ibert.tables(scale, act_max, 1.0, 1.0, 1)["p"]
    e = attention_ibert.numerators(s - s.max(1, keepdims=True), p)
    return attention_ibert.probabilities(e)


def softmax_module(s: np.ndarray, scale: np.float32, act_max: float) -> np.ndarray:
    module = IntSoftmax(8, quant_mode=True).eval()
    module.act.x_max.fill_(act_max)
    module.act.x_min.fill_(0)
    factor = torch.tensor([scale])
    out, unit = module(torch.tensor(s, dtype=torch.float32)[None, None] * factor, factor)
    return np.rint((out / unit)[0, 0].numpy())


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_softmax_equals_the_module(rng, scale, sigma):
    scale = np.float32(scale)
    s = np.rint(rng.normal(size=(200, 96)) * sigma / scale).astype(np.int64)
    act_max = float(np.floor(2.7921 / scale**2) * 2.0**30)
    ours = softmax_ours(s, scale, act_max)
    theirs = softmax_module(s, scale, act_max)
    assert ours.max() <= 255
    differ = ours != np.minimum(theirs, 255)
    assert differ.mean() < 1e-3 and np.abs(ours - np.minimum(theirs, 255)).max() <= 1


def test_softmax_exact_integers_equal_python(rng):
    """Every step in Python's unbounded integers and Fractions."""
    for scale in (3e-5, 1e-3, 0.05):
        scale = np.float32(scale)
        act_max = float(np.floor(2.7921 / scale**2) * 2.0**30)
        p = attention_ibert.tables(scale, act_max, 1.0, 1.0, 1)["p"]
        x0, b, c, m, e, _ = (int(v) for v in p)
        d = rng.integers(0, min(2**26, 40 * -x0), 400)
        expected = []
        for x in (max(-int(v), 30 * x0) for v in d):
            q, r = x // x0, x - x0 * (x // x0)
            exact = Fraction(((r + b) * r + c) * m, 1) * Fraction(2) ** (30 - q - e)
            expected.append(min(round(exact), 32767))  # round() of a Fraction is RHE
        assert (attention_ibert.numerators(-d, p) == expected).all()


def test_softmax_of_one_key_is_255_not_256():
    s = np.zeros((1, 1), np.int64)
    act_max = float(np.floor(2.7921 / 1e-6) * 2.0**30)
    assert softmax_module(s, np.float32(1e-3), act_max)[0, 0] == 256
    assert softmax_ours(s, np.float32(1e-3), act_max)[0, 0] == 255


@pytest.mark.parametrize(
    ("keys", "theirs", "ours"),
    [(2, 128, 127), (3, 85, 85), (4, 64, 63), (8, 31, 31), (16, 15, 15)],
)
def test_softmax_of_equal_scores(keys, theirs, ours):
    """QuantAct gives float32 there, which rounds what is floored; see docs/numerics.md."""
    s = np.zeros((1, keys), np.int64)
    act_max = float(np.floor(2.7921 / 1e-6) * 2.0**30)
    assert softmax_module(s, np.float32(1e-3), act_max)[0].tolist() == [theirs] * keys
    assert softmax_ours(s, np.float32(1e-3), act_max)[0].tolist() == [ours] * keys


def test_division_by_x0_is_exact_everywhere():
    for x0 in (-1, -2, -3, -7, -693, -6931, -65537, -(2**21) + 1, -(2**21)):
        beside = np.arange(31)[:, None] * x0 + np.arange(-2, 3)
        x = np.concatenate([beside.ravel(), np.linspace(30 * x0, 0, 5000).astype(np.int64)])
        x = x[(x <= 0) & (x >= 30 * x0)]
        quotient = (-x * attention_ibert.inverse(x0)) >> attention_ibert.INVERSE_BITS
        assert (quotient == x // x0).all()


def test_attention_equals_the_modules(rng):
    """Scores, softmax, context and QuantAct(8); sequences of 1, 7 and 20 tokens, two heads."""
    heads, head_dim, lengths = 2, 16, (1, 7, 20)
    qkv = rng.integers(-127, 128, (28, 96)).astype(np.int8)
    s_q, s_v, act = np.float32(0.06), np.float32(0.03), quant_act(8, 2.5)
    score = s_q * s_q / np.float32(4)
    act_max = float(np.floor(2.7921 / score**2) * 2.0**30)
    table = attention_ibert.tables(score, act_max, s_v, act_scale(act, 8), 32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ours = attention_ibert.reference(qkv, offsets, *table.values(), heads=heads, head_dim=head_dim)
    for start, stop in pairwise(offsets):
        q, k, v = qkv[start:stop].astype(np.int64).reshape(-1, 3, heads, head_dim).swapaxes(0, 1)
        for h in range(heads):
            prob = np.minimum(softmax_module(q[:, h] @ k[:, h].T, score, act_max), 255)
            unit = torch.tensor([s_v / np.float32(256)])
            theirs, scale = act(torch.tensor(prob @ v[:, h])[None] * unit.double(), unit)
            theirs = np.rint(theirs[0].numpy() / scale.item())
            assert (ours[start:stop, h * head_dim : (h + 1) * head_dim] == theirs).all()


# -- IntLayerNorm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_shift", [0, 6])
def test_layernorm_equals_the_module(rng, saved_shift):
    n = 312
    gamma = rng.normal(size=n).astype(np.float32)
    gamma[np.abs(gamma) < 0.05] = 0.05
    beta = (rng.normal(size=n) * 0.5).astype(np.float32)
    act = quant_act(8, 4.0)
    x = np.rint(rng.normal(size=(100, n)) * rng.uniform(300, 2e5, (100, 1))).astype(np.int32)
    tables = i_layernorm_ibert.tables(gamma, beta, act_scale(act, 8))
    ours = i_layernorm_ibert.reference(
        x, *tables.values(), np.array([saved_shift], np.int32), lo=-128, hi=127
    )
    module = IntLayerNorm(n, 1e-5, output_bit=32, quant_mode=True).eval()
    module.weight.data, module.bias.data = torch.tensor(gamma), torch.tensor(beta)
    module.shift.fill_(saved_shift)
    with torch.no_grad():
        y, scale = module(torch.tensor(x, dtype=torch.float64)[None], torch.ones(1))
        bias = torch.floor((module.bias / module.weight) / (module.dim_sqrt / 2**30))
    assert (tables["bias"] == bias.numpy()).all()
    theirs, q = act(y, scale)
    assert (ours == np.rint(theirs[0].numpy() / q.item())).all()


def test_layernorm_constant_row_gives_beta():
    gamma, beta = np.array([0.5, -2.0, 1.0, 1.0]), np.array([1.0, 1.0, -0.25, 0.0])
    tables = i_layernorm_ibert.tables(gamma, beta, 0.0625)
    x = np.full((1, 4), 77, np.int32)
    out = i_layernorm_ibert.reference(x, *tables.values(), np.array([0]), lo=-128, hi=127)
    assert out.tolist() == [[16, 16, -4, 0]]


@pytest.mark.parametrize("shift", [0, 6])
def test_layernorm_of_a_row_that_is_flat(shift):
    """Of one value: NaN there, beta here. Below the saved shift: close to beta in both."""
    n, step = 8, 0.0625
    gamma, beta = np.ones(n, np.float32), np.full(n, 0.5, np.float32)
    module = IntLayerNorm(n, 1e-5, output_bit=32, quant_mode=True).eval()
    module.weight.data, module.bias.data = torch.tensor(gamma), torch.tensor(beta)
    module.shift.fill_(shift)
    tables = i_layernorm_ibert.tables(gamma, beta, step)

    def both(row):
        x = np.array([row], np.int32)
        ours = i_layernorm_ibert.reference(x, *tables.values(), np.array([shift]), lo=-128, hi=127)
        with torch.no_grad():
            theirs, _ = module(torch.tensor(x, dtype=torch.float32)[None], torch.ones(1))
        return theirs[0, 0].numpy(), ours[0] * step

    theirs, ours = both([3] * n)
    assert np.isnan(theirs).all() and (ours == 0.5).all()
    theirs, ours = both([3, 4] * (n // 2))
    assert np.abs(theirs - ours).max() <= step
    assert (np.abs(ours - 0.5).max() <= step) == (shift == 6)


@pytest.mark.parametrize(("gamma", "beta"), [(0.0, 1.0), (0.01, 1.0)])
def test_layernorm_refuses_what_has_no_integers(gamma, beta):
    with pytest.raises(RangeError, match="channel 1"):
        i_layernorm_ibert.tables(np.array([1, gamma, 1]), np.array([0, beta, 0]), 0.05)
