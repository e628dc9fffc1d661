"""`intformer inspect`: a library's metadata."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from intformer.cli.options import Option
from intformer.cli.text import Result, calibration_lines, short, source_lines, table

if TYPE_CHECKING:
    from intformer.backends.backend import Backend

ABOUT = "show a library's metadata"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library", argument=True),
        "values": Option("list every scale and its origin", default=False),
    }


def run(args: argparse.Namespace) -> Result:
    """What a library says of itself."""
    from intformer.passes.memory import bytes_per_row
    from intformer.proof.table import plan_of
    from intformer.runtime import LibraryFile

    library = LibraryFile(args.library)
    graph = library.graph()
    about = {k: v for k, v in library.metadata.items() if k not in ("labels", "variants")}
    kernels: dict[str, int] = {}
    for step in library.plan["steps"]:
        kernels[step["kernel"]] = kernels.get(step["kernel"], 0) + 1
    ops: dict[str, int] = {}
    for node in graph["nodes"]:
        ops[node["op"]] = ops.get(node["op"], 0) + 1
    data = {
        "library": str(args.library),
        "bytes": Path(args.library).stat().st_size,
        "metadata": library.metadata,
        "not_run_here": not_run_here(library),
        "ops": ops,
        "kernels": kernels,
        "state_bytes": bytes_per_row(plan_of(library.plan)),
        "values": graph["values"],
    }
    lines = [f"{args.library}: {data['bytes'] / 1e6:.1f} MB"]
    lines += [f"state: {data['state_bytes']['token']} bytes per token of a batch"]
    about["tuning"] = ", ".join(
        f"{chip} tuned {found['tuned']}/{found['kernels']} ({found['logs']})"
        for chip, found in about.get("tuning", {}).items()
    )
    lines += table(["key", "value"], [(key, short(value)) for key, value in about.items()])
    lines += calibration_lines(about)
    lines += source_lines(about)
    lines += ["", *table(["variant", "here", "needs"], variant_rows(library, data))]
    lines += ["", *table(["op", "count"], ops.items())]
    lines += ["", *table(["kernel", "steps"], kernels.items())]
    values = graph["values"].items() if args.values else ()
    if args.values:
        rows = [(n, v["dtype"], v["rows"], short(v["scale"]), v["origin"]) for n, v in values]
        lines += ["", *table(["value", "dtype", "rows", "scale", "origin of the scale"], rows)]
    else:
        lines += ["", "--values lists every scale and its origin"]
    return data, lines


def not_run_here(library) -> dict[str, str]:
    """Return why variants do not run on this machine, by what the system says of its CPU."""
    found = {}
    for variant, backend in variants(library):
        if backend is None:
            found[variant["name"]] = f"code for ELF machine {library.image.machine}"
        elif lacks := sorted(backend.missing(variant["cpu_features"])):
            found[variant["name"]] = f"this CPU lacks {', '.join(lacks)}"
    return found


def variants(library) -> list[tuple[dict, "Backend | None"]]:
    """Return what metadata says of each variant, and the family it is for, where it is known."""
    from intformer.backends import targets

    family = targets.find_machine(library.image.machine)
    return [(v, targets.of_variant(v, family)) for v in library.metadata["variants"]]


def variant_rows(library, data: dict) -> list[tuple[str, str, str]]:
    """Return a line for each variant: its name, whether this CPU has what it needs, its needs."""
    rows = []
    for variant, backend in variants(library):
        here = data["not_run_here"].get(variant["name"], "runs")
        if backend and backend.launched:
            here = "not tried"  # that takes a driver
        needs = backend.needs(variant) if backend else " ".join(variant["cpu_features"])
        rows.append((variant["name"], here, needs))
    return rows
