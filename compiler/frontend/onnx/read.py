"""An ONNX file becomes a float graph and its meta, and the graph is held against the file."""

from dataclasses import replace

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibration, sentence_transformers
from intformer.frontend.architectures import head_named
from intformer.frontend.encoder import About, about_meta
from intformer.frontend.onnx import file, integers, modules, outputs, probe, rewrites
from intformer.frontend.onnx.attention import SAME
from intformer.frontend.onnx.build import Builder
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint
from intformer.frontend.onnx.outputs import Answer
from intformer.frontend.onnx.program import Program
from intformer.frontend.onnx.walk import Walk
from intformer.ir import heads
from intformer.ir.float_run import run
from intformer.ir.graph import Bias, Graph
from intformer.ir.heads import Head
from intformer.quantize.methods import TINY
from intformer.relay_ops.attention import MAX_KEYS
from intformer.runtime.edge import l2_normalised

CLOSE = 1e-3  # of the largest output: float32 sums of another order stay far below
CONFIG = {  # config keys that must agree with the file where they are there -> meta key
    "num_hidden_layers": "layers",
    "n_layers": "layers",
    "num_attention_heads": "heads",
    "n_heads": "heads",
    "hidden_size": "hidden",
    "dim": "hidden",
    "vocab_size": "vocab_size",
}


def read(checkpoint: OnnxCheckpoint, head: str | None) -> tuple[Graph, dict]:
    """Return the graph of an ONNX file and the part of IntModel.meta that comes from it."""
    program = rewrites.rewritten(file.read(checkpoint.file_path))
    probe.check_inputs(program)
    pad = checkpoint.setting("pad_token_id", int, 0, least=0)
    walk = Walk(probe.trace(program, probe.make(program, pad)))
    views = walk.run()
    found = outputs.answers(walk.builder, views)
    answering = _head(checkpoint, head, found)
    rule, pad = _positions(checkpoint, walk.builder)
    limit = _limited(program, walk.builder, rule, pad)
    check_longest(program, walk.builder, limit)
    given = outputs.source(found, answering)
    prove(program, walk.builder, given, rule, pad)
    answer, pooling, normalize = _finished(checkpoint, walk.builder, found, answering)
    if answering is heads.SENTENCE_EMBEDDING and given is found.get(heads.FEATURES):
        _refuse_others(checkpoint, outputs.other_embeddings(walk.builder, views, answer))
    for one in (given, answer):
        outputs.check_single(one, answering, program.where)
    graph = outputs.graph(walk.builder, answer.edge, answering)
    meta = _meta(checkpoint, graph, pooling, limit, (rule, pad))
    meta["normalize"] = meta["normalize"] or normalize
    meta["source_integers"] = integers.report(graph)
    meta["source_scales"] = integers.report_scales(graph, program)
    left = [name for name in program.outputs if name not in found_names(answer, program)]
    if left:
        meta["warnings"].append(f"ONNX outputs that are left out: {', '.join(left)}")
    return graph, meta


def found_names(answer: Answer, program: Program) -> set[str]:
    """Return the outputs that an answer gives, or that are inputs again."""
    copies = {
        n.outputs[0] for n in program.nodes if n.op == "Identity" and n.inputs[0] in program.inputs
    }
    return {*answer.names, *copies}


def _head(checkpoint: OnnxCheckpoint, asked: str | None, found: dict[Head, Answer]) -> Head:
    """Return the head that is asked for, or that the directory or the file has."""
    wanted = None if asked is None else heads.named(asked)
    saved = sentence_transformers.read(checkpoint, wanted)
    architecture = (checkpoint.setting("architectures", list, []) or [""])[0]
    head = wanted or (saved.head if saved else None)
    return outputs.chosen(found, head, head_named(str(architecture)), str(checkpoint.file_path))


def _finished(
    checkpoint: OnnxCheckpoint, builder: Builder, found: dict[Head, Answer], head: Head
) -> tuple[Answer, str, bool]:
    """Return the answer of a head, its pooling, and whether the file normalises it."""
    answer = outputs.source(found, head)
    saved = sentence_transformers.read(checkpoint, head)
    if not head.embeds:
        return answer, "", False
    listed = checkpoint.root / sentence_transformers.MODULES
    if heads.FEATURES in found and (listed.exists() or not answer.pooling):
        answer = found[heads.FEATURES]
        edge = modules.pooled(builder, answer.edge, saved.pooling)
        for module in saved.modules:
            weights = module.weights(checkpoint)
            edge = modules.stage(builder, edge, weights, module.function, str(checkpoint.root))
        return replace(answer, edge=edge), saved.pooling, False
    if listed.exists() and (saved.modules or saved.pooling != answer.pooling):
        raise CheckpointError(
            f"the file pools by {answer.pooling!r}, the modules of the directory do otherwise",
            where=str(listed),
            hint="export the token embeddings",
        )
    return answer, answer.pooling, answer.normalize


def _refuse_others(checkpoint: OnnxCheckpoint, names: list[str]) -> None:
    """Raise for embeddings that are not understood, where no module says how to pool."""
    listed = checkpoint.root / sentence_transformers.MODULES
    if names and not listed.exists():
        raise CheckpointError(
            f"the ONNX output {names[0]!r} has a vector for each text, made in a way that is not "
            "supported",
            where=str(checkpoint.file_path),
            hint="export the token embeddings alone, or put modules.json and its folders beside it",
        )


