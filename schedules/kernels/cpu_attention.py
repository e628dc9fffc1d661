"""The attention kernel of CPUs: no score matrix reaches memory beyond eight rows.

One task is one head of one sequence, or several one after the other. K and V of a head are packed
for the chip's dot products; then come eight query rows at a time: scores (int32), numerators
(int16), context. Where the chip's first operand is unsigned, that is K (k + 128): it adds
128 * sum(q) to every score of a row, which the subtraction of the row maximum takes away again.
Numerators and V are int16 for the second product.

The chip enters through `isa` alone (schedules/isa.py: lanes, dot, dot16, score_tiles,
context_tiles), the arithmetic of a softmax through a `Recipe` (cpu_attention_recipes.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import DataType, tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH
from intformer.relay_ops import attention_bias, expr
from intformer.schedules.isa import Isa
from intformer.schedules.space import decide

MASKED = -(2**30)  # score of a column past the sequence: never the row maximum
FLIP = T.int32(-0x7F7F7F80)  # 0x80 in every byte: int8 becomes uint8 with zero point 128


@dataclass(frozen=True)
class Sizes:
    """Extents of one kernel, and vectors of its chip.

    isa         the chip
    heads, dim  heads of a row and channels of each, a multiple of 16
    together    heads that one task takes
    tiles       key vectors of a tile of scores
    longest     tokens of the longest sequence
    limit       keys that the buffers of a task have room for
    zero_point, out_type  of the result
    """

    isa: Isa
    heads: int
    dim: int
    together: int
    tiles: int
    longest: int
    limit: int
    zero_point: int
    out_type: str

    @property
    def lanes(self) -> int:
        """int32 lanes of a vector."""
        return self.isa.lanes

    @property
    def pair(self) -> int:
        """int16 lanes of a vector."""
        return 2 * self.lanes

    @property
    def width(self) -> int:
        """Channels of a row of the result."""
        return self.heads * self.dim

    @property
    def group(self) -> int:
        """Keys of a tile of scores."""
        return self.tiles * self.lanes

    @property
    def steps(self) -> int:
        """Dot products of a score."""
        return self.dim // DEPTH

    @property
    def spans(self) -> int:
        """Vectors of a row of the context."""
        return self.dim // self.lanes

    @property
    def context_rows(self) -> int:
        """Rows of one tile of the context, a divisor of the rows of a block."""
        fit = (n for n in (1, 2, 4, BLOCK) if n * self.spans <= self.isa.context_tiles)
        return max(fit, default=1)

    def at(self, number):
        """Return the indices of vector `number` in a flat buffer."""
        return T.ramp(number * self.lanes, 1, self.lanes)

    def span(self, start):
        """Return the indices of the vector that begins at `start`."""
        return T.ramp(start, 1, self.lanes)

    def vector(self, value: int):
        """Return `value` in every int32 lane."""
        return T.broadcast(T.int32(value), self.lanes)

    def spread(self, word, dtype: str):
        """Return the bytes of an int32, repeated over a vector, as lanes of `dtype`."""
        return self.cast(T.broadcast(word, self.lanes), dtype)

    def key(self, word):
        """Return four int8 of K as the first operand of the chip's dot product."""
        return word ^ FLIP if self.isa.operand == "uint8" else word

    def cast(self, vector, dtype: str):
        """Return the bytes of an int32 vector as lanes of `dtype`."""
        return T.reinterpret(vector, dtype=f"{dtype}x{32 // DataType(dtype).bits * self.lanes}")


@dataclass(frozen=True)
class Recipe:
    """What a softmax of one recipe does between the two products.

    parameters  type and number of the op's parameters
    low, high   limits of the result
    numerators  macro (size, i, scores, probs, v, top, params, columns, length): numerators of row
                i from its scores and its maximum top[0]; their sum in lanes, v
    normalise   macro (size, rest, factor, up, total, scores, probs, columns): what `result` takes
                of each row, in factor and up, or final probabilities; rest is scratch
    result      (acc, factor, up, mult, shift) -> int vector, before it is clamped
    """

    parameters: tuple[str, int]
    low: int
    high: int
    numerators: Callable
    normalise: Callable
    result: Callable


def space(attrs: dict, isa: Isa) -> dict[str, list[int]]:
    """Return what may be decided, the default first.

    keys   key vectors of one tile of scores
    heads  of one sequence in one parallel task
    """
    heads = [n for n in (1, 2, 4, 8) if attrs["heads"] % n == 0]
    return {"keys": list(isa.score_tiles), "heads": heads}


