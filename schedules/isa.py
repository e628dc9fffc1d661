"""The x86 instruction sets the kernels are written for: one dot product each, integers only."""

from dataclasses import dataclass

from tvm.script import tirx as T


@dataclass(frozen=True)
class Isa:
    """What a kernel needs to know of a chip.

    lanes          int32 lanes of the accumulator vector, L
    depth          int8 products that one dot adds to a lane, D
    matmul_tile    (rows, vectors): accumulators held in registers
    score_tiles    key vectors per tile of the attention scores
    context_tiles  accumulators of one tile of the attention context
    """

    lanes: int
    depth: int
    matmul_tile: tuple[int, int]
    score_tiles: int
    context_tiles: int

    def dot(self, acc, a, b):
        """Return acc + the sums of `depth` products: int32 x L, uint8 x L D, int8 x L D."""
        raise AssertionError("a chip defines it")

    def dot16(self, acc, a, b):
        """Return acc + the sums of two products: int32 x L, int16 x 2 L, int16 x 2 L."""
        raise AssertionError("a chip defines it")


class Vnni(Isa):
    """AVX512-VNNI: vpdpbusd, 64 products at once, no saturation."""

    def dot(self, acc, a, b):
        """One vpdpbusd."""
        return T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            acc,
            a,
            b,
            dtype="int32x16",
        )

    def dot16(self, acc, a, b):
        """One vpdpwssd."""
        return T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpwssd.512"),
            acc,
            a,
            b,
            dtype="int32x16",
        )


class Sse2(Isa):
    """Any x86-64: pmaddwd on widened bytes, 8 products at once, exact."""

    def dot(self, acc, a, b):
        """Widen to int16, then dot16."""
        return self.dot16(acc, T.cast(a, "int16x8"), T.cast(b, "int16x8"))

    def dot16(self, acc, a, b):
        """One pmaddwd, one paddd (which wraps like vpdpbusd)."""
        pairs = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.sse2.pmadd.wd"), a, b, dtype="int32x4"
        )
        total = T.cast(acc, "uint32x4") + T.cast(pairs, "uint32x4")
        return T.cast(total, "int32x4")


VNNI = Vnni(lanes=16, depth=4, matmul_tile=(8, 2), score_tiles=2, context_tiles=16)
SSE2 = Sse2(lanes=4, depth=2, matmul_tile=(2, 4), score_tiles=1, context_tiles=8)
