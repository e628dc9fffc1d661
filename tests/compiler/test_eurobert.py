"""EuroBERT beyond what all families are tested for: groups of heads, pooling, long texts."""

import numpy as np
import pytest
import torch

from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.calibrated import snr_db
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer_testing import random_hf

SHAPE = {"hidden": 32, "heads": 4, "ffn": 48, "max_position_embeddings": 2048}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_of_a_group_share_keys_and_values(tmp_path, groups):
    hf = random_hf.save(tmp_path, "eurobert", "features", num_key_value_heads=groups, **SHAPE)
    assert len(hf.layers[0].self_attn.k_proj.weight) == 8 * groups
    graph, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((1, 63, 65, 130))
    inputs = random_hf.packed(ids, meta)
    want = np.concatenate(random_hf.padded_outputs(hf, ids))
    np.testing.assert_allclose(run(graph, inputs), want, rtol=1e-4, atol=1e-4)


def test_a_long_text(tmp_path):
    hf = random_hf.save(tmp_path, "eurobert", "features", **SHAPE)
    text = random_hf.sequences((7, 12, 30, 3, 200) * 8, seed=1)
    model = import_model(tmp_path, calibrate=text, method="minmax")
    ids = random_hf.sequences((1024,))
    inputs, (want,) = random_hf.packed(ids, model.meta), random_hf.padded_outputs(hf, ids)
    assert snr_db(want, model.run(inputs)[model.output] * model.meta["output_scale"]) > 20


def test_one_large_channel_leaves_the_other_rows_their_precision(tmp_path):
    """A token whose embedding is huge in one channel sets the scale of the whole stream."""
    hf = random_hf.save(tmp_path, "eurobert", "features", **SHAPE)
    with torch.no_grad():
        hf.embed_tokens.weight[7, 3] = 1000.0
    hf.save_pretrained(tmp_path)
    text = [np.concatenate([[7], one]).astype(np.int32) for one in random_hf.sequences((30,) * 40)]
    model = import_model(tmp_path, calibrate=text, method="minmax")
    ids = random_hf.sequences((30,), seed=5)
    inputs, (want,) = random_hf.packed(ids, model.meta), random_hf.padded_outputs(hf, ids)
    got = model.run(inputs)[model.output] * model.meta["output_scale"]
    assert snr_db(want, got) > 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classifier_pooling": "cls"}, "classifier_pooling"),
        ({"clf_pooling": "mean"}, "clf_pooling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 16}, "head_dim"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "relu2"}, "hidden_act"),
    ],
)
def test_what_is_refused(tmp_path, changes, named):
    random_hf.save(tmp_path, "eurobert", "sequence-classification", **SHAPE)
    random_hf.rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(tmp_path))
    assert named in caught.value.what and "config.json" in str(caught.value)


HUB = {  # as the directories of the hub have it
    "AutoConfig": "configuration_eurobert.EuroBertConfig",
    "AutoModel": "modeling_eurobert.EuroBertModel",
    "AutoModelForMaskedLM": "modeling_eurobert.EuroBertForMaskedLM",
}


def test_a_directory_of_the_hub(tmp_path):
    """With the code that it names, which is not run; transformers reads it as its own."""
    hf = random_hf.save(tmp_path, "eurobert", "features", **SHAPE)
    random_hf.rewrite(
        tmp_path, auto_map=HUB, rope_parameters=None, rope_theta=250000.0, clf_pooling="late"
    )
    assert not Checkpoint(tmp_path).unread()
    graph, meta = read_encoder(Checkpoint(tmp_path))
    ids = random_hf.sequences((5, 40))
    hf = type(hf).from_pretrained(tmp_path).eval()
    want = np.concatenate(random_hf.padded_outputs(hf, ids))
    got = run(graph, random_hf.packed(ids, meta))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"auto_map": {"AutoModel": "modeling_other.EuroBertModel"}}, "modeling_other"),
        ({"auto_map": {"AutoModel": "modeling_eurobert.TurboModel"}}, "TurboModel"),
        ({"auto_map": HUB, "rope_parameters": None}, "'rope_theta' is missing"),
    ],
)
def test_what_is_not_known_of_the_hub_is_refused(tmp_path, changes, named):
    random_hf.save(tmp_path, "eurobert", "features", **SHAPE)
    random_hf.rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named):
        read_encoder(Checkpoint(tmp_path))
