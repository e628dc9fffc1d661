"""The integer ops in torch give the integers of their NumPy references, at the extremes too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intformer.qat.interpreter import OPS
from intformer.relay_ops import OPS as REFERENCES
from intformer.relay_ops import (
    attention,
    attention_ibert,
    gate,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_stream_norm,
    requantize16,
    rescale,
    rotary,
    weighted_pool,
)
from intformer.relay_ops.fixedpoint import make_dyadic

SEEDS = st.integers(0, 2**32 - 1)
OFFSETS = np.array([0, 1, 4, 21, 22, 40], np.int32)


def integers(rng, low, high, shape, dtype):
    """Integers of a range, its ends among them more often than chance has it."""
    found = rng.integers(low, high, shape, endpoint=True)
    ends = rng.random(shape)
    return np.where(ends < 0.1, low, np.where(ends > 0.9, high, found)).astype(dtype)


def log_uniform(rng, low, high, size):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def embed(rng):
    def table(rows, dtype, top):
        mult, shift = make_dyadic(log_uniform(rng, 0.01, 100, rows))
        return integers(rng, -top, top, (rows, 12), dtype), mult, shift

    types, positions = (int(one) for one in rng.integers(0, 2, 2))
    sizes = [50] + [2] * types + [30] * positions
    ids = [rng.integers(0, size, 9).astype(np.int32) for size in sizes]
    dtypes = [(np.int8, 127)] + [(np.int16, 32767)] * (len(sizes) - 1)
    tables = [part for size, kind in zip(sizes, dtypes, strict=True) for part in table(size, *kind)]
    attrs = {"lo": -(2**17) + 1, "hi": 2**17 - 1, "types": types, "positions": positions}
    return (*ids, *tables), attrs


def matmul(rng):
    k = int(rng.choice([3, 384, 1024, 1025, 3072]))
    x, w = (integers(rng, -128, 127, (n, k), np.int8) for n in (5, 7))
    x[0], w[0] = -128, -128  # all saturated: 3072 * 2^14
    return (x, w, integers(rng, -(2**29), 2**29, 7, np.int32)), {}


def requantize(rng):
    ratio = log_uniform(rng, 1e-9, 1.0, 6)
    ratio[:2] = 0.5, 0.25  # halves, to even
    ratio *= rng.choice([-1, 1], 6)
    dtype, (lo, hi) = [("int8", (-127, 127)), ("int16", (-32767, 32767)), ("int32", (-9, 2**30))][
        rng.integers(3)
    ]
    x = integers(rng, -(2**31) + 1, 2**31 - 1, (9, 6), np.int32)
    return (x, *make_dyadic(ratio)), {"lo": lo, "hi": hi, "dtype": dtype}


def rescaled(rng):
    dtype, limit = [("int8", 127), ("int16", 32767), ("int32", 2**20)][rng.integers(3)]
    reach = int(2 ** rng.integers(12, 27))
    ratio = limit * log_uniform(rng, 0.01, 4, 6) / reach
    lift = rescale.lift_bits(ratio, np.full(6, reach), dtype)
    x = integers(rng, -reach, reach, (9, 6), np.int32)
    return (x, *rescale.tables(ratio, lift)), {
        **{"lift": lift, "lo": -limit, "hi": limit},
        "dtype": dtype,
    }


def requantize_16(rng):
    x = integers(rng, -32767, 32767, (9, 6), np.int16)
    return (x, *requantize16.tables(log_uniform(rng, 1e-6, 0.49, 6))), {}


def gelu(rng):
    form = str(rng.choice(list(i_gelu.FORMS)))
    least, most = i_gelu.FORMS[form].bits
    k = int(rng.integers(least, most + 1))
    x = integers(rng, -32767, 32767, (9, 6), np.int16)
    return (x, i_gelu.point(k, form)), {"form": form}


def gated(rng):
    (x, point), attrs = gelu(rng)
    mult, offset = gate.tables(log_uniform(rng, 2.0**-23, 0.5, 3))
    return (x, point, mult, offset), {**attrs, "active": int(rng.integers(2))}


def turned(rng):
    heads, size = int(rng.integers(1, 4)), int(rng.choice([2, 10, 64]))
    angles = rng.uniform(0, 7, (30, size // 2))
    x = integers(rng, -32767, 32767, (9, 3 * heads * size), np.int16)
    positions = integers(rng, 0, 29, 9, np.int32)
    tables = rotary.tables(np.cos(angles), np.sin(angles))
    return (x, positions, *tables), {"heads": heads, "head_dim": size}


def layernorm(rng):
    n = int(rng.choice([1, 2, 60, 384, 1024]))
    x = integers(rng, -(2**17), 2**17, (6, n), np.int32)
    x[0], x[1], x[1, 0] = 5, -(2**17), 2**17  # a constant row, and the largest deviation
    gamma, beta = rng.normal(size=n), rng.normal(size=n)
    gamma[0] = 0
    tables = i_layernorm.tables(1e-3, gamma, beta, 1e-12, rng.uniform(0.01, 0.1, n), 1e-3)
    return (x, *tables.values()), {}


def stream_norm(rng):
    n, limit = int(rng.choice([1, 2, 60, 384, 1024])), 2 ** int(rng.integers(10, 26))
    x = integers(rng, -limit, limit, (7, n), np.int32)
    x[0], x[1], x[1, 0], x[2], x[3] = 5, -limit, limit, 0, 2**25
    tables = i_stream_norm.tables(
        1e-3, rng.normal(size=n), rng.normal(size=n), 1e-5, rng.uniform(0.01, 0.1, n)
    )
    dtype = str(rng.choice(["int8", "int16"]))
    return (x, *tables.values()), {"rms": bool(rng.integers(2)), "dtype": dtype}


def attend(rng):
    heads, size = int(rng.integers(1, 4)), int(rng.choice([1, 8, 32]))
    qkv = integers(rng, -127, 127, (40, 3 * heads * size), np.int8)
    score = float(log_uniform(rng, 1e-6, 0.3, 1)[0]) * size**0.5
    out = rng.uniform(0.005, 0.05, heads * size)
    tables = attention.tables(score, 1.0, rng.uniform(0.01, 0.03, heads * size), size, out)
    attrs = {"heads": heads, "head_dim": size}
    if rng.integers(2):
        attrs["window"] = int(rng.integers(0, 20))
    return (qkv, OFFSETS, *tables.values()), attrs


def attend_biased(rng):
    arrays, attrs = attend(rng)
    attrs.pop("window", None)
    longest = int(np.diff(OFFSETS).max()) + int(rng.integers(0, 3))
    most = int(log_uniform(rng, 1, 2**20, 1)[0])
    bias = integers(rng, -most, most, (attrs["heads"], 2 * longest - 1), np.int32)
    return (*arrays, bias), attrs


def attend_relative(rng):
    arrays, attrs = attend(rng)
    attrs.pop("window", None)
    longest = int(np.diff(OFFSETS).max()) + int(rng.integers(0, 3))
    most = int(log_uniform(rng, 1, 127, 1)[0])
    shape = 2 * longest - 1, attrs["heads"] * attrs["head_dim"]
    return (*arrays, *(integers(rng, -most, most, shape, np.int8) for _ in range(2))), attrs


def residual_add(rng):
    a = integers(rng, -(2**30), 2**30, (9, 6), np.int32)
    b = integers(rng, -127, 127, (9, 6), np.int8)
    ratio = make_dyadic(log_uniform(rng, 1e-3, 1e4, 1))
    return (a, b, *ratio), {"lo": -(2**21), "hi": 2**21 - 1}


def gelu_ibert(rng):
    scale = log_uniform(rng, 2e-6, 1e-2, 6).astype(np.float32)
    tables = i_gelu_ibert.tables(scale, float(rng.uniform(0.01, 0.1)))
    reach = int(20 / scale.max())
    acc = integers(rng, -reach, reach, (9, 6), np.int32)
    acc[0] = 0
    return (acc, *tables.values()), {"lo": -128, "hi": 127}


def layernorm_ibert(rng):
    n = int(rng.choice([2, 48, 384]))
    x = integers(rng, -(2**21), 2**21 - 1, (6, n), np.int32)
    x[0] = 7  # a constant row
    gamma = rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n)
    tables = i_layernorm_ibert.tables(gamma, gamma * rng.uniform(-1, 1, n), 0.03)
    prescale = np.array([rng.integers(0, 8)], np.int32)
    return (x, *tables.values(), prescale), {"lo": -128, "hi": 127}


def attend_ibert(rng):
    heads, size = int(rng.integers(1, 4)), int(rng.choice([1, 8, 32]))
    qkv = integers(rng, -128, 127, (40, 3 * heads * size), np.int8)
    score = float(log_uniform(rng, 1e-5, 0.3, 1)[0])
    top = float(log_uniform(rng, 1e9, 1e14, 1)[0])
    tables = attention_ibert.tables(score, top, 0.02, 0.015, heads * size)
    return (qkv, OFFSETS, *tables.values()), {"heads": heads, "head_dim": size}


def rows(rng, dtype=np.int16, top=32767):
    return integers(rng, -top, top, (40, 6), dtype)


def weighted_pooling(rng):
    form, shift = [("mean_sqrt", 33), ("weighted_mean", 12)][rng.integers(2)]
    table = weighted_pool.divisors(form, 99)
    return (rows(rng), OFFSETS, table), {"shift": shift, "rising": form == "weighted_mean"}


CASES = {
    "embed": embed,
    "matmul": matmul,
    "requantize": requantize,
    "rescale": rescaled,
    "requantize16": requantize_16,
    "add": lambda rng: ((rows(rng), rows(rng)), {}),
    "relu": lambda rng: ((rows(rng, np.int32, 2**31 - 1),), {}),
    "i_tanh": lambda rng: ((rows(rng, np.int32, 2**18),), {}),
    "i_gelu": gelu,
    "gate": gated,
    "rotary": turned,
    "i_layernorm": layernorm,
    "i_stream_norm": stream_norm,
    "stream_add": lambda rng: ((rows(rng, np.int32, 2**29), rows(rng, np.int32, 2**29)), {}),
    "take_rows": lambda rng: (
        (rows(rng), OFFSETS),
        {"rows": "sequence", "last": bool(rng.integers(2))},
    ),
    "mean_pool": lambda rng: ((rows(rng), OFFSETS), {"fraction_bits": 12}),
    "weighted_pool": weighted_pooling,
    "concat": lambda rng: ((rows(rng), rows(rng)), {"border": 6}),
    "max_pool": lambda rng: ((rows(rng, np.int32, 2**31 - 1), OFFSETS), {}),
    "attention": attend,
    "attention_bias": attend_biased,
    "attention_relative": attend_relative,
    "residual_add": residual_add,
    "add_bias": lambda rng: (
        (rows(rng, np.int32, 2**30), integers(rng, -(2**30) + 1, 2**30 - 1, 6, np.int32)),
        {},
    ),
    "i_gelu_ibert": gelu_ibert,
    "i_layernorm_ibert": layernorm_ibert,
    "attention_ibert": attend_ibert,
}


def in_torch(name, arrays, attrs):
    """Run an op as the interpreter does: int64, but for a product's weights."""
    taken = [torch.from_numpy(array).long() for array in arrays]
    if name == "matmul":
        taken[1] = taken[1].float()
    found = OPS[name](*taken, **attrs)
    return found if isinstance(found, tuple) else (found,)


