"""ModernBERT (arXiv 2412.13663): a pre-LN stream, gated GELU, rotary positions, windowed layers."""

from intformer.errors import CheckpointError
from intformer.frontend import rope
from intformer.frontend.builder import Builder, activation_of
from intformer.frontend.families import post_ln, turned
from intformer.frontend.family import DropoutKeys, Family
from intformer.frontend.folder import shown
from intformer.ir import heads
from intformer.ir.graph import Rotary

FULL, LOCAL = "full_attention", "sliding_attention"  # values of the config key layer_types
THETAS = {  # of each: the old config key, and what it is where config.json does not say
    FULL: ("global_rope_theta", 160000.0),
    LOCAL: ("local_rope_theta", 10000.0),
}


def encoder(g: Builder) -> str:
    """Embeddings, layers and the last norm."""
    x = g.norm("embed.norm", g.embed(positions=False), "embeddings.norm", norm_bias(g))
    kinds = layer_kinds(g)
    tables = {kind: table(g, kind) for kind in dict.fromkeys(kinds)}
    window = window_of(g)
    for i, at in enumerate(g.layers(g.numbered("layers"))):
        normed = at.norm("norm1", x, "attn_norm", norm_bias(g)) if i else x
        y = attention(at, normed, tables[kinds[i]], window if kinds[i] == LOCAL else None)
        x = at.add("sum1", y, x)
        y = feed_forward(at, at.norm("norm2", x, "mlp_norm", norm_bias(g)))
        x = at.add("sum2", y, x)
    return g.norm("final.norm", x, "final_norm", norm_bias(g))


def window_of(g: Builder) -> int:
    """Return the tokens that a query sees on either side through a window.

    transformers sets it by "sliding_window" too, over "local_attention".
    """
    window = g.checkpoint.setting("local_attention", int, 128, least=0) // 2
    if (given := g.checkpoint.setting("sliding_window", int, window)) != window:
        raise CheckpointError(
            f"config key 'sliding_window' = {given}, where 'local_attention' has {window} tokens "
            "on either side",
            where=str(g.checkpoint.path / "config.json"),
            hint="remove one of them",
        )
    return window


def attention(at: Builder, x: str, turns: Rotary, window: int | None) -> str:
    """Attention through a window, or over all tokens."""
    bias = flag(at, "attention_bias")
    qkv = at.linear("qkv", x, "attn.Wqkv", outputs=at.hidden, bias=bias, parts=3)
    y = at.attention("context", at.rotary("turned", qkv, turns), window=window)
    return at.linear("out", y, "attn.Wo", outputs=at.hidden, bias=bias)


def feed_forward(at: Builder, x: str) -> str:
    """The gated MLP, whose first half is activated."""
    bias = flag(at, "mlp_bias")
    y = at.gate("gate", at.linear("ffn1", x, "mlp.Wi", bias=bias, parts=2), 0)
    return at.linear("ffn2", y, "mlp.Wo", outputs=at.hidden, bias=bias)


def flag(g: Builder, key: str, default: bool = False) -> bool:
    """Return a switch of config.json."""
    return g.checkpoint.setting(key, bool, default)


def norm_bias(g: Builder) -> bool:
    """Say whether norms have a bias."""
    return flag(g, "norm_bias")


def layer_kinds(g: Builder) -> list[str]:
    """Return FULL or LOCAL for each layer."""
    count = len(g.numbered("layers"))
    kinds = g.checkpoint.setting("layer_types", list, [])
    if not kinds:
        every = g.checkpoint.setting("global_attn_every_n_layers", int, 3, least=1)
        return [LOCAL if i % every else FULL for i in range(count)]
    if len(kinds) != count or any(kind not in THETAS for kind in kinds):
        raise CheckpointError(
            f"config key 'layer_types' = {shown(kinds)} is not supported",
            where=str(g.checkpoint.path / "config.json"),
            hint=f"expected {count} of " + ", ".join(THETAS),
        )
    return kinds


def table(g: Builder, kind: str) -> Rotary:
    """Return the rotary positions of layers of one kind."""
    where, (key, default) = str(g.checkpoint.path / "config.json"), THETAS[kind]
    given = g.checkpoint.setting(rope.PARAMETERS, dict, {})
    for name in given.keys() - THETAS.keys():
        raise CheckpointError(
            f"config key '{rope.PARAMETERS}.{name}' is not supported",
            where=where,
            hint="expected one entry for each of " + ", ".join(THETAS),
        )
    about = given.get(kind) or {}
    if not isinstance(about, dict):
        raise CheckpointError(
            f"config key '{rope.PARAMETERS}.{kind}' = {shown(about)} is not an object", where=where
        )
    scaling = g.checkpoint.setting(rope.SCALING, dict, {})
    if "type" in scaling and "rope_type" not in scaling:  # transformers leaves it unread
        raise CheckpointError(
            f"config key '{rope.SCALING}.type' = {shown(scaling['type'])} is not supported",
            where=where,
            hint="say 'rope_type'",
        )
    about = about | scaling
    theta = g.checkpoint.setting(key, float, default)
    path = f"{rope.PARAMETERS}.{kind}"
    return rope.of(about, theta, turned.head_dim(g), g.limit, path, where)


def transformed(g: Builder, x: str) -> str:
    """The dense layer and norm that all heads begin with."""
    function = activation_of(g.checkpoint, "classifier_activation", "gelu")
    return g.dense(x, "head.dense", function, "head.norm", flag(g, "classifier_bias"), norm_bias(g))


def classify(g: Builder, x: str) -> str:
    """Logits of texts, from their first token or the mean of all."""
    pooling = g.checkpoint.setting("classifier_pooling", str, "cls")
    if pooling not in ("cls", "mean"):
        raise CheckpointError(
            f"config key 'classifier_pooling' = {shown(pooling)} is not supported",
            where=str(g.checkpoint.path / "config.json"),
            hint="supported: cls, mean",
        )
    return g.dense(transformed(g, g.first(x) if pooling == "cls" else g.mean(x)), "classifier")


def of_tokens(g: Builder, x: str) -> str:
    """Logits of every token."""
    return g.dense(transformed(g, x), "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    return g.decoder(transformed(g, x), "decoder", flag(g, "decoder_bias", default=True))


HEADS = post_ln.heads_of(classify, words)
HEADS |= dict.fromkeys((heads.TOKEN_CLASSIFICATION, heads.QUESTION_ANSWERING), of_tokens)

MODERNBERT = Family(
    encoder,
    HEADS,
    prefix="model.",
    eps=1e-5,
    pad=50283,
    config_keys={
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "activation": "hidden_activation",
        "eps": "norm_eps",
    },
    dropout=DropoutKeys(
        default=0.0, others=("embedding_dropout", "mlp_dropout", "attention_dropout")
    ),
    word="embeddings.tok_embeddings",
)
