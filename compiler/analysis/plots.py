"""Figures as inline SVG: no fixed text colour, so that they read on light and on dark."""

import io
import re

import numpy as np

from intformer.analysis.rows import Row
from intformer.analysis.study import Analysis
from intformer.analysis.tensors import BINS, REACH

BLUE, ORANGE, GREEN, GREY = "#4c8dd6", "#dd7f2b", "#3d9a6b", "#8a8f98"
INK = "#010203"  # becomes the page's text colour
SHOWN = 15  # bars of the most expensive tensors
TOP_DB = 80.0  # of the chart along the network; what is better is drawn there
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": INK for part in ("edge", "label", "title")},
}


def figure(name: str, width: float, height: float, draw) -> str:
    """Return the SVG element of a figure, inches; draw(axes) fills it.

    name  keeps the ids of one figure apart from those of another
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        made = Figure((width, height), layout="constrained")
        axes = made.add_subplot()
        draw(axes)
        data = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        made.savefig(data, format="svg", transparent=True, metadata=empty)
    return inline(data.getvalue())


def inline(svg: str) -> str:
    """Return matplotlib's SVG file as an element of a page: scalable, without links or ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns|xmlns:xlink|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("xlink:href", "href")
    return svg.replace("<svg", '<svg role="img"', 1).replace(INK, "currentColor")


def height(db: float | None) -> float:
    """Return where the chart along the network draws an SNR; None is no error at all."""
    return TOP_DB if db is None else min(db, TOP_DB)


def network(found: Analysis) -> str:
    """SNR along the network: all errors so far, and what each step makes by itself."""
    rows = [row for row in found.rows if row.kind == "activation"]
    total, made = [height(row.total_db) for row in rows], [height(row.made_db) for row in rows]
    starts = {}
    for i, row in enumerate(rows):
        starts.setdefault(row.name.partition(".")[0], i)

    def draw(axes) -> None:
        axes.plot(made, color=GREY, lw=1, marker="o", ms=2.5, label="made by this step alone")
        axes.plot(total, color=ORANGE, lw=1.6, label="all errors so far")
        for at in starts.values():
            axes.axvline(at - 0.5, color=GREY, lw=0.5, alpha=0.5)
        axes.set_xticks(list(starts.values()), list(starts), rotation=60, ha="left")
        axes.set_ylabel("SNR against FP32, dB")
        axes.set_ylim(min(0.0, *total, *made), TOP_DB)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    return figure("network", 8, 3.6, draw)


def expensive(found: Analysis) -> str:
    """Bars: the share of the error at the output of the tensors that cost most."""
    rows = found.ranked()[:SHOWN][::-1]

    def draw(axes) -> None:
        colours = [BLUE if row.kind == "weight" else ORANGE for row in rows]
        axes.barh([row.name for row in rows], [100 * row.share for row in rows], color=colours)
        axes.set_xlabel(
            "% of the rounding error at the output (blue: weights, orange: activations)"
        )

    return figure("expensive", 7, 0.8 + 0.27 * len(rows), draw)


def remedies(found: Analysis) -> str:
    """Bars: the output's SNR with each remedy."""
    rows = found.remedies[::-1]

    def draw(axes) -> None:
        colours = [GREEN if row.chosen else GREY for row in rows]
        bars = axes.barh([row.name for row in rows], [row.snr_db for row in rows], color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=3, color=INK)
        axes.set_xlabel("SNR of the output on held-out text, dB (green: this report's)")

    return figure("remedies", 7, 0.9 + 0.32 * len(rows), draw)


def histogram(row: Row) -> str:
    """Values over the grid: counts on a logarithmic axis, the grid's ends dashed.

    There is one for every tensor, so it is written by hand: small, and no time to draw.
    """
    width, height, foot = 180, 56, 14
    tall = np.log1p(np.asarray(row.counts))
    tall = (height * (1 - tall / max(float(tall.max()), 1.0))).round(1)
    step = width / BINS
    path = f"M0 {height}" + "".join(f"V{y:g}H{(i + 1) * step:g}" for i, y in enumerate(tall))
    ends = [width / 2 * (1 + side / REACH) for side in (-1, 1)]
    names = (f"-{row.limit}", f"{row.limit}") if row.limit else ("-max", "max")
    marks = "".join(
        f'<line x1="{x:g}" x2="{x:g}" y2="{height}" stroke="{GREY}" stroke-dasharray="3 2"/>'
        f'<text x="{x:g}" y="{height + foot - 2}" text-anchor="middle">{name}</text>'
        for x, name in zip(ends, names, strict=True)
    )
    return (
        f'<svg role="img" viewBox="0 0 {width} {height + foot}" font-size="10" fill="currentColor">'
        f'<path d="{path}V{height}Z" fill="{BLUE if row.kind == "weight" else ORANGE}"/>'
        f"{marks}</svg>"
    )
