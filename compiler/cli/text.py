"""Results as text: tables, numbers, lines that several verbs print."""

from collections.abc import Iterable, Sequence

Result = tuple[object, Iterable[str]]  # of a verb: plain data for --json, and lines of text


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return aligned columns; numbers to the right, the rest to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def numeric(text: str) -> bool:
        return text[:1].isdigit() or text[:1] in "-+" or not text

    right = [bool(cells) and all(numeric(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *cells]
    ]


def decibels(value: float | None) -> str:
    """Return an SNR; nothing where there is none."""
    return "" if value is None else f"{value:.1f}"


def calibration_lines(about: dict) -> list[str]:
    """Return what calibration chose, in a line; nothing where scales came from the checkpoint."""
    calibration = about.get("calibration")
    if not calibration:
        return []
    if "held_out_snr_db" not in calibration:  # I-BERT: the checkpoint has its ranges
        counted = f"{calibration['sequences']} sequences ({calibration['tokens']} tokens)"
        return [f"calibrated on {counted}"]
    judged = "not measured, nothing was held out"
    if scores := calibration["held_out_snr_db"]:
        found = dict(scores[calibration["method"]])
        judged = f"{found.pop('ordinary')} dB on {calibration['held_out_sequences']} held-out"
        judged += " sequences" + "".join(f", {db} dB on {kind} text" for kind, db in found.items())
    least, median, most = calibration["lengths"]
    types = " and ".join(map(str, calibration["token_types"]))
    return [
        f"calibrated by {calibration['method']} on {calibration['sequences']} sequences "
        f"({calibration['tokens']} tokens, {least} to {most} in a sequence, median {median}, "
        f"token types {types}): {judged}"
    ]


def source_lines(about: dict) -> list[str]:
    """Return what a library kept of a quantized source; nothing where it had none."""
    lines = []
    for key, what in (("source_integers", "weights"), ("source_scales", "activation scales")):
        found = about.get(key) or {"kept": 0}
        if found["kept"]:
            lines.append(f"{found['kept']} of {found['of']} {what} are those of the source")
    return lines


def short(value: object) -> str:
    """Return a value in at most a line."""
    if isinstance(value, list) and len(value) > 4 and all(isinstance(v, float) for v in value):
        return f"{min(value):.4g} .. {max(value):.4g}, {len(value)} channels"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def verdict(ok: bool) -> str:
    """Return a word for the last column of a table."""
    return "ok" if ok else "FAIL"
