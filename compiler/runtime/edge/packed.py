"""Packed sequences: what a library runs on."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from intformer.errors import IntformerError


@dataclass
class Packed:
    """Sequences one after the other, as Library.run takes them.

    input_ids, token_type_ids, position_ids  int32 [n]
    cu_seqlens                               int32 [sequences + 1]
    positions   int32 [p], tokens whose rows are wanted (masked LM), else None
    encodings   of the tokenizer, one per sequence; empty where no text was encoded
    texts       what was encoded: (text,) or (text, pair)
    text_of     which text each sequence is of; a long document has several
    """

    input_ids: np.ndarray
    cu_seqlens: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    positions: np.ndarray | None = None
    encodings: list[Encoding] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    text_of: list[int] = field(default_factory=list)

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the arguments of Library.run and the inputs of IntModel.run."""
        names = ("input_ids", "cu_seqlens", "token_type_ids", "position_ids")
        found = {name: getattr(self, name) for name in names}
        return found if self.positions is None else {**found, "positions": self.positions}

    def runs(self, tokens: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arguments of one run of the library after the other.

        tokens  of a run at most, unless one sequence has more

        Their outputs, one below the other, are those of all sequences at once.
        """
        start, count = 0, self.cu_seqlens.size - 1
        while start < count:
            reach = np.searchsorted(self.cu_seqlens, self.cu_seqlens[start] + tokens, side="right")
            stop = max(int(reach) - 1, start + 1)
            inputs = self.inputs() if stop - start == count else self.part(start, stop)
            if "positions" not in inputs or inputs["positions"].size:  # else it has no rows
                yield inputs
            start = stop

    def part(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the arguments of Library.run for the sequences from `start` to `stop`."""
        first, last = self.cu_seqlens[[start, stop]]
        names = ("input_ids", "token_type_ids", "position_ids")
        found = {name: getattr(self, name)[first:last] for name in names}
        found["cu_seqlens"] = self.cu_seqlens[start : stop + 1] - first
        if self.positions is not None:
            inside = (self.positions >= first) & (self.positions < last)
            found["positions"] = self.positions[inside] - first
        return found


def together(inputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arguments of one run for those of several."""
    if len(inputs) == 1:
        return inputs[0]
    names = ("input_ids", "token_type_ids", "position_ids")
    found = {name: np.concatenate([one[name] for one in inputs]) for name in names}
    starts = np.cumsum([0, *(one["input_ids"].size for one in inputs)])
    shifted = [one["cu_seqlens"][1:] + at for one, at in zip(inputs, starts, strict=False)]
    found["cu_seqlens"] = np.concatenate([[0], *shifted])
    if any("positions" in one for one in inputs):
        wanted = [one["positions"] + at for one, at in zip(inputs, starts, strict=False)]
        found["positions"] = np.concatenate(wanted)
    return found


def hf_positions(input_ids: np.ndarray, rule: str, pad: int | None) -> np.ndarray:
    """Return the positions Hugging Face gives padded ids, int32 [batch, seq].

    rule  "column": 0, 1, .. by column (BERT, also under left padding);
          "padding": ids that are not `pad` count from pad + 1, a pad id has pad (RoBERTa:
          create_position_ids_from_input_ids)
    """
    if rule == "column":
        return np.broadcast_to(np.arange(input_ids.shape[1], dtype=np.int32), input_ids.shape)
    real = input_ids != pad
    return (np.cumsum(real, 1) * real + pad).astype(np.int32)


def pack(
    metadata: dict,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    token_type_ids: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
    wanted: np.ndarray | None = None,
) -> Packed:
    """Pack Hugging Face's padded arrays, each [batch, seq]: masked tokens go, positions stay.

    metadata        of the library (position_rule, pad_token_id)
    attention_mask  0 where a token is to be dropped; default: none
    token_type_ids  default 0
    position_ids   default: those Hugging Face would compute before masking
    wanted          true where a row is to be computed (masked LM)
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise IntformerError(f"input_ids is {ids.dtype} {list(ids.shape)}, not [batch, seq]")

    def same_shape(name: str, array) -> np.ndarray:
        array = np.asarray(array)
        if array.shape != ids.shape:
            raise IntformerError(f"{name} is {list(array.shape)}, input_ids {list(ids.shape)}")
        return array

    mask = np.ones(ids.shape, bool)
    if attention_mask is not None:
        mask = same_shape("attention_mask", attention_mask).astype(bool)
    if position_ids is None:
        places = hf_positions(ids, metadata["position_rule"], metadata["pad_token_id"])
    else:
        places = same_shape("position_ids", position_ids)
    lengths = mask.sum(1)
    if not lengths.all():
        raise IntformerError(
            f"sequence {int(np.argmin(lengths))} is empty: all its tokens are masked",
            where="attention_mask",
            hint="drop it from the batch",
        )
    types = np.zeros(ids.shape, np.int32)
    if token_type_ids is not None:
        types = same_shape("token_type_ids", token_type_ids)
    positions = None
    if wanted is not None:
        positions = np.flatnonzero(same_shape("wanted", wanted)[mask]).astype(np.int32)
    return Packed(
        input_ids=ids[mask].astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        token_type_ids=types[mask].astype(np.int32),
        position_ids=places[mask].astype(np.int32),
        positions=positions,
    )
