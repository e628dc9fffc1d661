"""What there is to tune in a model: its kernels at row counts, with inputs and expected outputs.

Inputs cover what the range analysis allows; the NumPy references of the kernel's ops say what must
come out, so a candidate that computes something else is found before it is timed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from intformer import pipeline, scratch
from intformer.backends.backend import TargetSpec, Versions
from intformer.ir import ranges
from intformer.ir.constants import BLOCK
from intformer.ir.heads import SENTENCE_EMBEDDING, SEQUENCE_CLASSIFICATION
from intformer.ir.model import INPUTS, IntModel, Node
from intformer.ir.plan import COUNTS, Buffer, Step
from intformer.passes import packing
from intformer.passes.form import Decisions, Form
from intformer.tuning.measure import Case
from intformer.tuning.records import version_for, written_down
from intformer.tuning.workload import identity

SEQUENCE = 128  # tokens of each sequence where one alone would be too long
HEADS = (SEQUENCE_CLASSIFICATION, SENTENCE_EMBEDDING)  # of a shape: they have every kernel
AMPLITUDES = 7  # rows are drawn from the whole range, half of it, ... 1/64


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel of a model.

    calls  how often the model runs it
    """

    form: Form
    step: Step
    calls: int


class Kernels:
    """The kernels of a model and how to feed them."""

    def __init__(self, model: IntModel, spec: TargetSpec):
        """Lower the model with the default rule; nothing is compiled."""
        self.model = pipeline.pruned(model)
        self.intervals = ranges.check(self.model)
        program = pipeline.arranged(self.model, spec.backend)
        self.layout, self.constants = program.layout, program.constants
        lowered = pipeline.lowered(program, spec)
        steps = lowered.plan.steps
        self.kernels = [
            Kernel(
                form,
                next(step for step in steps if step.kernel == name),
                sum(step.kernel == name for step in steps),
            )
            for name, form in lowered.forms.items()
        ]

    def case(self, kernel: Kernel, rows: int) -> Case:
        """Return inputs for `rows` rows of a kernel and what its references make of them."""
        rng = np.random.default_rng(_seed(kernel.form, rows))
        known = self._inputs(kernel.form.rows, rows, rng)
        step, buffers = kernel.step, self.layout.buffers
        counts = {
            "token": len(known["input_ids"]),
            "sequence": len(known["cu_seqlens"]) - 1,
            "position": len(known["positions"]),
            "longest": int(np.diff(known["cu_seqlens"]).max()),
        }
        given = [name for name in step.args if name in buffers and name not in step.outputs]
        known |= {name: self._value(name, counts[buffers[name].rows], rng) for name in given}
        nodes = nodes_of(self.model, step.outputs, set(given))
        if nodes[0].op == "matmul":
            x, w, *_ = nodes[0].inputs
            known[x] = _reaching_the_ends(known[x], self.model.tensors[w], rng)
        values = {name: self.model.values[name] for node in nodes for name in node.outputs}
        made = replace(self.model, nodes=nodes, values=values).run(known)
        arguments, expected, constants = [], {}, []
        for index, name in enumerate(step.args):
            if name in step.outputs:
                b = buffers[name]
                expected[index] = self._physical(b, made[name])
                shape = (-(-counts[b.rows] // BLOCK), BLOCK, b.width)
                arguments.append(np.full(shape, 0x55, b.dtype))
            elif name in buffers:
                arguments.append(_blocked(self._physical(buffers[name], known[name])))
            elif name in INPUTS:
                arguments.append(known[name])
            else:
                constants.append(index)
                arguments.append(self.constants[name])
        sizes = np.array([counts[name] for name in COUNTS if name in counts], np.int32)
        return Case(arguments, expected, constants, sizes)

    def _inputs(self, kind: str, rows: int, rng) -> dict[str, np.ndarray]:
        """Return program inputs for which a kernel over `kind` has `rows` rows."""
        meta = self.model.meta
        longest = min(meta["max_length"], 512)
        if kind == "sequence":
            lengths = [min(SEQUENCE, longest)] * rows
        elif kind == "position":
            lengths = [min(SEQUENCE, longest)] * max(1, rows // BLOCK)
        elif rows <= longest:
            lengths = [rows]
        else:
            size = min(SEQUENCE, longest)
            lengths = [size] * (rows // size) + [rows % size] * bool(rows % size)
        n = sum(lengths)
        first = (meta.get("pad_token_id") or 0) + 1 if meta["position_rule"] == "padding" else 0
        positions = np.concatenate([np.arange(length) for length in lengths]) + first
        picked = np.sort(rng.integers(0, n, rows if kind == "position" else 1))
        types = rng.integers(0, meta.get("type_vocab_size") or 1, n)
        ids = rng.integers(0, meta["vocab_size"], n)
        arrays = {
            "input_ids": ids,
            "token_type_ids": types,
            "position_ids": positions,
            "cu_seqlens": np.cumsum([0, *lengths]),
            "positions": picked,
        }
        return {name: array.astype(np.int32) for name, array in arrays.items()}

    def _value(self, name: str, rows: int, rng) -> np.ndarray:
        """Return a logical activation within the bounds of the range analysis, [rows, channels]."""
        value, interval = self.model.values[name], self.intervals[name]
        low, high = (
            np.broadcast_to(np.asarray(end, np.float64), value.channels)
            for end in (interval.low, interval.high)
        )
        share = 2.0 ** -rng.integers(0, AMPLITUDES, (rows, 1))
        numbers = np.rint(rng.uniform(low, high, (rows, value.channels)) * share)
        return numbers.clip(low, high).astype(value.dtype)

    def _physical(self, buffer: Buffer, logical: np.ndarray) -> np.ndarray:
        """Return a value as kernels store it, [rows, width]."""
        out = np.full((len(logical), buffer.width), buffer.zero_point, np.int64)
        out[:, packing.columns(self.layout.maps[buffer.name])] += logical
        return out.astype(buffer.dtype)


def nodes_of(model: IntModel, outputs: Iterable[str], given: set[str]) -> list[Node]:
    """Return the nodes between given values and outputs, in order."""
    needed, found = set(outputs), []
    for node in reversed(model.nodes):
        if needed & set(node.outputs):
            found.append(node)
            needed |= set(node.inputs) - given
    return found[::-1]


def row_counts(form: Form, tokens: Sequence[int]) -> list[int]:
    """Return at how many rows to measure a kernel, each another number of row blocks.

    tokens  asked for; sequences and positions are counted as one per 128 of them
    """
    if form.rows != "token":
        tokens = [max(1, count // SEQUENCE) for count in tokens]
    by_blocks = {-(-count // BLOCK): count for count in sorted(tokens)}
    return list(by_blocks.values())


@dataclass(frozen=True, eq=False)
class Task:
    """One kernel at one row count; `identity` names it.

    rule  the written-down one
    """

    kernels: Kernels
    kernel: Kernel
    rows: int
    space: dict[str, list[int]]
    rule: Versions

    @property
    def form(self) -> Form:
        """Return the kernel's form."""
        return self.kernel.form

    @property
    def identity(self) -> str:
        """Return a short name that is unique."""
        return identity(self.form, self.rows)

    @property
    def title(self) -> str:
        """Return a name for people."""
        plural = {"token": "tokens", "sequence": "sequences", "position": "positions"}
        return f"{self.form.title}, {self.rows} {plural[self.form.rows]}"

    @property
    def default(self) -> Decisions:
        """Return the decisions of the written-down rule."""
        return version_for(self.rule, self.blocks)

    @property
    def blocks(self) -> int:
        """Return the number of row blocks."""
        return -(-self.rows // BLOCK)


def tasks(models: Iterable[IntModel], spec: TargetSpec, tokens: Sequence[int]) -> list[Task]:
    """Return one task per distinct kernel of the models and row count."""
    found: dict[tuple[Form, int], Task] = {}
    for model in models:
        kernels = Kernels(model, spec)
        for kernel in kernels.kernels:
            space = kernel.form.space(spec)
            rule = written_down(kernel.form, spec)
            for rows in row_counts(kernel.form, tokens):
                found.setdefault((kernel.form, rows), Task(kernels, kernel, rows, space, rule))
    return list(found.values())


def models_of_shape(shape: str) -> list[IntModel]:
    """Return models that have every kernel of a shape: two layers of random weights, two heads."""
    from intformer.frontend.shapes import random_model

    with scratch.folder() as folder:
        source = random_model(shape, folder, layers=2)
        return [model_of(source, head.name) for head in HEADS]


def model_of(source: str | Path, head: str | None = None) -> IntModel:
    """Import a checkpoint for the forms of its kernels; random tokens set the scales."""
    from intformer.frontend import import_model, import_uncalibrated, opened
    from intformer.frontend.onnx.checkpoint import OnnxCheckpoint

    checkpoint = opened(source)
    if isinstance(checkpoint, OnnxCheckpoint):
        return import_uncalibrated(checkpoint, head)
    if checkpoint.setting("model_type", str) == "ibert":
        ids = np.random.default_rng(0).integers(0, checkpoint.setting("vocab_size", int), 16)
        return import_model(source, head=head, calibrate=[ids])
    return import_uncalibrated(checkpoint, head)


def _reaching_the_ends(x: np.ndarray, w: np.ndarray, rng) -> np.ndarray:
    """Point every fourth row of x along a row of w, or against it: that sum meets the clamps."""
    along = x.copy()
    picked = rng.integers(0, len(w), len(x[::4]))
    signs = rng.choice([-1, 1], (len(picked), 1)) * np.sign(w[picked])
    along[::4] = 127 * signs
    return along


def _blocked(array: np.ndarray) -> np.ndarray:
    """Return [rows, width] as [blocks, 8, width]; rows past the last one hold anything."""
    missing = -len(array) % BLOCK
    filled = np.concatenate([array, np.full((missing, array.shape[1]), 0x2A, array.dtype)])
    return filled.reshape(-1, BLOCK, array.shape[1])


def _seed(form: Form, rows: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{form.text}{rows}".encode()).digest()[:8], "little")
