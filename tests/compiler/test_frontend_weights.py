"""Weights as training loops leave them; tensors are refused before they take memory."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intformer.errors import CheckpointError
from intformer.frontend import builder, encoder
from intformer.frontend.calibrated import import_uncalibrated
from intformer.frontend.calibration import pack
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.measure.float_model import FloatModel
from intformer.qat import prepare
from intformer_testing import random_hf

WORD = "embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    random_hf.save(folder, "bert", "sequence-classification")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def outputs(folder, head=None):
    graph, meta = read_encoder(Checkpoint(folder), head)
    sequences = [(s, np.zeros_like(s)) for s in random_hf.sequences()]
    return run(graph, pack(sequences, meta))


def pickled(folder, change):
    """Replace the weights by what `change` makes of the state dict, saved by torch."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(state), folder / "pytorch_model.bin")


def refusal(folder, head=None):
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(folder), head)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def below(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        below("module."),
        below("model."),
        below("_orig_mod."),
        below("module.module."),
        below("model._orig_mod."),
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"state_dict": below("model.")(state), "global_step": 1},
        lambda state: {**below("model.")(state), "loss.weight": torch.ones(3)},
    ],
)
def test_what_training_loops_put_around_the_keys_is_taken_off(folder, change):
    want = outputs(folder)
    pickled(folder, change)
    np.testing.assert_array_equal(outputs(folder), want)


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
@pytest.mark.parametrize("head", ["features", "sequence-classification"])
def test_wrappers_before_a_model_whose_own_prefix_is_model(tmp_path, family, head):
    random_hf.save(tmp_path, family, head)
    want, plain = outputs(tmp_path), load_file(tmp_path / "model.safetensors")
    for prefix in ("module.", "model.", "model._orig_mod."):
        save_file(below(prefix)(plain), tmp_path / "model.safetensors")
        np.testing.assert_array_equal(outputs(tmp_path), want)


def test_wrapped_keys_in_safetensors(folder):
    want = outputs(folder)
    state = load_file(folder / "model.safetensors")
    save_file(below("module.")(state), folder / "model.safetensors")
    np.testing.assert_array_equal(outputs(folder), want)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: {**s, **below("module.")(s)}, f"'bert.{WORD}', 'module.bert.{WORD}'"),
        (
            lambda s: {**below("module.")(s), "classifier.bias": torch.ones(3)},
            "'module.classifier.bias', 'classifier.bias'",
        ),
        (lambda s: {"state_dict": s, "loss": torch.ones(1)}, "'loss'"),
        (lambda s: {"epoch": 1, "net": s}, "not a state dict: keys 'epoch', 'net'"),
        (lambda s: [1, 2], "not a state dict: list"),
        (below("student."), f"weight '{WORD}' is missing"),
    ],
)
def test_keys_that_may_be_of_either_model_are_refused(folder, change, named):
    pickled(folder, change)
    assert named in refusal(folder)


def test_transformers_is_not_given_weights_that_it_would_not_read(folder):
    """It would make random ones in their place."""
    pickled(folder, below("module."))
    for load in (
        lambda: FloatModel(folder, {"head": "features", "pad_token_id": 0}),
        lambda: prepare(folder),
    ):
        with pytest.raises(CheckpointError, match=r"keys start with 'module\.'"):
            load()


