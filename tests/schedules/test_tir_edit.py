"""Accessors of scheduled TIR say what they expected where a kernel has another form."""

import pytest
from tvm import te
from tvm.s_tir import Schedule

from intformer.schedules import tir_edit


def kernel():
    """Return y = x + 1 over [blocks, 8, 16]."""
    x = te.placeholder((te.var("blocks"), 8, 16), "int32", name="x")
    return te.create_prim_func([x, te.compute(x.shape, lambda *i: x[i] + 1, name="y")])


def block_of(func):
    """Return the only block inside the root."""
    sch = Schedule(func)
    return sch.get(sch.get_sblock("y"))


def test_loops_and_root_are_found():
    func = kernel()
    nest = tir_edit.panels(tir_edit.root_block(func).body)
    assert nest.row.extent.value == 8
    assert nest.column.body.same_as(nest.row)


def test_the_root_keeps_its_regions():
    func = kernel()
    root = tir_edit.root_block(func)
    again = tir_edit.root_block(tir_edit.with_root_body(func, root.body))
    assert list(again.reads) == list(root.reads) and list(again.writes) == list(root.writes)


@pytest.mark.parametrize(
    ("accessor", "expected"),
    [
        (tir_edit.separate, "product and epilogue: expected SeqStmt, found For"),
        (tir_edit.weights, r"expected weights \[N / 16"),
        (lambda func: tir_edit.allocated(func, "matmul"), "buffer matmul: expected one"),
        (
            lambda func: tir_edit.operands(block_of(func)),
            "block y: expected to read x and weights",
        ),
    ],
)
def test_another_form_is_named(accessor, expected):
    with pytest.raises(AssertionError, match=expected):
        accessor(kernel())
