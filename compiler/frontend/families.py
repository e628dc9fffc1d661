"""Where each encoder family keeps its weights, and what its heads are made of."""

from dataclasses import dataclass, field, replace

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import (
    ACTIVATIONS,
    Dense,
    FloatEncoder,
    Head,
    Layer,
    Linear,
    Norm,
)

HEADS = {  # end of config.architectures[0] -> head
    "Model": "features",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "masked-lm",
}
WORD = "embeddings.word_embeddings"
FROM_CONFIG = "config"  # an activation that config.json names
TIED = "(word embedding)"  # a decoder whose weight is the word table; its own key follows

BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "ffn1": "intermediate.dense",
    "ffn2": "output.dense",
    "norm2": "output.LayerNorm",
}
DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "ffn1": "ffn.lin1",
    "ffn2": "ffn.lin2",
    "norm2": "output_layer_norm",
}
ALBERT_LAYER = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "out": "attention.dense",
    "norm1": "attention.LayerNorm",
    "ffn1": "ffn",
    "ffn2": "ffn_output",
    "norm2": "full_layer_layer_norm",
}
CONFIG_KEYS = {  # what we call it -> config key
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "activation": "hidden_act",
}
DISTILBERT_KEYS = {
    "hidden": "dim",
    "heads": "n_heads",
    "layers": "n_layers",
    "activation": "activation",
}
FEATURES = ("token", ())
CLASSIFY_TOKENS = ("token", (("classifier", None, None),))
ANSWER = ("token", (("qa_outputs", None, None),))


def numbered_layers(checkpoint: Checkpoint, keys: dict[str, str], stem: str) -> list[str]:
    """Return the key of every layer: stem.0, stem.1, ..."""
    return [f"{stem}.{i}" for i in range(checkpoint.setting(keys["layers"], int, least=1))]


def albert_layers(checkpoint: Checkpoint, keys: dict[str, str], stem: str) -> list[str]:
    """Return the key of every repetition; groups of layers are shared along the depth."""
    layers = checkpoint.setting(keys["layers"], int, least=1)
    groups = checkpoint.setting("num_hidden_groups", int, 1, least=1)
    inner = checkpoint.setting("inner_group_num", int, 1, least=1)
    return [
        f"{stem}.{int(i / (layers / groups))}.albert_layers.{j}"
        for i in range(layers)
        for j in range(inner)
    ]


@dataclass(frozen=True)
class Family:
    """One model_type.

    prefix      of the encoder's keys where a head is on top (a bare model has none)
    stem        where the layers are
    layer       role -> key below a layer
    heads       head -> (pool, ((linear key, activation, norm key), ...)); keys that start with
                "@" live under the prefix
    projection  key of the embedding projection, "" where there is none
    positions   "column": 0, 1, ...; "padding": pad + 1, ... over the ids that are not pad
    eps         LayerNorm epsilon where config.json does not say
    act         activation where config.json does not say
    pad         padding id where config.json does not say
    config_keys our name -> config key
    fold        a single row of types is added to the positions
    paths       (checkpoint, config_keys, stem) -> key of each layer in order of execution
    """

    prefix: str
    stem: str
    layer: dict[str, str]
    heads: dict[str, tuple]
    projection: str = ""
    positions: str = "column"
    eps: float = 1e-12
    act: str = "gelu"
    pad: int = 0
    config_keys: dict[str, str] = field(default_factory=lambda: CONFIG_KEYS)
    fold: bool = True
    paths: object = numbered_layers


