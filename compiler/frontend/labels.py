"""The classes of a classifier: their names, and what turns its outputs into scores."""

from collections import Counter

from intformer.errors import CheckpointError
from intformer.frontend import sentence_transformers
from intformer.frontend.json_object import shown
from intformer.ir.heads import Head
from intformer.runtime.edge import score_function

PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")


def answers(checkpoint, head: Head, channels: int) -> dict:
    """Return the part of IntModel.meta that says what a classifier answers.

    labels          names of the classes; empty for other heads
    problem_type    of config.json
    score_function  one of runtime.edge.SCORE_FUNCTIONS; None where texts are not classified
    cross_encoder_function  what sentence_transformers.CrossEncoder applies, of the same
    """
    problem = checkpoint.config.get("problem_type")
    found = {"labels": [], "problem_type": problem, "score_function": None}
    if head.outputs == "classes":
        found["labels"] = names(checkpoint, channels)
    if head.classifies_texts:
        _check_problem(checkpoint, problem, channels)
        _refuse_duplicates(checkpoint, found["labels"])
        own = sentence_transformers.score_function(checkpoint, channels)
        found["score_function"] = own or score_function(problem, channels)
        plain = sentence_transformers.plain_function(channels)
        found["cross_encoder_function"] = own or plain
    return found


def names(checkpoint, count: int) -> list[str]:
    """Return the class names of id2label in config.json, LABEL_<i> where it has none.

    Raises where id2label does not name each of the `count` classes. label2id is not read, as in
    transformers' pipelines.
    """
    where = str(checkpoint.path / "config.json")
    found = {}
    for key, name in checkpoint.setting("id2label", dict, {}).items():
        key = str(key)  # a configuration in memory has integers
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise CheckpointError(
                f"config key 'id2label' has key {shown(key)}, not the number of a class",
                where=where,
            )
        if not isinstance(name, str | int | float):
            raise CheckpointError(
                f"config key 'id2label' has {shown(name)} for class {key}, not a name", where=where
            )
        found[int(key)] = str(name)
    if not found:
        return [f"LABEL_{i}" for i in range(count)]
    if sorted(found) != list(range(count)):
        raise CheckpointError(
            f"config key 'id2label' names classes {shown(sorted(found))}, "
            f"the classifier has {count}, counted from 0",
            where=where,
        )
    return [found[i] for i in range(count)]


def _refuse_duplicates(checkpoint, labels: list[str]) -> None:
    twice = [name for name, times in Counter(labels).items() if times > 1]
    if twice:
        raise CheckpointError(
            f"config key 'id2label' names several classes {shown(twice[0])}",
            where=str(checkpoint.path / "config.json"),
            hint="give each class a name of its own: scores are answered by name",
        )


def _check_problem(checkpoint, problem: object, channels: int) -> None:
    """Refuse the problem types that transformers refuses."""
    where = str(checkpoint.path / "config.json")
    if problem not in PROBLEMS:
        raise CheckpointError(
            f"config key 'problem_type' = {shown(problem)} is not supported",
            where=where,
            hint="one of " + ", ".join(PROBLEMS[1:]),
        )
    if problem == "single_label_classification" and channels == 1:
        raise CheckpointError(
            f"config key 'problem_type' = {problem!r} with one label has nothing to choose from",
            where=where,
            hint="'regression' answers with the number itself, no problem_type with its sigmoid",
        )
