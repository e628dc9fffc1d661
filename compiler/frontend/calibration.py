"""Calibration text: read, tokenized and packed. There is no padding, only real tokens are seen."""

import random
from pathlib import Path

import numpy as np

from intformer.edge import Edge, hf_positions
from intformer.errors import CheckpointError

SENTENCES = 512  # taken evenly from the calibration text
HELD_OUT = 8  # every 8th sentence chooses the method and sets no range
BATCH_TOKENS = 1024  # one batch of statistics
MASKED_SHARE = 0.15  # masked-LM calibration masks what pre-training masks
TEXT_COLUMNS = ("sentence", "sentence1", "sentence2")
HINT = "pass --calibrate FILE with one sentence per line, or a TSV with a sentence column"

Sequence = tuple[np.ndarray, np.ndarray]  # token ids, token types; int32 [length]


def read_texts(file: str | Path) -> list[tuple[str, ...]]:
    """Return the texts of a calibration file: (sentence,) or (sentence1, sentence2) each.

    A header line with tabs and one of TEXT_COLUMNS makes it a TSV; else it is a sentence per line.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"cannot read calibration text: {error}", where=str(path), hint=HINT
        ) from error
    header = lines[0].split("\t")
    columns = [header.index(name) for name in TEXT_COLUMNS if name in header]
    if len(header) > 1 and columns:
        rows = [line.split("\t") for line in lines[1:] if line.strip()]
        short = next((i for i, row in enumerate(rows) if len(row) <= max(columns)), None)
        if short is not None:
            raise CheckpointError("a TSV row is too short", where=f"{path}, row {short + 2}")
        texts = [tuple(row[c].strip() for c in columns) for row in rows]
    else:
        texts = [(line.strip(),) for line in lines]
    texts = [text for text in texts if all(text)]
    if not texts:
        raise CheckpointError("calibration text is empty", where=str(path), hint=HINT)
    return texts


def encode(texts: list[tuple[str, ...]], files: dict[str, bytes], meta: dict) -> list[Sequence]:
    """Return the texts as sequences; pairs stay pairs unless single sentences are embedded.

    files  of Checkpoint.files or IntModel.files
    """
    if "tokenizer.json" not in files:
        raise CheckpointError(
            "the model directory has no tokenizer, so text cannot calibrate it",
            hint="save a fast tokenizer beside the weights, or pass tokenizer=FILE",
        )
    if meta["head"] == "sentence-embedding":
        texts = [(part,) for text in texts for part in text]
    return Edge(meta, files).sequences(texts)


def check_ids(sequences: list[Sequence], meta: dict) -> list[Sequence]:
    """Return the sequences with types within range; raises for ids the model does not have."""
    for ids, _ in sequences:
        if not len(ids):
            raise CheckpointError("a calibration sequence is empty", hint=HINT)
        if len(ids) > meta["max_length"]:
            raise CheckpointError(
                f"a calibration sequence has {len(ids)} tokens, the limit is {meta['max_length']}"
            )
        if ids.min() < 0 or ids.max() >= meta["vocab_size"]:
            raise CheckpointError(
                f"token id {int(ids.max())} is out of range, the model has {meta['vocab_size']}",
                hint="the tokenizer belongs to another model",
            )
    top = meta["type_vocab_size"] - 1
    return [(ids, np.minimum(types, top)) for ids, types in sequences]


def choose(sequences: list[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
    """Return (for ranges, held out): SENTENCES taken evenly, every HELD_OUT-th held out.

    With fewer than HELD_OUT sequences the held-out part is the ranges' own.
    """
    if not sequences:
        raise CheckpointError("calibration text is empty", hint=HINT)
    picked = np.unique(np.linspace(0, len(sequences) - 1, SENTENCES).astype(int))
    sequences = [sequences[i] for i in picked]
    held = sequences[HELD_OUT - 1 :: HELD_OUT]
    rest = [s for i, s in enumerate(sequences) if (i + 1) % HELD_OUT]
    return rest, held or rest


def pack(sequences: list[Sequence], meta: dict, mask_id: int | None = None) -> dict:
    """Return program inputs (see IntModel.run) for one batch of sequences.

    mask_id  for masked LM: MASKED_SHARE of the inner tokens become this id and are asked for;
             None asks for as many positions without masking
    """
    ids = np.concatenate([s[0] for s in sequences])
    lengths = [len(s[0]) for s in sequences]
    rule, pad = meta["position_rule"], meta["pad_token_id"]
    positions = [hf_positions(s[None], rule, pad)[0] for s, _ in sequences]
    inputs = {
        "input_ids": ids,
        "token_type_ids": np.concatenate([s[1] for s in sequences]),
        "position_ids": np.concatenate(positions),
        "cu_seqlens": np.cumsum([0, *lengths]).astype(np.int32),
    }
    if meta["head"] == "masked-lm":
        starts = inputs["cu_seqlens"][:-1].tolist()
        inner = [  # between the special tokens at both ends
            at
            for start, length in zip(starts, lengths, strict=True)
            for at in range(start + 1, start + length - 1)
        ] or starts
        count = max(1, round(MASKED_SHARE * len(inner)))
        chosen = sorted(random.Random(len(ids)).sample(inner, count))
        inputs["positions"] = np.array(chosen, np.int32)
        if mask_id is not None:
            inputs["input_ids"] = ids.copy()
            inputs["input_ids"][chosen] = mask_id
    return inputs


def batches(
    sequences: list[Sequence], meta: dict, mask_id: int | None = None, limit: int = BATCH_TOKENS
) -> list[dict]:
    """Return packed batches of at most `limit` tokens or one sequence, in the order of the text."""
    groups, tokens = [[]], 0
    for sequence in sequences:
        if groups[-1] and tokens + len(sequence[0]) > limit:
            groups.append([])
            tokens = 0
        groups[-1].append(sequence)
        tokens += len(sequence[0])
    return [pack(group, meta, mask_id) for group in groups]
