"""The training forward pass of recipe native: float32 that has the integers' values.

Rounded as the integer program rounds, at the present ranges: every operand of a matrix product (8
bits), weights, word rows, q, k, v and the context; GELU and tanh are the integer functions, softmax
has its 12-bit numerators. Left in float32, because the integers differ from it by less than a tenth
of an int8 step: LayerNorm (0.01), the 16-bit residual stream and its sums (1/128), position and
type rows (16 bits), the embedding sum (18 bits), logits (24 bits), bias (32 bits).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from intformer.ir.float_run import (
    activate,
    averaged,
    by_distance,
    mask_of,
    normalise,
    relative_operands,
    relative_scores,
    score_width,
    turned,
)
from intformer.ir.graph import Graph, Node, Relative, taken
from intformer.qat import fake_quant
from intformer.qat.packing import Tokens
from intformer.qat.ranges import Ranges, largest
from intformer.quantize.methods import SMALLEST
from intformer.quantize.native.scales import INT8_MAX, paired, split_scales
from intformer.relay_ops import i_gelu

TINY = 1e-20


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropout while training.

    hidden     of embeddings and of what is added to the residual
    attention  of softmax probabilities
    context    whether the attention's output is dropped too
    head       before each linear of the head
    gate       whether gated activations are dropped as what is added to the residual is
    """

    hidden: float = 0.0
    attention: float = 0.0
    context: bool = True
    head: tuple[float, ...] = ()
    gate: bool = False


