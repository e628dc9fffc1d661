"""A directory becomes a float graph and the meta that goes with it."""

from intformer.errors import CheckpointError
from intformer.frontend import labels, sentence_transformers
from intformer.frontend.architectures import HEADS, head_of
from intformer.frontend.builder import Builder, Family
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import FAMILIES
from intformer.ir.graph import Graph
from intformer.relay_ops.attention import MAX_KEYS


def pick_head(checkpoint: Checkpoint, asked: str | None) -> tuple[str, str]:
    """Return (head, pooling); pooling is "mean" or "first" for sentence embeddings, else "".

    A sentence-transformers directory (modules.json) says its head unless asked otherwise.
    """
    config_file = str(checkpoint.path / "config.json")
    known = sorted({*HEADS.values(), "sentence-embedding"})
    if asked is not None and asked not in known:
        raise CheckpointError(f"head {asked!r} is not supported", hint="heads: " + ", ".join(known))
    saved = sentence_transformers.read(checkpoint, asked)
    if saved is not None:
        return saved.head, saved.pooling
    if asked is not None:
        return asked, ""
    named = architecture(checkpoint)
    if head := head_of(named):
        return head, ""
    raise CheckpointError(
        f"config key 'architectures' = {named!r} is not supported",
        where=config_file,
        hint="pass head= one of " + ", ".join(known),
    )


def architecture(checkpoint: Checkpoint) -> str:
    """Return the class of transformers that config.json names."""
    return str((checkpoint.setting("architectures", list, []) or ["Model"])[0])


def read_encoder(checkpoint: Checkpoint, head: str | None = None) -> tuple[Graph, dict]:
    """Return the float graph of a checkpoint and the part of IntModel.meta that comes from it.

    head  one of HEADS' values or "sentence-embedding"; None: what the directory says
    """
    family = family_of(checkpoint)
    name, pooling = pick_head(checkpoint, head)
    g = Builder(checkpoint, family)
    x = family.encoder(g)
    if name == "sentence-embedding":
        x = g.mean(x) if pooling == "mean" else g.first(x)
        for module in sentence_transformers.dense(checkpoint, name):
            x = g.module(x, module.linear(checkpoint), module.function)
    else:
        family.heads[name](g, x)
    graph = g.graph(name)
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
    checkpoint.refuse_unsupported()
    return family


def _meta(checkpoint: Checkpoint, family: Family, g: Builder, graph: Graph, pooling: str) -> dict:
    tables, limit = graph.tables, len(graph.tables.position) - g.first_position
    channels = graph[graph.output].channels
    return {
        "family": checkpoint.config["model_type"],
        "head": graph.head,
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
        "ffn": graph["layer0.act"].channels,
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
    return found
