"""RoBERTa (arXiv 1907.11692) and what has its shape: XLM-R, CamemBERT."""

from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.bert import encoder
from intformer.frontend.family import DropoutKeys, Family


def classify(g: Builder, x: str) -> str:
    """A dense layer of the first token, then the classifier."""
    return g.dense(g.dense(g.first(x), "classifier.dense", "tanh"), "classifier.out_proj")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    x = g.dense(x, "lm_head.dense", "gelu", "lm_head.layer_norm")
    return g.decoder(x, "lm_head.decoder")


ROBERTA = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="roberta.",
    positions="padding",
    pad=1,
    dropout=DropoutKeys(stages=True),
)
