"""What can be wrong with an I-BERT checkpoint, said before anything is computed from it.

transformers runs all of these, and gives constant or NaN logits, or float arithmetic.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint

UNCALIBRATED = 1.1e-5  # QuantAct's own test; a new one holds -1e-5, 1e-5
TRAIN = "fine-tune with quant_mode: true, in train() mode, and save again"


def check_config(checkpoint: Checkpoint) -> None:
    """Refuse what config.json says the checkpoint is not fit for."""
    checkpoint.refuse_unsupported()
    config, where = checkpoint.config, str(checkpoint.path / "config.json")
    if config.get("quant_mode") is not True:
        raise CheckpointError(
            f"config key 'quant_mode' = {config.get('quant_mode')!r}: not a quantized checkpoint",
            where=where,
            hint=TRAIN,
        )
    forced = config.get("force_dequant", "none")
    if forced != "none":
        raise CheckpointError(
            f"config key 'force_dequant' = {forced!r} asks for float arithmetic",
            where=where,
            hint='no integer program does that; fine-tune with force_dequant: "none"',
        )
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(
            f"config key 'hidden_act' = {activation!r} is not supported",
            where=where,
            hint="I-BERT has gelu only",
        )
    checkpoint.heads_of("hidden_size", "num_attention_heads")


def check_range(checkpoint: Checkpoint, key: str, low: float, high: float) -> float:
    """Return max(|low|, |high|) of the QuantAct at `key`, unless it never saw data."""
    if low > high:
        raise CheckpointError(
            f"range {low:.3g}..{high:.3g} is empty", where=f"{checkpoint.path}, {key}", hint=TRAIN
        )
    if low > -UNCALIBRATED and high < UNCALIBRATED:
        raise CheckpointError(
            f"range {low:.3g}..{high:.3g} was never calibrated",
            where=f"{checkpoint.path}, {key}",
            hint=TRAIN,
        )
    return float(max(abs(low), abs(high)))


def check_layernorm(checkpoint: Checkpoint, key: str, gamma: np.ndarray, beta: np.ndarray) -> None:
    """Refuse gamma = 0 (NaN in transformers) and a beta / gamma that 32 bits do not hold."""
    limit = float(np.sqrt(len(gamma)))
    hint = "I-BERT adds beta / gamma as an integer; keep gamma away from 0 when fine-tuning"
    zero = np.flatnonzero(gamma == 0)
    if zero.size:
        raise CheckpointError(
            f"gamma = 0 in {zero.size} channels, first {zero[0]}",
            where=f"{checkpoint.path}, {key}.weight",
            hint=hint,
        )
    ratio = np.abs(beta.astype(np.float64) / gamma)
    if ratio.max() > limit:
        raise CheckpointError(
            f"|beta / gamma| = {ratio.max():.3g} in channel {ratio.argmax()} "
            f"({int((ratio > limit).sum())} in all) exceeds sqrt(n) = {limit:.3g}",
            where=f"{checkpoint.path}, {key}",
            hint=hint,
        )


def check_bias(
    checkpoint: Checkpoint, key: str, bias: np.ndarray, scale: np.ndarray, k: int
) -> None:
    """Refuse a scale so small that bias / scale plus k products leaves int32."""
    reach = np.abs(bias) + k * 2**14
    if reach.max(initial=0) >= 2**31:
        row = int(reach.argmax())
        raise CheckpointError(
            f"scale {scale[row]:.3g} of row {row} is too small: bias / scale exceeds 32 bits",
            where=f"{checkpoint.path}, {key}",
            hint="the weight row is zero or almost; fine-tune it, or set its bias to 0",
        )
