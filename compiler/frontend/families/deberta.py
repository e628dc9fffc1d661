"""DeBERTa v2 and v3 (arXiv 2006.03654, 2111.09543): attention to contents and to distances apart.

A score is the sum of up to three products: query and key, query and the distance's key, key and the
distance's query. All layers share the embeddings of distances.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.post_ln import LayerKeys
from intformer.frontend.family import DropoutKeys, Family
from intformer.frontend.folder import shown
from intformer.ir import heads
from intformer.ir.graph import ACTIVATIONS, Relative
from intformer.relay_ops.attention_relative import MAX_KEYS

LAYER = LayerKeys(
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    out="attention.output.dense",
    norm1="attention.output.LayerNorm",
    ffn1="intermediate.dense",
    ffn2="output.dense",
    norm2="output.LayerNorm",
)
TERMS = ("c2p", "p2c")  # query and the distance's key; key and the distance's query
REFUSED = {  # config keys that change the arithmetic, and the values under which they do not
    "conv_kernel_size": (0, None),  # v2-xlarge and v2-xxlarge: a convolution behind layer 0
    "attention_head_size": (),  # heads of another size than hidden_size / num_attention_heads
    "pooler_hidden_size": (),
}


def encoder(g: Builder) -> str:
    """Embeddings, their projection where there is one, and layers."""
    c = g.checkpoint
    refuse(g)
    typed = c.takes_types = c.setting("type_vocab_size", int, 0) > 0
    x = g.embed(flag(g, "position_biased_input", True), typed)
    narrow = c.setting("embedding_size", int, g.hidden)
    if g.channels(x) != narrow:
        raise bad(g, "embedding_size", f"but the word embeddings have {g.channels(x)} channels")
    if narrow != g.hidden:
        key = "embeddings.embed_proj"
        x = g.linear("embed.projection", x, key, outputs=g.hidden, bias=False)
    x = g.norm("embed.norm", x, "embeddings.LayerNorm")
    distances = Distances(g) if flag(g, "relative_attention", False) else None
    for at in g.layers(g.numbered("encoder.layer")):
        x = post_ln.layer(at, x, LAYER, distances and distances.of(at))
    return x


class Distances:
    """What config.json says of relative positions, and the embeddings that all layers share."""

    def __init__(self, g: Builder):
        """Read them."""
        c = g.checkpoint
        self.terms = terms(g)
        self.shared = flag(g, "share_att_key", False)
        farthest = c.setting("max_relative_positions", int, -1)
        if farthest < 1:
            farthest = c.setting("max_position_embeddings", int, 512, least=1)
        buckets = c.setting("position_buckets", int, -1)
        span = buckets if buckets > 0 else farthest
        norms = c.setting("norm_rel_ebd", str, "none").lower().split("|")
        self.norm = "encoder.LayerNorm" if "layer_norm" in map(str.strip, norms) else None
        self.rows = g.table("encoder.rel_embeddings", g.hidden)
        if len(self.rows) != 2 * span:
            raise bad(
                g,
                "position_buckets" if buckets > 0 else "max_relative_positions",
                f"but there are embeddings of {len(self.rows)} distances, not of {2 * span}",
            )
        if g.limit > MAX_KEYS:
            raise bad(g, "max_position_embeddings", f"is more than {MAX_KEYS} tokens")
        ahead = -g.distances()  # query less key
        if buckets > 0:
            if buckets == 1 or farthest - 1 <= buckets // 2 < g.limit - 1:
                raise bad(g, "position_buckets", f"leaves no logarithm up to {farthest} tokens")
            ahead = log_bucket(ahead, buckets, farthest)
        self.bucket = np.clip(ahead + span, 0, 2 * span - 1)

    def of(self, at: Builder) -> Relative | None:
        """Return what a layer adds to its scores."""
        own = ("pos_key_proj", "pos_query_proj")
        names = ("key_proj", "query_proj") if self.shared else own
        keys = [
            f"attention.self.{name}" if term in self.terms else None
            for term, name in zip(TERMS, names, strict=True)
        ]
        return at.relative(self.rows, self.norm, *keys, self.bucket) if any(keys) else None


def log_bucket(ahead: np.ndarray, buckets: int, farthest: int) -> np.ndarray:
    """Return the bucket of a distance, query less key: exact up to half, then by its logarithm.

    transformers' make_log_bucket_position, in float32 of torch as there: at a rounding the bucket
    decides which row is read.
    """
    import torch

    middle = buckets // 2
    distance = torch.from_numpy(np.abs(ahead)).clamp(min=middle)
    whole = torch.log(torch.tensor((farthest - 1) / middle))
    far = torch.ceil(torch.log(distance / middle) / whole * (middle - 1)) + middle
    return np.where(np.abs(ahead) <= middle, ahead, far.to(torch.int64).numpy() * np.sign(ahead))


def terms(g: Builder) -> list[str]:
    """Return which of TERMS pos_att_type names: text with bars between, or a list."""
    given = g.checkpoint.config.get("pos_att_type")
    found = [] if given is None else given
    if isinstance(given, str):
        found = [one.strip() for one in given.lower().split("|")]
    if not (isinstance(found, list) and set(found) <= {*TERMS, ""}):
        raise bad(g, "pos_att_type", "is not supported: a list of 'c2p' and 'p2c', or 'p2c|c2p'")
    return found


def flag(g: Builder, key: str, default: bool) -> bool:
    """Return a config value that is true or false."""
    return g.checkpoint.setting(key, bool, default)


def refuse(g: Builder) -> None:
    """Raise for a config key that asks for arithmetic which is not here."""
    config, hidden = g.checkpoint.config, g.hidden
    neutral = REFUSED | {
        "attention_head_size": (hidden // g.heads,),
        "pooler_hidden_size": (hidden, None),
    }
    for key, values in neutral.items():
        if key in config and config[key] not in values:
            raise bad(g, key, "is not supported")
    if terms(g) and not flag(g, "relative_attention", False):
        raise bad(g, "pos_att_type", "without 'relative_attention' is not supported")


def bad(g: Builder, key: str, why: str) -> CheckpointError:
    """Return the error about a config key."""
    return CheckpointError(
        f"config key {key!r} = {shown(g.checkpoint.config.get(key))} {why}",
        where=str(g.checkpoint.path / "config.json"),
    )


def classify(g: Builder, x: str) -> str:
    """The pooler of the first token with an activation of its own, then the classifier."""
    key = "pooler_hidden_act"
    function = ACTIVATIONS.get(g.checkpoint.setting(key, str, "gelu"))
    if function is None:
        raise bad(g, key, "is not supported: one of " + ", ".join(sorted(ACTIVATIONS)))
    return g.dense(g.dense(g.first(x), "pooler.dense", function), "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary; what config.json does not call legacy is v3's."""
    if flag(g, "legacy", True):
        at = "cls.predictions.transform"
        x = g.dense(x, f"{at}.dense", g.activation, f"{at}.LayerNorm")
        return g.decoder(x, "cls.predictions.decoder")
    at = "lm_predictions.lm_head"
    x = g.dense(x, f"{at}.dense", g.activation, f"{at}.LayerNorm")
    return g.decoder(x, f"{at}.decoder")


DEBERTA = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="deberta.",
    eps=1e-7,
    fold=False,
    dropout=DropoutKeys(
        pooler="pooler_dropout",
        heads={
            heads.SEQUENCE_CLASSIFICATION: ("cls_dropout", None),
            heads.TOKEN_CLASSIFICATION: ("hidden_dropout_prob", 0.1),
        },
    ),
)
