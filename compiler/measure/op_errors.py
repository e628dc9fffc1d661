"""Each op's error against float, over exhaustive or dense sweeps of its domain.

`intformer ops` prints it; tests hold every row to its bound. Bounds: the op's own
widths for the native recipe, the published figures for ibert (arXiv 2101.01321, table 1).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from intformer.relay_ops import (
    attention,
    attention_ibert,
    attention_relative,
    gate,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_stream_norm,
    i_tanh,
    mean_pool,
    requantize16,
    rescale,
    rotary,
    weighted_pool,
)
from intformer.relay_ops.fixedpoint import dyadic, make_dyadic

SEED = 0
INT8_MAX, INT16_MAX = 127, 2**15 - 1


@dataclass(frozen=True)
class OpError:
    """One line of the table.

    domain   what was swept
    measure  what `error` is and its unit; for dB, more is better
    ok       error within bound
    """

    op: str
    recipe: str
    domain: str
    measure: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the bound holds."""
        return self.error >= self.bound if "dB" in self.measure else self.error <= self.bound


def rows() -> Iterator[OpError]:
    """Yield the table, line by line, a few seconds each at most."""
    yield from exp_rows()
    yield from attention_rows()
    yield relative_row()
    yield from gelu_rows()
    yield from tanh_rows()
    yield from layernorm_rows()
    yield from linear_rows()


# -- softmax ---------------------------------------------------------------------------------------


def exp_rows() -> Iterator[OpError]:
    """i-exp of both recipes, before the numerators are rounded."""
    f = np.arange(2**12)  # every z below one halving; the rest is a shift
    value = attention.exp2_fraction(f) / 32768
    # a floored z stands for anything in [z, z + 1)
    error = max(np.abs(value / 2.0 ** -((f + end) / 4096) - 1).max() for end in (0, 1))
    yield OpError("i-exp", "native", "all 4096 z", "max relative", float(error), 1.9e-4)

    worst = 0.0
    for scale in (1e-4, 1e-3):
        p = attention_ibert.tables(scale, 1e30, 1.0, 1.0, 1)["p"]
        x0, b, c = (int(v) for v in p[:3])
        x = -np.arange(int(10 / scale))
        q = x // x0
        r = x - x0 * q
        value = ((r + b) * r + c) * attention_ibert.A * scale**2 * 2.0**-q
        worst = max(worst, float(np.abs(value - np.exp(x * scale)).max()))
    yield OpError(
        "i-exp", "ibert", "x in [-10, 0], scale 1e-4, 1e-3", "max absolute", worst, 1.95e-3
    )


