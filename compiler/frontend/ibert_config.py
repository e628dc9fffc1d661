"""What config.json of an I-BERT checkpoint may not say, checked before any weight is read."""

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.quantize.ibert.diagnostics import TRAIN


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
