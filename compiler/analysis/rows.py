"""One line of the report for every tensor: figures, and in words why it loses accuracy."""

from dataclasses import dataclass

import numpy as np

from intformer.analysis.costs import weight_name
from intformer.analysis.tensors import Tally, to_db
from intformer.analysis.weights import Weight
from intformer.ir.graph import TABLES
from intformer.quantize.methods import TINY

CLIPPING = 0.5  # of a tensor's grid error made by clamped values: that is its cause
OUTLIER = 6.0  # largest channel over the median channel, in steps of their scales
PEAKED = 24.0  # largest value over the root mean square
OUTLIER_ROWS = 20.0  # error of one row of a weight over that of the average row,
OUTLIER_SHARE = 0.15  # and its share of the weight's error
COARSE = 4.0  # steps in the root mean square
ENOUGH_DB = 45.0  # of the grid: its scale is nobody's problem
INHERITED_DB = 3.0  # the total this far below what its own step makes: most came from before

PARTS = {  # Watched.kind -> what the report calls it
    "for attention": "Q, K and V",
    "for rotary": "Q, K and V before rotation",
    "for act": "activation inputs",
    "attention": "attention contexts",
    "act": "activation outputs",
    "mul": "gated activations",
    "output": "output",
}


@dataclass
class Row:
    """Figures of one tensor. SNRs are in dB against FP32, None where there is no error at all.

    kind        "activation" or "weight"
    part        for the sums by kind: "weights", "LayerNorm outputs", ...
    scale       least, median and largest real units per LSB of its channels (a weight's rows)
    origin      where the scale comes from
    limit       largest integer; None: nothing clamps
    least, most of the FP32 values
    steps       root mean square of the values in LSB
    grid_db, made_db, total_db  see tensors.py; a weight has the grid's alone
    clipped     share of the values beyond the range
    clip_noise  share of the grid's error that they make
    outlier     (channel, its peak over the median channel's); of a weight: (row, its error over
                that of the average row)
    output_db   SNR of the output of an FP32 run in which this tensor alone is rounded
    share       of the sum of all tensors' errors at the output
    cause       "clipping", "outlier channel", "outlier row", "rare large values", "coarse scale",
                "rounding" or "negligible"
    why         the same in a sentence
    counts      histogram of value / (scale * limit), from -REACH to REACH
    """

    name: str
    kind: str
    part: str
    dtype: str
    channels: int
    scale: tuple[float, float, float]
    origin: str
    limit: int | None
    least: float
    most: float
    steps: float
    grid_db: float | None
    made_db: float | None
    total_db: float | None
    clipped: float
    clip_noise: float
    outlier: tuple[int, float]
    output_db: float | None
    share: float
    cause: str
    why: str
    counts: list[int]

    @property
    def inherited(self) -> bool:
        """Whether most of its total error was made before it."""
        both = self.total_db is not None and self.made_db is not None
        return both and self.total_db < self.made_db - INHERITED_DB


def spread(scale: np.ndarray) -> tuple[float, float, float]:
    """Return least, median and largest."""
    return float(scale.min()), float(np.median(scale)), float(scale.max())


def outlier(peaks: np.ndarray) -> tuple[int, float]:
    """Return (index, largest over median) of the peaks of channels or rows, in LSB."""
    return int(peaks.argmax()), float(peaks.max() / max(float(np.median(peaks)), TINY))


def part_of(tally: Tally) -> str:
    """Return what kind of activation this is, for the sums by kind."""
    if tally.watch.kind == "norm":
        wide = "residual (int16)" if tally.value.dtype != "int8" else "int8"
        return f"LayerNorm outputs, {wide}"
    return PARTS.get(tally.watch.kind, "sums and their terms")


