"""Recipe ibert: transformers' IBert modules train, evaluation is the imported integers."""

import copy

import numpy as np
import pytest
import torch

import intformer
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend.checkpoint import Checkpoint
from intformer.ir import heads
from intformer.qat import prepare
from intformer.qat.to_ibert import ibert_module, tame
from intformer_testing import qat_batch, random_hf

MODELS = [
    ("bert", "sequence-classification"),
    ("roberta", "sequence-classification"),
    ("bert", "token-classification"),
    ("bert", "question-answering"),
]


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def source(random_model):
    """Return (family, head, shape) -> (directory, float model)."""
    return random_model


def prepared(folder):
    return prepare(folder, recipe="ibert", calibrate=random_hf.sequences())


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_evaluation_is_the_integers(source, tmp_path, family, head):
    """Tolerance 0; the saved directory means the same, and training goes on from it."""
    model = prepared(source(family, head)[0]).eval()
    inputs = qat_batch.batch(pad=model.config.pad_token_id)
    integer = model.int_model()
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())
    for name, found in model.values(**inputs).items():
        np.testing.assert_array_equal(found.numpy(), wanted[name], err_msg=name)
    model.save_pretrained(tmp_path)
    for again in (
        intformer.import_model(tmp_path),
        prepare(tmp_path, recipe="ibert").int_model(),
    ):
        assert (again.nodes, again.values) == (integer.nodes, integer.values)
        for name, tensor in integer.tensors.items():
            np.testing.assert_array_equal(again.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_evaluation_is_close_to_transformers(source, family, head):
    """They run the head in float; a random model amplifies what float32 rounds elsewhere."""
    model = prepared(source(family, head)[0]).eval()
    inputs = qat_batch.batch(pad=model.config.pad_token_id)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        ours, theirs = (qat_batch.rows(m(**inputs), mask) for m in (model, model.model))
    assert qat_batch.snr_db(theirs, ours) > 20


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_weights_move_without_a_change(source, family, head):
    """In float, the I-BERT module computes what its source does on right-padded batches."""
    folder, plain = source(family, head)
    quantized = ibert_module(Checkpoint(folder), plain, heads.named(head))
    config = copy.deepcopy(quantized.config)
    config.quant_mode = False
    moved = type(quantized)(config).eval()
    moved.load_state_dict(quantized.state_dict())
    inputs = qat_batch.batch(pad=plain.config.pad_token_id)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        wanted, got = (qat_batch.rows(m(**inputs), mask) for m in (plain, moved))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_training_learns(source):
    """The loss falls, also as regression; what evaluates is what was trained."""
    model = prepared(source(labels=1)[0])
    inputs, wanted = qat_batch.batch(), torch.tensor([0.1, 0.9, 0.2, 0.8, 0.5, 0.4])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    losses = []
    for _ in range(12):
        loss = model(**inputs, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        out = model.eval()(**inputs, labels=wanted)
    assert min(losses[-3:]) < losses[0] / 2
    assert out.loss < losses[0] / 2


def test_layernorms_stay_within_their_integers(source):
    """A dead channel is raised at first and while training."""
    folder, _ = source()
    model = prepared(folder)
    norm = model.model.ibert.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = -1e-6, 2.0
    model.train()(**qat_batch.batch())
    assert norm.weight[3].item() == pytest.approx(-2 * 2.0 / 60**0.5)
    assert tame(model.model) == 0
    model.eval()(**qat_batch.batch())


def test_what_is_no_number_says_so(source):
    model = prepared(source()[0])
    with torch.no_grad():
        model.model.ibert.encoder.layer[0].intermediate.dense.bias[3] = torch.nan
    with pytest.raises(IntformerError, match=r"NaN detected .* learning rate"):
        model.train()(**qat_batch.batch())
    with pytest.raises(IntformerError, match=r"holds .* NaN"):
        model.eval()(**qat_batch.batch())


def test_what_cannot_be_prepared_says_so(source):
    folder, _ = source("distilbert")
    with pytest.raises(CheckpointError, match="model type 'distilbert' does not train"):
        prepare(folder, recipe="ibert")
    folder, _ = source(activation="relu")
    with pytest.raises(CheckpointError, match="I-BERT has gelu only"):
        prepare(folder, recipe="ibert")
    for options in ({"weights": "tensor"}, {"nonlinear": "float"}):
        with pytest.raises(CheckpointError, match="recipe ibert has no"):
            prepare(source()[0], recipe="ibert", **options)
