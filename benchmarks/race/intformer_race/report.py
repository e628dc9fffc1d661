"""The report of a race: Markdown and a plot, from what results.json holds."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from intformer_race.cells import IBERT, OURS
from intformer_race.marks import Mark, cell_of, median_of


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown(results: Mapping, marks: Iterable[Mark]) -> str:
    """Return the whole report."""
    lines = ["# Race", "", f"`{results['command']}`", ""]
    lines += [f"* {key}: {value}" for key, value in results["machine"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [f"* versions: {versions}", ""]
    lines += [f"* skipped: {why}" for why in results.get("skipped", [])]
    lines += [
        "Contestants of a table took turns in one run, on the same threads at the same ISA level;",
        "figures are median milliseconds of a run, then how many times ours it is.",
        "",
        *_marks(marks),
    ]
    groups: dict[tuple, list[Mapping]] = {}
    for cell in results["cells"]:
        groups.setdefault((cell["isa"], cell["model"], cell["threads"]), []).append(cell)
    for (isa, model, threads), cells in sorted(groups.items(), reverse=True):
        title = f"{model}, {threads} thread{'s' * (threads > 1)}, {isa} level"
        heads = [f"{cell['batch']}x{cell['seq']}" for cell in cells]
        lines += _cells(title, cells, heads)
    batches: dict[str, list[Mapping]] = {}
    for one in results.get("texts", []):
        batches.setdefault(one["isa"], []).append(one)
    for isa, ways in batches.items():
        about = f"{ways[0]['sentences']} sentences of SST-2, {ways[0]['tokens']} tokens"
        title = f"One batch of {about}, 1 thread, {isa} level"
        lines += _cells(title, ways, [f"rivals: {one['way']}" for one in ways])
    return "\n".join([*lines, *_footprint(results), *_functions(results), *_proof(results)]) + "\n"


def speed(results: Mapping, isa: str) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of one ISA level: our time, the rivals' as multiples.

    Only contestants of every cell; the fastest rival of a row is bold.
    """
    cells = [cell for cell in results["cells"] if cell["isa"] == isa]
    named = {row["name"]: row["role"] for cell in cells for row in cell["rows"]}
    rivals = [
        name
        for name, role in named.items()
        if role == "rival" and all(any(row["name"] == name for row in c["rows"]) for c in cells)
    ]
    rows = []
    for cell in cells:
        threads = f", {cell['threads']} threads" if cell["threads"] > 1 else ""
        ours, entries = median_of(cell, OURS), []
        times = {name: median_of(cell, name) for name in rivals}
        fastest = min((ms for ms in times.values() if ms), default=None)
        for ms in times.values():
            ratio = f"{ms / ours:.2f}x" if ms and ours else "failed"
            entries.append(f"**{ratio}**" if ms and ms == fastest else ratio)
        shape = f"{cell['model']} {cell['batch']}x{cell['seq']}{threads}"
        rows.append([shape, f"{ours:.3g}" if ours else "failed", *entries, _share(cell)])
    return [f"{isa} level", f"**{OURS}**, ms", *rivals, "share of peak"], rows


def _share(cell: Mapping) -> str:
    """Return our rate as a share of the peak measured in the same turns; "" where none was."""
    rates = {row["role"]: row["gops"] for row in reversed(cell["rows"]) if "gops" in row}
    if not {"ours", "roof"} <= set(rates):
        return ""
    return f"{100 * rates['ours'] / rates['roof']:.0f} %"


def _marks(marks: Iterable[Mark]) -> list[str]:
    rows = [
        (
            mark.what,
            "" if mark.figure is None else f"{mark.figure:.3g}{mark.unit}",
            f"{mark.sense} {mark.bound:g}{mark.unit}",
            f"**{mark.verdict}**" if mark.verdict == "missed" else mark.verdict,
            mark.note,
        )
        for mark in marks
    ]
    return ["## Marks", "", *table(("mark", "figure", "bound", "", "note"), rows), ""]


def _cells(title: str, cells: list[Mapping], heads: list[str]) -> list[str]:
    found = {row["name"]: row for cell in cells for row in cell["rows"]}
    rows = []
    for name, about in found.items():
        texts = [_entry(cell, name) for cell in cells]
        rows.append((f"**{name}**" if name == OURS else name, about["computes"], *texts))
    failed = {
        row["name"]: row["error"] for cell in cells for row in cell["rows"] if row.get("error")
    }
    lines = [f"## {title}", "", *table(("contestant", "computes", *heads), rows), ""]
    return (
        lines
        + [f"* {name} failed: {error}" for name, error in failed.items()]
        + [""] * bool(failed)
    )


