"""Packed constants: every packing is undone exactly, and padding holds what kernels count on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intformer.ir.constants import ZERO_POINT
from intformer.passes.packing import columns, pack, spread, unpack

few = settings(derandomize=True, max_examples=60, deadline=None)


def up(n, unit=16):
    return -(-n // unit) * unit


@st.composite
def maps(draw):
    """A channel map and a width that holds it."""
    groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    padded = size + draw(st.integers(0, 20))
    return (groups, size, padded), up(groups * padded) + 16 * draw(st.integers(0, 1))


def numbers(rng, shape, dtype):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def round_trip(specs, tensors):
    """Pack every spec; return (packed by name, tensors again) after comparing those."""
    packed = {f"c{i}": pack(spec, tensors) for i, spec in enumerate(specs)}
    again = unpack({f"c{i}": spec for i, spec in enumerate(specs)}, packed)
    assert again.keys() == {spec["tensor"] for spec in specs}
    for name, array in again.items():
        assert array.dtype == tensors[name].dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, tensors[name])
    return list(packed.values()), again


@few
@given(maps())
def test_columns_are_groups_of_channels(drawn):
    (groups, size, padded), width = drawn
    index = columns((groups, size, padded))
    assert len(index) == groups * size == len(set(index.tolist()))
    assert (np.diff(index) > 0).all() and index.max() < width
    for g in range(groups):
        assert index[g * size : (g + 1) * size].tolist() == [g * padded + j for j in range(size)]


@few
@given(
    maps(),
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from(["int8", "int16", "int32", "int64"]),
    st.integers(0, 40),
    st.integers(0, 2**32),
)
def test_channels(drawn, leading, dtype, fill, seed):
    channel_map, width = drawn
    index = columns(channel_map)
    tensors = {"t": numbers(np.random.default_rng(seed), (*leading, len(index)), dtype)}
    spec = {"tensor": "t", "kind": "channels", "map": channel_map, "width": width, "fill": fill}
    (packed,), _ = round_trip([spec], tensors)
    assert packed.shape == (*leading, width) and packed.dtype == dtype
    assert (np.delete(packed, index, axis=-1) == fill).all()


@few
@given(maps(), maps(), st.integers(0, 2**32))
def test_weight_and_bias(into, out, seed):
    """The order of a dot product's bytes, and a bias that takes the zero point back."""
    (map_in, width_in), (map_out, width_out) = into, out
    rng = np.random.default_rng(seed)
    rows, cols = columns(map_out), columns(map_in)
    tensors = {
        "w": numbers(rng, (len(rows), len(cols)), "int8"),
        "b": numbers(rng, len(rows), "int32") // 2,
    }
    weight = {
        "tensor": "w",
        "kind": "weight",
        "map_in": map_in,
        "width_in": width_in,
        "map_out": map_out,
        "width_out": width_out,
    }
    bias = {"tensor": "b", "kind": "bias", "weight": "w", "map": map_out, "width": width_out}
    (w, b), _ = round_trip([weight, bias], tensors)
    assert w.shape == (width_out // 16, width_in // 4, 16, 4) and w.dtype == np.int8
    assert w.flags.c_contiguous and b.shape == (width_out,)
    plain = np.zeros((width_out, width_in), np.int64)
    plain[np.ix_(rows, cols)] = tensors["w"]
    n, k = rng.integers(width_out), rng.integers(width_in)
    assert w[n // 16, k // 4, n % 16, k % 4] == plain[n, k]
    # padding columns of an operand hold 128 or anything else: their weights are 0
    x = rng.integers(-128, 128, width_in)
    stored = np.where(np.isin(np.arange(width_in), cols), x + ZERO_POINT, rng.integers(256))
    want = np.zeros(width_out, np.int64)
    want[rows] = tensors["w"].astype(np.int64) @ x[cols] + tensors["b"]
    np.testing.assert_array_equal(plain @ stored + b, want)


@few
@given(maps(), st.integers(1, 9), st.integers(0, 9), st.booleans(), st.integers(0, 2**32))
def test_tables_by_distance_are_words_of_a_distance(drawn, distances, room, first, seed):
    """Four channels to a word; a product with a packed operand of zero point 128 is exact."""
    (heads, size, padded), _ = drawn
    channel_map = heads, size, up(padded)
    rng = np.random.default_rng(seed)
    tensors = {"t": rng.integers(-127, 128, (distances, heads * size)).astype(np.int8)}
    spec = {"tensor": "t", "kind": "distances", "map": channel_map, "room": room}
    (words,), _ = round_trip([{**spec, "zero_point": ZERO_POINT, "first": first}], tensors)
    steps = channel_map[2] // 4
    assert words.dtype == np.int32
    assert words.shape == (heads, steps + (not first), distances + room)
    assert not words[:, :, distances:].any()
    x = rng.integers(-127, 128, (heads, size))
    want = (tensors["t"].reshape(distances, heads, size) * x).sum(2)
    other = spread(x, 1, (1, size, size), channel_map[2])
    for head in range(heads):
        got = words[head, :steps, :distances].T.copy().view(np.uint8 if first else np.int8)
        if first:
            total = got.astype(np.int64) @ other[head] - ZERO_POINT * x[head].sum()
        else:
            total = got.astype(np.int64) @ (other[head] + ZERO_POINT)
            total += words[head, steps, :distances]
        np.testing.assert_array_equal(total, want[:, head])


def test_a_folded_bias_may_wrap():
    """As the accumulator does; what comes out is the bias that went in."""
    tensors = {
        "w": np.full((2, 16), [[127], [-128]], np.int8),
        "b": np.array([-(2**31), 2**31 - 1]),
    }
    tensors["b"] = tensors["b"].astype(np.int32)
    one = (1, 2, 16)
    weight = {"tensor": "w", "kind": "weight"}
    weight |= {"map_in": (1, 16, 16), "width_in": 16, "map_out": one, "width_out": 16}
    bias = {"tensor": "b", "kind": "bias", "weight": "w", "map": one, "width": 16}
    round_trip([bias, weight], tensors)  # the bias first: its weight is unpacked before it


def test_one_tensor_in_two_layouts_comes_back_once():
    tensors = {"t": np.arange(6, dtype=np.int32), "raw": np.arange(3)}
    spec = {"tensor": "t", "kind": "channels", "width": 16, "fill": 1}
    specs = [{**spec, "map": (1, 6, 16)}, {**spec, "map": (2, 3, 8)}]
    packed, _ = round_trip([*specs, {"tensor": "raw", "kind": "raw"}], tensors)
    assert packed[1].tolist() == [0, 1, 2, *[1] * 5, 3, 4, 5, *[1] * 5]
    assert packed[2] is tensors["raw"]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_spread_moves_one_axis(axis):
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    size = array.shape[axis]
    out = spread(array, axis, (1, size, size), 16, fill=-7)
    assert out.shape[axis] == 16
    np.testing.assert_array_equal(np.take(out, range(size), axis), array)
    assert (np.take(out, range(size, 16), axis) == -7).all()
