"""Padded batches of the random models' sequences, and what a head returned for their tokens."""

import numpy as np
import torch

from intformer.runtime.edge import pack
from intformer_testing import random_hf


def batch(pad=0, lengths=random_hf.LENGTHS, seed=0, extra=0, vocab=random_hf.VOCABULARY):
    """input_ids and attention_mask, right-padded to the longest and `extra` more."""
    rng = np.random.default_rng(seed)
    ids = torch.full((len(lengths), max(lengths) + extra), pad)
    mask = torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        ids[i, :length] = torch.from_numpy(rng.integers(5, vocab, length))
        mask[i, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def packed(model, inputs):
    """The same for IntModel.run."""
    return pack(model.meta, *(inputs[key].numpy() for key in ("input_ids", "attention_mask")))


def rows(out, mask):
    """Return logits of real tokens, or of sequences, float64 [rows, channels]."""
    if "start_logits" in out:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        logits = out[0] if "logits" not in out else out.logits
    logits = logits.detach().double()
    return (logits[mask.bool()] if logits.dim() == 3 else logits).numpy()


def snr_db(wanted, got):
    """Signal to noise of `got` in dB."""
    return 10 * np.log10(np.square(wanted).sum() / np.square(got - wanted).sum())
