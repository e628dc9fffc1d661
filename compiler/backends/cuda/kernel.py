"""What every kernel for a GPU is built with: arguments, launch, the functions of the prelude.

A kernel takes the device addresses of its tensors, in order, then of COUNTS of the run. Its
attribute LAUNCH says what to start; the grid is a bound, blocks past the counts leave at once.
"""

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

LAUNCH = "intformer.launch"
COUNTS = ("token", "sequence", "position", "longest")  # int32 [4], the last argument
UNBOUNDED = 2**31 - 1  # bytes in one buffer: offsets are int32
SIZES = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4}  # bytes of a number
WARP = 32


def argument(number: int, shape: Sequence, dtype: str):
    """Declare an argument of the kernel; names sort in the order of the arguments.

    shape  an extent that is no number becomes as large as offsets allow
    """
    fixed = 1
    for extent in shape:
        fixed *= int(extent) if isinstance(extent, tirx.IntImm | int) else 1
    shape = [
        extent if isinstance(extent, tirx.IntImm | int) else UNBOUNDED // fixed for extent in shape
    ]
    return T.arg(f"a{number:02}", tirx.decl_buffer(shape, dtype, f"a{number:02}"))


def launch(grid: list, threads: int, rows: str) -> None:
    """Say what to start, see plan.Launch."""
    T.func_attr({LAUNCH: {"grid": grid, "threads": threads, "rows": rows}})


def call(name: str, *args) -> None:
    """Call a function of the prelude, for what it does."""
    T.evaluate(tirx.call_extern("void", f"intformer_{name}", *args))


def value(dtype: str, name: str, *args):
    """Call a function of the prelude, for its result."""
    return tirx.call_extern(dtype, f"intformer_{name}", *args)


def synchronise() -> None:
    """Wait for every thread of the block, and for what they wrote to shared memory."""
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def local(count: int, dtype: str):
    """Return registers of a thread."""
    return T.alloc_buffer((count,), dtype, scope="local")


def shared(count: int, dtype: str):
    """Return memory of a block of threads."""
    return T.alloc_buffer((count,), dtype, scope="shared")


def write(target, offset, made: Sequence, dtype: str) -> None:
    """Write neighbouring numbers (expressions), 4 bytes of them or a multiple.

    offset  in bytes, a multiple of what is written at once: 16 bytes, or what is less
    """
    size = SIZES[dtype]
    each = 4 // size
    words = local(len(made) // each, "uint32")
    for word in range(len(made) // each):
        numbers = [tirx.Cast("int32", one) for one in made[word * each : (word + 1) * each]]
        packed = tirx.Cast("uint32", numbers[0])
        if each > 1:
            packed = value("uint32", f"pack{8 * size}", *numbers)
        T.buffer_store(words, packed, [word])
    left, done = len(made) * size // 4, 0
    while left:
        step = 4 if left >= 4 else left
        call(f"write{4 * step}", target.data, offset + done * 4, words.data, done)
        left, done = left - step, done + step
