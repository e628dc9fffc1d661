"""Native and I-BERT attention on a GPU: what their softmax does around the two products."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.relay_ops import attention, attention_ibert, expr
from intformer.schedules.kernels import attention_ibert as ibert
from intformer.schedules.kernels import attention_native as native
from intformer.schedules.kernels.cuda_attention import Attention


class Native(Attention):
    """Numerators of 12 bits, in two products of bytes; the context is divided by their sum."""

    parameters = native.PARAMETERS
    low, high = -attention.LIMIT8, attention.LIMIT8
    products = 2

    def numerator(self, score, row: int):
        """Return 4096 * 2^-z."""
        mult, lift, most = (self.params[i] for i in range(3))
        z = T.bind(expr.mul_high(T.min(self.top[row] - score, most) << lift, mult))
        return native.bound_numerator(z)

    def operand(self, e, row: int) -> tuple:
        """Return high and low byte."""
        return e >> 8, e & 255

    def finish(self, total) -> None:
        """Emit numerators, their sums and the context in one pass."""
        context = self.contexts(total)
        totals = [T.bind(gpu.value("int32", "sum", total[i], 4)) for i in range(2)]
        tiles, halved = self.dim // 8, self.halved()
        factors, ups = [], []
        for each in totals:
            bits = T.bind(32 - gpu.value("int32", "leading_zeros", each))
            wide = tirx.Cast("int64", each) << tirx.Cast("int64", 32 - bits)
            inverse = native.inverse(T.bind(wide))
            down = tirx.Cast("int64", T.max(bits - (18 + halved), 0))
            factors.append(T.bind(tirx.Cast("int32", inverse >> down)))
            ups.append(T.bind(T.max(18 + halved - bits, 0)))

        def number(register, column, row):
            acc = self.joined(context[register], context[tiles * 4 + register], halved)
            u = expr.mul_high(acc << ups[row], factors[row])
            return expr.mul_high(u + self.shift[column], self.mult[column])

        self.results(number)

    def halved(self):
        """Return how often the context is halved: 0, or a variable where that depends on length."""
        if not attention.halvings_of(self.longest, self.window):
            return 0
        long = self.length > attention.PART
        return T.bind(tirx.Select(long, tirx.const(1, "int32"), tirx.const(0, "int32")))

    def joined(self, high, low, halved):
        """Return the context of both bytes, halved; the products themselves always fit."""
        if isinstance(halved, int):
            return high * 256 + low
        return high * (256 >> halved) + (low >> halved)


class NativeBiased(Native):
    """With a bias of the scores (relay_ops.attention_bias)."""

    biased = True


class Ibert(Attention):
    """Numerators of 15 bits, divided by their sum to 8 bits before the second product."""

    parameters = ibert.PARAMETERS
    low, high = attention_ibert.LOW8, attention_ibert.HIGH8
    products = 1

    def numerator(self, score, row: int):
        """Return QuantAct(16) of the exponential."""
        clipped = T.bind(ibert.clipped(self.top[row] - score, self.params))
        q = T.bind(ibert.quotient(clipped, self.params))
        poly = T.bind(ibert.polynomial(clipped, q, self.params))
        return ibert.quantized(poly, q, self.params)

    def operand(self, e, row: int) -> tuple:
        """Return the probability."""
        return (tirx.Cast("int32", ibert.probability(e, self.factors[row])),)

    def finish(self, total) -> None:
        """Emit a pass for the sums, and one for the context."""
        self.add_numerators(total)
        self.factors = [
            self._quotient(T.bind(gpu.value("int32", "sum", total[i], 4))) for i in range(2)
        ]
        context = self.contexts()

        def number(register, column, row):
            p = expr.product(context[register], self.mult[column])
            return expr.round_shift(p, tirx.Cast("int64", self.shift[column]))

        self.results(number)

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
