"""`intformer targets`: the chips a model can be compiled for."""

import argparse

from intformer.cli.options import Option
from intformer.cli.text import Result, table

ABOUT = "list targets, and what this machine is missing to build and to run each"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {}


def run(args: argparse.Namespace) -> Result:
    """Chips we compile for."""
    from intformer.backends.targets import TARGETS
    from intformer.link.build import missing_tools

    data = {
        name: {
            "title": target.title,
            "cpu_features": list(target.features),
            "variants": list(target.variants),
            "missing_to_build": missing_tools(target.backend),
            "missing_here": target.missing_here(),
        }
        for name, target in TARGETS.items()
    }
    rows = [
        (name, about["title"], _lacks(about["missing_to_build"]), _lacks(about["missing_here"]))
        for name, about in data.items()
    ]
    return data, table(["target", "what it is", "built here", "run here"], rows)


def _lacks(missing: list[str]) -> str:
    return f"lacks {' '.join(missing)}" if missing else "yes"
