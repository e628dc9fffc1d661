"""verify passes a sound library, and catches each fault we know how to put into one."""

import dataclasses
import json
import lzma
import re

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from intformer import frontend, pipeline, runtime
from intformer.errors import CompileError, IntformerError
from intformer.frontend import import_model
from intformer.ir.model import IntModel
from intformer.passes.unread_rows import drop_unread_rows
from intformer.proof import inputs, programs, results, tir_check
from intformer.proof.finding import Finding
from intformer.proof.source import check_source
from intformer.proof.verify import verify
from intformer.relay_ops import OPS
from intformer.runtime import footer
from intformer_testing import random_hf, small_tokenizer

SHAPE = {"hidden": 32, "heads": 2, "layers": 1, "ffn": 48, "labels": 3, "activation": "relu"}
CALIBRATION = (7, 12, 30, 3) * 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random BERT classifier with one layer and ReLU."""
    path = tmp_path_factory.mktemp("bert")
    random_hf.save(path, "bert", "sequence-classification", **SHAPE)
    return path


def imported(source, **options):
    ids = random_hf.sequences(CALIBRATION, seed=1)
    return import_model(source, calibrate=ids, method="minmax", **options)


@pytest.fixture(scope="module")
def model(source):
    return imported(source)


@pytest.fixture(scope="module", params=["x86-64", "x86-auto"])
def library(request, model, tmp_path_factory):
    """The sound library: one variant that every CPU runs, and all variants."""
    path = tmp_path_factory.mktemp(request.param) / "sound.so"
    return pipeline.compile(model, path, target=request.param)


@pytest.fixture
def sabotaged(monkeypatch, model, tmp_path):
    """Return a function that compiles the model with something done to what an op computes."""

    def compile_with(op, change):
        from tvm import te

        define = OPS[op].define

        def changed(args, attrs):
            *before, last = define(args, attrs)
            shape = last.shape
            return [*before, te.compute(shape, lambda i, r, c: change(last[i, r, c], c), "changed")]

        monkeypatch.setitem(OPS, op, dataclasses.replace(OPS[op], define=changed))
        return pipeline.compile(model, tmp_path / "evil.so", target="x86-64")

    return compile_with


@pytest.fixture
def unchecked(monkeypatch):
    """Let the compiler's own check pass everything, so that verify is alone."""
    monkeypatch.setattr(pipeline, "check_integers", lambda module, spec: None)


def failed(report):
    """Return {check name: findings} of the checks that failed."""
    assert report.ok == all(check.ok for check in report.checks)
    return {check.name: check.findings for check in report.checks if not check.ok}


def test_a_sound_library_passes(library, source):
    report = verify(library)
    assert report.ok, report
    assert [check.name for check in report.checks] == [
        *("loading", "C table", "tensor programs", "machine code", "tensors"),
        *("results", "defaults"),
    ]
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    longest = library.metadata["max_length"]
    lengths = [np.diff(b["cu_seqlens"]) for b in inputs.random_batches(library.metadata, 2, 0)]
    for wanted in (1, 2, 3, 5, longest):
        assert wanted in np.concatenate(lengths)


def through_float(x, c):
    return (x.astype("float32") * tirx.const(1.0, "float32")).astype("int32")


def shifted(x, c):
    return x + (tirx.const(1, "int32") << (x & 7))


def divided(x, c):
    return x + tirx.truncdiv(x, (x & 7) + 1)


def off_by_one(x, c):
    return x + tirx.if_then_else(c == 5, tirx.const(1, x.dtype), tirx.const(0, x.dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (through_float, {"tensor programs": "float type", "machine code": "conversion: cvt"}),
        (
            shifted,
            {
                "tensor programs": "vector shift by a variable",
                "machine code": "float conversion: cvttps2dq",
            },
        ),
        (divided, {"tensor programs": "division by a variable"}),
    ],
)
def test_forbidden_work_is_caught(sabotaged, unchecked, change, words):
    found = failed(verify(sabotaged("relu", change)))
    for check, word in words.items():
        assert any(word in finding.what for finding in found[check]), found
        assert "dense_relu" in found[check][0].where


