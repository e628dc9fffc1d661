"""The command line: every verb on a small model, as text and as JSON, and faults in one line."""

import functools
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import intformer
from intformer import cli
from intformer.cli import text, verify
from intformer.errors import IntformerError
from intformer.link import build as linker
from intformer.proof.finding import Finding
from intformer.proof.report import Check, Report
from intformer.runtime import edge
from intformer_testing import random_hf, small_tokenizer
from intformer_testing.small_tokenizer import SENTENCES

DATA = Path(__file__).parents[1] / "data"
SHAPE = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 48, "labels": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A classifier with two labels and a tokenizer."""
    path = tmp_path_factory.mktemp("source")
    random_hf.save(path, "bert", "sequence-classification", **SHAPE)
    small_tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def library(source, tmp_path_factory):
    """The classifier, compiled by the verb itself."""
    path = tmp_path_factory.mktemp("library") / "small.so"
    options = ["--calibrate", str(DATA / "sentences.txt"), "--method", "minmax"]
    options += ["--target", "x86-64", "--dump-ir", str(path.parent / "ir"), "--header"]
    assert cli.main(["compile", str(source), "-o", str(path), *options]) == 0
    return path


@pytest.fixture
def call(capsys):
    """Return a function that runs a verb: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def data(call):
    """Return a function that runs a verb with --json and returns what it printed."""

    def run(*arguments):
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


# ---- verbs ----


def test_compile_writes_every_phase(library):
    phases = sorted(path.name for path in (library.parent / "ir").iterdir())
    assert [name[0] for name in phases] == ["0", "1", "2", "3", "4", "5"]
    beside = sorted(path.name for path in library.parent.iterdir())
    assert beside == ["intformer.h", "intformer.hpp", "intformer_open.c", "ir", "small.so"]


def test_run_from_arguments_files_and_stdin(library, call, data, tmp_path, monkeypatch):
    texts = SENTENCES[:3]
    code, out, _ = call("run", library, *(x for text in texts for x in ("--text", text)))
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()] == texts
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    assert call("run", library, "--file", file)[1] == out
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert call("run", library)[1] == out
    answers = data("run", library, "--file", file)
    assert [answer["texts"] for answer in answers] == [[text] for text in texts]
    assert {*answers[0]["answer"]} == {"label", "score", "scores"}
    assert sum(answers[0]["answer"]["scores"].values()) == pytest.approx(1)


def test_run_answers_while_it_reads(library, monkeypatch):
    lines = itertools.count()
    endless = SimpleNamespace(buffer=(b"text %d\n" % number for number in lines))
    monkeypatch.setattr(sys, "stdin", endless)
    args = cli.parser().parse_args(["run", str(library)])
    _, answers = args.verb(args)
    assert [next(answers).split("\t")[1] for _ in range(3)] == ["text 0", "text 1", "text 2"]
    answers.close()
    assert next(lines) < 10_000


def test_run_reads_a_text_per_line_feed(library, data, tmp_path):
    texts = ["one\u2028two\x85three", "four"]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    assert [answer["texts"] for answer in data("run", library, "--file", file)] == [
        [text] for text in texts
    ]


@pytest.mark.parametrize(
    ("head", "given", "wanted"),
    [
        ("masked-lm", [], {}),
        ("masked-lm", ["--top-k", "2"], {"top_k": 2}),
        ("sparse-embedding", [], {}),
        ("sparse-embedding", ["--top-k", "2"], {"top_k": 2}),
        ("token-classification", [], {}),
    ],
)
def test_run_hands_top_k_on(monkeypatch, head, given, wanted):
    handed = {}
    model = SimpleNamespace(metadata={"head": head})
    monkeypatch.setattr("intformer.runtime.load", lambda path: model)

    @functools.wraps(edge.predict)  # whose parameters are the verb's options
    def predict(library, texts, pairs, batch_tokens, **options):
        handed.update(options)
        return [[]]

    monkeypatch.setattr(edge, "predict", predict)
    assert cli.main(["run", "x.so", "--text", "a", *given]) == 0
    assert handed == wanted


def test_run_refuses_top_k_of_other_heads(library, call):
    code, _, err = call("run", library, "--text", "a", "--top-k", "2")
    assert (code, err.count("\n")) == (1, 1)
    assert "head sequence-classification takes no top_k" in err


