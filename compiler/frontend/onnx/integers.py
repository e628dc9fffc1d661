"""Integers of the file: which are kept as they are, and in which form."""

from dataclasses import replace

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.onnx.program import Program, Stored
from intformer.frontend.onnx.values import Product, Rows
from intformer.ir.graph import Graph, Integers, Linear, Tables

INT8 = np.iinfo(np.int8)
FIELDS = {"word": "word", "position": "position", "type": "types"}  # what picks rows -> of Tables


def of_product(base: Product) -> Integers | None:
    """Return the integers of a weight, as a matrix product takes them; None where it has none.

    Raises CheckpointError for a zero point that leaves numbers beyond int8: a product has no place
    for it.
    """
    stored = base.stored
    if stored is None:
        return None
    if not fits(stored.integers):
        raise CheckpointError(
            f"weight {stored.name!r} has the zero point {stored.zero}: less it, its integers reach "
            f"{stored.integers.min()}..{stored.integers.max()}, beyond int8",
            hint="quantize weights symmetrically (QInt8, WeightSymmetric)",
        )
    return Integers(stored.integers.astype(np.int8), steps(stored))


def fits(integers: np.ndarray) -> bool:
    """Say whether integers are int8."""
    return INT8.min <= integers.min() and integers.max() <= INT8.max


def steps(stored: Stored) -> np.ndarray:
    """Return the scale of each row, float64 [N]."""
    scale = np.broadcast_to(np.ravel(stored.scale), len(stored.integers)).astype(np.float64)
    if not (np.isfinite(scale).all() and scale.min() > 0):
        raise CheckpointError(f"weight {stored.name!r} has a scale that is not above 0")
    return scale


def rows_of(given: Integers | None, rows: np.ndarray | slice) -> Integers | None:
    """Return some rows of integers."""
    return given and Integers(given.values[rows], given.steps[rows])


def joined(parts: list[Linear]) -> Integers | None:
    """Return the integers of layers one below the other; of those that have none, ours."""
    if all(part.given is None for part in parts):
        return None
    every = [part.given or rounded(part.weight) for part in parts]
    return Integers(
        np.concatenate([one.values for one in every]), np.concatenate([one.steps for one in every])
    )


def rounded(weight: np.ndarray) -> Integers:
    """Return a float weight as integers, a scale per row."""
    top = np.maximum(np.abs(weight).max(1), np.finfo(np.float32).tiny).astype(np.float64)
    scale = top / INT8.max
    return Integers(np.rint(weight / scale[:, None]).astype(np.int8), scale)


def kept_tables(rows: Rows, tables: Tables) -> Tables:
    """Return tables with the integers that the file has of them.

    A word table whose zero point leaves numbers beyond int8 keeps the file's own integers; what the
    zero point stands for is added to the positions, and these lose theirs.
    """
    given = {}
    for kind, stored in rows.stored.items():
        table = getattr(tables, FIELDS.get(kind, "word"))
        if kind not in FIELDS or table is not rows.tables[kind]:
            continue  # something was added to it
        dtype = np.int8 if kind == "word" else np.int16
        if kind == "word" and not fits(stored.integers):
            stored, offset = recentred(stored)
            given.pop("position", None)
            tables = replace(tables, word=tables.word + offset, position=tables.position - offset)
        given[FIELDS[kind]] = Integers(stored.integers.astype(dtype), steps(stored))
    return replace(tables, given=given)


def recentred(stored: Stored) -> tuple[Stored, np.float32]:
    """Return a table's own integers, as int8, and how much larger they are as real numbers."""
    added = stored.zero - stored.low + INT8.min
    if stored.scale.size != 1:
        raise CheckpointError(
            f"table {stored.name!r} has a scale per row and the zero point {stored.zero}",
            hint="quantize it symmetrically",
        )
    offset = np.float32(added * float(np.ravel(stored.scale)[0]))
    return replace(stored, integers=stored.integers + added), offset


def report(graph: Graph) -> dict[str, int]:
    """Return how many weights and tables keep the file's integers, and how many there are."""
    tables = graph.tables
    every = [o.linear.given for o in graph.operands() if not o.tied]
    every += [tables.given.get(one) for one in FIELDS.values() if getattr(tables, one) is not None]
    return {"kept": sum(one is not None for one in every), "of": len(every)}


def report_scales(graph: Graph, program: Program) -> dict[str, int]:
    """Return how many of the file's activation scales are kept, and how many there are."""
    every = {grid.name for grid in program.grids.values()}
    kept = {node.attrs["grid"].name for node in graph.nodes if "grid" in node.attrs}
    for node in graph.nodes:
        kept |= {grid.name for grid in node.attrs.get("grids", ())[1:]}  # queries keep their range
    return {"kept": len(kept), "of": len(every)}