def test_the_single_file_goes_before_an_index_as_in_transformers(folder):
    want = outputs(folder)
    save_file({"a": torch.ones(1)}, folder / "part.safetensors")
    index = {"weight_map": {f"bert.{WORD}": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(outputs(folder), want)


# -- architectures --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", random_hf.CLASSES)
@pytest.mark.parametrize("head", ["features", "token-classification"])
def test_a_missing_model_type_is_taken_from_the_architecture(tmp_path, family, head):
    random_hf.save(tmp_path, family, head)
    want = outputs(tmp_path)
    random_hf.rewrite(tmp_path, model_type=None)
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(outputs(tmp_path), want)


@pytest.mark.parametrize("named", ["RobertaModel", "DistilBertForMaskedLM", "AlbertForPreTraining"])
def test_an_architecture_of_another_family_is_refused(folder, named):
    random_hf.rewrite(folder, architectures=[named])
    error = refusal(folder)
    assert "'bert'" in error and repr(named) in error and "config.json" in error


@pytest.mark.parametrize(
    "named", ["BertLMHeadModel", "BertForNextSentencePrediction", "BertPreTrainedModel"]
)
def test_architectures_that_are_no_encoder_with_a_known_head(folder, named):
    random_hf.rewrite(folder, architectures=[named])
    assert f"'architectures' = {named!r} is not supported" in refusal(folder)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_model_for_pretraining_fills_masks(tmp_path, family):
    torch.manual_seed(0)
    config = random_hf.config(family)
    model = getattr(transformers, random_hf.CLASSES[family] + "ForPreTraining")(config).eval()
    model.save_pretrained(tmp_path)
    graph, meta = read_encoder(Checkpoint(tmp_path))
    assert meta["head"] == "masked-lm"
    assert "of pre-training is left out" in "".join(meta["warnings"])
    sequences = random_hf.sequences()
    batch = pack([(s, np.zeros_like(s)) for s in sequences], meta)
    positions = np.arange(sum(map(len, sequences)), dtype=np.int32)
    got = run(graph, {**batch, "positions": positions})
    want = np.concatenate(random_hf.padded_outputs(model, sequences))
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert read_encoder(Checkpoint(tmp_path), "features")[1]["head"] == "features"
    assert "classifier.weight" in refusal(tmp_path, "token-classification")


def test_electras_discriminator_is_no_masked_lm(tmp_path):
    model = transformers.ElectraForPreTraining(random_hf.config("electra"))
    model.save_pretrained(tmp_path)
    assert "'ElectraForPreTraining' is not supported" in refusal(tmp_path)


# -- sequences above the limit of the kernels -----------------------------------------------------


@pytest.mark.parametrize(
    ("family", "positions", "asked"), [("xlm-roberta", 130, 128), ("bert", 80, 80)]
)
def test_more_positions_than_the_kernels_take_limit_the_length(
    tmp_path, monkeypatch, family, positions, asked
):
    monkeypatch.setattr(builder, "MAX_KEYS", 64)
    monkeypatch.setattr(encoder, "MAX_KEYS", 64)
    model = random_hf.save(
        tmp_path, family, "features", max_position_embeddings=positions, hidden=12, ffn=16
    )
    (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {asked}}}')
    graph, meta = read_encoder(Checkpoint(tmp_path))
    assert (meta["max_length"], meta["truncate_length"]) == (64, 64)
    assert meta["warnings"] == [f"limited to 64 tokens (config.json: {asked})"]
    assert import_uncalibrated(Checkpoint(tmp_path)).meta["warnings"] == meta["warnings"]
    (ids,) = random_hf.sequences((64,))
    got = run(graph, pack([(ids, np.zeros_like(ids))], meta))
    (want,) = random_hf.padded_outputs(model, [ids])
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_as_many_positions_as_the_kernels_take_are_no_limit(tmp_path):
    random_hf.save(tmp_path, "bert", "features", max_position_embeddings=8192, hidden=12, ffn=16)
    meta = read_encoder(Checkpoint(tmp_path))[1]
    assert (meta["max_length"], meta["warnings"]) == (8192, [])


@pytest.mark.parametrize("pad", [33, 10**6])
def test_a_padding_id_that_leaves_no_position(tmp_path, pad):
    random_hf.save(tmp_path, "roberta", "features")
    random_hf.rewrite(tmp_path, pad_token_id=pad)
    assert f"'pad_token_id' = {pad}" in refusal(tmp_path)


# -- tensors that are not plain -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_types_are_converted(folder, dtype):
    state = load_file(folder / "model.safetensors")
    exact = {key: value.to(dtype) for key, value in state.items()}
    save_file({key: value.float() for key, value in exact.items()}, folder / "model.safetensors")
    want = outputs(folder)
    save_file(exact, folder / "model.safetensors")
    np.testing.assert_array_equal(outputs(folder), want)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_types_that_are_no_weights_are_refused_by_name(folder, dtype, form):
    state = load_file(folder / "model.safetensors")
    state[QUERY] = state[QUERY].to(dtype)
    if form == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        pickled(folder, lambda _: state)
    error = refusal(folder)
    assert repr(QUERY) in error and str(dtype).removeprefix("torch.") in error


def repeated(state):
    return {**state, QUERY: torch.zeros(1).expand(90_000, 90_000)}  # 32 GB


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (repeated, "is larger than its file"),
        (lambda s: {**s, QUERY: s[QUERY].to_sparse()}, "is sparse"),
        (lambda s: {**s, QUERY: torch.empty(60, 60, device="meta")}, "is without values"),
        (lambda s: {**s, QUERY: "text"}, "is not a tensor"),
        (lambda s: {**s, QUERY: None}, "is not a tensor"),
        (lambda s: {**s, QUERY: torch.ones(())}, "has shape []"),
        (lambda s: {**s, f"bert.{WORD}": torch.ones(0, 60)}, "has shape [0, 60]"),
        (
            lambda s: {
                **s,
                "bert.encoder.layer.0.intermediate.dense.weight": torch.ones(0, 60),
                "bert.encoder.layer.0.intermediate.dense.bias": torch.ones(0),
            },
            "has shape [0, 60]",
        ),
        (lambda s: {**s, 5: torch.ones(1)}, "not a state dict"),
    ],
)
def test_tensors_that_do_not_lie_in_the_file_as_they_are(folder, change, why):
    pickled(folder, change)
    assert why in refusal(folder)


def test_parameters_are_tensors(folder):
    want = outputs(folder)
    pickled(folder, lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()})
    np.testing.assert_array_equal(outputs(folder), want)


def test_a_compressed_file_is_not_inflated(folder):
    pickled(folder, lambda state: {**state, "zeros": torch.zeros(1 << 20)})
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as plain:
        entries = [(entry.filename, plain.read(entry)) for entry in plain.infolist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries:
            packed.writestr(name, data)
    assert "more memory than the file has bytes" in refusal(folder)


@pytest.mark.parametrize("layers", [10**9, 10**400])
@pytest.mark.parametrize("key", ["num_hidden_layers", "inner_group_num"])
def test_an_absurd_number_of_layers_is_refused_at_once(tmp_path, key, layers):
    random_hf.save(tmp_path, "albert", "features")
    random_hf.rewrite(tmp_path, **{key: layers})
    assert f"'{key}'" in refusal(tmp_path)
