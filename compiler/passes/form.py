"""Form: what decides a kernel, as plain data that travels to other processes and into records.

    {"name": "dense", "calls": [{"op": ..., "attrs": {...}, "args": [...], "rows": "token"}, ...],
     "tensors": [[[extents], dtype], ...], "results": how many of the tensors are written}

An argument is the index of a tensor, or "i.j": result j of call i. A string as extent is dynamic.
Two groups of ops with equal forms share one kernel, in whatever layer or model they are.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from tvm import te, tirx

from intformer.backends.backend import TargetSpec, Versions
from intformer.passes.to_relax import BLOCKS
from intformer.relay_ops import OPS

Decisions = dict[str, int]


@dataclass(frozen=True)
class Form:
    """A kernel-to-be; `text` is its canonical JSON."""

    text: str

    @classmethod
    def of(cls, name: str, calls: list[dict], tensors: list, results: int) -> "Form":
        """Return the form of these parts (see the module docstring)."""
        data = {"name": name, "calls": calls, "tensors": tensors, "results": results}
        return cls(json.dumps(data, sort_keys=True, separators=(",", ":")))

    def of_tokens(self) -> "Form":
        """Return the form of the same work on tokens, where all rows are of one kind."""
        kinds = {call["rows"] for call in self.data["calls"]}
        extents = {e for shape, _ in self.data["tensors"] for e in shape if isinstance(e, str)}
        if len(kinds) != 1 or extents != {BLOCKS[kind] for kind in kinds}:
            return self
        (kind,) = kinds
        return Form(
            self.text.replace(f'"{BLOCKS[kind]}"', f'"{BLOCKS["token"]}"').replace(
                f'"rows":"{kind}"', '"rows":"token"'
            )
        )

    @cached_property
    def data(self) -> dict:
        """Return the parts."""
        return json.loads(self.text)

    @property
    def name(self) -> str:
        """Return the stem of the kernel's symbol."""
        return self.data["name"]

    @property
    def title(self) -> str:
        """Return a name for people: with channels in and out where a weight is multiplied with."""
        if self.data["calls"][0]["op"] != "matmul":
            return self.name
        weights, _ = self.data["tensors"][1]
        if len(weights) == 4:
            columns, steps, lanes, depth = weights
            weights = columns * lanes, steps * depth
        return f"{self.name} {weights[1]}x{weights[0]}"

    @property
    def rows(self) -> str:
        """Return what the rows are by which versions are chosen: token, sequence or position."""
        return self.data["calls"][-1]["rows"]

    def plain(self, spec: TargetSpec, names: list[str] | None = None) -> tirx.PrimFunc:
        """Return the kernel before scheduling: its tensors in order, results last.

        names  of the tensors, for people
        """
        if kernel := self._written(spec):
            return kernel({})
        shapes, results = self.data["tensors"], self.data["results"]
        names = names or [f"t{i}" for i in range(len(shapes))]
        extents: dict[str, tirx.Var] = {}
        known: dict[int | str, te.Tensor] = {}
        for i, (shape, dtype) in enumerate(shapes[: len(shapes) - results]):
            shape = [extents.setdefault(e, te.var(e)) if isinstance(e, str) else e for e in shape]
            name = names[i].replace(".", "_").replace("#", "_")
            known[i] = te.placeholder(shape, dtype, name=name)
        for number, call in enumerate(self.data["calls"]):
            rows = BLOCKS[call["rows"]]
            attrs = {**call["attrs"], "blocks": extents.setdefault(rows, te.var(rows))}
            made = OPS[call["op"]].define([known[a] for a in call["args"]], attrs)
            known |= {f"{number}.{j}": tensor for j, tensor in enumerate(made)}
        outputs = [known[f"{number}.{j}"] for j in range(results)]
        return te.create_prim_func([*(known[i] for i in range(len(shapes) - results)), *outputs])

    def space(self, spec: TargetSpec) -> dict[str, list[int]]:
        """Return what may be decided about the kernel: name -> values, the default first."""
        first, isa = self.data["calls"][0], spec.isa()
        if kernel := spec.backend.written_kernel(first["op"]):
            return kernel.space(first["attrs"], isa)
        return spec.space()(self.plain(spec), isa)

    def rule(self, spec: TargetSpec) -> Versions:
        """Return the versions of the written-down rule, ascending in row blocks."""
        return spec.backend.versions(lambda: self.plain(spec), spec.isa())

    def scheduled(
        self, spec: TargetSpec, versions: Versions, names: list[str] | None = None
    ) -> list[tirx.PrimFunc]:
        """Return one scheduled kernel per version.

        versions  ascending; the last one takes the rest
        """
        if kernel := self._written(spec):
            return [kernel(decisions) for _, decisions in versions]
        plain, rule, isa = self.plain(spec, names), spec.schedule(), spec.isa()
        return [rule(plain, isa, decisions) for _, decisions in versions]

    def _written(self, spec: TargetSpec) -> Callable[[Decisions], tirx.PrimFunc] | None:
        """Return decisions -> kernel, where the kernel is written by hand."""
        first = self.data["calls"][0]
        kernel = spec.backend.written_kernel(first["op"])
        return partial(kernel.build, first["attrs"], spec.isa()) if kernel else None
