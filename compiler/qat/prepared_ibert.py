"""Recipe ibert: transformers' own IBert modules train, our IntModel of them evaluates.

What differs from transformers' evaluation is what frontend.ibert says in meta["deviations"]: exact
integers instead of float32's, 255 for a probability of 256/256, and the classification head in
integers, which transformers runs in float. Training sees padding as transformers does: its
QuantActs take masked tokens into their ranges.
"""

from pathlib import Path

import numpy as np
import torch

from intformer.errors import IntformerError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.ibert import import_ibert
from intformer.frontend.trained import CONFIG_KEY
from intformer.ir.heads import head_of
from intformer.ir.model import IntModel
from intformer.qat.packing import TOKENS, padded_sequences
from intformer.qat.prepared import Answering, Prepared
from intformer.qat.to_ibert import tame


class PreparedIBert(Prepared):
    """An IBert module in quant_mode.

    raised  LayerNorm channels whose |gamma| was raised at first, see to_ibert.tame
    """

    def __init__(self, checkpoint: Checkpoint, model, head: str):
        """Take an IBert module."""
        super().__init__(checkpoint, model, {"head": head, "nonlinear": "integer"})
        self.raised = tame(model)
        self.meta["problem_type"] = model.config.problem_type
        self.meta["vocab_size"] = model.config.vocab_size
        self.meta["type_vocab_size"] = model.config.type_vocab_size
        self.meta["position_count"] = model.config.max_position_embeddings
        self.meta["position_rule"] = "padding"
        self.meta["pad_token_id"] = model.config.pad_token_id

    def simulated(self, batch: dict, answers: dict):
        """See Prepared; what training returns is transformers' own output."""
        tame(self.model)
        labels, positions = answers["labels"], ("start_positions", "end_positions")
        if head_of(self.meta).answers_questions:
            batch = batch | {name: answers[name] for name in positions}
        elif labels is not None:
            batch = batch | {"labels": labels}
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            try:
                return self.model(**batch)
            except AssertionError as error:  # theirs, of QuantAct
                raise IntformerError(
                    f"transformers' I-BERT stopped: {error}",
                    hint="is the learning rate too high? are the weights finite?",
                ) from error

    def numpy_checkpoint(self) -> Checkpoint:
        """Return the present parameters and ranges under the IBert configuration."""
        checkpoint = super().numpy_checkpoint()
        architectures = [type(self.model).__name__]
        checkpoint.config = {**self.config.to_dict(), "architectures": architectures}
        return checkpoint

    def int_model(self) -> IntModel:
        """See Prepared; mode hf_compat, as the modules compute."""
        return import_ibert(self.numpy_checkpoint(), head=self.meta["head"])

    def save_weights(self, directory: Path) -> None:
        """Write config, weights and transformers' own range buffers."""
        setattr(self.config, CONFIG_KEY, {"recipe": "ibert"})
        self.model.save_pretrained(directory)


class PreparedIBertForQuestionAnswering(Answering, PreparedIBert):
    """Recipe ibert."""


@torch.no_grad()
def calibrate(prepared: PreparedIBert, batches: list[dict]) -> None:
    """Let the modules' ranges see packed batches (calibration.batches), without dropout."""
    model = prepared.model
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    kept = [module.p for module in modules]
    was = model.training
    model.train()
    try:
        for module in modules:
            module.p = 0.0
        for batch in batches:
            cuts = batch["cu_seqlens"][1:-1]
            parts = zip(*(np.split(batch[name], cuts) for name in TOKENS), strict=True)
            model(**padded_sequences(parts, prepared.meta["pad_token_id"]))
    finally:
        for module, p in zip(modules, kept, strict=True):
            module.p = p
        model.train(was)
