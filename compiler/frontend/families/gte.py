"""GTE (arXiv 2407.19669): BERT with rotary positions and gated GELU; the hub's `new`."""

from intformer.errors import CheckpointError
from intformer.frontend import rope
from intformer.frontend.builder import Builder
from intformer.frontend.families import bert, post_ln, turned
from intformer.frontend.families.turned import Biases, Spelling
from intformer.frontend.family import DropoutKeys, Family
from intformer.ir.heads import QUESTION_ANSWERING

THETA = 160000.0
HUB = Spelling(
    norm="embeddings.LayerNorm",
    layers="encoder.layer",
    qkv=("attention.qkv_proj",),
    out="attention.o_proj",
    norm1="attn_ln",
    ffn1=("mlp.up_gate_proj",),  # the second half is activated
    ffn2="mlp.down_proj",
    norm2="mlp_ln",
)
MODULES = turned.of_modules("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")


def encoder(g: Builder) -> str:
    """Embeddings, which may have no types, and layers."""
    keys = turned.spelled(g, HUB, MODULES)
    x = turned.embed(g, keys.norm)
    biases = Biases(attention=True, ffn1=False, ffn2=True)
    return turned.layers(g, x, keys, biases, turned.table(g, THETA, rope.HUB_KINDS))


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    if g.activation != "gelu":  # transformers takes GELU, the hub's code the config's
        raise CheckpointError(
            f"config key 'hidden_act' = {g.activation!r} is not supported by head masked-lm",
            where=str(g.checkpoint.path / "config.json"),
            hint="supported: gelu",
        )
    hub = "lm_head.norm.weight" in g.checkpoint
    norm = "lm_head.norm" if hub else "lm_head.layer_norm"
    return g.decoder(g.dense(x, "lm_head.dense", "gelu", norm), "lm_head.decoder")


HEADS = post_ln.heads_of(bert.classify, words)
del HEADS[QUESTION_ANSWERING]  # transformers has no class of it

GTE = Family(
    encoder,
    HEADS,
    prefix="gte.",
    hub_prefix="new.",
    pad=1,
    dropout=DropoutKeys(attention_default=0.0, gate=True),
    neutral={
        "position_embedding_type": ("rope", None),
        "layer_norm_type": ("layer_norm", None),
        "pack_qkv": (True, None),
        "logn_attention_scale": (False, None),
        "logn_attention_clip1": (False, None),
    },
)
