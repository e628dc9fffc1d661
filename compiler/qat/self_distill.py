"""A short training without labels: the quantized model learns its own float model's outputs.

The loss is the error's energy over that of FP32's output, so SNR = -10 log10(loss): what `analyze`
reports.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.models.ibert.quant_modules import QuantAct, QuantEmbedding

from intformer.errors import IntformerError
from intformer.frontend import calibration
from intformer.ir.float_run import pooled, run
from intformer.ir.graph import Graph
from intformer.ir.heads import head_of
from intformer.measure.float_model import quiet
from intformer.progress import progress
from intformer.qat import prepare
from intformer.qat.packing import padded_sequences
from intformer.qat.prepared import Prepared, PreparedNative
from intformer.qat.simulate import Dropout

BATCH = 8  # sequences in a step,
STEP_TOKENS = 512  # or fewer where they are longer than so many tokens together
RATE = 1e-5  # peak of the learning rate,
WARM = 0.1  # after this share of the steps; then it falls in a line
CLIP = 1.0  # of the gradient's norm


def self_distilled(
    source: str | Path,
    teacher: Graph,
    meta: dict,
    sequences: list[calibration.Sequence],
    steps: int,
    *,
    seed: int = 0,
) -> Prepared:
    """Prepare the model in `source` and train it to give what `teacher` gives.

    source     as prepare takes it; an IBert directory trains with recipe ibert, others natively
    teacher    its float graph
    meta       of an IntModel of it: head, pooling, position_rule, pad_token_id, ...
    sequences  that set the first ranges and are trained on
    steps      of BATCH sequences each, or STEP_TOKENS tokens
    seed       of their order; the same seed gives the same model, with as many threads
    """
    quiet()
    prepared = prepare(
        source,
        recipe=meta["recipe"],
        nonlinear="integer",
        calibrate=sequences,
        head=meta["head"],
    )
    trained = settled(prepared)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    warm = max(1, round(WARM * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    prepared.train()
    size = batch_size([len(ids) for ids, _ in sequences])
    for chosen in progress(order(len(sequences), size, steps, seed), "training with quantization"):
        group = [sequences[i] for i in chosen]
        wanted = torch.from_numpy(run(teacher, calibration.pack(group, meta)))
        batch = padded_sequences(group, meta["pad_token_id"] or 0)
        got = rows(prepared(**batch), batch["attention_mask"], meta)
        loss = (got - wanted).square().sum() / wanted.square().sum()
        if not math.isfinite(loss.item()):
            raise IntformerError("training with quantization diverged")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
    return prepared.eval()


def settled(prepared: Prepared) -> list[nn.Parameter]:
    """Fix what a few steps should not move; return the parameters to train.

    No dropout: the teacher has none. Ranges stay those of calibration: BATCH short sequences reach
    less far than its batches, and clip more. Embedding tables stay: they are most of the
    parameters and little of the error.
    """
    if isinstance(prepared, PreparedNative):
        prepared.dropout = Dropout()
        prepared.ranges.decay = 1.0
    for module in prepared.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, QuantAct):
            module.act_range_momentum = 1.0
        if isinstance(module, nn.Embedding | QuantEmbedding):
            module.requires_grad_(False)
    return [p for p in prepared.parameters() if p.requires_grad]


def batch_size(lengths: list[int]) -> int:
    """Return how many sequences a step takes: the cost of a run is bounded by its steps."""
    return max(1, min(BATCH, len(lengths), int(STEP_TOKENS / np.mean(lengths))))


def order(count: int, size: int, steps: int, seed: int) -> list[np.ndarray]:
    """Return the sequences of every step: shuffled, each once before any comes again."""
    rng = np.random.default_rng(seed)
    rounds = -(-steps * size // count)
    shuffled = np.concatenate([rng.permutation(count) for _ in range(rounds)])
    return list(shuffled[: steps * size].reshape(steps, size))


def rows(out, mask: torch.Tensor, meta: dict) -> torch.Tensor:
    """Return outputs as the float run does: a row per sequence or real token [rows, C].

    mask  int64 [batch, length]: 1 where a token is
    """
    if "start_logits" in out:
        x = torch.stack((out["start_logits"], out["end_logits"]), -1)
    else:
        x = out[0]
    if x.dim() == 2:
        return x
    if not head_of(meta).embeds:
        return x[mask.bool()]
    return pooled(x, mask, meta["pooling"])