def _positions(checkpoint: OnnxCheckpoint, builder: Builder) -> tuple[str, int]:
    """Return (rule, padding id)."""
    rule, pad = builder.position
    given = checkpoint.setting("pad_token_id", int, pad, least=0)
    if rule == "padding" and given != pad:
        raise CheckpointError(
            f"config key 'pad_token_id' = {given}, positions in the ONNX file start behind {pad}",
            where=str(checkpoint.path / "config.json"),
            hint="correct config.json, or leave the key out",
        )
    return rule, given


def _limited(program: Program, builder: Builder, rule: str, pad: int) -> int:
    """Give attention its biases, and cut the positions; returns the most tokens of a sequence."""
    first = pad + 1 if rule == "padding" else 0
    embed = next(node for node in builder.nodes.values() if node.kind == "embed")
    table = embed.params.position[: first + MAX_KEYS]
    if len(table) <= first:
        raise CheckpointError("the position table has no row for a token", where=program.where)
    given = dict(embed.params.given)
    if "position" in given:
        given["position"] = integers.rows_of(given["position"], slice(len(table)))
    params = replace(embed.params, position=table, given=given)
    builder.nodes[embed.name] = replace(embed, params=params)
    biases: dict[str, Bias] = {}
    for name, value in builder.biases.items():
        if value not in biases:
            biases[value] = _bias(program, value, len(table) - first)
        builder.nodes[name] = replace(builder.nodes[name], params=biases[value])
    return len(table) - first


def _bias(program: Program, value: str, length: int) -> Bias:
    """Return the bias by head and distance that a value adds to scores."""
    one = probe.make(program, lengths=(length,))
    array = program.evaluate(one.feeds(program), [value])[value]
    array = array.reshape(array.shape[-3:])
    rows, columns = array.shape[1:]
    if rows != length or columns != length:
        raise CheckpointError(
            f"the bias of attention {value!r} has the shape {list(array.shape)}",
            where=program.where,
        )
    table = np.concatenate([array[:, ::-1, 0], array[:, 0, 1:]], 1)
    for i in range(length):
        if not np.array_equal(array[:, i], table[:, length - 1 - i : 2 * length - 1 - i]):
            raise CheckpointError(
                f"the bias of attention {value!r} does not depend on the distance alone",
                where=program.where,
            )
    return Bias(np.ascontiguousarray(table))


def _meta(
    checkpoint: OnnxCheckpoint,
    graph: Graph,
    pooling: str,
    limit: int,
    positions: tuple[str, int],
) -> dict:
    rule, pad = positions
    attention = graph.of_kind("attention")
    acts = graph.of_kind("act")
    if not attention or not acts:
        raise CheckpointError(
            "no attention or no feed-forward layer was found", where=str(checkpoint.file_path)
        )
    about = About(
        family=str(checkpoint.config.get("model_type") or "onnx"),
        position_rule=rule,
        pad=pad,
        hidden=attention[0].channels,
        heads=int(attention[0].attrs["heads"]),
        activation=str(acts[0].attrs["function"]),
        limit=limit,
        warnings=[],
    )
    checkpoint.takes_types = graph.tables.types is not None
    meta = about_meta(checkpoint, about, graph, pooling)
    for key, ours in CONFIG.items():
        given = checkpoint.config.get(key)
        if given is not None and given != meta[ours]:
            raise CheckpointError(
                f"config key {key!r} = {given}, the ONNX file has {meta[ours]}",
                where=str(checkpoint.path / "config.json"),
                hint="it belongs to another model",
            )
    checkpoint.config.setdefault("vocab_size", meta["vocab_size"])
    return meta


def check_longest(program: Program, builder: Builder, length: int) -> None:
    """Raise unless the longest sequence counts its positions and sees all of its keys.

    The probes are short: a window of attention is wider than they are. Of the file only masks and
    positions are evaluated, which no weight is in.
    """
    one = probe.make(program, lengths=(length,))
    values = program.evaluate(one.feeds(program), {*builder.masks, *builder.places})
    for name, plain in builder.masks.items():
        if np.abs(values[name] - np.float64(plain)).max() > SAME:
            raise CheckpointError(
                f"attention of {length} tokens leaves some out, by {name!r}",
                where=program.where,
                hint="windows are read from directories of model types that have them",
            )
    for name in builder.places:
        at = np.ravel(values[name])
        if not np.array_equal(at, at[0] + np.arange(length)):
            raise CheckpointError(
                f"{name!r} does not count the positions of {length} tokens", where=program.where
            )


# -- proof -----------------------------------------------------------------------------------------


def prove(program: Program, builder: Builder, answer: Answer, rule: str, pad: int) -> None:
    """Raise unless the graph gives what the file gives, on batches that it was not read from.

    The file is taken without its roundings. One batch has padding ids between the others.
    """
    graph = outputs.graph(builder, answer.edge, heads.FEATURES)
    meta = {"position_rule": rule, "pad_token_id": pad, "head": heads.FEATURES.name}
    for seed, inner in ((1, ()), (2, (pad,))):
        one = probe.make(program, pad, seed, (5, 9, 2), inner)
        found = run(graph, calibration.pack(one.sequences(), meta))
        if answer.normalize:
            found = l2_normalised(found)
        values = program.evaluate(one.feeds(program), answer.names)
        arrays = [values[name] for name in answer.names]
        wanted = np.stack(arrays, -1) if len(arrays) > 1 else arrays[0]
        wanted = (wanted[one.real] if len(found) == one.real.sum() else wanted).reshape(found.shape)
        off = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), TINY))
        if not off <= CLOSE:
            raise CheckpointError(
                f"read as an encoder, the file gives other numbers: {off:.2g} of the largest off",
                where=program.where,
                hint="its masks or positions are not those of a known encoder",
            )
