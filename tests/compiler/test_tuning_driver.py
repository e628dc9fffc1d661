"""Tuning jobs: what they measure and refuse, going on after a kill, logs that compile, remote."""

import json
import os
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest

import intformer
from intformer.backends.targets import TARGETS
from intformer.cli import main
from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer.frontend.shapes import SHAPES
from intformer.tuning import records
from intformer.tuning.build import Builder
from intformer.tuning.driver import tune, version_for
from intformer.tuning.measure import Case
from intformer.tuning.remote import Remote
from intformer.tuning.runner import Runner
from intformer.tuning.tasks import Kernels, row_counts, tasks
from intformer.tuning.ways import ON_CPU
from intformer_testing import bad_builds, random_hf, rpc
from intformer_testing.kernels import MISSING

TARGET = "cascadelake" if not MISSING["cascadelake"] else "x86-64"
OTHER = "x86-64" if TARGET == "cascadelake" else "cascadelake"
TOKENS = (1, 20)
cloudpickle.register_pickle_by_value(bad_builds)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_hf.save(folder, "bert", "sequence-classification", hidden=64, ffn=96, labels=2)
    return folder


@pytest.fixture(scope="module")
def model(source):
    return import_model(source, calibrate=random_hf.sequences(seed=1), method="minmax")


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """Return (folder of the logs, report, lines of progress) of one small job."""
    out, lines = tmp_path_factory.mktemp("tuned"), []
    report = tune(
        model, target=TARGET, trials=28, out=out, tokens=TOKENS, timeout=900, progress=lines.append
    )
    return out, report, lines


def measured(out, target=TARGET):
    """Return every record of a job, as (form, rows, decisions)."""
    found = records.read_database(out / "measured" / target)
    return [(record.form, record.rows, record.decisions) for record in found]


def test_every_kernel_is_measured_and_races_against_the_default(tuned, model):
    out, report, lines = tuned
    every = tasks([model], TARGETS[TARGET], TOKENS)
    assert report.trials >= len(every) and report.failures == {}
    assert len(report.lines) == len(every)
    for line in report.lines:
        assert line.default > 0 and line.chosen > 0
        assert line.ratio == line.default / line.chosen
    found = measured(out)
    assert len(found) == len(set(found)), "a candidate was measured twice"
    assert any("trials" in line and "min left" in line and "timed out: 0" in line for line in lines)


def test_logs_say_where_they_come_from(tuned):
    out, _, _ = tuned
    (run,) = json.loads((out / TARGET / "provenance.json").read_text())["runs"]
    assert run.keys() >= {"tvm", "cpu", "cores", "date", "command", "threads"}
    assert records.check_provenance(out / TARGET) == []


def test_the_logs_compile_to_an_equal_library_that_says_so(tuned, model, tmp_path, capsys):
    out, _, _ = tuned
    library = intformer.compile(model, tmp_path / "m.so", target=TARGET, tuning_logs=out)
    report = intformer.verify(library)
    assert report.ok, report
    about = library.metadata["tuning"][TARGET]
    assert about["tuned"] == about["kernels"] == len(about["versions"])
    assert main(["inspect", str(tmp_path / "m.so")]) == 0
    assert f"{TARGET} tuned {about['tuned']}/{about['kernels']}" in capsys.readouterr().out


def test_without_logs_nothing_is_tuned(model, tmp_path):
    library = intformer.compile(model, tmp_path / "m.so", target=TARGET, tuning_logs="none")
    about = library.metadata["tuning"][TARGET]
    assert about["tuned"] == 0 and about["versions"] == {} and about["logs"] == "none"


def test_a_finished_job_measures_nothing_again(tuned, model):
    out, report, _ = tuned
    before, lines = measured(out), []
    again = tune(
        model, target=TARGET, trials=28, out=out, tokens=TOKENS, timeout=900, progress=lines.append
    )
    assert measured(out) == before and lines == []
    assert again.lines == report.lines
    (run,) = json.loads((out / TARGET / "provenance.json").read_text())["runs"]
    assert run["trials"] == report.trials


