"""A directory becomes a float graph and the meta that goes with it."""

from intformer.errors import CheckpointError
from intformer.frontend import labels, sentence_transformers
from intformer.frontend.architectures import head_named
from intformer.frontend.builder import Builder, Family
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import FAMILIES
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


def read_encoder(checkpoint: Checkpoint, head: str | None = None) -> tuple[Graph, dict]:
    """Return the float graph of a checkpoint and the part of IntModel.meta that comes from it.

    head  name of one of ir.heads.HEADS; None: what the directory says
    """
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
    return graph, _meta(checkpoint, family, g, graph, pooling)


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


def _meta(checkpoint: Checkpoint, family: Family, g: Builder, graph: Graph, pooling: str) -> dict:
    tables, limit = graph.tables, g.limit
    channels = graph[graph.output].channels
    return {
        "family": checkpoint.config["model_type"],
        "head": graph.head.name,
        **labels.answers(checkpoint, graph.head, channels),
        **sentence_transformers.meta(checkpoint, graph.head),
        "vocab_size": len(tables.word),
        "type_vocab_size": 1 if tables.types is None else len(tables.types),
        "max_length": limit,
        "truncate_length": sentence_transformers.truncate_length(checkpoint, limit),
        "pad_token_id": g.pad,
        "position_rule": family.positions,
        "hidden": g.hidden,
        "heads": g.heads,
        "layers": len(graph.of_kind("attention")),
        "ffn": graph.of_kind("act")[0].channels,
        "activation": g.activation,
        "pooling": pooling,
        "output_channels": channels,
        "warnings": notes(checkpoint, limit, g.first_position),
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
