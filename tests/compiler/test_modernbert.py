"""ModernBERT beyond what all families are tested for: windows, two rotary bases, config keys."""

from dataclasses import replace

import numpy as np
import pytest
import transformers

import intformer
from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.calibrated import snr_db
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.ir.graph import Rotary
from intformer_testing import random_hf

EDGES = (63, 64, 65, 66, 127, 128, 129, 130)  # of a window of 64 tokens, and of a batch
SHAPE = {"hidden": 32, "heads": 2, "ffn": 48, "layers": 4}
PUBLISHED = {"local_attention": 128, "max_position_embeddings": 8192}
OLD = {  # keys of the directories of before transformers 5
    "global_rope_theta": 50000.0,
    "local_rope_theta": 700.0,
    "global_attn_every_n_layers": 2,
    "layer_types": None,
    "rope_parameters": None,
}


def alone(model, ids):
    """Rows of transformers, each sequence by itself: no padding can reach them."""
    return np.concatenate([random_hf.padded_outputs(model, [one])[0] for one in ids])


def turned_by(hf, graph, length):
    """The graph with the tables of angles of transformers, which rounds angles to float32."""
    import torch

    changed = []
    for node in graph.of_kind("rotary"):
        layer = hf.layers[int(node.name.removeprefix("layer").split(".")[0])]
        at = torch.arange(length)[None]
        tables = hf.rotary_emb(torch.zeros(1), at, layer.attention_type)
        size = node.params.cos.shape[1]
        cos, sin = (table[0, :, :size].double().numpy() for table in tables)
        # an angle is up to 8191, half a unit of its last place 2^-12
        np.testing.assert_allclose(cos, node.params.cos[:length], rtol=0, atol=2**-10)
        np.testing.assert_allclose(sin, node.params.sin[:length], rtol=0, atol=2**-10)
        changed.append(replace(node, params=Rotary(cos, sin)))
    return graph.replaced(changed)


@pytest.mark.slow
def test_as_many_tokens_as_there_can_be(tmp_path):
    hf = random_hf.save(tmp_path, "modernbert", "features", **SHAPE, **PUBLISHED)
    graph, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((8192,))
    inputs, want = random_hf.packed(ids, meta), alone(hf, ids)
    same_angles = turned_by(hf, graph, 8192)
    np.testing.assert_allclose(run(same_angles, inputs), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(graph, inputs), want, rtol=0, atol=1e-3)
    text = random_hf.sequences((7, 12, 30, 3, 200) * 8, seed=1)
    model = import_model(tmp_path, calibrate=text, method="minmax")
    got = model.run(inputs)[model.output] * model.meta["output_scale"]
    assert snr_db(want, got) > 20


@pytest.mark.parametrize("lengths", [EDGES, (1024,)], ids=str)
def test_lengths_around_and_far_beyond_the_window(tmp_path, lengths):
    hf = random_hf.save(tmp_path, "modernbert", "features", **SHAPE, **PUBLISHED)
    graph, meta = read_encoder(Checkpoint(tmp_path))
    assert meta["max_length"] == 8192
    ids = random_hf.sequences(lengths)
    inputs, want = random_hf.packed(ids, meta), alone(hf, ids)
    np.testing.assert_allclose(run(graph, inputs), want, rtol=1e-4, atol=1e-4)
    text = random_hf.sequences((7, 12, 30, 3, 200) * 8, seed=1)
    model = import_model(tmp_path, calibrate=text, method="minmax")
    got = model.run(inputs)[model.output] * model.meta["output_scale"]
    assert snr_db(want, got) > 20


def test_every_third_layer_sees_all_tokens(tmp_path):
    random_hf.save(tmp_path, "modernbert", "features", **{**SHAPE, "layers": 7}, **PUBLISHED)
    graph, _ = read_encoder(Checkpoint(tmp_path))
    windows = [node.attrs.get("window") for node in graph.of_kind("attention")]
    assert windows == [None, 64, 64, None, 64, 64, None]
    bases = [node.params.cos[1, 1] for node in graph.of_kind("rotary")]
    wide, narrow = (np.cos(theta ** (-2 / 16)) for theta in (160000, 10000))
    np.testing.assert_allclose(bases, [wide, narrow, narrow, wide, narrow, narrow, wide])


