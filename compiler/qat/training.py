"""`intformer train`: fine-tune an encoder in FP32, then with quantization, on transformers.Trainer.

Nothing is looked up on a network. An interrupted run resumes from its last checkpoint when it is
started again with the same settings; what is finished is never half-written.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from intformer.frontend import opened
from intformer.measure.float_model import quiet
from intformer.qat import tasks
from intformer.qat.choices import check_source
from intformer.qat.curve import draw
from intformer.qat.fine_tuned import fitting
from intformer.qat.run_files import digest, finished, weight_files, write_json
from intformer.qat.settings import Settings, check
from intformer.qat.stages import Run

HELD_OUT = 0.1  # of train: chooses the model and ends training early
STAGES = ("fp32", "qat")
PACKAGES = ("intformer", "torch", "transformers", "accelerate", "tokenizers", "numpy")


def train(
    source: str | Path,
    train: str | Path,
    output: str | Path,
    settings: Settings,
    dev: str | Path | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict:
    """Train, and return what DIR/metrics.json holds.

    source      a Hugging Face model directory; a head that does not fit the task is made anew,
                without an FP32 stage refused
    train       labelled rows; HELD_OUT of them choose the model
    dev         labelled rows, scored once by each stage's chosen model; None: no score
    output      DIR: fp32/ and qat/ (Hugging Face directories), metrics.json, curve.png
    settings    see Settings
    progress    called with what starts now
    Raises IntformerError: options, files or a source that do not fit, an output that is taken.
    """
    check(settings)
    checkpoint = opened(source)
    checkpoint.refuse_rewritten()
    rows = tasks.read(train, settings.task)
    scored = None if dev is None else tasks.read(dev, settings.task, rows.labels)
    if not settings.epochs:  # its head stays
        rows, scored = (one and fitting(one, checkpoint) for one in (rows, scored))
    output = Path(output)
    files = {"train": train, "dev": dev} if scored else {"train": train}
    about = {
        "source": Path(source).name,
        "source_sha256": digest(*weight_files(Path(source))),
        **{f"{name}_sha256": digest(Path(path)) for name, path in files.items()},
        **asdict(settings),
    }
    if (done := finished(output, about)) is not None:
        progress(f"{output} is complete")
        return done
    set_up()
    if settings.qat_epochs:  # its faults are known now
        check_source(checkpoint, settings.recipe, rows.head)
    fit, held = rows.split(HELD_OUT, settings.rows, settings.seed)
    run = Run(checkpoint, output, settings, fit, held, scored, progress)
    run.work.mkdir(parents=True, exist_ok=True)
    write_json(run.work / "settings.json", about)
    stages = {name: run.stage(name) for name in STAGES if run.epochs(name)}
    result = {
        "settings": about,
        "rows": {
            "train": len(fit.texts),
            "held_out": len(held.texts),
            **({"dev": len(scored.texts)} if scored else {}),
        },
        "versions": versions(),
        "device": run.device(),
        "stages": stages,
    }
    draw(result, rows.metrics[0], output / "curve.png")
    write_json(output / "metrics.json", result)
    shutil.rmtree(run.work)
    return result


def set_up() -> None:
    """Keep transformers off the network and off the terminal."""
    os.environ.update(HF_HUB_OFFLINE="1")
    import accelerate  # noqa: F401 - needed later; without them the name of our extra is said now
    import matplotlib  # noqa: F401

    quiet()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}