def activation(tally: Tally, noise: float, total: float, signal: float) -> Row:
    """Return the line of an activation.

    noise, total, signal  at the output: this tensor's, the sum of all tensors', FP32's
    """
    watch, value, scale = tally.watch, tally.value, tally.grid_of.scale
    row = Row(
        name=watch.name,
        kind="activation",
        part=part_of(tally),
        dtype=value.dtype,
        channels=len(scale),
        scale=spread(scale),
        origin=value.origin,
        limit=watch.high,
        least=tally.least,
        most=tally.most,
        steps=float(np.sqrt(tally.squares / max(tally.count, 1))),
        grid_db=to_db(tally.signal, tally.grid),
        made_db=to_db(tally.signal, tally.made),
        total_db=to_db(tally.signal, tally.total),
        clipped=tally.clipped / max(tally.count, 1),
        clip_noise=tally.clip / tally.grid if tally.grid else 0.0,
        outlier=outlier(tally.peaks / scale),
        output_db=to_db(signal, noise),
        share=noise / total if total else 0.0,
        cause="",
        why="",
        counts=tally.counts.tolist(),
    )
    row.cause, row.why = diagnose(row, float((tally.peaks / scale).max()))
    return row


def weight(one: Weight, noise: float, total: float, signal: float) -> Row:
    """Return the line of a weight (arguments: activation)."""
    power, error = one.energies()
    worst = int(error.argmax())
    part = float(error[worst] / max(float(error.sum()), TINY))
    row = Row(
        name=weight_name(one),
        kind="weight",
        part="embedding tables" if one.name in TABLES else "weights",
        dtype=one.integers.dtype.name,
        channels=len(one.real),
        scale=spread(one.steps),
        origin="largest |w| of each row"
        if spread(one.steps)[0] < spread(one.steps)[2]
        else "max|w|",
        limit=one.limit,
        least=float(one.real.min()),
        most=float(one.real.max()),
        steps=float(np.sqrt(np.square(one.integers, dtype=np.float64).mean())),
        grid_db=to_db(float(power.sum()), float(error.sum())),
        made_db=None,
        total_db=None,
        clipped=0.0,
        clip_noise=0.0,
        outlier=(worst, part * len(error)),
        output_db=to_db(signal, noise),
        share=noise / total if total else 0.0,
        cause="rounding",
        why="",
        counts=one.counts().tolist(),
    )
    if row.grid_db is None or row.grid_db > ENOUGH_DB:
        row.cause = "negligible"
    elif part >= OUTLIER_SHARE and part * len(error) >= OUTLIER_ROWS:
        row.cause = "outlier row"
    elif row.steps < COARSE:
        row.cause = "coarse scale"
    row.why = (
        f"a typical entry is {row.steps:.1f} of {row.limit} steps; row {worst} of {len(error)} "
        f"makes {part:.1%} of the error"
    )
    return row


def diagnose(row: Row, peak: float) -> tuple[str, str]:
    """Return (cause, sentence) of an activation; `peak` is its largest value in LSB."""
    if row.grid_db is None or row.limit is None:
        return "negligible", "32-bit integers that nothing clamps"
    channel, ratio = row.outlier
    top = tuple(row.limit * s for s in (row.scale[0], row.scale[2]))
    reach = f"{top[0]:.3g}" if top[0] == top[1] else f"{top[0]:.3g} to {top[1]:.3g} by channel"
    largest = max(abs(row.least), abs(row.most))
    if row.clip_noise > CLIPPING and row.grid_db < ENOUGH_DB:
        return "clipping", (
            f"{row.clipped:.2%} of the values are beyond the range (+-{reach}; largest "
            f"{largest:.3g}); clamping them makes {row.clip_noise:.0%} of the error here"
        )
    if row.grid_db > ENOUGH_DB:
        return "negligible", f"{row.dtype} is fine enough here"
    if ratio >= OUTLIER:
        used = row.limit / ratio
        return "outlier channel", (
            f"channel {channel} reaches {ratio:.0f} times as far as the median channel, which is "
            f"left with {used:.0f} of {row.limit} steps"
        )
    if peak / max(row.steps, TINY) >= PEAKED:
        return "rare large values", (
            f"the largest value is {peak / row.steps:.0f} times the root mean square, so a typical "
            f"value is {row.steps:.1f} of {row.limit} steps"
        )
    if row.steps < COARSE:
        return "coarse scale", (
            f"a typical value is {row.steps:.1f} steps, and the largest {peak:.0f} of {row.limit}"
        )
    return "rounding", (
        f"the range fits (a typical value is {row.steps:.0f} steps, the largest {peak:.0f} of "
        f"{row.limit}): what is left is the rounding of {row.dtype} itself"
    )
