"""Legal values that several verbs offer."""

from intformer.frontend.architectures import HEADS as HEAD_OF_CLASS

HEADS = tuple(sorted({"sentence-embedding", *HEAD_OF_CLASS.values()}))
