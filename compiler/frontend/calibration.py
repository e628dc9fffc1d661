"""Calibration text: read, tokenized and packed. There is no padding, only real tokens are seen."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import unusual
from intformer.frontend.unusual import Text
from intformer.ir import heads
from intformer.ir.float_run import arithmetic
from intformer.ir.heads import head_of
from intformer.runtime.edge import Edge, hf_positions

SENTENCES = 512  # taken evenly from the calibration text
HELD_OUT = 8  # every 8th sequence chooses the method and sets no range
FEW = 16  # with fewer distinct sequences a warning says so
BATCH_TOKENS = 1024  # one batch of statistics
JUDGED_SHORT = 64  # short texts that no range was set by
JUDGED_LONG = 1024  # tokens of very long ones
MASKED_SHARE = 0.15  # masked-LM calibration masks what pre-training masks
HINT = "pass --calibrate FILE: a text per line, two with a tab between them, or a TSV"

Sequence = tuple[np.ndarray, np.ndarray]  # token ids, token types; int32 [length]


def encode(texts: list[Text], files: dict[str, bytes], meta: dict) -> list[Sequence]:
    """Return texts and pairs of texts as sequences.

    files  of Checkpoint.files or IntModel.files
    """
    if "tokenizer.json" not in files:
        raise CheckpointError(
            "the model directory has no tokenizer, so text cannot calibrate it",
            hint="save a fast tokenizer beside the weights, or pass tokenizer=FILE",
        )
    found = Edge(meta, files).sequences(texts) if texts else []
    return [checked(*one, i, meta) for i, one in enumerate(found)]


def takes_pairs(meta: dict) -> bool:
    """Say whether a model may be given two texts at once."""
    pairs = head_of(meta).pairs
    return meta["type_vocab_size"] > 1 if pairs == heads.TYPES else pairs == heads.ALWAYS


def paired(texts: list[Text]) -> list[Text]:
    """Return single texts, with the pair of each two neighbours behind them."""
    found = []
    for i in range(0, len(texts), 2):
        two = texts[i : i + 2]
        found += two
        if len(two) == 2:
            found.append((*two[0], *two[1]))
    return found


def checked(ids, types, number: int, meta: dict) -> Sequence:
    """Return one sequence as int32 arrays; raise CheckpointError for what the model cannot take."""
    where = f"calibration sequence {number}"
    ids = integers(ids, "token ids", where)
    types = np.zeros_like(ids) if types is None else integers(types, "token types", where)
    if not len(ids):
        raise CheckpointError("a calibration sequence is empty", where=where, hint=HINT)
    if len(types) != len(ids):
        raise CheckpointError(f"{len(types)} token types for {len(ids)} token ids", where=where)
    if len(ids) > meta["max_length"]:
        raise CheckpointError(
            f"a calibration sequence has {len(ids)} tokens, the limit is {meta['max_length']}",
            where=where,
        )
    for name, array, size in (("id", ids, "vocab_size"), ("type", types, "type_vocab_size")):
        outside = array[(array < 0) | (array >= meta[size])]
        if outside.size:
            raise CheckpointError(
                f"token {name} {int(outside[0])} is out of range, the model has {meta[size]}",
                where=where,
                hint="the tokenizer belongs to another model" if name == "id" else "",
            )
    return ids, types


def integers(values, name: str, where: str) -> np.ndarray:
    """Return a row of integers as int32; raise CheckpointError for anything else."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise CheckpointError(f"{name} are not a row of integers", where=where) from error
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise CheckpointError(
            f"{name} are {array.dtype} {list(array.shape)}, not a row of integers",
            where=where,
            hint="pass texts, arrays of token ids, or tuples (ids, types) of such arrays",
        )
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise CheckpointError(f"{name} go beyond 32 bits", where=where)
    return array.astype(np.int32)


@dataclass(frozen=True)
class Split:
    """Calibration data, divided.

    fit       distinct sequences that set the ranges
    held      others, which set no range; none where there are fewer than HELD_OUT
    distinct  how many different texts or sequences were given
    pairs     how many of `fit` are two texts; None where ids were given
    unusual   short, repeated and very long ones, made from the text of `fit`: ranges hold them
    short     such ones made from the text of `held`: none of them sets a range
    longest   in the same way
    """

    fit: list[Sequence]
    held: list[Sequence]
    distinct: int
    pairs: int | None
    unusual: list[Sequence] = field(default_factory=list)
    short: list[Sequence] = field(default_factory=list)
    longest: list[Sequence] = field(default_factory=list)

    def report(self) -> dict:
        """Return what a library says about the text that set its ranges."""
        lengths = sorted(len(ids) for ids, _ in self.fit)
        return {
            "sequences": len(self.fit),
            "tokens": sum(lengths),
            "distinct": self.distinct,
            "pairs": self.pairs,
            "unusual": len(self.unusual),
            "lengths": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
            "token_types": sorted({int(t) for _, types in self.fit for t in np.unique(types)}),
            "computed_by": arithmetic(),
        }

    def warnings(self, meta: dict, files: dict[str, bytes]) -> list[str]:
        """Return what a user should know of text that shows too little."""
        found = []
        if self.distinct < FEW:
            found.append(
                f"only {self.distinct} distinct calibration texts: ranges are poor, and other "
                f"text may be clipped; give {FEW} or more, better some hundred lines of real text"
            )
        sent = Edge(meta, files).sends_types if "tokenizer.json" in files else True
        unseen = set(range(meta["type_vocab_size"])) - set(self.report()["token_types"])
        if unseen and sent and head_of(meta).pairs != heads.NEVER:
            found.append(
                f"no calibration sequence has token type {min(unseen)}: pairs of texts may be "
                "clipped; calibrate with pairs, two texts with a tab between them"
            )
        return found


