"""Native attention on AMX tiles: scores and context of sixteen query rows at a time.

Scores are one product of tiles per 64 channels: queries as they lie, copied and filled up with
zeros, times keys as [keys / 16, dim / 4, 16, 4]. A numerator has 13 bits at most and is split in
two bytes, E = 256 high + low, so that the context is two products of uint8 and int8. Between them
the softmax runs in vectors of 64 keys, whose packs interleave four keys at a time; values are laid
out in that order, so nothing has to be put back.
"""

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH
from intformer.relay_ops import attention_bias, expr
from intformer.schedules.isa import Isa
from intformer.schedules.kernels import attention_native as native
from intformer.schedules.kernels.cpu_attention import (
    MASKED,
    Sizes,
    clear_rest,
    reduced,
    sizes_of,
    stored,
    word,
)
from intformer.schedules.kernels.cpu_attention_recipes import NATIVE

ROWS, BYTES = 16, 64  # of a tile
GROUP = BYTES  # keys of a tile of numerators
TILES = 8
LINES = 16  # of a tile of keys or values
QUERY, KEY = 4, 5  # tiles of scores; accumulators are 0 to 3
LOW, HIGH, VALUES = 4, 5, 6  # tiles of the context; accumulators are 0 to 3, low before high


def _intrinsic(name: str, *args):
    number = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.call_llvm_intrin("void", number, *args)


def _tile(number):
    """Return the number of a tile, which may come from loops that are unrolled."""
    return tirx.const(number, "int8") if isinstance(number, int) else T.cast(number, "int8")


def load(tile, address, pitch: int):
    """Load a tile; pitch: bytes between its rows."""
    return _intrinsic("tileloadd64", _tile(tile), address, tirx.const(pitch, "int64"))


def store(tile, address, pitch: int):
    """Store a tile; pitch: bytes between its rows."""
    return _intrinsic("tilestored64", _tile(tile), address, tirx.const(pitch, "int64"))


def zero(tile):
    """Clear a tile."""
    return _intrinsic("tilezero", _tile(tile))


def product(name: str, acc, a, b):
    """Add a product of tiles: "tdpbssd" or "tdpbusd"."""
    return _intrinsic(name, _tile(acc), _tile(a), _tile(b))


def packed(name: str, a, b, dtype: str):
    """Return two vectors as one of half as many bits a lane, saturated, by parts of 128 bits."""
    number = T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.pack{name}.512")
    return T.call_llvm_pure_intrin(number, a, b, dtype=dtype)


