"""Fused Relax -> scheduled kernels and the plan that calls them.

Every group of ops becomes one tensor program by composing the ops' own definitions; groups of one
form (same ops, attributes and shapes) share a kernel, whatever layer they come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax, te, tirx

from intformer.model import INPUTS, IntModel
from intformer.passes.layout import Layout
from intformer.passes.to_relax import BLOCKS, PREFIX
from intformer.plan import Plan, Step
from intformer.relay_ops import OPS


@dataclass
class _Call:
    """One op of a group; arguments and results by their names in the IntModel."""

    op: str
    arguments: list[str]
    attrs: dict
    results: list[str]


@dataclass
class _Group:
    """What one kernel computes."""

    name: str
    calls: list[_Call]
    results: list[str]

    def arguments(self) -> list[str]:
        inside = {name for call in self.calls for name in call.results}
        names = (name for call in self.calls for name in call.arguments if name not in inside)
        return list(dict.fromkeys(names))


def lower(
    module: tvm.IRModule,
    model: IntModel,
    layout: Layout,
    constants: dict,
    isa,
    schedule: Callable,
) -> tuple[tvm.IRModule, tvm.IRModule, Plan]:
    """Return the kernels before and after scheduling, and the plan.

    schedule  (PrimFunc, isa) -> PrimFunc, the target's rule
    """
    plain: dict[str, tirx.PrimFunc] = {}
    scheduled: dict[str, tirx.PrimFunc] = {}
    known: dict[tuple, str] = {}
    steps = []
    for group in _groups(module):
        arguments = group.arguments()
        key = _form(group, arguments, layout, constants)
        if key not in known:
            kernel = f"{group.name}_{sum(name.startswith(group.name) for name in plain)}"
            known[key] = kernel
            func = _kernel(group, arguments, layout, constants, isa)
            plain[kernel] = func.with_attr("global_symbol", kernel)
            scheduled[kernel] = plain[kernel]
            if OPS[group.calls[0].op].define:
                scheduled[kernel] = schedule(func, isa).with_attr("global_symbol", kernel)
        steps.append(Step(known[key], (*arguments, *group.results), tuple(group.results)))
    written = {name for step in steps for name in step.outputs}
    used = {name for step in steps for name in step.args}
    plan = Plan(
        steps=steps,
        buffers={name: b for name, b in layout.buffers.items() if name in written},
        constants={name: array for name, array in constants.items() if name in used},
        output=model.output,
        inputs=tuple(name for name in INPUTS if name in used),
        packing=layout.packing,
    )
    return tvm.IRModule(plain), tvm.IRModule(scheduled), plan


def _groups(module: tvm.IRModule) -> list[_Group]:
    """Read the kernels-to-be off `main`, with the names of the IntModel."""
    main = module["main"]
    names = {param: param.name for param in main.params}
    groups = []
    for block in main.body.blocks:
        for binding in block.bindings:
            value, var = binding.value, binding.var
            if isinstance(value, relax.TupleGetItem):
                names[var] = names[value.tuple_value][value.index]
            elif isinstance(value, relax.Var):
                names[var] = names[value]
            elif isinstance(value.op, tvm.ir.GlobalVar):
                function = module[value.op]
                inner = dict(zip(function.params, (names[a] for a in value.args), strict=True))
                bindings = [b for block in function.body.blocks for b in block.bindings]
                calls = [_call(b, inner) for b in bindings if isinstance(b.value, relax.Call)]
                groups.append(_Group(str(function.attrs["Composite"]), calls, calls[-1].results))
                names[var] = inner[bindings[-1].var]
            else:
                call = _call(binding, names)
                groups.append(_Group(call.op, [call], call.results))
    return groups


def _call(binding, names: dict) -> _Call:
    call = binding.value
    attrs = {key: _plain(value) for key, value in call.attrs.items()}
    results = list(attrs.pop("results"))
    names[binding.var] = results[0] if len(results) == 1 else results
    return _Call(call.op.name.removeprefix(PREFIX), [names[a] for a in call.args], attrs, results)


def _plain(value):
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "__len__"):
        return [_plain(item) for item in value]
    return int(value)


def _form(group: _Group, arguments: list[str], layout: Layout, constants: dict) -> tuple:
    """Return what decides the kernel: two groups with equal forms share one."""
    order = {name: i for i, name in enumerate([*arguments, *group.results])}
    inner = {r: f"{i}.{j}" for i, c in enumerate(group.calls) for j, r in enumerate(c.results)}
    calls = [
        (c.op, str(sorted(c.attrs.items())), str([order.get(a, inner.get(a)) for a in c.arguments]))
        for c in group.calls
    ]
    return (str(calls), str([_shape(name, layout, constants) for name in order]))


def _shape(name: str, layout: Layout, constants: dict) -> tuple:
    """Return (extents, dtype); a string stands for a dynamic extent."""
    if name in INPUTS:
        return (f"{name}_length",), "int32"
    if name in constants:
        return constants[name].shape, str(constants[name].dtype)
    buffer = layout.buffers[name]
    return (BLOCKS[buffer.rows], 8, buffer.width), buffer.dtype


def _kernel(group: _Group, arguments: list[str], layout: Layout, constants: dict, isa):
    """Compose the definitions of the group's ops into one PrimFunc (arguments, then results)."""
    first = OPS[group.calls[0].op]
    if first.kernel:
        return first.kernel(group.calls[0].attrs, isa)
    extents: dict[str, tirx.Var] = {}
    tensors: dict[str, te.Tensor] = {}
    for name in arguments:
        shape, dtype = _shape(name, layout, constants)
        shape = [extents.setdefault(e, te.var(e)) if isinstance(e, str) else e for e in shape]
        tensors[name] = te.placeholder(shape, dtype, name=name.replace(".", "_").replace("#", "_"))
    for call in group.calls:
        rows = BLOCKS[layout.buffers[call.results[0]].rows]
        attrs = {**call.attrs, "blocks": extents.setdefault(rows, te.var(rows))}
        results = OPS[call.op].define([tensors[a] for a in call.arguments], attrs)
        tensors.update(zip(call.results, results, strict=True))
    order = [tensors[name] for name in (*arguments, *group.results)]
    return te.create_prim_func(order)
