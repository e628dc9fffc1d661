"""What a model_type is: its encoder, its heads, and how its config.json and weights are spelled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intformer.frontend.weights import WORD
from intformer.ir.heads import Head

if TYPE_CHECKING:
    from intformer.frontend.builder import Builder

CONFIG_KEYS = {  # what we call it -> config key
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "activation": "hidden_act",
}
HeadBuilder = Callable[["Builder", str], str]  # adds a head behind an edge; returns its last edge


@dataclass(frozen=True)
class DropoutKeys:
    """Keys of config.json for dropout in training.

    hidden     of embeddings and of what is added to the residual
    attention  of softmax probabilities
    default    of both where config.json does not say
    attention_default  of probabilities alone, where it differs from that
    others     keys of probabilities that training does not know: they must be 0
    heads      head -> (key, default) of its own probability, default None: that of `hidden`; the
               others have classifier_dropout or, where config.json does not say, that of `hidden`
    stages     heads drop before each of their linears, not before the last alone
    pooler     of what they drop before all but the last; "": nothing
    context    the attention's output is dropped too
    gate       so are gated activations
    """

    hidden: str = "hidden_dropout_prob"
    attention: str = "attention_probs_dropout_prob"
    default: float = 0.1
    attention_default: float | None = None
    others: tuple[str, ...] = ()
    heads: dict[Head, tuple[str, float | None]] = field(default_factory=dict)
    stages: bool = False
    pooler: str = ""
    context: bool = True
    gate: bool = False


@dataclass(frozen=True)
class Family:
    """One model_type of transformers.

    encoder      adds the nodes up to the last hidden state, and returns its edge
    heads        head -> function that adds the nodes of the head behind an edge
    prefix       of the encoder's keys where a head is on top (a bare model has none)
    hub_prefix   another prefix, of the hub's own code
    positions    "column": 0, 1, ...; "padding": pad + 1, ... over the ids that are not pad
    eps          LayerNorm epsilon where config.json does not say
    act          activation where config.json does not say
    pad          padding id where config.json does not say
    config_keys  our name -> config key
    fold         a single row of types is added to the positions
    dropout      where training drops what
    neutral      config keys that change the arithmetic, and the values that do not
    word         key of the word table, below the prefix
    tied         the decoder is the word table where config.json does not say
    """

    encoder: Callable[["Builder"], str]
    heads: dict[Head, HeadBuilder]
    prefix: str
    hub_prefix: str = ""
    positions: str = "column"
    eps: float = 1e-12
    act: str = "gelu"
    pad: int = 0
    config_keys: dict[str, str] = field(default_factory=lambda: CONFIG_KEYS)
    fold: bool = True
    dropout: DropoutKeys = DropoutKeys()
    neutral: dict[str, tuple] = field(default_factory=dict)
    word: str = WORD
    tied: bool = True
