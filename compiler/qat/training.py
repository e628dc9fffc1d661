"""`intformer train`: fine-tune an encoder in FP32, then with quantization, on transformers.Trainer.

Nothing is looked up on a network. A run that was ended goes on from its last checkpoint when it is
started again with the same settings; what is finished is never half-written.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from intformer.backends import targets
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend import sentence_transformers
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import FAMILIES
from intformer.frontend.trained import CONFIG_KEY
from intformer.measure.float_model import quiet
from intformer.qat import tasks
from intformer.qat.choices import check_options, check_source
from intformer.qat.fine_tuned import fitting
from intformer.qat.tasks import Encoded, Rows

HELD_OUT = 0.1  # of train: chooses the model and ends training early
EVALUATIONS = 2  # per epoch, on the held-out part
STAGES = ("fp32", "qat")
PRECISIONS = ("auto", "fp32", "bf16")  # of matrix products
TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "vocab.txt", "merges.txt")
PACKAGES = ("intformer", "torch", "transformers", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True)
class Settings:
    """How a run trains; the same settings give the same model on the same machine.

    task               a name in tasks.NAMES
    recipe, nonlinear, weights   of intformer.qat.prepare
    epochs, qat_epochs   of the FP32 stage and the stage with quantization; 0 leaves a stage out
    lr, qat_lr           peak learning rates, after a warm-up over the first tenth of the steps
    batch                sequences in a step
    max_length           tokens in a sequence at most
    rows                 training rows to take, by chance; None takes all
    seed                 of rows, order, dropout and the fresh head
    distill              half of the second stage's loss comes from the FP32 model
    patience             evaluations without a better score before a stage ends
    precision            of matrix products in training: "auto" (bf16 where the hardware has it),
                         "fp32" or "bf16"; recipe ibert trains its second stage in float32
    """

    task: str
    recipe: str = "native"
    nonlinear: str = "integer"
    weights: str = "channel"
    epochs: int = 3
    qat_epochs: int = 1
    lr: float = 5e-5
    qat_lr: float = 2e-5
    batch: int = 16
    max_length: int = 128
    rows: int | None = None
    seed: int = 0
    distill: bool = False
    patience: int = 4
    precision: str = "auto"


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
    checkpoint = Checkpoint(source)
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


def check(settings: Settings) -> None:
    """Raise for settings that mean nothing."""
    if settings.task not in tasks.NAMES:
        raise IntformerError(
            f"task {settings.task!r} is unknown", hint="one of " + ", ".join(tasks.NAMES)
        )
    if not settings.epochs and not settings.qat_epochs:
        raise IntformerError("neither --epochs nor --qat-epochs", hint="one of them at least 1")
    if settings.distill and not settings.qat_epochs:
        raise IntformerError("--distill without --qat-epochs", hint="the FP32 stage has no teacher")
    for name in ("lr", "qat_lr"):
        if not 0 < getattr(settings, name) < 1:
            raise IntformerError(
                f"{getattr(settings, name)} is no learning rate",
                where=f"--{name.replace('_', '-')}",
            )
    if settings.qat_epochs:
        check_options(settings.recipe, settings.nonlinear, settings.weights)
    if not 0 <= settings.seed < 2**32:
        raise IntformerError(
            f"{settings.seed} is no seed", where="--seed", hint="a number from 0 to 2^32 - 1"
        )
    if settings.max_length < 8:
        raise IntformerError(f"{settings.max_length} tokens are too few", where="--max-length")


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a model's weights."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def digest(*files: Path) -> str:
    """Return the SHA-256 of files, one after the other."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def finished(output: Path, about: dict) -> dict | None:
    """Return the result of a finished run; raise where DIR holds anything but this run."""
    if output.exists() and not output.is_dir():
        raise IntformerError("not a directory", where=str(output), hint="give -o another name")
    done, begun = output / "metrics.json", output / "checkpoints" / "settings.json"
    found = read_object(done)
    before = (found or {}).get("settings") if done.exists() else read_object(begun)
    if not isinstance(before, dict):
        if not output.is_dir() or not any(output.iterdir()):
            return None
        raise IntformerError(
            "the directory is not empty, and no run of ours",
            where=str(output),
            hint="give -o another name",
        )
    if differing := [name for name in about if before.get(name) != about[name]]:
        name = differing[0]
        raise IntformerError(
            f"a run with {name} {before.get(name)!r} is there, not {about[name]!r}",
            where=str(output),
            hint="give -o another name, or delete it",
        )
    return found


def read_object(path: Path) -> dict | None:
    """Return a JSON object of ours; None where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def set_up() -> None:
    """Keep transformers off the network and off the terminal."""
    os.environ.update(HF_HUB_OFFLINE="1")
    import accelerate  # noqa: F401 - needed later; without them the name of our extra is said now
    import matplotlib  # noqa: F401

    quiet()


def write_json(path: Path, data: object) -> None:
    """Write a JSON file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


