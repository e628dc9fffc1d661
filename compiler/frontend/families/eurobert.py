"""EuroBERT (arXiv 2503.05500): a pre-LN stream with RMSNorm, gated SiLU and rotary positions."""

from intformer.errors import CheckpointError
from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln, turned
from intformer.frontend.family import DropoutKeys, Family
from intformer.frontend.folder import shown
from intformer.ir.heads import QUESTION_ANSWERING

THETA = 10000.0
POOLINGS = ("bos", "mean", "late")
HUB_POOLING = "clf_pooling"  # what the hub's code calls classifier_pooling


def encoder(g: Builder) -> str:
    """Embeddings, layers and the last norm."""
    x = g.embed(positions=False)
    table = turned.table(g, THETA)
    for at in g.layers(g.numbered("layers")):
        bias = at.checkpoint.setting("attention_bias", bool, False)
        y = at.norm("norm1", x, "input_layernorm", bias=False, rms=True)
        y = at.attention("context", at.rotary("turned", qkv(at, y, bias), table))
        y = at.linear("out", y, "self_attn.o_proj", outputs=at.hidden, bias=bias)
        x = at.add("sum1", y, x)
        y = at.norm("norm2", x, "post_attention_layernorm", bias=False, rms=True)
        x = at.add("sum2", feed_forward(at, y), x)
    return g.norm("final.norm", x, "norm", bias=False, rms=True)


def qkv(at: Builder, x: str, bias: bool) -> str:
    """Queries, keys and values; heads of a group share keys and values."""
    groups = at.checkpoint.setting("num_key_value_heads", int, at.heads, least=1)
    if at.heads % groups:
        raise CheckpointError(
            f"config key 'num_key_value_heads' = {groups} does not divide the {at.heads} heads",
            where=str(at.checkpoint.path / "config.json"),
        )
    keys = tuple(f"self_attn.{name}_proj" for name in "qkv")
    return at.grouped("qkv", x, keys, groups, bias)


def feed_forward(at: Builder, x: str) -> str:
    """The gated MLP, whose first half is activated."""
    bias = mlp_bias(at)
    keys = "mlp.gate_proj", "mlp.up_proj"
    y = at.gate("gate", at.linear("ffn1", x, *keys, bias=bias), 0)
    return at.linear("ffn2", y, "mlp.down_proj", outputs=at.hidden, bias=bias)


def mlp_bias(g: Builder) -> bool:
    """Say whether the MLP's layers, and the decoder, have a bias."""
    return g.checkpoint.setting("mlp_bias", bool, False)


def classify(g: Builder, x: str) -> str:
    """Logits of texts.

    "late" pooling is the mean of every token's logits: those of the mean, as they are linear in it.
    """
    pooling = g.checkpoint.setting("classifier_pooling", str, "late")
    other = g.checkpoint.setting(HUB_POOLING, str, pooling)
    if other != pooling:
        raise CheckpointError(
            f"config key {HUB_POOLING!r} = {shown(other)}, where 'classifier_pooling' is {pooling}",
            where=str(g.checkpoint.path / "config.json"),
            hint="the hub's code reads the one, transformers the other: make them equal",
        )
    if pooling not in POOLINGS:
        raise CheckpointError(
            f"config key 'classifier_pooling' = {shown(pooling)} is not supported",
            where=str(g.checkpoint.path / "config.json"),
            hint="supported: " + ", ".join(POOLINGS),
        )
    if pooling != "late":
        x = g.first(x) if pooling == "bos" else g.mean(x)
    x = g.dense(x, "dense", "gelu")
    return g.dense(g.mean(x) if pooling == "late" else x, "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    return g.decoder(x, "lm_head", mlp_bias(g))


HEADS = post_ln.heads_of(classify, words)
del HEADS[QUESTION_ANSWERING]  # transformers has no class of it

EUROBERT = Family(
    encoder,
    HEADS,
    prefix="model.",
    eps=1e-5,
    act="silu",
    pad=128001,
    config_keys={
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "activation": "hidden_act",
        "eps": "rms_norm_eps",
    },
    dropout=DropoutKeys(attention="attention_dropout", default=0.0),
    word="embed_tokens",
    tied=False,
)
