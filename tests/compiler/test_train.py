"""`intformer train` on tiny random models and tables: files, resuming, seeds, errors."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from intformer import cli
from intformer.errors import IntformerError
from intformer.frontend.checkpoint import Checkpoint
from intformer.qat import run_files, stages, tasks, trainer, training
from intformer.qat.settings import Settings
from intformer.qat.training import train
from intformer_testing.train_files import answers, table, words

SMALL = {
    "epochs": 2,
    "qat_epochs": 0,
    "batch": 8,
    "max_length": 24,
    "lr": 1e-3,
    "precision": "fp32",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tiny_encoder):
    return tiny_encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return table(tmp_path_factory.mktemp("data") / "train.tsv")


def test_it_trains_and_writes_everything(source, data, tmp_path):
    out = tmp_path / "made"
    result = train(source, data, out, Settings("sst2", **SMALL), data)
    assert sorted(p.name for p in out.iterdir()) == ["curve.png", "fp32", "metrics.json"]
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result))
    stage = result["stages"]["fp32"]
    assert stage["steps"] == 12  # 43 rows, 8 a step, twice
    assert len([e for e in stage["history"] if "eval_accuracy" in e]) == 4
    assert result["rows"] == {"train": 43, "held_out": 5, "dev": 48}
    config = json.loads((out / "fp32" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    # a run that is there is not made again
    before = (out / "metrics.json").stat().st_mtime_ns
    assert train(source, data, out, Settings("sst2", **SMALL), data)["stages"] == json.loads(
        json.dumps(result["stages"])
    )
    assert (out / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(IntformerError, match="a run with seed 0 is there, not 1"):
        train(source, data, out, Settings("sst2", **SMALL, seed=1), data)


def test_the_same_seed_gives_the_same_model(source, data, tmp_path):
    results = [
        train(source, data, tmp_path / name, Settings("sst2", **SMALL, seed=seed), data)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    losses = [[e["loss"] for e in r["stages"]["fp32"]["history"] if "loss" in e] for r in results]
    assert losses[0] == losses[1] != losses[2]
    weights = [(tmp_path / n / "fp32" / "model.safetensors").read_bytes() for n in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_the_saved_model_scores_what_was_said(source, data, tmp_path):
    """FP32 by transformers alone, from the saved directory."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    result = train(source, data, tmp_path / "a", Settings("sst2", **SMALL), data)
    folder = tmp_path / "a" / "fp32"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(24)
    rows = tasks.read(data, "sst2")
    with torch.inference_mode():
        found = [
            int(model(torch.tensor([tokenizer.encode(text).ids])).logits.argmax())
            for (text,) in rows.texts
        ]
    assert result["stages"]["fp32"]["dev"]["accuracy"] == np.mean(np.array(found) == rows.targets)


def command(source, data, out, *more):
    small = [
        f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "epochs": 40}.items()
    ]
    base = ["train", str(source), "--task", "sst2", "--train", str(data), "--dev", str(data)]
    return [*base, "-o", str(out), *small, "--patience", "1000", *more]


def test_it_goes_on_after_a_kill(source, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(command(source, data, whole)) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "intformer", *command(source, data, killed)], env=environment
    )
    folder = killed / "checkpoints" / "fp32"
    try:
        for _ in range(1200):
            seen = sorted(folder.glob("checkpoint-*/trainer_state.json"))
            if seen or child.poll() is not None:
                break
            time.sleep(0.05)
        assert child.poll() is None, "ended before it could be killed"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (killed / "metrics.json").exists()
    assert not (killed / "fp32").exists()
    last = run_files.last_checkpoint(folder)
    assert last is not None
    steps = int(last.name.split("-")[1])
    # what a kill can leave: a checkpoint without its last file
    (folder / f"checkpoint-{steps + 1}").mkdir()
    assert cli.main(command(source, data, killed)) == 0
    results = [json.loads((p / "metrics.json").read_text())["stages"] for p in (whole, killed)]
    scores = [
        [(e["step"], e.get("loss"), e.get("eval_accuracy")) for e in r["fp32"]["history"]]
        for r in results
    ]
    assert steps < 240 == scores[0][-1][0]
    assert scores[0][:-1] == scores[1][:-1]  # the last entry has the seconds
    weights = [(p / "fp32" / "model.safetensors").read_bytes() for p in (whole, killed)]
    assert weights[0] == weights[1]


