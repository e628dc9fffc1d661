"""Plan: what a lowered program is, for the library builder. Plain numpy data, no TVM.

Physical layout: a token buffer is [nb, 8, width] with nb = ceil(n / 8) blocks of 8 rows, where n is
the number of packed tokens; sequence buffers have ceil(batch / 8) blocks, position buffers
ceil(positions / 8). Width is the number of channels padded to a multiple of 16.
"""

import re
from dataclasses import dataclass, field

import numpy as np

BLOCK = 8  # rows in one block of a buffer


@dataclass(frozen=True)
class Buffer:
    """One activation as the kernels store it, [blocks, 8, width].

    name         as in IntModel.values
    dtype        physical dtype: uint8, int8, int16 or int32
    rows         "token", "sequence" or "position" (what one row stands for)
    width        physical channels, a multiple of 16
    channels     logical channels
    zero_point   stored number - logical number (128 for int8 values kept as uint8)
    channel_map  int array [channels], logical channel -> physical column; None = identity
    """

    name: str
    dtype: str
    rows: str
    width: int
    channels: int
    zero_point: int = 0
    channel_map: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """One kernel call.

    kernel   name; the object files of a variant define the function `symbol(kernel, variant)`
    args     program inputs, buffers and constants in PrimFunc parameter order, outputs last
    outputs  the buffers among args that this step writes (an observer sees them after the step)
    """

    kernel: str
    args: tuple[str, ...]
    outputs: tuple[str, ...]


def symbol(kernel: str, variant: str) -> str:
    """Return the name of the function that a kernel is in one variant of the program."""
    return f"{kernel}__{re.sub(r'[^A-Za-z0-9]', '_', variant)}"


@dataclass
class Plan:
    """A program: kernel calls in order over named buffers and constants.

    steps      execution order
    buffers    every activation by name
    constants  packed arrays by name, as the kernels read them
    packing    JSON-able by constant name: how to unpack it to the IntModel's tensors
    output     buffer returned to the caller, int32
    inputs     the program inputs that the steps use
    """

    steps: list[Step]
    buffers: dict[str, Buffer]
    constants: dict[str, np.ndarray]
    output: str
    inputs: tuple[str, ...]
    packing: dict[str, dict] = field(default_factory=dict)
