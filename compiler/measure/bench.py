"""Race a library against PyTorch FP32, on the same inputs, in one run.

The contestants take short turns in round robin, so that a machine that drifts drifts for all. The
first call of a turn refills the caches and is not counted, unless it is so long that this does not
matter. Medians are reported. The libraries are verified in the same run: a wrong answer has no
speed.
"""

import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intformer import scratch
from intformer.backends.cpu.host import cpu_name
from intformer.errors import IntformerError
from intformer.measure.roofline import OpTime, op_times
from intformer.proof.inputs import given, random_batch, real_batches
from intformer.proof.verify import verify
from intformer.runtime import Library, load
from intformer.runtime.texts import read_texts

if TYPE_CHECKING:
    from intformer.measure.prediction.predict import Prediction

ROUNDS = 8
REFILL = 0.2  # seconds: a call this long counts even with cold caches
PAUSE = 0.05  # seconds before a turn: thread pools that spin after work fall asleep
BUCKETS = (4, 8)  # sequences in one padded batch after sorting by length


@dataclass
class Row:
    """One line of a race: milliseconds per batch, and how many times our speed it is."""

    name: str
    median: float
    p10: float
    p90: float
    runs: int
    ratio: float = 1.0  # its median / ours


@dataclass
class Race:
    """What was raced, where and how fast.

    verified    every raced library was verified; None where that was not tried
    unverified  names of the libraries that failed
    """

    title: str
    machine: dict
    rows: list[Row]
    ops: list[OpTime] = field(default_factory=list)
    verified: bool | None = None
    unverified: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Return everything as plain data."""
        return asdict(self)


def bench(
    library: str | Path | None = None,
    source: str | Path | None = None,
    *,
    shape: str | None = None,
    target: str = "host",
    batch: int = 1,
    tokens: int = 128,
    data: str | Path | None = None,
    limit: int = 32,
    against: Sequence[str | Path] | None = None,
    threads: int = 1,
    seconds: float = 10,
    per_op: bool = False,
    predict: str | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    clock: float | None = None,
    watts: float | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> "Race | Prediction":
    """Race a library and others, verify them on the raced inputs, and time the first's kernels.

    library        to race; None with a shape
    source         model directory or ONNX file of the FP32 model; None races no PyTorch
    shape, target  compile random weights of this shape for this target, and race those
    batch, tokens  random inputs: sequences, and tokens in each
    data, limit    real inputs instead: the first rows of a TSV, in one batch
    against        more libraries to race on the same inputs
    threads        of every contestant
    seconds        spent on each contestant
    per_op         time every step of the program, not every kernel
    predict        predict the time on this GPU instead ("t4", "a100", "h100" or "h200"): a library
                   for GPUs, or a shape; nothing is raced, and only the next three options apply
    shapes         of the prediction: (sequences, tokens in each); None: 1, 2, 4, 8 x 128, 256
    clock, watts   of the prediction: highest clock in GHz, power cap in W; None: the chip's
    progress       called with what starts now
    Raises IntformerError: neither or both of library and shape, or inputs that do not fit.
    """
    if (library is None) == (shape is None):
        raise IntformerError(
            "need either a library or a shape", hint="pass LIB, or --shape NAME, not both"
        )
    if predict is not None:
        return predicted(library, shape, target, predict, shapes, clock, watts, progress)
    if stray := [
        name
        for name, value in (("shapes", shapes), ("clock", clock), ("watts", watts))
        if value is not None
    ]:
        raise IntformerError(
            "option of a prediction without --predict",
            where=f"--{stray[0]}",
            hint="add --predict CHIP",
        )
    with scratch.folder() as folder:
        if shape is not None:
            library, source = compile_shape(shape, target, Path(folder), progress)
        ours = load(library)
        inputs = raced_inputs(ours, batch, tokens, data, limit)
        contestants = {}
        raced = named([ours, *map(load, against or ())])
        for name, contestant in raced.items():
            contestant.set_threads(threads)
            taken = given(contestant, inputs)
            contestants[name] = lambda run=contestant.run, taken=taken: run(**taken)
        if source is not None:
            contestants |= torch_ways(source, ours.metadata, inputs, threads)
        progress(f"racing {len(contestants)} contestants, {seconds} s each")
        rows = race(contestants, seconds)
        progress("timing kernels")
        ours.set_threads(threads)
        ops = op_times(ours, inputs, threads, per_op=per_op)
        unverified = [
            name
            for name, contestant in raced.items()
            if not verify(contestant, batches=[inputs], progress=progress).ok
        ]
        title = described(ours, inputs)
        return Race(title, machine(threads), rows, ops, not unverified, unverified)


def predicted(
    library: str | Path | None,
    shape: str | None,
    target: str,
    chip: str,
    shapes: Sequence[tuple[int, int]] | None,
    clock: float | None,
    watts: float | None,
    progress: Callable[[str], None],
) -> "Prediction":
    """Predict a library, or random weights of a shape, on a GPU from its public limits."""
    from intformer.measure.prediction import chips, predict

    with scratch.folder() as folder:
        if shape is not None:
            target = chips.get(chip).target if target == "host" else target
            library, _ = compile_shape(shape, target, Path(folder), progress)
        return predict.predict(
            load(library, run=False),
            chip,
            shapes or predict.GRID,
            ghz=clock,
            watts=watts,
            progress=progress,
        )


def named(libraries: list[Library]) -> dict[str, Library]:
    """Return libraries by name, recipe and target; with the path, and a number, where that is not
    enough to tell them apart.
    """

    def look(library: Library) -> str:
        about = library.metadata
        return f"{about['name']}, {about['recipe']}, {about['target']}"

    looks = Counter(map(look, libraries))
    found: dict[str, Library] = {}
    for library in libraries:
        name = look(library)
        if looks[name] > 1:
            name = f"{name} ({library.path})"
        again = sum(other == name or other.startswith(f"{name} #") for other in found)
        found[f"{name} #{again + 1}" if again else name] = library
    return found


def described(library: Library, inputs: dict[str, np.ndarray]) -> str:
    """Return what is raced in a line."""
    meta, lengths = library.metadata, np.diff(inputs["cu_seqlens"])
    shape = f"{meta['layers']} layers, hidden {meta['hidden']}, FFN {meta['ffn']}"
    each = f"{lengths.min()} to {lengths.max()}" if len(set(lengths.tolist())) > 1 else lengths[0]
    return (
        f"{meta['family']}, {shape}, recipe {meta['recipe']}, target {meta['target']}; "
        f"batch {len(lengths)}, {each} tokens each, {lengths.sum()} in all"
    )


def compile_shape(
    shape: str, target: str, folder: Path, progress: Callable[[str], None]
) -> tuple[Path, Path]:
    """Compile random weights of a shape; return the library and the model directory."""
    from intformer.frontend import import_model
    from intformer.frontend.shapes import random_model, random_sequences
    from intformer.pipeline import compile

    progress(f"making random weights of shape {shape}")
    source = random_model(shape, folder / "model")
    model = import_model(source, calibrate=random_sequences(shape), method="minmax")
    path = folder / f"{shape}.so"
    compile(model, path, target=target, progress=progress)
    return path, source


def raced_inputs(
    library: Library, batch: int, tokens: int, data: str | Path | None, limit: int
) -> dict[str, np.ndarray]:
    """Return one batch: random ids without special tokens, or the first texts of a TSV."""
    meta = library.metadata
    if data is not None:
        (inputs,) = real_batches(library, read_texts(data)[:limit], size=2 * limit)
        return inputs
    if tokens > meta["max_length"]:
        raise IntformerError(f"{tokens} tokens in a sequence; the limit is {meta['max_length']}")
    return random_batch(meta, [tokens] * batch, np.random.default_rng(0))


def machine(threads: int) -> dict:
    """Return what a reader needs to judge a figure."""
    import torch
    import transformers

    import intformer

    return {
        "cpu": cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "intformer": intformer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "command": command(),
    }


def command() -> str:
    """Return the command line of this process, as one would type it."""
    program = Path(sys.argv[0])
    name = (
        "intformer" if program.parent.name == "bin" or program.stem == "__main__" else program.name
    )
    return shlex.join([name, *sys.argv[1:]])


def race(contestants: dict[str, Callable[[], object]], seconds: float) -> list[Row]:
    """Time every contestant for about `seconds` in all, at least once a turn; the first is ours."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            time.sleep(PAUSE)
            end, refilled, counted = time.perf_counter() + seconds / ROUNDS, False, False
            while not counted or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                spent = time.perf_counter() - start
                if refilled or spent > REFILL:
                    times[name].append(1e3 * spent)
                    counted = True
                refilled = True
    rows = []
    for name, spent in times.items():
        p10, p90 = np.percentile(spent, [10, 90])
        rows.append(Row(name, statistics.median(spent), float(p10), float(p90), len(spent)))
    for row in rows:
        row.ratio = row.median / rows[0].median
    return rows


