"""The native recipe's scales where a channel is almost zero, and what its nodes hold then."""

from dataclasses import replace

import numpy as np
import pytest

from intformer.frontend import calibration
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir import ranges
from intformer.quantize.methods import METHODS
from intformer.quantize.native import lower
from intformer.quantize.native.scales import equalisation
from intformer.quantize.observe import observe
from intformer.relay_ops import i_layernorm, rescale
from intformer_testing import random_hf

NORMS = ("embed.norm", "layer0.norm1", "layer0.norm2", "layer1.norm1", "layer1.norm2")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Return (family, head, shape) -> encoder, what calibration saw, its first batch."""
    known = {}

    def read(family="bert", head="sequence-classification", **shape):
        key = family, head, *shape.items()
        if key not in known:
            folder = tmp_path_factory.mktemp("model")
            random_hf.save(folder, family, head, **shape)
            encoder, meta = read_encoder(Checkpoint(folder))
            texts = [(s, np.zeros_like(s)) for s in random_hf.sequences()]
            inputs = calibration.batches(texts, meta)
            known[key] = encoder, observe(encoder, inputs), inputs[0]
        return known[key]

    return read


def shrunk(seen, taps, size, channels=slice(None)):
    """What calibration would have seen, had these channels been `size` of what they are."""
    seen = dict(seen)
    for tap in taps:
        peaks, rows = seen[tap].peaks.copy(), seen[tap].rows.copy()
        peaks[:, channels] *= size
        rows[:, channels] *= size
        seen[tap] = replace(seen[tap], peaks=peaks, rows=rows)
    return seen


def lowered(encoder, seen, method="minmax", rounded=None):
    """Lower, and let the range analysis read every constant."""
    model = lower(encoder, seen, equalisation(encoder, seen), method, "test", rounded)
    model.meta["max_length"] = 32
    ranges.check(model)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_layernorm_channel_that_calibration_never_saw(calibrated, method):
    """Its scale is raised to what gamma allows; the scales of the others stay as they are."""
    encoder, seen, _ = calibrated()
    dead = shrunk(seen, NORMS, 1e-12, 5)
    model = lowered(encoder, dead, method)
    factors = equalisation(encoder, dead)
    norm = encoder["layer0.norm1"].params
    least = i_layernorm.least_scale(norm.weight, norm.bias)
    scale = np.array(model.values["layer0.norm1.int8"].scale)
    unit = scale / factors["layer0.ffn1"]
    np.testing.assert_allclose(scale[5], least[5])
    np.testing.assert_allclose(np.delete(unit, 5), unit[0])
    assert unit[5] > unit[0]
    assert np.abs(model.tensors["layer0.norm1.g_mult"][5]) >= 2**30


@pytest.mark.parametrize("size", [1e-3, 1e-9])
@pytest.mark.parametrize("method", METHODS)
def test_layernorms_that_are_almost_zero_everywhere(calibrated, method, size):
    """Raising all channels lowers no other: one pass is enough."""
    encoder, seen, _ = calibrated()
    lowered(encoder, shrunk(seen, NORMS, size), method)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("size", [1e-6, 1e-12])
def test_a_gelu_that_is_almost_zero(calibrated, activation, size):
    """GELU has 2^-13 at its finest: no int8 scale is below twice that."""
    encoder, seen, _ = calibrated(activation=activation)
    for channels in (slice(None), [3, 7]):
        model = lowered(encoder, shrunk(seen, ["layer0.act", "layer1.act"], size, channels))
        step = model.values["layer0.act"].scale
        scale = np.array(model.values["layer0.act.int8"].scale)
        assert np.min(scale) >= 2 * step
        if channels == slice(None):
            assert step == 2.0**-13


def test_a_decoder_tied_to_the_word_table(calibrated):
    """It has no factors of its channels: all of them get the scale that the smallest one needs."""
    encoder, seen, _ = calibrated(head="masked-lm")
    last = encoder.operands()[-1]
    assert last.tied
    (tap,) = last.edges
    for size in (1e-3, 1e-9):
        model = lowered(encoder, shrunk(seen, [tap], size))
        norm = encoder[tap].params
        least = i_layernorm.least_scale(norm.weight, norm.bias)
        assert model.values[tap + ".int8"].scale >= least.max() * (1 - 1e-9)


def test_a_layer_that_repeats_takes_the_larger_of_its_needs(calibrated):
    encoder, seen, _ = calibrated("albert", "features", layers=3)
    model = lowered(encoder, shrunk(seen, ["layer1.norm1"], 1e-9, 5))
    norm = encoder["layer0.norm1"].params
    least = i_layernorm.least_scale(norm.weight, norm.bias)
    for layer in range(3):
        assert np.array(model.values[f"layer{layer}.norm1.int8"].scale)[5] >= least[5] * (1 - 1e-9)


def test_nothing_is_raised_in_a_usual_model(calibrated):
    """One lift for all layers, so that they share their kernels; no factor moves."""
    encoder, seen, _ = calibrated()
    model, factors = lowered(encoder, seen), equalisation(encoder, seen)
    for node in model.nodes:
        if node.op == "rescale":
            assert node.attrs["lift"] == rescale.USUAL_LIFT[node.attrs["dtype"]], node.outputs
    scale = np.array(model.values["layer1.act.int8"].scale)
    np.testing.assert_allclose(scale / factors["layer1.ffn2"], scale[0] / factors["layer1.ffn2"][0])


def test_methods_share_rounded_weights_only_where_their_factors_agree(calibrated):
    encoder, seen, _ = calibrated()
    rounded = {}
    lowered(encoder, shrunk(seen, NORMS, 1e-9, 5), "minmax", rounded)
    second = lowered(encoder, seen, "mse", rounded)
    fresh = lowered(encoder, seen, "mse")
    for name, tensor in fresh.tensors.items():
        np.testing.assert_array_equal(second.tensors[name], tensor, err_msg=name)


def test_a_dead_weight_row_keeps_its_bias(calibrated):
    """Its weights are far below its bias: the accumulator stays within what rescale takes."""
    encoder, seen, inputs = calibrated("bert", "features", layers=1, seed=3)
    node = encoder["layer0.ffn1"]
    ffn = node.params
    weight, bias = ffn.weight.copy(), ffn.bias.copy()
    weight[4], weight[5], bias[4], bias[5] = 0, 1e-30, 1.5, -0.7
    ffn = replace(ffn, weight=weight, bias=bias)
    encoder = encoder.replaced([replace(node, params=ffn)])
    seen = observe(encoder, [inputs])
    model = lowered(encoder, seen)
    values = model.run(inputs)
    step = model.values["layer0.act"].scale
    for channel in (4, 5):
        found = values["layer0.act.in"][:, channel] * step
        np.testing.assert_allclose(found, bias[channel], atol=2 * step)
