"""Directories of the hub's own classes: what they say is honoured, or refused by its key."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import intformer
from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.calibrated import snr_db
from intformer.frontend.calibration import pack
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.families.jina_bert import slopes
from intformer.frontend.hub_config import NOMIC
from intformer.ir.float_run import run
from intformer.qat import prepare
from intformer.runtime.edge import Edge
from intformer_testing import jina_bert, random_hf, small_tokenizer

NOMIC_CODE = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
IDS = random_hf.sequences()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def rewrite(folder, remove=(), **changes):
    config = {k: v for k, v in config_of(folder).items() if k not in remove}
    (folder / "config.json").write_text(json.dumps(config | changes))


def outputs(folder, head=None):
    graph, meta = read_encoder(Checkpoint(folder), head)
    types = [np.arange(len(s), dtype=np.int32) % meta["type_vocab_size"] for s in IDS]
    return run(graph, pack(list(zip(IDS, types, strict=True)), meta))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(folder))
    return str(caught.value)


def renamed(folder, change):
    """Store every weight under another key."""
    file = folder / "model.safetensors"
    save_file({change(key): array for key, array in load_file(file).items()}, file)


# -- Nomic -----------------------------------------------------------------------------------------


def nomic(folder, **changes):
    """A directory with the hub's keys, beside what transformers computes."""
    random_hf.save(folder, "nomic_bert", "features")
    want, config = outputs(folder), config_of(folder)
    taken = {ours: config[theirs] for ours, theirs in NOMIC.names.items() if theirs in config}
    taken |= {"rotary_emb_base": 1000, "activation_function": "swiglu"}
    kept = ("architectures", "model_type", "vocab_size", "type_vocab_size", "pad_token_id")
    code = {"auto_map": {"AutoModel": NOMIC_CODE}}
    whole = {key: config[key] for key in kept} | taken | code | changes
    (folder / "config.json").write_text(json.dumps(whole))
    return want


def test_nomic_with_the_keys_of_the_hub(tmp_path):
    plain = {"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "prenorm": False}
    plain |= {"rotary_scaling_factor": None, "qkv_proj_bias": False, "num_experts": 0}
    want = nomic(tmp_path, **plain)
    np.testing.assert_array_equal(outputs(tmp_path), want)
    with pytest.raises(CheckpointError, match="transformers does not read this directory"):
        Checkpoint(tmp_path).refuse_rewritten()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512),
        ("rotary_scaling_factor", 2),
        ("prenorm", True),
        ("parallel_block", True),
        ("use_rms_norm", True),
        ("qkv_proj_bias", True),
        ("mlp_fc1_bias", True),
        ("mlp_fc2_bias", True),
        ("causal", True),
        ("scale_attn_weights", False),
        ("num_experts", 8),
        ("moe_every_n_layers", 2),
        ("activation_function", "gelu"),
        ("activation_function", "glu"),
        ("auto_map", {"AutoModel": "someone/else--modeling_other.NomicBertModel"}),
    ],
)
def test_nomic_options_that_change_the_arithmetic(tmp_path, key, value):
    nomic(tmp_path, **{key: value})
    assert f"'{key}'" in refusal(tmp_path)


@pytest.mark.parametrize("key", NOMIC.required)
def test_what_the_hubs_code_takes_otherwise_by_default_must_be_said(tmp_path, key):
    nomic(tmp_path)
    rewrite(tmp_path, remove=[key])
    assert f"{key!r} is missing" in refusal(tmp_path)


def test_both_spellings_of_one_key(tmp_path):
    nomic(tmp_path, hidden_size=60)
    assert "'n_embd' and 'hidden_size' say the same" in refusal(tmp_path)


def test_a_bias_where_there_should_be_none(tmp_path):
    random_hf.save(tmp_path, "nomic_bert", "features")
    file = tmp_path / "model.safetensors"
    bias = {"encoder.layers.0.mlp.fc2.bias": np.ones(60, np.float32)}
    save_file(load_file(file) | bias, file)
    assert "'encoder.layers.0.mlp.fc2.bias' is there" in refusal(tmp_path)


def test_nomic_below_the_prefix_of_the_hub(tmp_path):
    want = nomic(tmp_path)
    renamed(tmp_path, "bert.{}".format)
    np.testing.assert_array_equal(outputs(tmp_path), want)


