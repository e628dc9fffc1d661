"""IntOp: what one integer op is to every part of the compiler: all that is known of it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class IntOp:
    """One integer op.

    name        as in Node.op and, prefixed with "intformer.", in Relax
    reference   (*arrays, **attrs) -> array or tuple: the meaning, in NumPy
    bounds      (*intervals_or_arrays, **attrs) -> output interval(s): the range analysis; raises
                RangeError where an intermediate could leave its type
    define      (te tensors, attrs) -> te tensors; None: its loops are written in schedules/kernels
    elementwise every channel of the result comes from the same channel of the first argument
    by_row      a row of the result comes from the same row of the arguments (elementwise ops do)
    heads       attrs has heads and head_dim; the first argument holds query, key and value of each
                head, and the result its context
    pairs       attrs has heads and head_dim; the first argument and the result hold query, key and
                value of each head, whose two halves are padded apart, and every other argument
                from the third on has a column for each channel of a half
    halves      the channels of the first argument are two halves, each as wide as the result
    by_sequence the kernel works on whole sequences, so it depends on how long they can be
    lookup      the constants are tables of which few rows are read
    unpadded    leading arguments whose last axis is no channels, though it may be as long
    fill        argument -> its value in padding columns, where 0 would be out of its range
    room        argument -> columns of zeros (of tables by distance: rows) behind it, which a kernel
                may read
    by_distance argument -> whether it is the first operand of a dot product, whose zero point it
                then has: int8 tables [2 L - 1, C] by distance, of channels like a head's
    accumulates the result is the accumulator of a product: exact, not at a chosen scale
    clears      the kernel writes zeros to the rows behind the last one
    work        (attrs, rows, lengths, shapes) -> multiply-adds; rows of the result, int64 lengths
                of the sequences, shapes of the constants by argument
    clamp       (attrs, limits of the arguments) -> (low, high) of the result, where attrs has
                neither lo nor hi and the type does not say it
    source      paper and section, or the module it must match
    """

    name: str
    reference: Callable
    bounds: Callable
    define: Callable | None = None
    elementwise: bool = False
    by_row: bool = False
    heads: bool = False
    pairs: bool = False
    halves: bool = False
    by_sequence: bool = False
    lookup: bool = False
    unpadded: int = 0
    fill: Mapping[int, int] = field(default_factory=dict)
    room: Mapping[int, int] = field(default_factory=dict)
    by_distance: Mapping[int, bool] = field(default_factory=dict)
    accumulates: bool = False
    clears: bool = False
    work: Callable | None = None
    clamp: Callable | None = None
    source: str = ""

    def __post_init__(self):
        """What is elementwise works row by row."""
        object.__setattr__(self, "by_row", self.by_row or self.elementwise)

    @cached_property
    def arity(self) -> int:
        """Number of arguments, as the reference takes them."""
        parameters = inspect.signature(self.reference).parameters.values()
        return sum(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
