"""What can be wrong with the numbers of an I-BERT checkpoint.

transformers runs all of these, and gives constant or NaN logits.
"""

import numpy as np

from intformer.errors import CheckpointError

UNCALIBRATED = 1.1e-5  # QuantAct's own test; a new one holds -1e-5, 1e-5
TRAIN = "fine-tune with quant_mode: true, in train() mode, and save again"


def check_range(where: str, low: float, high: float) -> float:
    """Return max(|low|, |high|) of a QuantAct, unless it never saw data."""
    if low > high:
        raise CheckpointError(f"range {low:.3g}..{high:.3g} is empty", where=where, hint=TRAIN)
    if low > -UNCALIBRATED and high < UNCALIBRATED:
        raise CheckpointError(
            f"range {low:.3g}..{high:.3g} was never calibrated", where=where, hint=TRAIN
        )
    return float(max(abs(low), abs(high)))


def check_layernorm(where: str, gamma: np.ndarray, beta: np.ndarray) -> None:
    """Refuse gamma = 0 (NaN in transformers) and a beta / gamma that 32 bits do not hold."""
    limit = float(np.sqrt(len(gamma)))
    hint = "I-BERT adds beta / gamma as an integer; keep gamma away from 0 when fine-tuning"
    zero = np.flatnonzero(gamma == 0)
    if zero.size:
        raise CheckpointError(
            f"gamma = 0 in {zero.size} channels, first {zero[0]}",
            where=f"{where}.weight",
            hint=hint,
        )
    ratio = np.abs(beta.astype(np.float64) / gamma)
    if ratio.max() > limit:
        raise CheckpointError(
            f"|beta / gamma| = {ratio.max():.3g} in channel {ratio.argmax()} "
            f"({int((ratio > limit).sum())} in all) exceeds sqrt(n) = {limit:.3g}",
            where=where,
            hint=hint,
        )


def check_bias(where: str, bias: np.ndarray, scale: np.ndarray, k: int) -> None:
    """Refuse a scale so small that bias / scale plus k products exceeds int32."""
    reach = np.abs(bias) + k * 2**14
    if reach.max(initial=0) >= 2**31:
        row = int(reach.argmax())
        raise CheckpointError(
            f"scale {scale[row]:.3g} of row {row} is too small: bias / scale exceeds 32 bits",
            where=where,
            hint="the weight row is zero or almost; fine-tune it, or set its bias to 0",
        )
