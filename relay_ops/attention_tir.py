"""The attention kernel of both recipes: no score matrix reaches memory beyond eight rows.

One task is one head of one sequence, or several one after the other. K and V of a head are packed
for the chip's dot products; then come eight query rows at a time: scores (int32), numerators
(int16), context. K is the unsigned operand (k + 128): that adds 128 * sum(q) to every score of a
row, which the subtraction of the row maximum takes away again. Numerators and V are int16 for the
second product. The chip enters through `isa` alone (see schedules/isa.py):

    lanes  int32 lanes of one vector, L
    dot    (int32 x L, uint8 x 4 L, int8 x 4 L) -> int32 x L
    dot16  (int32 x L, int16 x 2 L, int16 x 2 L) -> int32 x L
    score_tiles  key vectors per score tile, the default first
    context_tiles  accumulators per context tile
"""

from tvm.script import tirx as T

from intformer.relay_ops import expr

ROWS = 8  # query rows handled together
DEPTH = 4  # int8 products that a dot adds to one lane
MASKED = -(2**30)  # score of a column past the sequence: never the row maximum


def native_octaves(d, params):
    """Z in Q12 of d = rowmax - score >= 0 (int32 vector), below 14."""
    lanes = int(str(d.ty.dtype).partition("x")[2])
    most, up = T.broadcast(params[2], lanes), T.broadcast(T.int32(1) << params[1], lanes)
    return expr.mul_high(T.min(d, most) * up, T.broadcast(params[0], lanes))


def native_numerator(z, constants):
    """E in 0..4096 of z (uint16 vector): attention.numerators."""
    c4, c3, c2, c1, c0, z_bits = constants[:6]
    f = expr.as_type((z << expr.like(3, z)) & expr.like(0x7FFF, z), "int16")
    h = expr.like(c4, f)
    for c in (c3, c2, c1):
        h = expr.mul_round(h, f) + expr.like(c, f)
    p = expr.as_type(expr.mul_round(h, f), "uint16") + expr.like(2**15 + c0, z)
    p = p >> ((z >> expr.like(z_bits, z)) + expr.like(2, z))
    return expr.as_type((p + expr.like(1, z)) >> expr.like(1, z), "int16")


def native_inverse(m, constants):
    """1 / m in Q30 of m in Q32 (int64 vector): attention.inverse."""
    seed, slope = constants[6:]
    y = expr.like(seed, m) - ((m * expr.like(slope, m)) >> expr.like(32, m))
    for _ in range(3):
        y = (y * (expr.like(1 << 31, m) - ((m * y) >> expr.like(32, m)))) >> expr.like(30, m)
    return T.min(y, expr.like(2**31 - 1, m))


def reduced(name: str, v):
    """Return one int32 from a vector: "smax" or "add"."""
    number = T.llvm_lookup_intrinsic_id(f"llvm.vector.reduce.{name}")
    return T.call_llvm_pure_intrin(number, v, dtype="int32")


def like64(scalar, x):
    """Return an int64 scalar expression with the lanes of x."""
    lanes = str(x.ty.dtype if hasattr(x, "ty") else x.dtype).partition("x")[2]
    wide = T.cast(scalar, "int64")
    return T.broadcast(wide, int(lanes)) if lanes else wide


def ibert_clipped(d, params, const):
    """-max(x, 30 x0) as int64 for d = -x >= 0."""
    wide = expr.as_type(d, "int64")
    return T.min(wide, like64(T.int64(0) - params[0], d) * expr.like(const, wide))


def ibert_polynomial(x, q, params):
    """max((r + b) r + c, 0) for r = -x + |x0| q, x = clipped -score (int64 vectors)."""
    r = like64(T.int64(0) - params[0], x) * q - x
    poly = (r + like64(params[1], x)) * r + like64(params[2], x)
    return T.max(poly, expr.like(0, poly))


