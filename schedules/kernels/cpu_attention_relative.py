"""Attention with products of distances on a CPU: the kernel of cpu_attention with another stage.

No table of products is made and none is looked up: keys and queries of distances lie in memory
word by word (compiler/passes/packing.py), so that the vector at L - 1 + j - i has those of query i
and of neighbouring keys from j on. Both products are added to the scores where these are made.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH
from intformer.relay_ops import attention_bias, expr
from intformer.schedules.isa import Isa
from intformer.schedules.kernels.cpu_attention import (
    Recipe,
    Sizes,
    attend,
    score,
    sizes_of,
    word,
)


@dataclass(frozen=True)
class Tables:
    """Keys [heads, dim / 4, distances] and queries [heads, dim / 4 + 1, distances] of distances.

    keys, queries  buffers of int32
    """

    keys: object
    queries: object


def begun(size: Sizes, scores, tables: Tables, h, distance):
    """Return scores, less what the zero point of the keys adds to products with queries."""
    if size.isa.operand == "int8":
        return scores
    return scores + tables.queries[h, size.steps, size.span(distance)]


def related(size: Sizes, acc, tables: Tables, query, key, h, k, distance):
    """Return acc with the products of four channels: query . keys[r] + key . queries[r]."""
    keys = size.cast(tables.keys[h, k, size.span(distance)], size.isa.operand)
    queries = size.cast(tables.queries[h, k, size.span(distance)], "int8")
    acc = size.isa.dot(acc, keys, size.spread(query, "int8"))
    return size.isa.dot(acc, size.cast(key, size.isa.operand), queries)


@T.macro
def score_related(size, x, kp, scores, tables, start, last, h, block, groups):
    """Scores of eight query rows, as `score` makes them, and the products of their distances."""
    score(size, x, kp, scores, None, start, last, h, block, groups)
    acc = T.alloc_buffer((BLOCK * size.tiles * size.lanes,), "int32", annotations=expr.STACK)
    first = T.alloc_buffer((BLOCK,), "int32", annotations=expr.STACK)
    for i in T.serial(BLOCK):
        first[i] = size.longest - 1 - T.min(block * BLOCK + i, last - start)
    for g in T.serial(groups):
        for i in T.unroll(BLOCK):
            for u in T.unroll(size.tiles):
                acc[size.at(i * size.tiles + u)] = begun(
                    size,
                    scores[i, size.at(g * size.tiles + u)],
                    tables,
                    h,
                    first[i] + (g * size.tiles + u) * size.lanes,
                )
        for k in T.serial(size.steps):
            for i in T.unroll(BLOCK):
                for u in T.unroll(size.tiles):
                    acc[size.at(i * size.tiles + u)] = related(
                        size,
                        acc[size.at(i * size.tiles + u)],
                        tables,
                        word(x, T.min(start + block * BLOCK + i, last), h * size.dim + k * DEPTH),
                        kp[size.at((g * size.tiles + u) * size.steps + k)],
                        h,
                        k,
                        first[i] + (g * size.tiles + u) * size.lanes,
                    )
        for i in T.unroll(BLOCK):
            for u in T.unroll(size.tiles):
                scores[i, size.at(g * size.tiles + u)] = acc[size.at(i * size.tiles + u)]


def build(
    recipe: Recipe, attrs: dict, isa: Isa, decisions: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """Return the kernel (qkv, cu_seqlens, params, ctx_mult, ctx_shift, keys, queries, out).

    The arguments are those of cpu_attention.build.
    """
    size = sizes_of(attrs, isa, decisions)
    distances = attention_bias.columns(size.longest)

    @T.prim_func(s_tir=True)
    def kernel(
        qkv_: T.handle,
        cu_: T.handle,
        params_: T.handle,
        mult_: T.handle,
        shift_: T.handle,
        keys_: T.handle,
        queries_: T.handle,
        out_: T.handle,
    ):
        keys = T.match_buffer(keys_, (size.heads, size.steps, distances), "int32")
        queries = T.match_buffer(queries_, (size.heads, size.steps + 1, distances), "int32")
        attend(
            size,
            recipe,
            score_related,
            qkv_,
            cu_,
            params_,
            mult_,
            shift_,
            Tables(keys, queries),
            out_,
        )

    return kernel.with_attr(expr.APART, True)
