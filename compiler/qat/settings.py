"""How a training run trains, and which settings mean nothing."""

from dataclasses import dataclass

from intformer.errors import IntformerError
from intformer.qat import tasks
from intformer.qat.choices import check_options

PRECISIONS = ("auto", "fp32", "bf16")  # of matrix products


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
                f"a learning rate must be above 0 and below 1, got {getattr(settings, name)}",
                where=f"--{name.replace('_', '-')}",
            )
    if settings.qat_epochs:
        check_options(settings.recipe, settings.nonlinear, settings.weights)
    if not 0 <= settings.seed < 2**32:
        raise IntformerError(
            f"a seed is a number from 0 to 2^32 - 1, got {settings.seed}", where="--seed"
        )
    if settings.max_length < 8:
        raise IntformerError(f"{settings.max_length} tokens are too few", where="--max-length")
