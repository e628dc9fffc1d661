"""A directory becomes a float graph and the meta that goes with it."""

from dataclasses import dataclass

from intformer.errors import CheckpointError
from intformer.frontend import labels, sentence_settings, sentence_transformers
from intformer.frontend.architectures import head_named
from intformer.frontend.builder import Builder
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import FAMILIES
from intformer.frontend.family import Family
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint
from intformer.ir import heads
from intformer.ir.graph import Graph
from intformer.ir.heads import Head
from intformer.relay_ops.attention import MAX_KEYS

SIDE_HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # of BGE-M3: word weights, token vectors


def pick_head(checkpoint: Checkpoint, asked: str | None) -> tuple[Head, str]:
    """Return (head, pooling); pooling is that of sentence embeddings (Builder.pooled), else "".

    A sentence-transformers directory (modules.json) says its head unless asked otherwise.
    """
    wanted = None if asked is None else heads.named(asked)
    saved = sentence_transformers.read(checkpoint, wanted)
    if saved is not None:
        return saved.head, saved.pooling
    named = architecture(checkpoint)
    if head := wanted or head_named(named):
        return head, ""
    raise CheckpointError(
        f"config key 'architectures' = {named!r} is not supported",
        where=str(checkpoint.path / "config.json"),
        hint="pass head= one of " + ", ".join(sorted(heads.HEADS)),
    )


def architecture(checkpoint: Checkpoint) -> str:
    """Return the class of transformers that config.json names."""
    return str((checkpoint.setting("architectures", list, []) or ["Model"])[0])


@dataclass(frozen=True)
class About:
    """What meta says of an encoder that its graph does not say.

    family         model_type
    position_rule  Family.positions
    pad            padding id
    limit          the most tokens of a sequence
    warnings       what the user should know about how it is read
    """

    family: str
    position_rule: str
    pad: int
    hidden: int
    heads: int
    activation: str
    limit: int
    warnings: list[str]


def read_encoder(checkpoint: Checkpoint, head: str | None = None) -> tuple[Graph, dict]:
    """Return the float graph of a checkpoint and the part of IntModel.meta that comes from it.

    head  name of one of ir.heads.HEADS; None: what the directory says
    """
    if isinstance(checkpoint, OnnxCheckpoint):
        from intformer.frontend.onnx.read import read

        return read(checkpoint, head)
    family = family_of(checkpoint)
    answering, pooling = pick_head(checkpoint, head)
    g = Builder(checkpoint, family)
    x = family.encoder(g)
    if answering.embeds:
        x = g.pooled(x, pooling)
        for module in sentence_transformers.modules(checkpoint, answering):
            x = g.module(x, module.weights(checkpoint), module.function)
    else:
        family.heads[answering](g, x)
    graph = g.graph(answering)
    about = About(
        family=checkpoint.config["model_type"],
        position_rule=family.positions,
        pad=g.pad,
        hidden=g.hidden,
        heads=g.heads,
        activation=g.activation,
        limit=g.limit,
        warnings=notes(checkpoint, g.limit, g.first_position),
    )
    return graph, about_meta(checkpoint, about, graph, pooling)


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family that config.json names; raise for one that is not here."""
    model_type = checkpoint.setting("model_type", str)
    family = FAMILIES.get(model_type)
    if family is None:
        raise CheckpointError(
            f"config key 'model_type' = {model_type!r} is not supported",
            where=str(checkpoint.path / "config.json"),
            hint="supported: " + ", ".join(FAMILIES),
        )
    checkpoint.refuse_unsupported(family.neutral)
    return family


def about_meta(checkpoint: Checkpoint, about: About, graph: Graph, pooling: str) -> dict:
    """Return the part of IntModel.meta that comes from a directory and its graph."""
    tables = graph.tables
    channels = graph[graph.output].channels
    return {
        "family": about.family,
        "head": graph.head.name,
        **labels.answers(checkpoint, graph.head, channels),
        **sentence_transformers.meta(checkpoint, graph.head),
        "vocab_size": len(tables.word),
        "type_vocab_size": 1 if tables.types is None else len(tables.types),
        "max_length": about.limit,
        "truncate_length": sentence_settings.truncate_length(checkpoint, about.limit),
        "pad_token_id": about.pad,
        "position_rule": about.position_rule,
        "hidden": about.hidden,
        "heads": about.heads,
        "layers": len(graph.of_kind("attention")),
        "ffn": graph.of_kind("act")[0].channels,
        "activation": about.activation,
        "pooling": pooling,
        "output_channels": channels,
        "warnings": about.warnings,
    }


def notes(checkpoint: Checkpoint, limit: int, first_position: int) -> list[str]:
    """Return what the user should know about how a directory is read, one line each."""
    found = list(checkpoint.weights.notes)
    positions = checkpoint.config.get("max_position_embeddings")
    asked = positions - first_position if type(positions) is int else limit
    if limit == MAX_KEYS < asked:
        found.append(f"limited to {MAX_KEYS} tokens (config.json: {asked})")
    if architecture(checkpoint).endswith("ForPreTraining"):
        found.append("the next-sentence or sentence-order head of pre-training is left out")
    beside = [name for name in SIDE_HEADS if checkpoint.whole().file(name)]
    if beside:
        found.append(f"heads in files beside the model are left out: {', '.join(beside)}")
    return found
