"""transformers.Trainer with our held-out score, distillation and progress bar.

Nothing here is needed to train a prepared model: it is a plain module for any Trainer.
"""

import inspect
import math
import sys

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers.trainer_pt_utils import LengthGroupedSampler

from intformer.errors import IntformerError
from intformer.qat.losses import HIDDEN_LOGIT
from intformer.qat.packing import IGNORED, padded
from intformer.qat.tasks import ANSWERS, TOKENS, Encoded

TEMPERATURE = 2.0  # of distillation
TEACHER = 0.5  # weight of the teacher's loss; the rest is the labels'


class Order(LengthGroupedSampler):
    """Rows of like length together; seed and epoch alone decide the order.

    a run resumed within an epoch draws the order of that epoch again, whatever the state of
    the global generator is by then.
    """

    def __init__(self, trainer: transformers.Trainer):
        """Order the trainer's training rows."""
        super().__init__(trainer.args.train_batch_size, trainer.train_dataset)
        self.trainer = trainer

    def __iter__(self):
        """Return the order of the trainer's present epoch."""
        steps = -(-len(self) // self.batch_size)
        epoch = self.trainer.state.global_step // steps
        mixed = np.random.SeedSequence((self.trainer.args.seed, epoch)).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(mixed[0]))
        return super().__iter__()


class Patience(transformers.EarlyStoppingCallback):
    """Ends a stage; one that it had ended when the run was killed does not go on."""

    def on_train_begin(self, args, state, control, **kwargs):
        """See where the checkpoint was: the Trainer forgets that it had stopped."""
        super().on_train_begin(args, state, control, **kwargs)
        control.should_training_stop = (
            self.early_stopping_patience_counter >= self.early_stopping_patience
        )
        if state.best_global_step:  # the checkpoint may have named another working directory's
            state.best_model_checkpoint = f"{args.output_dir}/checkpoint-{state.best_global_step}"


class Tuner(transformers.Trainer):
    """A Trainer that evaluates on `held_out` and, with a teacher, learns from its outputs too."""

    def __init__(self, model, *, stage: str, held_out: Encoded, teacher=None, **options):
        """Take a Trainer's arguments, the name of the stage, and what to evaluate on."""
        self.stage, self.held_out, self.teacher = stage, held_out, teacher
        self.takes = inspect.signature(model.forward).parameters
        super().__init__(
            model=model, data_collator=self.collate, eval_dataset=held_out.features, **options
        )
        if teacher is not None:
            teacher.to(self.args.device).requires_grad_(False)

    def collate(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Return a padded batch."""
        return padded(features, self.held_out.pad, self.takes)

    def _run_epoch(self, **options) -> None:
        if not self.control.should_training_stop:
            super()._run_epoch(**options)

    def _get_train_sampler(self, train_dataset=None) -> Order:
        return Order(self)

    def _clip_grad_norm(self, model) -> torch.Tensor:
        """Raise where training has left the numbers, before a weight does.

        A loss that is no number has such a gradient; this waits for the device once a step, as the
        Trainer's own filter does.
        """
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise IntformerError(
                f"training diverged: the gradient is {float(norm)} at step "
                f"{self.state.global_step + 1}",
                where=f"stage {self.stage}",
                hint="a smaller " + ("--lr" if self.stage == "fp32" else "--qat-lr"),
            )
        return norm

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """Score the held-out rows, each metric under its name."""
        model, was = self.model, self.model.training
        rows = forward_rows(model.eval(), self.held_out, self.args.eval_batch_size)
        model.train(was)
        scores, _ = self.held_out.score(rows)
        named = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the model's own loss; with a teacher, the mean of it and the teacher's."""
        out = model(**inputs)
        loss = out["loss"]
        if self.teacher is not None:
            taken = inspect.signature(self.teacher.forward).parameters
            plain = {
                k: v
                for k, v in inputs.items()
                if k in taken and k not in ("labels", "start_positions", "end_positions")
            }
            with torch.no_grad():
                wanted = logits(self.teacher(**plain))
            extra = distance(logits(out), wanted, self.held_out.rows, inputs)
            loss = (1 - TEACHER) * loss + TEACHER * extra
        return (loss, out) if return_outputs else loss


def distance(got, wanted, rows, inputs: dict) -> torch.Tensor:
    """Return how far a student's outputs are from its teacher's: MSE for scores, else KL."""
    if rows.regression:
        return functional.mse_loss(got.float(), wanted.float())
    if rows.task == TOKENS:
        kept = inputs["labels"] != IGNORED
        got, wanted = got[kept], wanted[kept]
    elif rows.task == ANSWERS:  # a distribution over tokens for the start, one for the end
        hidden = (inputs["attention_mask"] == 0).unsqueeze(-1)
        got, wanted = (
            x.float().masked_fill(hidden, HIDDEN_LOGIT).transpose(1, 2).flatten(0, 1)
            for x in (got, wanted)
        )
    soft = functional.kl_div(
        functional.log_softmax(got.float() / TEMPERATURE, -1),
        functional.softmax(wanted.float() / TEMPERATURE, -1),
        reduction="batchmean",
    )
    return soft * TEMPERATURE**2


def logits(out) -> torch.Tensor:
    """Return a model's outputs as one tensor; start and end of answers are its two channels."""
    if "start_logits" in out:
        return torch.stack((out["start_logits"], out["end_logits"]), -1)
    return out["logits"]


def forward_rows(model, data: Encoded, batch: int) -> np.ndarray:
    """Return a row per sequence or per token, float32, in the order of data.packed.

    Sequences of like length are run together.
    """
    takes = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    order = sorted(range(len(data.features)), key=lambda i: len(data.features[i]["input_ids"]))
    found: dict[int, np.ndarray] = {}
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        inputs = padded(
            [{k: data.features[i][k] for k in ("input_ids", "token_type_ids")} for i in chosen],
            data.pad,
            takes,
        )
        with torch.inference_mode():
            out = logits(model(**{k: v.to(device) for k, v in inputs.items()})).float().cpu()
        for i, row in zip(chosen, out.numpy(), strict=True):
            found[i] = row[None] if row.ndim == 1 else row[: len(data.features[i]["input_ids"])]
    return np.concatenate([found[i] for i in range(len(order))])


class Bar(transformers.TrainerCallback):
    """A progress bar on stderr, where a person is watching."""

    def __init__(self, label: str):
        """Keep the label."""
        self.label, self.bar, self.task = label, None, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Show it."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        """Move it."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Say the last figures beside it."""
        if self.bar is not None and logs:
            shown = ", ".join(
                f"{name.removeprefix('eval_')} {value:.4g}"
                for name, value in logs.items()
                if name == "loss" or name.startswith("eval_")
            )
            if shown:
                self.bar.update(self.task, description=f"{self.label} ({shown})")

    def stop(self):
        """Take it away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
