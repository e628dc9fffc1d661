"""A small padded batch that the program is evaluated on, every value of it."""

from dataclasses import dataclass, field

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.onnx.program import Program

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
LENGTHS = (7, 4, 6)
FIRST_ID = 5  # below it lie special ids
HINT = "export the model with optimum or torch.onnx, inputs input_ids, attention_mask, ..."


@dataclass(frozen=True, eq=False)
class Probe:
    """One batch.

    ids, types  int64 [batch, length]; ids behind the end of a sequence are `pad`
    mask        int64 [batch, length]: 1 where a token is
    """

    ids: np.ndarray
    types: np.ndarray
    mask: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """Where a token is."""
        return self.mask == 1

    def feeds(self, program: Program) -> dict[str, np.ndarray]:
        """Return the inputs of a program."""
        arrays = {IDS: self.ids, MASK: self.mask, TYPES: self.types}
        return {name: arrays[name] for name in program.inputs}

    def sequences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (ids, types), int32, of every sequence."""
        return [
            (ids[real].astype(np.int32), types[real].astype(np.int32))
            for ids, types, real in zip(self.ids, self.types, self.real, strict=True)
        ]


@dataclass
class Traced:
    """A program with all its values on a probe.

    values  by name, constants too
    """

    program: Program
    probe: Probe
    values: dict[str, np.ndarray] = field(default_factory=dict)


def check_inputs(program: Program) -> None:
    """Refuse inputs that are not those of an encoder, and fixed shapes."""
    for name, extents in program.inputs.items():
        if name not in (IDS, MASK, TYPES):
            raise CheckpointError(
                f"ONNX input {name!r} is not supported", where=program.where, hint=HINT
            )
        if len(extents) != 2 or None not in extents[1:]:
            raise CheckpointError(
                f"ONNX input {name!r} has the shape {list(extents)}, not [batch, length]",
                where=program.where,
                hint="export it with dynamic axes",
            )
    if IDS not in program.inputs:
        raise CheckpointError(f"no ONNX input {IDS!r}", where=program.where, hint=HINT)


def rows_of(program: Program, name: str) -> int | None:
    """Return the fewest rows of any table whose rows an input picks; None where none is seen."""
    same, found = {name}, []
    for node in program.nodes:
        if node.op in ("Cast", "Identity") and node.inputs[0] in same:
            same.add(node.outputs[0])
        if node.op == "Gather" and node.inputs[1] in same and node.inputs[0] in program.constants:
            found.append(len(program.constants[node.inputs[0]]))
    return min(found, default=None)


def make(program: Program, pad: int = 0, seed: int = 0, lengths=LENGTHS, inner=()) -> Probe:
    """Return a probe of random ids.

    pad    id behind the end of a sequence
    inner  ids to put into the sequences as well
    """
    rng = np.random.default_rng(seed)
    words, kinds = rows_of(program, IDS), rows_of(program, TYPES) or 1
    if words is None:
        raise CheckpointError(f"{IDS!r} picks no rows of a table", where=program.where, hint=HINT)
    if MASK not in program.inputs:
        lengths = (max(lengths),) * len(lengths)
    shape = len(lengths), max(lengths)
    real = np.arange(shape[1]) < np.array(lengths)[:, None]
    ids = rng.integers(min(FIRST_ID, words - 1), words, shape)
    for i, one in enumerate(inner):
        ids[:, 1 + i] = one
    return Probe(
        ids=np.where(real, ids, pad),
        types=np.where(real, rng.integers(0, kinds, shape), 0),
        mask=real.astype(np.int64),
    )


def trace(program: Program, probe: Probe) -> Traced:
    """Evaluate every value."""
    values = dict(program.constants)
    values.update(probe.feeds(program))
    values[""] = None
    for node in program.nodes:
        made = program.apply(node, [values[name] for name in node.inputs])
        values.update(zip(node.outputs, made, strict=False))
    return Traced(program, probe, values)
