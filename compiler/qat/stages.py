"""The stages of a training run on transformers.Trainer: FP32, then with quantization."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from intformer.backends import targets
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend import sentence_transformers
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import FAMILIES
from intformer.frontend.trained import CONFIG_KEY
from intformer.qat.run_files import last_checkpoint, write_json
from intformer.qat.settings import Settings
from intformer.qat.tasks import Encoded, Rows

EVALUATIONS = 2  # per epoch, on the held-out part
TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "vocab.txt", "merges.txt")


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
        self.progress(f"{name}: {'resuming from ' + last.name if last else 'training'}")
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
            "remove the newest one and start it again: it resumes",
        )
    if "Error while serializing" in said or "inline_container" in said:  # how torch says it
        return "a checkpoint cannot be written", "make room and start it again: it resumes"
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
