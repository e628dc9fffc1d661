"""The attention kernel of CPUs for windows and long sequences: scores take a tile, not a row.

Eight query rows pass by the keys that they see twice, a tile at a time: for the row maxima, then
for numerators and context, whose scores are computed again unless one tile held them all. A window
bounds the keys from both sides, so that a layer costs tokens times window.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK
from intformer.relay_ops import attention, attention_bias, expr
from intformer.schedules.isa import Isa
from intformer.schedules.kernels.cpu_attention import (
    MASKED,
    Recipe,
    Sizes,
    clear_rest,
    pack,
    pair_of,
    reduced,
    score,
    sizes_of,
    write,
)

TILE = 1024  # keys whose scores eight rows hold; longer ones are computed twice


@dataclass(frozen=True)
class Reach:
    """Which keys the rows of a kernel see.

    size    the kernel's
    window  tokens on either side; None: all
    """

    size: Sizes
    window: int | None

    @property
    def groups(self) -> int:
        """Groups of keys of a tile."""
        return max(TILE // self.size.group, 1)

    @property
    def halves(self) -> bool:
        """Whether a row may see more keys than an int32 accumulator has room for."""
        return attention.halvings_of(self.size.longest, self.window) > 0

    @property
    def columns(self) -> int:
        """Columns of the buffers of a tile: whole vectors of numerators."""
        return -(-self.groups * self.size.group // 32) * 32

    def first(self, block):
        """Return the first group of keys that a block of rows sees."""
        if self.window is None:
            return T.int32(0)
        return T.max(block * BLOCK - self.window, 0) // self.size.group

    def end(self, block, length):
        """Return the end of the groups of keys that a block of rows sees."""
        keys = length
        if self.window is not None:
            keys = T.min(block * BLOCK + (BLOCK + self.window), length)
        return (keys + (self.size.group - 1)) // self.size.group

    def halved(self, length):
        """Return how often the context of a sequence was halved."""
        if not self.halves:
            return 0
        return T.Select(length > attention.PART, T.int32(1), T.int32(0))

    def of(self, row, length, first) -> "Seen":
        """Return what a row of a sequence sees of the groups from `first` on."""
        return Seen(self, row, length, first * self.size.group)


@dataclass(frozen=True)
class Seen:
    """What one row sees of a tile.

    row, length  number of the row, and tokens of its sequence
    key          that of column 0
    """

    reach: Reach
    row: object
    length: object
    key: object

    def masked(self, values, column, otherwise: int, dtype: str):
        """Return values, a vector of the columns from `column` on, `otherwise` where not seen.

        dtype  in which columns are counted: as wide as the values
        """
        lanes = expr.lanes_of(values)
        at = T.ramp(T.cast(column, dtype), T.cast(1, dtype), lanes)
        other = expr.like(otherwise, values)

        def before(key):
            return at < T.broadcast(T.cast(key - self.key, dtype), lanes)

        window = self.reach.window
        if window is None:
            return T.Select(before(self.length), values, other)
        below = T.Select(before(T.min(self.row + (window + 1), self.length)), values, other)
        return T.Select(before(self.row - window), other, below)


@T.macro
def raise_tops(size, reach, scores, tops, row, length, first, groups):
    """Row maxima so far; row: the first of eight, first: group of keys in column 0."""
    for i in T.serial(BLOCK):
        v = T.alloc_buffer((size.lanes,), "int32", annotations=expr.STACK)
        v[size.at(0)] = size.vector(MASKED)
        for j in T.serial(groups * size.tiles):
            v[size.at(0)] = T.max(
                v[size.at(0)],
                reach.of(T.min(row + i, length - 1), length, first).masked(
                    scores[i, size.at(j)], j * size.lanes, MASKED, "int32"
                ),
            )
        tops[i] = T.max(tops[i], reduced("smax", v[size.at(0)]))


@T.macro
def exponentiate(
    size, reach, recipe, scores, probs, tops, total, params, row, length, first, groups
):
    """Numerators of eight rows, and their sums."""
    for i in T.serial(BLOCK):
        v = T.alloc_buffer((size.lanes,), "int32", annotations=expr.STACK)
        top = T.alloc_buffer((1,), "int32", annotations=expr.STACK)
        top[0] = tops[i]
        v[size.at(0)] = size.vector(0)
        recipe.numerators(
            size,
            i,
            scores,
            probs,
            v,
            top,
            params,
            groups * size.group,
            reach.of(T.min(row + i, length - 1), length, first),
        )
        total[i] = total[i] + reduced("add", v[size.at(0)])


@T.macro
def weigh(size, probs, vp, ctx, first, keys):
    """Add numerators times values to the context of eight rows; first: key of column 0."""
    for r in T.unroll(BLOCK // size.context_rows):
        for j in T.serial((keys + 1) // 2):
            for i in T.unroll(size.context_rows):
                for s in T.unroll(size.spans):
                    ctx[size.at((r * size.context_rows + i) * size.spans + s)] = size.isa.dot16(
                        ctx[size.at((r * size.context_rows + i) * size.spans + s)],
                        size.spread(pair_of(probs, r * size.context_rows + i, j), "int16"),
                        size.cast(vp[size.at((first // 2 + j) * size.spans + s)], "int16"),
                    )


@T.macro
def cleared(size, ctx):
    """Write zeros to the accumulators of eight rows."""
    for i in T.serial(BLOCK * size.spans):
        ctx[size.at(i)] = size.vector(0)


@T.macro
def fold(size, ctx, high, low):
    """Move the context to its halves and the bits that these leave."""
    for i in T.serial(BLOCK * size.spans):
        high[size.at(i)] = high[size.at(i)] + (ctx[size.at(i)] >> size.vector(1))
        low[size.at(i)] = low[size.at(i)] + (ctx[size.at(i)] & size.vector(1))
        ctx[size.at(i)] = size.vector(0)


@T.macro
def unfold(size, ctx, high, low):
    """Make the halved context of what `fold` kept."""
    for i in T.serial(BLOCK * size.spans):
        ctx[size.at(i)] = high[size.at(i)] + (low[size.at(i)] >> size.vector(1))


@T.macro
def contexts(
    size, reach, recipe, x, kp, vp, scores, probs, bias, params, start, length, h, block, ctx, total
):
    """Row sums and contexts of eight rows."""
    low: T.let = reach.first(block)
    end: T.let = reach.end(block, length)
    tiles: T.let = (end - low + (reach.groups - 1)) // reach.groups
    tops = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
    for i in T.serial(BLOCK):
        tops[i] = MASKED
        total[i] = 0
    cleared(size, ctx)
    high = T.alloc_buffer((BLOCK * size.dim,), "int32", annotations=expr.STACK)
    rest = T.alloc_buffer((BLOCK * size.dim,), "int32", annotations=expr.STACK)
    if reach.halves:
        cleared(size, high)
        cleared(size, rest)
    for t in T.serial(tiles):
        first: T.let = low + t * reach.groups
        groups: T.let = T.min(reach.groups, end - first)
        score(size, x, kp, scores, bias, start, start + length - 1, h, block, groups, first)
        raise_tops(size, reach, scores, tops, block * BLOCK, length, first, groups)
    for t in T.serial(tiles):
        first: T.let = low + t * reach.groups
        groups: T.let = T.min(reach.groups, end - first)
        if tiles > 1:
            score(size, x, kp, scores, bias, start, start + length - 1, h, block, groups, first)
        exponentiate(
            *(size, reach, recipe, scores, probs, tops, total),
            *(params, block * BLOCK, length, first, groups),
        )
        weigh(
            *(size, probs, vp, ctx, first * size.group),
            T.min(groups * size.group, length - first * size.group),
        )
        if reach.halves:
            if length > attention.PART:
                fold(size, ctx, high, rest)
    if reach.halves:
        if length > attention.PART:
            unfold(size, ctx, high, rest)


@T.macro
def attend(size, reach, recipe, qkv_, cu_, params_, mult_, shift_, bias, out_):
    """All that a kernel does with its arguments; bias: a buffer or None."""
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
        kp = T.alloc_buffer((size.limit * size.steps,), "int32")
        vp = T.alloc_buffer((size.limit // 2 * size.dim,), "int32")
        scores = T.alloc_buffer((BLOCK, reach.columns), "int32")
        probs = T.alloc_buffer((BLOCK, reach.columns), "int16")
        for each in T.serial(size.together):
            h: T.let = task % (size.heads // size.together) * size.together + each
            pack(size, x, kp, vp, start, length, cu[b + 1] - 1, h)
            for block in T.serial((length + BLOCK - 1) // BLOCK):
                ctx = T.alloc_buffer((BLOCK * size.dim,), "int32", annotations=expr.STACK)
                total = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
                contexts(
                    *(size, reach, recipe, x, kp, vp, scores, probs, bias, params),
                    *(start, length, h, block, ctx, total),
                )
                rest = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
                factor = T.alloc_buffer((BLOCK,), "int64", annotations=expr.STACK)
                up = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
                recipe.normalise(
                    *(size, rest, factor, up, total, scores, probs, 0),
                    reach.halved(length),
                )
                write(size, recipe, y, ctx, factor, up, mult, shift, start, length, h, block)


def build(
    recipe: Recipe, attrs: dict, isa: Isa, decisions: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """Return the kernel, see cpu_attention.build; attrs has `window` where there is one."""
    size = sizes_of(attrs, isa, decisions)
    reach = Reach(size, attrs.get("window"))

    @T.prim_func(s_tir=True)
    def kernel(
        qkv_: T.handle,
        cu_: T.handle,
        params_: T.handle,
        mult_: T.handle,
        shift_: T.handle,
        out_: T.handle,
    ):
        attend(size, reach, recipe, qkv_, cu_, params_, mult_, shift_, None, out_)

    return kernel.with_attr(expr.APART, True)


def build_biased(
    recipe: Recipe, attrs: dict, isa: Isa, decisions: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """Return the kernel with a bias, see cpu_attention.build_biased."""
    size = sizes_of(attrs, isa, decisions)
    reach = Reach(size, None)
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
        attend(size, reach, recipe, qkv_, cu_, params_, mult_, shift_, bias, out_)

    return kernel.with_attr(expr.APART, True)


def needed(attrs: dict) -> bool:
    """Say whether a kernel is one of these: its rows see a window, or more than a tile."""
    return attrs.get("window") is not None or attrs["max_length"] > TILE
