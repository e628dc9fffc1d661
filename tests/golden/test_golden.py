"""Replay: programs and kernels are, bit for bit, those whose hashes are committed here.

A change that moves code must change no hash. One that changes numbers or kernels on purpose runs

    pytest tests/golden --update-golden

and commits the new hashes with the reason.
"""

import hashlib
import json
from pathlib import Path

import pytest

from intformer.backends.targets import TARGETS, chips
from intformer.passes.form import Form
from intformer.pipeline import arranged, lowered
from intformer_testing import golden_models

HERE = Path(__file__).parent
LOWERED = "native/bert/sequence-classification"  # whose kernels are hashed, for every target
DECIDED = (
    LOWERED,
    "native/bert/sentence-embedding",
    "native/bert/sentence-embedding by maximum",
    "native/bert/sentence-embedding by three poolings",
    "native/mpnet/features",
    "ibert/hf_compat/sequence-classification",
)
ALSO_DECIDED = {  # target -> more of them
    "cascadelake": ("native/deberta-v2/features",),
    "t4": ("native/deberta-v2/features",),
}
DECIDED_FOR = (
    *("sapphirerapids", "cascadelake", "avxvnni", "avx2", "x86-64", "t4"),
    *("aarch64-i8mm", "aarch64-dotprod", "riscv64-v"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("aarch64", "riscv64")),
)
DECIDED_KINDS = (
    *("add_layernorm", "attention", "attention_bias", "attention_ibert", "attention_relative"),
    *("dense", "embed", "mean_pool", "max_pool"),
    *("weighted_pool", "concat"),
)
WIDTHS = (16, 32, 64)  # of an attention head
CASES = golden_models.cases()


@pytest.fixture(scope="module")
def golden(request):
    """Return (file, key, found): compares with the committed hashes, or rewrites them."""
    update = request.config.getoption("--update-golden")
    changed = {}

    def compare(name, key, found):
        if update:
            changed.setdefault(name, {})[key] = found
            return
        wanted = json.loads((HERE / name).read_text()).get(key)
        assert found == wanted, f"{name}, {key}: did you forget to run with --update-golden?"

    yield compare
    for name, entries in changed.items():
        file = HERE / name
        kept = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(kept | entries, indent=1, sort_keys=True) + "\n")


def digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:32]


def program(model) -> str:
    """Hash nodes, values and every tensor; of the meta only what decides the output."""
    graph = model.to_json()
    graph["meta"] = {key: graph["meta"][key] for key in ("output_rows", "output_scale")}
    tensors = [
        part
        for name, array in sorted(model.tensors.items())
        for part in (f"{name} {array.dtype} {array.shape}".encode(), array.tobytes())
    ]
    return digest(json.dumps(graph, sort_keys=True).encode(), *tensors)


@pytest.mark.parametrize("case", CASES)
def test_programs(golden, tmp_path, case):
    golden("programs.json", case, program(CASES[case](tmp_path)))


def resized(form: Form) -> list[Form]:
    """Return the form, or of attention one form per width of a head."""
    call = form.data["calls"][0]
    if "head_dim" not in call["attrs"]:
        return [form]
    forms = []
    for width in WIDTHS:
        wide = {**call, "attrs": {**call["attrs"], "head_dim": width}}
        forms.append(Form.of(form.name, [wide], form.data["tensors"], form.data["results"]))
    return forms


def decisions(space: dict) -> list[dict]:
    """Return each candidate once, the others at their default, then the last ones together."""
    alone = [{name: value} for name, values in space.items() for value in values]
    return [*alone, {name: values[-1] for name, values in space.items()}]


on_every_chip = pytest.mark.parametrize(
    "target", [name for name, spec in TARGETS.items() if not spec.variants]
)


@on_every_chip
def test_scheduled_kernels(golden, tmp_path, target):
    (spec,) = chips(TARGETS[target])
    done = lowered(arranged(CASES[LOWERED](tmp_path), spec.backend), spec)
    kernels = {
        var.name_hint: digest(func.script().encode())
        for var, func in sorted(done.scheduled.functions.items(), key=lambda f: f[0].name_hint)
    }
    golden("kernels.json", target, kernels)


@pytest.mark.parametrize("target", DECIDED_FOR)
def test_decided_kernels(golden, tmp_path, target):
    """One kernel of each kind under decisions that no default takes, heads of several widths."""
    spec = TARGETS[target]
    forms = {}
    for number, case in enumerate((*DECIDED, *ALSO_DECIDED.get(target, ()))):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = lowered(arranged(CASES[case](folder), spec.backend), spec)
        for form in done.forms.values():
            if form.name in DECIDED_KINDS:
                forms.setdefault(form.name, form)
    found = {}
    for name, form in forms.items():
        *narrow, last = resized(form)
        versions = [(one, (None, {})) for one in narrow]
        versions += [(last, (None, one)) for one in decisions(last.space(spec))]
        functions = [one.scheduled(spec, [version])[0] for one, version in versions]
        found[name] = digest(*(function.script().encode() for function in functions))
    golden("decided.json", target, found)