def test_pruned_logs_are_enough_to_go_on_from(tuned, model, tmp_path):
    out, _, _ = tuned
    logs = tmp_path / TARGET
    logs.mkdir()
    for name in (*records.FILES, records.PROVENANCE):
        (logs / name).write_bytes((out / TARGET / name).read_bytes())
    kept = records.read_database(logs)
    tune(model, target=TARGET, trials=len(kept), out=tmp_path, tokens=TOKENS, timeout=900)
    assert {r[:3] for r in measured(tmp_path)} == {(k.form, k.rows, k.decisions) for k in kept}


def test_a_killed_job_goes_on(source, tmp_path):
    command = [sys.executable, "-m", "intformer", "tune", str(source), "--target", TARGET]
    command += ["--tokens", "1,20", "--timeout", "900", "--out", str(tmp_path), "--trials"]
    file = tmp_path / "measured" / TARGET / "database_tuning_record.json"
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen([*command, "1000"], stdout=log, stderr=log, start_new_session=True)
        try:
            while not file.exists() or file.read_bytes().count(b"\n") < 12:
                assert job.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    before = file.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    file.write_bytes(kept + b'[0,[[[["GetSBl')  # as when killed while writing
    count = kept.count(b"\n")
    subprocess.run([*command, str(count + 4)], check=True, capture_output=True)
    assert file.read_bytes().startswith(kept)
    found = measured(tmp_path)
    assert len(found) == len(set(found)) >= count + 4
    assert records.read(tmp_path, TARGET).seconds


@pytest.mark.skipif(TARGET != "cascadelake", reason="this CPU lacks avx512vnni")
def test_a_kernel_that_computes_something_else_is_refused_and_counted(model, tmp_path):
    report = tune(
        model,
        target=TARGET,
        trials=36,
        out=tmp_path,
        tokens=(8,),
        timeout=900,  # the machine may be busy
        build=bad_builds.wrong_sums,
    )
    assert report.failures["wrong result"] > 0
    found = records.read_database(tmp_path / "measured" / TARGET)
    wrong = [r for r in found if r.seconds > records.FAILED]
    assert len(wrong) == sum(report.failures.values())
    assert all(dict(r.decisions)["tile"] != bad_builds.RIGHT_TILE for r in wrong)
    kept = {(r.form, r.rows, r.decisions) for r in records.read_database(tmp_path / TARGET)}
    assert kept and not kept & {(r.form, r.rows, r.decisions) for r in wrong}


def test_builds_that_hang_or_die_are_failures(model, tmp_path):
    task = tasks([model], TARGETS[TARGET], (1,))[0]
    wanted = [(task.form, task.rows, task.default)]
    builder = Builder(TARGET, tmp_path, 1, 1.0, bad_builds.endless)
    ((path, error),) = builder.libraries(wanted)
    assert path is None and error.startswith("timed out: not built within 1 s")
    ((path, error),) = Builder(TARGET, tmp_path, 1, 60, bad_builds.broken).libraries(wanted)
    assert path is None and error.startswith("not built")


def test_a_library_that_cannot_run_is_a_failure(model, tmp_path):
    task = tasks([model], TARGETS[TARGET], (1,))[0]
    case = tmp_path / "case.npz"
    task.kernels.case(task.kernel, task.rows).save(case)
    (tmp_path / "cut.so").write_bytes(b"\x7fELF")
    runner = Runner(lambda identity: case, 1, 60, None, ON_CPU)
    seconds, error = runner.measure(str(tmp_path / "cut.so"), task.identity)
    assert seconds is None and error.startswith("not run")


def test_cases_cover_the_range_and_survive_a_file(model, tmp_path):
    kernels = Kernels(model, TARGETS[TARGET])
    for kernel in kernels.kernels:
        for rows in row_counts(kernel.form, (1, 20, 150)):
            case = kernels.case(kernel, rows)
            case.save(tmp_path / "case.npz")
            again = Case.load(tmp_path / "case.npz")
            for a, b in zip(case.arguments, again.arguments, strict=True):
                np.testing.assert_array_equal(a, b)
            assert again.constants == case.constants
            assert again.expected.keys() == case.expected.keys()
            again.check({i: case.expected[i] for i in again.expected})
            index, want = next(iter(case.expected.items()))
            changed = want.copy()
            changed[-1, 0] ^= 1
            with pytest.raises(ValueError, match="wrong result"):
                again.check({**case.expected, index: changed})
            if kernel.form.name == "dense" and want.dtype != np.int32 and rows > 1:
                assert len(np.unique(want[:, 0])) > 2  # not all of it is clamped


