"""Random-weight checkpoints of well-known shapes: latency does not depend on the weights."""

from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError

BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
SHAPES = {  # name -> what config.json says, from the public configs
    "bert-base": {**BERT, **BASE},
    "bert-base-8192": {  # BERT-base with the positions of long encoders
        **BERT,
        "max_position_embeddings": 8192,
        **BASE,
    },
    "bert-large": {
        **BERT,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        **BASE,
    },
    "xlm-roberta-base": {
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        **BASE,
    },
    "mpnet-base": {
        "model_type": "mpnet",
        "vocab_size": 30527,
        "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        **BASE,
        "relative_attention_num_buckets": 32,
    },
    "minilm-l6": {
        **BERT,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "modernbert-base": {
        "model_type": "modernbert",
        "vocab_size": 50368,
        "max_position_embeddings": 8192,
        "hidden_size": 768,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "intermediate_size": 1152,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "position_biased_input": False,
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 256,
        **BASE,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
    },
}


def random_model(
    shape: str,
    directory: str | Path,
    *,
    labels: int = 2,
    seed: int = 0,
    layers: int | None = None,
) -> Path:
    """Save a sequence classifier of this shape with random weights; returns the directory.

    layers  in place of the shape's: two have every kernel that all of them have
    It has no tokenizer: calibrate it with `random_sequences`.
    """
    if shape not in SHAPES:
        raise CheckpointError(
            f"shape {shape!r} is not known", hint="one of " + ", ".join(sorted(SHAPES))
        )
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    about = dict(SHAPES[shape])
    if layers is not None:
        about["n_layers" if "n_layers" in about else "num_hidden_layers"] = layers
    config = AutoConfig.for_model(**about, num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of a single small file
    model.save_pretrained(directory)
    if shown:
        logging.enable_progress_bar()
    return Path(directory)


def random_sequences(
    shape: str, *, count: int = 16, length: int = 128, seed: int = 0
) -> list[np.ndarray]:
    """Return `count` int32 [length] arrays of token ids that are no special tokens."""
    rng = np.random.default_rng(seed)
    vocabulary = SHAPES[shape]["vocab_size"]
    return [rng.integers(1000, vocabulary, length, dtype=np.int32) for _ in range(count)]
