"""A compiled library behind the interfaces of other packages.

    sentence_transformer("model.so")  a SentenceTransformer
    cross_encoder("model.so")         a CrossEncoder
    pipeline("model.so")              called as a pipeline of transformers is

The first two need the extra `sentence-transformers`; pipelines need the base install only.
"""

import os
from typing import TYPE_CHECKING

from intformer.errors import require
from intformer.runtime.library import Library

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from intformer.integrations.pipelines import Pipeline

__all__ = ["cross_encoder", "pipeline", "sentence_transformer"]


def sentence_transformer(library: Library | str | os.PathLike, **options) -> "SentenceTransformer":
    """Return a SentenceTransformer whose embeddings a library computes.

    library  of head sentence-embedding, or its path
    options  of SentenceTransformer; prompts, truncate_dim and similarity_fn_name are the library's
             unless given

    It encodes, compares, truncates, saves and runs in several processes as any other; it has no
    weights to train and no token embeddings. What `save` writes is loaded by
    SentenceTransformer(folder, trust_remote_code=True).
    """
    require("sentence_transformers")
    from intformer.integrations.models import sentence_transformer

    return sentence_transformer(library, **options)


def cross_encoder(library: Library | str | os.PathLike, **options) -> "CrossEncoder":
    """Return a CrossEncoder whose scores a library computes.

    library  of head sequence-classification, or its path
    options  of CrossEncoder; activation_fn is the library's score function unless given, or the
             identity where that is a softmax, as in CrossEncoder
    """
    require("sentence_transformers")
    from intformer.integrations.models import cross_encoder

    return cross_encoder(library, **options)


def pipeline(
    library: Library | str | os.PathLike, *, task: str | None = None, **options
) -> "Pipeline":
    """Return what answers as transformers' pipeline for the library's head does.

    library  of head sequence-classification, token-classification or question-answering, or its
             path
    task     the name of the task in transformers, which must be the library's; None: any
    options  defaults of the options of its calls
    """
    from intformer.integrations.pipelines import pipeline

    return pipeline(library, task, **options)
