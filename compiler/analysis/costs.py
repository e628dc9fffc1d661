"""What the rounding of one tensor alone costs at the output of the float encoder."""

import numpy as np

from intformer.analysis.tensors import Grid, Tally
from intformer.analysis.watched import OPERAND, OUTPUT
from intformer.analysis.weights import Weight
from intformer.ir.float_run import run as float_run
from intformer.ir.graph import TABLES, Graph
from intformer.progress import progress


def rounding(grids: dict[str, list[tuple[slice, Grid]]]):
    """Return a hook of the float run: edge -> the grids of its columns, one after another."""
    import torch

    def hook(name: str, x):
        if name not in grids:
            return None
        new = x.numpy().astype(np.float64)
        for columns, grid in grids[name]:
            new[:, columns] = grid.round(new[:, columns]) * grid.scale
        return torch.from_numpy(new.astype(np.float32))

    return hook


def run(
    graph: Graph, inputs: list[dict], tallies: list[Tally], starts: list | None = None
) -> np.ndarray:
    """Return the float graph's output, float64, with the tensors of `tallies` rounded.

    starts  of each input, where to go on (float_run.run)
    """
    places: dict[bool, dict] = {False: {}, True: {}}
    for tally in tallies:
        watch = tally.watch
        grids = places[watch.path == OPERAND].setdefault(watch.tap, [])
        grids.append((watch.columns, tally.grid_of))
    hooks = rounding(places[False]), rounding(places[True])
    starts = starts or [None] * len(inputs)
    parts = [
        float_run(graph, batch, *hooks, start) for batch, start in zip(inputs, starts, strict=True)
    ]
    rows = np.concatenate(parts).astype(np.float64)
    for columns, grid in places[False].get(OUTPUT, []):
        rows[:, columns] = grid.round(rows[:, columns]) * grid.scale
    return rows


def costs(
    graph: Graph, inputs: list[dict], tallies: list[Tally], weights: list[Weight]
) -> tuple[dict[str, float], float, float]:
    """Return (name of tensor or weight -> noise at the output, with all at once, signal).

    Noise and signal are energies: sums of squares over all of `inputs`.
    """
    kept: dict[str, list] = {name: [] for name in graph.cuts()}

    def keep(name: str, x) -> None:
        if name in kept:
            kept[name].append(x)

    wanted = np.concatenate([float_run(graph, batch, keep) for batch in inputs]).astype(np.float64)

    def starts(place: str) -> list | None:
        """Where to go on, so that `place` is computed anew, and little before it."""
        first = last_cut(graph, place)
        return None if first is None else [(first, x) for x in kept[first]]

    def noise(changed: Graph, rounded: list[Tally], where: list | None) -> float:
        return float(np.square(run(changed, inputs, rounded, where) - wanted).sum())

    found, every = {}, graph
    for one in progress([*tallies, *weights], "what each tensor costs at the output"):
        if isinstance(one, Tally):
            found[one.watch.name] = noise(graph, [one], starts(one.watch.tap))
        else:
            changed = graph.with_weight(one.name, one.back)
            found[weight_name(one)] = noise(changed, [], starts(one.name))
            every = every.with_weight(one.name, one.back)
    return found, noise(every, tallies, None), float(np.square(wanted).sum())


def last_cut(graph: Graph, place: str) -> str | None:
    """Return the last cut before what `place`, an edge or a weight, changes; None without one."""
    if place in TABLES:
        return None
    names = [node.name for node in graph.nodes]
    changed = (i for i, node in enumerate(graph.nodes) if place in (node.name, node.stem))
    first = next(changed, len(names)) if place != OUTPUT else len(names)
    return next((name for name in reversed(graph.cuts()) if names.index(name) < first), None)


def weight_name(weight: Weight) -> str:
    """Return the name of a weight in the report."""
    return weight.name + ".weight"
