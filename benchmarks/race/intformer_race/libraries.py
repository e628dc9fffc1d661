"""Our libraries: random-weight models, compiled for a race and verified in it.

Libraries are kept under a hash of the package's source files, so that an old one never races.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import intformer
from intformer_race.cells import IBERT, MODELS, TARGETS, VOCABULARY, Contestant

SOURCES = ("*.py", "*.c", "*.cuh", "*.h", "*.map", "*.json")
CALIBRATION = 8  # sequences
VERIFY_TOKENS = (16, 5)  # lengths of the sequences whose every value is compared
NOISE = 0.05  # of biases and LayerNorms: exporters merge constants that are all equal
SUPPORT = Path(__file__).parents[3] / "tests" / "support"
Say = Callable[[str], None]


def source_digest() -> str:
    """Return a hash of every source file of the package, wherever its folders lie."""
    files = {}
    for name in ("", ".relay_ops", ".schedules", ".tuning_logs"):
        module = __import__(f"intformer{name}", fromlist=["__path__"])
        folder = Path(module.__path__[0])
        for pattern in SOURCES:
            for path in folder.rglob(pattern):
                files[f"{name}/{path.relative_to(folder)}"] = path
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def missing(isa: str) -> str:
    """Return why our library cannot race at an ISA level here; empty where it can."""
    from intformer.backends.targets import TARGETS as known

    name = TARGETS[isa]
    if name not in known:
        return f"this intformer has no target {name}"
    lacks = known[name].missing_here()
    return f"this CPU lacks {', '.join(lacks)}" if lacks else ""


class Libraries:
    """Model directories and libraries under a folder, made where they are not there yet."""

    def __init__(self, folder: Path, say: Say):
        """Drop the libraries of other sources."""
        self.models, self.say = folder / "models", say
        self.folder = folder / "libraries" / source_digest()
        for old in self.folder.parent.glob("*"):
            if old != self.folder:
                shutil.rmtree(old)
        self.folder.mkdir(parents=True, exist_ok=True)

    def source(self, model: str) -> Path:
        """Return the model directory that ours is compiled from and the rivals read."""
        path = self.models / model
        if not path.exists():
            self.say(f"making random weights of {model}")
            apart(_make_model, model, path)
        return path

    def library(self, contestant: Contestant, model: str, isa: str) -> Path:
        """Return the compiled library of one of ours."""
        path = self.folder / f"{model}-{contestant.mode}-{TARGETS[isa]}.so"
        if not path.exists():
            self.say(f"compiling {path.stem}")
            if contestant.name == IBERT:
                source, calibration = self.models / f"{model}-ibert", None
                if not source.exists():
                    apart(_make_ibert, model, source)
            else:
                source, calibration = self.source(model), model
            apart(_compile, source, calibration, path, TARGETS[isa])
        return path


def apart(function: Callable, *arguments):
    """Call a function of a module in a process of its own: its memory is gone afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _make_model(model: str, path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from intformer.frontend.shapes import random_model

    partial = path.with_name(f"partial-{path.name}")
    random_model(model, partial)
    weights, random = load_file(partial / "model.safetensors"), torch.Generator().manual_seed(0)
    for tensor in weights.values():
        if tensor.dim() == 1:
            tensor += NOISE * torch.randn(tensor.shape, generator=random)
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    partial.rename(path)


def _make_ibert(model: str, path: Path) -> None:
    sys.path.insert(0, str(SUPPORT))
    from intformer.frontend.shapes import SHAPES
    from intformer_testing import make_ibert

    size, partial = MODELS[model], path.with_name(f"partial-{path.name}")
    made = make_ibert.random_model(
        **size, vocab=VOCABULARY, positions=SHAPES[model]["max_position_embeddings"] + 2, steps=1
    )
    made.save_pretrained(partial)
    partial.rename(path)


def _compile(source: Path, calibration: str | None, path: Path, target: str) -> None:
    from intformer.frontend.shapes import random_sequences

    options = {}
    if calibration:
        sequences = random_sequences(calibration, count=CALIBRATION)
        options = {"calibrate": sequences, "method": "minmax"}
    model = intformer.import_model(source, **options)
    intformer.compile(model, path, target=target)


def verified(library: Path) -> list[dict]:
    """Return the parts of `intformer verify` for a library: name, ok, detail, findings."""
    return apart(_verify, library)


def _verify(library: Path) -> list[dict]:
    from intformer.proof.inputs import random_batch

    loaded = intformer.load(library)
    batch = random_batch(loaded.metadata, list(VERIFY_TOKENS), np.random.default_rng(0))
    return intformer.verify(loaded, batches=[batch]).to_json()["checks"]


def weight_bytes(source: Path) -> int:
    """Return the bytes of a model's weight matrices and tables at one byte each."""
    from safetensors import safe_open

    with safe_open(source / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]
    return sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2)


def kernel_times(libraries: dict[str, Path], functions: tuple[str, ...]) -> dict:
    """Return library -> milliseconds of all kernels with each of `functions` in their names.

    One sequence of 128 tokens, one thread.
    """
    return {name: apart(_function_times, path, functions) for name, path in libraries.items()}


def _function_times(path: Path, functions: tuple[str, ...]) -> dict[str, float]:
    from intformer.measure import bench, roofline

    loaded = intformer.load(path)
    loaded.set_threads(1)
    times = roofline.op_times(loaded, bench.raced_inputs(loaded, 1, 128, None, 0), 1)
    return {f: sum(t.milliseconds for t in times if f in t.name) for f in functions}
