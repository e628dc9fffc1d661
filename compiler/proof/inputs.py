"""Batches to run a library on: random ids, or texts as its tokenizer packs them."""

from collections.abc import Sequence

import numpy as np

from intformer.ir import heads
from intformer.runtime import Library
from intformer.runtime.edge import Edge

LENGTHS = (1, 2, 3, 5)  # every random batch starts with these, and ends with the longest
REAL_BATCH = 16  # texts in one batch of real inputs
RANDOM_LENGTH = 64  # other random sequences are up to this long


def given(library: Library, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the part of a batch that this library takes."""
    taken = {"input_ids", "cu_seqlens", *library.plan["inputs"]}
    return {name: array for name, array in batch.items() if name in taken}


def random_batches(meta: dict, cases: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Return random inputs: ids from the whole vocabulary, lengths from 1 to the longest mixed."""
    rng = np.random.default_rng(seed)
    longest = meta["max_length"]
    batches = []
    for case in range(cases):
        lengths = [n for n in LENGTHS if n <= longest]
        lengths += rng.integers(1, min(RANDOM_LENGTH, longest) + 1, 3).tolist()
        if case == 0:
            lengths.append(longest)
        rng.shuffle(lengths)
        batches.append(random_batch(meta, lengths, rng))
    return batches


def random_batch(meta: dict, lengths: list[int], rng: np.random.Generator) -> dict:
    """Return one packed batch of random ids and types, with every input a model may take."""
    tokens = sum(lengths)
    first = meta["pad_token_id"] + 1 if meta["position_rule"] == "padding" else 0
    batch = {
        "input_ids": rng.integers(0, meta["vocab_size"], tokens),
        "token_type_ids": rng.integers(0, meta["type_vocab_size"], tokens),
        "position_ids": np.concatenate([np.arange(n) + first for n in lengths]),
        "cu_seqlens": np.cumsum([0, *lengths]),
        "positions": np.sort(rng.choice(tokens, max(1, tokens // 8), replace=False)),
    }
    return {name: array.astype(np.int32) for name, array in batch.items()}


def real_batches(
    library: Library, texts: Sequence[tuple[str, ...]], size: int = REAL_BATCH
) -> list[dict]:
    """Return texts tokenized and packed, `size` at a time, as the head needs them."""
    edge = Edge.of(library)
    if edge.head.pairs == heads.NEVER:
        texts = [(part,) for text in texts for part in text]
    elif edge.head.answers_questions:
        texts = [text if len(text) == 2 else (text[0], text[0]) for text in texts]
    encode = edge.encode
    if edge.head.fills_masks:
        encode, texts = edge.encode_masked, [text[:1] for text in texts]
    batches = []
    for first in range(0, len(texts), size):
        columns = zip(*texts[first : first + size], strict=True)
        batches.append(encode(*(list(column) for column in columns)).inputs())
    return batches
