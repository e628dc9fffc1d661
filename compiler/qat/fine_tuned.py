"""Rows for a head that is there already: it says how the classes are numbered and named."""

from dataclasses import replace

from intformer.errors import CheckpointError
from intformer.frontend import labels
from intformer.frontend.architectures import head_named
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import architecture
from intformer.qat.tasks import Rows


def fitting(rows: Rows, checkpoint: Checkpoint) -> Rows:
    """Return the rows with their classes in the order of a fine-tuned directory's head.

    The names are the directory's, upper and lower case aside, or ours where it has LABEL_<i> alone.
    Raises where its head answers something else.
    """
    named = architecture(checkpoint)
    head = head_named(named)
    if head is not rows.head:
        said = head.name if head else named
        raise misfit(checkpoint, f"config key 'architectures' says {said}, not {rows.head.name}")
    found = checkpoint.setting("id2label", dict, {})
    outputs = len(found) or checkpoint.setting("num_labels", int, 2)
    if outputs != rows.outputs:
        raise misfit(checkpoint, f"the head has {outputs} outputs, not {rows.outputs}")
    kind = "regression" if rows.regression else "single_label_classification"
    problem = checkpoint.config.get("problem_type")
    if head.classifies_texts and problem not in (None, kind):
        raise misfit(checkpoint, f"config key 'problem_type' = {problem!r}, not {kind!r}")
    names = labels.names(checkpoint, outputs)
    if not rows.labels or names == [f"LABEL_{i}" for i in range(outputs)]:
        return rows
    plain = str if set(names) == set(rows.labels) else str.casefold
    order = {plain(name): i for i, name in enumerate(names)}
    if sorted(order) != sorted(map(plain, rows.labels)):
        theirs, ours = (", ".join(map(repr, some)) for some in (names, rows.labels))
        raise misfit(checkpoint, f"the head's classes are {theirs}, not {ours}")
    place = [order[plain(label)] for label in rows.labels]
    targets = [
        [place[one] for one in target] if isinstance(target, list) else place[target]
        for target in rows.targets
    ]
    return replace(rows, labels=tuple(names), targets=targets)


def misfit(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """Return the error of a head that is another task's."""
    return CheckpointError(
        what,
        where=str(checkpoint.path / "config.json"),
        hint="--epochs 1 or more: the FP32 stage makes a head that fits",
    )
