"""Q8BERT directories of nlp-architect: a file of that form, written here from a random BERT."""

import json

import numpy as np
import pytest
import torch

import intformer
from intformer.errors import CheckpointError
from intformer.frontend import calibration
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir import ranges
from intformer.quantize.observe import observe
from intformer_testing import qat_batch, random_hf

HEAD = "sequence-classification"
FLOAT_OUTPUT = ("attention.output.dense", "intermediate.dense", "output.dense", "pooler.dense")


def quantized(weight):
    """Q8BERT's integers of a tensor and its scale."""
    scale = 127 / weight.abs().max()
    return (weight * scale).round().clamp(-127, 127), scale


def input_tap(name, layers=2):
    """Tap of FloatEncoder.forward that feeds a linear layer of BERT."""
    if name == "bert.pooler.dense":
        return f"layer{layers - 1}.norm2"
    if name == "classifier":
        return "head0.act"
    i, part = name.removeprefix("bert.encoder.layer.").split(".", 1)
    before = "embed.norm" if i == "0" else f"layer{int(i) - 1}.norm2"
    at = f"layer{i}."
    return {
        "attention.output.dense": at + "context",
        "intermediate.dense": at + "norm1",
        "output.dense": at + "act",
    }.get(part, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return (float model, directory as nlp-architect's save_pretrained leaves it, its state)."""
    folder = tmp_path_factory.mktemp("q8bert")
    model = random_hf.save(folder, "bert", HEAD)
    encoder, meta = read_encoder(Checkpoint(folder))
    texts = [(s, np.zeros_like(s)) for s in random_hf.sequences()]
    seen = observe(encoder, calibration.batches(texts, meta))
    top = {tap: float(one.peaks.max()) for tap, one in seen.items()}
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            integers, scale = quantized(module.weight.detach())
            state |= {f"{name}.quantized_weight": integers.char(), f"{name}._weight_scale": scale}
        elif isinstance(module, torch.nn.Linear):
            integers, scale = quantized(module.weight.detach())
            threshold = top[input_tap(name)]
            bias = (module.bias.detach() * scale * 127 / threshold).round()
            state |= {
                f"{name}.quantized_weight": integers.char(),
                f"{name}._weight_scale": scale,
                f"{name}._quantized_bias": bias.int(),
                f"{name}.bias_scale": scale * 127 / torch.tensor([threshold]),
                f"{name}.input_thresh": torch.tensor([threshold]),
            }
            part = name.rpartition(".")[2]
            if part in ("query", "key", "value"):
                at = f"layer{name.split('.')[3]}.qkv"
                peaks = np.split(seen[at].peaks.max(0), 3)[("query", "key", "value").index(part)]
                state[f"{name}.output_thresh"] = torch.tensor([float(peaks.max())])
        elif isinstance(module, torch.nn.LayerNorm):
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    config = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "model_type"):  # pytorch_transformers wrote neither
        del config[key]
    config["attention_query"] = {"mode": "ema", "requantize_output": True}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "quant_pytorch_model.bin")
    return model, folder, state


def altered(model, tmp_path, change):
    """Return a directory whose state `change` has had its way with."""
    _, folder, state = model
    state = dict(state)
    change(state)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(state, tmp_path / "quant_pytorch_model.bin")
    return tmp_path


def test_integers_are_the_files(model):
    """Weights and biases are kept to the last unit; every scale is 1 / theirs."""
    _, folder, state = model
    found = intformer.import_model(folder, head=HEAD)
    prefix = "bert.encoder.layer.1."
    parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    for stem, keys in (
        ("layer1.qkv", parts),
        ("layer1.out", [prefix + "attention.output.dense"]),
        ("layer1.ffn1", [prefix + "intermediate.dense"]),
        ("layer1.ffn2", [prefix + "output.dense"]),
        ("head0", ["bert.pooler.dense"]),
        ("head1", ["classifier"]),
    ):
        for end, kind in (("weight", "quantized_weight"), ("bias", "_quantized_bias")):
            wanted = np.concatenate([state[f"{key}.{kind}"].numpy() for key in keys])
            np.testing.assert_array_equal(found.tensors[f"{stem}.{end}"], wanted, err_msg=stem)
    word = state["bert.embeddings.word_embeddings.quantized_weight"].numpy()
    np.testing.assert_array_equal(found.tensors["embed.word.weight"], word)
    for value, key, what in (
        ("layer0.context", "bert.encoder.layer.0.attention.output.dense", "input_thresh"),
        ("layer0.norm1.int8", "bert.encoder.layer.0.intermediate.dense", "input_thresh"),
        ("layer0.act.int8", "bert.encoder.layer.0.output.dense", "input_thresh"),
        ("layer0.norm2.int8", parts[0], "input_thresh"),
    ):
        wanted = state[f"{key}.{what}"].item() / 127
        assert found.values[value].scale == pytest.approx(wanted, rel=1e-6), value
    scales = np.array(found.values["layer1.qkv"].scale).reshape(3, -1)
    outputs = [state[f"{key}.output_thresh"].item() / 127 for key in parts]
    np.testing.assert_allclose(scales, np.array(outputs)[:, None] * np.ones(60), rtol=1e-6)


