"""Native and I-BERT attention on a CPU: what their softmax does between the two products.

native  numerators have 12 bits and stay unnormalised; the result is divided by their sum
ibert   numerators have 15 bits; they are divided before the second product, to 8 bits
"""

from tvm import DataType
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK
from intformer.relay_ops import attention, attention_ibert, expr
from intformer.schedules.kernels import attention_ibert as ibert
from intformer.schedules.kernels import attention_native as native
from intformer.schedules.kernels.cpu_attention import Recipe
from intformer.schedules.kernels.cpu_attention_tiled import Seen

QUOTIENT_BITS = 32  # of 2^32 / sum of I-BERT's numerators


# -- native ----------------------------------------------------------------------------------------


def native_numerator(size, z, first, length):
    """Numerators of a vector of int16, 0 past the sequence.

    length  of it; or a Seen, which says more about where to put zeros
    """
    e = native.numerator(z)
    if isinstance(length, Seen):
        return length.masked(e, first, 0, "int16")
    inside = T.ramp(T.cast(first, "int16"), T.int16(1), size.pair) < T.broadcast(
        T.cast(length, "int16"), size.pair
    )
    return T.Select(inside, e, T.broadcast(T.int16(0), size.pair))


def native_room(halved):
    """Bits of a row sum up to which its inverse stays whole, int64; halved: of the context."""
    return T.int64(18) + T.cast(halved, "int64")


def native_inverse(total, bits, halved):
    """2^48 / total, short of what `up` adds; bits of total."""
    wide = T.cast(total, "int64")
    m = wide * expr.power_of_two(T.int64(32) - bits)
    return native.inverse(m) >> T.max(bits - native_room(halved), T.int64(0))


def native_result(acc, factor, up, mult, shift):
    """Mean of the values, then the change of scale."""
    lanes = DataType(acc.ty.dtype).lanes
    u = expr.mul_high(acc * T.broadcast(up, lanes), T.broadcast(factor, lanes))
    return expr.mul_high(u + shift, mult)


@T.macro
def native_numerators(size, i, scores, probs, v, top, params, columns, length):
    """Numerators of a row, two vectors of scores at a time."""
    z = T.alloc_buffer((size.pair,), "uint16", annotations=expr.STACK)
    for j in T.serial((columns + size.pair - 1) // size.pair):
        for u in T.unroll(2):
            z[size.at(u)] = expr.as_type(
                native.halvings(
                    T.broadcast(top[0], size.lanes)
                    - scores[i, size.span(j * size.pair + u * size.lanes)],
                    params,
                ),
                "uint16",
            )
        probs[i, T.ramp(j * size.pair, 1, size.pair)] = native_numerator(
            size, z[T.ramp(0, 1, size.pair)], j * size.pair, length
        )
        v[size.at(0)] = size.isa.sum16(v[size.at(0)], probs[i, T.ramp(j * size.pair, 1, size.pair)])


@T.macro
def native_normalise(size, rest, factor, up, total, scores, probs, columns, halved=0):
    """rest: the bits of total, by halving; factor and up: what the context is multiplied by."""
    for i in T.vectorized(BLOCK):
        rest[i] = T.int64(1)
    for k in T.unroll(5):
        for i in T.vectorized(BLOCK):
            rest[i] = rest[i] + T.Select(
                (T.cast(total[i], "int64") >> (rest[i] + T.int64(15 >> k))) > T.int64(0),
                T.int64(16 >> k),
                T.int64(0),
            )
    for i in T.vectorized(BLOCK):
        factor[i] = native_inverse(total[i], rest[i], halved)
        up[i] = T.cast(expr.power_of_two(T.max(native_room(halved) - rest[i], T.int64(0))), "int32")


NATIVE = Recipe(
    parameters=native.PARAMETERS,
    low=-attention.LIMIT8,
    high=attention.LIMIT8,
    numerators=native_numerators,
    normalise=native_normalise,
    result=native_result,
)


# -- ibert -----------------------------------------------------------------------------------------


def ibert_masked(size, e, j, length):
    """Numerators, 0 past the sequence: at a fine enough scale no score brings E down to 0."""
    inside = T.ramp(j * size.lanes, 1, size.lanes) < T.broadcast(length, size.lanes)
    return T.Select(inside, e, size.vector(0))


def ibert_result(acc, factor, up, mult, shift):
    """QuantAct(8) of the context."""
    p = expr.as_type(acc, "int64") * expr.as_type(mult, "int64")
    return expr.round_shift(p, expr.as_type(shift, "int64"))


@T.macro
def ibert_numerators(size, i, scores, probs, v, top, params, columns, length):
    """Numerators of a row; they take the place of the scores."""
    e = T.alloc_buffer((size.lanes,), "int32", annotations=expr.STACK)
    for j in T.serial(columns // size.lanes):
        q = T.alloc_buffer((2 * size.lanes,), "int64", annotations=expr.STACK)
        q[size.at(0)] = ibert.clipped(
            T.broadcast(top[0], size.lanes) - scores[i, size.at(j)], params
        )
        q[size.at(1)] = ibert.quotient(q[size.at(0)], params)
        q[size.at(0)] = ibert.polynomial(q[size.at(0)], q[size.at(1)], params)
        e[size.at(0)] = ibert_masked(
            size, ibert.quantized(q[size.at(0)], q[size.at(1)], params), j, length
        )
        scores[i, size.at(j)] = e[size.at(0)]
        v[size.at(0)] = v[size.at(0)] + e[size.at(0)]


@T.macro
def ibert_normalise(size, rest, factor, up, total, scores, probs, columns):
    """factor: floor(2^32 / total), and 0 for a row of zeros; then probabilities."""
    # floor((2^32 - 1) / total), bit by bit, for the eight rows at once
    for i in T.vectorized(BLOCK):
        rest[i] = T.int64(0)
        factor[i] = T.int64(0)
    for _bit in T.serial(QUOTIENT_BITS):
        for i in T.vectorized(BLOCK):
            rest[i] = rest[i] + rest[i] + T.int64(1)
        for i in T.vectorized(BLOCK):
            factor[i] = (
                factor[i]
                + factor[i]
                + T.Select(rest[i] >= T.cast(total[i], "int64"), T.int64(1), T.int64(0))
            )
        for i in T.vectorized(BLOCK):
            rest[i] = T.Select(
                rest[i] >= T.cast(total[i], "int64"),
                rest[i] - T.cast(total[i], "int64"),
                rest[i],
            )
    # one more where total is a power of two
    for i in T.vectorized(BLOCK):
        factor[i] = T.Select(
            total[i] > 0,
            factor[i] + T.Select((total[i] & (total[i] - 1)) > 0, T.int64(0), T.int64(1)),
            T.int64(0),
        )
    for i in T.serial(BLOCK):
        for j in T.serial(columns // size.lanes):
            probs[i, size.at(j)] = expr.as_type(
                ibert.probability(scores[i, size.at(j)], factor[i]), "int16"
            )


IBERT = Recipe(
    parameters=ibert.PARAMETERS,
    low=attention_ibert.LOW8,
    high=attention_ibert.HIGH8,
    numerators=ibert_numerators,
    normalise=ibert_normalise,
    result=ibert_result,
)
