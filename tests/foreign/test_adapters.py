"""Adapters of peft beside a base model, and alone."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from intformer_testing.foreign.directories import SHAPE, change, model, save, tokenizer
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import SentenceTransformers, Transformers

TARGETS = ["query", "value", "dense"]
ADAPTER = "adapter_config.json"


def adapted(folder, kind=peft.LoraConfig, family="bert", head="features", **about):
    """Write a base model and a random adapter beside it; return peft's merged model."""
    base = save(folder, family, head)
    config = kind(**{"target_modules": TARGETS, **about})
    wrapped = peft.get_peft_model(base, config)
    torch.manual_seed(1)
    for weight in wrapped.parameters():
        if weight.requires_grad:  # what training would have changed
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def merged(folder, **about):
    """As adapted(); return the model that peft merges."""
    return adapted(folder, **about).merge_and_unload()


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@equal_to(Transformers)
def test_lora(folder, family):
    return merged(folder, family=family, r=4, lora_alpha=8)


@equal_to(Transformers)
def test_lora_of_distilbert(folder):
    return merged(folder, family="distilbert", target_modules=["q_lin", "v_lin", "lin1"], r=2)


@equal_to(Transformers)
def test_rank_stabilized(folder):
    return merged(folder, r=8, lora_alpha=4, use_rslora=True)


@equal_to(Transformers)
def test_ranks_and_alphas_by_module(folder):
    return merged(
        folder,
        r=4,
        lora_alpha=4,
        rank_pattern={"query": 2},
        alpha_pattern={"layer.1.attention.self.value": 16},
    )


@equal_to(Transformers)
def test_layers_of_their_own(folder):
    return merged(folder, r=4, layers_to_transform=[1], layers_pattern="layer")


@equal_to(Transformers)
def test_classifier_trained_whole(folder):
    return merged(folder, head="sequence-classification", r=4, task_type="SEQ_CLS")


@equal_to(Transformers)
def test_token_classifier_trained_whole(folder):
    return merged(folder, head="token-classification", r=4, task_type="TOKEN_CLS")


@equal_to(Transformers)
def test_pytorch_file(folder):
    made = merged(folder, r=4)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    return made


REFUSED = {
    "use_dora": (peft.LoraConfig, {"use_dora": True}),
    "IA3": (peft.IA3Config, {"feedforward_modules": ["dense"]}),
    "LOHA": (peft.LoHaConfig, {}),
    "OFT": (peft.OFTConfig, {"r": 0, "oft_block_size": 4}),
}


@pytest.mark.parametrize("named", REFUSED)
def test_other_adapters(folder, named):
    kind, about = REFUSED[named]

    @refused(ADAPTER, named)
    def case(folder):
        adapted(folder, kind, **about)

    case(folder)


@refused(ADAPTER, "without its base model")
def test_adapter_without_its_base(folder):
    adapted(folder, r=4)
    (folder / "model.safetensors").unlink()


@refused(ADAPTER)
def test_adapter_and_nothing_else(folder):
    adapted(folder, r=4)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


@refused("adapter_model")
def test_adapter_without_its_weights(folder):
    adapted(folder, r=4)
    (folder / "adapter_model.safetensors").unlink()


@refused(ADAPTER, "bias")
def test_trained_biases(folder):
    adapted(folder, r=4, bias="all")


@refused("embed")
def test_words_added_in_training(folder):
    base = save(folder, "bert")
    base.resize_token_embeddings(len(tokenizer()) + 3)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=TARGETS))
    wrapped.save_pretrained(folder, save_embedding_layers=True)


@refused("adapter_model.safetensors", "rank 3")
def test_rank_that_does_not_fit(folder):
    adapted(folder, r=4)
    change(folder / ADAPTER, r=3)


@equal_to(SentenceTransformers)
def test_sentence_transformer_with_an_adapter(folder):

    base = folder / "base"
    save(base, "bert")
    made = SentenceTransformer(
        modules=[Transformer(str(base)), Pooling(SHAPE["hidden"])], device="cpu"
    )
    made.add_adapter(peft.LoraConfig(r=4, target_modules=TARGETS))
    for name, weight in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    made.save(str(folder), create_model_card=False)
    # it writes the adapter alone: a user puts the base model beside it
    model("bert").save_pretrained(folder)
