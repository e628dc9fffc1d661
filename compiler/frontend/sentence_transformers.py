"""What sentence-transformers saves beside a model: modules, pooling, prompts, score function.

Read as sentence-transformers 6.2 reads it, its older forms included. What the directory says and a
library cannot do is refused, with the file and the key.
"""

import json
from dataclasses import dataclass, field

from intformer.errors import CheckpointError
from intformer.frontend import sentence_pooling, sentence_settings
from intformer.frontend.json_object import JsonObject
from intformer.frontend.sentence_modules import WITH_WEIGHTS, Module
from intformer.frontend.sentence_pooling import config_of
from intformer.frontend.sentence_settings import CONFIG, MODULES, TRANSFORMER_CONFIGS
from intformer.ir.heads import (
    SENTENCE_EMBEDDING,
    SEQUENCE_CLASSIFICATION,
    SPARSE_EMBEDDING,
    Head,
)
from intformer.runtime.edge.scores import SIMILARITIES

TEMPLATE_HINT = (
    "without it, texts are tokenized as they are: remove it if that is how it was trained"
)
INSIDE = "a model's files lie inside its directory"
PACKAGE = "sentence_transformers."  # modules of any other package are code of the directory
ACTIVATIONS = {  # activation_fn -> score function of intformer.runtime.edge
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.Softmax": "softmax",
    "torch.nn.Identity": "identity",
}


@dataclass(frozen=True)
class _Kind:
    """A class of sentence-transformers that compiles.

    head      of the library
    modules   the modules it starts with, each by the names of its classes
    then      modules that may follow, in any number
    task      transformer_task of its Transformer
    outputs   (method_output_name, module_output_name) of its Transformer
    prompts   that every model has
    similarity  where the directory says none
    """

    head: Head
    modules: tuple[tuple[str, ...], ...]
    then: tuple[str, ...]
    task: str
    outputs: tuple[str, str]
    prompts: tuple[str, ...]
    similarity: str = "cosine"


KINDS = {
    "SentenceTransformer": _Kind(
        head=SENTENCE_EMBEDDING,
        modules=(("Transformer",), ("Pooling",)),
        then=("Dense", "LayerNorm", "Normalize", "Dropout"),  # Dropout is for training
        task="feature-extraction",
        outputs=("last_hidden_state", "token_embeddings"),
        prompts=("query", "document"),
    ),
    "CrossEncoder": _Kind(
        head=SEQUENCE_CLASSIFICATION,
        modules=(("Transformer",),),
        then=(),
        task="sequence-classification",
        outputs=("logits", "scores"),
        prompts=(),
    ),
    "SparseEncoder": _Kind(
        head=SPARSE_EMBEDDING,
        modules=(("Transformer", "MLMTransformer"), ("SpladePooling",)),
        then=(),
        task="fill-mask",
        outputs=("logits", "token_embeddings"),
        prompts=("query", "document"),
        similarity="dot",
    ),
}

EMBEDDERS = {  # head -> how a directory is pooled that is not of sentence-transformers
    SENTENCE_EMBEDDING: "mean",
    SPARSE_EMBEDDING: "max",
}


@dataclass(frozen=True)
class SentenceModel:
    """What a directory says about one head.

    head            of one of KINDS
    pooling         of embeddings, see sentence_pooling.pooling; "max" for weights of words,
                    else ""
    modules         those with weights behind the pooling, in order
    normalize       whether embeddings are brought to Euclidean length 1
    truncate_dim    leading channels of an embedding that are kept; None: all
    prompts         name -> text put before a text
    default_prompt  name of the prompt where none is asked for; None: no prompt
    pools_prompt    whether a prompt's tokens are pooled, too
    similarity      how embeddings are compared: of SIMILARITIES
    activation      activation_fn of config_sentence_transformers.json; None: not there
    """

    head: Head
    pooling: str = ""
    modules: tuple[Module, ...] = ()
    normalize: bool = False
    truncate_dim: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pools_prompt: bool = True
    similarity: str = "cosine"
    activation: str | None = None


def transformer_path(checkpoint) -> str:
    """Return the folder of a Checkpoint's Transformer, relative to it: "", or as versions before 2.

    Raises CheckpointError for a folder outside of the directory. What else is wrong with modules is
    left to `read`.
    """
    modules = checkpoint.read_json(MODULES, list)
    first = modules[0] if modules else None
    named = str(first.get("type")) if isinstance(first, dict) else ""
    if not named.endswith((".Transformer", ".MLMTransformer")):
        return ""
    module = JsonObject(first, f"{checkpoint.path / MODULES}, module 0")
    path = module.get("path", str, "")
    _check_inside(checkpoint, module, path)
    return path


