"""What the finished cells say: results.json, intervals of differences, and the table."""

import json
from pathlib import Path

import numpy as np

from intformer.measure import accuracy
from intformer.qat.run_files import write_json
from intformer_qat_results.cells import KINDS, PLANS, SMALL

RESAMPLES = 10_000
COLUMNS = {
    "fp32": "FP32",
    "ptq": "PTQ, integer-only",
    "qat": "QAT, integer-only",
    "ibert": "QAT `ibert`, integer-only",
    "int8": "dynamic int8 (ONNX Runtime)",
}


def finished(out: Path) -> dict[str, dict[str, dict[str, dict]]]:
    """Return task -> kind -> seed -> cell."""
    found: dict = {}
    for task in PLANS:
        for kind in KINDS:
            for path in sorted(out.glob(f"{task}/*/{kind}.json")):
                cell = json.loads(path.read_text())
                found.setdefault(task, {}).setdefault(kind, {})[path.parent.name] = cell
    return found


def interval(
    metric: str, ours: list[np.ndarray], theirs: list[np.ndarray], wanted: np.ndarray
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean difference of a metric over seeds.

    ours, theirs  predictions per seed, [rows] each; the same rows are drawn for both and all seeds
    """
    rng, score = np.random.default_rng(0), accuracy.METRICS[metric]
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = rng.integers(0, len(wanted), len(wanted))
        drawn[i] = np.mean(
            [
                score(a[rows], wanted[rows]) - score(b[rows], wanted[rows])
                for a, b in zip(ours, theirs, strict=True)
            ]
        )
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def write(out: Path, results: Path) -> None:
    """Write results.json: settings, versions, figures; predictions stay in `out`."""
    data: dict = {"versions": {}, "tasks": {}}
    for task, kinds in finished(out).items():
        metrics = next((list(c["metrics"]) for c in kinds.get("fp32", {}).values()), None)
        if metrics is None:
            continue
        about: dict = {"metrics": metrics, "cells": {}}
        for kind, seeds in kinds.items():
            for seed, cell in seeds.items():
                data["versions"].update(cell.get("versions", {}))
                left_out = ("predictions", "history", "versions", "wanted")
                kept = {name: value for name, value in cell.items() if name not in left_out}
                about["cells"].setdefault(kind, {})[seed] = kept
        for kind in ("ptq", "qat", "ibert", "int8"):
            both = sorted(set(kinds.get(kind, {})) & set(kinds.get("fp32", {})))
            if both and task not in SMALL:
                ours, theirs = (
                    [np.array(kinds[name][seed]["predictions"]) for seed in both]
                    for name in (kind, "fp32")
                )
                wanted = np.array(kinds["fp32"][both[0]]["wanted"])
                mean = [
                    kinds[kind][s]["metrics"][metrics[0]] - kinds["fp32"][s]["metrics"][metrics[0]]
                    for s in both
                ]
                about.setdefault("minus_fp32", {})[kind] = {
                    "metric": metrics[0],
                    "seeds": both,
                    "mean": float(np.mean(mean)),
                    "interval": interval(metrics[0], ours, theirs, wanted),
                }
        data["tasks"][task] = about
    write_json(results, data)


def table(results: Path) -> list[str]:
    """Return the Markdown table: points of 100, the mean over seeds, the first metric of a task."""
    data = json.loads(results.read_text())
    lines = [
        "| task, metric | " + " | ".join(COLUMNS.values()) + " | QAT - FP32, 95 % | seeds |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    means: dict[str, list[float]] = {}
    for task, about in data["tasks"].items():
        metric, shown = about["metrics"][0], []
        for kind in COLUMNS:
            values = [c["metrics"][metric] for c in about["cells"].get(kind, {}).values()]
            shown.append(f"{100 * np.mean(values):.1f}" if values else "")
            if values and task not in SMALL:
                means.setdefault(kind, []).append(100 * float(np.mean(values)))
        difference = about.get("minus_fp32", {}).get("qat")
        span = ""
        if difference:
            low, high = (100 * end for end in difference["interval"])
            span = f"{100 * difference['mean']:+.1f} ({low:+.1f} .. {high:+.1f})"
        seeds = len(about["cells"].get("qat", {}))
        name = f"{task} (small data)" if task in SMALL else task
        lines.append(f"| {name}, {metric} | " + " | ".join(shown) + f" | {span} | {seeds} |")
    glue = [task for task in data["tasks"] if task not in SMALL]
    full = [
        f"{np.mean(v):.1f}" if len(v) == len(glue) else ""
        for v in (means.get(k, []) for k in COLUMNS)
    ]
    lines.append(f"| mean of {len(glue)} tasks | " + " | ".join(full) + " | | |")
    return lines
