"""The chips the kernels are written for: CPU instruction sets, one dot product each, and GPUs."""

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T


@dataclass(frozen=True)
class Isa:
    """What a kernel needs to know of a chip.

    lanes          int32 lanes of the accumulator vector, L: 16, 8 or 4
    registers      vector registers
    matmul_tile    (rows, vectors): accumulators held in registers
    steps          dot products of one turn of a matmul's innermost loop
    score_tiles    key vectors per tile of the attention scores, the default first
    context_tiles  accumulators of one tile of the attention context
    operand        type of the first operand of `dot`; where it is int8 the zero point is 0
    by_lane        `dot` takes four numbers of any lane of a register as well as it takes a vector
    unroll         vectors of channels side by side where nothing is multiplied
    """

    lanes: int
    registers: int
    matmul_tile: tuple[int, int]
    steps: int
    score_tiles: tuple[int, ...]
    context_tiles: int
    operand: str = "uint8"
    by_lane: bool = False
    unroll: int = 1

    def dot(self, acc, a, b):
        """Return acc + the sums of four products: int32 x L, `operand` x 4 L, int8 x 4 L."""
        raise AssertionError("a chip defines it")

    def dot16(self, acc, a, b):
        """Return acc + the sums of two products: int32 x L, two int16 over and over, `paired`."""
        raise AssertionError("a chip defines it")

    def sum16(self, acc, x):
        """Return acc + the sums of two neighbours: int32 x L, int16 x 2 L."""
        return self.dot16(acc, x, T.broadcast(T.int16(1), 2 * self.lanes))

    def paired(self, first, second):
        """Return two vectors of L int8 as `dot16` takes them, int16 in the bits of int32 x L."""
        first, second = (T.cast(x, f"int32x{self.lanes}") for x in (first, second))
        low = T.broadcast(T.int32(0xFFFF), self.lanes)
        return (first & low) | (second << T.broadcast(T.int32(16), self.lanes))


@dataclass(frozen=True)
class Vnni(Isa):
    """AVX512-VNNI and AVX-VNNI: vpdpbusd, four products a lane at once, no saturation.

    bits   of one vector, as the names of LLVM's intrinsics have it
    tiles  the chip multiplies tiles as well (AMX)
    """

    bits: int = 512
    tiles: bool = False

    def dot(self, acc, a, b):
        """One vpdpbusd."""
        return self._intrinsic("vpdpbusd", acc, a, b)

    def dot16(self, acc, a, b):
        """One vpdpwssd."""
        return self._intrinsic("vpdpwssd", acc, a, b)

    def _intrinsic(self, name, *args):
        number = T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.{name}.{self.bits}")
        return T.call_llvm_pure_intrin(number, *args, dtype=f"int32x{self.lanes}")


@dataclass(frozen=True)
class Madd(Isa):
    """SSE2 and AVX2: pmaddwd on the even and on the odd bytes, exact where pmaddubsw saturates.

    Of two tiles that share a operand LLVM keeps its even and odd halves in registers.

    intrinsic  LLVM's name of pmaddwd
    """

    intrinsic: str = "llvm.x86.sse2.pmadd.wd"

    def dot(self, acc, a, b):
        """Products of the even bytes, then of the odd bytes."""
        kind = f"x{2 * self.lanes}"
        eight = T.broadcast(T.uint16(8), 2 * self.lanes)
        eight_signed = T.broadcast(T.int16(8), 2 * self.lanes)
        a, b = T.reinterpret(a, dtype=f"uint16{kind}"), T.reinterpret(b, dtype=f"int16{kind}")
        low = T.reinterpret(a & T.broadcast(T.uint16(255), 2 * self.lanes), dtype=f"int16{kind}")
        high = T.reinterpret(a >> eight, dtype=f"int16{kind}")
        acc = self.dot16(acc, low, (b << eight_signed) >> eight_signed)
        return self.dot16(acc, high, b >> eight_signed)

    def dot16(self, acc, a, b):
        """One pmaddwd, one paddd (which wraps like vpdpbusd)."""
        kind = f"x{self.lanes}"
        number = T.llvm_lookup_intrinsic_id(self.intrinsic)
        pairs = T.call_llvm_pure_intrin(number, a, b, dtype=f"int32{kind}")
        return wrapping_sum(acc, pairs)


@dataclass(frozen=True)
class Neon(Isa):
    """ARM vectors of 128 bits: products widened to twice their bits, then added in pairs."""

    operand: str = "int8"

    def dot(self, acc, a, b):
        """Two smull, two saddlp, one addp: the sum of two products may need 17 bits."""
        low, high = (
            _neon("saddlp", "int32x4", _neon("smull", "int16x8", *halves))
            for halves in zip(_halves(a), _halves(b), strict=True)
        )
        return wrapping_sum(acc, _neon("addp", "int32x4", low, high))

    def dot16(self, acc, a, b):
        """Two smlal by a lane: the second half of a register has the second numbers."""
        for lane, half in enumerate(_halves(b)):
            number = T.Shuffle([a], [lane] * self.lanes)
            acc = wrapping_sum(acc, _neon("smull", "int32x4", half, number))
        return acc

    def sum16(self, acc, x):
        """One sadalp, which LLVM makes of the two."""
        return wrapping_sum(acc, _neon("saddlp", "int32x4", x))

    def paired(self, first, second):
        """One half of a register each."""
        wide = (T.cast(x, f"int16x{self.lanes}") for x in (first, second))
        both = tirx.call_intrin(f"int16x{2 * self.lanes}", "tirx.vectorcombine", *wide)
        return T.reinterpret(both, dtype=f"int32x{self.lanes}")


