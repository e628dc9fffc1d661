"""The fixed-point primitives of fixedpoint.py as TIR and tensor expressions, integers only.

The expression functions work on scalars and on vectors (lanes are taken from the operand). There is
no float here and no division by anything but a constant: a quotient or a root is a sequential
reduction over its bits.
"""

import tvm
from tvm import te, tirx
from tvm.script import tirx as T

from intformer.ir.constants import LANES

# ops of our own: the vectorizer gives them lanes, then the back end turns them into what the chip
# has. LLVM does not find these instructions in a plain expression.
MUL_HIGH, MUL_ROUND = "tirx.intformer_mul_high", "tirx.intformer_mul_round"
ADD32, SHIFT32 = "tirx.intformer_add32", "tirx.intformer_shift32"
# attribute of a kernel whose buffers must not be merged: merging moves them to the heap
APART = "intformer.buffers_apart"
# annotation of a buffer that lives on the stack, so that LLVM keeps it in registers where it can
STACK = {"disable_lower_builtin": True}


def _dtype(x) -> str:
    return str(x.ty.dtype if hasattr(x, "ty") else x.dtype)


def _lanes(x) -> str:
    return str(x.ty.dtype if hasattr(x, "ty") else x.dtype).partition("x")[2]


def as_type(x, dtype: str):
    """Cast to the element type `dtype`, keeping the lanes of x."""
    lanes = _lanes(x)
    return T.cast(x, f"{dtype}x{lanes}" if lanes else dtype)


def like(value: int, x):
    """Return `value` as a constant of the type of x."""
    element = str(x.ty.dtype if hasattr(x, "ty") else x.dtype).partition("x")[0]
    scalar, lanes = tirx.const(value, element), _lanes(x)
    return T.broadcast(scalar, int(lanes)) if lanes else scalar


def clamp(x, lo: int, hi: int):
    """Return x limited to [lo, hi]."""
    return T.max(T.min(x, like(hi, x)), like(lo, x))


def wrapping_add(a, b):
    """Return a + b of two int32 whose sum is known to fit: a TIR op of our own."""
    return tirx.call_intrin(_dtype(a), ADD32, a, b)


def lifted(x, bits: int):
    """Return x * 2^bits of an int32 with room for it, a TIR op of our own; x itself for 0 bits."""
    return tirx.call_intrin(_dtype(x), SHIFT32, x, like(bits, x)) if bits else x


def mul_high(a, b):
    """Return floor(a * b / 2^32) of two int32, as int32: a TIR op of our own."""
    return tirx.call_intrin(_dtype(a), MUL_HIGH, a, b)


def mul_round(a, b):
    """Return (a * b + 2^14) >> 15 of two int16, as int16: fixedpoint.mul_round, a TIR op."""
    return tirx.call_intrin(_dtype(a), MUL_ROUND, a, b)


def product(x, mult):
    """Return x * mult as int64, of two 32-bit numbers."""
    return as_type(x, "int64") * as_type(mult, "int64")


def power_of_two(n):
    """Return 2^n, n int64 in 0..62, by a right shift.

    Below AVX2 LLVM turns a left shift of lanes by different amounts into float arithmetic.
    """
    return like(1 << 62, n) >> (like(62, n) - n)


def round_shift(p, shift):
    """Return p / 2^shift rounded half to even. p int64, shift int64 in 1..62."""
    one = like(1, p)
    half_less_one = power_of_two(shift - one) - one
    return (p + half_less_one + ((p >> shift) & one)) >> shift


def store(x, attrs: dict, output: int = 0):
    """Cast a logical int32 or int64 value to the physical type of output `output`."""
    zero_point, dtype = attrs["zero_points_out"][output], attrs["dtypes_out"][output]
    return as_type(x + like(zero_point, x) if zero_point else x, dtype)


def load(tensor: te.Tensor, attrs: dict, argument: int = 0):
    """Return index -> int32 expression of the logical value behind a physical tensor."""
    zero_point = attrs["zero_points_in"][argument]

    def read(*index):
        x = tensor[index].astype("int32")
        return x - zero_point if zero_point else x

    return read


