"""Integer GELU (erf and tanh forms) and SiLU of the native recipe, in 16-bit lanes.

gelu(x) = relu(x) - g(|x|) with g(t) = t * Phi(-t), which holds for both forms because
gelu(x) - gelu(-x) = x. Phi(-t) on [0, 3.5] is a polynomial of degree 6 in u = (t - 1.75) / 2, which
lies in [-0.875, 0.875]: every coefficient and every partial sum is below 1, so int16 holds
them as Q15 and one rounded high product (mul_round) is a Horner step. From 3.5 on g stays
at g(3.5). Minimax fit of g, then the integer coefficients were searched over all x at k = 12.

silu(x) = x sigmoid(x) is the same with sigmoid(-t) for Phi(-t), on [0, 7.9375] and of degree 7: g
beyond the edge falls from 2.8e-3 to 0, and stays at half of that. quick-GELU, x sigmoid(1.702 x),
is silu(1.702 x) / 1.702: the integers of SiLU at other scales.

x has k fraction bits, 9 to 13 (SiLU: 12), chosen where the output's range is known: x beyond
+-(2^15 - 1) is clamped, and the int8 output of the layer clamps the same values anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import in_blocks, mul_round
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "i_gelu"
LIMIT = 2**15 - 1


@dataclass(frozen=True)
class Form:
    """One function.

    edge          t from which g stays as it is
    unit          bits of what u is in units of: u = (t - edge / 2) / 2^unit
    bits          least and most k: x covers +-2^(15 - k); with fewer, steps of x exceed the error
    coefficients  in Q15, of the highest power first
    """

    edge: float
    unit: int
    bits: tuple[int, int]
    coefficients: tuple[int, ...]


FORMS = {
    "erf": Form(3.5, 1, (9, 13), (-2063, 3890, 359, -7712, 9818, -5645, 1315)),
    "tanh": Form(3.5, 1, (9, 13), (-1904, 3719, 253, -7564, 9824, -5676, 1315)),
    "silu": Form(7.9375, 2, (9, 12), (589, -1731, -298, 4992, -6507, 4674, -2318, 604)),
}
QUICK = 1.702  # of quick-GELU
FUNCTIONS = {  # activation -> (form, s): f(x) is that of s x, over s
    "gelu": ("erf", 1.0),
    "gelu_tanh": ("tanh", 1.0),
    "silu": ("silu", 1.0),
    "quick_gelu": ("silu", QUICK),
}


def fraction_bits(top: float, form: str) -> int:
    """Return the largest k of a form whose int16 covers +-top."""
    least, most = FORMS[form].bits
    return next((k for k in range(most, least, -1) if top * 2**k <= LIMIT), least)


def scale(top: float, function: str) -> tuple[int, float]:
    """Return (k, real units per LSB of input and output) where the output reaches +-top."""
    form, stretch = FUNCTIONS[function]
    k = fraction_bits(top * stretch, form)
    return k, 2.0**-k / stretch


def point(k: int, form: str = "erf") -> np.ndarray:
    """Return the constant of `reference` for k fraction bits: the edge, and t to u; int16 [2]."""
    about = FORMS[form]
    return np.array([about.edge * 2**k, 2 ** (15 - about.unit - k)], np.int16)


def tail(t: np.ndarray, point: np.ndarray, form: str) -> np.ndarray:
    """g(t) for t >= 0, both with k fraction bits, int32."""
    edge, scale = (int(p) for p in point)
    t = np.minimum(t.astype(np.int32), edge)
    u = (t - (edge >> 1)) * scale  # Q15
    h, *rest = FORMS[form].coefficients
    for c in rest:
        h = mul_round(h, u) + c
    return mul_round(t, h)


def reference(x: np.ndarray, point: np.ndarray, *, form: str) -> np.ndarray:
    """x int16 [r, C], above -2^15, point int16 [2] -> int16 [r, C]; k fraction bits both.

    form  a key of FORMS
    """
    _check(point, form)
    if x.size and int(x.min()) < -LIMIT:
        raise RangeError(f"x reaches {x.min()}, below {-LIMIT}", where=NAME)
    return in_blocks(
        lambda rows: (
            np.maximum(rows, 0) - tail(np.abs(rows.astype(np.int32)), point, form)
        ).astype(np.int16),
        x,
    )


def _check(point: np.ndarray, form: str) -> None:
    if not any(np.array_equal(point, known) for known in _POINTS[form]):
        raise RangeError(f"point is {np.asarray(point).tolist()}, of no k", where=NAME)


_POINTS = {
    name: [point(k, name) for k in range(form.bits[0], form.bits[1] + 1)]
    for name, form in FORMS.items()
}


def bounds(x: Interval, point: np.ndarray, *, form: str) -> Interval:
    """Interval; the constants bound the int16 intermediates (tests run every t of every k)."""
    _check(point, form)
    x.within(-LIMIT, LIMIT, NAME, "input", f"is beyond {LIMIT}")
    g = tail(np.arange(int(point[0]) + 1), point, form)
    low, high = np.maximum(x.low, 0) - int(g.max()), np.maximum(x.high, 0) - int(g.min())
    return Interval(low, high).fits("int16", NAME, "result")


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W], 16-bit lanes throughout."""
    x, point = args
    return [expression(lambda *i: x[i], x.shape, point, attrs["form"], "i_gelu")]


def expression(read: Callable, shape: tuple, point, form: str, name: str):
    """Return the tensor expression of a form: `name` of `shape` from int16 read(*indices)."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    def const(value):
        return tirx.const(value, "int16")

    t = te.compute(
        shape,
        lambda *i: te.min(te.max(read(*i), const(0) - read(*i)), point[0]),
        name="gelu_t",
    )
    u = te.compute(shape, lambda *i: (t[i] - (point[0] >> const(1))) * point[1], name="gelu_u")

    def out(*i):
        h, *rest = (const(value) for value in FORMS[form].coefficients)
        for c in rest:
            h = expr.mul_round(h, u[i]) + c
        return te.max(read(*i), const(0)) - expr.mul_round(t[i], h)

    return te.compute(shape, out, name=name)


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    elementwise=True,
    source="own; Hendrycks and Gimpel, arXiv 1606.08415",
)