@dataclass(frozen=True)
class NeonDot(Neon):
    """The same with the dot product instruction: sdot, four products a lane at once."""

    def dot(self, acc, a, b):
        """One sdot."""
        return _neon("sdot", "int32x4", acc, a, b)


@dataclass(frozen=True)
class NeonMatrix(NeonDot):
    """The same with smmla, which multiplies matrices: schedules/i8mm.py."""

    def product(self, acc, a, b):
        """Return acc + a b^T: int32 2 x 2, int8 2 x 8, int8 2 x 8."""
        return _neon("smmla", "int32x4", acc, a, b)


def _neon(name: str, dtype: str, *args):
    """Call an instruction; LLVM finds its form by the types."""
    number = T.llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{name}")
    return T.call_llvm_pure_intrin(number, *args, dtype=dtype)


def _halves(x) -> tuple:
    """Return the lower and the upper lanes of a vector."""
    element, _, lanes = str(x.ty.dtype).partition("x")
    half = f"{element}x{int(lanes) // 2}"
    return tuple(tirx.call_intrin(half, f"tirx.vector{part}", x) for part in ("low", "high"))


@dataclass(frozen=True)
class Plain(Isa):
    """RISC-V, with and without vectors: no dot product, so bytes are taken out of int32 lanes."""

    operand: str = "int8"

    def dot(self, acc, a, b):
        """Four products of bytes."""
        return self._products(acc, a, b, 8)

    def dot16(self, acc, a, b):
        """Two products of 16-bit numbers."""
        return self._products(acc, a, b, 16)

    def _products(self, acc, a, b, bits: int):
        kind = f"int32x{self.lanes}"
        a, b = (T.reinterpret(x, dtype=kind) for x in (a, b))
        down = T.broadcast(T.int32(32 - bits), self.lanes)
        for first in range(0, 32, bits):
            up = T.broadcast(T.int32(32 - bits - first), self.lanes)
            acc = wrapping_sum(acc, ((a << up) >> down) * ((b << up) >> down))
        return acc


def wrapping_sum(a, b):
    """Return the sum of two int32 vectors, which wraps as the dot product instructions do."""
    unsigned = str(a.ty.dtype).replace("int", "uint")
    return T.cast(T.cast(a, unsigned) + T.cast(b, unsigned), str(a.ty.dtype))


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU with int8 tensor cores.

    multiprocessors  of the chip, each of which should have a block of threads
    """

    multiprocessors: int


VNNI = Vnni(
    lanes=16,
    registers=32,
    matmul_tile=(8, 3),
    steps=2,
    score_tiles=(2, 3, 1),
    context_tiles=16,
)
AMX = replace(VNNI, tiles=True)
# 16 registers: a tile of 8, the vectors of weights, what is broadcast
AVX_VNNI = Vnni(
    lanes=8,
    registers=16,
    matmul_tile=(4, 2),
    steps=2,
    score_tiles=(1,),
    context_tiles=8,
    bits=256,
)
AVX2 = Madd(
    lanes=8,
    registers=16,
    matmul_tile=(4, 2),
    steps=1,
    score_tiles=(1,),
    context_tiles=8,
    intrinsic="llvm.x86.avx2.pmadd.wd",
)
SSE2 = Madd(lanes=4, registers=16, matmul_tile=(2, 4), steps=1, score_tiles=(1,), context_tiles=8)
# 32 registers: a tile of 16, 4 vectors of weights, 4 rows
NEON = Neon(
    lanes=4,
    registers=32,
    matmul_tile=(4, 4),
    steps=1,
    score_tiles=(2, 1),
    context_tiles=16,
    unroll=4,
)
NEON_DOT = NeonDot(
    lanes=4,
    registers=32,
    matmul_tile=(4, 4),
    steps=4,
    score_tiles=(2, 1),
    context_tiles=16,
    by_lane=True,
    unroll=4,
)
NEON_I8MM = NeonMatrix(
    lanes=4,
    registers=32,
    matmul_tile=(4, 4),
    steps=1,
    score_tiles=(2, 1),
    context_tiles=16,
    unroll=4,
)
# registers in groups of four: a tile of 4, weights, what is computed next
RVV = Plain(lanes=16, registers=8, matmul_tile=(4, 1), steps=1, score_tiles=(1,), context_tiles=4)
# lanes are numbers one after the other; a tile spills, but smaller ones there are not
RV64 = Plain(lanes=4, registers=32, matmul_tile=(2, 4), steps=1, score_tiles=(1,), context_tiles=4)
CORTEX_M = Plain(
    lanes=4, registers=13, matmul_tile=(2, 4), steps=1, score_tiles=(1,), context_tiles=4
)
