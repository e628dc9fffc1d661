"""Directories of SentenceTransformer, as version 6.2 and older ones write them."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)

from intformer_testing.foreign.directories import SHAPE, change, read, save, tokenizer, write
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import SentenceTransformers
from intformer_testing.sentence_dirs import old_modules

HIDDEN = SHAPE["hidden"]
MODULES, CONFIG = "modules.json", "config_sentence_transformers.json"

ONE = ["mean", "max", "cls", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]
SEVERAL = [("cls", "max"), ("lasttoken", "cls"), ("weightedmean", "max", "mean_sqrt_len_tokens")]


def randomised(module):
    """Draw the weights of a module, so that each of them matters."""
    for weight in module.parameters():
        torch.nn.init.normal_(weight, 0.5 if weight.dim() == 1 else 0, 0.3)
    return module


def st6(folder, *more, family="bert", pooling="mean", transformer=None, **about):
    """Write Transformer, Pooling and more modules as version 6.2 does."""
    save(folder / "base", family)
    first = Transformer(str(folder / "base"), **(transformer or {}))
    pool = pooling if isinstance(pooling, Pooling) else Pooling(HIDDEN, pooling)
    model = SentenceTransformer(modules=[first, pool, *more], device="cpu", **about)
    model.save(str(folder), create_model_card=False)
    return model


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "distilbert", "albert"])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "lasttoken"])
@equal_to(SentenceTransformers)
def test_not_normalized(folder, family, pooling):
    st6(folder, family=family, pooling=pooling)


@pytest.mark.parametrize("pooling", [*ONE, *SEVERAL], ids=str)
@equal_to(SentenceTransformers)
def test_normalized(folder, pooling):
    st6(folder, Normalize(), family="electra", pooling=pooling)


@pytest.mark.parametrize("pooling", [*ONE[4:], *SEVERAL], ids=str)
@equal_to(SentenceTransformers)
def test_other_poolings_not_normalized(folder, pooling):
    st6(folder, pooling=pooling)


@pytest.mark.parametrize("pooling", [*ONE, SEVERAL[0]], ids=str)
@pytest.mark.parametrize("after", [[], [Normalize()]], ids=["plain", "normalized"])
@equal_to(SentenceTransformers)
def test_dense(folder, pooling, after):
    width = HIDDEN * (1 if isinstance(pooling, str) else len(pooling))
    st6(folder, Dense(width, 16), *after, pooling=pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls", "mean_sqrt_len_tokens", *SEVERAL[1:]], ids=str)
@equal_to(SentenceTransformers)
def test_layer_norm(folder, pooling):
    width = HIDDEN * (1 if isinstance(pooling, str) else len(pooling))
    st6(folder, randomised(LayerNorm(width)), pooling=pooling)


@pytest.mark.parametrize("name", ["Identity", "ReLU", "SiLU"])
@equal_to(SentenceTransformers)
def test_layer_norm_and_dense(folder, name):
    function = getattr(torch.nn, name)()
    made = [LayerNorm(HIDDEN), Dense(HIDDEN, 24, activation_function=function), LayerNorm(24)]
    st6(folder, *map(randomised, made), Dense(24, 16), Normalize())


@refused(MODULES, "LayerNorm", "before Normalize")
def test_layer_norm_behind_normalize(folder):
    st6(folder, Normalize(), LayerNorm(HIDDEN))


@pytest.mark.parametrize("name", ["Identity", "ReLU", "GELU", "SiLU"])
@equal_to(SentenceTransformers)
def test_dense_activations(folder, name):
    function = getattr(torch.nn, name)()
    st6(folder, Dense(HIDDEN, 24, bias=False, activation_function=function), Dense(24, 16))


@refused("2_Dense/config.json", "activation_function", "Sigmoid")
def test_dense_with_an_unknown_activation(folder):
    st6(folder, Dense(HIDDEN, 16, activation_function=torch.nn.Sigmoid()))


@refused("2_Dense/config.json", "use_residual")
def test_dense_with_a_residual(folder):
    st6(folder, Dense(HIDDEN, HIDDEN, use_residual=True))


@refused(MODULES, "before Normalize")
def test_dense_behind_normalize(folder):
    st6(folder, Normalize(), Dense(HIDDEN, 16))


@equal_to(SentenceTransformers)
def test_dropout_does_nothing(folder):
    st6(folder, Dropout(0.5), Normalize())


@refused(MODULES, "WordWeights")
def test_unknown_module(folder):
    st6(folder)
    entry = {
        "idx": 2,
        "name": "2",
        "path": "2_X",
        "type": "sentence_transformers.models.WordWeights",
    }
    write(folder / MODULES, [*read(folder / MODULES), entry])


@pytest.mark.parametrize("kind", ["LayerNorm", "LSTM", "CNN", "WeightedLayerPooling", "Router"])
def test_module_in_place_of_pooling(folder, kind):
    @refused(MODULES, kind)
    def case(folder):
        save(folder, "bert")
        old_modules(folder, "Transformer", kind)

    case(folder)


@pytest.mark.parametrize(
    "kind", ["StaticEmbedding", "WordEmbeddings", "BoW", "CLIPModel", "Router"]
)
def test_module_in_place_of_a_transformer(folder, kind):
    @refused(kind)
    def case(folder):
        save(folder, "bert")
        old_modules(folder, kind, "Pooling")
        write(folder / "1_Pooling/config.json", POOLING)

    case(folder)


@refused("StaticEmbedding")
def test_static_embedding(folder):
    made = StaticEmbedding(tokenizer("bert").backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[made], device="cpu").save(str(folder), create_model_card=False)


@refused(MODULES, "Pooling")
def test_transformer_without_pooling(folder):
    save(folder, "bert")
    old_modules(folder, "Transformer")


@refused(MODULES, "modeling_custom.Special")
def test_module_with_code_of_its_own(folder):
    st6(folder)
    entry = {"idx": 2, "name": "2", "path": "2_Special", "type": "modeling_custom.Special"}
    write(folder / MODULES, [*read(folder / MODULES), entry])


@equal_to(SentenceTransformers)
def test_default_prompt(folder):
    prompts = {"query": "what is: ", "document": "this is "}
    st6(folder, Normalize(), prompts=prompts, default_prompt_name="query")


@equal_to(SentenceTransformers)
def test_prompts_without_a_default(folder):
    st6(folder, prompts={"query": "what is: ", "document": "this is "})


@refused("1_Pooling/config.json", "include_prompt")
def test_prompt_left_out_of_the_mean(folder):
    pooling = Pooling(HIDDEN, "mean", include_prompt=False)
    st6(folder, pooling=pooling, prompts={"query": "what is: "}, default_prompt_name="query")


@equal_to(SentenceTransformers)
def test_lower_case_by_sentence_transformers(folder):
    cased = tokenizer("bert", do_lower_case=False)
    save(folder / "base", "bert", words=len(cased))
    cased.save_pretrained(folder / "base")
    st6_from(folder)
    change(folder / "sentence_bert_config.json", do_lower_case=True)


def st6_from(folder):
    """Write a directory around what is in folder/base."""
    modules = [Transformer(str(folder / "base")), Pooling(HIDDEN)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


@pytest.mark.parametrize("length", [8, 16, 63])
@equal_to(SentenceTransformers)
def test_max_seq_length(folder, length):
    st6(folder, transformer={"max_seq_length": length})


@pytest.mark.parametrize("length", [None, 64])
@equal_to(SentenceTransformers)
def test_max_seq_length_that_limits_nothing(folder, length):
    st6(folder)
    change(folder / "sentence_bert_config.json", max_seq_length=length)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dot", "euclidean", "cosine"])
@equal_to(SentenceTransformers)
def test_similarity_function(folder, name):
    st6(folder, similarity_fn_name=name)


@refused(CONFIG, "MultiVectorEncoder")
def test_multi_vector_encoder(folder):
    st6(folder)
    change(folder / CONFIG, model_type="MultiVectorEncoder")


# ---- as versions before 6 wrote them ----

POOLING = {
    "word_embedding_dimension": HIDDEN,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
MAX = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}


def old(folder, *kinds, below="", **pooling):
    """Write a directory as version 2 did; below: the folder of the Transformer."""
    save(folder / below, "bert")
    old_modules(folder, "Transformer", "Pooling", *kinds)
    write(folder / "1_Pooling/config.json", {**POOLING, **pooling})
    write(folder / below / "sentence_bert_config.json", {"max_seq_length": 24})
    if below:
        modules = read(folder / MODULES)
        modules[0]["path"] = below
        write(folder / MODULES, modules)


@pytest.mark.parametrize("kinds", [(), ("Normalize",)])
@pytest.mark.parametrize("pooling", [{}, CLS, MAX])
@equal_to(SentenceTransformers)
def test_old_form(folder, kinds, pooling):
    old(folder, *kinds, **pooling)


@equal_to(SentenceTransformers)
def test_transformer_in_a_folder_of_its_own(folder):
    old(folder, "Normalize", below="0_Transformer")


@pytest.mark.parametrize("mode", ["mean_sqrt_len_tokens", "weightedmean_tokens"])
@equal_to(SentenceTransformers)
def test_other_pooling_of_old_form(folder, mode):
    old(folder, pooling_mode_mean_tokens=False, **{f"pooling_mode_{mode}": True})


@equal_to(SentenceTransformers)
def test_two_poolings_of_old_form(folder):
    """Their order is that of the booleans of sentence-transformers, not of the file."""
    old(folder, pooling_mode_lasttoken=True, pooling_mode_cls_token=True)


@equal_to(SentenceTransformers)
def test_no_pooling_set_is_the_mean(folder):
    old(folder, pooling_mode_mean_tokens=False)


@equal_to(SentenceTransformers)
def test_sentence_bert_config_of_the_first_version(folder):
    old(folder)
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "sentence_roberta_config.json", {"max_seq_length": 20, "do_lower_case": False})


@equal_to(SentenceTransformers, head="sentence-embedding")
def test_directory_of_transformers_is_pooled_by_its_mean(folder):
    save(folder, "bert")
