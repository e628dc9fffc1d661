"""What BERT and its descendants share: a layer that normalises after each sum, and small heads."""

from dataclasses import dataclass

from intformer.frontend.builder import Builder
from intformer.frontend.family import HeadBuilder
from intformer.ir import heads
from intformer.ir.graph import Bias, Relative
from intformer.ir.heads import Head


@dataclass(frozen=True)
class LayerKeys:
    """Keys of one layer's weights, below the layer."""

    query: str
    key: str
    value: str
    out: str
    norm1: str
    ffn1: str
    ffn2: str
    norm2: str


BERT_LAYER = LayerKeys(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    norm1="attention.output.LayerNorm",
    ffn1="intermediate.dense",
    ffn2="output.dense",
    norm2="output.LayerNorm",
)


def layer(at: Builder, x: str, keys: LayerKeys, bias: Bias | Relative | None = None) -> str:
    """Attention and feed-forward, each added to its input and then normalised."""
    qkv = at.linear("qkv", x, keys.query, keys.key, keys.value, outputs=at.hidden)
    y = at.linear("out", at.attention("context", qkv, bias), keys.out, outputs=at.hidden)
    x = at.norm("norm1", at.add("sum1", y, x), keys.norm1)
    y = at.act("act", at.linear("ffn1", x, keys.ffn1))
    y = at.linear("ffn2", y, keys.ffn2, outputs=at.hidden)
    return at.norm("norm2", at.add("sum2", y, x), keys.norm2)


def features(g: Builder, x: str) -> str:
    """The last hidden state itself."""
    return x


def classify_tokens(g: Builder, x: str) -> str:
    """A label for every token."""
    return g.dense(x, "classifier")


def answer(g: Builder, x: str) -> str:
    """Logits of the start and the end of an answer at every token."""
    return g.dense(x, "qa_outputs")


def heads_of(classify: HeadBuilder, words: HeadBuilder) -> dict[Head, HeadBuilder]:
    """Return the heads of a family: two have layers of its own, the others are one linear layer.

    classify  logits of texts
    words     logits of every word of the vocabulary, of each row it gets

    A sentence embedding needs none: its pooling is the directory's.
    """
    return {
        heads.FEATURES: features,
        heads.SEQUENCE_CLASSIFICATION: classify,
        heads.TOKEN_CLASSIFICATION: classify_tokens,
        heads.QUESTION_ANSWERING: answer,
        heads.MASKED_LM: lambda g, x: words(g, g.asked(x)),
        heads.SPARSE_EMBEDDING: lambda g, x: g.max(words(g, x)),
    }
