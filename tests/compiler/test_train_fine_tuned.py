"""Where training starts: from a head that is there already, from trained and other directories."""

import json
import shutil

import pytest

import intformer
from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.qat import stages, tasks
from intformer.qat.fine_tuned import fitting
from intformer.qat.settings import Settings
from intformer.qat.training import train
from intformer_testing import random_hf, small_tokenizer
from intformer_testing.train_files import answers, table, words

NAMES = ("no", "so", "yes")
QAT = {"epochs": 0, "qat_epochs": 1, "precision": "fp32", "max_length": 20}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A classifier of three classes, and what a directory of sentence embeddings has beside."""
    folder = tmp_path_factory.mktemp("source")
    shape = {"hidden": 32, "heads": 4, "ffn": 64}
    random_hf.save(folder, "bert", "sequence-classification", **shape)
    small_tokenizer.save(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 11}')
    (folder / "modules.json").write_text("[]")
    return folder


@pytest.fixture
def copied(source, tmp_path):
    """Return a function: config keys -> a copy of the source with them."""

    def make(**keys):
        folder = tmp_path / "source"
        shutil.copytree(source, folder)
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))
        return folder

    return make


def run_of(folder, rows, output, **changes):
    """A Run that has done nothing yet."""
    settings = Settings(rows.task, **{**QAT, **changes})
    checkpoint = Checkpoint(folder)
    rows = fitting(rows, checkpoint) if not settings.epochs else rows
    return stages.Run(checkpoint, output, settings, rows, rows, None, lambda what: None)


def named(*labels):
    return {"id2label": {str(i): label for i, label in enumerate(labels)}}


def test_classes_are_numbered_as_the_head_has_them(copied, tmp_path):
    rows = tasks.read(table(tmp_path / "data", labels=NAMES), "classification")
    assert (rows.labels, rows.targets[:3]) == (NAMES, [0, 1, 2])
    run = run_of(copied(**named("so", "YES", "no")), rows, tmp_path)
    assert (run.rows.labels, run.rows.targets[:3]) == (("so", "YES", "no"), [2, 0, 1])
    part = tmp_path / "part"
    run.prepared().save_pretrained(part)
    run.save_tokenizer(part)
    meta = intformer.import_model(part).meta
    assert meta["labels"] == ["so", "YES", "no"]
    assert (meta["head"], meta["truncate_length"]) == ("sequence-classification", 20)


def test_classes_without_names_get_ours(source, tmp_path):
    rows = tasks.read(table(tmp_path / "data", labels=NAMES), "classification")
    run = run_of(source, rows, tmp_path)
    assert run.rows == rows
    run.prepared().save_pretrained(tmp_path / "part")
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert tuple(config["id2label"].values()) == NAMES
    assert config["label2id"] == {"no": 0, "so": 1, "yes": 2}


def test_words_are_renumbered(copied, tmp_path):
    rows = tasks.read(words(tmp_path / "data"), tasks.TOKENS)
    keys = {"architectures": ["BertForTokenClassification"], **named("O", "LONG")}
    got = fitting(rows, Checkpoint(copied(**keys)))
    assert rows.labels == ("LONG", "O")
    assert got.targets == [[1 - one for one in row] for row in rows.targets]


@pytest.mark.parametrize(
    ("task", "make", "keys", "message"),
    [
        ("sst2", table, {}, "has 3 outputs, not 2"),
        ("sst2", table, named("bad", "good"), "'bad', 'good', not 'negative', 'positive'"),
        ("sst2", table, named("x", "x"), "'x', 'x', not 'negative', 'positive'"),
        (
            "stsb",
            lambda p: table(p, labels=(0, 1), pairs=True),
            named("a", "b"),
            "2 outputs, not 1",
        ),
        ("sst2", table, {"architectures": ["BertModel"]}, "features, not sequence-class"),
        (tasks.ANSWERS, answers, {}, "says sequence-classification, not question-answering"),
        (
            "sst2",
            table,
            {**named("negative", "positive"), "problem_type": "multi_label_classification"},
            "'problem_type' = 'multi_label_classification'",
        ),
    ],
)
def test_another_head_is_refused(copied, tmp_path, task, make, keys, message):
    data = make(tmp_path / "data")
    with pytest.raises(CheckpointError, match=rf"{message}.*--epochs 1 or more"):
        train(copied(**keys), data, tmp_path / "out", Settings(task, **QAT))
    assert not (tmp_path / "out").exists()


def test_fp32_of_a_trained_directory_is_no_trained_one(copied, tmp_path):
    rows = tasks.read(table(tmp_path / "data", labels=NAMES), "classification")
    run = run_of(copied(intformer={"recipe": "native"}), rows, tmp_path, epochs=1)
    run.float_model().save_pretrained(tmp_path / "fp32")
    assert "intformer" not in json.loads((tmp_path / "fp32" / "config.json").read_text())


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        ({}, 32),
        ({"type_vocab_size": 1}, 32),  # by column all the same
        ({"model_type": "ibert", "pad_token_id": 3}, 32 - 4),  # made from BERT
        ({"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1}, 32 - 2),
        ({"model_type": "camembert", "type_vocab_size": 1, "pad_token_id": 1}, 32 - 2),
        ({"model_type": "modernbert", "classifier_dropout": 0.0, "pad_token_id": 96}, 32),
    ],
)
def test_sequences_are_as_long_as_there_are_positions(copied, tmp_path, keys, length):
    rows = tasks.read(table(tmp_path / "data", labels=NAMES), "classification")
    if "model_type" in keys:  # one that contradicts the architecture is refused
        keys = {**keys, "architectures": None}
    source = copied(**keys)
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}  # not the one of the model type
    (source / "tokenizer_config.json").write_text(json.dumps(about))
    assert run_of(source, rows, tmp_path, epochs=1, max_length=513).length == length


def test_a_config_of_wrong_types_is_one_line(copied, tmp_path):
    data = table(tmp_path / "data")
    message = "transformers cannot load it: Validation error for field 'hidden_dropout_prob'"
    with pytest.raises(CheckpointError, match=message):
        train(copied(hidden_dropout_prob="x"), data, tmp_path / "out", Settings("sst2"))
    assert not (tmp_path / "out").exists()
