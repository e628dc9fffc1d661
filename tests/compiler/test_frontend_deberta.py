"""DeBERTa: buckets of distances, what config.json may say of them, and what is refused."""

import json

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from intformer.errors import CheckpointError
from intformer.frontend.calibration import pack
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.families.deberta import log_bucket
from intformer.ir.float_run import run
from intformer_testing import random_hf


def saved(folder, head="features", **shape):
    random_hf.save(folder, "deberta-v2", head, **shape)
    return folder


def changed(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return folder


def relative(folder):
    graph, _ = read_encoder(Checkpoint(folder))
    return graph.of_kind("attention")[0].params


@pytest.mark.parametrize(
    ("buckets", "farthest"), [(256, 512), (256, 1024), (32, 128), (8, 32), (5, 20), (2, 512)]
)
def test_buckets_are_those_of_transformers(buckets, farthest):
    ahead = np.arange(-2048, 2049)
    want = make_log_bucket_position(torch.from_numpy(ahead), buckets, farthest).long()
    np.testing.assert_array_equal(log_bucket(ahead, buckets, farthest), want)


def test_buckets_on_paper(tmp_path):
    """8 buckets: exact up to 4 tokens, then three for up to 31; row 8 for the token itself."""
    rows = relative(saved(tmp_path)).bucket
    at = len(rows) // 2  # of the token itself; key less query grows to the right
    assert rows[at - 4 : at + 5].tolist() == [12, 11, 10, 9, 8, 7, 6, 5, 4]
    assert (rows[0], rows[-1]) == (15, 1)
    assert sorted(set(rows)) == list(range(1, 16))


@pytest.mark.parametrize("given", ["p2c|c2p", " C2P | p2c", ["c2p", "p2c"]])
def test_the_types_may_be_text_or_a_list(tmp_path, given):
    found = relative(changed(saved(tmp_path), pos_att_type=given))
    assert found.terms == 3 and found.key is not None and found.query is not None


def test_lengths_beyond_every_bucket(tmp_path):
    """Longer than max_relative_positions, too: transformers clamps."""
    hf = random_hf.save(
        tmp_path,
        "deberta-v2",
        "features",
        max_position_embeddings=96,
        max_relative_positions=24,
    )
    graph, meta = read_encoder(Checkpoint(tmp_path))
    assert meta["max_length"] == 96
    ids = random_hf.sequences((1, 9, 25, 60, 96))
    got = run(graph, pack([(s, np.zeros_like(s)) for s in ids], meta))
    want = np.concatenate(random_hf.padded_outputs(hf, ids))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


REFUSED = [
    ("conv_kernel_size", 3),
    ("attention_head_size", 8),
    ("pooler_hidden_size", 30),
    ("pos_att_type", ["c2p", "p2p"]),
    ("pos_att_type", 3),
    ("relative_attention", "yes"),
    ("relative_attention", False),
    ("position_buckets", 16),
    ("position_buckets", 1),
    ("max_relative_positions", 4),
    ("max_position_embeddings", 4097),
    ("embedding_size", 36),
    ("type_vocab_size", 2),
    ("position_biased_input", True),
    ("norm_rel_ebd", ["layer_norm"]),
    ("share_att_key", 1),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_is_not_honoured_is_refused(tmp_path, key, value):
    named = {
        "relative_attention": r"relative_attention|pos_att_type",
        "max_relative_positions": r"position_buckets",
        "type_vocab_size": "token_type_embeddings",
        "position_biased_input": "position_embeddings",
    }
    changed(saved(tmp_path), **{key: value})
    with pytest.raises(CheckpointError, match=named.get(key, key)):
        read_encoder(Checkpoint(tmp_path))


def test_a_pooler_of_an_unknown_activation_is_refused(tmp_path):
    changed(saved(tmp_path, "sequence-classification"), pooler_hidden_act="mish")
    with pytest.raises(CheckpointError, match="'pooler_hidden_act' = 'mish' is not supported"):
        read_encoder(Checkpoint(tmp_path))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_decoder_of_the_other_kind_is_refused(tmp_path, legacy):
    changed(saved(tmp_path, "masked-lm", legacy=legacy), legacy=not legacy)
    with pytest.raises(CheckpointError, match=r"cls\.predictions|lm_predictions"):
        read_encoder(Checkpoint(tmp_path))


def test_the_first_deberta_is_refused_by_name(tmp_path):
    changed(saved(tmp_path), model_type="deberta", architectures=["DebertaModel"])
    with pytest.raises(CheckpointError, match="'model_type' = 'deberta' is not supported"):
        read_encoder(Checkpoint(tmp_path))