def torch_ways(
    source: str | Path, metadata: dict, batch: dict[str, np.ndarray], threads: int
) -> dict[str, Callable[[], object]]:
    """Return the ways PyTorch can run a batch of sequences: padded, in buckets, one by one.

    One sequence, or sequences of one length, can be run one way only; so can a float graph, which
    takes packed tokens.
    """
    import torch

    from intformer.measure.float_model import GraphModel, float_model

    torch.set_num_threads(threads)
    model = float_model(source, metadata)
    if isinstance(model, GraphModel):
        packed = model.batch(batch["input_ids"], batch.get("token_type_ids"), batch["cu_seqlens"])
        return {"PyTorch FP32, packed": lambda: model.forward(packed)}
    ids, types, offsets = batch["input_ids"], batch.get("token_type_ids"), batch["cu_seqlens"]
    lengths = np.diff(offsets)

    def way(groups: list[np.ndarray]) -> Callable[[], object]:
        padded = []
        for group in groups:
            at = [np.arange(offsets[i], offsets[i + 1]) for i in group]
            flat, cut = np.concatenate(at), np.cumsum([0, *(len(a) for a in at)])
            padded.append(model.pad_batch(ids[flat], None if types is None else types[flat], cut))

        def run() -> None:
            for inputs in padded:
                model.forward(inputs)

        return run

    everything = np.arange(len(lengths))
    if len(set(lengths.tolist())) == 1:
        return {"PyTorch FP32": way([everything])}
    order = np.argsort(lengths, kind="stable")
    ways = {"PyTorch FP32, padded": way([everything])}
    for size in BUCKETS:
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        ways[f"PyTorch FP32, sorted into buckets of {size}"] = way(groups)
    return {**ways, "PyTorch FP32, one by one": way([everything[i : i + 1] for i in everything])}