def sizes_of(attrs: dict, isa: Isa, decisions: dict[str, int]) -> Sizes:
    """Return the extents of the kernel (arguments: build)."""
    chosen = decide(space(attrs, isa), decisions)
    group = chosen["keys"] * isa.lanes
    limit = -(-attrs["max_length"] // group) * group
    return Sizes(
        isa=isa,
        heads=attrs["heads"],
        dim=attrs["head_dim"],
        together=chosen["heads"],
        tiles=chosen["keys"],
        longest=attrs["max_length"],
        limit=-(-limit // 32) * 32,
        zero_point=attrs["zero_points_out"][0],
        out_type=attrs["dtypes_out"][0],
    )


def reduced(name: str, v):
    """Return one int32 from a vector: "smax" or "add"."""
    number = T.llvm_lookup_intrinsic_id(f"llvm.vector.reduce.{name}")
    return T.call_llvm_pure_intrin(number, v, dtype="int32")


def word(x, row, column):
    """Return four int8 of a row as one int32."""
    return T.reinterpret(x[row, T.ramp(column, 1, DEPTH)], dtype="int32")


def pair_of(probs, row, pair):
    """Return two numerators of a row as one int32."""
    return T.reinterpret(probs[row, T.ramp(pair * 2, 1, 2)], dtype="int32")


def value_pairs(size: Sizes, x, row, last, column):
    """Return V of two keys as `dot16` takes it; past the last key that one again."""
    rows = (row, T.min(row + 1, last))
    return size.isa.paired(*(x[row, size.span(column)] for row in rows))


def shifted(size: Sizes, scores, bias, h, row, key):
    """Return scores of a row and the keys from `key` on, with the bias of their distances."""
    if bias is None:
        return scores
    return scores + bias[h, size.span(size.longest - 1 + key - row)]


def stored(size: Sizes, recipe: Recipe, y):
    """Return results as they are stored."""
    y = expr.clamp(y, recipe.low, recipe.high)
    return expr.as_type(y + expr.like(size.zero_point, y), size.out_type)


# Stages of the kernel, as macros of TVMScript: loops here are loops of the kernel. size is a Sizes,
# x and y are qkv and the result as [rows, channels]; h is the head, block counts query rows.


@T.macro
def clear_rest(size, y, first, end):
    """Write zeros to the rows past the last token."""
    for t in T.serial(first, end):
        for c in T.serial(size.width // size.lanes):
            y[t, size.at(c)] = T.broadcast(T.cast(size.zero_point, size.out_type), size.lanes)


@T.macro
def pack(size, x, kp, vp, start, length, last, h):
    """K as [keys / L, dim / 4, L, 4] and V as [keys / 2, dim / L, 2 L], see isa.paired."""
    for j in T.serial(length):
        for k in T.serial(size.steps):
            kp[(j // size.lanes * size.steps + k) * size.lanes + j % size.lanes] = size.key(
                word(x, start + j, size.width + h * size.dim + k * DEPTH)
            )
    for j in T.serial((length + 1) // 2):
        for s in T.serial(size.spans):
            vp[size.at(j * size.spans + s)] = value_pairs(
                size, x, start + j * 2, last, 2 * size.width + h * size.dim + s * size.lanes
            )


@T.macro
def score(size, x, kp, scores, bias, start, last, h, block, groups, first=0):
    """Scores of eight query rows; rows past the sequence repeat its last one.

    first  group of keys that begins in column 0
    """
    acc = T.alloc_buffer((BLOCK * size.tiles * size.lanes,), "int32", annotations=expr.STACK)
    for g in T.serial(groups):
        for i in T.unroll(BLOCK * size.tiles):
            acc[size.at(i)] = size.vector(0)
        for k in T.serial(size.steps):
            for i in T.unroll(BLOCK):
                for u in T.unroll(size.tiles):
                    acc[size.at(i * size.tiles + u)] = size.isa.dot(
                        acc[size.at(i * size.tiles + u)],
                        size.cast(
                            kp[size.at(((g + first) * size.tiles + u) * size.steps + k)],
                            size.isa.operand,
                        ),
                        size.spread(
                            word(
                                x, T.min(start + block * BLOCK + i, last), h * size.dim + k * DEPTH
                            ),
                            "int8",
                        ),
                    )
        for i in T.unroll(BLOCK):
            for u in T.unroll(size.tiles):
                scores[i, size.at(g * size.tiles + u)] = shifted(
                    size,
                    acc[size.at(i * size.tiles + u)],
                    bias,
                    h,
                    T.min(block * BLOCK + i, last - start),
                    ((g + first) * size.tiles + u) * size.lanes,
                )


@T.macro
def exponentiate(size, recipe, scores, probs, total, params, columns, length):
    """Numerators of eight rows, and their sums."""
    for i in T.serial(BLOCK):
        for j in T.serial(length, (columns + size.pair - 1) // size.pair * size.pair):
            scores[i, j] = MASKED
        v = T.alloc_buffer((size.lanes,), "int32", annotations=expr.STACK)
        v[size.at(0)] = size.vector(MASKED)
        for j in T.serial(columns // size.lanes):
            v[size.at(0)] = T.max(v[size.at(0)], scores[i, size.at(j)])
        top = T.alloc_buffer((1,), "int32", annotations=expr.STACK)
        top[0] = reduced("smax", v[size.at(0)])
        v[size.at(0)] = size.vector(0)
        recipe.numerators(size, i, scores, probs, v, top, params, columns, length)
        total[i] = reduced("add", v[size.at(0)])


@T.macro
def weigh(size, probs, vp, ctx, length):
    """Context of eight rows: the sum of numerators times values."""
    for r in T.unroll(BLOCK // size.context_rows):
        for i in T.unroll(size.context_rows * size.spans):
            ctx[size.at(r * size.context_rows * size.spans + i)] = size.vector(0)
        for j in T.serial((length + 1) // 2):
            for i in T.unroll(size.context_rows):
                for s in T.unroll(size.spans):
                    ctx[size.at((r * size.context_rows + i) * size.spans + s)] = size.isa.dot16(
                        ctx[size.at((r * size.context_rows + i) * size.spans + s)],
                        size.spread(pair_of(probs, r * size.context_rows + i, j), "int16"),
                        size.cast(vp[size.at(j * size.spans + s)], "int16"),
                    )


@T.macro
def write(size, recipe, y, ctx, factor, up, mult, shift, start, length, h, block):
    """Results of the rows inside the sequence."""
    for i in T.serial(T.min(BLOCK, length - block * BLOCK)):
        for s in T.serial(size.spans):
            y[start + block * BLOCK + i, size.span(h * size.dim + s * size.lanes)] = stored(
                size,
                recipe,
                recipe.result(
                    ctx[size.at(i * size.spans + s)],
                    T.cast(factor[i], "int32"),
                    up[i],
                    mult[size.span(h * size.dim + s * size.lanes)],
                    shift[size.span(h * size.dim + s * size.lanes)],
                ),
            )


@T.macro
def attend(size, recipe, scored, qkv_, cu_, params_, mult_, shift_, bias, out_):
    """All that a kernel does with its arguments.

    scored  macro that makes the scores of eight rows: `score`, or one that takes its arguments
    bias    what it takes beside queries and keys, or None
    """
    blocks = T.int32()
    offsets = T.int32()
    qkv = T.match_buffer(qkv_, (blocks, BLOCK, 3 * size.width), "int8")
    cu = T.match_buffer(cu_, (offsets,), "int32")
    params = T.match_buffer(params_, (recipe.parameters[1],), recipe.parameters[0])
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
        kp = T.alloc_buffer((size.limit * size.steps,), "int32")
        vp = T.alloc_buffer((size.limit // 2 * size.dim,), "int32")
        scores = T.alloc_buffer((BLOCK, size.limit), "int32")
        probs = T.alloc_buffer((BLOCK, size.limit), "int16")
        for each in T.serial(size.together):
            h: T.let = task % (size.heads // size.together) * size.together + each
            pack(size, x, kp, vp, start, length, last, h)
            groups: T.let = (length + size.group - 1) // size.group
            columns: T.let = groups * size.group
            for block in T.serial((length + BLOCK - 1) // BLOCK):
                scored(size, x, kp, scores, bias, start, last, h, block, groups)
                total = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
                exponentiate(size, recipe, scores, probs, total, params, columns, length)
                rest = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
                factor = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
                up = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
                recipe.normalise(size, rest, factor, up, total, scores, probs, columns)
                ctx = T.alloc_buffer((BLOCK * size.dim,), "int32", annotations=expr.STACK)
                weigh(size, probs, vp, ctx, length)
                write(size, recipe, y, ctx, factor, up, mult, shift, start, length, h, block)


def build(
    recipe: Recipe, attrs: dict, isa: Isa, decisions: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """Return the kernel (qkv, cu_seqlens, params, ctx_mult, ctx_shift, out).

    attrs      heads, head_dim (padded to a multiple of 16), max_length, zero_points_out, dtypes_out
    decisions  of `space`; what is missing or no candidate takes its default
    """
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
        attend(size, recipe, score, qkv_, cu_, params_, mult_, shift_, None, out_)

    return kernel.with_attr(expr.APART, True)


def build_biased(
    recipe: Recipe, attrs: dict, isa: Isa, decisions: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """Return the kernel (qkv, cu_seqlens, params, ctx_mult, ctx_shift, bias, out), see `build`."""
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
        attend(size, recipe, score, qkv_, cu_, params_, mult_, shift_, bias, out_)

    return kernel.with_attr(expr.APART, True)