def context(sigma: float, keys: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (integer, float) context rows [64, 64] in units of v, before output rounding."""
    unit = 2.0**-10  # real units per LSB of the scores
    s = np.rint(rng.normal(size=(64, keys)) * sigma / unit).astype(np.int64)
    v = np.clip(np.rint(rng.normal(size=(keys, 64)) * 40), -INT8_MAX, INT8_MAX)
    d = s.max(1, keepdims=True) - s
    exact = np.exp(-d * unit)
    exp = attention.tables(unit, 1.0, 1.0, 1, np.ones(1))["exp"].tolist()
    return attention.mean_of_values(attention.numerators(d, *exp), v) / 2**attention.T_BITS, (
        exact / exact.sum(1, keepdims=True)
    ) @ v


def attention_rows() -> Iterator[OpError]:
    """The native context against float softmax; a constant V."""
    worst, where = math.inf, ""
    for keys in (1, 2, 3, 16, 128, 512):
        for sigma in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0):
            ours, true = context(sigma, keys, np.random.default_rng(SEED))
            noise = np.square(ours - true).sum() + 1e-12
            decibels = float(10 * np.log10(np.square(true).sum() / noise))
            if decibels < worst:
                worst, where = decibels, f"sigma {sigma:g}, {keys} keys"
    domain = f"Gaussian logits, sigma 0..16, 1..512 keys (worst: {where})"
    yield OpError("attention", "native", domain, "context, dB", worst, 35.0)

    worst = 0.0
    for keys in (1, 2, 3, 64, 512):
        for sigma in (0.0, 0.5, 2.0, 8.0):
            rng = np.random.default_rng(SEED)
            d = np.rint(np.abs(rng.normal(size=(64, keys))) * sigma * 1024).astype(np.int64)
            d -= d.min(1, keepdims=True)
            exp = attention.tables(2.0**-10, 1.0, 1.0, 1, np.ones(1))["exp"].tolist()
            e = attention.numerators(d, *exp)
            for v in (-INT8_MAX, -1, 1, INT8_MAX):
                mean = attention.mean_of_values(e, np.full((keys, 1), float(v)))
                worst = max(worst, float(np.abs(mean / 2**attention.T_BITS - v).max()))
    yield OpError("attention", "native", "constant V", "max, LSB of V", worst, 1.0)


def relative_row() -> OpError:
    """The context with products of distances, whose tables alone were rounded, against float."""
    worst, where = math.inf, ""
    for length in (2, 16, 128, 512):
        for sigma in (0.5, 1.0, 2.0, 4.0):
            rng = np.random.default_rng(SEED)
            q, k, v = np.clip(np.rint(rng.normal(size=(3, length, 64)) * 40), -127, 127)
            real = np.clip(rng.normal(size=(2, 2 * length - 1, 64)) * 40, -127, 127)
            tables = [attention_relative.table(rows, np.ones(64)).astype(float) for rows in real]
            exact, ours = (q @ k.T + attention_relative.products(q, k, *t) for t in (real, tables))
            unit = sigma / float(exact.std())  # real units per LSB of a score
            weights = np.exp((exact - exact.max(1, keepdims=True)) * unit)
            true = weights / weights.sum(1, keepdims=True) @ v
            exp = attention.tables(unit, 1.0, 1.0, 1, np.ones(1))["exp"].tolist()
            e = attention.numerators((ours.max(1, keepdims=True) - ours).astype(np.int64), *exp)
            noise = np.square(attention.mean_of_values(e, v) / 2**attention.T_BITS - true).sum()
            decibels = float(10 * np.log10(np.square(true).sum() / (noise + 1e-12)))
            if decibels < worst:
                worst, where = decibels, f"sigma {sigma:g}, {length} keys"
    domain = f"distances, sigma 0.5..4, 2..512 keys (worst: {where})"
    return OpError("attention", "native", domain, "context, dB", worst, 35.0)


# -- GELU and tanh ---------------------------------------------------------------------------------


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x) in float64."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """gelu_new and gelu_pytorch_tanh in float64."""
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x) in float64."""
    return x / (1 + np.exp(-x))


# form, function, bound: half a step of SiLU's output is 1e-3 at 9 fraction bits
GELU_FORMS = (("erf", gelu, 1.8e-3), ("tanh", tanh_gelu, 1.8e-3), ("silu", silu, 2.4e-3))


def gelu_rows() -> Iterator[OpError]:
    """Both native forms over their whole domain; ibert's on [-4, 4], the published sweep."""
    x = np.arange(-i_gelu.LIMIT, i_gelu.LIMIT + 1, dtype=np.int16)[:, None]
    for form, true, bound in GELU_FORMS:
        worst, where = 0.0, 0
        least, most = i_gelu.FORMS[form].bits
        for k in range(least, most + 1):
            out = i_gelu.reference(x, i_gelu.point(k, form), form=form)
            error = float(np.abs(out / 2**k - true(x / 2**k)).max())
            worst, where = max((worst, where), (error, k))
        domain = f"{form} form, all {len(x)} x of {least}..{most} fraction bits (worst: {where})"
        yield OpError("i-GELU", "native", domain, "max absolute", worst, bound)

    scale = np.float32(1e-4)
    table = i_gelu_ibert.tables(np.array([scale]), 1.0)
    acc = np.arange(-40000, 40001)[:, None]
    value = i_gelu_ibert.product(acc, table["b"], table["c"], table["one"])
    error = (value * i_gelu_ibert.product_scale(scale)).ravel() - gelu(acc.ravel() * float(scale))
    rms, peak = float(np.sqrt(np.square(error).mean())), float(np.abs(error).max())
    yield OpError("i-GELU", "ibert", "[-4, 4], scale 1e-4", "L2 (rms)", rms, 8.25e-3)
    yield OpError("i-GELU", "ibert", "[-4, 4], scale 1e-4", "L-inf", peak, 1.85e-2)


def tanh_rows() -> Iterator[OpError]:
    """i-tanh: 16 real units either way, then constant."""
    x = np.arange(-(2**16), 2**16 + 1)
    error = i_tanh.reference(x) * i_tanh.OUTPUT_SCALE - np.tanh(x * i_tanh.INPUT_SCALE)
    worst = float(np.abs(error).max())
    yield OpError("i-tanh", "both", "all x in [-16, 16]", "max absolute", worst, 1e-3)


# -- LayerNorm -------------------------------------------------------------------------------------


def layernorm_inputs(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of every size and shape: Gaussian, 1 LSB to full scale; one-hot, constant, extremes."""
    sizes = 2.0 ** rng.uniform(0, 16, (64, 1))
    x = rng.normal(size=(64, n)) * sizes + rng.normal(size=(64, 1)) * sizes
    one_hot = np.eye(8, n) * np.array([[1, -1, 2, 3, 1000, -(2**17), 2**17, 5]]).T
    flat = np.full((2, n), 7) + np.eye(2, n)
    ends = np.where(rng.random((4, n)) < 0.5, -(2**17), 2**17)
    rows = np.concatenate([x, one_hot, flat, np.full((2, n), -3), ends])
    return np.clip(np.rint(rows), -(2**17), 2**17).astype(np.int32)


def layernorm_error(n: int, scale: float, eps: float, rng: np.random.Generator) -> np.ndarray:
    """Largest gaps to float LayerNorm: of the int8 and of the int16 output, each in its LSB."""
    x = layernorm_inputs(n, rng)
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    gamma[0] = 0.0
    real = x.astype(np.float64) * scale
    mean, var = real.mean(1, keepdims=True), real.var(1, keepdims=True)
    true = (real - mean) / np.sqrt(var + eps) * gamma + beta
    out_scale = np.abs(true).max() / INT8_MAX
    table = i_layernorm.tables(scale, gamma, beta, eps, out_scale, out_scale / 256)
    out8, out16 = i_layernorm.reference(x, *table.values())
    gaps = np.abs(out8 - true / out_scale), np.abs(out16 - true * 256 / out_scale)
    return np.array([gap.max() for gap in gaps])


def layernorm_rows() -> Iterator[OpError]:
    """Native LayerNorm after gamma and beta; ibert's before its own int8 rounding."""
    rng = np.random.default_rng(SEED)
    worst = np.zeros(2)
    for n in (2, 26, 312, 768, 1024, 4096):
        for eps in (1e-12, 1e-7, 1e-5):
            for scale in (2e-5, 1e-3, 0.1):
                if i_layernorm.min_scale(n, eps) <= scale:
                    worst = np.maximum(worst, layernorm_error(n, scale, eps, rng))
    domain = "eps 1e-12..1e-5, 2..4096 channels, gamma and beta of either sign"
    # int16 sees eps rounded to an integer, on rows of one LSB
    for width, error, bound in zip((8, 16), worst.tolist(), (0.51, 1.0), strict=True):
        yield OpError("i-LayerNorm", "native", domain, f"max, LSB of int{width}", error, bound)

    yield from stream_norm_rows(rng)

    n = 768
    x = np.rint(rng.normal(size=(64, n)) * 2.0 ** rng.uniform(10, 18, (64, 1))).astype(np.int32)
    true = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    ours = i_layernorm_ibert.normalise(x, 6) * math.sqrt(n) / 2**30
    worst = float(np.abs(ours - true).max())
    yield OpError(
        "i-LayerNorm", "ibert", "Gaussian rows, saved shift 6", "max absolute", worst, 0.1
    )


def stream_norm_rows(rng: np.random.Generator) -> Iterator[OpError]:
    """Both norms of a residual stream: rows that lose bits, and rows that do not."""
    domain = "rows of i-LayerNorm, times 1 and 2^8"
    for rms, name in ((False, "LayerNorm of a stream"), (True, "RMSNorm")):
        worst = 0.0
        for n in (2, 26, 312, 768, 1024, 4096):
            x = layernorm_inputs(n, rng)
            for factor, eps in itertools.product((1, 2**8), (1e-12, 1e-5)):
                worst = max(worst, stream_norm_error(x * factor, eps, rms, rng))
        yield OpError(name, "native", domain, "max, LSB of int8", worst, 0.51)


def stream_norm_error(x: np.ndarray, eps: float, rms: bool, rng: np.random.Generator) -> float:
    """Largest gap to the float norm, in LSB of int8."""
    scale, n = 1e-3, x.shape[1]
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    real = x.astype(np.float64) * scale
    if not rms:
        real -= real.mean(1, keepdims=True)
    true = real / np.sqrt(np.square(real).mean(1, keepdims=True) + eps) * gamma + beta
    out_scale = np.abs(true).max() / INT8_MAX
    table = i_stream_norm.tables(scale, gamma, beta, eps, out_scale)
    out = i_stream_norm.reference(x, *table.values(), rms=rms, dtype="int8")
    return float(np.abs(out - true / out_scale).max())


# -- the linear ops --------------------------------------------------------------------------------


def linear_rows() -> Iterator[OpError]:
    """Changes of scale and mean pooling: hardly more than their one rounding."""
    rng = np.random.default_rng(SEED)
    acc = rng.integers(-(2**24), 2**24, 200_000)
    ratio = 1e-4
    error = np.abs(dyadic(acc, *make_dyadic(ratio)) - acc * ratio).max()
    yield OpError("requantize", "both", "200000 accumulators", "max, LSB", float(error), 0.501)
    yield from rescale_rows(rng)
    yield requantize16_row()
    yield rotary_row(rng)
    yield gate_row(rng)

    lengths = np.array([1, 2, 3, 127, 512])
    offsets = np.concatenate([[0], lengths.cumsum()])
    x = rng.integers(-INT16_MAX, INT16_MAX + 1, (offsets[-1], 64)).astype(np.int16)
    bits = mean_pool.MIN_FRACTION_BITS
    true = np.add.reduceat(x.astype(np.float64), offsets[:-1], axis=0) / lengths[:, None]
    error = np.abs(mean_pool.reference(x, offsets, fraction_bits=bits) - true * 2**bits).max()
    yield OpError("mean-pool", "both", "1..512 tokens, k = 8", "max, LSB", float(error), 0.5)
    yield from weighted_rows(x, offsets)


def weighted_rows(x: np.ndarray, offsets: np.ndarray) -> Iterator[OpError]:
    """Both forms of a weighted pool; the root of a length is rounded, too."""
    lengths = np.diff(offsets)
    for form, bits, bound in (("mean_sqrt", 9, 1.0), ("weighted_mean", 12, 0.5)):
        rising = form == weighted_pool.WEIGHTED_MEAN
        weights = np.concatenate([np.arange(1, n + 1) if rising else np.ones(n) for n in lengths])
        total = np.add.reduceat(weights, offsets[:-1])
        divisor = total if rising else np.sqrt(total)
        true = np.add.reduceat(x * weights[:, None], offsets[:-1], axis=0) / divisor[:, None]
        table = weighted_pool.divisors(form, int(lengths.max()))
        shift = bits if rising else bits + weighted_pool.ROOT_BITS
        made = weighted_pool.reference(x, offsets, table, shift=shift, rising=rising)
        error = float(np.abs(made - true * 2**bits).max())
        domain = f"{form}, 1..512 tokens, k = {bits}"
        yield OpError("weighted-pool", "native", domain, "max, LSB", error, bound)


def rescale_rows(rng: np.random.Generator) -> Iterator[OpError]:
    """Rescale to int8 and to int16 wherever it does not clamp; 1/2 is the rounding itself."""
    for dtype, top in (("int8", INT8_MAX), ("int16", INT16_MAX)):
        worst, where = 0.0, 0.0
        for reach in (2**8, 2**16, 2**20, 2**24, 2**26):
            # from one step per unit of x to an output that is always 0
            ratio = np.concatenate([2.0 ** rng.uniform(-30, 0, 500), 2.0 ** -np.arange(31)])
            for c in ratio:
                lift = rescale.lift_bits(np.array([c]), np.array([reach]), dtype)
                x = rng.integers(-reach, reach + 1, (400, 1))
                x[:5, 0] = (reach, -reach, 0, round(0.5 / c) % reach, -round(0.5 / c) % reach)
                x = np.clip(x, -int(top / c), int(top / c)).astype(np.int32)
                table = rescale.tables(np.array([c]), lift)
                out = rescale.reference(x, *table, lift=lift, lo=-top, hi=top, dtype=dtype)
                gap = float(np.abs(out - x * c).max())
                if gap > worst:
                    worst, where = gap, float(c)
        domain = f"|x| to 2^26, ratios 2^-30..1 (worst: {where:.2g})"
        measure, bound = f"max, LSB of {dtype}", 0.5 + rescale.WELL[dtype]
        yield OpError("rescale", "native", domain, measure, worst, bound)


def requantize16_row() -> OpError:
    """Every int16 through ratios of every power of two, wherever it does not clamp."""
    x = np.arange(-INT16_MAX, INT16_MAX + 1)[:, None]
    worst, where = 0.0, 0.0
    fractions = np.array([0.5, 0.50001, 0.6, 0.7071, 0.83, 0.99, 0.99999, 1 - 2.0**-17])
    for ratio in (fractions * 2.0**-power for power in range(1, 14)):
        out = requantize16.reference(x.astype(np.int16), *requantize16.tables(ratio))
        gap = np.where(np.abs(x * ratio) <= INT8_MAX, np.abs(out - x * ratio), 0).max(0)
        if gap.max() > worst:
            worst, where = float(gap.max()), float(ratio[gap.argmax()])
    domain = f"all {len(x)} x, ratios below 2^-1 (worst: {where:.3g})"
    return OpError("requantize16", "native", domain, "max, LSB", worst, 0.755)


def rotary_row(rng: np.random.Generator) -> OpError:
    """Pairs of any length that int8 holds, turned by any angle, against float on real inputs."""
    size, pairs = 4000, 16
    angles = rng.uniform(0, 2 * np.pi, (size, pairs))
    angles[:8] = np.arange(8)[:, None] * (np.pi / 4)
    cos, sin = np.cos(angles), np.sin(angles)
    length, start = INT8_MAX * np.sqrt(rng.random((size, 1, 2))), rng.uniform(0, 7, (2, size, 1, 2))
    real = length[..., None] * np.stack([np.cos(start[0]), np.sin(start[0])], -1)
    real = np.broadcast_to(real[..., None], (size, 1, 2, 2, pairs))
    first, second = real[:, 0, :, 0], real[:, 0, :, 1]
    c, s = cos[:, None], sin[:, None]
    true = np.stack([first * c - second * s, second * c + first * s], 2)
    x = np.zeros((size, 3, 2, pairs))
    x[:, :2] = np.rint(real[:, 0] * 2**rotary.FRACTION_BITS)
    out = rotary.reference(
        x.astype(np.int16).reshape(size, -1),
        np.arange(size),
        *rotary.tables(cos, sin),
        heads=1,
        head_dim=2 * pairs,
    ).reshape(size, 3, 2, pairs)[:, :2]
    gap = float(np.abs(out - true).max())
    domain = f"{4 * size * pairs} channels of pairs of any length and angle"
    return OpError("rotary", "native", domain, "max, LSB of int8", gap, 0.53)


def gate_row(rng: np.random.Generator) -> OpError:
    """The product of an activation and a factor, any ratio of scales, within the result."""
    worst, where = 0.0, 0.0
    point = i_gelu.point(9, "silu")
    for ratio in 2.0 ** -rng.uniform(1, 23, 300):
        x = rng.integers(-INT16_MAX, INT16_MAX + 1, (2000, 2))
        # the factor that brings the product into the range of the result
        x[:, 0] = np.clip(x[:, 0], -INT8_MAX / ratio / INT16_MAX, INT8_MAX / ratio / INT16_MAX)
        x = x.astype(np.int16)
        tables = gate.tables(np.array([ratio]))
        out = gate.reference(x, point, *tables, form="silu", active=1)
        true = i_gelu.reference(x[:, 1:], point, form="silu") * x[:, :1].astype(float) * ratio
        gap = float(np.abs(out - true).max())
        if gap > worst:
            worst, where = gap, float(ratio)
    domain = f"products of int16, ratios 2^-23..2^-1 (worst: {where:.2g})"
    # besides the rounding: half a unit of mult, 2^-33, times a product below 2^30
    return OpError("gate", "native", domain, "max, LSB of int8", worst, 0.5 + 2**30 / 2**33)
