"""IntOp: what one integer op is to every part of the compiler."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class IntOp:
    """One integer op.

    name       as in Node.op and, prefixed with "intformer.", in Relax
    reference  (*arrays, **attrs) -> array or tuple: the meaning, in NumPy
    bounds     (*intervals_or_arrays, **attrs) -> output interval(s): the range analysis; raises
               RangeError where an intermediate could leave its type
    define     (te tensors, attrs) -> te tensors, or None where `kernel` is given instead
    kernel     (attrs, isa, decisions) -> PrimFunc for ops with loops that no tensor expression can
               state; a decision that is missing takes its default
    cuda       (attrs, decisions) -> PrimFunc, the same for GPUs: it begins like the kernels of
               schedules/cuda.py
    cuda_space (attrs) -> what may be decided about the kernel for GPUs
    space      (attrs, isa) -> what may be decided about such a kernel: name -> values (integers),
               the default first; None: nothing
    source     paper and section, or the module it must match
    """

    name: str
    reference: Callable
    bounds: Callable
    define: Callable | None = None
    kernel: Callable | None = None
    cuda: Callable | None = None
    cuda_space: Callable | None = None
    space: Callable | None = None
    source: str = ""
