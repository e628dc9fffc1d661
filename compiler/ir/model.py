"""IntModel: a transformer encoder as a list of integer ops over named tensors.

It is plain data (numpy and JSON), the thing frontends make, passes lower, and `verify` runs op by
op with the NumPy references. Every number that depends on a scale is a tensor, never an
attribute, so that layers of one shape share one kernel.
"""

from dataclasses import dataclass, field

import numpy as np

# what one row of a value stands for, in the order of enum rows in plan.h
ROWS = ("token", "sequence", "position")
INPUTS = {  # program inputs: name -> what its rows are
    "input_ids": "token",
    "token_type_ids": "token",
    "position_ids": "token",
    "cu_seqlens": "sequence",  # batch + 1 offsets
    "positions": "position",  # packed token indices whose logits are wanted (masked LM)
}


@dataclass(frozen=True)
class Value:
    """One activation, [rows, channels].

    dtype   logical numpy dtype name: int8, int16, int32
    rows    one of ROWS
    scale   real units per LSB; one number, or one per channel; None where no real meaning exists
    origin  where the scale comes from: "checkpoint: KEY", "bound: WHY" or "calibration: HOW"
    """

    dtype: str
    rows: str
    channels: int
    scale: float | tuple[float, ...] | None
    origin: str


@dataclass(frozen=True)
class Node:
    """One op. Inputs name program inputs, values or tensors, in the order of the op's reference."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, int | str] = field(default_factory=dict)


@dataclass
class IntModel:
    """The program: nodes in execution order, constants, values, and what the edge needs.

    nodes    execution order
    tensors  constants by name (integers only)
    values   every activation by name
    output   the value returned to the caller (int32)
    meta     JSON-able: family, head, recipe, labels, max_length, vocab_size, position rule, ...
    files    tokenizer and config files to carry along: file name -> bytes
    edges    value -> edge of the float graph that it stands for, where a graph was lowered; the
             file format has no place for it
    """

    nodes: list[Node]
    tensors: dict[str, np.ndarray]
    values: dict[str, Value]
    output: str
    meta: dict
    files: dict[str, bytes] = field(default_factory=dict)
    edges: dict[str, str] = field(default_factory=dict)

    def run(self, inputs: dict[str, np.ndarray], replace=None) -> dict[str, np.ndarray]:
        """Run the NumPy reference of every node; return all values by name.

        inputs   input_ids, token_type_ids, position_ids int32 [n]; cu_seqlens int32 [batch + 1];
                 positions int32 [p] where the model asks for it
        replace  called with (name, integers) of every value; an array that it returns is what the
                 nodes after read instead
        """
        from intformer.relay_ops import OPS

        seen: dict[str, np.ndarray] = {**self.tensors, **inputs}
        for node in self.nodes:
            result = OPS[node.op].reference(*(seen[name] for name in node.inputs), **node.attrs)
            results = result if isinstance(result, tuple) else (result,)
            for name, array in zip(node.outputs, results, strict=True):
                new = None if replace is None else replace(name, array)
                seen[name] = array if new is None else new
        return {name: seen[name] for name in self.values}

    def to_json(self) -> dict:
        """Return everything but tensors and files, JSON-able; parts of the model, not copies."""
        return {
            "nodes": [vars(node) for node in self.nodes],
            "values": {name: vars(value) for name, value in self.values.items()},
            "output": self.output,
            "meta": self.meta,
        }

    @classmethod
    def from_json(cls, graph: dict, tensors: dict[str, np.ndarray], files: dict[str, bytes]):
        """Inverse of to_json."""

        def value(v: dict) -> Value:
            scale = tuple(v["scale"]) if isinstance(v["scale"], list) else v["scale"]
            return Value(**{**v, "scale": scale})

        return cls(
            nodes=[
                Node(n["op"], tuple(n["inputs"]), tuple(n["outputs"]), n["attrs"])
                for n in graph["nodes"]
            ],
            tensors=tensors,
            values={name: value(v) for name, v in graph["values"].items()},
            output=graph["output"],
            meta=graph["meta"],
            files=files,
        )
