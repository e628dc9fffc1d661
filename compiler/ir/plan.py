"""Plan: what a lowered program is, for the library builder. Plain numpy data, no TVM.

Physical layout: a token buffer is [nb, 8, width] with nb = ceil(n / 8) blocks of 8 rows, where n is
the number of packed tokens; sequence buffers have ceil(batch / 8) blocks, position buffers
ceil(positions / 8). Width is the number of channels padded to a multiple of 16.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


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


@dataclass(frozen=True)
class Launch:
    """One version of a kernel for a device: the function for runs up to some size, and its grid.

    function  name in the device's code; its parameters are a device pointer for each of Step.args,
              then `const int *counts`, int32 [4] on the device: token rows, sequences, position
              rows, tokens of the longest sequence of the run
    limit     runs with at most this many rows use it; the last version has None
    rows      what `limit` counts: "token", "sequence" or "position"
    grid      three of (count, divisor, factor): factor * ceil(count of the run / divisor) blocks,
              where count is one of COUNTS. A bound: blocks past the rows of a run leave at once
    threads   of one block, in one dimension
    shared    bytes of dynamic shared memory
    """

    function: str
    limit: int | None
    rows: str
    grid: tuple[tuple[str, int, int], ...]
    threads: int
    shared: int = 0


COUNTS = ("token", "sequence", "position", "longest", "one")  # what a grid can follow


def grid_size(grid: Sequence[tuple[str, int, int]], counts: Mapping[str, int]) -> list[int]:
    """Return the blocks of a launch in each direction, see Launch; counts without "one"."""
    every = {**counts, "one": 1}
    return [factor * -(-every[count] // divisor) for count, divisor, factor in grid]


@dataclass
class Plan:
    """A program: kernel calls in order over named buffers and constants.

    steps      execution order
    buffers    every activation by name
    constants  packed arrays by name, as the kernels read them
    packing    JSON-able by constant name: how to unpack it to the IntModel's tensors
    launches   versions of every kernel on a device, by growing limit; empty for CPUs
    output     buffer returned to the caller, int32
    inputs     the program inputs that the steps use
    """

    steps: list[Step]
    buffers: dict[str, Buffer]
    constants: dict[str, np.ndarray]
    output: str
    inputs: tuple[str, ...]
    packing: dict[str, dict] = field(default_factory=dict)
    launches: dict[str, list[Launch]] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """The kernels of a plan for one kind of chip, as its back end made them.

    name      of the target they were compiled for
    objects   object files to link, which define `__tvm_ffi_` + symbol(kernel, name) of every step
    features  LLVM names of the CPU features they need; checked before they run
    tir       scheduled TIR, xz-compressed JSON
    arch      of the device that kernels are launched on, such as "sm_75"; "" for a CPU
    carried   code for a device, which the library carries as data: section -> bytes
    """

    name: str
    objects: Sequence[Path] = ()
    features: Sequence[str] = ()
    tir: bytes = b""
    arch: str = ""
    carried: Mapping[str, bytes] = field(default_factory=dict)
