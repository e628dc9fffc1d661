"""MPNet (arXiv 2004.09297): RoBERTa without token types, with a bias of attention by distance.

All layers share the bias: a T5 table of 32 buckets (arXiv 1910.10683), half for each direction.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln, roberta
from intformer.frontend.families.post_ln import LayerKeys
from intformer.frontend.family import DropoutKeys, Family

LAYER = LayerKeys(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    out="attention.attn.o",
    norm1="attention.LayerNorm",
    ffn1="intermediate.dense",
    ffn2="output.dense",
    norm2="output.LayerNorm",
)
PAD = 1  # positions count from here, whatever config.json says
BUCKETS = 32
FARTHEST = 128  # tokens; from there on the last bucket


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    for key, wanted in (("pad_token_id", PAD), ("relative_attention_num_buckets", BUCKETS)):
        given = g.checkpoint.setting(key, int, wanted)
        if given != wanted:
            raise CheckpointError(
                f"config key {key!r} = {given} is not supported",
                where=str(g.checkpoint.path / "config.json"),
                hint=f"transformers computes with {wanted} whatever it says",
            )
    x = g.norm("embed.norm", g.embed(types=False), "embeddings.LayerNorm")
    bias = g.relative_bias("encoder.relative_attention_bias", BUCKETS, bucket)
    for at in g.layers(g.numbered("encoder.layer")):
        x = post_ln.layer(at, x, LAYER, bias)
    return x


def bucket(distance: np.ndarray) -> np.ndarray:
    """Return the bucket of a distance, key less query: exact up to 7, then by its logarithm.

    MPNetEncoder.relative_position_bucket, in float32 as there.
    """
    half = BUCKETS // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), exact)
    ratio = np.log(np.float32(far) / np.float32(exact)) / np.float32(np.log(FARTHEST / exact))
    large = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    near = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(large, half - 1))
    return near + half * (distance > 0)


MPNET = Family(
    encoder,
    post_ln.heads_of(roberta.classify, roberta.words),
    prefix="mpnet.",
    positions="padding",
    pad=PAD,
    dropout=DropoutKeys(stages=True),
)
