"""Random-weight shapes for latency: the configs are real, the weights reproducible."""

import numpy as np
import pytest
from transformers import AutoConfig

from intformer.errors import CheckpointError
from intformer.frontend import import_model, shapes

PARAMETERS = {  # sizes of the residual stream, as the public models have them
    "bert-base": (12, 768, 12),
    "bert-base-8192": (12, 768, 12),
    "bert-large": (24, 1024, 16),
    "roberta-base": (12, 768, 12),
    "xlm-roberta-base": (12, 768, 12),
    "mpnet-base": (12, 768, 12),
    "minilm-l6": (6, 384, 12),
    "modernbert-base": (22, 768, 12),
    "deberta-v3-base": (12, 768, 12),
    "distilbert": (6, 768, 12),
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_configs_are_the_public_ones(name):
    config = AutoConfig.for_model(**shapes.SHAPES[name])
    found = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    assert found == PARAMETERS[name]


def test_a_random_model_compiles_to_integers(tmp_path, monkeypatch):
    small = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    small |= {"intermediate_size": 64, "vocab_size": 1100}
    monkeypatch.setitem(shapes.SHAPES, "small", {**shapes.BERT, **small})
    text = shapes.random_sequences("small", count=4, length=16)
    one, two = (
        import_model(
            shapes.random_model("small", tmp_path / str(i), labels=3),
            calibrate=text,
            method="minmax",
        )
        for i in range(2)
    )
    assert one.meta["output_channels"] == 3
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, two.tensors[name])
    with pytest.raises(CheckpointError, match="shape 'huge'"):
        shapes.random_model("huge", tmp_path)
