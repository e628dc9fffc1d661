"""A toy program for tests of the library builder and the runtime: embed, add, relu, scale.

Made with TVM by hand, so that these tests need nothing of the compiler.
"""

import functools
from pathlib import Path

import numpy as np

from intformer.ir.model import IntModel
from intformer.ir.plan import Buffer, Plan, Step, symbol

VOCAB, TYPES, LENGTH, CHANNELS, WIDTH = 50, 2, 12, 10, 16
META = {
    "family": "toy",
    "head": "features",
    "recipe": "native",
    "vocab_size": VOCAB,
    "type_vocab_size": TYPES,
    "max_length": LENGTH,
    "pad_token_id": 1,
    "position_rule": "column",
    "output_scale": 0.5,
}


def kernels(variant="x86-64", more=0):
    """The IRModule: x -> physical [nb, 8, W]; rows past n are 0.

    more  what the kernels of this variant add to the right result
    """
    import tvm
    from tvm import te

    n, nb, batch, p, pb = (te.var(v, "int32") for v in ("n", "nb", "batch", "p", "pb"))

    def vector(size, name):
        return te.placeholder((size,), "int32", name)

    def block(blocks, name):
        return te.placeholder((blocks, 8, WIDTH), "int32", name)

    def made(name, args, result, parallel=False):
        schedule = tvm.s_tir.Schedule(te.create_prim_func([*args, result]))
        loops = schedule.get_loops(schedule.get_sblock(result.op.name))
        if parallel:
            schedule.parallel(loops[0])
            if name == "scale":
                schedule.compute_at(schedule.get_sblock("wide"), loops[0])
        return schedule.mod["main"].with_attr("global_symbol", symbol(name, variant))

    def guarded(i, count, value):
        return tvm.tirx.if_then_else(i < count, value, 0)

    ids, types, positions = vector(n, "ids"), vector(n, "types"), vector(n, "positions")
    word = te.placeholder((VOCAB, WIDTH), "int16", "word")
    kind = te.placeholder((TYPES, WIDTH), "int16", "kind")
    place = te.placeholder((LENGTH, WIDTH), "int16", "place")

    def at(b, r):
        return tvm.tirx.min(b * 8 + r, n - 1)

    embed = te.compute(
        (nb, 8, WIDTH),
        lambda b, r, c: guarded(
            b * 8 + r,
            n,
            word[ids[at(b, r)], c].astype("int32")
            + kind[types[at(b, r)], c].astype("int32")
            + place[positions[at(b, r)], c].astype("int32"),
        ),
        "embed",
    )
    x, y = block(nb, "x"), block(nb, "y")
    add = te.compute((nb, 8, WIDTH), lambda *i: x(*i) + y(*i), "add")
    relu = te.compute((nb, 8, WIDTH), lambda *i: te.max(x(*i), 0), "relu")
    factor = te.placeholder((1,), "int32", "factor")
    # 64 KiB a block: goes through the workspace hook
    wide = te.compute((nb, 8, WIDTH, 64), lambda b, r, c, k: x[b, r, c] * factor[0] + k, "wide")
    scale = te.compute(
        (nb, 8, WIDTH), lambda b, r, c: wide[b, r, c, 63 - c] - 63 + c + more, "scale"
    )
    offsets = te.placeholder((batch,), "int32", "offsets")
    first = te.compute(
        (pb, 8, WIDTH),
        lambda b, r, c: guarded(
            b * 8 + r,
            batch - 1,
            x[
                offsets[tvm.tirx.min(b * 8 + r, batch - 2)] // 8,
                offsets[tvm.tirx.min(b * 8 + r, batch - 2)] % 8,
                c,
            ],
        ),
        "first",
    )
    index = vector(p, "index")
    pick = te.compute(
        (pb, 8, WIDTH),
        lambda b, r, c: guarded(
            b * 8 + r,
            p,
            x[
                index[tvm.tirx.min(b * 8 + r, p - 1)] // 8,
                index[tvm.tirx.min(b * 8 + r, p - 1)] % 8,
                c,
            ],
        ),
        "pick",
    )
    narrow = te.placeholder((nb, 8, 32), "int32", "narrow")
    broken = te.compute((nb, 8, 32), lambda *i: narrow(*i), "broken")
    return tvm.IRModule(
        {
            "embed": made("embed", [ids, types, positions, word, kind, place], embed),
            "add": made("add", [x, y], add, True),
            "relu": made("relu", [x], relu, True),
            "scale": made("scale", [x, factor], scale, True),
            "first": made("first", [x, offsets], first),
            "pick": made("pick", [x, index], pick),
            "broken": made("broken", [narrow], broken),
        }
    )


