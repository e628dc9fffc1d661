"""One float description of every supported encoder, and its forward pass over packed tokens.

The forward pass is what calibration watches (named taps) and what accuracy is judged against.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

TANH_GELU = "gelu_tanh"
ACTIVATIONS = {  # config value -> the function it names
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": TANH_GELU,
    "gelu_fast": TANH_GELU,
    "gelu_pytorch_tanh": TANH_GELU,
    "relu": "relu",
    "tanh": "tanh",
}
POOLS = {  # pool -> what one row of the output stands for
    "token": "token",
    "first": "sequence",
    "mean": "sequence",
    "positions": "position",
}


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x @ weight.T + bias; weight float32 [N, K], bias float32 [N].

    parts  how many tensors of the checkpoint the rows are, all of one size
    """

    weight: np.ndarray
    bias: np.ndarray
    parts: int = 1


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the last axis; weight, bias float32 [C]."""

    weight: np.ndarray
    bias: np.ndarray
    eps: float


@dataclass(frozen=True, eq=False)
class Layer:
    """One post-LN layer. ALBERT's repetitions are the same object several times.

    qkv rows are query, key, value: weight [3C, C]
    """

    qkv: Linear
    out: Linear
    norm1: Norm
    ffn1: Linear
    ffn2: Linear
    norm2: Norm


@dataclass(frozen=True, eq=False)
class Dense:
    """One stage of a head: linear, then an activation, then a norm (each where present).

    tied  the weight is the word embedding
    """

    linear: Linear
    activation: str | None = None
    norm: Norm | None = None
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Head:
    """Rows picked or pooled from the last layer, then dense stages (none: the rows themselves)."""

    name: str
    pool: str
    stages: tuple[Dense, ...] = ()


@dataclass(frozen=True, eq=False)
class FloatEncoder:
    """An FP32 post-LN encoder.

    word [V, E], position [P, E], types [T, E] or None (a single type is folded into position);
    projection E -> C where the embeddings are narrower (then layer 0 reads it without a norm)
    """

    word: np.ndarray
    position: np.ndarray
    types: np.ndarray | None
    norm: Norm
    projection: Linear | None
    layers: tuple[Layer, ...]
    heads: int
    activation: str
    head: Head

    @property
    def hidden(self) -> int:
        """Channels of the residual stream."""
        return self.layers[0].out.weight.shape[0]

    def streams(self) -> list[str]:
        """Return the tap of the residual stream before every layer, and after the last."""
        embedded = "embed.norm" if self.projection is None else "embed.projection"
        return [embedded, *(f"layer{i}.norm2" for i in range(len(self.layers)))]

    def forward(
        self, inputs: dict[str, np.ndarray], tap=None, operand=None, start=None
    ) -> np.ndarray:
        """Run packed tokens in float32.

        inputs   as IntModel.run takes them
        tap      called with (name, float32 tensor [rows, channels]) at every place: embed.{sum,
                 norm,projection}, layerI.{qkv,context,out,sum1,norm1,ffn1,act,ffn2,sum2,norm2},
                 headI.{dense,act,norm}; a tensor that it returns takes the place of x
        operand  called with (name of the tap, what a matmul reads there) in the same way; what it
                 returns is read by the matmul alone, not by the residual
        start    (i, x): go on at layer i with the residual stream x, a torch tensor; None: at the
                 embeddings
        return   float32 [rows, channels]: what the compiled model's output stands for
        """
        import torch

        with torch.inference_mode():
            return _forward(self, inputs, tap or _watch, operand or _watch, start).numpy()


def _watch(name: str, x) -> None:
    """Change nothing: the hook of a plain run."""


def activate(x, name: str):
    """Apply one activation of ACTIVATIONS' values to a torch tensor."""
    from torch.nn import functional

    if name == "relu":
        return functional.relu(x)
    if name == "tanh":
        return x.tanh()
    return functional.gelu(x, approximate="tanh" if name == TANH_GELU else "none")


def _forward(model: FloatEncoder, inputs: dict, tap, operand, start):
    import torch
    from torch.nn import functional

    def linear(x, stage: Linear):
        return functional.linear(x, torch.from_numpy(stage.weight), torch.from_numpy(stage.bias))

    def norm(x, stage: Norm):
        weight, bias = torch.from_numpy(stage.weight), torch.from_numpy(stage.bias)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, stage.eps)

    def attention(qkv):
        q, k, v = qkv.chunk(3, dim=-1)
        context = torch.empty_like(q)
        for start, end in pairwise(bounds):
            heads = (
                t[start:end].unflatten(1, (model.heads, -1)).transpose(0, 1) for t in (q, k, v)
            )
            one = functional.scaled_dot_product_attention(*heads)
            context[start:end] = one.transpose(0, 1).flatten(1)
        return context

    def tapped(name, x):
        new = tap(name, x)
        return x if new is None else new

    def read(x):
        """What a matmul reads of the stream, which `source` names."""
        new = operand(source, x)
        return x if new is None else new

    def embedded():
        nonlocal source
        x = torch.from_numpy(model.word[ids])
        if model.types is not None:
            x = x + torch.from_numpy(model.types[inputs["token_type_ids"]])
        x = tapped("embed.sum", x + torch.from_numpy(model.position[positions]))
        x = tapped(source, norm(x, model.norm))
        if model.projection is not None:
            x = tapped("embed.projection", linear(read(x), model.projection))
            source = "embed.projection"
        return x

    ids, positions = inputs["input_ids"], inputs["position_ids"]
    bounds = inputs["cu_seqlens"].tolist()
    first, source = 0, "embed.norm"
    if start is None:
        x = embedded()
    else:
        first, x = start
        source = model.streams()[first]

    for i, layer in enumerate(model.layers[first:], first):
        at = f"layer{i}."
        qkv = tapped(at + "qkv", linear(read(x), layer.qkv))
        source = at + "context"
        context = tapped(source, attention(qkv))
        x = tapped(at + "sum1", tapped(at + "out", linear(read(context), layer.out)) + x)
        source = at + "norm1"
        x = tapped(source, norm(x, layer.norm1))
        ffn = tapped(at + "ffn1", linear(read(x), layer.ffn1))
        source = at + "act"
        ffn = tapped(source, activate(ffn, model.activation))
        x = tapped(at + "sum2", tapped(at + "ffn2", linear(read(ffn), layer.ffn2)) + x)
        source = at + "norm2"
        x = tapped(source, norm(x, layer.norm2))

    if model.head.pool == "mean":
        x = torch.stack([x[a:b].mean(0) for a, b in pairwise(bounds)])
    elif model.head.pool == "first":
        x = x[bounds[:-1]]
    elif model.head.pool == "positions":
        x = x[inputs["positions"].tolist()]
    for i, stage in enumerate(model.head.stages):
        at = f"head{i}."
        x = tapped(at + "dense", linear(read(x), stage.linear))
        if stage.activation:
            source = at + "act"
            x = tapped(source, activate(x, stage.activation))
        if stage.norm:
            source = at + "norm"
            x = tapped(source, norm(x, stage.norm))
    return x