def test_one_task_for_kernels_that_layers_share(model):
    every = tasks([model, model], TARGETS[TARGET], (1, 7, 8, 20, 300))
    assert len({task.identity for task in every}) == len(every)
    tokens = {task.rows for task in every if task.form.rows == "token"}
    assert tokens == {8, 20, 300}  # 1, 7 and 8 tokens are one block of rows
    assert {task.rows for task in every if task.form.rows == "sequence"} == {2}
    layers = [task for task in every if task.form.name == "dense_gelu" and task.rows == 8]
    assert [task.kernel.calls for task in layers] == [2]


def test_wrong_use_is_named(model, tmp_path):
    def fails(**options):
        with pytest.raises(IntformerError) as caught:
            tune(**{"target": TARGET, "trials": 1, "out": tmp_path, **options})
        return str(caught.value)

    assert "needs a model, or a shape" in fails()
    assert "no kernels of its own" in fails(source=model, target="x86-auto")
    assert "is not HOST:PORT" in fails(source=model, rpc="nowhere", rpc_key="k")
    assert "no key" in fails(source=model, rpc="127.0.0.1:9")
    assert "no machine with key 'k'" in fails(source=model, rpc="127.0.0.1:9", rpc_key="k")
    assert "shape 'nothing' is not known" in fails(shape="nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tracker():
    """A TVM RPC tracker with one server; its address."""
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado, which is not installed")
    with rpc.tracker(9190) as address, rpc.server(address, "loop", 9290):
        yield address


def test_measuring_on_a_remote_machine(model, tracker, tmp_path):
    report = tune(
        *(model,),
        target=TARGET,
        trials=12,
        out=tmp_path,
        tokens=(20,),
        timeout=900,
        rpc=tracker,
        rpc_key="loop",
    )
    assert report.trials >= 12 and report.failures == {} and report.lines
    (run,) = json.loads((tmp_path / TARGET / "provenance.json").read_text())["runs"]
    assert run["cpu"] == "behind RPC key 'loop'"
    with pytest.raises(IntformerError, match="no machine with key 'other'"):
        Remote.parse(tracker, "other").open(10)


def test_a_machine_that_goes_away_ends_the_job_in_one_line(model, tmp_path):
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado, which is not installed")
    about = {"target": TARGET, "trials": 99, "out": tmp_path, "tokens": (20,), "timeout": 15}
    with rpc.tracker(9190) as address, rpc.server(address, "loop", 9290) as go_away:

        def progress(line):
            if "min left" in line:
                go_away()

        with pytest.raises(IntformerError, match=r"no machine with key 'loop'.*--rpc") as caught:
            tune(model, **about, rpc=address, rpc_key="loop", progress=progress)
    assert "\n" not in str(caught.value)
    assert records.read_database(tmp_path / "measured" / TARGET)  # what was measured is kept


@pytest.mark.skipif(TARGET != "cascadelake", reason="this CPU lacks avx512vnni")
def test_a_wrong_kernel_is_refused_on_a_remote_machine(model, tracker, tmp_path):
    (task,) = (
        task for task in tasks([model], TARGETS[TARGET], (20,)) if task.form.title == "dense 64x192"
    )
    case = tmp_path / "case.npz"
    task.kernels.case(task.kernel, task.rows).save(case)
    builder = Builder(TARGET, tmp_path, 1, 120, bad_builds.wrong_sums)
    runner = Runner(lambda identity: case, 1, 60, Remote.parse(tracker, "loop"), ON_CPU)
    decisions = [task.default, {**task.default, "tile": 81}]
    (right, _), (wrong, _) = builder.libraries([(task.form, task.rows, d) for d in decisions])
    seconds, error = runner.measure(right.partition("#")[0], task.identity)
    assert error is None and min(seconds) > 0
    seconds, error = runner.measure(wrong.partition("#")[0], task.identity)
    assert seconds is None and error.startswith("wrong result")


def test_the_version_for_a_row_count():
    versions = [(4, {"a": 1}), (None, {"a": 2})]
    assert [version_for(versions, blocks)["a"] for blocks in (1, 4, 5, 512)] == [1, 1, 2, 2]


def test_shapes_of_the_committed_logs_are_known():
    assert {"bert-base", "bert-large", "minilm-l6", "distilbert"} <= SHAPES.keys()