def _check_inside(checkpoint, module: JsonObject, path: str) -> None:
    """Refuse a module whose folder is outside of the directory."""
    root = checkpoint.path.resolve()
    try:
        inside = (root / path).resolve().is_relative_to(root)
    except (ValueError, OSError):  # a NUL, a lone surrogate: no name of a file
        inside = False
    if not inside:
        raise module.refusal("path", INSIDE)


def read(checkpoint, head: Head | None = None) -> SentenceModel | None:
    """Return what a Checkpoint says as a sentence-transformers model; None where it says nothing.

    head  asked for; None: the directory's own

    A directory that was saved for another head is what sentence-transformers makes of a plain one:
    embeddings are the mean over tokens and not normalised.
    Raises CheckpointError for models and modules that do not compile.
    """
    settings = sentence_settings.settings_of(checkpoint)
    checkpoint = checkpoint.whole()
    saved = checkpoint.read_json(MODULES, list)
    kind = None
    if saved is not None:
        config = JsonObject.read(checkpoint, CONFIG)
        name = config.values.get("model_type", "SentenceTransformer")  # null is another type
        kind = KINDS.get(name) if isinstance(name, str) else None
        if kind is None and head in (None, *EMBEDDERS):
            raise config.refusal(
                "model_type", f"{', '.join(KINDS)} compile; head= takes the encoder without it"
            )
    if saved is None and head in EMBEDDERS:
        _refuse_template(checkpoint)
    if kind is None or head not in (None, kind.head):
        return _plain(head) if head in EMBEDDERS else None
    modules = _modules(checkpoint, saved, kind)
    sentence_settings.check(settings, kind.task, kind.outputs)
    prompts, default = _prompts(config, kind)
    embeds, pooling, pools_prompt = kind.head.embeds, EMBEDDERS.get(kind.head, ""), True
    if embeds:
        pooling = sentence_pooling.pooling(checkpoint, modules[1][1])
        pools_prompt = sentence_pooling.pools_prompt(checkpoint, modules[1][1], prompts)
    if kind.head is SPARSE_EMBEDDING:
        sentence_pooling.check_splade(checkpoint, modules[1][1])
        _check_max_active_dims(config)
    return SentenceModel(
        head=kind.head,
        pooling=pooling,
        modules=tuple(
            WITH_WEIGHTS[name].read(checkpoint, path)
            for name, path in modules
            if name in WITH_WEIGHTS
        ),
        normalize=any(module == "Normalize" for module, _ in modules),
        truncate_dim=_truncate_dim(config) if embeds else None,
        prompts=prompts,
        default_prompt=default,
        pools_prompt=pools_prompt,
        similarity=_similarity(config, kind),
        activation=config.get("activation_fn", str) if kind.head.classifies_texts else None,
    )


def _refuse_template(checkpoint) -> None:
    """Raise for a tokenizer's chat template, which SentenceTransformer writes every text into."""
    tokenizer = JsonObject.read(checkpoint, "tokenizer_config.json")
    if tokenizer.values.get("chat_template") is not None:
        raise tokenizer.refusal("chat_template", TEMPLATE_HINT)
    name = "chat_template.jinja"
    if checkpoint.file(name) is not None:
        raise CheckpointError(
            f"{name} is not supported for embeddings",
            where=str(checkpoint.path / name),
            hint=TEMPLATE_HINT,
        )


def _plain(head: Head) -> SentenceModel:
    """Return what SentenceTransformer or SparseEncoder makes of a directory that is not its own."""
    kind = next(kind for kind in KINDS.values() if kind.head is head)
    prompts = dict.fromkeys(kind.prompts, "")
    return SentenceModel(head, EMBEDDERS[head], prompts=prompts, similarity=kind.similarity)


def meta(checkpoint, head: Head) -> dict:
    """Return the part of IntModel.meta that prompts and embeddings need (SentenceModel)."""
    found = read(checkpoint, head) or SentenceModel(head)
    return {
        "normalize": found.normalize,
        "truncate_dim": found.truncate_dim,
        "prompts": found.prompts,
        "default_prompt": found.default_prompt,
        **({} if found.pools_prompt else {"pools_prompt": False}),
        **({"similarity": found.similarity} if head in EMBEDDERS else {}),
    }


def modules(checkpoint, head: Head) -> tuple[Module, ...]:
    """Return the modules with weights behind a head."""
    found = read(checkpoint, head)
    return found.modules if found else ()


def refuse_modules(checkpoint, head: Head, what: str) -> None:
    """Raise for a directory with modules that have weights; `what` cannot have them."""
    for module in modules(checkpoint, head):
        raise CheckpointError(
            f"a {type(module).__name__} module does not go with {what}",
            where=str(checkpoint.root / module.path),
            hint="take it out of modules.json and apply it to the embeddings",
        )


