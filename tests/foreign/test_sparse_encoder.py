"""Directories of SparseEncoder (SPLADE), as version 6.2 and older ones write them."""

import pytest
from sentence_transformers import SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import (
    MLMTransformer,
    SparseAutoEncoder,
    SpladePooling,
)

from intformer_testing.foreign.directories import SHAPE, change, read, save, write
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import SentenceTransformers, SparseEncoders

MODULES, CONFIG = "modules.json", "config_sentence_transformers.json"
SETTINGS = "1_SpladePooling/config.json"
FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert"]


def splade(folder, family="bert", transformer=Transformer, pooling=None, **about):
    """Write a masked LM and SpladePooling as version 6.2 does."""
    save(folder / "base", family, "masked-lm")
    first = transformer(str(folder / "base"), transformer_task="fill-mask")
    modules = [first, pooling or SpladePooling()]
    model = SparseEncoder(modules=modules, device="cpu", **about)
    model.save(str(folder), create_model_card=False)


@pytest.mark.parametrize("family", FAMILIES)
@equal_to(SparseEncoders)
def test_saved(folder, family):
    splade(folder, family)


@equal_to(SparseEncoders)
def test_masked_lm_module(folder):
    splade(folder, transformer=MLMTransformer)


@equal_to(SparseEncoders)
def test_prompts(folder):
    prompts = {"query": "what is: ", "document": "this is "}
    splade(folder, prompts=prompts, default_prompt_name="query")


@equal_to(SparseEncoders)
def test_max_seq_length(folder):
    splade(folder)
    change(folder / "sentence_bert_config.json", max_seq_length=12)


@pytest.mark.parametrize("below", ["", "0_MLMTransformer"])
@equal_to(SparseEncoders)
def test_old_form(folder, below):
    """As version 5 wrote it."""
    save(folder / below, "bert", "masked-lm")
    paths = {"MLMTransformer": below, "SpladePooling": "1_SpladePooling"}
    package = "sentence_transformers.sparse_encoder.models"
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    write(folder / MODULES, entries)
    write(folder / CONFIG, {"model_type": "SparseEncoder", "similarity_fn_name": "dot"})
    write(folder / below / "sentence_bert_config.json", {"max_seq_length": 24})
    settings = {"pooling_strategy": "max", "activation_function": "relu"}
    write(folder / SETTINGS, {**settings, "word_embedding_dimension": None})


@equal_to(SparseEncoders, head="sparse-embedding")
def test_directory_of_transformers(folder):
    """SPLADE models from before version 5 are masked LMs and no more."""
    save(folder, "distilbert", "masked-lm")


@equal_to(SentenceTransformers, head="sentence-embedding")
def test_embedded_as_another_model(folder):
    splade(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("pooling_strategy", "sum"), ("activation_function", "log1p_relu")]
)
def test_other_splade_pooling(folder, key, value):
    @refused(SETTINGS, key, value)
    def case(folder):
        splade(folder, pooling=SpladePooling(**{key: value}))

    case(folder)


@refused(SETTINGS, "'own' = 1")
def test_unknown_setting(folder):
    splade(folder)
    change(folder / SETTINGS, own=1)


@refused(CONFIG, "max_active_dims", "top_k")
def test_fewer_words(folder):
    splade(folder, max_active_dims=64)


@refused(MODULES, "Pooling", "expected SpladePooling")
def test_sparse_auto_encoder(folder):
    save(folder / "base", "bert")
    hidden = SHAPE["hidden"]
    modules = [
        Transformer(str(folder / "base")),
        Pooling(hidden),
        SparseAutoEncoder(input_dim=hidden, hidden_dim=2 * hidden),
    ]
    SparseEncoder(modules=modules, device="cpu").save(str(folder), create_model_card=False)


@pytest.mark.parametrize("kind", ["Router", "Normalize"])
def test_other_modules(folder, kind):
    @refused(MODULES, kind)
    def case(folder):
        splade(folder)
        modules = read(folder / MODULES)
        at = {"Router": 0, "Normalize": 2}[kind]
        entry = {"idx": at, "name": str(at), "path": f"{at}_{kind}"}
        entry["type"] = f"sentence_transformers.models.{kind}"
        write(folder / MODULES, [*modules[:at], entry, *modules[at + 1 :]])

    case(folder)


@refused("cls.predictions")
def test_encoder_without_the_words(folder):
    splade(folder)
    (folder / "model.safetensors").unlink()
    save(folder / "bare", "bert")
    (folder / "bare/model.safetensors").rename(folder / "model.safetensors")
