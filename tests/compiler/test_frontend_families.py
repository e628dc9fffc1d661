"""Every family and head against transformers: in float first, then quantized, then bit for bit."""

import json

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.calibrated import snr_db
from intformer.frontend.calibration import pack
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.families import FAMILIES
from intformer.frontend.hub_config import JINA_BERT
from intformer.ir.float_run import run
from intformer_testing import random_hf

EVERY = [(f, head) for f in random_hf.CLASSES for head in random_hf.heads_of(f, made_of=True)]
ODD = [  # (family, head, shape)
    ("bert", "sequence-classification", {"hidden": 312, "heads": 12, "labels": 213}),
    ("roberta", "token-classification", {"hidden": 312, "heads": 12, "labels": 1}),
    ("bert", "sequence-classification", {"labels": 1, "activation": "relu"}),
    ("bert", "masked-lm", {"activation": "relu"}),
    ("distilbert", "masked-lm", {"activation": "gelu_new"}),
    ("distilbert", "sequence-classification", {"labels": 2, "activation": "relu"}),
    ("electra", "features", {"embedding_size": 60}),
    ("electra", "sequence-classification", {"activation": "gelu_pytorch_tanh"}),
    ("bert", "sequence-classification", {"activation": "silu"}),
    ("distilbert", "masked-lm", {"activation": "quick_gelu"}),
    ("roberta", "token-classification", {"activation": "swish"}),
    ("albert", "masked-lm", {"activation": "gelu_new", "layers": 5}),
    ("albert", "features", {"layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    ("bert", "features", {"type_vocab_size": 1}),
    ("bert", "features", {"layer_norm_eps": 1e-3}),
    ("gte", "features", {"type_vocab_size": 0, "hidden": 64, "heads": 2}),
    ("gte", "sequence-classification", {"type_vocab_size": 1}),
    ("gte", "features", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    ("nomic_bert", "features", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ("jina_embeddings_v3", "features", {"rope_parameters": {"rope_theta": 7.5}}),
    ("deberta-v2", "features", {"share_att_key": False, "position_biased_input": True}),
    ("deberta-v2", "features", {"pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
    ("deberta-v2", "features", {"pos_att_type": ["p2c"], "position_buckets": -1}),
    ("deberta-v2", "features", {"position_buckets": -1, "max_relative_positions": 7}),
    ("deberta-v2", "features", {"relative_attention": False, "pos_att_type": None}),
    ("deberta-v2", "sequence-classification", {"pooler_hidden_act": "tanh", "labels": 1}),
    ("deberta-v2", "masked-lm", {"legacy": False}),
    ("deberta-v2", "masked-lm", {"embedding_size": 36, "type_vocab_size": 2}),
    ("deberta-v2", "token-classification", {"type_vocab_size": 1}),
]
ODD += [
    ("modernbert", "sequence-classification", {"classifier_pooling": "mean", "labels": 1}),
    ("modernbert", "masked-lm", {"decoder_bias": False, "classifier_activation": "silu"}),
    ("modernbert", "features", {"norm_bias": True, "attention_bias": True, "mlp_bias": True}),
    ("eurobert", "sequence-classification", {"classifier_pooling": "bos", "mlp_bias": True}),
    ("eurobert", "sequence-classification", {"classifier_pooling": "mean"}),
    ("eurobert", "masked-lm", {"mlp_bias": True, "attention_bias": True, "layers": 4}),
    ("eurobert", "features", {"num_key_value_heads": 3, "rms_norm_eps": 1e-3}),
    ("modernbert", "features", {"local_attention": 1, "layers": 5, "norm_eps": 1e-3}),
]
# Rounding alone leaves more than this; a wrong scale, bias or table leaves less than 5 dB. What a
# sequence classifier of random weights adds up cancels, so the same noise weighs more there.
LEAST_SNR_DB = {"sequence-classification": 14}
CASES = [pytest.param(f, h, {}, id=f"{f}-{h}") for f, h in EVERY] + [
    pytest.param(f, h, shape, id=f"{f}-{h}-" + "-".join(f"{k}={v}" for k, v in shape.items()))
    for f, h, shape in ODD
]


def wanted(model, inputs, ids, types, head):
    """Transformers' rows in the order of the packed output."""
    rows = random_hf.padded_outputs(model, ids, types)
    if head == "masked-lm":
        return np.concatenate(rows)[inputs["positions"]]
    if head == "sparse-embedding":
        return np.stack([logits.max(0) for logits in rows])
    return np.concatenate(rows)


def typed(ids, meta):
    """Token types for the sequences: the second half of each is type 1 where there are types."""
    top = meta["type_vocab_size"] - 1
    return [(np.arange(len(s)) * 2 >= len(s)).astype(np.int32) * top for s in ids]


@pytest.mark.parametrize(("family", "head", "shape"), CASES)
def test_float_equals_transformers_and_integers_stay_close(tmp_path, family, head, shape):
    hf = random_hf.save(tmp_path, family, head, **shape)
    named = head if head in random_hf.MADE_OF else None
    encoder, meta = read_encoder(Checkpoint(tmp_path), named)
    assert (meta["family"], meta["head"]) == (family, head)
    ids = random_hf.sequences()
    types = typed(ids, meta)
    inputs = pack(list(zip(ids, types, strict=True)), meta)
    want = wanted(hf, inputs, ids, types if meta["type_vocab_size"] > 1 else None, head)
    got = run(encoder, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())

    text = random_hf.sequences((7, 12, 30, 3) * 24, seed=1)
    text = list(zip(text, typed(text, meta), strict=True))
    model = import_model(tmp_path, head=named, calibrate=text, method="minmax")
    integers = model.run(inputs)[model.output]
    assert integers.dtype == np.int32
    assert integers.shape == want.shape == (len(want), model.meta["output_channels"])
    assert snr_db(want, integers * model.meta["output_scale"]) > LEAST_SNR_DB.get(head, 20)
    for name, value in model.values.items():
        assert value.scale is not None, name
        assert value.origin.split(":")[0] in ("calibration", "bound", "checkpoint"), name
    for name, tensor in model.tensors.items():
        assert tensor.dtype.kind == "i", name
    json.dumps(model.to_json())


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "sequence-classification"),
        ("roberta", "features"),
        ("albert", "masked-lm"),
        ("bert", "sparse-embedding"),
        ("electra", "token-classification"),
        ("nomic_bert", "features"),
    ],
)
def test_a_packed_batch_equals_one_by_one_bit_for_bit(tmp_path, family, head):
    random_hf.save(tmp_path, family, head)
    model = import_model(tmp_path, head=head, calibrate=random_hf.sequences(seed=1), method="ema")
    batch = [(s, np.zeros_like(s)) for s in random_hf.sequences((1, 2, 3, 5, 31, 32))]
    inputs = pack(batch, model.meta)
    together = model.run(inputs)[model.output]
    rows = []
    for i, sequence in enumerate(batch):
        alone = pack([sequence], model.meta)
        if head == "masked-lm":
            start, stop = inputs["cu_seqlens"][i : i + 2]
            asked = inputs["positions"]
            alone["positions"] = asked[(asked >= start) & (asked < stop)] - start
        rows.append(model.run(alone)[model.output])
    np.testing.assert_array_equal(together, np.concatenate(rows))


def test_sentence_embedding_is_the_mean_of_the_features(tmp_path):
    hf = random_hf.save(tmp_path, "bert", "features")
    model = import_model(
        tmp_path, head="sentence-embedding", calibrate=random_hf.sequences(seed=1), method="minmax"
    )
    ids = random_hf.sequences()
    out = model.run(pack([(s, np.zeros_like(s)) for s in ids], model.meta))[model.output]
    want = np.stack([rows.mean(0) for rows in random_hf.padded_outputs(hf, ids)])
    assert model.meta["pooling"] == "mean"
    assert snr_db(want, out * model.meta["output_scale"]) > 20


POOLED = {
    "mean_tokens": lambda rows: rows.mean(0),
    "max_tokens": lambda rows: rows.max(0),
    "cls_token": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
    "weightedmean_tokens": lambda rows: np.average(rows, 0, np.arange(1, len(rows) + 1)),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / np.sqrt(len(rows)),
}


@pytest.mark.parametrize("mode", POOLED)
def test_sentence_transformers_directories_say_how_they_pool(tmp_path, mode):
    hf = random_hf.save(tmp_path, "bert", "features")
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    encoder, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences()
    got = run(encoder, pack([(s, np.zeros_like(s)) for s in ids], meta))
    rows = random_hf.padded_outputs(hf, ids)
    want = np.stack([POOLED[mode](one) for one in rows])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_layers_share_the_table_of_their_rotary_positions(tmp_path):
    random_hf.save(tmp_path, "nomic_bert", "features", layers=3)
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    tables = {node.inputs[2:] for node in model.nodes if node.op == "rotary"}
    assert tables == {("layer0.turned.cos", "layer0.turned.sin")}


def test_rotary_positions_far_into_a_text(tmp_path):
    """Angles of float32, as transformers has them, are off by 1e-7 of a position."""
    hf = random_hf.save(tmp_path, "nomic_bert", "features", max_position_embeddings=900)
    encoder, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((900,))
    got = run(encoder, pack([(ids[0], np.zeros_like(ids[0]))], meta))
    (want,) = random_hf.padded_outputs(hf, ids)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4 * np.abs(want).max())
    swapped = pack([(ids[0][::-1].copy(), np.zeros_like(ids[0]))], meta)
    assert np.abs(run(encoder, swapped)[::-1] - want).max() > 0.1  # positions count


def test_roberta_counts_positions_over_what_is_not_padding(tmp_path):
    """A pad id inside the text keeps position pad, and the count goes on after it."""
    hf = random_hf.save(tmp_path, "roberta", "features")
    encoder, meta = read_encoder(Checkpoint(tmp_path))
    assert (meta["max_length"], meta["position_rule"], meta["pad_token_id"]) == (32, "padding", 1)
    ids = np.array([9, 8, 1, 7, 6], np.int32)
    inputs = pack([(ids, np.zeros_like(ids))], meta)
    assert inputs["position_ids"].tolist() == [2, 3, 1, 4, 5]
    want = random_hf.padded_outputs(hf, [ids])[0]
    np.testing.assert_allclose(run(encoder, inputs), want, rtol=1e-4, atol=1e-5)


def test_albert_stores_its_layer_once_with_scales_per_repetition(tmp_path):
    random_hf.save(tmp_path, "albert", "features", layers=4)
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    assert [name for name in model.tensors if name.endswith("qkv.weight")] == ["layer0.qkv.weight"]
    tables = [model.tensors[f"layer{i}.qkv.mult"] for i in range(4)]
    assert all(not np.array_equal(tables[0], table) for table in tables[1:])


def test_what_config_json_leaves_out_is_the_config_class_s_default():
    for name, family in FAMILIES.items():
        if name == JINA_BERT:  # transformers has no class
            continue
        config = transformers.AutoConfig.for_model(name)
        assert getattr(config, family.config_keys["activation"]) == family.act, name
        eps = family.config_keys.get("eps", "layer_norm_eps")
        assert eps is None or getattr(config, eps, family.eps) == family.eps, name
        assert config.pad_token_id == family.pad, name


def test_an_albert_without_an_activation_has_the_one_of_its_config_class(tmp_path):
    random_hf.save(tmp_path, "albert", "features", activation="gelu_new")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    want = read_encoder(Checkpoint(tmp_path))[1]["activation"]
    del config["hidden_act"]
    file.write_text(json.dumps(config))
    assert read_encoder(Checkpoint(tmp_path))[1]["activation"] == want != "gelu"


def test_a_tied_decoder_is_the_word_table(tmp_path):
    random_hf.save(tmp_path, "bert", "masked-lm")
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    decoder = next(n for n in reversed(model.nodes) if n.op == "matmul")
    embed = next(n for n in model.nodes if n.op == "embed")
    assert decoder.inputs[1] == embed.inputs[3] == "embed.word.weight"


def test_an_untied_decoder_keeps_its_own_weight(tmp_path):
    hf = random_hf.save(tmp_path, "bert", "masked-lm", tie_word_embeddings=False)
    encoder, meta = read_encoder(Checkpoint(tmp_path))
    assert not encoder.operands()[-1].tied
    ids = random_hf.sequences()
    inputs = pack([(s, np.zeros_like(s)) for s in ids], meta)
    want = wanted(hf, inputs, ids, None, "masked-lm")
    np.testing.assert_allclose(run(encoder, inputs), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "key"), [("bert", "cls.predictions.bias"), ("roberta", "lm_head.bias")]
)
def test_the_bias_of_an_untied_decoder(tmp_path, family, key):
    """Without the head's own, its; without the decoder's, transformers makes a new one of zeros."""
    hf = random_hf.save(tmp_path, family, "masked-lm", tie_word_embeddings=False)
    file = tmp_path / "model.safetensors"
    state, own = load_file(file), f"{key.removesuffix('bias')}decoder.bias"
    save_file({k: v for k, v in state.items() if k != key}, file, {"format": "pt"})
    (*_, decoder) = read_encoder(Checkpoint(tmp_path))[0].nodes
    np.testing.assert_array_equal(decoder.params.bias, state[own].numpy())
    save_file({k: v for k, v in state.items() if k != own}, file, {"format": "pt"})
    again, info = type(hf).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {own} and not again.get_output_embeddings().bias.any()
    with pytest.raises(CheckpointError, match=rf"weight '{own}' is missing.*'tie_word_embeddings'"):
        read_encoder(Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("family", "said"), [("bert", False), ("modernbert", False), ("eurobert", None)]
)
def test_a_decoder_that_is_neither_there_nor_tied(tmp_path, family, said):
    """transformers draws one at random there; EuroBERT's is untied by default."""
    hf = random_hf.save(tmp_path, family, "masked-lm", tie_word_embeddings=True)
    file = tmp_path / "config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "tie_word_embeddings"}
    for tied in (True, said):
        more = {} if tied is None else {"tie_word_embeddings": tied}
        file.write_text(json.dumps(config | more))
        _, info = type(hf).from_pretrained(tmp_path, output_loading_info=True)
        assert any("weight" in key for key in info["missing_keys"]) == (not tied)
        if tied:
            read_encoder(Checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match=r"weight '.*' is missing.*'tie_word_embeddings'"):
        read_encoder(Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("bert", "vocab_size"),
        ("bert", "type_vocab_size"),
        ("roberta", "max_position_embeddings"),
        ("distilbert", "hidden_dim"),
        ("nomic_bert", "intermediate_size"),
        ("modernbert", "intermediate_size"),
        ("eurobert", "vocab_size"),
        ("deberta-v2", "intermediate_size"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(tmp_path, family, key):
    """transformers refuses each of them, too."""
    hf = random_hf.save(tmp_path, family, "features")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: config[key] + 2}))
    with pytest.raises(RuntimeError, match="mismatched"):
        type(hf).from_pretrained(tmp_path)
    said = f"'{key}' = {config[key] + 2}, the weights have {config[key]} "
    with pytest.raises(CheckpointError, match=said):
        read_encoder(Checkpoint(tmp_path))


def test_a_zero_row_keeps_its_bias(tmp_path):
    import torch

    hf = random_hf.save(tmp_path, "bert", "sequence-classification")
    with torch.no_grad():
        hf.classifier.weight[1] = 0
        hf.bert.encoder.layer[0].intermediate.dense.weight[::3] = 0
        hf.bert.encoder.layer[0].output.LayerNorm.weight[::4] = 0
    hf.save_pretrained(tmp_path)
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    ids = random_hf.sequences()
    out = model.run(pack([(s, np.zeros_like(s)) for s in ids], model.meta))[model.output]
    want = np.concatenate(random_hf.padded_outputs(hf, ids))
    assert snr_db(want, out * model.meta["output_scale"]) > 20
    np.testing.assert_allclose(out[:, 1] * model.meta["output_scale"], want[:, 1], atol=1e-4)
