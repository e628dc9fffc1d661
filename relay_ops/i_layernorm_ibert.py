"""I-BERT's IntLayerNorm followed by QuantAct(8), to the last rounding.

Source: transformers, models/ibert/quant_modules.py IntLayerNorm (shared ANCHORS section 1.3).
Ours: the square root is exact; a constant row (std = 0, NaN there) gives y = 0, hence beta.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import (
    INT32,
    check_fits,
    clamp,
    isqrt,
    make_dyadic,
    round_divide,
    round_shift,
)
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "i_layernorm_ibert"
INPUT_LIMIT = 2**22  # |x|; 22-bit residual sums
MAX_CHANNELS = 4096
Y_LIMIT = 2**31  # see bounds


def reference(
    x: np.ndarray,
    bias: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    prescale: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> np.ndarray:
    """x int32 [r, C] -> int8 [r, C]; sums, y * F and y * mult are int64.

    bias      int32 [C] floor((beta / gamma) / (sqrt(n) / 2^30)); mult, shift int32 [C] signed
    prescale  int32 [1], the checkpoint's `shift` buffer
    """
    x = x.astype(np.int64)
    n, p = x.shape[1], int(prescale[0])
    _check_domain(n, int(np.abs(x).max(initial=0)), p)
    _check_affine(bias, mult, shift)
    y = x - round_divide(x.sum(1, keepdims=True), n)
    scaled = y >> p
    std = isqrt((scaled * scaled).sum(1, keepdims=True)) << p
    factor = np.where(std == 0, 0, 2**31 // np.maximum(std, 1))
    z = ((y * factor) >> 1) + bias
    return clamp(round_shift(z * mult, shift), lo, hi, "int8")


def _check_domain(n: int, peak: int, prescale: int) -> None:
    if n > MAX_CHANNELS:
        raise RangeError(f"{n} channels, above {MAX_CHANNELS}", where=NAME)
    if peak > INPUT_LIMIT:
        raise RangeError(f"|x| can be {peak}, above {INPUT_LIMIT}", where=NAME)
    if not 0 <= prescale <= 16:
        raise RangeError(f"saved shift {prescale} is outside 0..16", where=NAME)


def _check_affine(bias: np.ndarray, mult: np.ndarray, shift: np.ndarray) -> None:
    """|(y + bias) mult| + rounding < 2^63 for every |y| <= 2^31."""
    reach = (Y_LIMIT + np.abs(exact(bias))) * np.abs(exact(mult)) + (1 << (exact(shift) - 1))
    if reach.max() >= 2**63:
        channel = int(np.argmax(reach >= 2**63))
        raise RangeError(f"(y + bias) * mult can wrap int64 (channel {channel})", where=NAME)


def bounds(
    x: Interval,
    bias: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    prescale: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> Interval:
    """Interval of the output.

    Lemma: |y * F| / 2 <= 2^31. Proof: if std > 0 then std >= 2^p, and every |y >> p| <= isqrt(sum)
    = std / 2^p, so |y| < std + 2^p <= 2 std (y >> p is floor: y < ((y >> p) + 1) 2^p, and
    y >= (y >> p) 2^p); F <= 2^31 / std. Squares: |y| <= 2^23, n <= 2^12, so their sum is at most
    2^58 and y * F at most 2^32.
    """
    _check_domain(len(bias), int(x.magnitude.max()), int(prescale[0]))
    _check_affine(bias, mult, shift)
    y = Interval(exact(bias) - Y_LIMIT, exact(bias) + Y_LIMIT)
    return y.dyadic(mult, shift).clamp(lo, hi)


def tables(gamma: np.ndarray, beta: np.ndarray, scale_out: float) -> dict[str, np.ndarray]:
    """bias, mult, shift of `reference` from float32 gamma, beta [C] and the QuantAct's scale.

    Float32 steps as the module takes them. gamma = 0 and |beta / gamma| > sqrt(n) have no integers
    there (infinity, and a bias beyond int32): RangeError names the channels.
    """
    gamma, beta = np.asarray(gamma, np.float32), np.asarray(beta, np.float32)
    unit = np.float32(np.sqrt(np.float32(len(gamma)))) / np.float32(2**30)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = np.floor(beta / gamma / unit).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(bias) <= INT32[1]))
    if wrong.size:
        c = int(wrong[0])
        raise RangeError(
            f"gamma {gamma[c]:.3g}, beta {beta[c]:.3g} (channel {c}, {wrong.size} in all): "
            "|beta / gamma| exceeds 2 sqrt(n)",
            where=NAME,
            hint="the ibert recipe has no integers for it; use the native recipe",
        )
    ratio = (unit * gamma).astype(np.float64) / np.float64(np.float32(scale_out))
    mult, shift = make_dyadic(ratio)
    bias = check_fits(bias, "int32", NAME, "bias").astype(np.int32)
    return {"bias": bias, "mult": mult, "shift": shift}


OP = IntOp(NAME, reference, bounds, source="transformers ibert IntLayerNorm + QuantAct(8)")
