"""Jina embeddings v3 (arXiv 2409.10173): XLM-R with rotary positions; its merged form."""

from intformer.errors import CheckpointError
from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln, roberta, turned
from intformer.frontend.families.turned import Biases, Spelling
from intformer.frontend.family import Family

THETA = 20000.0
HUB = Spelling(
    norm="emb_ln",
    layers="encoder.layers",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    norm1="norm1",
    ffn1=("mlp.fc1",),
    ffn2="mlp.fc2",
    norm2="norm2",
)
MODULES = turned.of_modules("mlp.fc1", "mlp.fc2")
ADAPTED = (".parametrizations.", ".lora_A", ".lora_B")  # in keys of weights with adapters beside


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    refuse_adapters(g)
    keys = turned.spelled(g, HUB, MODULES)
    x = turned.embed(g, keys.norm)
    biases = Biases(attention=True, ffn1=True, ffn2=True)
    return turned.layers(g, x, keys, biases, turned.table(g, THETA), active=None)


def refuse_adapters(g: Builder) -> None:
    """Raise where each task has an adapter of its own, which nothing has merged."""
    for key in g.checkpoint.keys():
        if any(part in key for part in ADAPTED):
            raise CheckpointError(
                f"weight {key!r} is of an adapter for one task, and none is merged",
                where=str(g.checkpoint.path),
                hint="merge the adapter of one task into the weights and save them",
            )


JINA_EMBEDDINGS_V3 = Family(
    encoder,
    post_ln.heads_of(roberta.classify, roberta.words),
    prefix="roberta.",
    eps=1e-5,
    pad=1,
    dropout=roberta.ROBERTA.dropout,
)
