"""Names of transformers' classes: what config.json says in "architectures"."""

from intformer.errors import CheckpointError
from intformer.frontend.folder import shown
from intformer.ir import heads
from intformer.ir.heads import Head

CLASSES = {  # model_type -> what its class names start with
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "albert": "Albert",
    "mpnet": "MPNet",
    "nomic_bert": "NomicBert",
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "jina_bert": "JinaBert",  # of the hub, see hub_config.py
    "modernbert": "ModernBert",
    "eurobert": "EuroBert",
    "ibert": "IBert",
    "deberta-v2": "DebertaV2",
}
ENDINGS = {head.ending: head for head in heads.HEADS.values() if head.ending} | {
    # masked LM and a head for sentence pairs, which is left out; ELECTRA's is a discriminator
    "BertForPreTraining": heads.MASKED_LM,
    "AlbertForPreTraining": heads.MASKED_LM,
}
DECODERS = ("LMHeadModel", "PreTrainedModel")  # end like encoders and are none


def head_named(named: str) -> Head | None:
    """Return the head of a class of transformers; None where it is not supported."""
    if named.endswith(DECODERS):
        return None
    return next((head for ending, head in ENDINGS.items() if named.endswith(ending)), None)


def model_type_of(named: str) -> str | None:
    """Return the model_type of a class of transformers; None where it is not supported."""
    for model_type, stem in CLASSES.items():
        ending = named.removeprefix(stem)
        if ending != named and (ending in ENDINGS or named in ENDINGS):
            return model_type
    return None


def named_model_type(config: dict, where: str) -> dict:
    """Return config.json with the model_type that its architecture names, where it has none.

    Raises CheckpointError where the two contradict each other.
    """
    said, architectures = config.get("model_type"), config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    named = model_type_of(first) if isinstance(first, str) else None
    if named is None or said == named:
        return config
    if said is None:
        return {**config, "model_type": named}
    if isinstance(said, str) and said in CLASSES:
        raise CheckpointError(
            f"config keys 'model_type' = {shown(said)} and 'architectures' = {shown(first)} "
            "contradict each other",
            where=where,
            hint="correct the one that is wrong",
        )
    return config