def chunks(size: Sizes) -> int:
    """Return the products of tiles of a score."""
    return -(-size.dim // BYTES)


def pairs(size: Sizes) -> int:
    """Return the pairs of sixteen channels of a context; the last may be a single one."""
    return -(-size.spans // 2)


def limit(size: Sizes) -> int:
    """Return the keys that the buffers of a task have room for."""
    return -(-size.longest // GROUP) * GROUP


def value_line(size: Sizes, x, row, last, column):
    """Return V of four keys as bytes side by side; past the last key that one again."""
    wide = [
        expr.as_type(x[T.min(row + n, last), size.span(column)], "int32") & size.vector(255)
        for n in range(4)
    ]
    return (
        wide[0]
        | wide[1] << size.vector(8)
        | wide[2] << size.vector(16)
        | wide[3] << size.vector(24)
    )


def scored(size: Sizes, scores, bias, h, i, row, column):
    """Return the scores of a row for the keys from `column` on; bias by distance, or None."""
    found = scores[i, size.span(column)]
    if bias is None:
        return found
    return found + bias[h, size.span(size.longest - 1 + column - row)]


def seen(size: Sizes, column, length):
    """Return -1 in the lanes of keys inside the sequence, 0 in others."""
    inside = T.ramp(column, 1, size.lanes) < T.broadcast(length, size.lanes)
    return T.Select(inside, size.vector(-1), size.vector(0))


def halvings(size: Sizes, d, params):
    """Z in Q12 of d = rowmax - score >= 0: native.halvings with a shift for its first product."""
    most, lift = (T.broadcast(params[n], size.lanes) for n in (2, 1))
    return expr.mul_high(T.min(d, most) << lift, T.broadcast(params[0], size.lanes))


def both_halvings(size: Sizes, scores, bias, h, i, row, column, top, params, length, masked: bool):
    """Halvings of the keys from `column` on, two vectors as one of int16; masked: some are past."""
    found = []
    for at in (column, column + size.lanes):
        d = T.broadcast(top[0], size.lanes) - scored(size, scores, bias, h, i, row, at)
        found.append(halvings(size, d & seen(size, at, length) if masked else d, params))
    return packed("usdw", *found, f"int16x{size.pair}")


@T.macro
def configure(config):
    """Make every tile 16 rows of 64 bytes."""
    for at in T.serial(BYTES):
        config[at] = T.uint8(0)
    config[0] = T.uint8(1)  # the palette
    for tile in T.serial(TILES):
        config[16 + 2 * tile] = T.uint8(BYTES)
        config[48 + tile] = T.uint8(ROWS)
    T.evaluate(_intrinsic("ldtilecfg", T.address_of(config[0])))


@T.macro
def pack(size, x, kp, vp, start, length, last, h):
    """K as [keys / 16, dim / 4, 16, 4], V as [keys / 64, dim / 16, lines of four keys, 16, 4]."""
    for j in T.serial(length):
        for k in T.serial(size.steps):
            kp[(j // ROWS * (chunks(size) * LINES) + k) * ROWS + j % ROWS] = word(
                x, start + j, size.width + h * size.dim + k * DEPTH
            )
    for j in T.serial((length + 3) // 4):
        for s in T.serial(size.spans):
            vp[size.at((j // LINES * size.spans + s) * LINES + j % 4 * 4 + j // 4 % 4)] = (
                value_line(
                    size, x, start + j * 4, last, 2 * size.width + h * size.dim + s * size.lanes
                )
            )


@T.macro
def score(size, x, q, kp, scores, start, last, h, block, groups):
    """Scores of sixteen query rows; rows past the sequence repeat its last one."""
    for i in T.serial(ROWS):
        for s in T.serial(size.spans):
            q[i, size.span(s * size.lanes)] = x[
                T.min(start + block * ROWS + i, last), size.span(h * size.dim + s * size.lanes)
            ]
    if chunks(size) == 1:
        T.evaluate(load(QUERY, T.address_of(q[0, 0]), BYTES))
    for g in T.serial(groups):
        for u in T.unroll(GROUP // ROWS):
            T.evaluate(zero(u))
            for c in T.unroll(chunks(size)):
                if chunks(size) > 1:
                    T.evaluate(load(QUERY, T.address_of(q[0, c * BYTES]), chunks(size) * BYTES))
                T.evaluate(
                    load(
                        KEY + u % 3,
                        T.address_of(kp[((g * 4 + u) * chunks(size) + c) * (LINES * ROWS)]),
                        BYTES,
                    )
                )
                T.evaluate(product("tdpbssd", u, QUERY, KEY + u % 3))
        for u in T.unroll(GROUP // ROWS):
            T.evaluate(store(u, T.address_of(scores[0, g * GROUP + u * ROWS]), 4 * limit(size)))


@T.macro
def numerate(size, scores, low, high, bias, v, top, params, h, i, row, g, length, masked):
    """Numerators of a row and 64 keys, in two bytes; their sums in lanes, v."""
    z = T.alloc_buffer((2 * size.pair,), "int16", annotations=expr.STACK)
    e = T.alloc_buffer((2 * size.pair,), "int16", annotations=expr.STACK)
    for u in T.unroll(2):
        z[T.ramp(u * size.pair, 1, size.pair)] = both_halvings(
            size, scores, bias, h, i, row, g * GROUP + u * size.pair, top, params, length, masked
        )
        e[T.ramp(u * size.pair, 1, size.pair)] = native.numerator(
            expr.as_type(z[T.ramp(u * size.pair, 1, size.pair)], "uint16")
        )
        if masked:
            e[T.ramp(u * size.pair, 1, size.pair)] = e[
                T.ramp(u * size.pair, 1, size.pair)
            ] & packed(
                "ssdw",
                seen(size, g * GROUP + u * size.pair, length),
                seen(size, g * GROUP + u * size.pair + size.lanes, length),
                f"int16x{size.pair}",
            )
        v[size.at(0)] = size.isa.dot16(
            v[size.at(0)],
            e[T.ramp(u * size.pair, 1, size.pair)],
            T.broadcast(T.int16(1), size.pair),
        )
    low[i, T.ramp(g * GROUP, 1, GROUP)] = packed(
        "uswb",
        e[T.ramp(0, 1, size.pair)] & T.broadcast(T.int16(255), size.pair),
        e[T.ramp(size.pair, 1, size.pair)] & T.broadcast(T.int16(255), size.pair),
        f"uint8x{GROUP}",
    )
    high[i, T.ramp(g * GROUP, 1, GROUP)] = packed(
        "uswb",
        e[T.ramp(0, 1, size.pair)] >> T.broadcast(T.int16(8), size.pair),
        e[T.ramp(size.pair, 1, size.pair)] >> T.broadcast(T.int16(8), size.pair),
        f"uint8x{GROUP}",
    )


@T.macro
def exponentiate(size, scores, low, high, bias, total, params, h, i, row, at, length):
    """Numerators of one row, and their sum, which becomes number `at` of the totals."""
    v = T.alloc_buffer((size.lanes,), "int32", annotations=expr.STACK)
    v[size.at(0)] = size.vector(MASKED)
    for j in T.serial(length // size.lanes):
        v[size.at(0)] = T.max(v[size.at(0)], scored(size, scores, bias, h, i, row, j * size.lanes))
    if length % size.lanes > 0:
        v[size.at(0)] = T.max(
            v[size.at(0)],
            T.Select(
                T.ramp(length // size.lanes * size.lanes, 1, size.lanes)
                < T.broadcast(length, size.lanes),
                scored(size, scores, bias, h, i, row, length // size.lanes * size.lanes),
                size.vector(MASKED),
            ),
        )
    top = T.alloc_buffer((1,), "int32", annotations=expr.STACK)
    top[0] = reduced("smax", v[size.at(0)])
    v[size.at(0)] = size.vector(0)
    for g in T.serial(length // GROUP):
        numerate(
            *(size, scores, low, high, bias, v, top, params),
            *(h, i, row, g, length, False),
        )
    if length % GROUP > 0:
        last: T.let = length // GROUP
        numerate(
            *(size, scores, low, high, bias, v, top, params),
            *(h, i, row, last, length, True),
        )
    total[at] = reduced("add", v[size.at(0)])


@T.macro
def weigh(size, low, high, vp, ctx, groups):
    """Context of sixteen rows: sums of the low and of the high bytes times values."""
    for p in T.unroll(pairs(size)):
        for t in T.unroll(4):
            T.evaluate(zero(t))
        for g in T.serial(groups):
            T.evaluate(load(LOW, T.address_of(low[0, g * GROUP]), limit(size)))
            T.evaluate(load(HIGH, T.address_of(high[0, g * GROUP]), limit(size)))
            for s in T.unroll(2):
                if 2 * p + s < size.spans:
                    T.evaluate(
                        load(
                            VALUES + s,
                            T.address_of(vp[(g * size.spans + 2 * p + s) * (LINES * size.lanes)]),
                            BYTES,
                        )
                    )
                    T.evaluate(product("tdpbusd", s, LOW, VALUES + s))
                    T.evaluate(product("tdpbusd", 2 + s, HIGH, VALUES + s))
        for t in T.unroll(2):
            for s in T.unroll(2):
                if 2 * p + s < size.spans:
                    T.evaluate(
                        store(
                            2 * t + s,
                            T.address_of(ctx[t, 0, (2 * p + s) * size.lanes]),
                            4 * size.dim,
                        )
                    )


@T.macro
def write(size, y, ctx, factor, up, mult, shift, start, length, h, block):
    """Results of the rows inside the sequence."""
    for i in T.serial(T.min(ROWS, length - block * ROWS)):
        for s in T.serial(size.spans):
            y[start + block * ROWS + i, size.span(h * size.dim + s * size.lanes)] = stored(
                size,
                NATIVE,
                NATIVE.result(
                    ctx[0, i, size.span(s * size.lanes)]
                    + (ctx[1, i, size.span(s * size.lanes)] << size.vector(8)),
                    factor[i],
                    up[i],
                    mult[size.span(h * size.dim + s * size.lanes)],
                    shift[size.span(h * size.dim + s * size.lanes)],
                ),
            )


@T.macro
def normalise(size, total, factors, ups, half):
    """What the contexts of eight rows are multiplied by, as numbers from 8 half on."""
    rest = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
    factor = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
    up = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
    NATIVE.normalise(size, rest, factor, up, total, None, None, 0)
    for i in T.serial(BLOCK):
        factors[half * BLOCK + i] = T.cast(factor[i], "int32")
        ups[half * BLOCK + i] = up[i]


@T.macro
def attend(size, qkv_, cu_, params_, mult_, shift_, bias, out_):
    """All that the kernel does with its arguments; bias: a buffer or None."""
    blocks = T.int32()
    offsets = T.int32()
    qkv = T.match_buffer(qkv_, (blocks, BLOCK, 3 * size.width), "int8")
    cu = T.match_buffer(cu_, (offsets,), "int32")
    params = T.match_buffer(params_, (NATIVE.parameters[1],), NATIVE.parameters[0])
    mult = T.match_buffer(mult_, (size.width,), "int32")
    shift = T.match_buffer(shift_, (size.width,), "int32")
    out = T.match_buffer(out_, (blocks, BLOCK, size.width), size.out_type)
    x = T.decl_buffer((blocks * BLOCK, 3 * size.width), "int8", data=qkv.data)
    y = T.decl_buffer((blocks * BLOCK, size.width), size.out_type, data=out.data)
    clear_rest(size, y, cu[offsets - 1], blocks * BLOCK)
    for task in T.parallel((offsets - 1) * (size.heads // size.together)):
        b: T.let = task // (size.heads // size.together)
        start: T.let = cu[b]
        length: T.let = cu[b + 1] - cu[b]
        last: T.let = cu[b + 1] - 1
        groups: T.let = (length + (GROUP - 1)) // GROUP
        config = T.alloc_buffer((BYTES,), "uint8", annotations=expr.STACK)
        kp = T.alloc_buffer((limit(size) * chunks(size) * LINES,), "int32")
        vp = T.alloc_buffer((limit(size) // 4 * size.dim,), "int32")
        q = T.alloc_buffer((ROWS, chunks(size) * BYTES), "int8")
        scores = T.alloc_buffer((ROWS, limit(size)), "int32")
        low = T.alloc_buffer((ROWS, limit(size)), "uint8")
        high = T.alloc_buffer((ROWS, limit(size)), "uint8")
        ctx = T.alloc_buffer((2, ROWS, size.dim), "int32")
        factors = T.alloc_buffer((ROWS,), "int32")
        ups = T.alloc_buffer((ROWS,), "int32")
        configure(config)
        for i in T.serial(ROWS):
            for c in T.serial(chunks(size) * BYTES // size.lanes):
                q[i, size.span(c * size.lanes)] = T.broadcast(T.int8(0), size.lanes)
        for each in T.serial(size.together):
            h: T.let = task % (size.heads // size.together) * size.together + each
            pack(size, x, kp, vp, start, length, last, h)
            for block in T.serial((length + (ROWS - 1)) // ROWS):
                score(size, x, q, kp, scores, start, last, h, block, groups)
                for half in T.serial(ROWS // BLOCK):
                    total = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
                    for i in T.serial(BLOCK):
                        exponentiate(
                            *(size, scores, low, high, bias, total, params, h),
                            half * BLOCK + i,
                            T.min(block * ROWS + half * BLOCK + i, length - 1),
                            *(i, length),
                        )
                    normalise(size, total, factors, ups, half)
                weigh(size, low, high, vp, ctx, groups)
                write(size, y, ctx, factors, ups, mult, shift, start, length, h, block)
        T.evaluate(_intrinsic("tilerelease"))


def build(attrs: dict, isa: Isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Return the kernel, see cpu_attention.build."""
    size = sizes_of(attrs, isa, decisions)

    @T.prim_func(s_tir=True)
    def kernel(
        qkv_: T.handle,
        cu_: T.handle,
        params_: T.handle,
        mult_: T.handle,
        shift_: T.handle,
        out_: T.handle,
    ):
        attend(size, qkv_, cu_, params_, mult_, shift_, None, out_)

    return kernel.with_attr(expr.APART, True)


def build_biased(attrs: dict, isa: Isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Return the kernel with a bias, see cpu_attention.build_biased."""
    size = sizes_of(attrs, isa, decisions)
    distances = attention_bias.columns(size.longest)

    @T.prim_func(s_tir=True)
    def kernel(
        qkv_: T.handle,
        cu_: T.handle,
        params_: T.handle,
        mult_: T.handle,
        shift_: T.handle,
        bias_: T.handle,
        out_: T.handle,
    ):
        bias = T.match_buffer(bias_, (size.heads, distances), "int32")
        attend(size, qkv_, cu_, params_, mult_, shift_, bias, out_)

    return kernel.with_attr(expr.APART, True)
