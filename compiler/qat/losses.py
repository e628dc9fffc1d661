"""Losses as transformers computes them, and what a forward pass returns."""

from torch.nn import functional
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from intformer.errors import IntformerError
from intformer.ir.heads import Head
from intformer.qat.packing import IGNORED, Tokens

HIDDEN_LOGIT = -1e4  # of a masked token as the start or end of an answer


def classification_loss(logits, labels, problem: str | None):
    """Loss of one row per sequence; labels int64 [B], or float [B] (regression) or [B, labels]."""
    if problem is None:
        single = not labels.is_floating_point()
        problem = "single_label_classification" if single else "multi_label_classification"
        if logits.shape[1] == 1:
            problem = "regression"
    if problem == "regression":
        return functional.mse_loss(
            logits.squeeze(-1), labels.to(logits.dtype).view(len(logits), -1).squeeze(-1)
        )
    if problem == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels.view(-1).long())


def answer_loss(start, end, start_positions, end_positions):
    """Mean loss of start and end [B, length]; positions beyond the text are ignored."""
    length = start.shape[1]
    total = 0.0
    for logits, wanted in ((start, start_positions), (end, end_positions)):
        wanted = wanted.view(-1).clamp(0, length)
        total = total + functional.cross_entropy(logits, wanted, ignore_index=length)
    return total / 2


def output(head: Head, rows, tokens: Tokens, problem, labels, start_positions, end_positions):
    """Return transformers' output object of a head's rows, with the loss where labels are given."""
    if head.answers_questions:
        start, end = tokens.spread(rows, HIDDEN_LOGIT).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = answer_loss(start, end, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)
    if head.outputs == "classes" and head.rows == "token":
        loss = None
        if labels is not None:
            wanted = labels.flatten()[tokens.places]
            loss = functional.cross_entropy(rows, wanted.long(), ignore_index=IGNORED)
        return TokenClassifierOutput(loss=loss, logits=tokens.spread(rows, 0.0))
    if head.rows == "token":
        rows = tokens.spread(rows, 0.0)
    loss = None
    if labels is not None:
        if not head.classifies_texts:
            raise IntformerError(
                f"head {head.name!r} has no loss of its own", hint="leave labels out"
            )
        loss = classification_loss(rows, labels, problem)
    return SequenceClassifierOutput(loss=loss, logits=rows)
