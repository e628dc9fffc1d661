"""Training as a remedy of `intformer analyze`: without labels, judged on text it has not seen."""

import sys

import numpy as np
import pytest
import torch
import transformers

from intformer.analysis import report, study
from intformer.frontend import calibration, import_model
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.measure.float_model import FloatModel
from intformer.qat import packing, prepare, self_distill
from intformer_testing import make_ibert, random_hf

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = [(s, np.zeros_like(s)) for s in random_hf.sequences((5, 9, 17, 4, 7, 11) * 8, seed=1)]
SPLIT = calibration.split_ids(IDS)
FIT, HELD = SPLIT.fit, SPLIT.held


def snr(wanted, got):
    return 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2))


def judged(source, model):
    """SNR of an IntModel on the held-out sequences, against transformers' float model."""
    inputs = calibration.pack(HELD, model.meta)
    ids, types, ends = (inputs[k] for k in ("input_ids", "token_type_ids", "cu_seqlens"))
    wanted = FloatModel(source, model.meta).rows(ids, types, ends).astype(np.float64)
    return snr(wanted, model.run(inputs)[model.output] * model.meta["output_scale"])


def test_the_row_is_what_the_saved_directory_gives(tmp_path):
    source, saved = tmp_path / "source", tmp_path / "saved"
    random_hf.save(source, "bert", "sequence-classification")
    found = study.analyze(source, IDS, method="ema", qat_steps=6)
    (line,) = (each for each in found.remedies if each.steps)
    assert line.steps == 6
    assert line.name == "QAT without labels, 6 steps"
    assert not line.chosen
    assert not found.untried
    encoder, meta = read_encoder(Checkpoint(source), None)
    trained = self_distill.self_distilled(source, encoder, {**meta, "recipe": "native"}, FIT, 6)
    trained.save_pretrained(saved)
    model = import_model(saved)
    assert line.snr_db == pytest.approx(judged(source, model), abs=1e-3)
    inputs = calibration.pack(HELD, meta)
    wanted = run(encoder, inputs)
    same = wanted.argmax(1) == model.run(inputs)[model.output].argmax(1)
    assert line.agreement == pytest.approx(same.mean())
    page = report.page(found)
    assert "quantization-aware training for 6 steps on the text" in page
    assert "intformer train SRC --task TASK" in page
    best = max(each.snr_db for each in found.remedies if each.options)
    said = f"6 steps, gives {line.snr_db:.1f} dB ({line.snr_db - best:+.1f} dB against the best"
    assert said in report.advice(found)


def test_no_steps_no_row(tmp_path, monkeypatch):
    random_hf.save(tmp_path, "bert", "features", layers=1)
    monkeypatch.setattr(self_distill, "self_distilled", None)
    found = study.analyze(tmp_path, IDS, method="ema", qat_steps=0)
    assert len(found.remedies) == 8
    assert not any(each.steps for each in found.remedies)
    assert not found.untried
    assert "--qat-steps 0" in report.note(found)
    assert "intformer train SRC --task TASK" in report.note(found)


def test_what_cannot_be_trained_says_why(tmp_path):
    random_hf.save(tmp_path, "bert", "masked-lm", layers=1)
    found = study.analyze(tmp_path, IDS, method="ema", qat_steps=3)
    assert len(found.remedies) == 8
    ((name, why),) = found.untried.items()
    assert name == "QAT without labels, 3 steps"
    assert why == "head 'masked-lm' is not trained quantized"
    page = report.page(found)
    assert "not tried: head &#x27;masked-lm&#x27;" in page
    assert "intformer train SRC --task TASK" in page


def test_what_transformers_cannot_load_is_no_crash(tmp_path, monkeypatch):
    random_hf.save(tmp_path, "bert", "features", layers=1)

    def refuse(*arguments, **options):
        raise ValueError("Unrecognized model\nand a page of help")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    found = study.analyze(tmp_path, IDS, method="ema", qat_steps=3)
    assert list(found.untried.values()) == ["Unrecognized model"]


@pytest.mark.parametrize("head", ["sequence-classification", "features", "question-answering"])
def test_ibert_trains_with_its_own_recipe(tmp_path, head):
    make_ibert.random_model(head=head).save_pretrained(tmp_path)
    ids = [(s % 61, types) for s, types in IDS]
    found = study.analyze(tmp_path, ids, qat_steps=3)
    (line,) = (each for each in found.remedies if each.steps)
    assert len(found.remedies) == 3
    assert np.isfinite(line.snr_db)


def test_what_a_few_steps_should_not_move(tmp_path):
    """Ranges and embedding tables of an IBert directory; other weights move."""
    make_ibert.random_model().save_pretrained(tmp_path)
    ids = [(s % 61, types) for s, types in FIT]
    encoder, meta = read_encoder(Checkpoint(tmp_path), None)
    before = prepare(tmp_path, recipe="ibert", calibrate=ids).state_dict()
    trained = self_distill.self_distilled(tmp_path, encoder, {**meta, "recipe": "ibert"}, ids, 3)
    moved = {
        name
        for name, tensor in trained.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    fixed = [n for n in before if n.endswith(("x_min", "x_max", "embeddings.weight"))]
    assert len(fixed) > 20 and not moved.intersection(fixed)
    assert any(name.endswith("dense.weight") for name in moved)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("roberta", "token-classification"),
        ("distilbert", "sequence-classification"),
        ("electra", "question-answering"),
        ("albert", "features"),
        ("gte", "features"),
        ("bert", "sentence-embedding"),
    ],
)
def test_every_family_is_trained(tmp_path, family, head):
    random_hf.save(tmp_path, family, head.replace("sentence-embedding", "features"), layers=1)
    found = study.analyze(tmp_path, IDS, method="ema", head=head, qat_steps=1)
    assert not found.untried
    (line,) = (each for each in found.remedies if each.steps)
    encoder, meta = read_encoder(Checkpoint(tmp_path), head)
    about = {**meta, "recipe": "native"}
    trained = self_distill.self_distilled(tmp_path, encoder, about, FIT, 1).int_model()
    assert line.snr_db == pytest.approx(judged(tmp_path, trained), abs=1e-3)


