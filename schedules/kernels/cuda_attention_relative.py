"""Attention with products of distances on a GPU: two more sums for every score a thread has.

They are dot products of four bytes: of a query with the key of its distance to a key, of that key
with the query of the distance. Which words these are differs from score to score, so tensor cores
cannot take them as they lie.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.ir.constants import DEPTH
from intformer.relay_ops import attention_bias
from intformer.schedules.kernels.cuda_attention import PIECE
from intformer.schedules.kernels.cuda_attention_recipes import Native

# 0x80 in every byte: from uint8 with zero point 128 to int8
FLIP = tirx.const(-0x7F7F7F80, "int32")


class NativeRelative(Native):
    """With products of distances (relay_ops.attention_relative).

    The tables are those of the CPUs' kernel; the zero point of the keys is taken off here.
    """

    def tables(self, first: int) -> int:
        """See Attention."""
        words = self.dim // DEPTH
        distances = attention_bias.columns(self.longest)
        self.distant_keys = gpu.argument(first, (self.heads, words, distances), "int32")
        shape = (self.heads, words + 1, distances)
        self.distant_queries = gpu.argument(first + 1, shape, "int32")
        return 2

    def related(self, acc, first, row):
        """Add them to the scores of four tiles; see Attention."""
        rows = [T.bind(T.min(self.row + 8 * i, self.length - 1)) for i in range(2)]
        place = T.bind(self.longest - 1 + first + row)  # of the thread's first key, query 0
        with T.serial(self.dim // DEPTH) as k:
            queries = [
                T.bind(gpu.value("int32", "read4", self.qkv.data, self._query(each, k)))
                for each in rows
            ]
            for tile in range(4):
                for column in range(2):
                    ahead = tile * 8 + column
                    at = self._place(row + ahead, k // 4, self.deep // PIECE) + k % 4 * DEPTH
                    key = T.bind(gpu.value("int32", "read4", self.k.data, at))
                    for i in range(2):
                        where = (self.head, k, place + ahead - rows[i])
                        score = acc[tile * 4 + i * 2 + column]
                        other = self.distant_keys[where] ^ FLIP
                        score = gpu.value("int32", "dot4", score, queries[i], other)
                        score = gpu.value("int32", "dot4", score, key, self.distant_queries[where])
                        T.buffer_store(acc, score, [tile * 4 + i * 2 + column])
        return acc

    def _query(self, row, k):
        """Return where four channels of a query are."""
        row = (self.first + row) * (3 * self.width)
        return row + self.head * self.dim + k * DEPTH
