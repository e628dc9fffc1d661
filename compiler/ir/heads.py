"""Heads: what a model answers, one object each.

The metadata of a library names its head. What differs between heads is a field here, so that the
rest of the compiler asks for the field and never for the name; only the functions that build a head
(frontend/families/post_ln.py) and that turn its numbers into answers (runtime/edge/answers.py) are
tables by head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from intformer.errors import IntformerError

NEVER, TYPES, ALWAYS = "never", "types", "always"  # whether a head takes pairs of texts


@dataclass(frozen=True)
class Head:
    """One head.

    name     in metadata and on the command line
    ending   of the names of transformers' classes that have it; "" where none has
    rows     what one row of the output stands for: "token", "sequence" or "position" (asked for)
    outputs  what the channels are: "vectors", "classes" (named labels), "span" (logits of the start
             and the end of an answer) or "words" (the vocabulary)
    pairs    whether two texts may be given at once: NEVER, TYPES (where the model tells their
             tokens apart) or ALWAYS
    prompts  whether a prompt may be put before a text
    peft     the task_type of a LoRA adapter; "" where it has none
    base     of a head without an ending: that of the class whose outputs it is made of
    """

    name: str
    ending: str
    rows: str
    outputs: str
    pairs: str = TYPES
    prompts: bool = False
    peft: str = ""
    base: str = "Model"

    @property
    def class_ending(self) -> str:
        """That of the class of transformers that computes the outputs, or what they are made of."""
        return self.ending or self.base

    @property
    def auto_class(self) -> str:
        """The class of that kind for every family."""
        return "AutoModel" + self.class_ending.removeprefix("Model")

    @property
    def embeds(self) -> bool:
        """One vector per text, which are compared by their cosine."""
        return self.outputs == "vectors" and self.rows == "sequence"

    @property
    def classifies_texts(self) -> bool:
        """One row of labelled logits, or one score, per text."""
        return self.outputs == "classes" and self.rows == "sequence"

    @property
    def answers_questions(self) -> bool:
        """Each text is a question and needs a document; a long one is cut into windows."""
        return self.outputs == "span"

    @property
    def fills_masks(self) -> bool:
        """Rows are computed for the positions that are asked for: those of mask tokens."""
        return self.rows == "position"

    @property
    def quotes(self) -> bool:
        """Answers point into the text, which must be at hand."""
        return self.rows == "token" and self.outputs != "vectors"


FEATURES = Head("features", "Model", "token", "vectors")
SENTENCE_EMBEDDING = Head(
    "sentence-embedding", "", "sequence", "vectors", pairs=NEVER, prompts=True
)
SEQUENCE_CLASSIFICATION = Head(
    "sequence-classification",
    "ForSequenceClassification",
    "sequence",
    "classes",
    pairs=ALWAYS,
    prompts=True,
    peft="SEQ_CLS",
)
TOKEN_CLASSIFICATION = Head(
    "token-classification", "ForTokenClassification", "token", "classes", peft="TOKEN_CLS"
)
QUESTION_ANSWERING = Head(
    "question-answering",
    "ForQuestionAnswering",
    "token",
    "span",
    pairs=ALWAYS,
    peft="QUESTION_ANS",
)
MASKED_LM = Head("masked-lm", "ForMaskedLM", "position", "words")
SPARSE_EMBEDDING = Head(
    "sparse-embedding", "", "sequence", "words", pairs=NEVER, prompts=True, base="ForMaskedLM"
)

HEADS = {  # name -> head
    head.name: head
    for head in (
        FEATURES,
        SENTENCE_EMBEDDING,
        SEQUENCE_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        MASKED_LM,
        SPARSE_EMBEDDING,
    )
}


def named(name: object) -> Head:
    """Return the head of a name; raise IntformerError for one that is not here."""
    head = HEADS.get(name) if isinstance(name, str) else None
    if head is None:
        raise IntformerError(
            f"head {name!r} is not supported", hint="heads: " + ", ".join(sorted(HEADS))
        )
    return head


def head_of(metadata: Mapping) -> Head:
    """Return the head of a library or a model by its metadata."""
    return named(metadata["head"])
