"""Constants as the kernels read them, and back: every packing is invertible.

A constant of a plan is one tensor of the IntModel in a layout that a spec describes, JSON-able:

    {"tensor": name, "kind": "raw"}                    as it is
    {"tensor": name, "kind": "channels", "width": W, "map": groups, "fill": v}
                                                       [..., C] spread over [..., W]
    {"tensor": name, "kind": "weight", ...}            [N, K] as [N' / 16, K' / 4, 16, 4]
    {"tensor": name, "kind": "rows", ...}              [N, K] as [N', K'], for GPUs
    {"tensor": name, "kind": "bias", "weight": name, "zero_point": z, ...}
                                                       less z * the row sums of the weight
    {"tensor": name, "kind": "distances", ...}         see _by_distance
Sixteen rows of a weight are what one AVX-512 register or AMX tile takes, four columns what one lane
of a dot product sums; a chip with narrower vectors reads the sixteen in parts. So every CPU
reads the same bytes.

A channel map is (groups, size, padded): channel g * size + j sits in column g * padded + j.
"""

import numpy as np

from intformer.ir.constants import DEPTH, LANES, ZERO_POINT


def columns(channel_map: tuple[int, int, int]) -> np.ndarray:
    """Return the physical column of every logical channel, int64 [groups * size]."""
    groups, size, padded = channel_map
    return (np.arange(groups)[:, None] * padded + np.arange(size)).ravel()


def spread(array: np.ndarray, axis: int, channel_map, width: int, fill: int = 0) -> np.ndarray:
    """Return the array with one axis moved from logical channels to physical columns.

    It is the same array where nothing moves.
    """
    groups, size, padded = channel_map
    if width == array.shape[axis] and (groups == 1 or size == padded):
        return array
    shape = list(array.shape)
    shape[axis] = width
    out = np.full(shape, fill, array.dtype)
    index = [slice(None)] * array.ndim
    index[axis] = columns(channel_map)
    out[tuple(index)] = array
    return out


def pack(spec: dict, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the constant that a spec describes."""
    array = tensors[spec["tensor"]]
    if spec["kind"] == "channels":
        return spread(array, -1, spec["map"], spec["width"], spec["fill"])
    if spec["kind"] in ("weight", "rows"):
        array = spread(array, 1, spec["map_in"], spec["width_in"])
        array = spread(array, 0, spec["map_out"], spec["width_out"])
        if spec["kind"] == "rows":
            return array
        n, k = array.shape
        blocked = array.reshape(n // LANES, LANES, k // DEPTH, DEPTH)
        return np.ascontiguousarray(blocked.transpose(0, 2, 1, 3))
    if spec["kind"] == "bias":
        # sums wrap as the kernel's accumulator does; the total fits int32 (range analysis)
        total = array.astype(np.int64) - _share(spec, tensors)
        return spread(total.astype(np.int32), 0, spec["map"], spec["width"])
    if spec["kind"] == "distances":
        return _by_distance(spec, array)
    return array


def unpack(packing: dict[str, dict], constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the IntModel's tensors: the inverse of pack over all constants."""
    tensors: dict[str, np.ndarray] = {}
    biases = []
    for name, spec in packing.items():
        array = constants[name]
        if spec["kind"] == "bias":
            biases.append((array, spec))
        elif spec["kind"] in ("weight", "rows"):
            if spec["kind"] == "weight":
                n, k, *_ = array.shape
                array = array.transpose(0, 2, 1, 3).reshape(n * LANES, k * DEPTH)
            tensors[spec["tensor"]] = np.ascontiguousarray(
                array[np.ix_(columns(spec["map_out"]), columns(spec["map_in"]))]
            )
        elif spec["kind"] == "channels":
            tensors[spec["tensor"]] = np.ascontiguousarray(array[..., columns(spec["map"])])
        elif spec["kind"] == "distances":
            tensors[spec["tensor"]] = _from_distances(spec, array)
        else:
            tensors[spec["tensor"]] = array
    for array, spec in biases:
        logical = array[columns(spec["map"])].astype(np.int64) + _share(spec, tensors)
        tensors[spec["tensor"]] = logical.astype(np.int32)
    return tensors


def _by_distance(spec: dict, array: np.ndarray) -> np.ndarray:
    """Return int8 [T, C] as words of four channels, int32 [heads, dim / 4 (+ 1), T + room].

    A first operand has its zero point. A second one has a last row: what the zero point of the
    first one adds to a product with it, less than 0. So a vector of words is that of neighbouring
    distances.
    """
    heads, _, padded = spec["map"]
    array = spread(array, 1, spec["map"], heads * padded)
    parts = array.reshape(len(array), heads, padded // DEPTH, DEPTH).transpose(1, 2, 0, 3)
    if spec["first"]:
        parts = (parts.astype(np.int16) + spec["zero_point"]).astype(np.uint8)
    words = np.ascontiguousarray(parts).view("<i4")[..., 0].astype(np.int32)
    if not spec["first"]:
        sums = parts.sum((1, 3), dtype=np.int32) * -spec["zero_point"]
        words = np.concatenate([words, sums[:, None]], 1)
    return np.pad(words, ((0, 0), (0, 0), (0, spec["room"])))


def _from_distances(spec: dict, words: np.ndarray) -> np.ndarray:
    """Return int8 [T, C]: the inverse of _by_distance."""
    heads, _, padded = spec["map"]
    words = words[:, : padded // DEPTH, : words.shape[2] - spec["room"]]
    if spec["first"]:
        parts = np.ascontiguousarray(words, "<i4")[..., None].view(np.uint8)
        parts = (parts.astype(np.int16) - spec["zero_point"]).astype(np.int8)
    else:
        parts = np.ascontiguousarray(words, "<i4")[..., None].view(np.int8)
    array = parts.transpose(2, 0, 1, 3).reshape(words.shape[2], heads * padded)
    return np.ascontiguousarray(array[:, columns(spec["map"])])


def _share(spec: dict, tensors: dict[str, np.ndarray]) -> np.ndarray:
    zero_point = spec.get("zero_point", ZERO_POINT)  # libraries of before do not say it
    return zero_point * tensors[spec["weight"]].sum(1, dtype=np.int64)
