"""Rows with statistics (LayerNorm): one warp per row, in as many passes as the statistics need.

The blocks of the plain kernel come in order: sums over the channels (NAME_partial and NAME, which
the CPU kernels add up in lanes), numbers of the row made from them, and the channels of the result.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda.kernel import UNBOUNDED
from intformer.ir.constants import BLOCK
from intformer.schedules.cuda_matmul import store
from intformer.schedules.cuda_values import Kernel, Stage, Values

WARPS = 4  # rows of a block of threads
CHANNELS = 4  # neighbours that one thread takes
PARTIAL = "_partial"


def body(kernel: Kernel, rows: str) -> int:
    """Emit the kernel's body; return the threads of a block."""
    outputs = kernel.outputs
    width = int(outputs[0].shape[-1])
    turns = -(-width // (32 * CHANNELS))
    block_x = T.thread_binding(UNBOUNDED // 4 // width, thread="blockIdx.x")
    threads = T.thread_binding(32 * WARPS, thread="threadIdx.x")
    with block_x as block, threads as thread:
        row = T.bind(block * WARPS + thread // 32)
        with T.If(row < kernel.count(rows)), T.Then():
            lane = T.bind(thread % 32)
            place = (row // BLOCK, row % BLOCK)

            now = _Turn()

            def each(emit):
                with T.unroll(turns) as turn:
                    now.turn = turn
                    now.start = T.bind((turn * 32 + lane) * CHANNELS)
                    if width % (32 * CHANNELS) == 0:
                        emit()
                    else:
                        with T.If(now.start < width), T.Then():
                            emit()

            values = Values(kernel, _sources(kernel, place, turns, each, now))
            sums: list[Stage] = []
            for stage in kernel.stages:
                if stage.name.endswith(PARTIAL):
                    sums.append(stage)
                elif stage.row and f"{stage.name}{PARTIAL}" not in {s.name for s in kernel.stages}:
                    _sum(kernel, values, sums, place, each, now)
                    sums = []
                    for buffer, _ in stage.stores:
                        values.at(buffer, place)

            def results():
                for output in outputs:
                    store(kernel, values, output, row, now.start, CHANNELS, place)

            each(results)
    return 32 * WARPS


class _Turn:
    """Where in the row a thread is: its registers of a source depend on it."""

    turn = start = None


def _sources(kernel: Kernel, place, turns: int, each, now: _Turn) -> dict:
    """Compute what the sums read, unless it is an argument, once, into registers."""
    sums = [stage for stage in kernel.stages if stage.name.endswith(PARTIAL)]
    read = {buffer for stage in sums for buffer in stage.reads}
    given = {}
    for stage in kernel.stages:
        inside = any(buffer in kernel.producers for buffer in stage.reads)
        if len(stage.space) != 3 or stage.reduce or inside or stage.stores[0][0] not in read:
            continue
        ((buffer, _),) = stage.stores
        held = T.alloc_buffer((turns * CHANNELS,), str(buffer.dtype), scope="local")

        def compute(buffer=buffer, held=held):
            with T.unroll(CHANNELS) as i:
                value = Values(kernel).at(buffer, (*place, now.start + i))
                T.buffer_store(held, value, [now.turn * CHANNELS + i])

        each(compute)
        given[buffer] = lambda _b, _r, c, held=held: held[now.turn * CHANNELS + (c - now.start)]
    return given


def _sum(kernel: Kernel, values: Values, waiting: list, place, each, now: _Turn) -> None:
    """Emit sums over the channels of a row, all of them in one pass."""
    if not waiting:
        return
    totals = {}
    for stage in waiting:
        ((buffer, _),) = stage.stores
        totals[stage.name] = T.alloc_buffer((1,), str(buffer.dtype), scope="local")
        T.buffer_store(totals[stage.name], tirx.const(0, str(buffer.dtype)), [0])

    def add():
        with T.unroll(CHANNELS) as i:
            inner = Values(kernel, outer=values)
            for stage in waiting:
                ((_, update),) = stage.stores
                ((chunk, _),) = stage.reduce
                here = dict(zip(stage.space, (*place, now.start + i), strict=True))
                term = inner.of(update.b, {**here, chunk: tirx.const(0, "int32")})
                T.buffer_store(totals[stage.name], totals[stage.name][0] + term, [0])

    each(add)
    for stage in waiting:
        name = stage.name.removesuffix(PARTIAL)
        (final,) = (other for other in kernel.stages if other.name == name)
        ((buffer, _),) = final.stores
        wide = str(buffer.dtype) == "int64"
        total = T.bind(
            tirx.call_extern(
                str(buffer.dtype), f"intformer_sum{'64' * wide}", totals[stage.name][0], 32
            )
        )
        values.given[buffer] = lambda *_, total=total: total
