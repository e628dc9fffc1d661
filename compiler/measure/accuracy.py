"""Accuracy of a library on a labelled file, beside the FP32 model it was made from.

Files are UTF-8 TSV with a header: `idx label sentence` or `idx label sentence1 sentence2`, no
quoting (GLUE as TSV).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from intformer.errors import IntformerError
from intformer.ir.heads import head_of
from intformer.measure.float_model import float_model
from intformer.runtime import Library, load
from intformer.runtime.edge import Edge, Packed, l2_normalised
from intformer.runtime.texts import text_lines

CHANGED_SCORE = 0.01  # similarity and regression: a score that moves further counts as changed


def accuracy(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of equal labels."""
    return float(np.mean(predicted == wanted))


def f1(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return F1 of label 1: 2 TP / (2 TP + FP + FN); 0 where there is nothing to find."""
    hits = np.sum((predicted == 1) & (wanted == 1))
    total = np.sum(predicted == 1) + np.sum(wanted == 1)
    return float(2 * hits / total) if total else 0.0


def matthews(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the Matthews correlation of two 0/1 labellings; 0 where one of them is constant."""
    return pearson(predicted == 1, wanted == 1)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return the linear correlation; 0 where one side is constant."""
    a, b = a - np.mean(a), b - np.mean(b)
    norm = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / norm) if norm else 0.0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of ranks, ties at their mean rank."""
    return pearson(ranks(a), ranks(b))


def ranks(x: np.ndarray) -> np.ndarray:
    """Return ranks from 0, equal numbers sharing their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


METRICS = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


@dataclass(frozen=True)
class Task:
    """What a labelled file asks.

    texts    sentences in a row, 1 or 2
    classes  names in the order of the labels; none for a score
    metrics  names in METRICS
    """

    texts: int
    classes: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def labels(self) -> int:
        """Classes; 0 for a score."""
        return len(self.classes)


TASKS = {
    "sst2": Task(1, ("negative", "positive"), ("accuracy",)),
    "cola": Task(1, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "imdb": Task(1, ("negative", "positive"), ("accuracy",)),
    "ag_news": Task(1, ("World", "Sports", "Business", "Sci/Tech"), ("accuracy",)),
    "mrpc": Task(2, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qqp": Task(2, ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "rte": Task(2, ("entailment", "not_entailment"), ("accuracy",)),
    "qnli": Task(2, ("entailment", "not_entailment"), ("accuracy",)),
    "mnli": Task(2, ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "stsb": Task(2, (), ("spearman", "pearson")),
}


@dataclass
class Evaluation:
    """Figures of one run.

    task, rows     what was evaluated
    integer        metric -> value for the library
    float          the same for the FP32 source; None without one
    changed        rows whose prediction differs: another label, or a score more than CHANGED_SCORE
                   away; None without a source
    tokens         tokens in all rows
    predictions    of the library, one per row (labels or scores)
    """

    task: str
    rows: int
    tokens: int
    integer: dict[str, float]
    float: dict[str, float] | None = None
    changed: int | None = None
    predictions: list = field(default_factory=list)

    def to_json(self) -> dict:
        """Return the figures without the single predictions."""
        return {name: value for name, value in asdict(self).items() if name != "predictions"}


def read_rows(path: str | Path, task: Task, limit: int | None = None):
    """Return (texts, labels) of a labelled TSV: tuples of task.texts strings, floats or ints."""
    path = Path(path)
    try:
        lines = text_lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntformerError(f"cannot read the data: {error}", where=str(path)) from error
    wanted = ["sentence"] if task.texts == 1 else ["sentence1", "sentence2"]
    header = lines[0].split("\t") if lines else []
    if missing := [name for name in ["label", *wanted] if name not in header]:
        raise IntformerError(
            f"no column {missing[0]!r}", where=str(path), hint=f"expected: label {' '.join(wanted)}"
        )
    columns = [header.index(name) for name in wanted]
    texts, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        if limit is not None and len(texts) == limit:
            break
        fields = line.split("\t")
        try:
            texts.append(tuple(fields[c] for c in columns))
            label = fields[header.index("label")]
            labels.append(int(label) if task.labels else float(label))
        except (IndexError, ValueError):
            raise IntformerError(
                "not a labelled row", where=f"{path}, line {number}", hint="columns need one tab"
            ) from None
        if not math.isfinite(labels[-1]):
            raise IntformerError(f"label {labels[-1]} is no score", where=f"{path}, line {number}")
        if task.labels and not 0 <= labels[-1] < task.labels:
            raise IntformerError(
                f"label {labels[-1]} of {task.labels} labels", where=f"{path}, line {number}"
            )
    if not texts:
        raise IntformerError("no rows", where=str(path))
    return texts, np.array(labels)


def metrics(task: Task, predicted: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Return every metric of a task."""
    return {name: METRICS[name](predicted, wanted) for name in task.metrics}


def evaluate(
    library: Library | str | Path,
    task: str,
    data: str | Path,
    source: str | Path | None = None,
    *,
    limit: int | None = None,
    batch: int = 32,
    progress: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """Run a labelled file through a library and, with a source, through its FP32 model.

    task      a name in TASKS
    data      TSV with label and sentence columns
    source    the model directory or ONNX file the library was made from
    limit     rows to take from the top; None takes all
    batch     sequences run at a time
    progress  called with what starts now
    """
    if task not in TASKS:
        raise IntformerError(f"task {task!r} is unknown", hint="one of " + ", ".join(TASKS))
    if not isinstance(library, Library):
        library = load(library)
    asked, meta = TASKS[task], library.metadata
    refuse_misfit(task, asked, meta)
    texts, labels = read_rows(data, asked, limit)
    edge = Edge.of(library)
    if edge.head.embeds:
        packed = edge.encode([text for row in texts for text in row])
    else:
        packed = edge.encode(*(list(column) for column in zip(*texts, strict=True)))
    progress(f"{task}: {len(texts)} rows through the library")
    outputs = edge.real(run_in_batches(library, packed, batch))
    predicted = predictions(asked, meta, outputs)
    result = Evaluation(
        task=task,
        rows=len(texts),
        tokens=len(packed.input_ids),
        integer=metrics(asked, predicted, labels),
        predictions=predicted.tolist(),
    )
    if source is not None:
        progress(f"{task}: {len(texts)} rows through PyTorch FP32")
        model = float_model(source, meta)
        rows = model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens, batch=batch)
        wanted = predictions(asked, meta, rows)
        far = CHANGED_SCORE if asked.labels == 0 else 0
        result.float = metrics(asked, wanted, labels)
        result.changed = int(np.sum(np.abs(predicted - wanted) > far))
    return result


def refuse_misfit(name: str, task: Task, meta: dict) -> None:
    """Raise where a model's head cannot answer a task."""
    head, labels = head_of(meta), len(meta["labels"])
    if task.labels == 0 and head.embeds:
        return
    if head.classifies_texts and labels == (task.labels or 1):
        return
    wanted = f"{task.labels} labels" if task.labels else "one score, or sentence embeddings"
    raise IntformerError(
        f"the model ({head.name}, {labels} labels) cannot answer task {name!r}",
        hint=f"needs {wanted}",
    )


def run_in_batches(library: Library, packed: Packed, batch: int) -> np.ndarray:
    """Run packed sequences `batch` at a time; int32, one row per sequence."""
    outputs = []
    for first in range(0, len(packed.cu_seqlens) - 1, batch):
        cut = packed.cu_seqlens[first : first + batch + 1]
        tokens = slice(cut[0], cut[-1])
        outputs.append(
            library.run(
                packed.input_ids[tokens],
                cut - cut[0],
                packed.token_type_ids[tokens],
                packed.position_ids[tokens],
            )
        )
    return np.concatenate(outputs)


def predictions(task: Task, meta: dict, rows: np.ndarray) -> np.ndarray:
    """Return one label or score per row of a task, from outputs in real units."""
    if head_of(meta).embeds:
        unit = l2_normalised(rows[:, : meta.get("truncate_dim")])
        return np.sum(unit[0::2] * unit[1::2], axis=1)
    return classes(task, meta["labels"], rows.argmax(1)) if task.labels else rows[:, 0]


def classes(task: Task, labels: Sequence[str], numbers: np.ndarray) -> np.ndarray:
    """Return a task's numbers of classes for a model's.

    A model whose classes have the task's names, upper and lower case aside, may have them in
    another order, as many checkpoints of MNLI do; other names (LABEL_0) say nothing of theirs.
    """
    names = [name.casefold() for name in task.classes]
    order = [label.casefold() for label in labels]
    known = sorted(names) == sorted(order)
    return np.array([names.index(name) for name in order])[numbers] if known else numbers