ROBERTA = Family(
    prefix="roberta.",
    stem="encoder.layer",
    layer=BERT_LAYER,
    positions="padding",
    pad=1,
    heads={
        "features": FEATURES,
        "sequence-classification": (
            "first",
            (("classifier.dense", "tanh", None), ("classifier.out_proj", None, None)),
        ),
        "token-classification": CLASSIFY_TOKENS,
        "question-answering": ANSWER,
        "masked-lm": (
            "positions",
            (("lm_head.dense", "gelu", "lm_head.layer_norm"), (TIED, "lm_head.decoder", None)),
        ),
    },
)
FAMILIES = {
    "bert": Family(
        prefix="bert.",
        stem="encoder.layer",
        layer=BERT_LAYER,
        heads={
            "features": FEATURES,
            "sequence-classification": (
                "first",
                (("@pooler.dense", "tanh", None), ("classifier", None, None)),
            ),
            "token-classification": CLASSIFY_TOKENS,
            "question-answering": ANSWER,
            "masked-lm": (
                "positions",
                (
                    (
                        "cls.predictions.transform.dense",
                        FROM_CONFIG,
                        "cls.predictions.transform.LayerNorm",
                    ),
                    (TIED, "cls.predictions.decoder", None),
                ),
            ),
        },
    ),
    "roberta": ROBERTA,
    "ibert": replace(ROBERTA, prefix="ibert.", fold=False),  # the float model it was trained as
    "xlm-roberta": ROBERTA,
    "distilbert": Family(
        prefix="distilbert.",
        stem="transformer.layer",
        layer=DISTILBERT_LAYER,
        config_keys=DISTILBERT_KEYS,
        heads={
            "features": FEATURES,
            "sequence-classification": (
                "first",
                (("pre_classifier", "relu", None), ("classifier", None, None)),
            ),
            "token-classification": CLASSIFY_TOKENS,
            "question-answering": ANSWER,
            "masked-lm": (
                "positions",
                (
                    ("vocab_transform", FROM_CONFIG, "vocab_layer_norm"),
                    (TIED, "vocab_projector", None),
                ),
            ),
        },
    ),
    "electra": Family(
        prefix="electra.",
        stem="encoder.layer",
        layer=BERT_LAYER,
        projection="embeddings_project",
        heads={
            "features": FEATURES,
            "sequence-classification": (
                "first",
                (("classifier.dense", "gelu", None), ("classifier.out_proj", None, None)),
            ),
            "token-classification": CLASSIFY_TOKENS,
            "question-answering": ANSWER,
            "masked-lm": (
                "positions",
                (
                    (
                        "generator_predictions.dense",
                        "gelu",
                        "generator_predictions.LayerNorm",
                    ),
                    (TIED, "generator_lm_head", None),
                ),
            ),
        },
    ),
    "albert": Family(
        prefix="albert.",
        stem="encoder.albert_layer_groups",
        layer=ALBERT_LAYER,
        projection="encoder.embedding_hidden_mapping_in",
        act="gelu_new",
        paths=albert_layers,
        heads={
            "features": FEATURES,
            "sequence-classification": (
                "first",
                (("@pooler", "tanh", None), ("classifier", None, None)),
            ),
            "token-classification": CLASSIFY_TOKENS,
            "question-answering": ANSWER,
            "masked-lm": (
                "positions",
                (
                    ("predictions.dense", FROM_CONFIG, "predictions.LayerNorm"),
                    (TIED, "predictions.decoder", None),
                ),
            ),
        },
    ),
}


def pick_head(checkpoint: Checkpoint, asked: str | None) -> tuple[str, str]:
    """Return (head, pooling); pooling is "mean" or "first" for sentence embeddings, else "".

    A sentence-transformers directory (modules.json) is a sentence embedding unless asked otherwise.
    """
    config_file = str(checkpoint.path / "config.json")
    known = sorted({*HEADS.values(), "sentence-embedding"})
    if asked is not None and asked not in known:
        raise CheckpointError(f"head {asked!r} is not supported", hint="heads: " + ", ".join(known))
    modules = checkpoint.read_json("modules.json")
    if asked == "sentence-embedding" or (asked is None and modules is not None):
        return "sentence-embedding", _pooling(checkpoint, modules or [])
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