def split_texts(texts: list[Text], files: dict[str, bytes], meta: dict) -> Split:
    """Divide texts, then tokenize them: no text that is held out is in any that sets a range.

    Pairs stay pairs, unless single sentences are embedded. Single texts for a model that may be
    given pairs are followed by pairs of neighbours: without these, calibration would never see the
    second token type, nor a separator in the middle.
    """
    texts = [text for text in texts if all(text)]
    if head_of(meta).pairs == heads.NEVER:
        texts = [(part,) for text in texts for part in text]
    distinct = list(dict.fromkeys(texts))
    pairing = takes_pairs(meta) and all(len(text) == 1 for text in distinct)
    fit, held = divided(distinct, groups(distinct), SENTENCES * 2 // 3 if pairing else SENTENCES)
    if pairing:
        fit, held = paired(fit), paired(held)
    fitting, holding = encode(fit, files, meta), encode(held, files, meta)
    seen = {(ids.tobytes(), types.tobytes()) for ids, types in fitting}
    holding = [one for one in holding if (one[0].tobytes(), one[1].tobytes()) not in seen]
    short, longest = shaped(held, files, meta, JUDGED_SHORT, JUDGED_LONG) if held else ([], [])
    few, long = shaped(fit, files, meta, unusual.SHORT_TEXTS, unusual.LONG_TOKENS)
    characters = encode([(text,) for text in unusual.characters()], files, meta)
    made = [one for one in (*characters, *few, *long) if len(one[0])]
    pairs = sum(len(text) == 2 for text in fit)
    return Split(fitting, holding, len(distinct), pairs, made, short, longest)


def shaped(
    texts: list[Text], files: dict[str, bytes], meta: dict, count: int, tokens: int
) -> tuple[list[Sequence], list[Sequence]]:
    """Return (short and repeated, very long) sequences made from texts; pairs as the texts are.

    count   of short ones
    tokens  of all long ones together, or one of them
    """
    lines = [part for text in texts for part in text]
    length = min(meta["max_length"], unusual.LONGEST)
    short = unusual.short(lines, count)
    long = unusual.long(lines, length, max(1, tokens // length))
    to_the_end = {**meta, "truncate_length": length}
    return (
        encode(as_given(short, texts), files, meta),
        encode(as_given(long, texts), files, to_the_end),
    )


def as_given(made: list[str], texts: list[Text]) -> list[Text]:
    """Return made texts as pairs where texts are pairs, alone where they are alone."""
    alone = [(text,) for text in made] if any(len(text) == 1 for text in texts) else []
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in made]
    return alone + (halves if any(len(text) == 2 for text in texts) else [])


def split_ids(sequences: list[Sequence]) -> Split:
    """Divide sequences of token ids."""
    different = {(ids.tobytes(), types.tobytes()): (ids, types) for ids, types in sequences}
    distinct = list(different.values())
    fit, held = divided(distinct, range(len(distinct)), SENTENCES)
    return Split(fit, held, len(distinct), None)


def divided(items: list, group_of: Iterable[int], count: int) -> tuple[list, list]:
    """Return (for ranges, held out): `count` items, evenly, and every HELD_OUT-th group of them."""
    if not items:
        raise CheckpointError("calibration text is empty", hint=HINT)
    of = list(group_of)
    picked = np.unique(np.linspace(0, len(items) - 1, count).astype(int)).tolist()
    order = list(dict.fromkeys(of[i] for i in picked))
    out = set(order[HELD_OUT - 1 :: HELD_OUT])
    return (
        [items[i] for i in picked if of[i] not in out],
        [items[i] for i in picked if of[i] in out],
    )


def groups(texts: list[Text]) -> list[int]:
    """Return a number for each text, equal for those that share a part with each other."""
    first: dict[str, int] = {}
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, text in enumerate(texts):
        for part in text:
            parent[root(i)] = root(first.setdefault(part, i))
    return [root(i) for i in range(len(texts))]


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
    if head_of(meta).fills_masks:
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
