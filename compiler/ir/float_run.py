"""The float graph in float32, over packed tokens: what calibration observes and accuracy means."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from intformer.ir.graph import TANH_GELU, Bias, Graph, Node, Relative, taken
from intformer.relay_ops.i_gelu import QUICK
from intformer.relay_ops.weighted_pool import MEAN_SQRT, WEIGHTED_MEAN

UNSEEN = -1e30  # added to the score of a key outside the window

Hook = Callable[[str, object], object]


def run(
    graph: Graph,
    inputs: dict[str, np.ndarray],
    tap: Hook | None = None,
    operand: Hook | None = None,
    start: tuple[str, object] | None = None,
) -> np.ndarray:
    """Run packed tokens in float32.

    inputs   as IntModel.run takes them; float32 [rows, channels] for a node of kind input
    tap      called with (edge, float32 tensor [rows, channels]) as each edge is made; a tensor that
             it returns takes the place of the edge
    operand  called with (edge, what a linear reads there) in the same way; what it returns is read
             by that linear alone, not by the residual
    start    (edge, x): one of Graph.cuts and its torch tensor, to go on from
    Returns float32 [rows, channels]: what the compiled model's output stands for.
    """
    import torch

    with torch.inference_mode():
        return _run(graph, inputs, tap or _watch, operand or _watch, start).numpy()


def _watch(edge: str, x) -> None:
    """Change nothing: the hook of a plain run."""


def _run(graph: Graph, inputs: dict, tap: Hook, operand: Hook, start):
    edges: dict[str, object] = {}
    nodes = graph.nodes
    if start is not None:
        edges[start[0]] = start[1]
        nodes = nodes[1 + nodes.index(graph[start[0]]) :]
    last = {name: node for node in nodes for name in node.inputs}  # memory: drop what is read
    for node in nodes:
        read = [edges[name] for name in node.inputs if name in graph]
        if node.kind == "linear":
            new = operand(graph.source(node.inputs[0]), read[0])
            read[0] = read[0] if new is None else new
        made = RUN[node.kind](node, inputs, *read)
        if node.kind != "take":
            new = tap(node.name, made)
            made = made if new is None else new
        edges[node.name] = made
        for name in node.inputs:
            if last[name] is node:
                edges.pop(name, None)
    return edges[graph.output]


def arithmetic() -> str:
    """Return what decides the order in which this machine adds float32 numbers, in words.

    Where it differs, the last digits of what `run` returns may differ.
    """
    import torch

    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def activate(x, function: str):
    """Apply one of ACTIVATIONS' values to a torch tensor."""
    from torch.nn import functional

    if function == "relu":
        return functional.relu(x)
    if function == "tanh":
        return x.tanh()
    if function == "silu":
        return functional.silu(x)
    if function == "quick_gelu":
        return x * (QUICK * x).sigmoid()
    return functional.gelu(x, approximate="tanh" if function == TANH_GELU else "none")


def _input(node: Node, inputs: dict):
    import torch

    return torch.from_numpy(inputs[node.name])


def _embed(node: Node, inputs: dict):
    import torch

    tables = node.params
    x = torch.from_numpy(tables.word[inputs["input_ids"]])
    if tables.types is not None:
        x = x + torch.from_numpy(tables.types[inputs["token_type_ids"]])
    if tables.position is not None:
        x = x + torch.from_numpy(tables.position[inputs["position_ids"]])
    return x


def _norm(node: Node, inputs: dict, x):
    import torch

    norm = node.params
    weight, bias = torch.from_numpy(norm.weight), torch.from_numpy(norm.bias)
    return normalise(x, weight, bias, norm.eps, norm.rms)


def normalise(x, weight, bias, eps: float, rms: bool):
    """Apply a norm to rows; tensors of torch."""
    from torch.nn import functional

    if rms:
        return functional.rms_norm(x, x.shape[-1:], weight, eps) + bias
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _linear(node: Node, inputs: dict, x):
    import torch
    from torch.nn import functional

    weight, bias = torch.from_numpy(node.params.weight), torch.from_numpy(node.params.bias)
    return functional.linear(x, weight, bias)


