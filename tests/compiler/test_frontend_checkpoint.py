"""Directories as they are found: every layout that is read, every fault that is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from intformer.errors import CheckpointError, IntformerError
from intformer.frontend import import_model
from intformer.frontend.calibration import pack
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer_testing import random_hf


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    random_hf.save(folder, "bert", "sequence-classification")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def outputs(folder):
    encoder, meta = read_encoder(Checkpoint(folder))
    sequences = [(s, np.zeros_like(s)) for s in random_hf.sequences()]
    return run(encoder, pack(sequences, meta))


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        import_model(folder, **{"calibrate": random_hf.sequences(), "method": "ema"} | options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_pickled_state_dict_reads_the_same(folder):
    want = outputs(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(outputs(folder), want)


def test_shards_read_the_same(folder):
    want = outputs(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: state[n] for n in names if where[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    np.testing.assert_array_equal(outputs(folder), want)
    index.write_text("{}")
    assert "weight_map" in refusal(folder).what


def test_an_index_that_names_a_shard_without_the_weight(folder):
    weights = load_file(folder / "model.safetensors")
    key = "bert.encoder.layer.1.output.dense.weight"
    (folder / "model.safetensors").rename(folder / "most.safetensors")
    where = dict.fromkeys(weights, "most.safetensors")
    save_file({"else": weights.pop(key)}, folder / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where | {key: "other.safetensors"}}))
    error = refusal(folder)
    assert f"cannot read weight {key!r}" in error.what
    assert error.where == str(folder / "other.safetensors")


def test_gamma_and_beta_are_old_names(folder):
    want = outputs(folder)
    state = load_file(folder / "model.safetensors")
    for name in [n for n in state if "LayerNorm" in n]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        state[old.replace("LayerNorm.bias", "LayerNorm.beta")] = state.pop(name)
    save_file(state, folder / "model.safetensors")
    np.testing.assert_array_equal(outputs(folder), want)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "auto_map"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"model_type": "t5"}, "model_type"),
        ({"model_type": None, "architectures": None}, "model_type"),
        ({"architectures": ["BertForMultipleChoice"]}, "architectures"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps"),
        ({"pad_token_id": "0"}, "pad_token_id"),
        ({"id2label": ["a", "b", "c"]}, "id2label"),
        ({"architectures": "BertModel"}, "architectures"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"model_type": ["bert"]}, "model_type"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_key(folder, changes, key):
    rewrite(folder, **changes)
    error = refusal(folder)
    assert repr(key) in error.what
    assert "config.json" in error.where


def test_no_directory():
    assert refusal("/no/such/folder").what == "not a model directory"


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder).what


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in str(refusal(folder))


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder).what == "no weights found"


def test_cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    error = refusal(folder)
    assert "cannot read the weights" in error.what
    assert error.where == str(file)


def test_a_pickle_that_runs_code_is_not_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    assert "cannot read the weights" in refusal(folder).what
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_a_number(folder, bad):
    state = load_file(folder / "model.safetensors")
    key = "bert.encoder.layer.1.output.dense.weight"
    state[key][3, 4] = bad
    save_file(state, folder / "model.safetensors")
    assert refusal(folder).what == f"weight '{key}' holds 1 NaN or Inf"


def test_a_missing_weight(folder):
    state = load_file(folder / "model.safetensors")
    del state["classifier.bias"]
    save_file(state, folder / "model.safetensors")
    assert refusal(folder).what == "weight 'classifier.bias' is missing"


def test_a_weight_of_another_shape(folder):
    state = load_file(folder / "model.safetensors")
    key = "bert.encoder.layer.0.attention.self.key.weight"
    state[key] = state[key][:, :-1].contiguous()
    save_file(state, folder / "model.safetensors")
    assert "has shape [60, 59], expected [60, 60]" in refusal(folder).what


def test_a_head_that_the_checkpoint_has_not(folder):
    assert "cls.predictions" in refusal(folder, head="masked-lm").what
    with pytest.raises(IntformerError, match="head 'summary' is not supported"):
        import_model(folder, calibrate=random_hf.sequences(), head="summary")


def test_nothing_calibrates(folder):
    error = refusal(folder, calibrate=None)
    assert "no activation scale" in error.what
    assert "--calibrate" in error.hint


@pytest.mark.parametrize(
    "options", [{"recipe": "ibert"}, {"mode": "fixed"}, {"method": "guess"}], ids=str
)
def test_options_that_do_not_fit(folder, options):
    assert repr(next(iter(options.values()))) in refusal(folder, **options).what
