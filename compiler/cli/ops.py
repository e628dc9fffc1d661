"""`intformer ops`: error of every integer op."""

import argparse

from intformer.cli.options import Option
from intformer.cli.progress import Progress
from intformer.cli.text import Result, table, verdict

ABOUT = "measure the error of every integer op against float"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {}


def run(args: argparse.Namespace) -> Result:
    """Error of every integer op against float."""
    from dataclasses import asdict

    from intformer.measure import op_errors

    progress, rows = Progress(), []
    for row in op_errors.rows():
        progress(f"{row.op}, {row.recipe}: {row.domain}")
        rows.append(row)
    data = {
        "ok": all(row.ok for row in rows),
        "rows": [{**asdict(row), "ok": row.ok} for row in rows],
    }
    header = ("op", "recipe", "swept", "measure", "error", "bound", "")
    lines = [
        (r.op, r.recipe, r.domain, r.measure, f"{r.error:.3g}", f"{r.bound:.3g}", verdict(r.ok))
        for r in rows
    ]
    return data, table(header, lines)