@pytest.mark.parametrize("change", [through_float, shifted, divided])
def test_the_compiler_refuses_forbidden_work_itself(sabotaged, change, tmp_path):
    with pytest.raises(CompileError, match="not integer-only"):
        sabotaged("relu", change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("via", [None, "nice -n 1"])
def test_an_off_by_one_in_a_kernel_is_caught(sabotaged, via):
    found = failed(verify(sabotaged("requantize", off_by_one), via=via))
    assert list(found) == ["results", "defaults"]
    (finding,) = found["results"]
    assert finding.where.startswith("requantize -> ")
    got, want = re.search(r", 5\] is (-?\d+), reference (-?\d+);", finding.what).groups()
    assert int(got) == int(want) + 1


@pytest.mark.parametrize(
    ("carried", "words"),
    [
        (lambda module: pipeline.compress(tvm.IRModule({})), "has no tensor program"),
        (
            lambda module: pipeline.compress(
                tvm.IRModule({"other": next(iter(module.functions.values()))})
            ),
            "has no tensor program",
        ),
        (
            lambda module: pipeline.compress(
                tvm.IRModule({**dict(module.functions.items()), "more": extra_program()})
            ),
            "is not a kernel",
        ),
        (lambda module: b"", "cannot be read"),
        (lambda module: b"no xz", "cannot be read"),
        (lambda module: lzma.compress(b"{}"), "cannot be read"),
        (lambda module: pipeline.compress(extra_program()), "in place of an IRModule"),
    ],
    ids=["no kernel", "one kernel", "one more", "empty", "no xz", "no module", "a function"],
)
def test_tensor_programs_of_other_kernels_are_caught(library, monkeypatch, carried, words):
    section, others = "tir/x86-64.json.xz", library.section
    other = carried(tir_check.load(library.section(section)))
    monkeypatch.setattr(library, "section", lambda name: other if name == section else others(name))
    check = programs.check_programs(library)
    assert any(words in finding.what for finding in check.findings), check


def extra_program():
    """A PrimFunc that no library runs."""
    a = te.placeholder((8,), "int32", "a")
    made = te.create_prim_func([a, te.compute((8,), lambda i: a[i] + 1, "b")])
    return made.with_attr("global_symbol", "extra")


def test_wrong_default_positions_are_caught(model, tmp_path, monkeypatch):
    """Positions given are right; those the library counts itself start one too late."""
    limits = pipeline.library.limits

    def shifted_limits(plan, meta):
        found = limits(plan, meta)
        return {**found, "first_position": found["first_position"] + 1}

    monkeypatch.setattr(pipeline.library, "limits", shifted_limits)
    report = verify(pipeline.compile(model, tmp_path / "a.so", target="x86-64"))
    found = failed(report)
    assert list(found) == ["defaults"]
    threads = max(2, runtime.load(tmp_path / "a.so").threads)
    assert [finding.where.split(", ")[1] for finding in found["defaults"]] == [
        *("threads: 1", f"threads: {threads}")
    ]


def test_a_result_that_depends_on_threads_is_caught(library, model, monkeypatch):
    before, run = library.threads, library.run
    monkeypatch.setattr(library, "run", lambda **inputs: run(**inputs) + (library.threads > 1))
    check = results.check_defaults(library, drop_unread_rows(model), 0)
    assert len(check.findings) == 1
    assert ", threads: " in check.findings[0].where
    assert library.threads == before


@pytest.mark.parametrize("wrong_run", [1, 3])
def test_a_later_run_without_an_observer_is_caught(library, model, monkeypatch, wrong_run):
    """On a GPU the second run of a size builds a graph, and the third finds it."""
    run, alone = library.run, []

    def wrong(**inputs):
        if "observer" not in inputs:
            alone.append(1)
        return run(**inputs) + ("observer" not in inputs and len(alone) == wrong_run)

    monkeypatch.setattr(library, "run", wrong)
    batch = inputs.random_batches(library.metadata, 1, seed=0)[0]
    model = drop_unread_rows(model)  # as the library computes it
    finding, _ = results.first_difference(library, model, batch, model.run(batch))
    assert finding and model.output in finding.where


def test_one_wrong_weight_is_caught(model, tmp_path, monkeypatch):
    """A weight that changes between the hash and the file."""
    build = pipeline.library.build
    name = next(n for n, t in model.tensors.items() if t.dtype == np.int8 and t.shape == (48, 32))

    def build_with_wrong_weight(plan, *args, **kwargs):
        constant = next(k for k, s in plan.packing.items() if s["tensor"] == name)
        wrong = plan.constants[constant].copy()
        wrong.flat[0] ^= 1
        plan.constants[constant] = wrong
        return build(plan, *args, **kwargs)

    monkeypatch.setattr(pipeline.library, "build", build_with_wrong_weight)
    found = failed(verify(pipeline.compile(model, tmp_path / "a.so", target="x86-64")))
    # the stored bias holds the weight's row sums, so it no longer fits its hash either
    assert {finding.where for finding in found["tensors"]} >= {name}
    assert all("SHA-256" in finding.what for finding in found["tensors"])


def test_a_wrong_number_in_padding_is_caught(model, tmp_path, monkeypatch):
    """Padding is no part of any tensor, so no hash sees it; packing again does."""
    build = pipeline.library.build
    padded = []

    def build_with_dirty_padding(plan, *args, **kwargs):
        for name, spec in plan.packing.items():
            if (
                spec["kind"] == "channels"
                and spec["width"] > model.tensors[spec["tensor"]].shape[-1]
            ):
                plan.constants[name] = plan.constants[name].copy()
                plan.constants[name].flat[-1] += 1
                padded.append(name)
                break
        return build(plan, *args, **kwargs)

    monkeypatch.setattr(pipeline.library, "build", build_with_dirty_padding)
    report = verify(pipeline.compile(model, tmp_path / "a.so", target="x86-64"))
    assert padded
    assert Finding(padded[0], "is not what packing its tensor gives") in failed(report)["tensors"]


def test_code_for_a_cpu_not_asked_for_is_caught(model, tmp_path, monkeypatch):
    """A library that would die of SIGILL where its metadata says it runs."""
    spec = pipeline.get("cascadelake")
    monkeypatch.setattr(pipeline, "get", lambda name: dataclasses.replace(spec, features=()))
    report = verify(pipeline.compile(model, tmp_path / "a.so"))
    assert any("AVX512" in finding.what for finding in failed(report)["machine code"])


def test_a_second_import_is_compared(library, source):
    ids = random_hf.sequences(CALIBRATION, seed=1)
    again = imported(source)
    model = IntModel.from_json(library.graph(), again.tensors, library.files())
    check = check_source(model, source, ids)
    assert check.ok, check.findings
    name = next(name for name, tensor in again.tensors.items() if tensor.dtype == np.int8)
    again.tensors[name] = again.tensors[name].copy()
    again.tensors[name].flat[3] ^= 1
    (finding,) = check_source(model, source, ids).findings
    assert finding.where == name
    assert ", source " in finding.what


def test_differences_of_a_library_calibrated_elsewhere_say_so(library, source):
    """Float sums depend on the CPU; a library that agrees all the same is verified."""
    ids = random_hf.sequences(CALIBRATION, seed=1)
    again = imported(source)
    model = IntModel.from_json(library.graph(), again.tensors, library.files())
    model.meta["calibration"]["computed_by"] = "torch 1.0, abacus"
    assert check_source(model, source, ids).ok
    model.tensors.pop(name := next(iter(model.tensors)))
    first, second = check_source(model, source, ids).findings
    assert (first.where, second.where) == ("calibration", name)
    assert "computed by torch 1.0, abacus, here by torch " in first.what


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda graph: graph["nodes"][-1].update(op="add"), "node "),
        (lambda graph: graph["nodes"][3]["attrs"].update(odd=1), "node 3"),
        (lambda graph: graph["nodes"].pop(), "node "),
        (lambda graph: graph["values"]["output"].update(scale=0.5), "value output"),
        (lambda graph: graph["values"]["output"].update(dtype="int16"), "value output"),
        (lambda graph: graph["values"]["output"].update(channels=2), "value output"),
        (lambda graph: graph["values"]["output"].update(rows="token"), "value output"),
        (lambda graph: graph.update(output="other"), "output"),
        (lambda graph: graph["meta"].update(output_scale=0.5), "meta output_scale"),
        (lambda graph: graph["meta"]["labels"].reverse(), "meta labels"),
        (lambda graph: graph["meta"].update(position_rule="padding"), "meta position_rule"),
        (lambda graph: graph["meta"].update(pad_token_id=3), "meta pad_token_id"),
        (lambda graph: graph["meta"].update(max_length=16), "meta max_length"),
    ],
)
def test_a_graph_that_is_not_the_source_s_is_caught(model, source, monkeypatch, change, where):
    monkeypatch.setattr(frontend, "import_model", lambda *args, **options: model)
    graph = json.loads(json.dumps(drop_unread_rows(model).to_json()))  # as a library has it
    sound = IntModel.from_json(graph, model.tensors, model.files)
    assert check_source(sound, source, None).ok
    changed = json.loads(json.dumps(graph))
    change(changed)
    other = IntModel.from_json(changed, model.tensors, model.files)
    (finding,) = check_source(other, source, None).findings
    assert finding.where.startswith(where)