def head_of(named: str) -> str | None:
    """Return the head of a class of transformers; None where it is not here."""
    return next((head for ending, head in HEADS.items() if named.endswith(ending)), None)


def _pooling(checkpoint: Checkpoint, modules: list[dict]) -> str:
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise CheckpointError(
            f"module {sorted(unknown)[0]!r} is not supported",
            where=str(checkpoint.path / "modules.json"),
            hint="sentence embeddings are Transformer, Pooling and Normalize",
        )
    if "Pooling" not in kinds:
        return "mean"
    name = kinds["Pooling"] + "/config.json"
    config = checkpoint.read_json(name) or {}
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    supported = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(modes) != 1 or modes[0] not in supported:
        raise CheckpointError(
            f"pooling {modes or 'nothing'} is not supported",
            where=str(checkpoint.path / name),
            hint="one of " + ", ".join(supported),
        )
    return supported[modes[0]]


def read_encoder(checkpoint: Checkpoint, head: str | None = None) -> tuple[FloatEncoder, dict]:
    """Return the float encoder of a checkpoint and the part of IntModel.meta that comes from it.

    head  one of HEADS' values or "sentence-embedding"; None: what the directory says
    """
    family = family_of(checkpoint)
    head, pooling = pick_head(checkpoint, head)
    reader = _Reader(checkpoint, family)
    encoder = reader.encoder(head, pooling)
    return encoder, reader.meta(encoder, checkpoint.config["model_type"], pooling)


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


def activation_of(checkpoint: Checkpoint, family: Family) -> str:
    """Return the activation that config.json names, a value of ACTIVATIONS."""
    key = family.config_keys["activation"]
    name = checkpoint.setting(key, str, family.act)
    if name not in ACTIVATIONS or name == "tanh":
        raise CheckpointError(
            f"config key {key!r} = {name!r} is not supported",
            where=str(checkpoint.path / "config.json"),
            hint="supported: " + ", ".join(sorted(set(ACTIVATIONS) - {"tanh"})),
        )
    return ACTIVATIONS[name]