def _act(node: Node, inputs: dict, x):
    return activate(x[:, taken(node)], node.attrs["function"])


def _mul(node: Node, inputs: dict, active, x):
    return active * x[:, taken(node)]


def _rotary(node: Node, inputs: dict, qkv):
    import torch

    return turned(node, torch.from_numpy(inputs["position_ids"]), qkv)


def turned(node: Node, position_ids, qkv):
    """Return [n, 3C] of a node of kind rotary; tensors of torch, differentiable."""
    import torch

    cos, sin = (
        torch.as_tensor(table, dtype=torch.float32, device=qkv.device)[position_ids.long()]
        for table in (node.params.cos, node.params.sin)
    )
    cos, sin = cos[:, None, None], sin[:, None, None]
    parts = qkv.unflatten(1, (3, node.attrs["heads"], 2, -1))
    first, second = parts[:, :2, :, 0], parts[:, :2, :, 1]
    both = torch.stack([first * cos - second * sin, second * cos + first * sin], 3)
    return torch.cat([both, parts[:, 2:]], 1).flatten(1)


def _add(node: Node, inputs: dict, term, stream):
    return term + stream


def _attention(node: Node, inputs: dict, qkv):
    import torch
    from torch.nn import functional

    q, k, v = qkv.chunk(3, dim=-1)
    context, heads = torch.empty_like(q), node.attrs["heads"]
    if isinstance(node.params, Relative):
        bucket = node.params.bucket
        operands = [
            None if t is None else t.unflatten(1, (heads, -1))
            for t in relative_operands(node.params)
        ]
    for start, end in pairwise(inputs["cu_seqlens"].tolist()):
        parts = [t[start:end].unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v)]
        mask, scale = mask_of(node, end - start, qkv.device), 1 / math.sqrt(score_width(node))
        if isinstance(node.params, Relative):
            found = relative_scores(*parts[:2], *operands, by_distance(bucket, end - start))
            mask = found * scale
        one = functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
        context[start:end] = one.transpose(0, 1).flatten(1)
    return context


def mask_of(node: Node, length: int, device):
    """Return what attention adds to scores, float32 [heads or 1, length, length]; None: nothing.

    Keys outside the window get UNSEEN, which is finite: softmax of nothing else is no NaN.
    """
    bias, window = node.params, node.attrs.get("window")
    mask = by_distance(bias.table, length) if isinstance(bias, Bias) else None
    if window is not None:
        outside = beyond(window, length, device)[None] * UNSEEN
        mask = outside if mask is None else mask + outside
    return mask


def beyond(window: int, length: int, device):
    """Say which keys no query sees through a window, torch bool [length, length]."""
    import torch

    at = torch.arange(length, device=device)
    return (at[None, :] - at[:, None]).abs() > window


def score_width(node: Node) -> int:
    """Return whose root an attention node's scores are divided by: channels, times products."""
    terms = node.params.terms if isinstance(node.params, Relative) else 1
    return node.channels // node.attrs["heads"] * terms


def relative_operands(relative: Relative, drop: float = 0.0, precise: bool = False) -> tuple:
    """Return the keys and the queries of Relative's rows, torch [T, C]; None for one it has not.

    drop     probability of dropout before the projections
    precise  in float64, whose sums round to the same float32 on every machine
    """
    import torch
    from torch.nn import functional

    dtype = torch.float64 if precise else torch.float32

    def tensors(*arrays):
        return [torch.as_tensor(array, dtype=dtype) for array in arrays]

    (rows,), norm = tensors(relative.rows), relative.norm
    if norm is not None:
        affine = tensors(norm.weight, norm.bias)
        rows = functional.layer_norm(rows, rows.shape[-1:], *affine, norm.eps)
    if drop:
        rows = functional.dropout(rows, drop)
    return tuple(
        None if one is None else functional.linear(rows, *tensors(one.weight, one.bias))
        for one in (relative.key, relative.query)
    )


