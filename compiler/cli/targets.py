"""`intformer targets`: the chips a model can be compiled for."""

import argparse

from intformer.cli.options import Option
from intformer.cli.text import Result, table

ABOUT = "list targets, and what this machine is missing for each"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {}


def run(args: argparse.Namespace) -> Result:
    """Chips we compile for."""
    from intformer.backends.targets import TARGETS

    data = {
        name: {
            "title": target.title,
            "cpu_features": list(target.features),
            "variants": list(target.variants),
            "missing_here": target.missing_here(),
        }
        for name, target in TARGETS.items()
    }
    rows = []
    for name, about in data.items():
        missing = about["missing_here"]
        rows.append((name, about["title"], f"lacks {' '.join(missing)}" if missing else "runs it"))
    return data, table(["target", "what it is", "this machine"], rows)
