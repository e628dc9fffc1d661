"""ELECTRA (arXiv 2003.10555): BERT with embeddings that may be narrower than the layers."""

from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.post_ln import BERT_LAYER
from intformer.frontend.family import DropoutKeys, Family


def encoder(g: Builder) -> str:
    """Embeddings, their projection where there is one, and layers."""
    x = g.norm("embed.norm", g.embed(), "embeddings.LayerNorm")
    if g.has("embeddings_project"):
        x = g.linear("embed.projection", x, "embeddings_project", outputs=g.hidden)
    for at in g.layers(g.numbered("encoder.layer")):
        x = post_ln.layer(at, x, BERT_LAYER)
    return x


def classify(g: Builder, x: str) -> str:
    """A dense layer of the first token, then the classifier."""
    return g.dense(g.dense(g.first(x), "classifier.dense", "gelu"), "classifier.out_proj")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    at = "generator_predictions"
    x = g.dense(x, f"{at}.dense", "gelu", f"{at}.LayerNorm")
    return g.decoder(x, "generator_lm_head")


ELECTRA = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="electra.",
    dropout=DropoutKeys(stages=True),
)
