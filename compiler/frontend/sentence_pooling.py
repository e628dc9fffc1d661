"""Modules of sentence-transformers without weights: Pooling, SpladePooling and Normalize."""

from pathlib import PurePosixPath

from intformer.errors import CheckpointError
from intformer.frontend.json_object import JsonObject
from intformer.frontend.sentence_modules import EMBEDDING
from intformer.frontend.sentence_settings import CONFIG

POOLINGS = {  # pooling_mode -> a key of head_stages.POOLED
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "max": "max",
    "cls": "first",
    "lasttoken": "last",
}
OLD_POOLINGS = {  # boolean keys of older versions -> pooling_mode, in the order of the channels
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def config_of(path: str) -> str:
    """Return the name of the file with the settings of a module."""
    return str(PurePosixPath(path, "config.json"))


def pooling(checkpoint, path: str) -> str:
    """Return values of POOLINGS with "+" between, as the Pooling module's configuration says."""
    config = JsonObject.read(checkpoint, config_of(path))
    if not config.values:
        raise CheckpointError("no settings of Pooling", where=config.where)
    known = ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt")
    config.refuse_others((*known, *OLD_POOLINGS))
    old = [mode for key, mode in OLD_POOLINGS.items() if config.get(key, bool, False)]
    modes = config.values.get("pooling_mode")
    modes = (old or ["mean"]) if modes is None else modes
    modes = [modes] if isinstance(modes, str) else modes
    if (
        not isinstance(modes, list)
        or not modes
        or not all(isinstance(mode, str) and mode in POOLINGS for mode in modes)
    ):
        raise config.refusal("pooling_mode", "modes: " + ", ".join(POOLINGS))
    return "+".join(POOLINGS[mode] for mode in modes)


def pools_prompt(checkpoint, path: str, prompts: dict[str, str]) -> bool:
    """Say whether a prompt's tokens are pooled; refuse prompts that would have to be left out."""
    config = JsonObject.read(checkpoint, config_of(path))
    if "include_prompt" not in config.values or config.get("include_prompt", bool, False):
        return True  # null is false
    if any(prompts.values()):
        raise config.refusal(
            "include_prompt", f"a library pools over prompts, too; take those of {CONFIG} out"
        )
    return False


def check_splade(checkpoint, path: str) -> None:
    """Refuse a SpladePooling that is not log(1 + relu(x)) of the largest logits."""
    config = JsonObject.read(checkpoint, config_of(path))
    known = ("pooling_strategy", "activation_function")
    config.refuse_others((*known, "embedding_dimension", "word_embedding_dimension", "chunk_size"))
    for key, only in zip(known, ("max", "relu"), strict=True):
        if config.values.get(key, only) != only:
            raise config.refusal(key, f"{only!r} compiles")


def check_normalize(checkpoint, path: str) -> None:
    """Refuse a Normalize of anything but the embedding."""
    config = JsonObject.read(checkpoint, config_of(path))
    for key in ("module_input_name", "module_output_name"):
        if config.values.get(key, EMBEDDING) != EMBEDDING and not (
            key == "module_output_name" and config.values[key] is None
        ):
            raise config.refusal(key, f"Normalize is applied to {EMBEDDING!r} alone")
