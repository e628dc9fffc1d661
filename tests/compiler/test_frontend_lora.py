"""LoRA adapters beside a base model, against peft's own merge_and_unload."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.qat import prepare
from intformer_testing import random_hf

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
CLASSIFIER = "AutoModelForSequenceClassification"
CASES = {  # name -> (family, head, transformers class, settings)
    "plain": ("bert", "features", "AutoModel", {"target_modules": ["query", "value"]}),
    "rslora": ("bert", "features", "AutoModel", {"use_rslora": True, "r": 3}),
    "every linear": ("roberta", "features", "AutoModel", {"target_modules": "all-linear"}),
    "fan in, fan out": ("bert", "features", "AutoModel", {"fan_in_fan_out": True}),
    "gaussian": ("bert", "features", "AutoModel", {"init_lora_weights": "gaussian"}),
    "classifier": ("bert", "sequence-classification", CLASSIFIER, {"task_type": "SEQ_CLS"}),
    "two-layer classifier": (
        "roberta",
        "sequence-classification",
        CLASSIFIER,
        {"task_type": "SEQ_CLS"},
    ),
    "distilbert": ("distilbert", "features", "AutoModel", {"target_modules": ["q_lin", "lin1"]}),
    # the encoder of a directory that holds a head as well
    "encoder below a head": ("bert", "sequence-classification", "AutoModel", {}),
}
SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}


def adapted(folder, family, head, kind, settings):
    """Save a base model and, beside it, an adapter with random matrices; return peft's model."""
    random_hf.save(folder, family, head)
    base = getattr(transformers, kind).from_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(**SETTINGS | settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    adapted(folder, *CASES["classifier"])
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def settings(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_merged_weights_are_those_of_peft(tmp_path, name):
    family, head, kind, options = CASES[name]
    merged = adapted(tmp_path, family, head, kind, options).merge_and_unload()
    checkpoint = Checkpoint(tmp_path)
    names = set(checkpoint.keys())
    changed = 0
    base = load_file(tmp_path / "model.safetensors")
    for key, want in merged.state_dict().items():
        key = key if key in names else f"{checkpoint.config['model_type']}.{key}"
        if "position_ids" in key or key not in names:
            continue
        np.testing.assert_allclose(checkpoint.tensor(key), want.numpy(), atol=2e-6)
        changed += not torch.equal(base[key], want)
    assert changed >= 4
    assert "adapter is merged" in read_encoder(checkpoint)[1]["warnings"][0]


def test_ranks_and_alphas_by_pattern(tmp_path):
    options = {
        "rank_pattern": {"encoder.layer.0.attention.self.query": 2, "value": 5},
        "alpha_pattern": {"layer.1.attention.self.query": 3, "layer.(0|1).attention.self.value": 5},
    }
    model = adapted(tmp_path, "bert", "features", "AutoModel", options)
    merged = model.merge_and_unload().state_dict()
    checkpoint = Checkpoint(tmp_path)
    for layer in "01":
        for part in ("query", "key", "value"):
            key = f"encoder.layer.{layer}.attention.self.{part}.weight"
            np.testing.assert_allclose(checkpoint.tensor(key), merged[key].numpy(), atol=2e-6)


def test_a_pickled_adapter(folder):
    want = Checkpoint(folder).tensor(f"{QUERY.removeprefix('base_model.model.')}.weight")
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    got = Checkpoint(folder).tensor(f"{QUERY.removeprefix('base_model.model.')}.weight")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", {}),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["a"]),
        ("layer_replication", [[0, 1]]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("of_a_later_version", "on"),
        ("rank_pattern", ["a"]),
        ("modules_to_save", "classifier"),
        ("task_type", 3),
        ("use_rslora", "yes"),
        ("lora_alpha", "8"),
        ("lora_alpha", -1),
        ("r", 0),
        ("alpha_pattern", {"(a+)+$": 3}),
        ("alpha_pattern", {"(": 3}),
        ("alpha_pattern", {"query": "x"}),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_key(folder, key, value):
    settings(folder, **{key: value})
    error = refusal(folder)
    assert repr(key) in error or (key == "alpha_pattern" and "'lora_alpha'" in error)
    assert "adapter_config.json" in error and "merge_and_unload" in error


def change_weights(folder, change):
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop(f"{QUERY}.lora_A.weight"), "not a pair of matrices"),
        (lambda s: s.update({f"{QUERY}.lora_magnitude_vector": torch.ones(60)}), "not supported"),
        (
            lambda s: s.update({"base_model.model.bert.embeddings.a.weight": torch.ones(2)}),
            "not supported",
        ),
        (lambda s: s.update({f"{QUERY}.lora_A.weight": torch.ones(4, 59)}), "has shape [60, 59]"),
        (lambda s: s.update({f"{QUERY}.lora_A.weight": torch.ones(5, 60)}), "rank 4"),
        (
            lambda s: s.update({f"{QUERY}.lora_A.weight": torch.ones(4, 60, dtype=torch.int8)}),
            "is int8",
        ),
        (lambda s: s.update({f"{QUERY}.lora_A.weight": torch.full((4, 60), 1e38)}), "NaN or Inf"),
        (
            lambda s: [
                s.update({f"base_model.model.bert.other.lora_{half}.weight": torch.ones(4, 4)})
                for half in "AB"
            ],
            "fits no weight of the base model",
        ),
    ],
)
def test_adapter_weights_that_do_not_fit(folder, change, why):
    change_weights(folder, change)
    with np.errstate(over="ignore", invalid="ignore"):
        assert why in refusal(folder)


def test_an_adapter_whose_weights_are_missing(folder):
    (folder / "adapter_model.safetensors").unlink()
    assert "no weights of the adapter" in refusal(folder)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_without_its_base_model_says_what_to_do(folder, config):
    (folder / "model.safetensors").unlink()
    settings(folder, base_model_name_or_path="some/base")
    if not config:
        (folder / "config.json").unlink()
    error = refusal(folder)
    assert "an adapter without its base model 'some/base'" in error
    assert "merge_and_unload().save_pretrained" in error


def test_a_head_that_config_does_not_name(folder):
    """peft's own class would have it; features alone would drop it without a word."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    error = refusal(folder)
    assert "brings 'classifier.bias', 'classifier.weight'" in error and "'BertModel'" in error


def test_training_starts_from_a_merged_model(folder):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is merged"):
        prepare(folder)


def test_a_model_trained_quantized_takes_no_adapter(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"intformer": {"recipe": "native"}}))
    with pytest.raises(CheckpointError, match="trained quantized"):
        import_model(folder, calibrate=random_hf.sequences())
