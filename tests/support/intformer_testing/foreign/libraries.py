"""The libraries people use, answering for a directory: what a case is compared with.

Each takes the directory and what the case returned, and answers for rows of texts, (text,) or
(text, pair):

    tokens(rows)   (ids, types) of every row, without padding
    outputs(rows)  what the network gives for every row, float32
    answers(rows)  what the library answers; see each class
"""

from pathlib import Path

import numpy as np
import torch
import transformers

from intformer_testing import random_hf
from intformer_testing.foreign.directories import LIKE_ROBERTA

AUTO = {
    "features": transformers.AutoModel,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "masked-lm": transformers.AutoModelForMaskedLM,
}


def without_padding(batch) -> list[tuple[list[int], list[int]]]:
    """(ids, types) of every row of a padded batch; types are 0 where the tokenizer gives none."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    ids, types, mask = (torch.as_tensor(batch[name]) if name in batch else None for name in names)
    types = torch.zeros_like(ids) if types is None else types
    kept = [row.bool() for row in mask]
    return [(i[k].tolist(), t[k].tolist()) for i, t, k in zip(ids, types, kept, strict=True)]


def columns(rows: list[tuple[str, ...]]) -> list[list[str]]:
    """[texts] or [texts, pairs]."""
    return [list(column) for column in zip(*rows, strict=True)]


class Transformers:
    """AutoTokenizer and AutoModelFor... of the directory.

    Answers of a sequence classifier are the scores of the text-classification pipeline by label,
    those of a token classifier the labels of its pipeline. Others have no answers here.
    """

    def __init__(self, folder: Path, made=None, *, head: str | None = None):
        """Load a directory. `made` stands for a model that transformers cannot load itself."""
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        config = transformers.AutoConfig.from_pretrained(folder) if made is None else made.config
        self.mask = self.tokenizer.mask_token
        self.head = head or head_of(config.architectures[0])
        self.model = made if made is not None else AUTO[self.head].from_pretrained(folder)
        self.model.float().eval()
        spare = 2 if config.model_type in LIKE_ROBERTA else 0
        self.length = min(
            self.tokenizer.model_max_length, config.max_position_embeddings - spare, 4096
        )

    def tokens(self, rows):
        options = {"truncation": True, "max_length": self.length, "padding": True}
        found = without_padding(self.tokenizer(*columns(rows), **options))
        if getattr(self.model.config, "type_vocab_size", None) == 0:  # the model reads no types
            return [(ids, [0] * len(ids)) for ids, _ in found]
        return found

    def outputs(self, rows):
        batch = self.tokenizer(
            *columns(rows),
            truncation=True,
            max_length=self.length,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            found = self.model(**batch)
        if self.head == "sequence-classification":
            return list(found.logits.numpy())
        kept = batch["attention_mask"].bool()
        if self.head == "masked-lm":
            kept &= batch["input_ids"] == self.tokenizer.mask_token_id
        if self.head == "question-answering":
            values = torch.stack([found.start_logits, found.end_logits], -1)
        else:
            values = found[0]
        return [one[mask].numpy() for one, mask in zip(values, kept, strict=True)]

    def answers(self, rows):
        options = {"truncation": True, "max_length": self.length}
        if self.head == "sequence-classification":
            pipe = transformers.pipeline(
                "text-classification", model=self.model, tokenizer=self.tokenizer
            )
            inputs = [dict(zip(("text", "text_pair"), row, strict=False)) for row in rows]
            found = [pipe(one, top_k=None, **options) for one in inputs]
            return [{one["label"]: one["score"] for one in row} for row in found]
        return None


class SentenceTransformers:
    """SentenceTransformer.encode; its answers are the embeddings."""

    def __init__(self, folder: Path, made=None):
        """Load a directory."""
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu")
        self.prompt = default_prompt(self.model)
        self.head = "sentence-embedding"

    def tokens(self, rows):
        return without_padding(self.model.preprocess(columns(rows)[0], prompt=self.prompt))

    def outputs(self, rows):
        return None

    def answers(self, rows):
        return list(self.model.encode(columns(rows)[0]))


class SparseEncoders:
    """SparseEncoder.encode; its answers are the weights of all words, not as a sparse tensor."""

    def __init__(self, folder: Path, made=None):
        """Load a directory."""
        from sentence_transformers import SparseEncoder

        self.model = SparseEncoder(str(folder), device="cpu")
        self.prompt = default_prompt(self.model)
        self.head = "sparse-embedding"

    def tokens(self, rows):
        return without_padding(self.model.preprocess(columns(rows)[0], prompt=self.prompt))

    def outputs(self, rows):
        return None

    def answers(self, rows):
        found = self.model.encode(columns(rows)[0], convert_to_sparse_tensor=False)
        return [row.numpy() for row in found]


class CrossEncoders:
    """CrossEncoder.predict, of pairs; its answers are the scores of every label, in order."""

    pairs_only = True

    def __init__(self, folder: Path, made=None):
        """Load a directory."""
        from sentence_transformers import CrossEncoder

        self.model = CrossEncoder(str(folder), device="cpu")
        self.prompt = default_prompt(self.model)
        self.head = "sequence-classification"

    def tokens(self, rows):
        return without_padding(self.model.preprocess(rows, prompt=self.prompt))

    def outputs(self, rows):
        scores = self.model.predict(rows, activation_fn=torch.nn.Identity())
        return list(np.reshape(scores, (len(rows), -1)))

    def answers(self, rows):
        return list(np.reshape(self.model.predict(rows), (len(rows), -1)))


def default_prompt(model) -> str | None:
    """What a model of sentence-transformers puts before each text."""
    name = model.default_prompt_name
    return model.prompts[name] if name else None


def head_of(architecture: str) -> str:
    """The head whose class this is."""
    return next(h for h, ending in random_hf.HEADS.items() if architecture.endswith(ending))
