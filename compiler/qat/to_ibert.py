"""BERT and RoBERTa checkpoints as transformers' IBert modules, weight by weight.

I-BERT counts positions from pad + 1 over the tokens that are not pad, so BERT's position table
moves down by pad + 1 rows: a right-padded batch gives the same positions. BERT's pooler becomes the
dense layer of I-BERT's classification head. LayerNorms whose beta / gamma no 32-bit integer holds
get a larger |gamma|, see `tame`.
"""

import torch
from torch import nn

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.ir.heads import Head

FAMILIES = ("bert", "roberta", "ibert")
KEPT = (  # config keys that both have
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("type_vocab_size", "layer_norm_eps", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("initializer_range", "classifier_dropout"),
)
MARGIN = 2.0  # of |gamma| over what beta needs
LEAST_GAMMA = 1e-3


def check(checkpoint: Checkpoint, head: Head) -> str:
    """Return the model type; raise for a configuration that has no I-BERT module."""
    family = checkpoint.setting("model_type", str)
    if family not in FAMILIES or head.outputs == "words":
        wrong = f"model type {family!r}" if family not in FAMILIES else f"head {head.name!r}"
        raise CheckpointError(
            f"{wrong} does not train with recipe ibert",
            where=str(checkpoint.path),
            hint=f"model types: {', '.join(FAMILIES)}; heads: all but those that answer words",
        )
    checkpoint.refuse_unsupported()
    activation = checkpoint.setting("hidden_act", str, "gelu")
    if activation != "gelu":
        raise CheckpointError(
            f"config key 'hidden_act' = {activation!r} does not train with recipe ibert",
            where=str(checkpoint.path / "config.json"),
            hint="I-BERT has gelu only",
        )
    return family


def ibert_module(checkpoint: Checkpoint, model: nn.Module | None, head: Head) -> nn.Module:
    """Return the IBert module, in quant_mode, of a float module or of an IBert directory.

    model  transformers' module of the directory; None where it is an IBert directory
    """
    import transformers

    family = check(checkpoint, head)
    auto = getattr(transformers, "IBert" + head.class_ending)
    if model is None:
        config = transformers.IBertConfig.from_pretrained(checkpoint.path, quant_mode=True)
        return auto.from_pretrained(checkpoint.path, config=config, dtype=torch.float32)
    source, config = model.state_dict(), model.config
    shift = config.pad_token_id + 1 if family == "bert" else 0
    state = dict(renamed(source, family, head))
    table = state["ibert.embeddings.position_embeddings.weight"]
    rows = torch.cat([table.new_zeros(shift, table.shape[1]), table])
    state["ibert.embeddings.position_embeddings.weight"] = rows
    if head.outputs == "vectors":
        state = {key.removeprefix("ibert."): value for key, value in state.items()}
    kept = {key: getattr(config, key) for key in KEPT if hasattr(config, key)}
    made = auto(
        transformers.IBertConfig(
            **kept,
            max_position_embeddings=len(rows),
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            quant_mode=True,
        )
    )
    own = made.state_dict()
    wanted = {name for name, _ in made.named_parameters()}
    missing = {name for name in wanted - state.keys() if "pooler" not in name}
    if missing:
        raise CheckpointError(
            f"weight for {sorted(missing)[0]!r} is missing ({len(missing)} in all)",
            where=str(checkpoint.path),
            hint="fine-tune the float model with this head first",
        )
    own.update({name: state[name] for name in wanted & state.keys()})
    made.load_state_dict(own)
    return made


def renamed(source: dict[str, torch.Tensor], family: str, head: Head):
    """Yield (I-BERT's key, weight) of a model's state; bare encoders too."""
    bare = not any(key.startswith(family + ".") for key in source)
    for key, value in source.items():
        name = f"{family}.{key}" if bare else key
        if family == "bert" and head.classifies_texts:
            name = name.replace("bert.pooler.dense.", "classifier.dense.")
            if name in ("classifier.weight", "classifier.bias"):
                name = name.replace("classifier.", "classifier.out_proj.")
        if name.startswith(family + "."):
            name = "ibert." + name.removeprefix(family + ".")
        yield name, value


@torch.no_grad()
def tame(model: nn.Module) -> int:
    """Raise |gamma| to what the integer LayerNorm holds; return how many channels moved.

    I-BERT adds floor(beta / gamma) as an integer, which must stay below sqrt(channels); pretrained
    models have dead channels, with gamma near 0.
    """
    moved = 0
    for name, module in model.named_modules():
        if name.endswith("LayerNorm"):
            gamma, beta = module.weight, module.bias
            least = (beta.abs() * (MARGIN / len(gamma) ** 0.5)).clamp_(min=LEAST_GAMMA)
            small = gamma.abs() < least
            if small.any():
                gamma.copy_(torch.where(small, torch.where(gamma < 0, -least, least), gamma))
                moved += int(small.sum())
    return moved
