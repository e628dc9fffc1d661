"""The attention kernel of both recipes on a GPU: no score reaches memory at all.

A warp takes sixteen query rows of one head, several warps share the keys and values in shared
memory, 64 at a time. Scores come from tensor cores, once per pass: the row maximum; for `ibert` the
sum of its numerators, by which it divides before the second product; then numerators and context.

Numerators are the first operand of the second product without leaving the thread that made them:
the order of keys inside a group of 32 is chosen so (SLOTS below), and the values are transposed
into the same order. Native numerators have 12 bits: their high and low bytes are two products.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.relay_ops import expr
from intformer.relay_ops.attention_tir import (
    ibert_clipped,
    ibert_polynomial,
    ibert_quantized,
    native_inverse,
)

KEYS = 64  # in shared memory at a time
GROUP = 32  # keys that one instruction of the second product takes
MASKED = -(2**30)  # score of a key past the sequence: never the row maximum
PIECE = 16  # bytes


def space(attrs: dict) -> dict[str, list[int]]:
    """Return what may be decided: warps of a block, with sixteen query rows each."""
    return {"warps": [2, 4, 1]}


def build(attrs: dict, decisions: dict[str, int], numerics: dict) -> tirx.PrimFunc:
    """Return the kernel (qkv, cu_seqlens, params, ctx_mult, ctx_shift, out, counts).

    attrs      heads, head_dim (padded to a multiple of 16), zero_points_out, dtypes_out
    decisions  of `space`; what is missing or no candidate takes its default
    numerics   as for attention_tir.build
    """
    candidates = space(attrs)["warps"]
    warps = decisions.get("warps")
    warps = warps if warps in candidates else candidates[0]
    return _Attention(attrs, warps, numerics).build()


class _Attention:
    """One kernel under construction."""

    def __init__(self, attrs: dict, warps: int, numerics: dict):
        self.heads, self.dim = attrs["heads"], attrs["head_dim"]
        self.width = self.heads * self.dim
        self.warps, self.numerics = warps, numerics
        self.native = numerics["recipe"] == "native"
        self.zero_point, self.out_type = attrs["zero_points_out"][0], attrs["dtypes_out"][0]
        self.deep = -(-self.dim // 32) * 32  # bytes of a row of Q or K, zeros at the end
        self.wide = 4 if self.dim % 32 == 0 else 2  # 8-wide tiles whose results are neighbours
        self.threads = gpu.WARP * warps

    def build(self) -> tirx.PrimFunc:
        """Return the kernel."""
        from tvm.script.ir_builder import IRBuilder

        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            params = ("int32", 3) if self.native else ("int64", 6)
            rows = tirx.Var("rows", "int32")
            self.qkv = gpu.argument(0, (rows, 3 * self.width), "int8")
            self.offsets = gpu.argument(1, (rows,), "int32")
            self.params = gpu.argument(2, (params[1],), params[0])
            self.mult = gpu.argument(3, (self.width,), "int32")
            self.shift = gpu.argument(4, (self.width,), "int32")
            self.out = gpu.argument(5, (rows, self.width), self.out_type)
            counts = gpu.argument(6, (len(gpu.COUNTS),), "int32")
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

    def _rows(self, start) -> None:
        """Emit the work of a block: its query rows from `start` on."""
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

        self._pass(maximum, values=False)
        self.top = [T.bind(gpu.value("int32", "max", top[i], 4)) for i in range(2)]
        total = gpu.local(2, "int32")
        for i in range(2):
            T.buffer_store(total, 0, [i])
        if self.native:
            context = self._products(2, lambda e: (e >> 8, e & 255), total)
            totals = [T.bind(gpu.value("int32", "sum", total[i], 4)) for i in range(2)]
            self._native_results(context, totals)
        else:

            def add(group, scores):
                with T.unroll(4) as tile:
                    for i in range(4):
                        e = self._numerator(scores(tile, i), i // 2)
                        T.buffer_store(total, total[i // 2] + e, [i // 2])

            self._pass(add, values=False)
            factors = [
                self._quotient(T.bind(gpu.value("int32", "sum", total[i], 4))) for i in range(2)
            ]
            context = self._products(1, lambda e, i: (self._probability(e, factors[i]),), None)
            self._ibert_results(context)

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

    # -- passes -----------------------------------------------------------------------------------

    def _pass(self, use, values: bool) -> None:
        """Emit a loop over all keys; `use` gets every group of 32 and its scores.

        use     (first key of the group, in shared memory, scores); scores(tile, i) is register i of
                an 8-wide tile, MASKED past the sequence: columns 2 t + i % 2, rows g + i // 2 * 8
        values  also bring the values
        """
        with T.serial((self.length + KEYS - 1) // KEYS) as number:
            first = T.bind(number * KEYS)
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
                key = T.bind(first + part * GROUP + self.lane % 4 * 2)

                def scores(tile, i, acc=acc, key=key):
                    inside = key + (tile * 8 + i % 2) < self.length
                    return tirx.Select(inside, acc[tile * 4 + i], tirx.const(MASKED, "int32"))

                use(part, scores)

    def _products(self, count: int, split, total):
        """Emit the last pass: numerators times values; return the `count` contexts' registers.

        split  of a numerator (and, for ibert, its row): the bytes of each product
        total  where the numerators of a row are added up, if anywhere
        """
        tiles = self.dim // 8
        context = gpu.local(count * tiles * 4, "int32")
        with T.unroll(count * tiles * 4) as i:
            T.buffer_store(context, 0, [i])

        def use(part, scores):
            a = gpu.local(count * 4, "uint32")
            e = gpu.local(16, "int32")
            with T.unroll(4) as tile:
                for i in range(4):
                    number = self._numerator(scores(tile, i), i // 2)
                    T.buffer_store(e, number, [tile * 4 + i])
                    if total is not None:
                        T.buffer_store(total, total[i // 2] + e[tile * 4 + i], [i // 2])
            for half in range(2):
                for row in range(2):
                    numbers = [e[(half * 2 + i // 2) * 4 + row * 2 + i % 2] for i in range(4)]
                    bytes_of = [split(n) if self.native else split(n, row) for n in numbers]
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

        self._pass(use, values=True)
        return context

    # -- numbers ----------------------------------------------------------------------------------

    def _numerator(self, score, row: int):
        """Return E of a score in one of the thread's two rows, int32; 0 past the sequence."""
        score = T.bind(score)
        top = self.top[row]
        if self.native:
            mult, lift, most = (self.params[i] for i in range(3))
            z = T.bind(expr.mul_high(T.min(top - score, most) << lift, mult))
            e = numerator(z, self.numerics["constants"])
        else:
            constants = self.numerics["constants"]
            clipped = T.bind(ibert_clipped(top - score, self.params, constants[0]))
            bits = expr.like(self.numerics["inverse_bits"], clipped)
            q = T.bind((clipped * self.params[5]) >> bits)
            poly = T.bind(ibert_polynomial(clipped, q, self.params))
            e = ibert_quantized(poly, q, self.params, constants)
        # at a fine enough scale no difference of scores brings E down to 0
        return tirx.Select(score > MASKED, e, tirx.const(0, "int32"))

    def _quotient(self, total):
        """Return floor(2^32 / total), int64, and 0 for 0: bit by bit."""
        rest, factor = gpu.local(1, "int64"), gpu.local(1, "int64")
        wide = T.bind(tirx.Cast("int64", total))
        one, zero = tirx.const(1, "int64"), tirx.const(0, "int64")
        T.buffer_store(rest, one, [0])  # the first bit of 2^32
        T.buffer_store(factor, zero, [0])
        with T.serial(32):
            T.buffer_store(rest, rest[0] + rest[0], [0])
            fits = T.bind(tirx.Select(rest[0] >= wide, one, zero))
            T.buffer_store(factor, factor[0] + factor[0] + fits, [0])
            T.buffer_store(rest, rest[0] - fits * wide, [0])
        return T.bind(tirx.Select(total > 0, factor[0], zero))

    def _probability(self, e, factor):
        p = (tirx.Cast("int64", e) * factor) >> tirx.const(24, "int64")
        return tirx.Cast("int32", T.min(p, tirx.const(255, "int64")))

    # -- results ----------------------------------------------------------------------------------

    def _results(self, number) -> None:
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
                            self.numerics["lo"],
                            self.numerics["hi"],
                        )
                        made.append(T.bind(tirx.Cast("int32", y) + self.zero_point))
                    offset = (self.first + here) * self.width + column
                    offset = offset * gpu.SIZES[self.out_type]
                    gpu.write(self.out, offset, made, self.out_type)

    def _native_results(self, context, totals) -> None:
        tiles = self.dim // 8
        factors, ups = [], []
        for total in totals:
            bits = T.bind(32 - gpu.value("int32", "leading_zeros", total))
            wide = tirx.Cast("int64", total) << tirx.Cast("int64", 32 - bits)
            inverse = native_inverse(T.bind(wide), self.numerics["constants"])
            down = tirx.Cast("int64", T.max(bits - 18, 0))
            factors.append(T.bind(tirx.Cast("int32", inverse >> down)))
            ups.append(T.bind(T.max(18 - bits, 0)))

        def number(register, column, row):
            acc = context[register] * 256 + context[tiles * 4 + register]
            u = expr.mul_high(acc << ups[row], factors[row])
            return expr.mul_high(u + self.shift[column], self.mult[column])

        self._results(number)

    def _ibert_results(self, context) -> None:
        def number(register, column, row):
            p = expr.product(context[register], self.mult[column])
            return expr.round_shift(p, tirx.Cast("int64", self.shift[column]))

        self._results(number)


def numerator(z, constants):
    """E in 0..4096 of z (int32): attention.of_halvings."""
    c4, c3, c2, c1, c0, z_bits = constants[:6]
    f = T.bind((z & ((1 << z_bits) - 1)) << (15 - z_bits))
    h = c4
    for c in (c3, c2, c1):
        h = T.bind(((h * f + (1 << 14)) >> 15) + c)
    p = T.bind(((h * f + (1 << 14)) >> 15) + (2**15 + c0))
    return ((p >> ((z >> z_bits) + 2)) + 1) >> 1