class Simulation:
    """One forward pass.

    graph    of live parameters (torch tensors)
    ranges   read, and updated where `training`
    tables   form of i_gelu -> fake_quant.gelu_tables
    grain    "channel" or "tensor": what has one weight scale
    integers false: GELU, softmax and tanh stay float (as in Q8BERT)
    half     bfloat16: dtype of the matrix products under autocast to it; None: float32
    """

    def __init__(self, graph, ranges, tables, grain, integers, half, training, dropout):
        """Keep the parts."""
        self.graph: Graph = graph
        self.ranges: Ranges = ranges
        self.tables, self.grain, self.integers, self.half = tables, grain, integers, half
        self.training, self.dropout = training, dropout if training else Dropout()
        self.drops = drops(graph, self.dropout)
        operands = ("norm", "mul")
        self.keeps = {edge: 1 - p for edge, p in self.drops.items() if graph[edge].kind in operands}

    def run(self, tokens: Tokens) -> torch.Tensor:
        """Return the output of the last node, float32 [rows, channels]."""
        edges: dict[str, torch.Tensor] = {}
        for node in self.graph.nodes:
            read = [edges[name] for name in node.inputs if name in self.graph]
            made = SIMULATE[node.kind](self, node, tokens, *read)
            if self.training and node.name in self.ranges.taps:
                self.observe(node, made)
            p = self.drops.get(node.name, 0.0)
            edges[node.name] = functional.dropout(made, p) if p else made
        return made

    def observe(self, node: Node, made) -> None:
        """Let the ranges see an edge; what an integer function makes was seen by the function."""
        if not (node.kind == "act" and self.is_integer(node)):
            self.ranges.observe(node.name, made)

    def is_integer(self, node: Node) -> bool:
        """Say whether an activation is the integer one that needs its range first."""
        return self.integers and node.attrs["function"] not in ("relu", "tanh")

    # -- a function per kind --------------------------------------------------------------------

    def embed(self, node: Node, tokens: Tokens):
        """Sum of the tables' rows, those of the words rounded."""
        tables = node.params
        rows = functional.embedding(tokens.ids, tables.word)
        whole = None
        if self.grain == "tensor":
            whole = tables.word.detach().abs().amax() / INT8_MAX
        x = fake_quant.fake_rows(rows, whole)
        if tables.position is not None:
            x = x + functional.embedding(tokens.positions, tables.position)
        if tables.types is not None:
            x = x + functional.embedding(tokens.types, tables.types)
        return x

    def norm(self, node: Node, tokens: Tokens, x):
        """Apply a norm, in float."""
        norm = node.params
        return normalise(x, norm.weight, norm.bias, norm.eps, norm.rms)

    def linear(self, node: Node, tokens: Tokens, x):
        """Matrix product of an operand at the scale of the edge it comes from."""
        edge, linear = self.graph.source(node.inputs[0]), node.params
        keep = self.keeps.get(edge, 1.0)  # of a dropout that x went through after it was seen
        if p := self.head_dropout(node):
            x, keep = functional.dropout(x, p), keep * (1 - p)
        f = self.ranges.factor(node.stem)
        unit = (self.ranges.peak(edge) / f).amax().clamp(min=TINY) / INT8_MAX
        scale = f * (unit / keep)
        return fake_quant.QuantLinear.apply(
            x, linear.weight, linear.bias, scale, f, self.grain, linear.parts, self.half
        )

    def head_dropout(self, node: Node) -> float:
        """Return the probability before a linear of the head."""
        last = [n.name for n in self.graph.of_kind("linear")][-len(self.dropout.head) :]
        if node.name not in last or not self.dropout.head:
            return 0.0
        return self.dropout.head[last.index(node.name)]

    def act(self, node: Node, tokens: Tokens, x):
        """Apply an activation; its operand's scale says how fine i-GELU is."""
        function, x = node.attrs["function"], x[:, taken(node)]
        if not self.integers or function == "relu":
            return activate(x, function)
        if function == "tanh":
            return fake_quant.int_tanh(x)
        if self.training:  # of the float function: the integer one needs the range first
            self.ranges.observe(node.name, activate(x.detach(), function))
        peak = self.ranges.peak(node.name)
        reader = self.graph.linear_reader(node.name)
        if reader is None:
            top = 2 * peak.amax()
        else:
            f = self.ranges.factor(reader.stem)
            top = (peak / f).amax() * f.amax()
        form, stretch = i_gelu.FUNCTIONS[function]
        bits = fake_quant.gelu_bits(top * stretch, form)
        return fake_quant.IntGelu.apply(x, self.tables[form], bits, function)

    def add(self, node: Node, tokens: Tokens, term, stream):
        """Add a term to the residual."""
        return term + stream

    def mul(self, node: Node, tokens: Tokens, active, x):
        """Multiply an activation with the other half of what it reads."""
        return active * x[:, taken(node)]

    def rotary(self, node: Node, tokens: Tokens, qkv):
        """Turn queries and keys by their positions."""
        return turned(node, tokens.positions, qkv)

    def attention(self, node: Node, tokens: Tokens, qkv):
        """Attention of int8 queries, keys and values."""
        grid, heads, relative = tokens.grid, node.attrs["heads"], []
        bias = mask_of(node, grid.longest, qkv.device)
        if isinstance(node.params, Relative):
            relative = relative_operands(node.params, self.dropout.hidden)
        reached = (t if t is None else t.detach()[node.params.reached] for t in relative)
        s_q, s_k, s_v = self.qkv_scales(node.inputs[0], *reached)
        qkv = fake_quant.FakeQuant.apply(qkv, torch.cat([s_q, s_k, s_v]))
        factor = score_width(node) ** -0.5
        if relative:
            operands = [
                None if t is None else fake_quant.FakeQuant.apply(t, s).unflatten(1, (heads, -1))
                for t, s in zip(relative, (s_k, s_q), strict=True)
            ]
            q, k, _ = grid.unpack(qkv).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            at = by_distance(node.params.bucket, grid.longest).to(qkv.device)
            bias = relative_scores(q, k, *operands, at) * factor
        p = self.dropout.attention
        return fake_quant.Attention.apply(qkv, grid, heads, p, self.integers, bias, factor)

    def qkv_scales(self, edge: str, keys=None, queries=None):
        """Return the int8 scales of q, k and v, [C] each.

        keys, queries  of distances [T, C], which the scales hold too
        """
        peaks = self.ranges.peak(edge)
        peaks = torch.maximum(peaks, peaks.amax().clamp(min=TINY) * SMALLEST)
        q, k, v = peaks.chunk(3)
        if (node := self.graph[edge]).kind == "rotary":
            q, k = (paired(part, node.attrs["heads"]) for part in (q, k))
        if queries is not None:
            q = torch.maximum(q, largest(queries, 0))
        if keys is not None:
            k = torch.maximum(k, largest(keys, 0))
        return split_scales(q, k, v)[:3]

    def take(self, node: Node, tokens: Tokens, x):
        """Pick the first or the last row of each sequence."""
        if node.attrs.get("last"):
            return x.index_select(0, tokens.cu_seqlens[1:] - 1)
        return x.index_select(0, tokens.cu_seqlens[:-1])

    def mean(self, node: Node, tokens: Tokens, x):
        """Average the rows of each sequence."""
        grid, lengths = tokens.grid, tokens.cu_seqlens.diff()
        if "form" not in node.attrs:
            return grid.unpack(x).sum(1) / lengths[:, None]
        rows = grid.unpack(x)
        real = torch.arange(rows.shape[1], device=x.device) < lengths[:, None]
        return averaged(rows, real[..., None].to(x.dtype), node.attrs["form"])

    def max(self, node: Node, tokens: Tokens, x):
        """Take the largest of each sequence's rows."""
        return torch.segment_reduce(x, "max", offsets=tokens.cu_seqlens, axis=0)

    def concat(self, node: Node, tokens: Tokens, *parts):
        """Put channels side by side."""
        return torch.cat(parts, dim=1)


SIMULATE = {
    "embed": Simulation.embed,
    "norm": Simulation.norm,
    "linear": Simulation.linear,
    "act": Simulation.act,
    "add": Simulation.add,
    "mul": Simulation.mul,
    "rotary": Simulation.rotary,
    "attention": Simulation.attention,
    "take": Simulation.take,
    "mean": Simulation.mean,
    "max": Simulation.max,
    "concat": Simulation.concat,
}


def drops(graph: Graph, dropout: Dropout) -> dict[str, float]:
    """Return edge -> probability of the dropout behind it, the head's aside.

    Dropped are the embeddings, what is added to the residual and, in some families, gates.
    """
    if not dropout.hidden:
        return {}
    embedded = graph.of_kind("embed")[0].name
    readers = graph.readers(embedded)
    if len(readers) == 1 and readers[0].kind == "linear":  # a projection before the LayerNorm
        readers = graph.readers(readers[0].name)
    found = {readers[0].name if len(readers) == 1 else embedded: dropout.hidden}
    if dropout.gate:
        found |= {node.name: dropout.hidden for node in graph.of_kind("mul")}
    for node in graph.of_kind("add"):
        term = graph[node.inputs[0]]
        if dropout.context or graph[term.inputs[0]].kind != "attention":
            found[term.name] = dropout.hidden
    return found