def test_run_prints_answers_as_they_come(monkeypatch, capsys):
    """What was answered before a bad text is there, and no list of all answers is made."""
    monkeypatch.setattr("intformer.runtime.load", lambda path: SimpleNamespace(metadata={}))
    seen = []

    @functools.wraps(edge.predict)
    def predict(library, texts, pairs, batch_tokens, **options):
        for one in texts:
            seen.append(capsys.readouterr().out)
            if one == "b":
                raise IntformerError("no answer")
            yield {"label": one, "score": 1.0}

    monkeypatch.setattr(edge, "predict", predict)
    assert cli.main(["run", "x.so", "--text", "a", "--text", "b"]) == 1
    assert seen == ["", "a 1.0000\ta\n"]
    assert capsys.readouterr().err == "error: no answer\n"


def test_run_takes_pairs(library, call, data, tmp_path):
    first, second = SENTENCES[:2]
    (by_option,) = data("run", library, "--text", first, "--pair", second)
    file = tmp_path / "pairs.tsv"
    file.write_text(f"{first}\t{second}\n")
    assert data("run", library, "--file", file) == [by_option]
    file.write_text(f"{first}\t{second}\n{first}\n")
    code, _, err = call("run", library, "--file", file)
    assert (code, err.count("\n")) == (1, 1)
    assert "some lines have a tab" in err


def labelled(tmp_path, rows=24):
    """A file of labelled sentences."""
    path = tmp_path / "sst2.tsv"
    lines = [f"{i}\t{i % 2}\t{text}" for i, text in enumerate(SENTENCES[:rows])]
    path.write_text("\n".join(["idx\tlabel\tsentence", *lines]) + "\n")
    return path


def test_eval_shows_both_models(library, source, call, data, tmp_path):
    file = labelled(tmp_path)
    found = data("eval", library, "--task", "sst2", "--data", file, "--source", source)
    assert found["rows"] == 24
    assert 0 <= found["integer"]["accuracy"] <= 1
    assert found["changed"] <= 2  # random weights: logits lie close together
    disagree = abs(found["integer"]["accuracy"] - found["float"]["accuracy"])
    assert disagree <= found["changed"] / 24 + 1e-9
    code, out, _ = call("eval", library, "--task", "sst2", "--data", file, "--limit", 5)
    assert code == 0
    assert "sst2: 5 rows" in out
    assert "FP32" not in out


def test_verify_verb(library, source, call, data, tmp_path):
    found = data("verify", library, "--texts", DATA / "sentences.txt", "--limit", 4)
    assert found["ok"]
    assert [check["name"] for check in found["checks"]] == [
        *("loading", "C table", "tensor programs", "machine code", "tensors"),
        *("results", "defaults", "results"),
    ]
    calibrate = DATA / "sentences.txt"
    code, out, _ = call("verify", library, "--source", source, "--calibrate", calibrate)
    assert (code, out.splitlines()[-1]) == (0, "verified")
    other = tmp_path / "other"
    shutil.copytree(source, other)
    random_hf.save(other, "bert", "sequence-classification", seed=1, **SHAPE)
    code, out, _ = call("verify", library, "--source", other, "--calibrate", calibrate)
    assert (code, out.splitlines()[-1]) == (1, "NOT verified")
    assert "FAIL  source" in out


def test_verify_without_running(library, call, data):
    code, out, _ = call("verify", library, "--no-run")
    assert code == 0
    assert "----  results: not run, as asked" in out
    assert out.splitlines()[-1] == "verified, except results and defaults"
    checks = data("verify", library, "--no-run")["checks"]
    assert {c["name"] for c in checks if not c["ran"]} == {"results", "defaults"}


def test_the_verdict_names_what_did_not_run():
    ok, wrong = Check("tensors", "8"), Check("tensors", "8", [Finding("a", "b")])
    refused = Check("results", "not run", [Finding("t4", "no GPU")], ran=False)
    left_out = Check("results", "not run, as asked", ran=False)
    for checks, line in (
        ([ok], "verified"),
        ([ok, left_out], "verified, except results"),
        ([ok, refused], "NOT verified: results did not run here - --no-run leaves them out"),
        ([wrong, refused], "NOT verified"),
        ([wrong], "NOT verified"),
    ):
        assert verify.verified_line(Report("a.so", checks)) == line


def test_bench_races_and_verifies(library, source, call, data):
    options = ["--source", source, "--tokens", "8", "--seconds", "1"]
    found = data("bench", library, *options)
    assert [row["name"] for row in found["rows"]] == ["small, native, x86-64", "PyTorch FP32"]
    assert found["rows"][0]["ratio"] == 1
    assert found["verified"] is True
    assert sum(op["share"] for op in found["ops"]) == pytest.approx(1)
    assert any(op["gops"] for op in found["ops"])
    assert {"cpu", "isa", "threads", "torch", "command"} <= found["machine"].keys()
    code, out, _ = call("bench", library, *options, "--data", DATA / "sentences.txt", "--limit", 9)
    assert code == 0
    for way in ("padded", "sorted into buckets of 4", "sorted into buckets of 8", "one by one"):
        assert f"PyTorch FP32, {way}" in out
    assert "raced libraries: verified" in out


