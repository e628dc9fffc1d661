"""JinaBERT v2 (arXiv 2310.19923): BERT with ALiBi and a gated MLP.

transformers has no class for it: its files say model type "bert" (frontend/hub_config.py). ALiBi is
a bias of the scores that falls with the distance, both ways alike: -slope |i - j|.
"""

import math

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.builder import Builder
from intformer.frontend.families import bert, post_ln, turned
from intformer.frontend.families.post_ln import BERT_LAYER
from intformer.frontend.families.turned import Biases, Spelling
from intformer.frontend.family import Family
from intformer.ir.graph import Bias

KEYS = Spelling(
    norm="embeddings.LayerNorm",
    layers="encoder.layer",
    qkv=(BERT_LAYER.query, BERT_LAYER.key, BERT_LAYER.value),
    out=BERT_LAYER.out,
    norm1=BERT_LAYER.norm1,
    ffn1=("mlp.gated_layers",),
    ffn2="mlp.wo",
    norm2="mlp.layernorm",
)
NORMED = ("layer_norm_q", "layer_norm_k")  # in keys of the variant that normalises q and k


def encoder(g: Builder) -> str:
    """Embeddings and layers; the first half of a gated layer is activated."""
    for key in g.checkpoint.keys():
        if any(part in key for part in NORMED):
            raise CheckpointError(
                f"weight {key!r} normalises queries or keys, which is not supported",
                where=str(g.checkpoint.path),
                hint="JinaBERT without such layers compiles",
            )
    x = turned.embed(g, KEYS.norm)
    biases = Biases(attention=True, ffn1=False, ffn2=True)
    return turned.layers(g, x, KEYS, biases, None, active=0, bias=alibi(g.heads, g.limit))


def alibi(heads: int, longest: int) -> Bias:
    """Return the bias of every distance, key less query."""
    distance = np.abs(np.arange(1 - longest, longest))
    return Bias((-np.array(slopes(heads))[:, None] * distance).astype(np.float32))


def slopes(heads: int) -> list[float]:
    """Return the slope of each head (arXiv 2108.12409): 2^(-8 / n), its square, ... for n heads.

    Where n is no power of two, those of the power below, then every second one of the power above.
    """
    below = 2 ** math.floor(math.log2(heads))
    series = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    between = [2.0 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    return [*series, *between[: heads - below]]


JINA_BERT = Family(
    encoder,
    post_ln.heads_of(bert.classify, bert.words),
    prefix="bert.",
    neutral={
        "position_embedding_type": ("alibi",),
        "feed_forward_type": ("geglu",),
        "hidden_act": ("gelu",),
    },
)
