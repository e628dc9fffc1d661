"""The attention kernel of GPUs: no score reaches memory at all.

A warp takes sixteen query rows of one head, several warps share the keys and values in shared
memory, 64 at a time. Scores come from tensor cores, once per pass: the row maximum; for `ibert` the
sum of its numerators, by which it divides before the second product; then numerators and context.

Numerators are the first operand of the second product without leaving the thread that made them:
the order of keys inside a group of 32 is chosen so (see `_values`), and the values are transposed
into the same order. What differs between the recipes is in cuda_attention_recipes.py.
"""

from abc import ABC, abstractmethod

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.relay_ops import attention_bias, expr
from intformer.schedules.isa import Gpu
from intformer.schedules.space import decide

KEYS = 64  # in shared memory at a time
GROUP = 32  # keys that one instruction of the second product takes
MASKED = -(2**30)  # score of a key past the sequence: never the row maximum
PIECE = 16  # bytes


def space(attrs: dict, isa: Gpu) -> dict[str, list[int]]:
    """Return what may be decided: warps of a block, with sixteen query rows each."""
    return {"warps": [2, 4, 1]}


class Attention(ABC):
    """One kernel under construction (qkv, cu_seqlens, params, ctx_mult, ctx_shift, out, counts).

    parameters  type and number of the op's parameters
    low, high   limits of the result
    products    of bytes that make one product of a numerator and a value
    biased      scores get a bias by head and distance: another argument, before the result
    """

    parameters: tuple[str, int]
    low: int
    high: int
    products: int
    biased = False

    def __init__(self, attrs: dict, isa: Gpu, decisions: dict[str, int] | None = None):
        """Take the extents.

        attrs      heads, head_dim (padded to a multiple of 16), max_length, zero_points_out,
                   dtypes_out; window, where there is one
        decisions  of `space`; what is missing or no candidate takes its default
        """
        self.heads, self.dim = attrs["heads"], attrs["head_dim"]
        self.width = self.heads * self.dim
        self.longest = attrs["max_length"]
        self.window = attrs.get("window")
        self.warps = decide(space(attrs, isa), decisions)["warps"]
        self.zero_point, self.out_type = attrs["zero_points_out"][0], attrs["dtypes_out"][0]
        self.deep = -(-self.dim // 32) * 32  # bytes of a row of Q or K, zeros at the end
        self.wide = 4 if self.dim % 32 == 0 else 2  # 8-wide tiles whose results are neighbours
        self.threads = gpu.WARP * self.warps

    @abstractmethod
    def numerator(self, score, row: int):
        """Return E of a score (a variable) in one of the thread's two rows, int32."""

    @abstractmethod
    def operand(self, e, row: int) -> tuple:
        """Return the bytes of a numerator, one per product."""

    @abstractmethod
    def finish(self, total) -> None:
        """Emit all that follows once the row maxima (self.top) are known; total: int32 [2], 0."""

    def tables(self, first: int) -> int:
        """Declare arguments before the result, from number `first` on; return how many."""
        if self.biased:
            shape = (self.heads, attention_bias.columns(self.longest))
            self.bias = gpu.argument(first, shape, "int32")
        return int(self.biased)

    def related(self, acc, first, row):
        """Return the registers of scores, once they are more than products of queries and keys.

        acc    int32 [16]: register tile * 4 + i is that of `over_keys`
        first  key that lies first in shared memory
        row    which of these the thread's first score is of
        """
        return acc

    def build(self) -> tirx.PrimFunc:
        """Return the kernel."""
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            param_type, param_count = self.parameters
            rows = tirx.Var("rows", "int32")
            self.qkv = gpu.argument(0, (rows, 3 * self.width), "int8")
            self.offsets = gpu.argument(1, (rows,), "int32")
            self.params = gpu.argument(2, (param_count,), param_type)
            self.mult = gpu.argument(3, (self.width,), "int32")
            self.shift = gpu.argument(4, (self.width,), "int32")
            result = 5 + self.tables(5)
            self.out = gpu.argument(result, (rows, self.width), self.out_type)
            counts = gpu.argument(result + 1, (len(gpu.COUNTS),), "int32")
            tile = 16 * self.warps
            grid = [["sequence", 1, self.heads], ["longest", tile, 1], ["one", 1, 1]]
            gpu.launch(grid, self.threads, "token")
            most = gpu.UNBOUNDED // 4 // self.width
            block_x = T.thread_binding(most, thread="blockIdx.x")
            block_y = T.thread_binding(65535, thread="blockIdx.y")
            threads = T.thread_binding(self.threads, thread="threadIdx.x")
            with block_x as task, block_y as queries, threads as self.thread:
                sequence = T.bind(task // self.heads)
                with T.If(sequence < counts[1]), T.Then():
                    self.head = T.bind(task % self.heads)
                    self.first = T.bind(self.offsets[sequence])
                    self.length = T.bind(self.offsets[sequence + 1] - self.first)
                    with T.If(queries * tile < self.length), T.Then():
                        self._rows(queries * tile)
        return builder.get()

    def _span(self, start) -> None:
        """Set the first key, and the end of the keys, that the rows from `start` on see."""
        self.first_key, self.end_key = 0, self.length
        if self.window is not None:
            self.first_key = T.bind(T.max(start - self.window, 0) // KEYS * KEYS)
            last = start + (16 * self.warps + self.window)
            self.end_key = T.bind(T.min(last, self.length))

    def _rows(self, start) -> None:
        """Emit the work of a block: its query rows from `start` on."""
        self._span(start)
        self.lane = T.bind(self.thread % gpu.WARP)
        self.row = T.bind(start + self.thread // gpu.WARP * 16 + self.lane // 4)  # and + 8
        self.k = gpu.shared(KEYS * self.deep, "int8")
        self.v = gpu.shared(self.dim * KEYS, "int8")
        self._queries()
        top = gpu.local(2, "int32")
        for i in range(2):
            T.buffer_store(top, MASKED, [i])

        def maximum(group, scores):
            with T.unroll(4) as tile:
                for i in range(4):
                    T.buffer_store(top, T.max(top[i // 2], scores(tile, i)), [i // 2])

        self.over_keys(maximum, values=False)
        self.top = [T.bind(gpu.value("int32", "max", top[i], 4)) for i in range(2)]
        total = gpu.local(2, "int32")
        for i in range(2):
            T.buffer_store(total, 0, [i])
        self.finish(total)

    # -- operands ---------------------------------------------------------------------------------

    def _queries(self) -> None:
        """Read the fragments of this warp's rows; those past the sequence repeat its last one."""
        self.q = gpu.local(self.deep // 8, "uint32")
        last = self.first + self.length - 1
        rows = [T.bind(T.min(self.first + self.row + 8 * i, last)) for i in range(2)]
        for step in range(self.deep // 32):
            for half in range(2):
                for i in range(2):
                    column = step * 32 + half * 16
                    word = tirx.const(0, "uint32")
                    if column < self.dim:
                        offset = rows[i] * (3 * self.width) + self.head * self.dim
                        offset = offset + column + self.lane % 4 * 4
                        word = gpu.value("uint32", "read4", self.qkv.data, offset)
                    T.buffer_store(self.q, word, [step * 4 + half * 2 + i])

    def _place(self, row, piece, pieces: int):
        """Return where 16 bytes of a row lie: rows that are read at once differ in banks."""
        if pieces % 4 == 0:
            piece = piece ^ (((row // 2) ^ (row // 8)) % 4)
        else:  # an even number
            piece = piece ^ (row // 4 % 2)
        return row * (pieces * PIECE) + piece * PIECE

    def _keys(self, first) -> None:
        """Bring the keys from `first` on to shared memory."""
        pieces, real = self.deep // PIECE, self.dim // PIECE
        held = gpu.local(4, "uint32")
        last = self.first + self.length - 1
        with T.serial(-(-KEYS * pieces // self.threads)) as turn:
            number = T.bind(turn * self.threads + self.thread)
            row, piece = number // pieces, number % pieces
            source = T.min(self.first + first + row, last) * (3 * self.width)
            source = source + self.width + self.head * self.dim + piece * PIECE
            if pieces == real:
                gpu.call("read16", held.data, 0, self.qkv.data, source)
            else:
                for i in range(4):
                    T.buffer_store(held, tirx.const(0, "uint32"), [i])
                with T.If(piece < real), T.Then():
                    gpu.call("read16", held.data, 0, self.qkv.data, source)
            gpu.call("write16", self.k.data, self._place(row, piece, pieces), held.data, 0)

    def _values(self, first) -> None:
        """Bring the values of the keys from `first` on to shared memory, one row per dimension.

        A word holds four keys of a group of sixteen, in the order in which a thread has their
        scores: 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t.
        """
        words = gpu.local(4, "uint32")
        last = self.first + self.length - 1
        quads = self.dim // 4
        units = KEYS // 4 * quads
        with T.serial(-(-units // self.threads)) as turn:
            number = T.bind(turn * self.threads + self.thread)
            with T.If(number < units), T.Then():
                t = T.bind(number % 4)
                quad = T.bind(number // 4 % quads)
                group = T.bind(number // 4 // quads)
                for i in range(4):
                    key = first + group * 16 + i // 2 * 8 + 2 * t + i % 2
                    source = T.min(self.first + key, last) * (3 * self.width)
                    source = source + 2 * self.width + self.head * self.dim + quad * 4
                    word = gpu.value("uint32", "read4", self.qkv.data, source)
                    T.buffer_store(words, word, [i])
                turned = gpu.local(1, "uint32")
                for i in range(4):
                    word = gpu.value("uint32", "column", *(words[j] for j in range(4)), i)
                    T.buffer_store(turned, word, [0])
                    at = self._place(quad * 4 + i, group, KEYS // PIECE) + t * 4
                    gpu.call("write4", self.v.data, at, turned.data, 0)

    def shifted(self, score, key, row: int):
        """Return a score with the bias of its distance; row 0 or 1 of the thread."""
        if not self.biased:
            return score
        query = T.min(self.row + 8 * row, self.length - 1)
        return score + self.bias[self.head, self.longest - 1 + key - query]

    def _sees(self, row: int, key):
        """Say whether a key is in the sequence and the window; row 0 or 1 of the thread."""
        if self.window is None:
            return key < self.length
        query = self.row + 8 * row
        near = tirx.And(key >= query - self.window, key <= query + self.window)
        return tirx.And(key < self.length, near)

    # -- passes -----------------------------------------------------------------------------------

    def over_keys(self, use, values: bool) -> None:
        """Emit a loop over all keys; `use` gets every group of 32 and its scores.

        use     (first key of the group, in shared memory, scores); scores(tile, i) is register i of
                an 8-wide tile, MASKED past the sequence: columns 2 t + i % 2, rows g + i // 2 * 8
        values  also bring the values
        """
        with T.serial((self.end_key - self.first_key + KEYS - 1) // KEYS) as number:
            first = T.bind(self.first_key + number * KEYS)
            gpu.synchronise()
            self._keys(first)
            if values:
                self._values(first)
            gpu.synchronise()
            with T.unroll(KEYS // GROUP) as part:
                acc = gpu.local(16, "int32")
                b = gpu.local(8, "uint32")
                with T.unroll(16) as i:
                    T.buffer_store(acc, 0, [i])
                with T.unroll(self.deep // 32) as step:
                    for pair in range(2):
                        row = part * GROUP + pair * 16 + self.lane // 16 * 8 + self.lane % 8
                        piece = step * 2 + self.lane // 8 % 2
                        at = self._place(row, piece, self.deep // PIECE)
                        gpu.call("ldmatrix", b.data, pair * 4, self.k.data, at)
                    for tile in range(4):
                        gpu.call(
                            "mma_s8", acc.data, tile * 4, self.q.data, step * 4, b.data, tile * 2
                        )
                acc = self.related(acc, first, part * GROUP + self.lane % 4 * 2)
                key = T.bind(first + part * GROUP + self.lane % 4 * 2)

                def scores(tile, i, acc=acc, key=key):
                    inside = self._sees(i // 2, key + (tile * 8 + i % 2))
                    score = self.shifted(acc[tile * 4 + i], key + (tile * 8 + i % 2), i // 2)
                    return tirx.Select(inside, score, tirx.const(MASKED, "int32"))

                use(part, scores)

    def contexts(self, total=None):
        """Emit the last pass, numerators times values; return the registers of every product.

        total  where the numerators of a row are added up, if anywhere
        """
        count = self.products
        tiles = self.dim // 8
        context = gpu.local(count * tiles * 4, "int32")
        with T.unroll(count * tiles * 4) as i:
            T.buffer_store(context, 0, [i])

        def use(part, scores):
            a = gpu.local(count * 4, "uint32")
            e = gpu.local(16, "int32")
            with T.unroll(4) as tile:
                for i in range(4):
                    number = self._inside(scores(tile, i), i // 2)
                    T.buffer_store(e, number, [tile * 4 + i])
                    if total is not None:
                        T.buffer_store(total, total[i // 2] + e[tile * 4 + i], [i // 2])
            for half in range(2):
                for row in range(2):
                    numbers = [e[(half * 2 + i // 2) * 4 + row * 2 + i % 2] for i in range(4)]
                    bytes_of = [self.operand(n, row) for n in numbers]
                    for which in range(count):
                        packed = gpu.value("uint32", "pack8", *(b[which] for b in bytes_of))
                        T.buffer_store(a, packed, [which * 4 + half * 2 + row])
            b = gpu.local(4, "uint32")
            with T.unroll(tiles // self.wide) as group, T.unroll(self.wide // 2) as pair:
                inside = self.lane % 8 // 2 * (2 * self.wide) + (pair * 2 + self.lane // 16) * 2
                row = group * (self.wide * 8) + inside + self.lane % 2
                at = self._place(row, part * 2 + self.lane // 8 % 2, KEYS // PIECE)
                gpu.call("ldmatrix", b.data, 0, self.v.data, at)
                for tile in range(2):
                    for which in range(count):
                        place = (group * self.wide + pair * 2 + tile) * 4
                        gpu.call(
                            *("mma_u8", context.data, which * tiles * 4 + place),
                            *(a.data, which * 4, b.data, tile * 2),
                        )

        self.over_keys(use, values=True)
        return context

    # -- numbers ----------------------------------------------------------------------------------

    def _inside(self, score, row: int):
        """Return E of a score, 0 past the sequence: at a fine enough scale no score makes it 0."""
        score = T.bind(score)
        return tirx.Select(score > MASKED, self.numerator(score, row), tirx.const(0, "int32"))

    def add_numerators(self, total) -> None:
        """Emit a pass that adds up the numerators of both rows."""

        def add(group, scores):
            with T.unroll(4) as tile:
                for i in range(4):
                    e = self._inside(scores(tile, i), i // 2)
                    T.buffer_store(total, total[i // 2] + e, [i // 2])

        self.over_keys(add, values=False)

    # -- results ----------------------------------------------------------------------------------

    def results(self, number) -> None:
        """Write this thread's results; number(register, column, row 0 or 1) makes one."""
        for row in range(2):
            here = T.bind(self.row + 8 * row)
            with T.If(here < self.length), T.Then():
                for group in range(self.dim // 8 // self.wide):
                    start = group * self.wide * 8 + self.lane % 4 * (2 * self.wide)
                    column = T.bind(self.head * self.dim + start)
                    made = []
                    for i in range(2 * self.wide):
                        register = (group * self.wide + i // 2) * 4 + row * 2 + i % 2
                        y = expr.clamp(
                            number(register, column + i, row),
                            self.low,
                            self.high,
                        )
                        made.append(T.bind(tirx.Cast("int32", y) + self.zero_point))
                    offset = (self.first + here) * self.width + column
                    offset = offset * gpu.SIZES[self.out_type]
                    gpu.write(self.out, offset, made, self.out_type)