def test_the_shipped_metadata_is_compared(library, model, source, monkeypatch):
    """Answers are made with metadata.json; graph.json alone may be right."""
    monkeypatch.setattr(frontend, "import_model", lambda *args, **options: model)
    monkeypatch.setitem(library.metadata, "output_scale", 7.0)
    report = verify(library, source, cases=1)
    assert [finding.where for finding in failed(report)["source"]] == ["meta output_scale"]


def test_what_this_machine_cannot_run_is_not_proved(library, monkeypatch):
    """As without the GPU that a library is for."""
    why = dict.fromkeys(library.variants, "no GPU here")
    monkeypatch.setattr(type(library), "refusals", lambda self: why)
    monkeypatch.setattr(type(library), "variant", None)
    report = verify(library)
    assert not report.ok
    refused = [Finding(name, "no GPU here") for name in library.variants]
    assert failed(report) == {"results": refused, "defaults": refused}
    ran = {check["name"]: check["ran"] for check in report.to_json()["checks"]}
    assert [name for name in ran if not ran[name]] == ["results", "defaults"]


def test_reading_alone_says_that_nothing_ran(library, monkeypatch):
    monkeypatch.setattr(type(library), "run", None)
    report = verify(library, run=False, texts=[("a", "b")])
    assert report.ok
    unrun = [(check.name, check.detail) for check in report.checks if not check.ran]
    assert unrun == [("results", "not run, as asked"), ("defaults", "not run, as asked")]


def test_real_texts_of_a_masked_lm_may_fill_the_limit(tmp_path):
    source = tmp_path / "bert"
    random_hf.save(source, "bert", "masked-lm", **SHAPE)
    small_tokenizer.save(source)
    model = imported(source)
    made = pipeline.compile(model, tmp_path / "a.so", target="x86-64")
    texts = [(" ".join(["the"] * 200),), ("the",)]
    (batch,) = inputs.real_batches(made, texts)
    assert np.diff(batch["cu_seqlens"]).tolist() == [made.metadata["max_length"], 3]
    assert len(batch["positions"]) == 2
    check = results.check_results(made, drop_unread_rows(model), [batch], "real")
    assert check.ok, check


def test_a_damaged_library_is_refused(library, tmp_path):
    path = tmp_path / "cut.so"
    path.write_bytes(library.path.read_bytes()[: -footer.SIZE - 8])
    with pytest.raises(IntformerError, match="cut short"):
        verify(path)
