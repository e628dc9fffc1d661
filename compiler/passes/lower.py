"""Fused Relax -> scheduled kernels and the plan that calls them.

Every group of ops becomes one tensor program by composing the ops' own definitions; groups of one
form (same ops, attributes and shapes) share a kernel, whatever layer they come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from intformer.backends.backend import TargetSpec, Versions
from intformer.ir.constants import BLOCK
from intformer.ir.model import INPUTS, IntModel
from intformer.ir.plan import Launch, Plan, Step
from intformer.passes.form import Form
from intformer.passes.layout import Layout
from intformer.passes.to_relax import BLOCKS, PREFIX


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


@dataclass
class Lowered:
    """A program as kernels.

    spec       the chip they are for
    scheduled  the kernels
    plan       what calls them
    forms      kernel -> what decided it
    names      kernel -> names of its tensors, where it is first called
    """

    spec: TargetSpec
    scheduled: tvm.IRModule
    plan: Plan
    forms: dict[str, Form]
    names: dict[str, list[str]]

    def plain(self) -> tvm.IRModule:
        """Return the kernels before scheduling, for people: nothing compiles them."""
        return tvm.IRModule(
            {
                kernel: form.plain(self.spec, self.names[kernel]).with_attr("global_symbol", kernel)
                for kernel, form in self.forms.items()
            }
        )


def lower(
    module: tvm.IRModule,
    model: IntModel,
    layout: Layout,
    constants: dict,
    spec: TargetSpec,
    choose: Callable[[Form], Versions] = lambda form: [(None, {})],
) -> Lowered:
    """Return the kernels and the plan that calls them.

    choose  which versions of a kernel there are; by default those of the written-down rule
    """
    launches: dict[str, list[Launch]] = {}
    scheduled: dict[str, tirx.PrimFunc] = {}
    known: dict[Form, str] = {}
    names: dict[str, list[str]] = {}
    steps = []
    for group in _groups(module):
        arguments = group.arguments()
        form = _form(group, arguments, layout, constants)
        if spec.backend.any_rows and (shared := form.of_tokens()) in known:
            form = shared
        if form not in known:
            kernel = f"{form.name}_{sum(f.name == form.name for f in known)}"
            known[form] = kernel
            names[kernel] = [*arguments, *group.results]
            versions = choose(form)
            if versions == [(None, {})]:
                versions = form.rule(spec)
            made = form.scheduled(spec, versions, names[kernel])
            functions, launched = spec.backend.functions(kernel, versions, made)
            scheduled |= functions
            if launched:
                launches[kernel] = launched
        steps.append(Step(known[form], (*arguments, *group.results), tuple(group.results)))
    plan = _plan(steps, model, layout, constants, launches)
    forms = {kernel: form for form, kernel in known.items()}
    return Lowered(spec, tvm.IRModule(scheduled), plan, forms, names)


def _plan(
    steps: list[Step],
    model: IntModel,
    layout: Layout,
    constants: dict,
    launches: dict[str, list[Launch]],
) -> Plan:
    """Return the plan with the buffers, constants and inputs that its steps use."""
    written = {name for step in steps for name in step.outputs}
    used = {name for step in steps for name in step.args}
    return Plan(
        steps=steps,
        buffers={name: b for name, b in layout.buffers.items() if name in written},
        constants={name: array for name, array in constants.items() if name in used},
        output=model.output,
        inputs=tuple(name for name in INPUTS if name in used),
        packing=layout.packing,
        launches=launches,
    )


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


def _form(group: _Group, arguments: list[str], layout: Layout, constants: dict) -> Form:
    order = {name: i for i, name in enumerate([*arguments, *group.results])}
    inner = {r: f"{i}.{j}" for i, c in enumerate(group.calls) for j, r in enumerate(c.results)}
    calls = [
        {
            "op": c.op,
            "attrs": c.attrs,
            "args": [inner.get(a, order.get(a)) for a in c.arguments],
            "rows": layout.buffers[c.results[0]].rows,
        }
        for c in group.calls
    ]
    tensors = [_shape(name, layout, constants) for name in order]
    return Form.of(group.name, calls, tensors, len(group.results))


def _shape(name: str, layout: Layout, constants: dict) -> tuple:
    """Return (extents, dtype); a string stands for a dynamic extent."""
    if name in INPUTS:
        return (f"{name}_length",), "int32"
    if name in constants:
        return constants[name].shape, str(constants[name].dtype)
    buffer = layout.buffers[name]
    return (BLOCKS[buffer.rows], BLOCK, buffer.width), buffer.dtype
