"""What training with quantization can start from, said before any of it runs."""

from intformer.errors import CheckpointError
from intformer.frontend.builder import activation_of
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import family_of
from intformer.ir.heads import Head
from intformer.quantize.native.scales import GRAINS

RECIPES = ("native", "ibert")
NONLINEAR = ("integer", "float")


def check_options(recipe: str, nonlinear: str, weights: str) -> None:
    """Raise for options of prepare that are unknown or do not go together."""
    if recipe not in RECIPES:
        raise CheckpointError(f"recipe {recipe!r} is not known", hint="one of native, ibert")
    for name, value, legal in (("nonlinear", nonlinear, NONLINEAR), ("weights", weights, GRAINS)):
        if value not in legal:
            raise CheckpointError(
                f"{name} = {value!r} is not known", hint="one of " + ", ".join(legal)
            )
    if recipe == "ibert" and (nonlinear, weights) != ("integer", "channel"):
        raise CheckpointError(
            f"recipe ibert has no nonlinear {nonlinear!r} with weights {weights!r}",
            hint="leave them out: its functions are integer, its weights have a scale per channel",
        )


def check_source(checkpoint: Checkpoint, recipe: str, head: Head) -> None:
    """Raise for a directory whose config.json names what a recipe does not have."""
    if recipe == "native":
        family = family_of(checkpoint)
        activation_of(checkpoint, family.config_keys["activation"], family.act)
        return
    from intformer.qat.to_ibert import check

    check(checkpoint, head)