def files(checkpoint, head: Head) -> dict[str, bytes]:
    """Return name -> JSON of the files to save beside a model of the same head, trained further.

    Empty where the directory was saved for another head. The Transformer is in the directory
    itself, wherever it was.
    """
    whole = checkpoint.whole()
    saved = whole.read_json(MODULES, list)
    kind = KINDS.get(JsonObject.read(whole, CONFIG).get("model_type", str, "SentenceTransformer"))
    if saved is None or kind is None or kind.head != head:
        return {}
    modules = _modules(whole, saved, kind)
    names = [CONFIG, *(config_of(path) for _, path in modules[1:])]
    found = {MODULES: [{**saved[0], "path": ""}, *saved[1:]]}
    found |= {name: whole.read_json(name) for name in names}
    found |= {name: checkpoint.read_json(name) for name in TRANSFORMER_CONFIGS}
    return {name: json.dumps(value).encode() for name, value in found.items() if value is not None}


def score_function(checkpoint, labels: int) -> str | None:
    """Return a CrossEncoder's score function; None for a directory that is not a CrossEncoder's.

    One of intformer.runtime.edge.SCORE_FUNCTIONS. It is the first found of: activation_fn of
    config_sentence_transformers.json; sentence_transformers.activation_fn of config.json;
    sbert_ce_default_activation_function of config.json; sigmoid for one label, identity for more.
    """
    config = JsonObject(checkpoint.config, str(checkpoint.path / "config.json"))
    newer = config.inner("sentence_transformers")
    old = "sbert_ce_default_activation_function"
    saved = read(checkpoint, SEQUENCE_CLASSIFICATION)
    if saved is None and not newer.values and config.get(old, str) is None:
        return None
    if saved is not None and saved.activation is not None:
        source, key = JsonObject.read(checkpoint.whole(), CONFIG), "activation_fn"
    elif "activation_fn" in newer.values:
        source, key = newer, "activation_fn"
    else:
        source, key = config, old
    name = source.get(key, str)
    if name is None:
        return plain_function(labels)
    if name not in ACTIVATIONS:
        raise source.refusal(key, "supported: " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def plain_function(labels: int) -> str:
    """Return the score function of a CrossEncoder whose directory names none."""
    return "sigmoid" if labels == 1 else "identity"


def _modules(checkpoint, saved: list, kind: _Kind) -> list[tuple[str, str]]:
    """Return (class name, path) of each module, checked against the kind's."""
    where = str(checkpoint.path / MODULES)
    modules = []
    for number, entry in enumerate(saved):
        module = JsonObject(entry, f"{where}, module {number}")
        full, path = module.required("type", str), module.required("path", str)
        _check_inside(checkpoint, module, path)
        name = full.rpartition(".")[2]
        place = len(modules)
        expected = kind.modules[place] if place < len(kind.modules) else kind.then
        if not full.startswith(PACKAGE) or name not in expected:
            raise module.refusal(
                "type",
                f"expected {' or '.join(expected) or 'no more modules'}"
                f"{'' if full.startswith(PACKAGE) else ' of sentence_transformers'}",
            )
        if name == "Normalize":
            sentence_pooling.check_normalize(checkpoint, path)
        if name in WITH_WEIGHTS and any(before == "Normalize" for before, _ in modules):
            raise module.refusal("type", f"{name} modules come before Normalize")
        modules.append((name, path))
    if len(modules) < len(kind.modules):
        raise CheckpointError(
            f"no {kind.modules[len(modules)][0]} module",
            where=where,
            hint="expected " + ", ".join(names[0] for names in kind.modules),
        )
    return modules


def _similarity(config: JsonObject, kind: _Kind) -> str:
    named = config.get("similarity_fn_name", str, kind.similarity)
    if named not in SIMILARITIES:
        raise config.refusal("similarity_fn_name", "supported: " + ", ".join(SIMILARITIES))
    return named


def _check_max_active_dims(config: JsonObject) -> None:
    if config.values.get("max_active_dims") is not None:
        raise config.refusal(
            "max_active_dims", "take it out and pass top_k= where texts are embedded"
        )


def _prompts(config: JsonObject, kind: _Kind) -> tuple[dict[str, str], str | None]:
    """Return (name -> prompt, name of the default prompt or None)."""
    prompts = dict.fromkeys(kind.prompts, "")
    saved = config.inner("prompts")
    prompts |= {name: saved.get(name, str, "") for name in saved.values}
    default = config.get("default_prompt_name", str)
    if default is not None and default not in prompts:
        raise config.refusal("default_prompt_name", "prompts: " + ", ".join(prompts))
    return prompts, default


def _truncate_dim(config: JsonObject) -> int | None:
    dimensions = config.get("truncate_dim", int)
    if dimensions is not None and dimensions < 1:
        raise config.refusal("truncate_dim", "at least 1 dimension remains")
    return dimensions
