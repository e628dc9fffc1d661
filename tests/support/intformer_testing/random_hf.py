"""Small random Hugging Face models of every supported family and head, on disk and in memory."""

import json

import numpy as np
import torch
import transformers

from intformer.frontend.calibration import pack

VOCABULARY = 97
CLASSES = {  # family -> class stem
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
    "modernbert": "ModernBert",
    "eurobert": "EuroBert",
    "deberta-v2": "DebertaV2",
}
PADDED = ("roberta", "xlm-roberta", "camembert", "mpnet")  # positions start behind the padding id
DISENTANGLED = {  # as in DeBERTa v3, with buckets that few tokens reach
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
HEADS = {  # head -> class ending
    "features": "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-lm": "ForMaskedLM",
}
MADE_OF = {"sparse-embedding": "ForMaskedLM"}  # heads that no class of transformers has
PRE_NORMED = ("modernbert", "eurobert")  # a residual stream
TURNED = ("nomic_bert", "gte", "jina_embeddings_v3", *PRE_NORMED)  # rotary positions
GATED = ("nomic_bert", "gte", "jina_bert", *PRE_NORMED)  # a gated MLP
LENGTHS = (5, 1, 17, 2, 3, 11)


def heads_of(family, made_of=False):
    """Heads that transformers has a class for; made_of: those of MADE_OF too."""
    heads = HEADS | MADE_OF if made_of else HEADS
    return [head for head in heads if hasattr(transformers, CLASSES[family] + heads[head])]


def config(family, hidden=60, heads=None, layers=2, ffn=100, labels=3, activation=None, **extra):
    """A small config; names differ per family."""
    heads = heads or (3 if family in TURNED else 4)  # an even number of channels each
    activation = activation or ("silu" if family in ("nomic_bert", "eurobert") else "gelu")
    names = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "hidden_act": activation,
        "type_vocab_size": 1 if family in PADDED else 2,
        "max_position_embeddings": 34 if family in PADDED else 32,
    }
    if family == "distilbert":
        names = {
            "dim": hidden,
            "n_heads": heads,
            "n_layers": layers,
            "hidden_dim": ffn,
            "activation": activation,
            "max_position_embeddings": 32,
        }
    if family == "modernbert":
        special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
        names |= {"hidden_activation": activation, "local_attention": 6, **special}
        del names["hidden_act"], names["type_vocab_size"]
    if family == "eurobert":
        special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "mask")}
        names |= {"num_key_value_heads": 1 + (heads % 2 == 0), **special}
        del names["type_vocab_size"]
    if family in ("electra", "albert"):
        names["embedding_size"] = 36
    if family == "deberta-v2":
        names |= DISENTANGLED
    return transformers.AutoConfig.for_model(
        family, num_labels=labels, **{"vocab_size": VOCABULARY, **names, **extra}
    )


def save(directory, family, head, seed=0, **shape):
    """Save a model whose every weight is random (gamma of either sign too); returns it."""
    if head == "question-answering":
        shape = {"labels": 2, **shape}
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[family] + (HEADS | MADE_OF)[head])(
        config(family, **shape)
    ).eval()
    randomise(model)
    model.save_pretrained(directory)
    return model


def randomise(model):
    """Draw every weight of a model, so that each of them matters."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.3 if weight.dim() == 1 else weight.shape[1] ** -0.5)
            if "norm" in name.lower() and name.endswith("weight"):
                weight += torch.sign(weight)


def rewrite(folder, **changes):
    """Change config.json; None removes a key."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def sequences(lengths=LENGTHS, seed=0):
    """Random token ids without any special id, one int32 array per length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, VOCABULARY, length, dtype=np.int32) for length in lengths]


def packed(ids, meta):
    """Sequences as a batch of the first type."""
    return pack([(one, np.zeros_like(one)) for one in ids], meta)


def padded_outputs(model, ids, types=None):
    """Run transformers on one padded batch; returns the first output's rows of every sequence."""
    pad = model.config.pad_token_id or 0
    longest = max(map(len, ids))
    batch = torch.full((len(ids), longest), pad)
    mask = torch.zeros_like(batch)
    kinds = torch.zeros_like(batch)
    for i, one in enumerate(ids):
        batch[i, : len(one)] = torch.from_numpy(one)
        mask[i, : len(one)] = 1
        if types is not None:
            kinds[i, : len(one)] = torch.from_numpy(types[i])
    extra = {"token_type_ids": kinds} if types is not None else {}
    with torch.inference_mode():
        out = model(batch, attention_mask=mask, **extra)
    if hasattr(out, "start_logits"):
        rows = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        rows = out[0]
    if rows.dim() == 2:  # one row per sequence
        return [row[None].numpy() for row in rows]
    return [rows[i, : len(one)].numpy() for i, one in enumerate(ids)]
