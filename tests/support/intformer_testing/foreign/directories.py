"""Tiny random models with tokenizers of their own, in memory and as transformers writes them."""

import collections
import functools
import json
import re
from pathlib import Path

import tokenizers
import torch
import transformers

from intformer_testing import random_hf
from intformer_testing.small_tokenizer import SENTENCES

LENGTH = 64  # tokens a model can take
SHAPE = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 96}
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MPNET_SPECIAL = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ALBERT_SPECIAL = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
UNIGRAM = {  # family -> special tokens of its Unigram tokenizer
    "xlm-roberta": ROBERTA_SPECIAL,
    "camembert": ROBERTA_SPECIAL,
    "albert": ALBERT_SPECIAL,
    "deberta-v2": BERT_SPECIAL,
}
TOKENIZERS = {  # family -> whose tokenizer transformers gives it
    "nomic_bert": "bert",
    "modernbert": "bert",
    "eurobert": "bert",
    "gte": "xlm-roberta",
    "jina_embeddings_v3": "xlm-roberta",
}
LIKE_ROBERTA = ("roberta", "xlm-roberta", "camembert", "mpnet")


@functools.cache
def word_pieces(cased: bool = False) -> tuple[str, ...]:
    """The vocabulary of a WordPiece tokenizer: characters and the frequent words."""
    text = " ".join(SENTENCES) if cased else " ".join(SENTENCES).lower()
    characters = sorted(set(re.sub(r"\s", "", text)))
    words = collections.Counter(re.findall(r"[A-Za-z]{2,}", text))
    pieces = [*BERT_SPECIAL, *characters, *(f"##{c}" for c in characters)]
    return (*pieces, *(word for word, _ in words.most_common(300)))


@functools.cache
def byte_pairs() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """(vocabulary, merges) of a byte-level BPE tokenizer."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        SENTENCES, vocab_size=400, special_tokens=list(ROBERTA_SPECIAL), show_progress=False
    )
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], tuple(map(tuple, model["merges"]))


@functools.cache
def pieces(special: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """The scored pieces of a Unigram tokenizer."""
    trained = tokenizers.SentencePieceUnigramTokenizer()
    trained.train_from_iterator(
        (line.lower() for line in SENTENCES), vocab_size=300, show_progress=False
    )
    found = json.loads(trained.to_str())["model"]["vocab"]
    known = [(piece, score) for piece, score in found if piece not in special]
    return (*((token, 0.0) for token in special), *known)


def tokenizer(family: str = "bert", **about):
    """A tokenizer of transformers for a family; `about` are arguments of its class."""
    about = {"model_max_length": LENGTH, **about}
    if family == "eurobert":
        about["model_input_names"] = ["input_ids", "attention_mask"]
    family = TOKENIZERS.get(family, family)
    name = random_hf.CLASSES[family] + "Tokenizer"
    if family == "roberta":
        vocabulary, merges = byte_pairs()
        about |= {"vocab": dict(vocabulary), "merges": list(merges)}
    elif family in UNIGRAM:
        about["vocab"] = list(pieces(UNIGRAM[family]))
    else:
        cased = about.get("do_lower_case") is False
        special = MPNET_SPECIAL if family == "mpnet" else BERT_SPECIAL
        names = [*special, *word_pieces(cased)[len(BERT_SPECIAL) :]]
        about["vocab"] = {piece: i for i, piece in enumerate(names)}
    return getattr(transformers, name)(**about)


def model(family: str = "bert", head: str = "features", words: int | None = None, **config):
    """A random model of transformers for the tokenizer of its family.

    words   rows of the word embeddings; default: as many as the tokenizer has ids
    config  overrides of SHAPE and of random_hf.config
    """
    if head == "question-answering":
        config = {"labels": 2, **config}
    shape = {**SHAPE, "vocab_size": words or len(tokenizer(family)), **config}
    shape.setdefault("max_position_embeddings", LENGTH + 2 * (family in LIKE_ROBERTA))
    torch.manual_seed(0)
    kind = getattr(transformers, random_hf.CLASSES[family] + random_hf.HEADS[head])
    made = kind(random_hf.config(family, **shape)).eval()
    random_hf.randomise(made)
    return made


def save(folder: Path, family: str = "bert", head: str = "features", **config):
    """Write a random model and its tokenizer as transformers does; return the model."""
    made = model(family, head, **config)
    made.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return made


def read(file: Path) -> dict:
    """Read a JSON file."""
    return json.loads(file.read_text())


def write(file: Path, value: object) -> None:
    """Write a JSON file, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def change(file: Path, remove: tuple[str, ...] = (), **keys) -> None:
    """Set and remove keys of a JSON object."""
    kept = {key: value for key, value in read(file).items() if key not in remove}
    write(file, {**kept, **keys})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Take the safetensors out of a directory."""
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    found = load_file(file)
    file.unlink()
    return found