def ibert_quantized(poly, q, params, constants):
    """E of QuantAct(16), 0..32767 as int32: attention_ibert.numerators."""
    const, split, max_shift, limit = constants
    mask = expr.like((1 << split) - 1, poly)
    bits, m = expr.like(split, poly), like64(params[3], poly)
    low = (poly & mask) * m
    high = (poly >> bits) * m + (low >> bits)
    sticky = T.Select((low & mask) > expr.like(0, poly), expr.like(1, poly), expr.like(0, poly))
    shift = T.min(
        like64(params[4] - T.int64(const), poly) + q, expr.like(max_shift, poly)
    ) - expr.like(split - 1, poly)
    e = expr.round_shift(high * expr.like(2, poly) + sticky, shift)
    return expr.as_type(T.min(e, expr.like(limit, e)), "int32")


def space(attrs: dict, isa) -> dict[str, list[int]]:
    """Return what may be decided, the default first.

    keys   key vectors of one tile of scores
    heads  of one sequence in one parallel task
    """
    heads = [n for n in (1, 2, 4, 8) if attrs["heads"] % n == 0]
    return {"keys": list(isa.score_tiles), "heads": heads}


def build(attrs: dict, isa, decisions: dict[str, int], numerics) -> "T.PrimFunc":
    """Return the kernel (qkv, cu_seqlens, params, ctx_mult, ctx_shift, out).

    attrs      heads, head_dim (padded to a multiple of 16), max_length, zero_points_out
    isa        see the module docstring
    decisions  of `space`; what is missing or no candidate takes its default
    numerics   "native" or "ibert" with the constants of that op: a dict
    """
    heads, dim = attrs["heads"], attrs["head_dim"]
    chosen = {
        name: decisions[name] if decisions.get(name) in values else values[0]
        for name, values in space(attrs, isa).items()
    }
    together = chosen["heads"]
    lanes, depth, tiles = isa.lanes, DEPTH, chosen["keys"]
    width, steps, spans = heads * dim, dim // depth, dim // lanes
    group, pair = tiles * lanes, 2 * lanes
    limit = -(-attrs["max_length"] // group) * group
    limit = -(-limit // 32) * 32
    # rows of one context tile, a divisor of ROWS
    part = max(n for n in (1, 2, 4, ROWS) if n == 1 or n * spans <= isa.context_tiles)
    pairs = f"int16x{2 * lanes}"
    flip = T.int32(-0x7F7F7F80)  # 0x80 in every byte
    u8, s8 = f"uint8x{lanes * depth}", f"int8x{lanes * depth}"
    zero_point, out_type = attrs["zero_points_out"][0], attrs["dtypes_out"][0]
    native = numerics["recipe"] == "native"
    param_type, param_count = ("int32", 3) if native else ("int64", 6)
    lo, hi = numerics["lo"], numerics["hi"]
    sum_bits = numerics["sum_bits"]

    def vector(value):
        return T.broadcast(T.int32(value), lanes)

    def load_word(x, row, column):
        return T.reinterpret(x[row, T.ramp(column, 1, depth)], dtype="int32")

    def load_pair(probs, row, pair):
        return T.reinterpret(probs[row, T.ramp(pair * 2, 1, 2)], dtype="int32")

    def v_pair(x, row, last, column):
        first = expr.as_type(x[row, T.ramp(column, 1, lanes)], "int32")
        second = expr.as_type(x[T.min(row + 1, last), T.ramp(column, 1, lanes)], "int32")
        return (first & vector(0xFFFF)) | (second << vector(16))

    def octaves(d, params):
        return expr.as_type(native_octaves(d, params), "uint16")

    def inverse(total, bits):
        wide = T.cast(total, "int64")
        m = wide * expr.power_of_two(T.int64(32) - bits)
        return native_inverse(m, numerics["constants"]) >> T.max(bits - T.int64(18), T.int64(0))

    def numerator(z, first, length):
        e = native_numerator(z, numerics["constants"])
        inside = T.ramp(T.cast(first, "int16"), T.int16(1), 2 * lanes) < T.broadcast(
            T.cast(length, "int16"), 2 * lanes
        )
        return T.Select(inside, e, T.broadcast(T.int16(0), 2 * lanes))

    def masked(e, j, length):
        # no score can do this: at a fine enough scale no difference brings E down to 0
        return T.Select(T.ramp(j * lanes, 1, lanes) < vector(length), e, vector(0))

    def polynomial(x, q, params):
        return ibert_polynomial(x, q, params)

    def quantized(poly, q, params):
        return ibert_quantized(poly, q, params, numerics["constants"])

    def clipped(d, params):
        return ibert_clipped(d, params, numerics["constants"][0])

    def quotient(x, params):
        return (x * like64(params[5], x)) >> expr.like(numerics["inverse_bits"], x)

    def probability(e, factor):
        wide = (expr.as_type(e, "int64") * like64(factor, e)) >> like64(T.int64(24), e)
        return T.min(wide, expr.like(255, wide))

    def output(acc, factor, up, mult, shift):
        if native:
            u = expr.mul_high(acc * T.broadcast(up, lanes), T.broadcast(factor, lanes))
            y = expr.mul_high(u + shift, mult)
        else:
            p = expr.as_type(acc, "int64") * expr.as_type(mult, "int64")
            y = expr.round_shift(p, expr.as_type(shift, "int64"))
        y = expr.clamp(y, lo, hi) + expr.like(zero_point, y)
        return expr.as_type(y, out_type)

    @T.prim_func(s_tir=True)
    def kernel(
        qkv_: T.handle,
        cu_: T.handle,
        params_: T.handle,
        mult_: T.handle,
        shift_: T.handle,
        out_: T.handle,
    ):
        blocks = T.int32()
        offsets = T.int32()
        qkv = T.match_buffer(qkv_, (blocks, ROWS, 3 * width), "int8")
        cu = T.match_buffer(cu_, (offsets,), "int32")
        params = T.match_buffer(params_, (param_count,), param_type)
        mult = T.match_buffer(mult_, (width,), "int32")
        shift = T.match_buffer(shift_, (width,), "int32")
        out = T.match_buffer(out_, (blocks, ROWS, width), out_type)
        x = T.decl_buffer((blocks * ROWS, 3 * width), "int8", data=qkv.data)
        y = T.decl_buffer((blocks * ROWS, width), out_type, data=out.data)
        for t in T.serial(cu[offsets - 1], blocks * ROWS):
            for c in T.serial(width // lanes):
                y[t, T.ramp(c * lanes, 1, lanes)] = T.broadcast(T.cast(zero_point, out_type), lanes)
        for task in T.parallel((offsets - 1) * (heads // together)):
            b: T.let = task // (heads // together)
            start: T.let = cu[b]
            length: T.let = cu[b + 1] - cu[b]
            last: T.let = cu[b + 1] - 1
            kp = T.alloc_buffer((limit * steps,), "int32")
            vp = T.alloc_buffer((limit // 2 * dim,), "int32")
            scores = T.alloc_buffer((ROWS, limit), "int32")
            probs = T.alloc_buffer((ROWS, limit), "int16")
            for each in T.serial(together):
                h: T.let = task % (heads // together) * together + each
                # pack K as [keys / L, dim / 4, L, 4], unsigned, and V as [keys / 2, dim / L, L, 2]
                for j in T.serial(length):
                    for k in T.serial(steps):
                        kp[(j // lanes * steps + k) * lanes + j % lanes] = (
                            load_word(x, start + j, width + h * dim + k * depth) ^ flip
                        )
                for j in T.serial((length + 1) // 2):
                    for s in T.serial(spans):
                        vp[T.ramp((j * spans + s) * lanes, 1, lanes)] = v_pair(
                            x, start + j * 2, last, 2 * width + h * dim + s * lanes
                        )
                groups: T.let = (length + group - 1) // group
                columns: T.let = groups * group
                for block in T.serial((length + ROWS - 1) // ROWS):
                    acc = T.alloc_buffer((ROWS * tiles * lanes,), "int32", annotations=expr.STACK)
                    for g in T.serial(groups):
                        for i in T.unroll(ROWS * tiles):
                            acc[T.ramp(i * lanes, 1, lanes)] = vector(0)
                        for k in T.serial(steps):
                            for i in T.unroll(ROWS):
                                for u in T.unroll(tiles):
                                    acc[T.ramp((i * tiles + u) * lanes, 1, lanes)] = isa.dot(
                                        acc[T.ramp((i * tiles + u) * lanes, 1, lanes)],
                                        T.reinterpret(
                                            kp[
                                                T.ramp(
                                                    ((g * tiles + u) * steps + k) * lanes, 1, lanes
                                                )
                                            ],
                                            dtype=u8,
                                        ),
                                        T.reinterpret(
                                            T.broadcast(
                                                load_word(
                                                    x,
                                                    T.min(start + block * ROWS + i, last),
                                                    h * dim + k * depth,
                                                ),
                                                lanes,
                                            ),
                                            dtype=s8,
                                        ),
                                    )
                        for i in T.unroll(ROWS):
                            for u in T.unroll(tiles):
                                scores[i, T.ramp((g * tiles + u) * lanes, 1, lanes)] = acc[
                                    T.ramp((i * tiles + u) * lanes, 1, lanes)
                                ]
                    total = T.alloc_buffer((ROWS,), "int32", annotations=expr.STACK)
                    for i in T.serial(ROWS):
                        for j in T.serial(length, (columns + pair - 1) // pair * pair):
                            scores[i, j] = MASKED
                        v = T.alloc_buffer((lanes,), "int32", annotations=expr.STACK)
                        v[T.ramp(0, 1, lanes)] = vector(MASKED)
                        for j in T.serial(columns // lanes):
                            v[T.ramp(0, 1, lanes)] = T.max(
                                v[T.ramp(0, 1, lanes)], scores[i, T.ramp(j * lanes, 1, lanes)]
                            )
                        top = T.alloc_buffer((1,), "int32", annotations=expr.STACK)
                        top[0] = reduced("smax", v[T.ramp(0, 1, lanes)])
                        v[T.ramp(0, 1, lanes)] = vector(0)
                        if native:
                            z = T.alloc_buffer((pair,), "uint16", annotations=expr.STACK)
                            for j in T.serial((columns + pair - 1) // pair):
                                for u in T.unroll(2):
                                    z[T.ramp(u * lanes, 1, lanes)] = octaves(
                                        T.broadcast(top[0], lanes)
                                        - scores[i, T.ramp(j * pair + u * lanes, 1, lanes)],
                                        params,
                                    )
                                probs[i, T.ramp(j * pair, 1, pair)] = numerator(
                                    z[T.ramp(0, 1, pair)], j * pair, length
                                )
                                v[T.ramp(0, 1, lanes)] = isa.dot16(
                                    v[T.ramp(0, 1, lanes)],
                                    probs[i, T.ramp(j * pair, 1, pair)],
                                    T.broadcast(T.int16(1), pair),
                                )
                        else:
                            e = T.alloc_buffer((lanes,), "int32", annotations=expr.STACK)
                            for j in T.serial(columns // lanes):
                                q = T.alloc_buffer((2 * lanes,), "int64", annotations=expr.STACK)
                                q[T.ramp(0, 1, lanes)] = clipped(
                                    T.broadcast(top[0], lanes)
                                    - scores[i, T.ramp(j * lanes, 1, lanes)],
                                    params,
                                )
                                q[T.ramp(lanes, 1, lanes)] = quotient(
                                    q[T.ramp(0, 1, lanes)], params
                                )
                                q[T.ramp(0, 1, lanes)] = polynomial(
                                    q[T.ramp(0, 1, lanes)], q[T.ramp(lanes, 1, lanes)], params
                                )
                                e[T.ramp(0, 1, lanes)] = masked(
                                    quantized(
                                        q[T.ramp(0, 1, lanes)], q[T.ramp(lanes, 1, lanes)], params
                                    ),
                                    j,
                                    length,
                                )
                                scores[i, T.ramp(j * lanes, 1, lanes)] = e[T.ramp(0, 1, lanes)]
                                v[T.ramp(0, 1, lanes)] = (
                                    v[T.ramp(0, 1, lanes)] + e[T.ramp(0, 1, lanes)]
                                )
                        total[i] = reduced("add", v[T.ramp(0, 1, lanes)])
                    rest = T.alloc_buffer((ROWS,), "int64", annotations=expr.STACK)
                    factor = T.alloc_buffer((ROWS,), "int64", annotations=expr.STACK)
                    up = T.alloc_buffer((ROWS,), "int32", annotations=expr.STACK)
                    if native:
                        # rest: the bits of total; factor: 2^48 / total, short of what `up` adds
                        for i in T.vectorized(ROWS):
                            rest[i] = T.int64(1)
                        for k in T.unroll(5):
                            for i in T.vectorized(ROWS):
                                rest[i] = rest[i] + T.Select(
                                    (T.cast(total[i], "int64") >> (rest[i] + T.int64(15 >> k)))
                                    > T.int64(0),
                                    T.int64(16 >> k),
                                    T.int64(0),
                                )
                        for i in T.vectorized(ROWS):
                            factor[i] = inverse(total[i], rest[i])
                            up[i] = T.cast(
                                expr.power_of_two(T.max(T.int64(18) - rest[i], T.int64(0))), "int32"
                            )
                    else:
                        # floor((2^bits - 1) / total), bit by bit, for the eight rows at once
                        for i in T.vectorized(ROWS):
                            rest[i] = T.int64(0)
                            factor[i] = T.int64(0)
                        for _bit in T.serial(sum_bits):
                            for i in T.vectorized(ROWS):
                                rest[i] = rest[i] + rest[i] + T.int64(1)
                            for i in T.vectorized(ROWS):
                                factor[i] = (
                                    factor[i]
                                    + factor[i]
                                    + T.Select(
                                        rest[i] >= T.cast(total[i], "int64"), T.int64(1), T.int64(0)
                                    )
                                )
                            for i in T.vectorized(ROWS):
                                rest[i] = T.Select(
                                    rest[i] >= T.cast(total[i], "int64"),
                                    rest[i] - T.cast(total[i], "int64"),
                                    rest[i],
                                )
                        # floor(2^32 / total): one more where total is a power of two; 0 for a 0 row
                        for i in T.vectorized(ROWS):
                            factor[i] = T.Select(
                                total[i] > 0,
                                factor[i]
                                + T.Select((total[i] & (total[i] - 1)) > 0, T.int64(0), T.int64(1)),
                                T.int64(0),
                            )
                        for i in T.serial(ROWS):
                            for j in T.serial(columns // lanes):
                                probs[i, T.ramp(j * lanes, 1, lanes)] = expr.as_type(
                                    probability(scores[i, T.ramp(j * lanes, 1, lanes)], factor[i]),
                                    "int16",
                                )
                    ctx = T.alloc_buffer((ROWS * dim,), "int32", annotations=expr.STACK)
                    for r in T.unroll(ROWS // part):
                        for i in T.unroll(part * spans):
                            ctx[T.ramp((r * part * spans + i) * lanes, 1, lanes)] = vector(0)
                        for j in T.serial((length + 1) // 2):
                            for i in T.unroll(part):
                                for s in T.unroll(spans):
                                    ctx[T.ramp(((r * part + i) * spans + s) * lanes, 1, lanes)] = (
                                        isa.dot16(
                                            ctx[
                                                T.ramp(
                                                    ((r * part + i) * spans + s) * lanes, 1, lanes
                                                )
                                            ],
                                            T.reinterpret(
                                                T.broadcast(
                                                    load_pair(probs, r * part + i, j), lanes
                                                ),
                                                dtype=pairs,
                                            ),
                                            T.reinterpret(
                                                vp[T.ramp((j * spans + s) * lanes, 1, lanes)],
                                                dtype=pairs,
                                            ),
                                        )
                                    )
                    for i in T.serial(T.min(ROWS, length - block * ROWS)):
                        for s in T.serial(spans):
                            y[start + block * ROWS + i, T.ramp(h * dim + s * lanes, 1, lanes)] = (
                                output(
                                    ctx[T.ramp((i * spans + s) * lanes, 1, lanes)],
                                    T.cast(factor[i], "int32"),
                                    up[i],
                                    mult[T.ramp(h * dim + s * lanes, 1, lanes)],
                                    shift[T.ramp(h * dim + s * lanes, 1, lanes)],
                                )
                            )

    return kernel.with_attr(expr.APART, True)
