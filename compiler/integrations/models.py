"""SentenceTransformer and CrossEncoder around one module that runs a library."""

import os

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from intformer.integrations.modules import LibraryEncoder, LibraryScorer
from intformer.runtime.library import Library

ACTIVATIONS = {  # score function of a library -> what CrossEncoder applies to its logits
    "sigmoid": torch.nn.Sigmoid,
    "identity": torch.nn.Identity,
    "softmax": lambda: torch.nn.Softmax(dim=-1),
}


def sentence_transformer(library: Library | str | os.PathLike, **options) -> SentenceTransformer:
    """Return a SentenceTransformer, see intformer.integrations."""
    module = LibraryEncoder(library)
    about = module.library.metadata
    own = {"truncate_dim": about.get("truncate_dim"), "similarity_fn_name": about.get("similarity")}
    return SentenceTransformer(modules=[module], **(_prompts(about) | own | options))


def cross_encoder(library: Library | str | os.PathLike, **options) -> CrossEncoder:
    """Return a CrossEncoder, see intformer.integrations."""
    module = LibraryScorer(library)
    about = module.library.metadata
    function = about.get("cross_encoder_function") or about["score_function"]  # of older libraries
    own = {"activation_fn": ACTIVATIONS[function]()}
    return CrossEncoder(modules=[module], **(_prompts(about) | own | options))


def _prompts(metadata: dict) -> dict:
    return {
        "prompts": metadata.get("prompts"),
        "default_prompt_name": metadata.get("default_prompt"),
    }