def test_a_step_takes_few_long_sequences():
    size = self_distill.batch_size
    assert [size([n] * 20) for n in (1, 64, 65, 300, 512, 2000)] == [8, 8, 7, 1, 1, 1]
    assert size([5] * 3) == 3


def test_training_mends_what_clipping_spoils(tmp_path, monkeypatch):
    """All ranges a third of what the text shows, and kept: weights learn to live with them."""
    random_hf.save(tmp_path, "bert", "sequence-classification")
    preparing = sys.modules[prepare.__module__]  # the package shows the function under its name
    was = preparing.ema
    monkeypatch.setattr(preparing, "ema", lambda peaks: was(peaks) / 3)
    encoder, meta = read_encoder(Checkpoint(tmp_path), None)
    about = {**meta, "recipe": "native"}
    before = judged(tmp_path, prepare(tmp_path, calibrate=FIT).int_model())
    monkeypatch.setattr(self_distill, "RATE", 1e-3)
    trained = self_distill.self_distilled(tmp_path, encoder, about, FIT, study.QAT_STEPS)
    after = judged(tmp_path, trained.int_model())
    assert after > before + 2


def test_the_same_seed_gives_the_same_model(tmp_path):
    random_hf.save(tmp_path, "bert", "features")
    encoder, meta = read_encoder(Checkpoint(tmp_path), None)
    about = {**meta, "recipe": "native"}

    def made(seed):
        trained = self_distill.self_distilled(tmp_path, encoder, about, FIT, 4, seed=seed)
        return trained.int_model().tensors

    torch.manual_seed(5)
    one = made(0)
    torch.manual_seed(6)
    two, other = made(0), made(1)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_every_sequence_is_trained_on_before_any_comes_again():
    steps = self_distill.order(21, self_distill.BATCH, 6, 0)
    assert [len(step) for step in steps] == [self_distill.BATCH] * 6
    flat = np.concatenate(steps)
    assert sorted(flat[:21]) == list(range(21)) == sorted(flat[21:42])
    assert [len(step) for step in self_distill.order(3, 3, 2, 0)] == [3, 3]


def test_nothing_judged_on_is_trained_on(tmp_path, monkeypatch):
    """A sequence that is given twice is one: it is trained on, or held out."""
    random_hf.save(tmp_path, "bert", "features", layers=1)
    twice = [*IDS[:7], IDS[15], *IDS[8:]]
    twice[3] = IDS[15]  # three times now: 4th, 8th and 16th
    given = []

    def keep(source, teacher, meta, sequences, steps):
        given.extend(sequences)
        raise study.CheckpointError("enough")

    monkeypatch.setattr(self_distill, "self_distilled", keep)
    found = study.analyze(tmp_path, twice, method="ema", qat_steps=1)
    assert list(found.untried.values()) == ["enough"]
    assert len(given) < len(FIT)
    held = calibration.split_ids(twice).held
    assert not {ids.tobytes() for ids, _ in given} & {ids.tobytes() for ids, _ in held}
    alike = [IDS[0]] * 16
    with pytest.raises(study.CheckpointError, match="1 different rows of calibration text"):
        study.analyze(tmp_path, alike, method="ema", qat_steps=1)


@pytest.mark.parametrize(
    ("family", "head", "auto", "pooling"),
    [
        ("bert", "sequence-classification", "AutoModelForSequenceClassification", None),
        ("distilbert", "question-answering", "AutoModelForQuestionAnswering", None),
        ("electra", "token-classification", "AutoModelForTokenClassification", None),
        ("roberta", "features", "AutoModel", None),
        ("bert", "features", "AutoModel", "mean"),
        ("bert", "features", "AutoModel", "max"),
        ("bert", "features", "AutoModel", "first"),
        ("bert", "features", "AutoModel", "last"),
        ("bert", "features", "AutoModel", "first+mean_sqrt+weighted_mean"),
    ],
)
def test_rows_are_in_the_order_of_the_float_encoder(tmp_path, family, head, auto, pooling):
    random_hf.save(tmp_path, family, head)
    encoder, meta = read_encoder(Checkpoint(tmp_path), None)
    group = FIT[:5]
    wanted = run(encoder, calibration.pack(group, meta))
    if pooling is not None:
        meta |= {"head": "sentence-embedding", "pooling": pooling}
        ends = np.cumsum([len(ids) for ids, _ in group])[:-1]
        parts = np.split(wanted, ends)
        reduce = {
            "mean": lambda x: x.mean(0),
            "max": lambda x: x.max(0),
            "first": lambda x: x[0],
            "last": lambda x: x[-1],
            "mean_sqrt": lambda x: x.sum(0) / len(x) ** 0.5,
            "weighted_mean": lambda x: np.average(x, 0, np.arange(1, len(x) + 1)),
        }
        modes = pooling.split("+")
        wanted = np.stack([np.concatenate([reduce[m](part) for m in modes]) for part in parts])
    model = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    features = [dict(zip(packing.TOKENS, one, strict=True)) for one in group]
    takes = ("input_ids",) if family == "distilbert" else packing.TOKENS
    batch = packing.padded(features, meta["pad_token_id"] or 0, takes)
    with torch.no_grad():
        got = self_distill.rows(model(**batch), batch["attention_mask"], meta).numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