def relative_scores(q, k, keys, queries, at):
    """Return q . keys[r] + k . queries[r], torch [..., heads, L, L] of query i and key j.

    q, k           [..., heads, L, D]
    keys, queries  [T, heads, D], or None: no such term
    at             int64 [L, L]: the row r of query i and key j
    """
    shape = (*q.shape[:-1], len(at))
    total = q.new_zeros(shape)
    if keys is not None:
        total = total + (q @ keys.permute(1, 2, 0)).gather(-1, at.expand(shape))
    if queries is not None:
        per_key = (k @ queries.permute(1, 2, 0)).gather(-1, at.T.expand(shape))
        total = total + per_key.transpose(-1, -2)
    return total


def by_distance(table, length: int):
    """Return what a table by distance, [..., 2 L - 1], has for every query and key, torch."""
    import torch

    table = torch.as_tensor(table)
    at = torch.arange(length, device=table.device)
    return table[..., table.shape[-1] // 2 + at[None, :] - at[:, None]]


def _take(node: Node, inputs: dict, x):
    index = inputs[node.inputs[1]].tolist()
    if node.attrs.get("last"):
        return x[[end - 1 for end in index[1:]]]
    return x[index[:-1] if node.attrs["rows"] == "sequence" else index]


def _mean(node: Node, inputs: dict, x):
    import torch

    cuts = list(pairwise(inputs["cu_seqlens"].tolist()))
    if form := node.attrs.get("form"):
        return torch.stack([averaged(x[a:b], torch.ones(b - a, 1), form) for a, b in cuts])
    return torch.stack([x[a:b].mean(0) for a, b in cuts])


def _max(node: Node, inputs: dict, x):
    import torch

    return torch.stack([x[a:b].amax(0) for a, b in pairwise(inputs["cu_seqlens"].tolist())])


def _concat(node: Node, inputs: dict, *parts):
    import torch

    return torch.cat(parts, dim=1)


def averaged(x, mask, form: str):
    """Return a form of mean over the last axis but one; tensors of torch.

    x     [..., length, channels]
    mask  [..., length, 1]: 1 where a token is; padding is on the right
    form  "mean", "mean_sqrt" or "weighted_mean"
    """
    if form == WEIGHTED_MEAN:
        mask = mask.cumsum(-2) * mask
    total = mask.sum(-2)
    return (x * mask).sum(-2) / (total**0.5 if form == MEAN_SQRT else total)


def pooled(x, mask, pooling: str):
    """Return one row per sequence of a padded batch, [batch, channels]; tensors of torch.

    x        [batch, length, channels]
    mask     int64 [batch, length]: 1 where a token is; padding is on the right
    pooling  "mean", "mean_sqrt", "weighted_mean", "max", "first" or "last"; or several of them
             with "+" between, whose channels are side by side
    """
    import torch

    return torch.cat([_pooled(x, mask, one) for one in pooling.split("+")], dim=-1)


def _pooled(x, mask, pooling: str):
    if pooling == "first":
        return x[:, 0]
    if pooling == "last":
        return x[range(len(x)), mask.sum(1) - 1]
    mask = mask.unsqueeze(-1)
    if pooling == "max":
        return x.masked_fill(mask == 0, -np.inf).amax(1)
    return averaged(x, mask, pooling)


RUN = {
    "input": _input,
    "embed": _embed,
    "norm": _norm,
    "linear": _linear,
    "act": _act,
    "add": _add,
    "mul": _mul,
    "rotary": _rotary,
    "attention": _attention,
    "take": _take,
    "mean": _mean,
    "max": _max,
    "concat": _concat,
}
