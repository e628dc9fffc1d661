"""The FP32 model that libraries are compared with is FP32."""

import numpy as np
import pytest
import torch

from intformer.measure.float_model import FloatModel, GraphModel, float_model
from intformer_testing import make_ibert, onnx_files, random_hf


def test_the_largest_logits_of_each_text(tmp_path):
    model = random_hf.save(tmp_path, "bert", "sparse-embedding")
    ids = random_hf.sequences()
    want = np.stack([rows.max(0) for rows in random_hf.padded_outputs(model, ids)])
    ends = np.cumsum([0, *map(len, ids)])
    meta = {"head": "sparse-embedding", "pad_token_id": 0}
    got = FloatModel(tmp_path, meta).rows(np.concatenate(ids), None, ends, batch=4)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_an_ibert_checkpoint_runs_in_float(tmp_path):
    model = make_ibert.random_model(layers=1)
    model.save_pretrained(tmp_path)
    assert model.config.quant_mode
    meta = {"head": "sequence-classification", "pad_token_id": 1}
    ours = FloatModel(tmp_path, meta).model
    switched = [module for module in ours.modules() if hasattr(module, "quant_mode")]
    assert switched
    assert not any(module.quant_mode for module in switched)
    assert not ours.config.quant_mode
    # the same weights: a float forward pass by hand from the word embeddings up to LayerNorm
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        got = ours.ibert.embeddings(ids)[0].numpy()
    weights = {name: w.detach().numpy() for name, w in model.ibert.embeddings.named_parameters()}
    x = weights["word_embeddings.weight"][2:12] + weights["token_type_embeddings.weight"][0]
    x = x + weights["position_embeddings.weight"][2:12]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
    x = x * weights["LayerNorm.weight"] + weights["LayerNorm.bias"]
    np.testing.assert_allclose(got[0], x, atol=1e-4)


@pytest.mark.parametrize("head", ["features", "sequence-classification"])
def test_a_file_that_transformers_does_not_read_runs_as_its_graph(tmp_path, head):
    """Rows in the order of the sequences, batch by batch; the directory's own where it can be."""
    model = random_hf.save(tmp_path, "bert", head)
    ids = random_hf.sequences()
    packed = np.concatenate(ids), None, np.cumsum([0, *map(len, ids)])
    meta = {"head": head, "pad_token_id": 0}
    theirs = float_model(tmp_path, meta)
    assert isinstance(theirs, FloatModel)
    onnx_files.export(model, tmp_path / "model.onnx")
    (tmp_path / "model.safetensors").unlink()
    ours = float_model(tmp_path, meta)
    assert isinstance(ours, GraphModel)
    wanted = theirs.rows(*packed, batch=4).reshape(-1, 60 if head == "features" else 3)
    np.testing.assert_allclose(ours.rows(*packed, batch=4), wanted, atol=1e-4)