def test_old_keys_of_config(tmp_path):
    """Directories of the hub have them; transformers reads both."""
    import transformers

    random_hf.save(tmp_path, "modernbert", "features", **SHAPE, local_attention=8)
    random_hf.rewrite(tmp_path, **OLD)
    hf = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert hf.config.layer_types == ["full_attention", "sliding_attention"] * 2
    graph, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((5, 31))
    np.testing.assert_allclose(
        run(graph, random_hf.packed(ids, meta)), alone(hf, ids), rtol=1e-4, atol=1e-4
    )


def test_new_keys_of_config(tmp_path):
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    bases = {"sliding_attention": 300.0, "full_attention": 9000.0}
    about = {kind: {"rope_type": "default", "rope_theta": bases[kind]} for kind in bases}
    more = {"layer_types": kinds, "rope_parameters": about, "local_attention": 4}
    hf = random_hf.save(tmp_path, "modernbert", "features", **SHAPE, **more)
    graph, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((5, 31))
    np.testing.assert_allclose(
        run(graph, random_hf.packed(ids, meta)), alone(hf, ids), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"local_attention": -1}, "local_attention"),
        ({"hidden_activation": "relu2"}, "hidden_activation"),
        ({"classifier_activation": "gelu_10"}, "classifier_activation"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention.rope_type",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 3.0}}, "rope_scaling.type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"head_dim": 8}, "head_dim"),
        ({"norm_bias": 1}, "norm_bias"),
        ({"norm_bias": True}, "embeddings.norm.bias"),
    ],
)
def test_what_is_refused(tmp_path, changes, named):
    random_hf.save(tmp_path, "modernbert", "sequence-classification", **SHAPE)
    random_hf.rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(tmp_path))
    assert named in caught.value.what and "config.json" in str(caught.value)


def test_a_window_by_the_other_key(tmp_path):
    """transformers takes it over local_attention, where config.json has it."""
    random_hf.save(tmp_path, "modernbert", "features", **SHAPE)
    random_hf.rewrite(tmp_path, sliding_window=5)
    assert transformers.AutoConfig.from_pretrained(tmp_path).local_attention == 10
    with pytest.raises(CheckpointError, match="'sliding_window' = 5"):
        read_encoder(Checkpoint(tmp_path))
    random_hf.rewrite(tmp_path, sliding_window=3)  # of 6 tokens
    read_encoder(Checkpoint(tmp_path))


def test_a_bias_that_config_json_does_not_know_is_refused(tmp_path):
    random_hf.save(tmp_path, "modernbert", "features", **SHAPE, attention_bias=True)
    random_hf.rewrite(tmp_path, attention_bias=False)
    with pytest.raises(CheckpointError, match=r"layers\.0\.attn\.Wqkv\.bias"):
        read_encoder(Checkpoint(tmp_path))


def test_the_stream_has_one_scale_and_room_for_its_depth(tmp_path):
    random_hf.save(tmp_path, "modernbert", "features", **{**SHAPE, "layers": 6})
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    sums = [node for node in model.nodes if node.op == "stream_add"]
    assert len(sums) == 12
    assert len({model.values[name].scale for node in sums for name in node.inputs}) == 1
    terms = [node for node in model.nodes if {node.outputs[0]} & {n.inputs[0] for n in sums}]
    assert {node.attrs["hi"] for node in terms} == {2**20}
    assert not [node for node in model.nodes if node.op == "add"]


def test_a_long_text_in_a_library(tmp_path):
    """Beyond a tile of scores, bit for bit; a window's layer costs tokens times window."""
    shape = {**SHAPE, "layers": 2, **PUBLISHED}
    random_hf.save(tmp_path / "model", "modernbert", "features", **shape)
    text = random_hf.sequences((7, 30, 200) * 8, seed=1)
    model = import_model(tmp_path / "model", calibrate=text, method="minmax")
    library = intformer.compile(model, tmp_path / "m.so", target="x86-64")
    ids = random_hf.sequences((1100, 3))
    inputs = random_hf.packed(ids, model.meta)
    got = library.run(inputs["input_ids"], inputs["cu_seqlens"])
    np.testing.assert_array_equal(got, model.run(inputs)[model.output])
