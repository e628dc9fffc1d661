"""Kernels on their own: a small graph goes through the passes and runs on arrays made for it.

A `Graph` is an IntModel whose first values are given, not computed. A `Program` is a graph compiled
for one target; `check` runs its kernels and compares whatever they write with the references.
"""

import ctypes
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tvm import IRModule, te, tirx
from tvm.runtime import tensor

from intformer import pipeline
from intformer.backends.cpu import codegen
from intformer.backends.targets import TARGETS
from intformer.ir.constants import ZERO_POINT
from intformer.ir.model import IntModel, Node, Value
from intformer.passes import packing
from intformer.passes.layout import plan_layout
from intformer.passes.to_relax import to_relax
from intformer.relay_ops import (
    OPS,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_stream_norm,
    requantize16,
    rescale,
)
from intformer.relay_ops.fixedpoint import make_dyadic
from intformer.relay_ops.op import IntOp
from intformer.schedules.kernels.table import CPU, CUDA, Kernel
from intformer_testing import emulated, gpu


def _missing(target) -> list[str]:
    """Return what this machine lacks of a target's needs; ask for AMX where it needs that.

    GPU kernels run on the CPU here, see gpu.py.
    """
    if target.backend.launched:
        return [] if shutil.which("g++") else ["g++"]
    if emulated.possible(target):
        return emulated.missing(target.name)
    lacks = target.missing_here()
    request, tile_data = 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if not lacks and "amx-tile" in target.features:
        libc = ctypes.CDLL(None)
        return ["permission to use AMX tiles"] if libc.syscall(158, request, tile_data) else []
    return lacks


# CPUs with kernels of their own
CHIPS = [t for t in TARGETS.values() if not t.variants and not t.backend.launched]
GPU = TARGETS["t4"]
MISSING = {chip.name: _missing(chip) for chip in [*CHIPS, GPU]}


def _on_every(targets):
    return pytest.mark.parametrize(
        "target",
        [
            pytest.param(
                target.name,
                marks=[
                    pytest.mark.skipif(
                        bool(MISSING[target.name]),
                        reason=f"this machine lacks {', '.join(MISSING[target.name])}",
                    ),
                    *([pytest.mark.slow] if emulated.possible(target) else []),
                ],
            )
            for target in targets
        ],
    )


on_every_cpu = _on_every(CHIPS)
on_every_target = _on_every([*CHIPS, GPU])


NOTHING = te.create_prim_func([te.compute((1,), lambda _: tirx.const(0, "int32"))])
GIVEN = IntOp("given", reference=None, bounds=None)
NO_CPU_KERNEL = Kernel(lambda attrs, isa, decisions: NOTHING)
NO_CUDA_KERNEL = Kernel(lambda attrs, isa, decisions: gpu.nothing())


