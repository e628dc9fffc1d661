"""Nomic BERT (arXiv 2402.01613): BERT with rotary positions, gated SiLU and no biases."""

from intformer.frontend.builder import Builder
from intformer.frontend.families import bert, post_ln, turned
from intformer.frontend.families.turned import Biases, Spelling
from intformer.frontend.family import DropoutKeys, Family
from intformer.ir.heads import QUESTION_ANSWERING

THETA = 1000.0
HUB = Spelling(
    norm="emb_ln",
    layers="encoder.layers",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    norm1="norm1",
    ffn1=("mlp.fc11", "mlp.fc12"),  # the second one is activated
    ffn2="mlp.fc2",
    norm2="norm2",
)
MODULES = turned.of_modules("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    keys = turned.spelled(g, HUB, MODULES)
    x = turned.embed(g, keys.norm)
    biases = Biases(attention=False, ffn1=False, ffn2=False)
    return turned.layers(g, x, keys, biases, turned.table(g, THETA))


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    at = "cls.predictions.transform"
    x = g.dense(x, f"{at}.dense", g.activation, f"{at}.layer_norm")
    return g.decoder(x, "cls.predictions.decoder")


HEADS = post_ln.heads_of(bert.classify, words)
del HEADS[QUESTION_ANSWERING]  # transformers has no class of it

NOMIC_BERT = Family(
    encoder,
    HEADS,
    prefix="nomic_bert.",
    hub_prefix="bert.",
    act="silu",
    dropout=DropoutKeys(default=0.0),
    neutral={  # keys of the hub's files
        "rotary_emb_fraction": (1, None),
        "rotary_emb_interleaved": (False, None),
        "rotary_emb_scale_base": (None,),
        "rotary_scaling_factor": (None,),
        "prenorm": (False, None),
        "parallel_block": (False, None),
        "use_rms_norm": (False, None),
        "qkv_proj_bias": (False, None),
        "mlp_fc1_bias": (False, None),
        "mlp_fc2_bias": (False, None),
        "causal": (False, None),
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "num_experts": (None, 0),
        "moe_every_n_layers": (None, 0),
    },
)