def reciprocal(d: te.Tensor, bits: int, skip: int, name: str) -> te.Tensor:
    """Return floor((2^bits - 1) / d), elementwise, by restoring division: fixedpoint.reciprocal.

    d     int32 or int64, d > 2^skip - 1: the first `skip` numerator bits give no quotient bit
    name  block name; the step over the bits is the block's reduction
    """

    def step(state, divisor):
        remainder = state[0] + state[0] + tirx.const(1, d.dtype)
        bit = T.Select(remainder >= divisor[0], tirx.const(1, d.dtype), tirx.const(0, d.dtype))
        return remainder - bit * divisor[0], state[1] + state[1] + bit

    reducer = te.comm_reducer(
        step, lambda *_: (tirx.const((1 << skip) - 1, d.dtype), tirx.const(0, d.dtype))
    )
    k = te.reduce_axis((0, bits - skip), "bit")
    zero = tirx.const(0, d.dtype)
    return te.compute(d.shape, lambda *i: reducer((d[i], zero), axis=k), name=name)[1]


def isqrt(v: te.Tensor, bits: int, name: str) -> te.Tensor:
    """Return floor(sqrt(v)), elementwise, bit by bit; v int64, 0 <= v < 2^(2 bits)."""

    def step(state, source):
        trial = state[0] | source[0]
        return T.Select(trial * trial <= source[1], trial, state[0]), source[1]

    reducer = te.comm_reducer(step, lambda *_: (tirx.const(0, "int64"), tirx.const(0, "int64")))
    k = te.reduce_axis((0, bits), "bit")
    top = tirx.const(bits - 1, "int64")
    return te.compute(
        v.shape,
        lambda *i: reducer((power_of_two(top - k.var.astype("int64")), v[i]), axis=k),
        name=name,
    )[0]


def bit_length(v: te.Tensor, name: str) -> te.Tensor:
    """Return the number of bits of v, elementwise, by halving; int64, v >= 1."""

    def step(bits, source):
        more = T.Select((source[1] >> (bits + source[0])) > zero, source[0], zero)
        return bits + more

    zero = tirx.const(0, "int64")
    k = te.reduce_axis((0, 6), "bit")
    reducer = te.comm_reducer(
        lambda state, source: (step(state[0], source), source[1]),
        lambda *_: (zero, tirx.const(1, "int64")),
    )
    below = te.compute(
        v.shape,
        lambda *i: reducer((tirx.const(32, "int64") >> k.var.astype("int64"), v[i]), axis=k),
        name=name,
    )[0]
    return te.compute(v.shape, lambda *i: below[i] + tirx.const(1, "int64"), name=f"{name}_all")


def row_sum(value, shape: tuple, dtype: str, name: str, lanes: int = LANES) -> te.Tensor:
    """Return the sum over the last axis of value(i, r, c), in `lanes` partial sums first."""
    blocks, rows, width = shape
    c = te.reduce_axis((0, width // lanes), "chunk")
    partial = te.compute(
        (blocks, rows, lanes),
        lambda i, r, lane: te.sum(value(i, r, c * lanes + lane).astype(dtype), axis=c),
        name=f"{name}_partial",
    )
    lane = te.reduce_axis((0, lanes), "lane")
    return te.compute(
        (blocks, rows), lambda i, r: te.sum(partial[i, r, lane], axis=lane), name=name
    )


# -- our own ops -----------------------------------------------------------------------------------


def lanes_of(call) -> int:
    """Return the lanes of an expression."""
    return int(_lanes(call) or 1)


def high_product(call):
    """Return what MUL_HIGH means in plain TIR: for chips without a better way."""
    a, b = call.args
    return as_type(product(a, b) >> like(32, product(a, b)), "int32")


def rounded_product(call):
    """Return what MUL_ROUND means in plain TIR: for chips without a better way."""
    a, b = call.args
    p = as_type(a, "int32") * as_type(b, "int32")
    return as_type((p + like(1 << 14, p)) >> like(15, p), "int16")


def sum32(call):
    """Return what ADD32 means in plain TIR."""
    a, b = call.args
    return a + b


def shift32(call):
    """Return what SHIFT32 means in plain TIR."""
    x, bits = call.args
    return x << bits


def register_op(name: str) -> None:
    """Make a TIR op of a name: pure, and the vectorizer gives it lanes."""
    tvm.ir.register_op_attr(name, "TScriptPrinterName", name.removeprefix("tirx."))
    tvm.ir.register_op_attr(name, "TVectorizable", True)
    tvm.ir.register_op_attr(name, "TCallEffectKind", int(tirx.CallEffectKind.Pure.value))


for _name in (MUL_HIGH, MUL_ROUND, ADD32, SHIFT32):
    register_op(_name)
