"""The second stage: quantized training by the command and by a plain Trainer, and the library."""

import json

import pytest
import torch
import transformers

import intformer
from intformer import cli
from intformer.frontend.checkpoint import Checkpoint
from intformer.measure.accuracy import run_in_batches
from intformer.qat import prepare, tasks, trainer
from intformer.qat.settings import Settings
from intformer.qat.training import train
from intformer_testing.train_files import answers, table, words

SMALL = {"epochs": 1, "qat_epochs": 1, "batch": 8, "max_length": 24, "lr": 1e-3, "qat_lr": 1e-3}
LENGTH = SMALL["max_length"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tiny_encoder):
    return tiny_encoder


def library_rows(folder, data, path):
    """Compile a directory, and run labelled rows through the library."""
    library = intformer.compile(intformer.import_model(folder), path, target="x86-64")
    config = transformers.AutoConfig.from_pretrained(folder)
    encoded = tasks.Encoded(data, config, Checkpoint(folder).files(), LENGTH)
    rows = run_in_batches(library, encoded.packed, 16)
    return library, encoded, rows * torch.tensor(library.metadata["output_scale"]).numpy()


@pytest.mark.parametrize(
    ("task", "make"),
    [
        ("sst2", table),
        ("stsb", lambda p: table(p, labels=(0.5, 4, 2.25), pairs=True)),
        (tasks.TOKENS, words),
        (tasks.ANSWERS, answers),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_library_scores_what_training_said(source, tmp_path, task, make, precision):
    """Evaluation inside the Trainer, also under its autocast, computes the library's integers."""
    data = make(tmp_path / "data.tsv")
    settings = Settings(task, **SMALL, precision=precision, distill=True)
    result = train(source, data, tmp_path / "out", settings, data)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("curve.png", "fp32", "metrics.json", "qat"),
    ]
    rows = tasks.read(data, task)
    library, encoded, found = library_rows(tmp_path / "out" / "qat", rows, tmp_path / "a.so")
    assert library.metadata["truncate_length"] == LENGTH
    scores, _ = encoded.score(found)
    assert scores == pytest.approx(result["stages"]["qat"]["dev"], abs=1e-6)


def test_the_command_ends_in_a_library(source, tmp_path, capsys):
    data = table(tmp_path / "train.tsv", labels=("bad", "fair", "good"))
    out = tmp_path / "out"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    asked = ["train", str(source), "--task", "classification", "--train", str(data)]
    assert cli.main([*asked, "--dev", str(data), "-o", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert f"next: intformer compile {out / 'qat'} -o classification.so" in said
    library = tmp_path / "classification.so"
    assert cli.main(["compile", str(out / "qat"), "-o", str(library), "--target", "x86-64"]) == 0
    assert intformer.load(library).metadata["labels"] == ["bad", "fair", "good"]


def test_plain_q8bert_is_not_said_to_compile(source, tmp_path, capsys):
    data, out = table(tmp_path / "train.tsv"), tmp_path / "out"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    asked = ["train", str(source), "--task", "sst2", "--train", str(data), "-o", str(out)]
    assert cli.main([*asked, *options, "--nonlinear", "float"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith(str(out / "qat"))
    assert "next:" not in said
    assert cli.main(["compile", str(out / "qat"), "-o", str(tmp_path / "a.so")]) == 1
    assert "no integer program" in capsys.readouterr().err


def test_a_plain_trainer(source, tmp_path):
    """No class of ours but the model: transformers' Trainer and collator."""
    data = tasks.read(table(tmp_path / "train.tsv"), "sst2")
    train(source, tmp_path / "train.tsv", tmp_path / "a", Settings("sst2", **SMALL))
    folder = tmp_path / "a" / "fp32"
    model = prepare(folder, calibrate=data.texts)
    config = transformers.AutoConfig.from_pretrained(folder)
    features = tasks.Encoded(data, config, Checkpoint(folder).files(), LENGTH).features
    plain = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in f.items()} for f in features]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "work"),
        num_train_epochs=4,
        learning_rate=2e-3,
        logging_steps=6,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    whole = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=plain,
        eval_dataset=plain,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    model.save_pretrained(tmp_path / "saved")
    assert intformer.import_model(tmp_path / "saved").meta["head"] == "sequence-classification"


def test_it_goes_on_in_the_second_stage(source, tmp_path, monkeypatch):
    """Ended in the quantized stage: the same model as without the end."""
    data = table(tmp_path / "train.tsv")
    settings = Settings("sst2", **{**SMALL, "qat_epochs": 3}, precision="fp32")
    whole = train(source, data, tmp_path / "whole", settings, data)
    steps = []

    def ends(self, *args, **kwargs):
        steps.append(0)
        if len(steps) == 6 + 11:  # steps of FP32, then in the second of three epochs
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    loss = trainer.Tuner.compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Tuner, "compute_loss", ends)
        with pytest.raises(KeyboardInterrupt):
            train(source, data, tmp_path / "ended", settings, data)
    assert not (tmp_path / "ended" / "qat").exists()
    again = train(source, data, tmp_path / "ended", settings, data)
    histories = [
        [(e["step"], e.get("loss"), e.get("eval_accuracy")) for e in r["stages"]["qat"]["history"]]
        for r in (whole, json.loads(json.dumps(again)))
    ]
    assert histories[0][:-1] == histories[1][:-1]
    for name in ("model.safetensors", "intformer_ranges.safetensors"):
        files = [(tmp_path / run / "qat" / name).read_bytes() for run in ("whole", "ended")]
        assert files[0] == files[1]


def test_distance_to_the_teacher():
    def rows(task, labels=()):
        return tasks.Rows(task, [], [], labels)

    got, wanted = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert trainer.distance(got, wanted, rows("stsb"), {}) == pytest.approx((1 + 4) / 2)
    # at temperature 2, logits (0, 2 ln 3) mean 1/4 and 3/4; (0, 0) means a half each
    log3 = float(torch.log(torch.tensor(3.0)))
    got, wanted = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2 * log3]])
    kl = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    two = rows("sst2", ("a", "b"))
    assert trainer.distance(got, wanted, two, {}) == pytest.approx(4 * float(kl), abs=1e-6)
    assert trainer.distance(wanted, wanted, two, {}) == pytest.approx(0, abs=1e-6)
    # words without a label do not count
    labels = {"labels": torch.tensor([[-100, 1]])}
    far = torch.tensor([[[9.0, -9.0], [0.0, 0.0]]])
    near = torch.tensor([[[-9.0, 9.0], [0.0, 0.0]]])
    words_rows = rows(tasks.TOKENS, ("O", "X"))
    assert trainer.distance(far, near, words_rows, labels) == pytest.approx(0, abs=1e-6)
    # nor do tokens that are padding
    mask = {"attention_mask": torch.tensor([[1, 0]])}
    assert trainer.distance(far.flip(1), near.flip(1), rows(tasks.ANSWERS), mask) == pytest.approx(
        0, abs=1e-6
    )