@functools.cache
def compiled(variant: str = "x86-64", more: int = 0):
    """The kernels as a TVM executable for any x86-64 CPU, whatever the variant is called."""
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    return tvm.compile(kernels(variant, more), target=target)


def object_file(folder: Path, variant: str = "x86-64", more: int = 0) -> Path:
    """Write the kernels' object file."""
    path = Path(folder) / f"toy-{variant}-{more}.o"
    compiled(variant, more).mod.write_to_file(str(path), "o")
    return path


def tables(seed: int) -> dict[str, np.ndarray]:
    """Random constants."""
    rng = np.random.default_rng(seed)

    def table(rows):
        return rng.integers(-1000, 1000, (rows, WIDTH)).astype(np.int16)

    return {
        "word": table(VOCAB),
        "kind": table(TYPES),
        "place": table(LENGTH),
        "factor": np.array([3 + seed], np.int32),
    }


def plan(seed: int = 0, rows: str = "token", inputs: tuple[str, ...] = ()) -> Plan:
    """relu(e + e) * factor, channels reversed; for all tokens, first tokens or chosen ones."""
    reverse = np.arange(CHANNELS)[::-1].copy()
    names = ("e", "twice", "positive", "scaled")
    tables_of_embed = ("word", "kind", "place")
    tokens = ("input_ids", "token_type_ids", "position_ids")
    buffers = {name: Buffer(name, "int32", "token", WIDTH, WIDTH) for name in names}
    steps = [
        Step("embed", (*tokens, *tables_of_embed, "e"), ("e",)),
        Step("add", ("e", "e", "twice"), ("twice",)),
        Step("relu", ("twice", "positive"), ("positive",)),
        Step("scale", ("positive", "factor", "scaled"), ("scaled",)),
    ]
    output = "scaled"
    if rows != "token":
        kernel, index = ("first", "cu_seqlens") if rows == "sequence" else ("pick", "positions")
        output = "taken"
        buffers[output] = Buffer(output, "int32", rows, WIDTH, WIDTH)
        steps.append(Step(kernel, ("scaled", index, output), (output,)))
        inputs = (*inputs, index)
    buffers[output] = Buffer(output, "int32", rows, WIDTH, CHANNELS, channel_map=reverse)
    return Plan(
        steps=steps,
        buffers=buffers,
        constants=tables(seed),
        packing={"word": {"kind": "rows"}},
        output=output,
        inputs=(*tokens, *inputs),
    )


def model(seed: int = 0, **meta) -> IntModel:
    """What is carried along; the graph has no nodes."""
    return IntModel(
        nodes=[],
        tensors=tables(seed),
        values={},
        output="scaled",
        meta={**META, **meta},
        files={"tokenizer.json": b"{}"},
    )


def expected(
    seed: int,
    input_ids: np.ndarray,
    cu_seqlens: np.ndarray,
    token_type_ids: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
) -> np.ndarray:
    """What a token-rows library returns, int32 [n, CHANNELS]."""
    t = tables(seed)
    if position_ids is None:
        lengths = np.diff(cu_seqlens)
        position_ids = np.concatenate([np.arange(length) for length in lengths])
    if token_type_ids is None:
        token_type_ids = np.zeros_like(input_ids)
    e = t["word"][input_ids].astype(np.int32) + t["kind"][token_type_ids] + t["place"][position_ids]
    return (np.maximum(2 * e, 0) * t["factor"][0])[:, :CHANNELS][:, ::-1]


def batch(seed: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random (input_ids int32 [n], cu_seqlens int32 [len(lengths) + 1])."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.random.default_rng(seed).integers(0, VOCAB, offsets[-1]).astype(np.int32)
    return ids, offsets
