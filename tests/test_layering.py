"""Imports only point down, and every module has its place: an unknown one fails."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "compiler": "intformer",
    "relay_ops": "intformer.relay_ops",
    "schedules": "intformer.schedules",
    "tuning_logs": "intformer.tuning_logs",
}
# Lowest first. A name covers the modules below it; the longest name that fits decides.
LAYERS = [
    (
        "errors",
        "ir.constants",
        "knobs",
        "runtime.texts",
        "scratch",
        "proof.finding",
        "relay_ops.fixedpoint",
        "backends.cuda.kernel",
        "link.elf",
    ),
    ("relay_ops",),
    ("schedules", "tuning_logs"),
    ("ir.heads", "ir.model", "ir.plan", "passes.packing", "runtime"),
    ("integrations", "serve"),
    ("passes.memory", "proof.inputs", "proof.tir_check"),
    ("progress", "ir"),
    ("offline",),
    ("backends",),
    ("ship",),
    ("link",),
    ("quantize",),
    ("frontend", "measure.float_model", "measure.op_errors"),
    ("qat",),
    ("passes",),
    ("tuning.records", "tuning.workload"),
    ("pipeline",),
    ("tuning",),
    ("proof",),
    ("measure.prediction",),
    ("measure.roofline",),
    ("measure",),
    ("qat.metrics", "qat.tasks", "qat.fine_tuned", "qat.settings", "qat.run_files", "qat.curve"),
    ("qat.trainer",),
    ("qat.stages",),
    ("qat.training",),
    ("analysis",),
    ("cli",),
    ("__main__",),
]
# Ops and schedules meet through block names and annotations alone; a kernel written by hand takes
# the constants of its op.
APART = {"intformer.schedules": "intformer.relay_ops", "intformer.relay_ops": "intformer.schedules"}
WRITTEN = "intformer.schedules.kernels"
FACADE = "intformer"  # loads its names on first use, so it may stand in any layer


def layer(module):
    """Return the number of the layer a module belongs to, None where it has no place."""
    fits = [
        (len(name), i)
        for i, names in enumerate(LAYERS)
        for name in names
        if f"{module}.".startswith(f"intformer.{name}.")
    ]
    return max(fits)[1] if fits else None


def modules():
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            yield pytest.param(path, name, id=name)


KNOWN = {param.values[1] for param in modules()}


def imported(tree):
    """Yield every module of ours that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "intformer":
                yield name if name in KNOWN else name.rpartition(".")[0]


@pytest.mark.parametrize(("path", "module"), list(modules()))
def test_imports_point_down(path, module):
    if module == FACADE:
        return
    mine = layer(module)
    assert mine is not None, f"{module} has no place in LAYERS: give it one"
    for name in imported(ast.parse(path.read_text())):
        if name == FACADE:
            continue
        theirs = layer(name)
        assert theirs is not None, f"{module} imports {name}, which has no place in LAYERS"
        assert theirs <= mine, f"{module} imports {name} from a higher layer"
        for one, other in APART.items():
            if f"{module}.".startswith(f"{WRITTEN}.") and other == "intformer.relay_ops":
                continue
            assert not (module.startswith(one) and name.startswith(other)), (
                f"{module} imports {name}: ops and schedules meet through block names alone"
            )


def test_an_unknown_module_has_no_place():
    assert layer("intformer.brand_new") is None
    assert layer("intformer.relay_ops.brand_new") == layer("intformer.relay_ops")
    assert layer("intformer.relay_ops.fixedpoint") == layer("intformer.errors")


def test_every_layer_name_exists():
    """A name that no module has is a leftover."""
    for names in LAYERS:
        for name in names:
            full = f"intformer.{name}"
            assert any(f"{module}.".startswith(f"{full}.") for module in KNOWN), full