def ended(monkeypatch, method, after, *asked):
    """Train until a method of Tuner is called for the time `after`, which ends the run."""
    was, calls = getattr(trainer.Tuner, method), []

    def ends(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == after:
            raise KeyboardInterrupt
        return was(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Tuner, method, ends)
        with pytest.raises(KeyboardInterrupt):
            train(*asked)


def same_run(first, second, stage="fp32"):
    """Losses, norms of gradients and scores of every step, and the weights, are the same."""
    histories = [
        json.loads((p / "metrics.json").read_text())["stages"][stage]["history"][:-1]  # has seconds
        for p in (first, second)
    ]
    weights = [(p / stage / "model.safetensors").read_bytes() for p in (first, second)]
    return histories[0] == histories[1] and weights[0] == weights[1]


def test_it_goes_on_within_an_epoch(source, data, tmp_path, monkeypatch):
    whole, end = tmp_path / "whole", tmp_path / "end"
    settings = Settings("sst2", **SMALL)
    train(source, data, whole, settings, data)
    ended(monkeypatch, "compute_loss", 11, source, data, end, settings, data)
    last = run_files.last_checkpoint(end / "checkpoints" / "fp32")
    assert last.name == "checkpoint-9"  # an epoch has 6 steps
    train(source, data, end, settings, data)
    assert same_run(whole, end)


def test_it_goes_on_where_dev_was_scored(source, data, tmp_path, monkeypatch):
    """From another working directory, and without training again."""

    def dies(what):
        if what == "fp32: scoring dev":
            raise KeyboardInterrupt

    whole, end = tmp_path / "whole", tmp_path / "end"
    settings = Settings("sst2", **SMALL)
    train(source, data, whole, settings, data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(source, data, "end", settings, data, dies)
    monkeypatch.chdir(source)
    monkeypatch.setattr(trainer.Tuner, "compute_loss", None)
    train(source, data, end, settings, data)
    assert same_run(whole, end)


def test_what_patience_ended_stays_ended(source, data, tmp_path, monkeypatch):
    """Killed between the last checkpoint and the end of the stage: later steps would be better."""

    def evaluate(self, *args, **kwargs):
        score = {3: 0.5, 6: 0.4}.get(self.state.global_step, 0.9)
        self.held_out.score = lambda rows: ({"accuracy": score}, [])
        return was(self, *args, **kwargs)

    was = trainer.Tuner.evaluate
    monkeypatch.setattr(trainer.Tuner, "evaluate", evaluate)
    whole, end = tmp_path / "whole", tmp_path / "end"
    settings = Settings("sst2", **SMALL, patience=1)
    assert train(source, data, whole, settings, data)["stages"]["fp32"]["steps"] == 6
    ended(monkeypatch, "_finalize_training", 1, source, data, end, settings, data)
    assert train(source, data, end, settings, data)["stages"]["fp32"]["steps"] == 6
    assert same_run(whole, end)


def test_one_of_two_gpus_trains(source, data, tmp_path, monkeypatch):
    rows = tasks.read(data, "sst2")
    settings = Settings("sst2", **SMALL)
    run = stages.Run(Checkpoint(source), tmp_path, settings, rows, rows, None, print)
    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    arguments = run.arguments("fp32")
    assert (arguments.device, arguments.n_gpu) == (torch.device("cuda:0"), 1)
    assert arguments.train_batch_size == SMALL["batch"]


@pytest.mark.parametrize(
    ("share", "said"),  # share of the weights' file; the optimizer's is twice as large
    [(0.5, "Error while serializing"), (1.5, "inline_container")],
)
def test_a_full_disk_is_one_line(source, data, tmp_path, share, said):
    """Here it is a limit on the size of a file; with room again the run goes on."""
    settings = Settings("sst2", **SMALL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = int(share * (source / "model.safetensors").stat().st_size)

    def full(what):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(IntformerError, match=rf"cannot be written: .*{said}.*it resumes"):
            train(source, data, tmp_path / "out", settings, progress=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert train(source, data, tmp_path / "out", settings)["stages"]["fp32"]["steps"] == 12


def test_a_damaged_file_is_one_line(source, data, tmp_path, monkeypatch):
    """Of the source; and of a checkpoint, as safetensors and torch say it."""
    settings, damaged = Settings("sst2", **SMALL), tmp_path / "source"
    shutil.copytree(source, damaged)
    (damaged / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(IntformerError, match=r"cannot read the weights: .*header"):
        train(damaged, data, tmp_path / "one", settings)
    broken = tmp_path / "broken.pt"
    torch.save({"a": torch.zeros(100)}, broken)
    broken.write_bytes(broken.read_bytes()[:300])
    for read in (lambda: load_file(damaged / "model.safetensors"), lambda: torch.load(broken)):
        monkeypatch.setattr(trainer.Tuner, "compute_loss", lambda *_, read=read, **__: read())
        with pytest.raises(IntformerError, match=r"cannot be read: .*remove the newest"):
            train(source, data, tmp_path / "two", settings)


def test_no_memory_is_one_line(source, data, tmp_path, monkeypatch):
    """A tensor larger than any memory, and what CUDA raises."""
    settings = Settings("sst2", **SMALL)

    def cuda():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    for asks in (lambda: torch.empty(1 << 60, dtype=torch.int8), cuda):
        monkeypatch.setattr(trainer.Tuner, "compute_loss", lambda *_, asks=asks, **__: asks())
        with pytest.raises(IntformerError, match=r"no memory is left: .*--batch") as caught:
            train(source, data, tmp_path / "out", settings)
        assert "\n" not in str(caught.value)


def test_an_error_of_our_own_is_not_hidden(source, data, tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer.Tuner, "compute_loss", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(source, data, tmp_path / "out", Settings("sst2", **SMALL))


@pytest.mark.parametrize(("stage", "option"), [("fp32", "--lr"), ("qat", "--qat-lr")])
def test_divergence_is_one_line(source, data, tmp_path, monkeypatch, capsys, stage, option):
    def diverges(self, *args, **kwargs):
        nan = self.stage == stage and self.state.global_step == 1
        return loss(self, *args, **kwargs) * (math.nan if nan else 1)

    loss = trainer.Tuner.compute_loss
    monkeypatch.setattr(trainer.Tuner, "compute_loss", diverges)
    assert cli.main(command(source, data, tmp_path / "out", "--epochs=1", "--qat-epochs=1")) == 1
    said = capsys.readouterr().err
    what = "error: training diverged: the gradient is nan at step 2"
    assert said == f"{what} - stage {stage} - a smaller {option}\n"


@pytest.mark.parametrize(
    ("task", "make", "metrics"),
    [
        ("stsb", lambda p: table(p, labels=(0.5, 4, 2.25), pairs=True), {"spearman", "pearson"}),
        (
            "classification",
            lambda p: table(p, labels=("no", "so", "yes"), sentences=3),
            {"accuracy"},
        ),
        (tasks.TOKENS, words, {"f1", "accuracy"}),
        (tasks.ANSWERS, answers, {"f1", "exact_match"}),
    ],
)
def test_every_kind_of_task(source, tmp_path, task, make, metrics):
    data = make(tmp_path / "data")
    settings = Settings(task, **{**SMALL, "epochs": 8, "patience": 99})
    result = train(source, data, tmp_path / "out", settings, data)
    stage = result["stages"]["fp32"]
    assert set(stage["dev"]) == metrics
    losses = [e["loss"] for e in stage["history"] if "loss" in e]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("sst2", "idx\tlabel\tsentence\n0\t1\tgood\n1\t7\tbad\n", "label 7 of 2 labels.*line 3"),
        ("sst2", "label\tsentence\n1\tgood\n1\tfine\n", "every label is 'positive'"),
        ("stsb", "label\tsentence1\tsentence2\n1\ta\tb\nnan\ta\tb\n", "label nan.*line 3"),
        ("stsb", "label\tsentence1\tsentence2\n-inf\ta\tb\n", "label -inf.*line 2"),
        ("classification", "label\ttext\na\tb\n", "no column 'sentence'"),
        ("classification", "label\tsentence\na\tb\na\tc\n", "every label is 'a'"),
        ("classification", "label\tsentence\na\tb\nb\n", "line 3"),
        (tasks.TOKENS, '{"words": ["a", "b"], "labels": ["O"]}\n', "2 words and 1 labels.*line 1"),
        (tasks.ANSWERS, '{"question": "q", "context": "c"}\n', "answers.*line 1"),
        (
            tasks.ANSWERS,
            '{"question": "q", "context": "abc", "answers": [{"text": "c", "start": 1}]}\n',
            "answer 'c' is not at 1.*line 1",
        ),
        (tasks.ANSWERS, "\n", "no rows"),
        ("nothing", "", "task 'nothing' is unknown.*sst2.*question-answering"),
    ],
)
def test_faults_are_one_line(source, tmp_path, capsys, task, content, message):
    path = tmp_path / "data"
    path.write_text(content)
    out = tmp_path / "out"
    asked = ["train", str(source), "--task", task, "--train", str(path), "-o", str(out)]
    assert cli.main(asked) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert not out.exists()


def test_labels_of_dev_must_be_those_of_train(source, tmp_path):
    first = table(tmp_path / "a", labels=("no", "yes"))
    second = table(tmp_path / "b", labels=("no", "maybe"))
    with pytest.raises(IntformerError, match=r"label 'maybe' is not among 'no', 'yes'.*line 3"):
        train(source, first, tmp_path / "out", Settings("classification", **SMALL), second)


def test_what_is_there_is_left_alone(source, data, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(IntformerError, match="not empty, and no run of ours"):
        train(source, data, tmp_path, Settings("sst2", **SMALL))
    for content in ("{", "[]", '{"loss": 1}', '{"settings": "mine"}'):
        theirs = tmp_path / "theirs"
        theirs.mkdir(exist_ok=True)
        (theirs / "metrics.json").write_text(content)
        with pytest.raises(IntformerError, match="not empty, and no run of ours"):
            train(source, data, theirs, Settings("sst2", **SMALL))
        assert (theirs / "metrics.json").read_text() == content
    with pytest.raises(IntformerError, match=r"cannot read.*none\.tsv"):
        train(source, tmp_path / "none.tsv", tmp_path / "out", Settings("sst2", **SMALL))
    with pytest.raises(IntformerError, match="not a model directory"):
        train(tmp_path / "none", data, tmp_path / "out", Settings("sst2", **SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "neither --epochs nor --qat-epochs"),
        ({"distill": True}, "--distill without"),
        ({"lr": 0.0}, "must be above 0 and below 1, got 0.0 - --lr"),
        ({"max_length": 2}, "2 tokens are too few"),
        ({"seed": -1}, r"a number from 0 to 2\^32 - 1, got -1 - --seed"),
        ({"seed": 2**32}, "got 4294967296"),
        ({"qat_epochs": 1, "recipe": "fancy"}, "recipe 'fancy' is not known"),
        *(
            ({"qat_epochs": 1, "recipe": "ibert", name: value}, "recipe ibert has no")
            for name, value in (("nonlinear", "float"), ("weights", "tensor"))
        ),
    ],
)
def test_settings_that_mean_nothing(source, data, tmp_path, changes, message):
    with pytest.raises(IntformerError, match=message):
        train(source, data, tmp_path / "out", Settings("sst2", **{**SMALL, **changes}))
    assert not (tmp_path / "out").exists()


ELECTRA = {"model_type": "electra", "architectures": ["ElectraModel"]}


@pytest.mark.parametrize(
    ("recipe", "config", "message"),
    [
        ("ibert", ELECTRA, "'electra' does not train with recipe ibert"),
        ("ibert", {"hidden_act": "relu"}, "'hidden_act' = 'relu' does not train with recipe ibert"),
        ("native", {"hidden_act": "mish"}, "'hidden_act' = 'mish' is not supported"),
        ("native", {"model_type": "roformer"}, "'model_type' = 'roformer' is not supported"),
        ("native", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ("ibert", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ],
)
def test_faults_of_the_second_stage_come_first(
    source, data, tmp_path, monkeypatch, recipe, config, message
):
    shutil.copytree(source, tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    monkeypatch.setattr(training, "Run", None)  # nothing runs
    settings = Settings("sst2", **{**SMALL, "qat_epochs": 1}, recipe=recipe)
    with pytest.raises(IntformerError, match=message):
        train(tmp_path / "source", data, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_nothing_runs(source, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(command(source, data, tmp_path / "out")) == 1
    assert "intformer[qat]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