def test_types_are_there_where_config_json_says_so(tmp_path):
    random_hf.save(tmp_path, "gte", "features")
    whole, file = outputs(tmp_path), tmp_path / "model.safetensors"
    rewrite(tmp_path, type_vocab_size=0)  # transformers leaves the table unread
    assert read_encoder(Checkpoint(tmp_path))[0].tables.types is None
    assert np.abs(outputs(tmp_path) - whole).max() > 0.1
    key = "embeddings.token_type_embeddings.weight"
    save_file({k: v for k, v in load_file(file).items() if k != key}, file)
    rewrite(tmp_path, type_vocab_size=2)
    assert f"{key!r} is missing" in refusal(tmp_path)


# -- rotary positions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "rope_parameters.rope_type"),
        ("rope_parameters", {"rope_type": "llama3"}, "rope_parameters.rope_type"),
        ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("rope_parameters", {"rope_type": "ntk", "factor": 2.0}, "rope_type"),  # GTE's own
        ("partial_rotary_factor", 0.5, "'partial_rotary_factor' = 0.5"),
        ("rope_parameters", {"beta_fast": 32}, "beta_fast"),
        ("rope_parameters", {"rope_theta": -1.0}, "rope_theta"),
        ("head_dim", 10, "head_dim"),
    ],
)
def test_rotary_positions_that_are_refused(tmp_path, key, value, said):
    random_hf.save(tmp_path, "nomic_bert", "features")
    rewrite(tmp_path, **{key: value})
    assert said in refusal(tmp_path)