class _Reader:
    """Reads one family's weights by role."""

    def __init__(self, checkpoint: Checkpoint, family: Family):
        self.checkpoint, self.family = checkpoint, family
        keys = family.config_keys
        self.hidden, self.heads = checkpoint.heads_of(keys["hidden"], keys["heads"])
        self.eps = checkpoint.setting("layer_norm_eps", float, family.eps, least=0)
        self.prefix = family.prefix if family.prefix + WORD + ".weight" in checkpoint else ""

    def table(self, key: str, width: int | None = None) -> np.ndarray:
        return self.checkpoint.tensor(f"{self.prefix}{key}.weight", (None, width))

    def linear(self, key: str, inputs: int, outputs: int | None = None) -> Linear:
        weight = self.checkpoint.tensor(key + ".weight", (outputs, inputs))
        return Linear(weight, self.checkpoint.tensor(key + ".bias", weight.shape[:1]))

    def norm(self, key: str, channels: int) -> Norm:
        names = ("weight", "bias")
        if key + ".gamma" in self.checkpoint:  # checkpoints converted from TensorFlow
            names = ("gamma", "beta")
        weight, bias = (self.checkpoint.tensor(f"{key}.{name}", (channels,)) for name in names)
        return Norm(weight, bias, self.eps)

    def layer(self, path: str) -> Layer:
        at = {role: f"{self.prefix}{path}.{key}" for role, key in self.family.layer.items()}
        c = self.hidden
        q, k, v = (self.linear(at[role], c, c) for role in ("query", "key", "value"))
        ffn1 = self.linear(at["ffn1"], c)
        return Layer(
            qkv=Linear(
                self.checkpoint.join([q.weight, k.weight, v.weight]),
                self.checkpoint.join([q.bias, k.bias, v.bias]),
                parts=3,
            ),
            out=self.linear(at["out"], c, c),
            norm1=self.norm(at["norm1"], c),
            ffn1=ffn1,
            ffn2=self.linear(at["ffn2"], ffn1.weight.shape[0], c),
            norm2=self.norm(at["norm2"], c),
        )

    def encoder(self, head: str, pooling: str) -> FloatEncoder:
        word = self.table(WORD)
        width = word.shape[1]
        position = self.table("embeddings.position_embeddings", width)
        types = None
        if self.prefix + "embeddings.token_type_embeddings.weight" in self.checkpoint:
            types = self.table("embeddings.token_type_embeddings", width)
            if len(types) == 1 and self.family.fold:  # nothing to choose
                position, types = position + types[0], None
        projection = self.prefix + self.family.projection
        projected = self.family.projection and projection + ".weight" in self.checkpoint
        if not projected and width != self.hidden:
            raise CheckpointError(
                f"embeddings are {width} wide, the layers {self.hidden}",
                where=str(self.checkpoint.path),
                hint="config.json and the weights belong to different models",
            )
        paths = self.family.paths(self.checkpoint, self.family.config_keys, self.family.stem)
        distinct = {path: self.layer(path) for path in dict.fromkeys(paths)}
        return FloatEncoder(
            word=word,
            position=position,
            types=types,
            norm=self.norm(self.prefix + "embeddings.LayerNorm", width),
            projection=self.linear(projection, width, self.hidden) if projected else None,
            layers=tuple(distinct[path] for path in paths),
            heads=self.heads,
            activation=activation_of(self.checkpoint, self.family),
            head=self.head(head, pooling, word),
        )

    def head(self, name: str, pooling: str, word: np.ndarray) -> Head:
        if name == "sentence-embedding":
            return Head(name, pooling)
        pool, stages = self.family.heads[name]
        built, width = [], self.hidden
        for key, activation, norm in stages:
            if key == TIED:
                built.append(self.decoder(activation, word))
                continue
            linear = self.linear(key.replace("@", self.prefix), width)
            width = linear.weight.shape[0]
            if activation == FROM_CONFIG:
                activation = activation_of(self.checkpoint, self.family)
            built.append(Dense(linear, activation, self.norm(norm, width) if norm else None))
        return Head(name, pool, tuple(built))

    def decoder(self, key: str, word: np.ndarray) -> Dense:
        """Return the masked-LM decoder; tied where its weight is absent or equals the words."""
        weight, above = key + ".weight", key.rpartition(".")[0]
        table = self.checkpoint.tensor(weight, word.shape) if weight in self.checkpoint else word
        own, tied = key + ".bias", above + ".bias"  # transformers ties these two
        bias = own if own in self.checkpoint else tied
        linear = Linear(table, self.checkpoint.tensor(bias, word.shape[:1]))
        return Dense(linear, tied=np.array_equal(table, word))

    def meta(self, encoder: FloatEncoder, model_type: str, pooling: str) -> dict:
        rule = self.family.positions
        pad = self.checkpoint.setting("pad_token_id", int, self.family.pad, least=0)
        limit = len(encoder.position) - (pad + 1 if rule == "padding" else 0)
        stages = encoder.head.stages
        channels = len(stages[-1].linear.bias) if stages else encoder.hidden
        labelled = encoder.head.name.endswith("-classification")
        return {
            "family": model_type,
            "head": encoder.head.name,
            "labels": self.checkpoint.labels(channels) if labelled else [],
            "problem_type": self.checkpoint.config.get("problem_type"),
            "vocab_size": len(encoder.word),
            "type_vocab_size": 1 if encoder.types is None else len(encoder.types),
            "max_length": limit,
            "truncate_length": self.checkpoint.truncate_length(limit),
            "pad_token_id": pad,
            "position_rule": rule,
            "hidden": encoder.hidden,
            "heads": encoder.heads,
            "layers": len(encoder.layers),
            "ffn": len(encoder.layers[0].ffn1.bias),
            "activation": encoder.activation,
            "pooling": pooling,
            "output_channels": channels,
        }