class Run:
    """One call of train()."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        output: Path,
        settings: Settings,
        fit: Rows,
        held: Rows,
        dev: Rows | None,
        progress: Callable[[str], None],
    ):
        """Tokenize; checkpoint is the source."""
        import transformers
        from huggingface_hub.errors import StrictDataclassError

        checkpoint.refuse_rewritten()
        self.checkpoint, self.output, self.settings = checkpoint, output, settings
        self.progress, self.work = progress, output / "checkpoints"
        self.rows = fit
        try:
            self.config = transformers.AutoConfig.from_pretrained(checkpoint.path)
        except (ValueError, KeyError, OSError, StrictDataclassError) as error:
            raise refused(error, checkpoint.path) from error
        positions = getattr(self.config, "max_position_embeddings", 512)
        family = FAMILIES.get(self.config.model_type)
        one_type = getattr(self.config, "type_vocab_size", 2) == 1  # as RoBERTa's kin have
        if family.positions == "padding" if family else one_type:  # counts from pad + 1
            positions -= (self.config.pad_token_id or 0) + 1
        self.length = min(settings.max_length, positions)
        self.files = checkpoint.files()
        progress("tokenizing")
        self.fit, self.held, self.dev = (
            Encoded(rows, self.config, self.files, self.length) if rows else None
            for rows in (fit, held, dev)
        )

    def epochs(self, name: str) -> int:
        """Return the epochs of a stage."""
        return self.settings.epochs if name == "fp32" else self.settings.qat_epochs

    def device(self) -> str:
        """Return what trains, in words."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return f"cpu, {torch.get_num_threads()} threads"

    def stage(self, name: str) -> dict:
        """Run a stage, or return what it said when it ran; its model is in DIR/<name>."""
        said = self.work / f"{name}.json"
        if said.is_file():
            return json.loads(said.read_text())
        from safetensors import SafetensorError

        try:
            report = self.trained(name)
        except (RuntimeError, SafetensorError) as error:
            if (fault := mendable(error)) is None:
                raise
            what, hint = fault
            raise IntformerError(
                f"{what}: {first_line(error)}", where=str(self.work), hint=hint
            ) from error
        write_json(said, report)
        return report

    def trained(self, name: str) -> dict:
        """Run a stage whose report is not there."""
        from intformer.qat.trainer import forward_rows

        folder = self.output / name
        model = self.float_model() if name == "fp32" else self.prepared()
        history = self.tune(name, model)
        part = self.work / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        self.save_tokenizer(part)
        scores = {}
        if self.dev is not None:
            self.progress(f"{name}: scoring dev")
            if name == "fp32":  # what training left computes in the precision of training
                device = next(model.parameters()).device
                model = self.float_model(part).to(device)
            rows = forward_rows(model.eval(), self.dev, self.settings.batch)
            scores, _ = self.dev.score(rows)
        key = f"eval_{self.rows.metrics[0]}"
        report = {
            "steps": history[-1]["step"],
            "bf16": self.half(name),
            "dev": scores,
            "held_out": max(entry[key] for entry in history if key in entry),
            "history": history,
        }
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
        return report

    def float_model(self, source: Path | None = None):
        """Return the FP32 model, with a head that fits the task."""
        import torch
        import transformers
        from safetensors import SafetensorError

        rows = self.rows
        auto = getattr(transformers, rows.head.auto_class)
        options: dict = {"num_labels": rows.outputs}
        if rows.labels:
            options |= rows.names
        if rows.head.classifies_texts:
            kind = "regression" if rows.regression else "single_label_classification"
            options["problem_type"] = kind
        transformers.set_seed(self.settings.seed)  # of a fresh head
        path = source or self.checkpoint.path
        try:
            model = auto.from_pretrained(
                path,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                **({"quant_mode": False} if self.config.model_type == "ibert" else {}),
                **options,
            )
        except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
            raise refused(error, path) from error
        vars(model.config).pop(CONFIG_KEY, None)  # ranges of a trained source are no longer its own
        return model

    def float_source(self) -> Path:
        """Return the directory the second stage starts from."""
        return self.output / "fp32" if self.settings.epochs else self.checkpoint.path

    def half(self, name: str) -> bool:
        """Say whether a stage multiplies in bf16; the I-BERT modules of transformers do not."""
        ibert = name == "qat" and self.settings.recipe == "ibert"
        return has_bf16(self.settings.precision) and not ibert

    def prepared(self):
        """Return the model of the second stage, fake-quantized."""
        import transformers

        from intformer.qat import prepare

        transformers.set_seed(self.settings.seed)
        prepared = prepare(
            self.float_source(),
            recipe=self.settings.recipe,
            nonlinear=self.settings.nonlinear,
            weights=self.settings.weights,
            head=self.rows.head.name,
            calibrate=self.rows.texts,
        )
        if self.rows.labels:  # a source that is fine-tuned already may have none
            prepared.config.update(self.rows.names)
        return prepared

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer, cutting where training cut."""
        for name in TOKENIZER_FILES:
            if (file := self.checkpoint.file(name)) is not None:
                shutil.copyfile(file, folder / name)
        (folder / "tokenizer.json").write_bytes(self.files["tokenizer.json"])
        about = self.checkpoint.read_json("tokenizer_config.json") or {}
        write_json(folder / "tokenizer_config.json", {**about, "model_max_length": self.length})
        # of a CrossEncoder: another length and score function
        for name in sentence_transformers.files(self.checkpoint, self.rows.head):
            (folder / name).unlink(missing_ok=True)

    def arguments(self, name: str):
        """Return the Trainer's arguments for a stage."""
        import torch
        import transformers

        s = self.settings
        steps = -(-len(self.fit.features) // s.batch)
        often = max(1, steps // EVALUATIONS)
        made = transformers.TrainingArguments(
            output_dir=str(self.work / name),
            num_train_epochs=self.epochs(name),
            learning_rate=s.lr if name == "fp32" else s.qat_lr,
            per_device_train_batch_size=s.batch,
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=self.half(name),
            eval_strategy="steps",
            eval_steps=often,
            save_strategy="steps",
            save_steps=often,
            save_total_limit=2,  # of 1, the Trainer would delete the last before dev is scored
            restore_callback_states_from_checkpoint=True,
            logging_strategy="steps",
            logging_steps=often,
            logging_nan_inf_filter=False,  # Tuner stops at the first
            load_best_model_at_end=True,
            metric_for_best_model=self.rows.metrics[0],
            greater_is_better=True,
            remove_unused_columns=False,
            seed=s.seed,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            push_to_hub=False,
        )
        if made.n_gpu > 1:  # DataParallel would multiply the batch; a replica has no parameters
            made._n_gpu = 1
        return made

    def tune(self, name: str, model) -> list[dict]:
        """Train a model in place until its best held-out score; return the Trainer's history."""
        import transformers

        from intformer.qat.trainer import Bar, Patience, Tuner

        s = self.settings
        folder = self.work / name
        teacher = None
        if name == "qat" and s.distill:
            teacher = self.float_model(self.float_source()).eval()
        bar = Bar(f"{name}: training")
        transformers.set_seed(s.seed)
        tuner = Tuner(
            model=model,
            args=self.arguments(name),
            stage=name,
            train_dataset=self.fit.features,
            held_out=self.held,
            teacher=teacher,
            callbacks=[Patience(s.patience), bar],
        )
        tuner.remove_callback(transformers.PrinterCallback)
        last = last_checkpoint(folder)
        self.progress(f"{name}: {'going on from ' + last.name if last else 'training'}")
        try:
            tuner.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            bar.stop()
        return tuner.state.log_history


def refused(error: Exception, path: Path) -> CheckpointError:
    """Return what transformers said, in a line."""
    return CheckpointError(f"transformers cannot load it: {first_line(error)}", where=str(path))


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def mendable(error: Exception) -> tuple[str, str] | None:
    """Return (what, hint) of an error that is the machine's; None where it may be our own."""
    said = str(error)
    if "out of memory" in said or "can't allocate memory" in said:
        return "no memory is left", "a smaller --batch or --max-length"
    if "Error while deserializing" in said or "PytorchStreamReader" in said:
        return (
            "a checkpoint cannot be read",
            "remove the newest one, and start it again: it goes on",
        )
    if "Error while serializing" in said or "inline_container" in said:  # how torch says it
        return "a checkpoint cannot be written", "make room, and start it again: it goes on"
    return None


def has_bf16(precision: str) -> bool:
    """Say whether to multiply in bf16: as asked, or where the hardware has it."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    family = targets.host()
    return family is not None and family.multiplies_bf16()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; one that was being written when the run ended goes.

    The Trainer writes trainer_state.json last.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def draw(result: dict, metric: str, path: Path) -> None:
    """Draw loss and held-out score over the steps, a column per stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = result["stages"]
    figure = Figure(figsize=(5 * len(stages), 5.5), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for column, (name, stage) in enumerate(stages.items()):
        for row, (key, label) in enumerate(
            [("loss", "training loss"), (f"eval_{metric}", f"{metric}, held out")]
        ):
            points = [(e["step"], e[key]) for e in stage["history"] if key in e]
            axis = axes[row][column]
            axis.plot(*zip(*points, strict=True), marker="o")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        dev = f": dev {metric} {stage['dev'][metric]:.4f}" if stage["dev"] else ""
        axes[0][column].set_title(name + dev)
        axes[1][column].set_xlabel("step")
    FigureCanvasAgg(figure)
    part = path.with_name("curve.part.png")
    figure.savefig(part, dpi=100)
    part.replace(path)
