"""Small checkpoints whose every number is the same on every machine.

Weights and ranges are integers of NumPy's generator over powers of two. No float product is
computed: torch's results differ in the last bit between CPUs, and a hash shows it.
"""

import json
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from intformer.frontend import import_model
from intformer.ir.model import IntModel
from intformer_testing import jina_bert, random_hf

HIDDEN, WIDE, LAYERS = 32, 48, 2
RANGES = "intformer_ranges.safetensors"
ENDINGS = random_hf.HEADS | random_hf.MADE_OF
IBERT_STEPS = 1 / 64  # ranges of QuantAct are multiples of this
EXTRAS = {  # case -> (family, head, what else the configuration says)
    "bert/gelu_new": ("bert", "features", {"activation": "gelu_new"}),
    "bert/silu": ("bert", "features", {"activation": "silu"}),
    "bert/quick_gelu": ("bert", "features", {"activation": "quick_gelu"}),
    "bert/relu": ("bert", "sequence-classification", {"activation": "relu"}),
    "bert/one type": ("bert", "features", {"type_vocab_size": 1}),
    "bert/narrow heads": ("bert", "features", {"heads": 8}),
    "albert/groups": ("albert", "features", {"layers": 4, "num_hidden_groups": 2}),
    "albert/relu": ("albert", "masked-lm", {"activation": "relu"}),
    "electra/no projection": ("electra", "features", {"embedding_size": HIDDEN}),
    "deberta-v2/projections of its own": (
        "deberta-v2",
        "features",
        {"share_att_key": False, "norm_rel_ebd": "none", "pos_att_type": ["p2c"]},
    ),
    "roberta/one label": ("roberta", "sequence-classification", {"labels": 1}),
    "gte/no types": ("gte", "features", {"type_vocab_size": 0}),
}


def cases():
    """Return case -> function (directory) -> IntModel."""
    found = {}
    for family in random_hf.CLASSES:
        for head in random_hf.heads_of(family, made_of=True):
            found[f"native/{family}/{head}"] = native(family, head)
        found[f"native/{family}/sentence-embedding"] = native(family, "features", pool="mean")
    found["native/bert/sentence-embedding of the first"] = native("bert", "features", pool="cls")
    found["native/bert/one scale per tensor"] = native("bert", "masked-lm", grain="tensor")
    found["native/jina_bert/features"] = jina
    for name, (family, head, more) in EXTRAS.items():
        found[f"native/{name}"] = native(family, head, **more)
    found["native/bert/sentence-embedding of the last"] = native("bert", "features", pool="last")
    found["native/bert/sentence-embedding by maximum"] = native("bert", "features", pool="max")
    found["ibert/fixed/sentence-embedding by maximum"] = ibert("features", "fixed", pool="max")
    several = "last+mean_sqrt+weighted_mean"
    found["native/bert/sentence-embedding by three poolings"] = native("bert", "features", several)
    for head in ENDINGS:
        for mode in ("hf_compat", "fixed"):
            found[f"ibert/{mode}/{head}"] = ibert(head, mode)
    found["ibert/hf_compat/sentence-embedding"] = ibert("features", "hf_compat", pool="mean")
    return found


def native(family, head, pool=None, grain="channel", **shape):
    """A directory as quantization-aware training leaves it."""

    def make(folder) -> IntModel:
        shape.setdefault("labels", 2 if head == "question-answering" else 3)
        heads = 2 if family in random_hf.TURNED else 4
        about = {"hidden": HIDDEN, "ffn": WIDE, "layers": LAYERS, "heads": heads, **shape}
        kind = getattr(transformers, random_hf.CLASSES[family] + ENDINGS[head])
        model = kind(random_hf.config(family, **about))
        rng = fill(model)
        save(model, folder, pool)
        save_file(ranges(model.config, family, head, pool, rng), folder / RANGES)
        add_to_config(folder, intformer={"recipe": "native", "weights": grain})
        return import_model(folder, head=None if pool else head)

    return make


