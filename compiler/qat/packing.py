"""Padded Hugging Face batches, made of sequences; to packed tokens and back; in torch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from intformer.errors import IntformerError

TOKENS = ("input_ids", "token_type_ids")  # the arguments that are of tokens
IGNORED = -100  # the label transformers leaves out of a loss


@dataclass(eq=False)
class Grid:
    """Where packed tokens stand in a [batch, longest] grid without holes.

    batch, longest  extents
    at       int64 [n]: place of every token in the flattened grid, None where it is all of them
    hidden   bool [batch, 1, 1, longest]: true for keys that are no token, None where none are
    """

    batch: int
    longest: int
    at: torch.Tensor | None
    hidden: torch.Tensor | None

    def unpack(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, C] -> [batch, longest, C]; 0 where no token is."""
        if self.at is not None:
            whole = rows.new_zeros(self.batch * self.longest, rows.shape[1])
            rows = whole.index_copy_(0, self.at, rows)
        return rows.view(self.batch, self.longest, -1)

    def pack(self, grid: torch.Tensor) -> torch.Tensor:
        """[batch, longest, C] -> [n, C]."""
        rows = grid.flatten(0, 1)
        return rows if self.at is None else rows.index_select(0, self.at)


@dataclass(eq=False)
class Tokens:
    """One batch without padding.

    ids, types, positions  int64 [n]
    cu_seqlens  int64 [batch + 1]
    places      int64 [n]: of every token in the flattened padded batch
    shape       (batch, padded length)
    grid        see Grid
    """

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    places: torch.Tensor
    shape: tuple[int, int]
    grid: Grid

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return them as IntModel.run names them."""
        return {
            "input_ids": self.ids,
            "token_type_ids": self.types,
            "position_ids": self.positions,
            "cu_seqlens": self.cu_seqlens,
        }

    def spread(self, rows: torch.Tensor, fill: float) -> torch.Tensor:
        """[n, C] -> [batch, padded length, C], `fill` where no token is."""
        whole = rows.new_full((self.shape[0] * self.shape[1], rows.shape[1]), fill)
        return whole.index_copy(0, self.places, rows).view(*self.shape, -1)


def positions_of(input_ids: torch.Tensor, rule: str, pad: int) -> torch.Tensor:
    """edge.hf_positions in torch: int64 [batch, length]."""
    if rule == "column":
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        return columns.expand(input_ids.shape)
    real = (input_ids != pad).long()
    return real.cumsum(1) * real + pad


def pack(meta: dict, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
    """Return the Tokens of a padded batch, each [batch, length] (edge.pack in torch).

    meta  position_rule, pad_token_id, vocab_size, type_vocab_size, max_length
    """
    shape = tuple(input_ids.shape)
    if len(shape) != 2:
        raise IntformerError(f"input_ids is {list(shape)}, not [batch, length]")
    for name, other in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if other is not None and tuple(other.shape) != shape:
            raise IntformerError(f"{name} is {list(other.shape)}, input_ids {list(shape)}")
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
    else:
        real = attention_mask.bool()
    if position_ids is None:
        position_ids = positions_of(input_ids, meta["position_rule"], meta["pad_token_id"])
    position_ids = position_ids.expand(shape)
    lengths = real.sum(1)
    places = real.flatten().nonzero().squeeze(1)
    extents = lengths.tolist()
    if min(extents) == 0:
        raise IntformerError(
            f"sequence {extents.index(0)} is empty: all its tokens are masked",
            where="attention_mask",
            hint="drop it from the batch",
        )
    longest, count = max(extents), sum(extents)
    ids = input_ids.flatten()[places]
    if token_type_ids is None:
        types = torch.zeros_like(ids)
    else:
        types = token_type_ids.flatten()[places]
    positions = position_ids.flatten()[places]
    limits = (meta["vocab_size"], meta["type_vocab_size"], meta["position_count"])
    for name, found, limit in zip(
        ("input_ids", "token_type_ids", "position_ids"),
        (ids, types, positions),
        limits,
        strict=True,
    ):
        top, low = int(found.max()), int(found.min())
        if top >= limit or low < 0:
            wrong = top if top >= limit else low
            raise IntformerError(
                f"{wrong} is outside 0..{limit - 1}",
                where=name,
                hint="does the tokenizer belong to this model? cut long texts with truncation=True",
            )
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    at = hidden = None
    if count != len(extents) * longest:
        rows = places // shape[1]
        at = rows * longest + torch.arange(count, device=ids.device) - cu_seqlens[rows]
        columns = torch.arange(longest, device=ids.device)
        hidden = (columns >= lengths[:, None])[:, None, None]
    return Tokens(
        ids, types, positions, cu_seqlens, places, shape, Grid(shape[0], longest, at, hidden)
    )


def padded(features: list[dict], pad: int, takes) -> dict[str, torch.Tensor]:
    """Return sequences as a batch, padded to the longest, of the arguments a model takes."""
    longest = max(len(one["input_ids"]) for one in features)
    shape = (len(features), longest)
    batch = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    if "token_type_ids" in takes:
        batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    for row, one in enumerate(features):
        length = len(one["input_ids"])
        batch["attention_mask"][row, :length] = 1
        for name in TOKENS:
            if name in batch:
                batch[name][row, :length] = torch.from_numpy(one[name])
    for name in features[0].keys() - set(TOKENS):
        values = [one[name] for one in features]
        if isinstance(values[0], np.ndarray):
            batch[name] = torch.full(shape, IGNORED)
            for row, value in enumerate(values):
                batch[name][row, : len(value)] = torch.from_numpy(value)
        else:
            batch[name] = torch.tensor(values)  # classes int64, scores float32
    return batch


def padded_sequences(sequences: Iterable, pad: int) -> dict[str, torch.Tensor]:
    """Return (ids, types) pairs as a batch, padded to the longest."""
    return padded([dict(zip(TOKENS, one, strict=True)) for one in sequences], pad, TOKENS)
