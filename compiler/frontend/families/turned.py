"""What encoders with rotary positions and layers that normalise after each sum share.

Their weights have two spellings: that of the hub's directories, which transformers writes too, and
that of its modules.
"""

from dataclasses import dataclass

from intformer.errors import CheckpointError
from intformer.frontend import rope
from intformer.frontend.builder import Builder
from intformer.ir.graph import Bias, Rotary


@dataclass(frozen=True)
class Spelling:
    """Keys of an encoder's weights.

    layers  stem of the layers; what follows lies below one of them
    qkv     one key for all three, or three
    ffn1    of the first linear layers, those of a gated MLP in the order of their halves
    norm    of the embeddings
    """

    norm: str
    layers: str
    qkv: tuple[str, ...]
    out: str
    norm1: str
    ffn1: tuple[str, ...]
    ffn2: str
    norm2: str


@dataclass(frozen=True)
class Biases:
    """Which linear layers add a bias."""

    attention: bool
    ffn1: bool
    ffn2: bool


def of_modules(*ffn: str) -> Spelling:
    """Return the spelling of transformers' modules; keys of the MLP, the last one is ffn2."""
    return Spelling(
        norm="embeddings.LayerNorm",
        layers="layers",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        norm1="post_attention_layernorm",
        ffn1=ffn[:-1],
        ffn2=ffn[-1],
        norm2="post_mlp_layernorm",
    )


def spelled(g: Builder, *spellings: Spelling) -> Spelling:
    """Return the spelling that the directory has; the first one where it has none of them."""
    found = (one for one in spellings if g.has(f"{one.layers}.0.{one.out}"))
    return next(found, spellings[0])


def embed(g: Builder, norm: str) -> str:
    """Add embeddings without positions, and their norm; config.json says whether types have any."""
    types = g.checkpoint.setting("type_vocab_size", int, 1, least=0) > 0
    return g.norm("embed.norm", g.embed(positions=False, types=types), norm)


def layers(
    g: Builder,
    x: str,
    keys: Spelling,
    biases: Biases,
    table: Rotary | None,
    active: int | None = 1,
    bias: Bias | None = None,
) -> str:
    """Add all layers behind the embeddings.

    table   of rotary positions; None: there are none
    active  which half of a gated MLP is activated; None: it is not gated
    bias    of attention
    """
    for at in g.layers(g.numbered(keys.layers)):
        parts = 3 // len(keys.qkv)
        qkv = at.linear("qkv", x, *keys.qkv, outputs=g.hidden, bias=biases.attention, parts=parts)
        if table is not None:
            qkv = at.rotary("turned", qkv, table)
        y = at.attention("context", qkv, bias)
        y = at.linear("out", y, keys.out, outputs=g.hidden, bias=biases.attention)
        x = at.norm("norm1", at.add("sum1", y, x), keys.norm1)
        y = feed_forward(at, x, keys, biases.ffn1, active)
        y = at.linear("ffn2", y, keys.ffn2, outputs=g.hidden, bias=biases.ffn2)
        x = at.norm("norm2", at.add("sum2", y, x), keys.norm2)
    return x


def feed_forward(at: Builder, x: str, keys: Spelling, bias: bool, active: int | None) -> str:
    """Add the first part of an MLP: linear layers, and what activates them."""
    if active is None:
        return at.act("act", at.linear("ffn1", x, *keys.ffn1, bias=bias))
    parts = 2 // len(keys.ffn1)
    return at.gate("gate", at.linear("ffn1", x, *keys.ffn1, bias=bias, parts=parts), active)


def table(g: Builder, theta: float, kinds: tuple[str, ...] = rope.KINDS) -> Rotary:
    """Return the rotary positions of config.json, of known kinds; theta where it does not say."""
    return rope.read(g.checkpoint, theta, head_dim(g), g.limit, kinds)


def head_dim(g: Builder) -> int:
    """Return the channels of a head, all of which are turned; raise where config.json differs."""
    size, where = g.hidden // g.heads, str(g.checkpoint.path / "config.json")
    if (given := g.checkpoint.setting("head_dim", int, size)) != size:
        raise CheckpointError(
            f"config key 'head_dim' = {given} is not supported",
            where=where,
            hint=f"{g.heads} heads share the hidden size {g.hidden}: {size} each",
        )
    if (given := g.checkpoint.setting(rope.PARTIAL, float, 1.0)) != 1:
        raise CheckpointError(
            f"config key {rope.PARTIAL!r} = {given} is not supported",
            where=where,
            hint=rope.WHOLE,
        )
    return size