def jina(folder) -> IntModel:
    """A directory of JinaBERT as published, with ranges as training leaves them."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS}
    model = jina_bert.JinaBert(**sizes, num_attention_heads=2)
    rng = fill(model)
    jina_bert.write(folder, model)
    about = SimpleNamespace(**model.about)
    save_file(ranges(about, "jina_bert", "features", None, rng), folder / RANGES)
    add_to_config(folder, intformer={"recipe": "native", "weights": "channel"})
    return import_model(folder, head="features")


def ibert(head, mode, pool=None):
    """A directory as fine-tuning with quant_mode leaves it."""

    def make(folder) -> IntModel:
        kind = getattr(transformers, "IBert" + ENDINGS[head])
        config = transformers.IBertConfig(
            vocab_size=61,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=WIDE,
            max_position_embeddings=40,
            type_vocab_size=2,
            pad_token_id=1,
            num_labels=2,
            quant_mode=True,
        )
        model = kind(config)
        rng = fill(model)
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith(("x_min", "x_max")):
                # softmax.act holds its range in integer units
                unit = 2**51 if "softmax" in name else 1
                peak = float(rng.integers(2 * 64, 6 * 64) * IBERT_STEPS * unit)
                buffer.fill_(-peak if name.endswith("min") else peak)
        save(model, folder, pool)
        return import_model(folder, head=None if pool else head, mode=mode)

    return make


def fill(model):
    """Give every parameter numbers of NumPy's generator; returns the generator."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            integers = rng.integers(-256, 257, tuple(weight.shape)).astype(np.float32)
            whole = torch.from_numpy(integers / 512)
            if "norm" in name.lower() and name.endswith("weight"):
                whole += torch.where(whole < 0, -1.0, 1.0)
            weight.copy_(whole)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
    return rng


def save(model, folder, pool):
    """Write the directory; with a pool as sentence-transformers would."""
    model.save_pretrained(folder)
    if pool is None:
        return
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        )
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"mean": "mean_tokens", "max": "max_tokens", "cls": "cls_token", "last": "lasttoken"}
    modes |= {"mean_sqrt": "mean_sqrt_len_tokens", "weighted_mean": "weightedmean_tokens"}
    keys = {f"pooling_mode_{modes[mode]}": True for mode in pool.split("+")}
    about = {"word_embedding_dimension": HIDDEN, **keys}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(about))


def add_to_config(folder, **more):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def ranges(config, family, head, pool, rng):
    """Return what training would have learned: a peak per channel and tensor, factors of 1."""
    wide = config.hidden_dim if family == "distilbert" else config.intermediate_size
    narrow = getattr(config, "embedding_size", HIDDEN)
    layers = config.num_hidden_layers
    shared = getattr(config, "num_hidden_groups", layers) if family == "albert" else layers
    peaks = {"embed.norm": narrow}
    factors = {}
    if narrow != HIDDEN:
        peaks["embed.projection"] = HIDDEN
        factors["embed.projection"] = narrow
    if family == "albert":  # always there
        peaks["embed.projection"], factors["embed.projection"] = HIDDEN, narrow
    for i in range(layers):
        sizes = {"turned" if family in random_hf.TURNED else "qkv": 3 * HIDDEN}
        norms = ["context", "sum1", "norm1"]
        if family in random_hf.PRE_NORMED:
            norms = norms[: 2 if i == 0 and family == "modernbert" else 3]
        sizes |= dict.fromkeys(norms, HIDDEN)
        if family in random_hf.GATED:
            sizes |= {"ffn1": 2 * wide, "gate.act": wide, "gate": wide}
        else:
            sizes["act"] = wide
        sizes |= dict.fromkeys(("sum2", "norm2"), HIDDEN)
        peaks |= {f"layer{i}.{name}": size for name, size in sizes.items()}
    for i in range(0, layers, layers // shared):
        for name, size in {"qkv": HIDDEN, "out": HIDDEN, "ffn1": HIDDEN, "ffn2": wide}.items():
            factors[f"layer{i}.{name}"] = size
    if family in random_hf.PRE_NORMED:
        peaks["final.norm"] = HIDDEN
    if family == "eurobert":
        peaks["embed.sum"] = peaks.pop("embed.norm")
        if pool is None and head == "sequence-classification":
            peaks["head.mean"] = HIDDEN
        if pool is None and ENDINGS[head] == "ForMaskedLM":
            factors["head0"] = HIDDEN
    if pool is None and family == "modernbert" and head != "features":
        peaks |= {"head0.act": HIDDEN, "head0.norm": HIDDEN}
        factors["head0"] = HIDDEN
        factors["embed.word" if ENDINGS[head] == "ForMaskedLM" else "head1"] = HIDDEN
    elif pool is None and ENDINGS[head] == "ForMaskedLM" and family != "eurobert":
        peaks |= {"head0.act": narrow, "head0.norm": narrow}
        factors |= {"head0": HIDDEN, "embed.word": narrow}
        if family not in ("electra", "albert"):
            peaks |= {"head0.act": HIDDEN, "head0.norm": HIDDEN}
            factors["embed.word"] = HIDDEN
    elif pool is None and head == "sequence-classification":
        peaks["head0.act"] = HIDDEN
        factors |= {"head0": HIDDEN, "head1": HIDDEN}
    elif pool is None and head != "features":
        factors["head0"] = HIDDEN
    found = {
        f"peak.{tap}": (rng.integers(64, 512, size) / 64).astype(np.float32)
        for tap, size in peaks.items()
    }
    return found | {f"factor.{stem}": np.ones(size, np.float32) for stem, size in factors.items()}