def test_two_descriptions_of_rotary_positions(tmp_path):
    random_hf.save(tmp_path, "gte", "features")
    rewrite(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert "'rope_parameters' and 'rope_scaling' say the same" in refusal(tmp_path)


# -- GTE -------------------------------------------------------------------------------------------


def test_new_is_gte_with_a_larger_base_and_smaller_frequencies(tmp_path):
    hf = random_hf.save(tmp_path, "gte", "sequence-classification", hidden=48)
    renamed(tmp_path, lambda key: key.replace("gte.", "new."))
    rewrite(
        tmp_path,
        remove=["rope_parameters"],
        architectures=["NewForSequenceClassification"],
        model_type="new",
        rope_theta=500.0,
        rope_scaling={"type": "ntk", "factor": 8.0},
        position_embedding_type="rope",
        logn_attention_scale=False,
        auto_map={"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    )
    # heads of 16: the base times the factor, and the frequencies over its eighth root
    powers = torch.arange(0, 16, 2) / 16
    hf.gte.rotary_emb.inv_freq = (500.0 * 8) ** -powers / 8 ** (1 / 8)
    types = [np.arange(len(s), dtype=np.int32) % 2 for s in IDS]
    want = np.concatenate(random_hf.padded_outputs(hf, IDS, types))
    np.testing.assert_allclose(outputs(tmp_path), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logn_attention_scale", True),
        ("logn_attention_clip1", True),
        ("layer_norm_type", "rms_norm"),
        ("pack_qkv", False),
        ("position_embedding_type", "absolute"),
        ("hidden_act", "relu"),
        ("auto_map", {"AutoModel": "someone/else--modeling.NewModel", "x": "x--y.Z"}),
    ],
)
def test_gte_options_that_change_the_arithmetic(tmp_path, key, value):
    random_hf.save(tmp_path, "gte", "features")
    rewrite(tmp_path, model_type="new", rope_theta=160000.0, **{key: value})
    assert f"'{key}'" in refusal(tmp_path)


def test_gte_without_types_takes_pairs_of_a_tokenizer_that_makes_types(tmp_path):
    random_hf.save(tmp_path, "gte", "sequence-classification", type_vocab_size=0)
    small_tokenizer.save(tmp_path)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    model = import_model(tmp_path, calibrate=[("a text", "another")] * 16, method="minmax")
    packed = Edge(model.meta, model.files).encode(["one"], ["two"])
    assert 1 in packed.encodings[0].type_ids and not packed.token_type_ids.any()


# -- Jina v3 ---------------------------------------------------------------------------------------


def test_jina_v3_with_adapters_that_nothing_merged(tmp_path):
    random_hf.save(tmp_path, "jina_embeddings_v3", "features")
    key = "encoder.layers.0.mixer.Wqkv.parametrizations.weight.original"
    renamed(tmp_path, lambda k: key if k == "encoder.layers.0.mixer.Wqkv.weight" else k)
    assert key in refusal(tmp_path)


def test_jina_v3_as_first_published_is_refused(tmp_path):
    random_hf.save(tmp_path, "jina_embeddings_v3", "features")
    named = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    rewrite(tmp_path, **named, position_embedding_type="rotary")
    assert "'position_embedding_type'" in refusal(tmp_path)
    rewrite(tmp_path, lora_adaptations=["retrieval.query", "classification"])
    assert "'lora_adaptations'" in refusal(tmp_path)


# -- JinaBERT --------------------------------------------------------------------------------------


def test_slopes_of_twelve_heads_are_no_plain_series():
    """Eight heads: 1/2, 1/4, ... 1/256; four more lie between: 2^-0.5, 2^-1.5, ..."""
    eight = [2.0**-i for i in range(1, 9)]
    assert slopes(8) == eight
    np.testing.assert_allclose(slopes(12), [*eight, *(2.0 ** -(i + 0.5) for i in range(4))])
    for heads in (1, 2, 3, 4, 5, 6, 7, 12, 16, 20):
        np.testing.assert_allclose(slopes(heads), jina_bert.slopes(heads))


@pytest.mark.parametrize("heads", [3, 4])
def test_jina_bert_equals_the_published_description(tmp_path, heads):
    model = jina_bert.save(tmp_path, num_attention_heads=heads)
    with torch.inference_mode():
        want = [model(torch.from_numpy(ids), torch.arange(len(ids)) % 2).numpy() for ids in IDS]
    want = np.concatenate(want)
    np.testing.assert_allclose(outputs(tmp_path), want, rtol=1e-4, atol=2e-5)
    calibrate = [
        (s, np.arange(len(s), dtype=np.int32) % 2)
        for s in random_hf.sequences((7, 12, 30, 3) * 24, seed=1)
    ]
    integers = import_model(tmp_path, calibrate=calibrate, method="minmax")
    types = [np.arange(len(s), dtype=np.int32) % 2 for s in IDS]
    inputs = pack(list(zip(IDS, types, strict=True)), integers.meta)
    got = integers.run(inputs)[integers.output] * integers.meta["output_scale"]
    assert snr_db(want, got) > 20
    assert "attention_bias" in {node.op for node in integers.nodes}


def test_a_library_of_jina_bert_equals_the_reference(tmp_path):
    jina_bert.save(tmp_path / "model")
    sequences = random_hf.sequences((7, 12, 30, 3) * 4, seed=1)
    path = intformer.compile(
        tmp_path / "model", tmp_path / "m.so", target="x86-64", calibrate=sequences
    )
    report = intformer.verify(path)
    assert report.ok, report


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feed_forward_type", "original"),
        ("feed_forward_type", "reglu"),
        ("hidden_act", "relu"),
        ("auto_map", {"AutoModel": "someone/else--modeling.JinaBertModel"}),
    ],
)
def test_jina_bert_options_that_change_the_arithmetic(tmp_path, key, value):
    jina_bert.save(tmp_path, **{key: value})
    assert f"'{key}'" in refusal(tmp_path)


def test_jina_bert_with_normalised_queries(tmp_path):
    jina_bert.save(tmp_path)
    file = tmp_path / "model.safetensors"
    key = "encoder.layer.0.attention.self.layer_norm_q.weight"
    save_file(load_file(file) | {key: np.ones(48, np.float32)}, file)
    assert key in refusal(tmp_path)


def test_a_bert_of_transformers_with_alibi_is_no_jina_bert(tmp_path):
    """Whoever wrote it: no key says what its feed-forward layers are."""
    random_hf.save(tmp_path, "bert", "features")
    rewrite(tmp_path, position_embedding_type="alibi")
    assert "'feed_forward_type' is missing" in refusal(tmp_path)


def test_jina_bert_does_not_train_as_a_bert(tmp_path):
    """transformers would load it as one, without a warning that counts."""
    jina_bert.save(tmp_path)
    with pytest.raises(CheckpointError, match="transformers does not read this directory"):
        prepare(tmp_path)
