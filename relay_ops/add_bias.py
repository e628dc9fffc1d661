"""Add an int32 bias per channel to an int32 activation.

Source: I-BERT QuantLinear read with a scale that is not its input's (transformers passes the
embedding's to every layer): the accumulator is first brought to that scale, then gets its bias.
Everywhere else the bias is the matmul's own.
"""

import numpy as np

from intformer.relay_ops.fixedpoint import check_fits
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "add_bias"


def reference(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x int32 [r, C], bias int32 [C] -> int32 [r, C]; the sum is int32."""
    total = x.astype(np.int64) + bias
    return check_fits(total, "int32", NAME, "sum").astype(np.int32)


def bounds(x: Interval, bias: np.ndarray) -> Interval:
    """Interval of the sum, which must fit int32."""
    return (x + Interval.of(bias, bias)).fits("int32", NAME, "sum")


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te

    from intformer.relay_ops.expr import wrapping_add

    x, bias = args
    return [te.compute(x.shape, lambda i, r, c: wrapping_add(x[i, r, c], bias[c]), name="add_bias")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    elementwise=True,
    accumulates=True,
    source="transformers ibert QuantLinear",
)