def test_bench_tells_libraries_apart(library, source, call, data, tmp_path):
    """Two files of one name, recipe and target; the rival is verified too."""
    rival = tmp_path / "small.so"
    shutil.copy(library, rival)
    options = ["--against", rival, "--tokens", "8", "--seconds", "1"]
    found = data("bench", library, *options)
    assert [row["name"] for row in found["rows"]] == [
        f"small, native, x86-64 ({library})",
        f"small, native, x86-64 ({rival})",
    ]
    assert found["verified"] is True
    assert found["unverified"] == []


def test_inspect_tells_scales_and_origins(library, call, data):
    found = data("inspect", library)
    assert found["metadata"]["target"] == "x86-64"
    assert found["bytes"] == library.stat().st_size
    assert found["ops"]["matmul"] == 6
    assert found["state_bytes"]["token"] > found["state_bytes"]["sequence"] > 0
    assert all(value["origin"] for value in found["values"].values())
    code, out, _ = call("inspect", library, "--values")
    assert code == 0
    assert "origin of the scale" in out
    assert f"state: {found['state_bytes']['token']} bytes per token" in out
    assert "calibration: " in out


def test_targets_say_what_cannot_be_built(data, monkeypatch):
    monkeypatch.setattr(linker.shutil, "which", lambda name: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(linker, "installed", lambda name: name != "capstone")
    found = {name: about["missing_to_build"] for name, about in data("targets").items()}
    assert found["x86-64"] == ["a C compiler for it"]
    assert found["aarch64"] == ["capstone", "a C compiler for it"]


def test_targets_and_ops(call, data):
    assert data("targets").keys() == intformer.TARGETS.keys()
    assert "x86-64" in call("targets")[1]
    assert all(about["missing_to_build"] == [] for about in data("targets").values())
    found = data("ops")
    assert found["ok"]
    assert {row["recipe"] for row in found["rows"]} >= {"native", "ibert"}
    assert "FAIL" not in call("ops")[1]


# ---- faults ----


def fault(call, *arguments):
    """Run a verb that must fail in one line; return the line."""
    code, out, err = call(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_library_that_is_none(call, tmp_path):
    file = tmp_path / "a.so"
    for verb in (["run", "--text", "a"], ["verify"], ["inspect"]):
        assert "No such file" in fault(call, verb[0], file, *verb[1:])
    file.write_bytes(b"hello")
    assert "not an intformer library" in fault(call, "inspect", file)


def test_library_that_was_cut(call, library, tmp_path):
    file = tmp_path / "cut.so"
    file.write_bytes(library.read_bytes()[:5000])
    assert "cut short" in fault(call, "run", file, "--text", "a")


def broken(source, tmp_path, change):
    """A copy of the model directory with something done to it."""
    path = tmp_path / "broken"
    shutil.copytree(source, path)
    change(path)
    return path


def set_config(**changes):
    def change(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def set_weight(change_tensor):
    def change(path):
        from safetensors.numpy import load_file, save_file

        file = path / "model.safetensors"
        tensors = load_file(file)
        name = "bert.encoder.layer.0.attention.self.key.weight"
        change_tensor(tensors, name)
        save_file(tensors, file, metadata={"format": "pt"})

    return change


def nan(tensors, name):
    tensors[name] = np.full_like(tensors[name], np.nan)


def remove(tensors, name):
    del tensors[name]


def truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json"),
        (set_config(model_type="gpt2"), "model_type"),
        (set_config(is_decoder=True), "is_decoder"),
        (set_config(position_embedding_type="relative_key"), "position_embedding_type"),
        (set_config(hidden_act="mish"), "hidden_act"),
        (truncate, "model.safetensors"),
        (set_weight(nan), "key.weight"),
        (set_weight(remove), "key.weight"),
    ],
    ids=[
        *("no config", "config no JSON", "family", "decoder", "relative", "activation"),
        *("cut weights", "NaN", "missing weight"),
    ],
)
def test_faulty_checkpoints_are_refused(call, source, tmp_path, change, message):
    path, output = broken(source, tmp_path, change), tmp_path / "out" / "a.so"
    line = fault(call, "compile", path, "-o", output, "--calibrate", DATA / "sentences.txt")
    assert message in line
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_calibration_that_is_missing_or_empty(call, source, tmp_path):
    output, empty = tmp_path / "a.so", tmp_path / "empty.txt"
    assert "--calibrate FILE" in fault(call, "compile", source, "-o", output)
    empty.write_text("\n\n")
    assert "empty" in fault(call, "compile", source, "-o", output, "--calibrate", empty)
    missing = fault(call, "compile", source, "-o", output, "--calibrate", tmp_path / "none.txt")
    assert "none.txt" in missing
    assert not output.exists()


def test_no_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "parser", lambda: FullMemory())
    assert cli.main([]) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory - ")


