"""config.json of the hub's own classes, under the keys of transformers' classes.

Some directories were written by code that lies on the hub (`auto_map`). transformers has classes
for the same models with other keys, which are read here whoever wrote the file; JinaBERT has none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from intformer.errors import CheckpointError
from intformer.frontend.folder import shown

JINA_BERT = "jina_bert"  # our name of a model_type: its files say "bert"


@dataclass(frozen=True)
class Dialect:
    """How the hub's code of one model says what transformers' class says.

    model_type  of transformers, or ours
    known_by    config.json -> whether the hub's code wrote it
    names       key -> key of transformers
    values      key of transformers -> {value: value of transformers}
    required    keys whose default differs from that of transformers
    modules     of the hub's code whose arithmetic is known
    classes     what the names of its classes start with; "": anything
    """

    model_type: str
    known_by: Callable[[dict], bool]
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    classes: str = ""


NOMIC = Dialect(
    "nomic_bert",
    lambda config: config.get("model_type") == "nomic_bert" and "n_embd" in config,
    names={
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_emb_base": "rope_theta",
        "activation_function": "hidden_act",
        "resid_pdrop": "hidden_dropout_prob",
        "attn_pdrop": "attention_probs_dropout_prob",
    },
    values={"hidden_act": {"swiglu": "silu", "geglu": "gelu"}},
    required=("activation_function", "rotary_emb_base", "layer_norm_epsilon", "n_positions"),
    modules=("configuration_hf_nomic_bert", "modeling_hf_nomic_bert"),
)
NEW = Dialect(
    "gte",
    lambda config: config.get("model_type") == "new",
    required=("rope_theta", "type_vocab_size", "max_position_embeddings"),
    modules=("configuration", "modeling"),
)
GTE = Dialect(
    "gte",
    lambda config: config.get("model_type") == "gte" and "auto_map" in config,
    required=NEW.required,
    modules=("configuration_hf_alibaba_nlp_gte", "modeling_hf_alibaba_nlp_gte"),
)
JINA = Dialect(
    JINA_BERT,
    lambda config: (
        config.get("model_type") == "bert" and config.get("position_embedding_type") == "alibi"
    ),
    required=("feed_forward_type",),
    modules=("configuration_bert", "modeling_bert"),
)
EUROBERT = Dialect(  # the keys are those of transformers
    "eurobert",
    lambda config: config.get("model_type") == "eurobert" and "auto_map" in config,
    required=("rope_theta", "max_position_embeddings"),
    modules=("configuration_eurobert", "modeling_eurobert"),
    classes="EuroBert",
)
DIALECTS = (NOMIC, NEW, GTE, JINA, EUROBERT)


def dialect_of(config: dict) -> Dialect | None:
    """Return which of the hub's codes wrote config.json; None where transformers did."""
    return next((one for one in DIALECTS if one.known_by(config)), None)


def unlike(config: dict) -> list[str]:
    """Return why transformers would not read config.json as `canonical` does."""
    dialect = dialect_of(config)
    if dialect is None or (config["model_type"] == dialect.model_type and not dialect.names):
        return []
    if dialect.model_type == JINA_BERT:
        return ["it has no class of JinaBERT"]
    return ["config.json has the keys of code that lies on the hub"]


def canonical(config: dict, where: str) -> dict:
    """Return config.json under the keys of transformers; raise where two keys say one thing.

    where  config.json
    """
    dialect = dialect_of(config)
    if dialect is None:
        return config
    for key in dialect.required:
        inner = config.get("rope_parameters") if key == "rope_theta" else None
        if config.get(key) is None and not inner:
            raise CheckpointError(f"config key {key!r} is missing", where=where)
    found = {key: value for key, value in config.items() if key not in dialect.names}
    for key in dialect.names.keys() & config.keys():
        name = dialect.names[key]
        if name in config:
            raise CheckpointError(
                f"config keys {key!r} and {name!r} say the same",
                where=where,
                hint="remove one of them",
            )
        found[name] = _translated(key, config[key], dialect.values.get(name), where)
    if "auto_map" in found:
        _check_code(found.pop("auto_map"), dialect, where)
    return {**found, "model_type": dialect.model_type}


def _translated(key: str, value, known: dict[str, str] | None, where: str):
    """Return the value of transformers for that of a key; known: all that are, None: any."""
    if known is None:
        return value
    if value not in known:
        raise CheckpointError(
            f"config key {key!r} = {shown(value)} is not supported",
            where=where,
            hint="supported: " + ", ".join(known),
        )
    return known[value]


def _check_code(auto_map, dialect: Dialect, where: str) -> None:
    """Raise for code of the hub that nothing is known of."""
    named = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for one in named:
        module, _, name = str(one).rpartition("--")[2].partition(".")
        if module not in dialect.modules or not name.startswith(dialect.classes):
            raise CheckpointError(
                f"config key 'auto_map' names {shown(one)}, which is not supported",
                where=where,
                hint="supported: " + ", ".join(dialect.modules),
            )