@pytest.mark.parametrize("calibrated", [False, True])
def test_output_is_close_to_the_float_model(model, calibrated):
    """Its bounds for the residual sums are loose, and good enough in 16 bits."""
    plain, folder, _ = model
    calibrate = random_hf.sequences() if calibrated else None
    found = intformer.import_model(folder, head=HEAD, calibrate=calibrate)
    found.meta["max_length"] = 32
    ranges.check(found)
    inputs = qat_batch.batch()
    got = found.run(qat_batch.packed(found, inputs).inputs())[found.output]
    with torch.no_grad():
        wanted = qat_batch.rows(plain(**inputs), inputs["attention_mask"])
    assert qat_batch.snr_db(wanted, got * found.meta["output_scale"]) > 20
    origin = found.values["layer0.sum1"].origin
    assert origin.startswith("checkpoint: quant_pytorch_model.bin")
    assert ("calibration text" in origin) == calibrated
    bound = intformer.import_model(folder, head=HEAD).values["layer0.sum1"].scale
    assert found.values["layer0.sum1"].scale <= bound


def test_layers_left_float(model, tmp_path):
    """A classifier without thresholds reads tanh, which stays below 1."""

    def change(state):
        for key in [key for key in state if key.startswith("classifier.")]:
            del state[key]
        state |= {f"classifier.{key}": v for key, v in model[0].classifier.state_dict().items()}

    found = intformer.import_model(altered(model, tmp_path, change), head=HEAD)
    assert found.values["head0.act.int8"].scale == pytest.approx(1 / 127)


def test_a_threshold_that_is_missing_needs_text(model, tmp_path):
    def change(state):
        key = "bert.encoder.layer.0.attention.self.key.output_thresh"
        state[key] = torch.zeros(1)

    folder = altered(model, tmp_path, change)
    with pytest.raises(CheckpointError, match=r"range of layer0\.qkv"):
        intformer.import_model(folder, head=HEAD)
    found = intformer.import_model(folder, head=HEAD, calibrate=random_hf.sequences())
    assert found.values["layer0.qkv"].dtype == "int8"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bert.pooler.dense._weight_scale", torch.tensor(-1.0), "must be a number above 0"),
        ("bert.pooler.dense._weight_scale", None, r"pooler.dense._weight_scale' is missing"),
        ("bert.pooler.dense.input_thresh", torch.zeros(1), "has no scale"),
        ("bert.pooler.dense.quantized_weight", None, r"weight 'bert.pooler.dense.weight' is miss"),
    ],
)
def test_what_is_wrong_is_named(model, tmp_path, key, value, message):
    def change(state):
        if value is None:
            del state[key]
        else:
            state[key] = value

    with pytest.raises(CheckpointError, match=message):
        intformer.import_model(altered(model, tmp_path, change), head=HEAD)


def test_options_and_heads(model, tmp_path):
    _, folder, _ = model
    with pytest.raises(CheckpointError, match="may be of either head"):
        intformer.import_model(folder)
    for options in ({"recipe": "ibert"}, {"mode": "fixed"}, {"method": "mse"}):
        with pytest.raises(CheckpointError, match="does not go with a Q8BERT"):
            intformer.import_model(folder, head=HEAD, **options)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "quant_pytorch_model.bin").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        intformer.import_model(tmp_path, head=HEAD)
