"""`intformer targets`: the chips a model can be compiled for."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option
from intformer.cli.text import Result, table
from intformer.errors import IntformerError

ABOUT = "list targets, and what this machine is missing for each"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {}


def run(args: argparse.Namespace) -> Result:
    """Chips we compile for."""
    from intformer.backends.targets import TARGETS
    from intformer.backends.x86.features import host_features

    have, lacks_gpu = host_features(), _gpu_check()
    data = {
        name: {
            "title": target.title,
            "cpu_features": list(target.features),
            "variants": list(target.variants),
            "missing_here": lacks_gpu(target.arch)
            if target.arch
            else [feature for feature in target.features if feature not in have],
        }
        for name, target in TARGETS.items()
    }
    rows = []
    for name, about in data.items():
        missing = about["missing_here"]
        rows.append((name, about["title"], f"lacks {' '.join(missing)}" if missing else "runs it"))
    return data, table(["target", "what it is", "this machine"], rows)


def _gpu_check() -> Callable[[str], list[str]]:
    """Return a function of an arch: what this machine lacks to run it; newer GPUs do, too."""
    from intformer.backends.cuda.device import Device
    from intformer.ir.plan import capability

    try:
        have = Device().capability
    except IntformerError as error:
        missing = [f"a GPU: {error.what}"]
        return lambda arch: missing
    return lambda arch: [] if have >= capability(arch) else [f"a GPU with {arch} or newer"]
