"""A task as MetaSchedule sees it: an empty function that carries a kernel's form and a row count.

A schedule of it only notes decisions on the root block, so traces are short and can be replayed,
and a record stays valid while the code behind a decision changes. The kernel itself is made from
the form by `build`.
"""

import hashlib

import tvm
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from intformer.passes.form import Decisions, Form

FORM, ROWS, DECISION = "intformer.form", "intformer.rows", "intformer."


@T.prim_func(s_tir=True)
def _nothing():
    with T.sblock("root"):
        T.reads()
        T.writes()
        T.evaluate(0)


def workload(form: Form, rows: int) -> tvm.IRModule:
    """Return the stand-in for a kernel that handles `rows` tokens (sequences, positions)."""
    attrs = {"global_symbol": "main", FORM: form.text, ROWS: rows}
    return tvm.IRModule({"main": _nothing.with_attr(attrs)})


def meant(module: tvm.IRModule) -> tuple[Form, int]:
    """Return the form and the rows: the inverse of workload."""
    attrs = module["main"].attrs
    return Form(str(attrs[FORM])), int(attrs[ROWS])


def candidate(module: tvm.IRModule, space: dict[str, list[int]], decisions: Decisions) -> Schedule:
    """Return a workload's schedule that takes these decisions, one per name of the space."""
    sch = Schedule(module)
    root = sch.get_sblock("root")
    for name, values in space.items():
        even = [1 / len(values)] * len(values)
        chosen = sch.sample_categorical(values, even, decision=values.index(decisions[name]))
        sch.annotate(root, DECISION + name, chosen)
    return sch


def decided(sch: Schedule) -> Decisions:
    """Return the decisions noted by `candidate`."""
    notes = sch.get(sch.get_sblock("root")).annotations
    return {str(key).removeprefix(DECISION): int(value) for key, value in notes.items()}


def identity(form: Form, rows: int) -> str:
    """Return a short name for a task."""
    return f"{form.name}-{hashlib.sha256(form.text.encode()).hexdigest()[:12]}-{rows}"
