"""Quantization-aware training that ends in the compiled library. Needs torch and transformers.

    prepared = intformer.qat.prepare("FP32_DIR", calibrate="train.tsv")
    Trainer(prepared, ...).train()
    prepared.save_pretrained("QAT_DIR")
    intformer.compile("QAT_DIR", "libmodel.so")

Training simulates integers in float32, after Q8BERT (arXiv 1910.06188) and I-BERT (arXiv
2101.01321); evaluation computes the integers of the compiled library.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intformer.qat.prepare import prepare
    from intformer.qat.prepared import Prepared

__all__ = ["Prepared", "prepare"]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562): torch comes with it."""
    if name == "prepare":
        from intformer.qat.prepare import prepare as value
    elif name == "Prepared":
        from intformer.qat.prepared import Prepared as value
    else:
        raise AttributeError(f"module 'intformer.qat' has no attribute {name!r}")
    globals()[name] = value
    return value