class Graph:
    """A small IntModel under construction."""

    def __init__(self, max_length: int = 512):
        self.nodes, self.tensors, self.values = [], {}, {}
        self.readers: list[Node] = []
        self.max_length = max_length

    def given(self, name: str, dtype: str, channels: int, rows: str = "token") -> str:
        """Declare a value whose numbers the test supplies."""
        return self.op("given", [], name, dtype, channels, rows)

    def op(self, op, inputs, out, dtype, channels, rows="token", **attrs):
        """Append a node and return its output(s).

        inputs      names of values, program inputs and tensors; arrays become tensors "OUT.INDEX"
        out, dtype  one of each, or tuples
        """
        outs, dtypes = ((out,), (dtype,)) if isinstance(out, str) else (out, dtype)
        names = [
            x if isinstance(x, str) else self.constant(f"{outs[0]}.{i}", x)
            for i, x in enumerate(inputs)
        ]
        for name, kind in zip(outs, dtypes, strict=True):
            self.values[name] = Value(kind, rows, channels, None, "test")
        if op in ("requantize", "rescale", "i_stream_norm"):
            attrs["dtype"] = dtype
        if op == "take_rows":
            attrs["rows"] = rows
        self.nodes.append(Node(op, tuple(names), tuple(outs), attrs))
        return out

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a tensor."""
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def operand(self, x: str) -> str:
        """Let a matmul read x, so that x is stored unsigned; that matmul is not compiled."""
        self.readers.append(Node("matmul", (x, "", ""), (x,)))
        return x

    def model(self) -> IntModel:
        """Return the graph; its output is the last value."""
        meta = {"max_length": self.max_length}
        return IntModel(self.nodes, self.tensors, self.values, self.nodes[-1].outputs[0], meta)


@contextmanager
def given_values():
    """Let "given" be an op, with kernels that do nothing."""
    with (
        mock.patch.dict(OPS, given=GIVEN),
        mock.patch.dict(CPU, given=NO_CPU_KERNEL),
        mock.patch.dict(CUDA, given=NO_CUDA_KERNEL),
    ):
        yield


def planned(model: IntModel, weight: str = "weight", zero_point: int = ZERO_POINT):
    """Return plan_layout of a model with given values."""
    with given_values():
        return plan_layout(model, weight, zero_point)


def lowered(graph: Graph, target: str, into: dict | None = None, **options):
    """Return (scheduled kernels, plan, layout) of a graph.

    into     takes the Relax modules: before and after fusion
    options  of `pipeline.lowered`
    """
    model = graph.model()
    spec = TARGETS[target]
    nodes = model.nodes + graph.readers
    family = spec.backend
    layout = planned(replace(model, nodes=nodes), family.weight_packing, family.zero_point)
    with given_values():
        program = pipeline.arranged(model, spec.backend, layout)
        if into is not None:
            before = to_relax(model, layout, program.constants)
            into.update(before=before, after=program.module)
        done = pipeline.lowered(program, spec, **options)
    return done.scheduled, done.plan, layout


def built(module: IRModule, target: str):
    """Return kernels of a CPU to call: compiled for this machine, or run by an emulator."""
    if emulated.possible(TARGETS[target]):
        return emulated.Kernels(module, target)
    return codegen.built(module, TARGETS[target])


class Program:
    """A compiled graph.

    kernels  names of the compiled kernels in the order they run
    """

    def __init__(self, graph: Graph, target: str, **options):
        self.model = graph.model()
        module, plan, self.layout = lowered(graph, target, **options)
        self.steps = [step for step in plan.steps if not step.kernel.startswith("given")]
        self.kernels = [step.kernel for step in self.steps]
        self.launches = {name: plan.launches.get(name) for name in dict.fromkeys(self.kernels)}
        if TARGETS[target].backend.launched:
            functions = [one.function for versions in self.launches.values() for one in versions]
            with tempfile.TemporaryDirectory() as folder:
                chosen = IRModule({name: module[name] for name in functions})
                self.built = gpu.Kernels(chosen, Path(folder))
        else:
            chosen = IRModule({name: module[name] for name in self.launches})
            self.built = built(chosen, target)

    def object_file(self, folder: Path) -> Path:
        """Write the machine code."""
        path = Path(folder) / "kernels.o"
        self.built.write_to_file(str(path), "o")
        return path

    def check(self, arrays: dict, tensors: dict | None = None) -> dict[str, np.ndarray]:
        """Run all kernels; fail unless each value they write is its reference's; return those.

        arrays   program inputs and given values, logical
        tensors  in place of the graph's, of the same shapes
        """
        arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
        tensors = {**self.model.tensors, **(tensors or {})}
        inside = [node for node in self.model.nodes if node.op != "given"]
        expected = replace(self.model, nodes=inside, tensors=tensors).run(arrays)
        rows = {name: len(x) for name, x in expected.items()}
        gpu_target = isinstance(self.built, gpu.Kernels)
        written = (self._launch if gpu_target else self._run)(arrays, tensors, rows)
        clearing = {n.outputs[0] for n in inside if OPS[n.op].clears}
        for name, stored in written.items():
            want, columns = expected[name], self._columns(name)
            n, padding = len(want), np.setdiff1d(np.arange(stored.shape[1]), columns)
            np.testing.assert_array_equal(stored[:n, columns], want, err_msg=name)
            assert not stored[:n, padding].any(), f"{name}: padding columns are not 0"
            if not gpu_target:
                assert name not in clearing or not stored[n:].any(), f"{name}: rows past the end"
        return {name: expected[name] for name in written}

    def _columns(self, name: str) -> np.ndarray:
        return packing.columns(self.layout.maps[name])

    def _run(self, arrays: dict, tensors: dict, rows: dict[str, int]) -> dict[str, np.ndarray]:
        """Call the kernels; return what they wrote, all rows and columns, less the zero point."""
        buffers = self.layout.buffers
        have = {k: packing.pack(s, tensors) for k, s in self.layout.packing.items()}
        have |= {k: self._physical(k, x) if k in buffers else x for k, x in arrays.items()}
        have = {name: tensor(np.ascontiguousarray(x)) for name, x in have.items()}
        for step in self.steps:
            for name in step.outputs:
                b = buffers[name]
                stale = np.full((-(-rows[name] // 8), 8, b.width), 0x55, b.dtype)
                have[name] = tensor(stale)
            self.built[step.kernel](*(have[name] for name in step.args))
        return {
            name: have[name].numpy().reshape(-1, buffers[name].width).astype(np.int64)
            - buffers[name].zero_point
            for step in self.steps
            for name in step.outputs
        }

    def _launch(self, arrays: dict, tensors: dict, rows: dict[str, int]) -> dict[str, np.ndarray]:
        """Do as `_run`, with kernels for a GPU."""
        buffers = self.layout.buffers
        have = {k: packing.pack(s, tensors) for k, s in self.layout.packing.items()}
        have |= {k: self._physical(k, x) if k in buffers else x for k, x in arrays.items()}
        offsets = arrays.get("cu_seqlens", np.zeros(1, np.int32))
        counts = {
            "token": int(offsets[-1]),
            "sequence": len(offsets) - 1,
            "position": len(arrays.get("positions", ())),
            "longest": int(np.diff(offsets).max(initial=0)),
        }
        for step in self.steps:
            for name in step.outputs:  # values of one kind have different rows in some tests
                counts[buffers[name].rows] = rows[name]
            for name in step.outputs:
                b = buffers[name]
                have[name] = np.full((-(-rows[name] // 8), 8, b.width), 0x55, b.dtype)
            arguments = [np.ascontiguousarray(have[name]) for name in step.args]
            made = self.built.run(self.launches[step.kernel], arguments, counts)
            have |= {n: x for n, x in zip(step.args, made, strict=True) if n in step.outputs}
        return {
            name: have[name].reshape(-1, buffers[name].width).astype(np.int64)
            - buffers[name].zero_point
            for step in self.steps
            for name in step.outputs
        }

    def _physical(self, name: str, logical: np.ndarray) -> np.ndarray:
        """Store a given value; rows past the last one hold anything, padding columns 0."""
        b = self.layout.buffers[name]
        assert logical.dtype == self.model.values[name].dtype, (name, logical.dtype)
        blocks, info = -(-len(logical) // 8), np.iinfo(b.dtype)
        out = np.random.default_rng(0).integers(info.min, info.max, (blocks * 8, b.width))
        out[: len(logical)] = b.zero_point
        out[: len(logical), self._columns(name)] = logical.astype(np.int64) + b.zero_point
        return out.astype(b.dtype).reshape(blocks, 8, b.width)


def integers(rng, low, high, shape, dtype):
    """Uniform over low..high, ends included."""
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


class Chain:
    """A graph of one chain of ops, and inputs for it."""

    def __init__(self, ops, k, n, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ops, self.k, self.n = ops, k, n
        self.graph, self.arrays = Graph(), {}
        self.last = None
        for number, op in enumerate(ops):
            following = ops[number + 1] if number + 1 < len(ops) else None
            getattr(self, op)(f"v{number}", following)

    def give(self, name, dtype, low, high, channels):
        self.graph.given(name, dtype, channels)
        rows = integers(self.rng, low, high, (37, channels), dtype)
        rows[0], rows[1] = low, high
        self.arrays[name] = rows
        return name

    def append(self, op, inputs, out, dtype="int32", **attrs):
        self.last = self.graph.op(op, inputs, out, dtype, self.n, **attrs)

    def matmul(self, out, following):
        x = self.give("x", "int8", -128, 127, self.k)
        w = integers(self.rng, -127, 127, (self.n, self.k), np.int8)
        bias = integers(self.rng, -(2**18), 2**18, self.n, np.int32)
        self.reach = self.k * 2**14 + 2**18
        self.append("matmul", [x, w, bias], out)

    def requantize(self, out, following):
        """To what follows; at the end to int8. Some channels are cut off, one is turned round."""
        limit, dtype = {
            None: (127, "int8"),
            "requantize": (127, "int8"),
            "add_bias": (2**20, "int32"),
            "i_tanh": (2**31 - 1, "int32"),
        }[following]
        goal = 2**15 if following == "i_tanh" else limit
        ratio = goal / self.reach * self.rng.uniform(0.5, 4, self.n)
        ratio[-1] *= -1
        ratio[0] = 2.0 ** np.floor(np.log2(ratio[0]))  # ties
        self.reach = goal * 4
        inputs = [self.last, *make_dyadic(ratio)]
        self.append("requantize", inputs, out, dtype, lo=-limit, hi=limit)
        if following is None:
            self.graph.operand(out)

    def rescale(self, out, following):
        """To int16 for GELU, else to int8. Some channels are cut off, one is 0, one has ties."""
        kinds = {"i_gelu": ("int16", i_gelu.LIMIT), "stream_add": ("int32", 2**20)}
        dtype, limit = kinds.get(following, ("int8", 127))
        lift = rescale.USUAL_LIFT[dtype]
        ratio = limit / self.reach * self.rng.uniform(0.5, 4, self.n)
        ratio[0], ratio[-1] = 2.0 ** np.floor(np.log2(ratio[0])), 0.0
        inputs = [self.last, *rescale.tables(ratio, lift)]
        self.append("rescale", inputs, out, dtype, lift=lift, lo=-limit, hi=limit)
        if following is None:
            self.graph.operand(out)

    def requantize16(self, out, following):
        tables = requantize16.tables(127 / 2**15 * self.rng.uniform(0.1, 4, self.n))
        self.append("requantize16", [self.last, *tables], out, "int8")
        self.graph.operand(out)

    def add_bias(self, out, following):
        bias = integers(self.rng, -self.reach, self.reach, self.n, np.int32)
        self.append("add_bias", [self.last, bias], out)
        self.reach *= 2

    def relu(self, out, following):
        self.append("relu", [self.last], out)

    def i_gelu(self, out, following):
        self.append("i_gelu", [self.last, i_gelu.point(12)], out, "int16", form="erf")

    def i_tanh(self, out, following):
        self.append("i_tanh", [self.last], out)
        self.reach = 2**15

    def i_gelu_ibert(self, out, following):
        scale = np.maximum(self.rng.uniform(2, 9, self.n) / self.reach, i_gelu_ibert.MIN_SCALE)
        tables = i_gelu_ibert.tables(scale, 0.05)
        self.append("i_gelu_ibert", [self.last, *tables.values()], out, "int8", lo=-128, hi=127)
        self.reach = 128
        if following is None:
            self.graph.operand(out)

    def residual_add(self, out, following):
        a = self.give("a", "int32", -(2**15), 2**15, self.n)
        b = self.give("b", "int8", -128, 127, self.n)
        ratio = make_dyadic(np.array([2.0**8 * 0.7]))
        self.append("residual_add", [a, b, *ratio], out, lo=-(2**15), hi=2**15)

    def add(self, out, following):
        a, b = (self.give(name, "int16", -(2**15), 2**15 - 1, self.n) for name in "ab")
        self.append("add", [a, b], out)

    def stream_add(self, out, following):
        stream = self.give("stream", "int32", -(2**25), 2**25, self.n)
        self.append("stream_add", [self.last, stream], out)

    def norm_input(self):
        if self.last is None:
            self.last = self.give("x", "int32", -(2**15), 2**15, self.n)
        signs = self.rng.choice([-1, 1], self.n)
        return self.rng.uniform(0.2, 3, self.n) * signs, self.rng.normal(size=self.n)

    def i_layernorm(self, out, following):
        tables = i_layernorm.tables(1e-3, *self.norm_input(), 1e-12, 3 / 127, 9 / 32767)
        outs = (out, f"{out}_wide")
        self.append("i_layernorm", [self.last, *tables.values()], outs, ("int8", "int16"))
        self.graph.operand(out)

    def i_stream_norm(self, out, following):
        tables = i_stream_norm.tables(1e-3, *self.norm_input(), 1e-12, 3 / 127)
        inputs = [self.last, *tables.values()]
        self.append("i_stream_norm", inputs, out, "int8", rms=False)
        self.graph.operand(out)

    def i_layernorm_ibert(self, out, following):
        gamma, beta = self.norm_input()
        beta = beta.clip(-1, 1) * np.abs(gamma)
        tables = i_layernorm_ibert.tables(gamma, beta, 3 / 127)
        inputs = [self.last, *tables.values(), np.array([1], np.int32)]
        self.append("i_layernorm_ibert", inputs, out, "int8", lo=-128, hi=127)
        self.reach = 128
        if following is None:
            self.graph.operand(out)