def test_every_op_has_a_torch_form_and_a_case():
    assert set(OPS) == set(REFERENCES) == set(CASES)


@pytest.mark.parametrize("name", CASES)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_integers_equal(name, seed):
    arrays, attrs = CASES[name](np.random.default_rng(seed))
    wanted = REFERENCES[name].reference(*arrays, **attrs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for want, found in zip(wanted, in_torch(name, arrays, attrs), strict=True):
        np.testing.assert_array_equal(found.numpy(), want.astype(np.int64))


def test_gelu_of_many_numbers():
    """Beyond 2^16 of them it goes by a table."""
    x = np.resize(np.arange(-32767, 32768, dtype=np.int16), (10, 7000))
    for form, about in i_gelu.FORMS.items():
        for k in range(about.bits[0], about.bits[1] + 1):
            wanted = i_gelu.reference(x, i_gelu.point(k, form), form=form)
            (found,) = in_torch("i_gelu", (x, i_gelu.point(k, form)), {"form": form})
            np.testing.assert_array_equal(found.numpy(), wanted)


def test_inputs_are_left_alone():
    """Most ops work in place, on their own temporaries."""
    rng = np.random.default_rng(0)
    for name, case in CASES.items():
        arrays, attrs = case(rng)
        taken = [torch.from_numpy(array).long() for array in arrays]
        if name == "matmul":
            taken[1] = taken[1].float()
        OPS[name](*taken, **attrs)
        for array, tensor in zip(arrays, taken, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array, err_msg=name)


@pytest.mark.gpu
def test_integers_equal_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(0)
    for name, case in CASES.items():
        for _ in range(10):
            arrays, attrs = case(rng)
            wanted = REFERENCES[name].reference(*arrays, **attrs)
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            taken = [torch.from_numpy(array).long().cuda() for array in arrays]
            if name == "matmul":
                taken[1] = taken[1].float()
            found = OPS[name](*taken, **attrs)
            found = found if isinstance(found, tuple) else (found,)
            for want, got in zip(wanted, found, strict=True):
                np.testing.assert_array_equal(got.cpu().numpy(), want.astype(np.int64), name)
