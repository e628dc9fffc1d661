"""What contestants share: the protocol, inputs, and artifacts built once.

A contestant is a program, in any language:
  argv[1]  JSON: peer, mode, model, layers, hidden, heads, ffn, vocab, batch, seq, threads, isa
           (vnni: the kernel refuses AMX; amx: all the CPU has). Beyond that, for who wants it:
           source   the Hugging Face directory of the model
           library  our compiled library
           texts    JSON file, [[token id, ...], ...]: real sequences in place of batch and seq
           groups   [[index, ...], ...]: which of them to pad into one batch, one after the other
  stdout   {"ready": true, "info": {...}} when built and warm; info may hold version, logits (of
           the first sequence), macs (multiply-adds in a run, where they are not the model's)
  stdin    a line with a number of seconds; the answer is {"ms": [...], "cpu_ms": x}: wall time of
           each run in about that time, and CPU time of one, all threads. End of file: exit.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

WARM = 0.5  # seconds
LONG = 0.2  # seconds: a run this long counts even with cold caches

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
_answers = os.fdopen(os.dup(1), "w")  # libraries that print to stdout print to stderr from here on
os.dup2(2, 1)

spec: dict = json.loads(sys.argv[1])
cache = Path(os.environ.get("RACE_CACHE", "out/bench/rivals")).absolute() / spec["model"]


def serve(
    run: Callable[[], object], info: dict, logits: Callable[[object], Iterable] | None = None
):
    """Warm up, report, then take turns until the driver closes the pipe.

    logits  picks the first sequence's out of what run() returns
    """
    end, result = time.perf_counter() + WARM, run()
    while time.perf_counter() < end:
        result = run()
    if logits:
        info["logits"] = [float(value) for value in logits(result)]
    answer({"ready": True, "info": info})
    for line in sys.stdin:
        answer(turn(run, float(line)))


def turn(run: Callable[[], object], seconds: float) -> dict:
    """Time runs; the first fills the caches again and counts only where that does not matter."""
    spent: list[float] = []
    cpu, runs, end = time.process_time(), 0, time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        runs += 1
        if runs > 1 or took > LONG:
            spent.append(1e3 * took)
    return {"ms": spent, "cpu_ms": 1e3 * (time.process_time() - cpu) / runs}


def answer(message: dict) -> None:
    print(json.dumps(message), file=_answers, flush=True)


def sequences() -> list[np.ndarray]:
    """Return the token ids of each sequence: the given texts, or random ids."""
    if "texts" in spec:
        return [np.array(ids, np.int64) for ids in json.loads(Path(spec["texts"]).read_text())]
    rng = np.random.default_rng(0)
    return list(rng.integers(1000, spec["vocab"], (spec["batch"], spec["seq"]), dtype=np.int64))


def padded() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ids, mask), int64 [batch, longest], of every group; all in one without groups."""
    texts = sequences()
    batches = []
    for group in spec.get("groups") or [range(len(texts))]:
        lengths = np.array([len(texts[i]) for i in group])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([texts[i] for i in group])
        batches.append((ids, mask.astype(np.int64)))
    return batches


def random_batches(count: int, seq: int = 128) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return single sequences of random ids for calibration, as (ids, mask)."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1000, spec["vocab"], (count, 1, seq), dtype=np.int64)
    return [(row, np.ones_like(row)) for row in ids]


def named(batch: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a batch under the names of a graph's inputs."""
    return dict(zip(("input_ids", "attention_mask"), batch, strict=True))


def float_model(attention: str = "sdpa"):
    """Return the FP32 PyTorch model."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        spec["source"], attn_implementation=attention
    ).eval()


def artifact(name: str, make: Callable[[Path], None]) -> Path:
    """Return a file or folder of this model, built by make(path) where it is not there.

    It is built under a lock and in a process of its own: this program again, which ends when it
    has got to the artifact, so that the memory of the build is gone before anything is timed.
    """
    path = cache / name
    if path.exists():
        return path
    partial = cache / f"partial-{name}"
    if os.environ.get("RACE_BUILD") == name:
        make(partial)
        partial.rename(path)
        sys.exit()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            if partial.is_dir():
                shutil.rmtree(partial)
            building = {**os.environ, "RACE_BUILD": name}
            building.pop("OMP_NUM_THREADS", None)
            subprocess.run(
                sys.orig_argv,
                env=building,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                check=True,
            )
    return path


def onnx_model() -> Path:
    """Return the FP32 ONNX graph, batch and length symbolic.

    Eager attention through the TorchScript exporter is the form that ONNX Runtime's BERT fusions
    know.
    """

    def make(path: Path) -> None:
        import torch

        axes = {0: "batch", 1: "seq"}
        batch = random_batches(1, 64)[0]
        torch.onnx.export(
            float_model("eager"),
            tuple(torch.from_numpy(array) for array in batch),
            str(path),
            input_names=list(named(batch)),
            output_names=["logits"],
            dynamic_axes=dict.fromkeys((*named(batch), "logits"), axes) | {"logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )

    return artifact("fp32.onnx", make)
