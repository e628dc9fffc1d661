"""What the rounding of one tensor alone costs at the output of the float encoder."""

import numpy as np

from intformer.analysis.tensors import Grid, Tally
from intformer.analysis.watched import OPERAND, OUTPUT
from intformer.analysis.weights import Weight, with_weight
from intformer.frontend.encoder import FloatEncoder
from intformer.frontend.progress import progress


def rounding(grids: dict[str, list[tuple[slice, Grid]]]):
    """Return a hook of FloatEncoder.forward: tap -> the grids of its columns, one after another."""
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
    encoder: FloatEncoder, inputs: list[dict], tallies: list[Tally], starts: list | None = None
) -> np.ndarray:
    """Return the float encoder's output, float64, with the tensors of `tallies` rounded.

    starts  of each input, where to go on (FloatEncoder.forward)
    """
    places: dict[bool, dict] = {False: {}, True: {}}
    for tally in tallies:
        watch = tally.watch
        grids = places[watch.path == OPERAND].setdefault(watch.tap, [])
        grids.append((watch.columns, tally.grid_of))
    hooks = rounding(places[False]), rounding(places[True])
    starts = starts or [None] * len(inputs)
    parts = [
        encoder.forward(batch, *hooks, start) for batch, start in zip(inputs, starts, strict=True)
    ]
    rows = np.concatenate(parts).astype(np.float64)
    for columns, grid in places[False].get(OUTPUT, []):
        rows[:, columns] = grid.round(rows[:, columns]) * grid.scale
    return rows


def costs(
    encoder: FloatEncoder, inputs: list[dict], tallies: list[Tally], weights: list[Weight]
) -> tuple[dict[str, float], float, float]:
    """Return (name of tensor or weight -> noise at the output, with all at once, signal).

    Noise and signal are energies: sums of squares over all of `inputs`.
    """
    streams = encoder.streams()
    kept: dict[str, list] = {name: [] for name in streams}

    def keep(name: str, x) -> None:
        if name in kept:
            kept[name].append(x)

    wanted = np.concatenate([encoder.forward(batch, keep) for batch in inputs]).astype(np.float64)

    def starts(place: str) -> list | None:
        """Where to go on, so that the first thing computed anew is at `place` or just before."""
        first = first_layer(encoder, place)
        return None if first is None else [(first, x) for x in kept[streams[first]]]

    def noise(changed: FloatEncoder, rounded: list[Tally], where: list | None) -> float:
        return float(np.square(run(changed, inputs, rounded, where) - wanted).sum())

    found, every = {}, encoder
    for one in progress([*tallies, *weights], "what each tensor costs at the output"):
        if isinstance(one, Tally):
            found[one.watch.name] = noise(encoder, [one], starts(one.watch.tap))
        else:
            changed = with_weight(encoder, one.name, one.back)
            found[weight_name(one)] = noise(changed, [], starts(one.name))
            every = with_weight(every, one.name, one.back)
    return found, noise(every, tallies, None), float(np.square(wanted).sum())


def first_layer(encoder: FloatEncoder, place: str) -> int | None:
    """Return the first layer that a change at `place`, a tap or a weight, changes; None: before."""
    if place == OUTPUT or place.startswith("head"):
        return len(encoder.layers)
    if not place.startswith("layer"):
        return None
    return int(place.partition(".")[0].removeprefix("layer"))


def weight_name(weight: Weight) -> str:
    """Return the name of a weight in the report."""
    return weight.name + ".weight"
