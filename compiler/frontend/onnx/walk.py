"""Goes through the nodes of a program once and says what each value stands for."""

from dataclasses import replace

import numpy as np

from intformer.frontend.onnx.build import Builder
from intformer.frontend.onnx.probe import Traced
from intformer.frontend.onnx.program import Node
from intformer.frontend.onnx.rules import RULES, table_rows
from intformer.frontend.onnx.values import Known, View


class Walk:
    """The state.

    views  value -> what it stands for; values that depend on no table are in traced.values alone
    """

    def __init__(self, traced: Traced):
        """Start before the first node."""
        self.traced, self.program, self.probe = traced, traced.program, traced.probe
        self.builder = Builder(traced)
        self.views: dict[str, View] = {}

    def run(self) -> dict[str, View]:
        """Go through all nodes; returns the views of the outputs that have one."""
        for node in self.program.nodes:
            self._step(node)
        return {name: self.views[name] for name in self.program.outputs if name in self.views}

    def _step(self, node: Node) -> None:
        args = [self._argument(name) for name in node.inputs]
        if not any(isinstance(arg, View) for arg in args):
            made = table_rows(self, node, args)
        elif node.op in ("Shape", "Size"):
            return
        else:
            rule = RULES.get(node.op)
            if rule is None:
                raise self.program.refusal("the operator is not understood here", node)
            made = rule(self, node, args)
        if made is None:
            return
        views = made if isinstance(made, list) else [made]
        for name, view in zip(node.outputs, views, strict=False):
            grid = self.program.grids.get(name)
            self.views[name] = view if grid is None else replace(view, grid=grid)

    def _argument(self, name: str) -> "View | Known | None":
        if not name:
            return None
        if name in self.views:
            return self.views[name]
        return Known(np.asarray(self.traced.values[name]), name, name in self.program.constants)

    def shape(self, node: Node, output: int = 0) -> tuple[int, ...]:
        """Return the shape of a node's output on the probe."""
        return self.traced.values[node.outputs[output]].shape

    def rows_shape(self, channels: int, size: int) -> tuple[int, ...]:
        """Return the shape of rows: one per token, or one per sequence."""
        batch, length = self.probe.ids.shape
        tokens = size == batch * length * channels
        return (batch, length, channels) if tokens else (batch, channels)
