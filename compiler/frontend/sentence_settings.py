"""What configures the Transformer module of sentence-transformers: lengths, case, its inputs."""

from intformer.frontend.json_object import JsonObject

MODULES = "modules.json"  # which modules there are, in order
CONFIG = "config_sentence_transformers.json"
TRANSFORMER_CONFIGS = (  # the first that says anything counts
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# keys of a Transformer module whose values change no number
NEUTRAL = ("unpad_inputs", "max_seq_length", "do_lower_case", "transformer_task")
NEUTRAL_MODEL = (
    *("attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage"),
    *("add_pooling_layer", "use_safetensors", "trust_remote_code"),
)
NEUTRAL_TOKENIZER = ("model_max_length", "padding_side", "use_fast", "trust_remote_code")


def settings_of(checkpoint) -> JsonObject:
    """Return what configures the Transformer module; empty without modules.json."""
    found = JsonObject({}, "")
    if checkpoint.whole().read_json(MODULES, list) is not None:
        for name in TRANSFORMER_CONFIGS:
            found = JsonObject.read(checkpoint, name)
            if found.values:
                break
    return found


def truncate_length(checkpoint, limit: int) -> int:
    """Return the tokens a text is cut to: what the directory says, `limit` at most."""
    settings = settings_of(checkpoint)
    tokenizer = JsonObject.read(checkpoint, "tokenizer_config.json")
    length = "model_max_length" if "model_max_length" in tokenizer.values else "max_len"  # older
    asked = (
        _length(_renamed(settings, "processor_kwargs", "tokenizer_args"), "model_max_length")
        or _length(settings, "max_seq_length")
        or _length(tokenizer, length)  # 1e30 where nobody set a length
        or limit
    )
    return int(min(asked, limit))


def lower_cases(checkpoint) -> bool:
    """Say whether texts are lower-cased before they are tokenized, for every head."""
    return settings_of(checkpoint).get("do_lower_case", bool, False)


def check(settings: JsonObject, task: str, outputs: tuple[str, str]) -> None:
    """Refuse what the Transformer module's configuration asks for beyond plain text input.

    task     transformer_task that it must have, where it says one
    outputs  method_output_name and module_output_name
    """
    settings.get("do_lower_case", bool)
    if settings.get("transformer_task", str, task) != task:
        raise settings.refusal("transformer_task", f"expected {task!r}")
    checked = ("modality_config", "module_output_name", "processing_kwargs")
    renamed = ("model_kwargs", "processor_kwargs", "config_kwargs")
    old = ("model_args", "tokenizer_args", "config_args")
    settings.refuse_others((*NEUTRAL, *checked, *renamed, *old))
    for new, before, neutral in zip(
        renamed, old, (NEUTRAL_MODEL, NEUTRAL_TOKENIZER, ("trust_remote_code",)), strict=True
    ):
        _renamed(settings, new, before).refuse_others(neutral)
    processing = settings.inner("processing_kwargs")
    processing.refuse_others(("text", "common"))
    for key in ("text", "common"):
        processing.inner(key).refuse_others(("padding",))
    modality = settings.inner("modality_config")
    modality.refuse_others(("text",), "only text compiles")
    text = modality.inner("text")
    output, name = outputs
    for where, key, expected in (
        (text, "method", "forward"),
        (text, "method_output_name", output),
        (settings, "module_output_name", name),
    ):
        if where.get(key, str, expected) != expected:
            raise where.refusal(key, f"expected {expected!r}")


def _renamed(settings: JsonObject, key: str, old: str) -> JsonObject:
    return settings.inner(old if old in settings.values else key)


def _length(config: JsonObject, key: str) -> float | None:
    """Return a number of tokens, None where there is none; 1e30 and infinity are numbers, too."""
    value = config.values.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not value >= 1:
        raise config.refusal(key, "expected a number of tokens")
    return value
