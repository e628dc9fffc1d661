"""The report as one HTML file that needs nothing beside itself."""

import os
import tempfile
from html import escape
from pathlib import Path

import intformer
from intformer.analysis import plots
from intformer.analysis.rows import COARSE, INHERITED_DB, OUTLIER, PEAKED, Row
from intformer.analysis.study import Analysis, Remedy
from intformer.errors import IntformerError

WORST = 12  # explained one by one at the top
WORTH_DB = 0.3  # a remedy that gains less is not called one
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; } figure svg { max-width: 44rem; }
td:first-child { min-width: 9.5rem; } .why { min-width: 18rem; }
td svg { min-width: 8rem; width: 11rem; }
.scroll { overflow-x: auto; } figure { margin: 1rem 0; }
figcaption, .note { font-size: .9rem; opacity: .8; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; }
th, td { border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
tr.chosen { background: var(--soft); font-weight: 600; }
.summary { background: var(--soft); border-left: 4px solid #4c8dd6; padding: .6rem 1rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
"""
SORT = """
for (const button of document.querySelectorAll('th button')) button.onclick = () => {
  const head = button.parentNode, body = head.closest('table').tBodies[0];
  const at = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute('aria-sort') === 'descending';
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = row => { const cell = row.cells[at], k = cell.dataset.k;
    return k === undefined ? cell.textContent : Number(k); };
  const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
"""
TERMS = {
    "SNR, dB": "size of the error against the size of the signal: 20 dB is an error of 10 % "
    "(root mean square), 40 dB of 1 %; 6 dB is one bit. More is better.",
    "share at the output": "FP32 runs with this one tensor rounded to its integers and nothing "
    "else; the error that this alone makes at the output, over the sum of these errors of all "
    "tensors. It ranks the tensors: a noisy tensor that the output hardly depends on ranks low.",
    "grid": "SNR of the FP32 tensor rounded and clamped to its integers: the choice of its scale "
    "alone.",
    "made here": "SNR of what one step makes when everything it reads is exact but for its own "
    "rounding: operands, weights, the integer function, the grid.",
    "so far": "SNR of the integer program's tensor: all errors up to here. Where it is "
    f"{INHERITED_DB:g} dB or more below `made here`, most of it is inherited.",
    "clipped": "values beyond the largest integer, which are clamped.",
    "typical": "root mean square of the values in steps of the scale (LSB); int8 has 127.",
}
CAUSES = {
    "clipping": "clamped values make most of the tensor's own error: a wider range helps",
    "outlier channel": f"one channel reaches {OUTLIER:g} times or more beyond the median one, and "
    "all share one range: channel equalisation helps",
    "outlier row": "one row of a weight makes a large part of its error: an entry far above the "
    "rest sets that row's scale, often after equalisation has moved a channel's range into it",
    "rare large values": f"the largest value is {PEAKED:g} times or more the root mean square: "
    "a clipping method (percentile, mse) may help",
    "coarse scale": f"a typical value is less than {COARSE:g} steps",
    "rounding": "the scale fits; what is left is the width itself: training with the rounding in "
    "place (`intformer train`) is what helps",
    "negligible": "its own error is small whatever it costs elsewhere",
}


def check(path: Path) -> None:
    """Refuse, before any work, a report that could not be written."""
    import matplotlib  # noqa: F401  a missing one is said now

    if not path.resolve().parent.is_dir():
        raise IntformerError("no such folder", where=str(path.resolve().parent), hint="make it")
    handle, name = part_of(path)
    os.close(handle)
    os.unlink(name)


def part_of(path: Path) -> tuple[int, str]:
    """Return an open file beside `path` for what is not whole yet: descriptor, name."""
    try:
        return tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.resolve().parent)
    except OSError as error:
        raise IntformerError(
            f"cannot write: {error.strerror}", where=str(path), hint="give -o another place"
        ) from error


def write(found: Analysis, path: Path) -> None:
    """Write the report; a reader of `path` sees the old file or the whole new one."""
    text = page(found)
    handle, name = part_of(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def page(found: Analysis) -> str:
    """Return the whole page."""
    about = found.model
    shape = f"{about['layers']} layers, {about['hidden']} wide, {about['heads']} heads"
    name = Path(found.source).name or found.source
    pictures = {row.name: plots.histogram(row) for row in found.rows}
    parts = [
        f"<h1>Where {escape(name)} loses accuracy in integers</h1>",
        f"<p><code>{escape(found.source)}</code>: {about['family']}, {about['head']}, {shape}; "
        f"recipe {about['recipe']}, scales: {escape(found.choice)}. Ranges from "
        f"{found.sequences} sequences ({found.tokens} tokens); everything below is measured on "
        f"{found.held_sequences} held-out sequences ({found.held_tokens} tokens) that set no "
        f"range. intformer {intformer.__version__}, <code>{escape(found.command)}</code></p>",
        f'<div class="summary"><ul>{"".join(f"<li>{s}</li>" for s in summary(found))}</ul></div>',
        *([warnings(found)] if found.warnings else []),
        "<h2>What costs most at the output</h2>",
        picture(plots.expensive(found), "Each bar: this tensor alone rounded, all else FP32."),
        kinds(found),
        "<h2>The worst tensors, and why</h2>",
        worst(found, pictures),
        "<h2>Remedies, on held-out text</h2>",
        picture(plots.remedies(found), "Every bar is a whole integer program, lowered anew."),
        remedy_table(found),
        "<h2>Along the network</h2>",
        picture(
            plots.network(found),
            "Where the orange line is far below the grey one, the error came from before. "
            f"Tensors without error are drawn at {plots.TOP_DB:g} dB.",
        ),
        "<h2>How to read it</h2>",
        terms(TERMS),
        "<h3>Causes</h3>",
        terms(CAUSES),
        "<h2>Every tensor, in the order of execution</h2>",
        '<p class="note">Click a heading to sort. Dashed lines in a histogram are the largest '
        "integers; its counts are logarithmic.</p>",
        every(found, pictures),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>intformer analyze: {escape(name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SORT}</script>\n</body></html>\n"
    )


def summary(found: Analysis) -> list[str]:
    """Return the report in a few sentences of HTML."""
    ranked = found.ranked()
    lines = [
        f"<b>The output keeps {found.snr_db:.1f} dB against FP32</b>: its error is "
        f"{found.error:.1%} of the signal (root mean square). {found.agreement_of.capitalize()}: "
        f"{found.agreement:.4f}."
    ]
    kinds = [f"{escape(name)} {share:.0%}" for name, share in found.parts.items() if share > 0.05]
    lines.append(f"Of the rounding error at the output: {', '.join(kinds)}.")
    worst = [f"<code>{escape(r.name)}</code> ({r.share:.0%}, {r.cause})" for r in ranked[:3]]
    lines.append(f"The tensors that cost most: {', '.join(worst)}.")
    faults = [r for r in ranked if r.cause in CAUSES and r.cause not in ("rounding", "negligible")]
    if faults:
        first = faults[0]
        lines.append(
            f"Tensors whose scale does not fit all their values: {len(faults)}. The first is "
            f"<code>{escape(first.name)}</code> ({first.cause}): {escape(first.why)}."
        )
    else:
        lines.append("No scale is badly chosen: every range fits its values.")
    lines.append(advice(found))
    tried = {remedy.name: remedy.snr_db for remedy in found.remedies}
    pairs = [
        (name, tried[other])
        for name in tried
        if (other := name.replace(" not equalised", " equalised")) != name
    ]
    if pairs:
        name, best = max(pairs, key=lambda pair: pair[1])
        lines.append(
            f"Channel equalisation, which compile always applies, is worth "
            f"{best - tried[name]:.1f} dB here ({best:.1f} dB with it, {tried[name]:.1f} without)."
        )
    checks = {name: db for name, db in found.cost_db.items() if db is not None}
    if len(checks) == 3:
        lines.append(
            f"The parts explain the whole: on {found.cost_tokens} tokens all errors one by one "
            f"add up to {checks['sum']:.1f} dB, FP32 with every tensor rounded at once has "
            f"{checks['rounded']:.1f} dB, the integer program {checks['program']:.1f} dB; "
            "what integer functions (GELU, softmax, LayerNorm) add is the difference of the last "
            "two."
        )
    return lines


def advice(found: Analysis) -> str:
    """Return which remedy helps by how much, as HTML."""
    now = chosen(found)
    best = max((r for r in found.remedies if r.options), key=lambda r: r.snr_db)
    train = "<code>intformer train</code>"
    brief = next((r for r in found.remedies if r.steps), None)
    beyond = f"What is left is quantization-aware training: {train}."
    if brief is not None:
        gain = brief.snr_db - max(best.snr_db, now.snr_db)
        beyond = (
            f"Quantization-aware training without labels, {brief.steps} steps, gives "
            f"{brief.snr_db:.1f} dB ({gain:+.1f} dB against the best without training); "
            f"with labels: {train}."
        )
    if best.snr_db > now.snr_db + WORTH_DB:
        gain = best.snr_db - now.snr_db
        return (
            f"<b>Remedy: <code>{escape(best.options)}</code></b> gains {gain:.1f} dB "
            f"({best.snr_db:.1f} dB on held-out text). {beyond}"
        )
    return f"<b>No option of compile gains more than {WORTH_DB:g} dB.</b> {beyond}"


def chosen(found: Analysis) -> Remedy:
    """Return the remedy that the report is about."""
    return next(remedy for remedy in found.remedies if remedy.chosen)


def warnings(found: Analysis) -> str:
    """Return what the import warned of."""
    return f"<ul>{''.join(f'<li>warning: {escape(w)}</li>' for w in found.warnings)}</ul>"


def picture(svg: str, caption: str) -> str:
    """Return a figure."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def terms(words: dict[str, str]) -> str:
    """Return a list of definitions."""
    items = (f"<dt>{escape(word)}</dt><dd>{escape(said)}</dd>" for word, said in words.items())
    return f"<dl>{''.join(items)}</dl>"


def table(header: list[str], rows: list[list], classes: list[str] | None = None) -> str:
    """Return a sortable table.

    rows     cells: (sort key, text) for numbers, HTML otherwise
    classes  of each row
    """

    def cell(value) -> str:
        if not isinstance(value, tuple):
            return f"<td>{value}</td>"
        key, text = value
        return f'<td class="n" data-k="{-1e300 if key is None else key}">{text}</td>'

    numeric = [bool(rows) and isinstance(value, tuple) for value in (rows[0] if rows else header)]
    head = "".join(
        f'<th{" class=n" if n else ""}><button type="button">{escape(name)}</button></th>'
        for name, n in zip(header, numeric, strict=True)
    )
    names = classes or [""] * len(rows)
    body = "".join(
        f"<tr{f' class={name}' if name else ''}>{''.join(map(cell, row))}</tr>\n"
        for row, name in zip(rows, names, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>'
        "</table></div>"
    )


def db(value: float | None) -> tuple:
    """Return a cell in dB; no error at all sorts highest."""
    return (1e300, "exact") if value is None else (round(value, 3), f"{value:.1f}")


def percent(value: float) -> tuple:
    """Return a cell with a share; shares that are not 0 do not show as 0."""
    if not value:
        return 0, "0"
    return value, f"{value:.1%}" if value >= 5e-4 else "&lt;0.1%"


def scale_of(row: Row) -> tuple:
    """Return a cell with the scale, and the spread of its channels."""
    least, middle, most = row.scale
    text = f"{middle:.3g}"
    if least != most:
        text += f"<br>{least:.2g} .. {most:.2g}"
    return middle, text


def worst(found: Analysis, pictures: dict[str, str]) -> str:
    """Return the table of the tensors that cost most."""
    header = ["tensor", "share", "grid dB", "so far dB", "cause", "why", "values over the grid"]
    rows = [
        [
            f"<code>{escape(row.name)}</code><br>{row.dtype}",
            percent(row.share),
            db(row.grid_db),
            db(row.total_db) if row.kind == "activation" else (None, ""),
            escape(row.cause),
            f"<div class=why>{escape(row.why)}"
            f"{'; most of its total error is inherited' if row.inherited else ''}</div>",
            pictures[row.name],
        ]
        for row in found.ranked()[:WORST]
    ]
    return table(header, rows)


def kinds(found: Analysis) -> str:
    """Return the table of shares by kind of tensor."""
    rows = [[escape(name), percent(share)] for name, share in found.parts.items()]
    return table(["kind of tensor", "share at the output"], rows)


def remedy_table(found: Analysis) -> str:
    """Return the table of remedies; the report's own stands out."""
    now = chosen(found)
    rows, classes = [], []
    for each in found.remedies:
        options = f"<code>{escape(each.options)}</code>" if each.options else "for comparison only"
        options = "none: training" if each.steps else options
        rows.append(
            [
                escape(each.name) + (" (this report)" if each.chosen else ""),
                db(each.snr_db),
                (each.snr_db - now.snr_db, f"{each.snr_db - now.snr_db:+.1f}"),
                (each.agreement, f"{each.agreement:.4f}"),
                options,
            ]
        )
        classes.append("chosen" if each.chosen else "")
    for name, why in found.untried.items():
        rows.append([escape(name), (None, ""), (None, ""), (None, ""), f"not tried: {escape(why)}"])
        classes.append("")
    header = ["scales", "SNR dB", "gain dB", found.agreement_of, "option of compile"]
    return table(header, rows, classes) + f'<p class="note">{note(found)}</p>'


def note(found: Analysis) -> str:
    """Return what is said of training, as HTML."""
    labels = (
        "SRC with labels: <code>intformer train SRC --task TASK --train FILE --dev FILE -o DIR"
        "</code>, then <code>intformer compile DIR</code>."
    )
    steps = max((r.steps for r in found.remedies), default=0)
    if steps:
        return (
            f"QAT without labels: quantization-aware training for {steps} steps on the text that "
            "sets ranges, to give what FP32 gives; judged as the others are, on text it was not "
            f"trained on. More steps: <code>--qat-steps N</code>. {labels}"
        )
    if found.untried:
        return labels
    return f"Training is left out: <code>--qat-steps 0</code>. {labels}"


def every(found: Analysis, pictures: dict[str, str]) -> str:
    """Return the table of all tensors."""
    header = ["tensor", "share", "output dB", "grid dB", "made here dB", "so far dB", "clipped"]
    header += ["range", "typical", "scale", "origin of the scale", "cause", "values over the grid"]
    rows = []
    for row in found.rows:
        active = row.kind == "activation"
        rows.append(
            [
                f"<code>{escape(row.name)}</code><br>{row.dtype}, {row.channels}",
                percent(row.share),
                db(row.output_db),
                db(row.grid_db),
                db(row.made_db) if active else (None, ""),
                db(row.total_db) if active else (None, ""),
                percent(row.clipped),
                (row.most, f"{row.least:.3g} .. {row.most:.3g}"),
                (row.steps, f"{row.steps:.1f}"),
                scale_of(row),
                escape(row.origin),
                f"<span title='{escape(row.why, quote=True)}'>{escape(row.cause)}</span>",
                pictures[row.name],
            ]
        )
    return table(header, rows)
