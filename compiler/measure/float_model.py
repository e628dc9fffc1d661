"""The FP32 model a library was made from, run by PyTorch: what we compare with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibration, opened, sentence_transformers
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import activate, pooled, run
from intformer.ir.graph import Norm
from intformer.ir.heads import head_of


def quiet() -> None:
    """Keep transformers off the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def float_model(source: str | Path, metadata: dict) -> "FloatModel | GraphModel":
    """Return the FP32 model of a source, as import_model takes it.

    metadata  of a library made of it
    """
    checkpoint = opened(source)
    kind = GraphModel if checkpoint.unread() else FloatModel
    return kind(checkpoint, metadata)


class GraphModel:
    """The float graph of a source that transformers does not read, run by PyTorch.

    Such are ONNX files, without the roundings of those that have some; JinaBERT, of which
    transformers has no class; and adapters beside a model, which are merged.
    """

    def __init__(self, checkpoint: Checkpoint, metadata: dict):
        """Read the graph of the head in a library's metadata."""
        self.graph, self.meta = read_encoder(checkpoint, metadata["head"])

    def batch(self, ids: np.ndarray, types: np.ndarray | None, cu_seqlens: np.ndarray) -> dict:
        """Return packed tokens as `forward` takes them."""
        types = np.zeros_like(ids) if types is None else types
        cuts = cu_seqlens[1:-1]
        pairs = zip(np.split(ids, cuts), np.split(types, cuts), strict=True)
        return calibration.pack(list(pairs), self.meta)

    def forward(self, batch: dict) -> np.ndarray:
        """Return what the head computes for packed tokens: float32 [rows, channels]."""
        return run(self.graph, batch)

    def rows(self, ids, types, cu_seqlens, *, batch: int = 32, progress: Callable = iter):
        """Return one row per sequence or per token, float32, for packed tokens."""
        found = []
        for first in progress(range(0, len(cu_seqlens) - 1, batch)):
            cut = cu_seqlens[first : first + batch + 1]
            at = slice(cut[0], cut[-1])
            some = None if types is None else types[at]
            found.append(self.forward(self.batch(ids[at], some, cut - cut[0])))
        return np.concatenate(found)


class FloatModel:
    """A Hugging Face model directory, ready to run in float32 without gradients.

    An I-BERT checkpoint's config says quant_mode, with which transformers rounds weights and
    activations as it goes; here it is off, so that FP32 is what the name says.
    """

    def __init__(self, source: str | Path | Checkpoint, metadata: dict):
        """Load the class that fits the head in a library's metadata."""
        import torch
        import transformers

        self.head, self.pad = head_of(metadata), metadata["pad_token_id"] or 0
        self.pooling = metadata.get("pooling")
        auto = getattr(transformers, self.head.auto_class)
        quiet()
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        checkpoint.refuse_rewritten()
        self.modules = [
            (module.weights(checkpoint), module.function)
            for module in sentence_transformers.modules(checkpoint, self.head)
        ]
        source = checkpoint.path
        try:
            config = transformers.AutoConfig.from_pretrained(str(source))
            if getattr(config, "quant_mode", False):
                config.quant_mode = False
            self.model = auto.from_pretrained(
                str(source), config=config, dtype=torch.float32
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"transformers cannot load it: {str(error).splitlines()[0]}", where=str(source)
            ) from error

    def pad_batch(self, ids: np.ndarray, types: np.ndarray | None, cu_seqlens: np.ndarray) -> dict:
        """Return the padded tensors of packed tokens: ids, mask, types, int64 [batch, longest]."""
        import torch

        lengths = np.diff(cu_seqlens)
        shape = (len(lengths), int(lengths.max()))
        real = np.arange(shape[1]) < lengths[:, None]
        batch = {"input_ids": np.full(shape, self.pad), "attention_mask": real.astype(np.int64)}
        batch["input_ids"][real] = ids
        if types is not None and types.any():
            batch["token_type_ids"] = np.zeros(shape, np.int64)
            batch["token_type_ids"][real] = types
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}

    def forward(self, batch: dict) -> np.ndarray:
        """Return what the head computes for a padded batch: float32 [batch, tokens or 1, channels].

        Sentence embeddings are pooled over real tokens and passed through the modules with weights,
        as the library's are, and are not normalised.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            out = self.model(**batch)
            if self.head.answers_questions:
                return torch.stack((out.start_logits, out.end_logits), -1).numpy()
            if self.head.outputs == "vectors":
                hidden = out.last_hidden_state
                if self.head.rows == "token":
                    return hidden.numpy()
                x = pooled(hidden, batch["attention_mask"], self.pooling)[:, None]
                for params, function in self.modules:
                    weight, bias = torch.from_numpy(params.weight), torch.from_numpy(params.bias)
                    if isinstance(params, Norm):
                        x = functional.layer_norm(x, x.shape[-1:], weight, bias, params.eps)
                    else:
                        x = functional.linear(x, weight, bias)
                    x = activate(x, function) if function else x
                return x.numpy()
            logits = out.logits
            if logits.ndim == 3 and self.head.rows == "sequence":
                logits = pooled(logits, batch["attention_mask"], "max")
            return (logits[:, None] if logits.ndim == 2 else logits).numpy()

    def rows(self, ids, types, cu_seqlens, *, batch: int = 32, progress: Callable = iter):
        """Return one row per sequence or per token, float32, for packed tokens.

        The sequences are sorted by length and run in padded batches; the result is in their order.
        """
        lengths = np.diff(cu_seqlens)
        order = np.argsort(lengths, kind="stable")
        results: dict[int, np.ndarray] = {}
        for start in progress(range(0, len(order), batch)):
            chosen = order[start : start + batch]
            at = [np.arange(cu_seqlens[i], cu_seqlens[i + 1]) for i in chosen]
            offsets = np.cumsum([0, *(len(a) for a in at)])
            flat = np.concatenate(at)
            padded = self.pad_batch(ids[flat], None if types is None else types[flat], offsets)
            for i, row in zip(chosen, self.forward(padded), strict=True):
                results[int(i)] = row if len(row) == 1 else row[: lengths[i]]
        return np.concatenate([results[i] for i in range(len(lengths))])
