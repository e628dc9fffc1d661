"""Directories of CrossEncoder, as version 6.2 and older ones write them."""

import pytest
import torch
from sentence_transformers import CrossEncoder

from intformer_testing.foreign.directories import change, save
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import CrossEncoders

IDENTITY, SIGMOID = torch.nn.Identity(), torch.nn.Sigmoid()


def st6(folder, labels, activation=None, family="bert", **about):
    """Write a CrossEncoder as version 6.2 does."""
    save(folder / "base", family, "sequence-classification", labels=labels)
    model = CrossEncoder(str(folder / "base"), activation_fn=activation, device="cpu", **about)
    model.save_pretrained(str(folder), create_model_card=False)


@pytest.mark.parametrize("activation", [None, IDENTITY, SIGMOID], ids=str)
@pytest.mark.parametrize("labels", [1, 3])
@equal_to(CrossEncoders)
def test_activation(folder, labels, activation):
    st6(folder, labels, activation)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "distilbert", "electra", "albert"])
@equal_to(CrossEncoders)
def test_family(folder, family):
    st6(
        folder, 3, family=family
    )  # a single logit of a random model may lie near zero for all texts


@equal_to(CrossEncoders)
def test_max_length(folder):
    st6(folder, 1, max_length=20)


@equal_to(CrossEncoders)
def test_default_prompt(folder):
    st6(folder, 1, prompts={"query": "what is: "}, default_prompt_name="query")


@pytest.mark.parametrize("named", ["Tanh", "ReLU"])
@refused("config_sentence_transformers.json", "activation_fn", "torch.nn.modules.activation")
def test_other_activation(folder, named):
    st6(folder, 1, getattr(torch.nn, named)())


OLD = {
    "version 4": {"sentence_transformers": {"activation_fn": "{}", "version": "4.1.0"}},
    "version 2": {"sbert_ce_default_activation_function": "{}"},
}


@pytest.mark.parametrize("activation", ["linear.Identity", "activation.Sigmoid"])
@pytest.mark.parametrize("form", OLD)
@equal_to(CrossEncoders)
def test_old_form(folder, form, activation):
    save(folder, "bert", "sequence-classification", labels=1)
    named = f"torch.nn.modules.{activation}"
    keys = {
        key: named if value == "{}" else {**value, "activation_fn": named}
        for key, value in OLD[form].items()
    }
    change(folder / "config.json", **keys)


@equal_to(CrossEncoders)
def test_old_form_without_activation(folder):
    save(folder, "bert", "sequence-classification", labels=1)


@equal_to(CrossEncoders)
def test_large_logits_keep_their_rank(folder):
    """A sigmoid would give 1.0 for all of them; the directory asks for none."""
    made = save(folder, "bert", "sequence-classification", labels=1)
    with torch.no_grad():
        made.classifier.weight *= 20
        made.classifier.bias += 30
    made.save_pretrained(folder)
    named = "torch.nn.modules.linear.Identity"
    change(folder / "config.json", sbert_ce_default_activation_function=named)
