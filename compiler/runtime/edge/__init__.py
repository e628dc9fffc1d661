"""Around a compiled library: text to packed tokens, integer outputs to answers.

The library computes integers from integers. What stays in float is here, after it: one
multiplication by the output scale, softmax, the L2 norm. Needs numpy and tokenizers.
"""

from intformer.runtime.edge.packed import Packed, hf_positions, pack
from intformer.runtime.edge.predict import predict
from intformer.runtime.edge.scores import SCORE_FUNCTIONS, l2_normalised, score_function
from intformer.runtime.edge.text import SETTINGS_FILE, Edge

__all__ = [
    "SCORE_FUNCTIONS",
    "SETTINGS_FILE",
    "Edge",
    "Packed",
    "hf_positions",
    "l2_normalised",
    "pack",
    "predict",
    "score_function",
]