def _entry(cell: Mapping, name: str) -> str:
    row = next((row for row in cell["rows"] if row["name"] == name), None)
    if row is None:
        return ""
    if "ms" not in row:
        return "failed"
    speed = f"{row['gops']:.0f} GOP/s" if "gops" in row else ""
    if row["role"] == "roof":
        return speed
    ours = median_of(cell, OURS)
    ratio = f"{row['ms'] / ours:.2f}x" if ours and name != OURS else ""
    return ", ".join(part for part in (f"{row['ms']:.2f}", ratio, speed) if part)


def _footprint(results: Mapping) -> list[str]:
    data = results.get("footprint")
    if not data:
        return []
    memory = [(what, f"{size / 1e6:.1f}") for what, size in data["memory"].items()]
    first = [(what, f"{ms:.1f}") for what, ms in data["first"].items()]
    return [
        f"## Memory and first run, {data['library']}",
        "",
        "PSS of a fresh process after a first run of 1x128, every page of its constants read;",
        "`library` is that of the whole process less that of the interpreter before `load()`.",
        "",
        *table(("PSS", "MB"), [*memory, ("int8 weights", f"{data['weights'] / 1e6:.1f}")]),
        "",
        f"From `load()` to the end of a first run of 1x16, median of {len(data['tries'])} fresh",
        "processes, page cache warm, one thread for the run:",
        "",
        *table(("part", "ms"), first),
        "",
    ]


def _functions(results: Mapping) -> list[str]:
    times = results.get("functions")
    if not times:
        return []
    names = list(next(iter(times.values())))
    rows = [(one, *(f"{spent[name]:.2f}" for name in names)) for one, spent in times.items()]
    return [
        "## Kernels with functions, recipe beside recipe",
        "",
        "Milliseconds per run, BERT-base 1x128, one thread, VNNI level.",
        "",
        *table(("library", *names), rows),
        "",
    ]


def _proof(results: Mapping) -> list[str]:
    rows = [
        (name, check["name"], "ok" if check["ok"] else "**FAIL**", check["detail"])
        for name, checks in results.get("verified", {}).items()
        for check in checks
    ]
    lines = ["## Proof", "", *table(("library", "check", "", "detail"), rows), ""] if rows else []
    gaps = [
        (cell_of(cell), row["name"], f"{row['gap']:.3g}", f"{row['largest']:.3g}")
        for cell in results["cells"]
        for row in cell["rows"]
        if "gap" in row
    ]
    if gaps:
        lines += [
            "## Logits beside PyTorch FP32",
            "",
            "Random weights: this shows that the same model was run, not how accurate it is.",
            "",
            *table(("cell", "contestant", "largest difference", "largest logit"), gaps),
            "",
        ]
    return lines


def plot(results: Mapping, path: Path) -> None:
    """Draw how many times ours everybody's time is, per ISA level, and write it as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    isas = list(dict.fromkeys(cell["isa"] for cell in results["cells"]))
    tall = max((sum(c["isa"] == isa for c in results["cells"]) for isa in isas), default=1)
    figure, axes = pyplot.subplots(
        1, max(1, len(isas)), figsize=(7 * max(1, len(isas)), 2 + 0.35 * tall), squeeze=False
    )
    for axis, isa in zip(axes[0], isas, strict=False):
        cells = [cell for cell in results["cells"] if cell["isa"] == isa]
        points: dict[str, list[tuple[float, int]]] = {}
        for number, cell in enumerate(cells):
            ours = median_of(cell, OURS)
            for row in cell["rows"]:
                if ours and "ms" in row and row["role"] != "roof" and row["name"] != OURS:
                    points.setdefault(row["name"], []).append((row["ms"] / ours, number))
        for name, found in points.items():
            x, y = zip(*found, strict=True)
            axis.scatter(x, y, label=name, marker="x" if name == IBERT else "o")
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        axis.set_yticks(range(len(cells)), [str(cell_of(cell)) for cell in cells])
        axis.invert_yaxis()
        axis.set_xlabel("time / ours (right of 1: slower than ours)")
        axis.set_title(f"{isa} level")
        if points:
            axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