class FullMemory:
    """A parser whose verb needs more than there is."""

    json = False

    def parse_args(self, argv):
        return self

    def verb(self, args):
        bytearray(1 << 62)


def test_no_c_compiler(call, source, tmp_path, monkeypatch):
    from intformer.link import build as library

    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    output = tmp_path / "a.so"
    options = ("--calibrate", DATA / "sentences.txt", "--method", "minmax", "--target", "x86-64")
    line = fault(call, "compile", source, "-o", output, *options)
    assert "no C compiler" in line
    assert "ziglang" in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_target(call, source, tmp_path):
    options = ("--calibrate", DATA / "sentences.txt", "--method", "minmax", "--target", "z80")
    assert "target 'z80' is unknown" in fault(
        call, "compile", source, "-o", tmp_path / "a.so", *options
    )


def test_unknown_task(call, library, tmp_path):
    file = labelled(tmp_path)
    assert "one of sst2" in fault(call, "eval", library, "--task", "x", "--data", file)
    assert "cannot answer task 'mnli'" in fault(
        call, "eval", library, "--task", "mnli", "--data", file
    )


def test_no_texts(call, library, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n")
    assert "no texts" in fault(call, "run", library, "--file", file)
    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in fault(call, "run", library, "--file", file)
    assert "none.txt" in fault(call, "run", library, "--file", tmp_path / "none.txt")


def test_faults_are_json_too(call, tmp_path):
    code, out, err = call("inspect", tmp_path / "none.so", "--json")
    assert code == 1
    about = json.loads(out)["error"]
    assert about.keys() == {"what", "where", "hint"}
    assert about["where"].endswith("none.so")
    assert err.startswith("error: ")


def test_debug_shows_the_traceback(call, tmp_path, monkeypatch):
    monkeypatch.setenv("INTFORMER_DEBUG", "1")
    _, _, err = call("inspect", tmp_path / "none.so")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_a_flag_that_is_no_number(call, library, monkeypatch):
    monkeypatch.setenv("INTFORMER_THREADS", "many")
    assert "INTFORMER_THREADS='many'" in fault(call, "run", library, "--text", "a")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["compile"],
        ["compile", "src", "-o", "."],
        ["compile", "src", "-o", "a.so", "--recipe", "x"],
        ["eval", "a.so"],
        ["run", "a.so", "--batch-tokens", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: intformer" in capsys.readouterr().err


def test_our_own_bugs_are_not_hidden():
    with pytest.raises(ModuleNotFoundError):
        cli.as_fault(ModuleNotFoundError("no", name="intformer.nothing"))


def test_installed_command():
    command = Path(sys.executable).parent / "intformer"
    if not command.exists():
        pytest.skip("the package is not installed here")
    for program in ([str(command)], [sys.executable, "-m", "intformer"]):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout == f"intformer {intformer.__version__}\n"


def test_calibration_in_a_line():
    assert text.calibration_lines({"calibration": {}}) == []
    kinds = {"short": 20.5, "ordinary": 31.5, "longest": 25.0}
    chosen = {"method": "mse", "held_out_snr_db": {"mse": kinds, "ema": {"ordinary": 30.0}}}
    seen = {"sequences": 12, "tokens": 345}
    shown = {**chosen, **seen, "lengths": [3, 28, 64], "token_types": [0, 1]}
    assert text.calibration_lines({"calibration": {**shown, "held_out_sequences": 2}}) == [
        "calibrated by mse on 12 sequences (345 tokens, 3 to 64 in a sequence, median 28, token "
        "types 0 and 1): 31.5 dB on 2 held-out sequences, 20.5 dB on short text, 25.0 dB on "
        "longest text"
    ]
    shown |= {"held_out_snr_db": {}, "held_out_sequences": 0, "token_types": [0]}
    assert text.calibration_lines({"calibration": shown}) == [
        "calibrated by mse on 12 sequences (345 tokens, 3 to 64 in a sequence, median 28, token "
        "types 0): not measured, nothing was held out"
    ]
    # what an I-BERT checkpoint has: no method to choose
    assert text.calibration_lines({"calibration": {**seen, "least attention mass": {}}}) == [
        "calibrated on 12 sequences (345 tokens)"
    ]


def test_tables_align_numbers_to_the_right():
    assert text.table(["a", "bb"], [["x", 1], ["yy", 10]]) == ["a   bb", "x    1", "yy  10"]
