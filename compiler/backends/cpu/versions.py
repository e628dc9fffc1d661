"""Several versions of a kernel as one function."""

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, renew_defs
from tvm_ffi import structural_map


def join(few: tirx.PrimFunc, many: tirx.PrimFunc, limit: int) -> tirx.PrimFunc:
    """Return a kernel that runs `few` up to `limit` row blocks of its last result, else `many`."""
    many = renew_defs(many)
    same = dict(zip(many.params, few.params, strict=True))
    for ours, theirs in zip(few.params, many.params, strict=True):
        same |= dict(zip(theirs.shape, ours.shape, strict=True))
    rest = structural_map(many.body, (tirx.Var, lambda var: same.get(var, var)))
    body = tirx.IfThenElse(few.params[-1].shape[0] <= limit, few.body, rest)
    return few.with_body(SBlockRealize([], True, SBlock([], [], [], "root", body)))
