"""Scales of recipe ibert: from recorded ranges, in float32 and in transformers' order."""

from collections.abc import Callable

import numpy as np

from intformer.ir.graph import Linear
from intformer.quantize.ibert import diagnostics


def act_scale(peak: float | np.ndarray, bits: int) -> np.float32:
    """Return the scale of a QuantAct whose largest |x_min|, |x_max| is `peak`."""
    return np.maximum(np.float32(peak), np.float32(1e-8)) / np.float32(2 ** (bits - 1) - 1)


def quantize(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """SymmetricQuantFunction: clamp(RHE((1 / scale) * x), -n, n - 1), n = 2^(bits-1) - 1; int64."""
    n = 2 ** (bits - 1) - 1
    rounded = np.rint((np.float32(1) / scale) * x).astype(np.float64)
    return np.clip(rounded, -n, n - 1).astype(np.int64)


class Recorded:
    """What training recorded in a checkpoint, by the key of the module.

    read   (key, shape) -> float32 array; raises CheckpointError where there is none
    where  the directory, for errors
    """

    def __init__(self, read: Callable, where: str):
        """Read nothing yet."""
        self._read, self.where = read, where

    def at(self, *keys: str) -> str:
        """Return the place of keys, for errors."""
        return f"{self.where}, {', '.join(keys)}"

    def peak(self, key: str) -> float:
        """Return the largest |x_min|, |x_max| of a calibrated QuantAct."""
        low, high = (self._read(f"{key}.{end}", (1,)) for end in ("x_min", "x_max"))
        return diagnostics.check_range(self.at(key), low[0], high[0])

    def scale(self, key: str, bits: int) -> tuple[np.float32, str]:
        """Return (scale, origin) of a QuantAct."""
        return act_scale(self.peak(key), bits), f"checkpoint: {key}.x_min, x_max"

    def shift(self, key: str) -> np.ndarray:
        """Return the shift of an IntLayerNorm, int32 [1]."""
        return self._read(f"{key}.shift", (1,)).astype(np.int32)

    def integers(self, linear: Linear, scale_x: np.float32):
        """Return QuantLinear's (weight int8 [N, K], bias int32 [N], accumulator scale [N]).

        scale_x  what transformers takes for the scale of the input
        """
        scale_w = act_scale(np.abs(linear.weight).max(1), 8)
        scale = scale_w * scale_x
        bias = quantize(linear.bias, scale, 32)
        parts = (np.split(array, linear.parts) for array in (bias, scale))
        for key, *part in zip(linear.keys, *parts, strict=True):
            diagnostics.check_bias(self.at(key), *part, linear.weight.shape[1])
        weight = quantize(linear.weight, scale_w[:, None], 8).astype(np.int8)
        return weight, bias.astype(np.int32), scale
