"""What everything that is not a matrix product costs: `python -P benchmarks/nonlinear_share.py`.

    python -P benchmarks/nonlinear_share.py [--shape bert-base] [--tokens 128]
                                         [--target cascadelake]

The model of a shape, with random weights, is compiled twice: as it is, and with GELU, softmax and
LayerNorm replaced by a plain change of scale. In the second program LayerNorm has no residual to
add, and softmax divides by nothing, so that the difference is no less than what is asked for. Both
take turns on one thread; printed is the difference over the whole.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "records"))

import intformer_records as records

import intformer
from intformer.frontend.shapes import random_model, random_sequences
from intformer.ir.model import IntModel, Node
from intformer.measure import bench
from intformer.proof.inputs import given
from intformer.relay_ops import expr
from intformer.schedules.kernels import attention_native

SECONDS = 20


def plain(model: IntModel) -> IntModel:
    """Return the program with a rescale of the accumulator in place of every function."""
    makers = {name: node for node in model.nodes for name in node.outputs}
    tensors, nodes = dict(model.tensors), []

    def source(name: str) -> str:
        """Return the accumulator, or the embedding sum, behind a value."""
        node = makers[name]
        if node.op in ("matmul", "embed"):
            return name
        return source(node.inputs[0])

    for node in model.nodes:
        if node.op in ("i_layernorm", "requantize16"):
            out, x = node.outputs[0], source(node.inputs[0])
            channels = model.values[out].channels
            tables = f"{out}.plain.mult", f"{out}.plain.offset"
            tensors |= {name: np.full(channels, 1 << 16, np.int32) for name in tables}
            attrs = {"lift": 0, "lo": -127, "hi": 127, "dtype": "int8"}
            nodes.append(Node("rescale", (x, *tables), (out,), attrs))
        elif node.op not in ("add", "i_gelu") and model.values[node.outputs[0]].dtype != "int16":
            nodes.append(node)
    made = {name for node in nodes for name in node.outputs}
    used = {name for node in nodes for name in node.inputs}
    return replace(
        model,
        nodes=nodes,
        tensors={name: tensor for name, tensor in tensors.items() if name in used},
        values={name: value for name, value in model.values.items() if name in made},
    )


def without_softmax() -> None:
    """Let attention kernels take a rescaled score where the exponential was, and no quotient."""

    def halvings(d, params):
        lanes = int(str(d.ty.dtype).partition("x")[2])
        return expr.mul_high(d, expr.T.broadcast(params[0], lanes))

    attention_native.halvings = halvings
    attention_native.numerator = lambda z: expr.as_type(z, "int16")
    attention_native.inverse = lambda m: m


def main() -> None:
    """Compile both, let them take turns, print the share."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    top.add_argument("--shape", default="bert-base")
    top.add_argument("--tokens", type=int, default=128)
    top.add_argument("--target", default="cascadelake")
    args = top.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(args.shape, Path(folder) / "model")
        model = intformer.import_model(
            source, calibrate=random_sequences(args.shape), method="minmax"
        )
        whole = intformer.compile(model, Path(folder) / "whole.so", target=args.target)
        without_softmax()
        part = intformer.compile(plain(model), Path(folder) / "plain.so", target=args.target)
        runs = []
        for library in (whole, part):
            library.set_threads(1)
            inputs = given(library, bench.raced_inputs(library, 1, args.tokens, None, 0))
            runs.append(lambda run=library.run, inputs=inputs: run(**inputs))
        times: list[list[float]] = [[], []]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for run, spent in zip(runs, times, strict=True):
                run()  # refills the caches
                start = time.thread_time()
                run()
                spent.append(time.thread_time() - start)
        shares = [1 - b / a for a, b in zip(*times, strict=True)]
        a, b = (1e3 * statistics.median(spent) for spent in times)
        share = f"{100 * statistics.median(shares):.1f} %"
        shape = f"{args.shape} 1x{args.tokens}, {args.target}"
        columns = ("one thread", "ms", "ms with plain rescaling", "share of functions and residual")
        rows = [(shape, f"{a:.2f}", f"{b:.2f}", share)]
        records.write("functions", "python -P benchmarks/nonlinear_share.py", columns, rows)
        print("; ".join(f"{name}: {value}" for name, value in zip(columns, rows[0], strict=True)))


if __name__ == "__main__":
    main()
