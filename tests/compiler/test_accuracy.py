"""Metrics by hand-worked figures, files with faults, tasks a model cannot answer."""

import numpy as np
import pytest

from intformer.errors import IntformerError
from intformer.measure import accuracy as ev


def test_metrics_by_hand():
    predicted, wanted = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    assert ev.accuracy(predicted, wanted) == pytest.approx(3 / 5)
    assert ev.f1(predicted, wanted) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3*3*2*2)
    assert ev.matthews(predicted, wanted) == pytest.approx(1 / 6)
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])
    assert ev.spearman(a, b) == pytest.approx(1)
    assert ev.spearman(a, -b) == pytest.approx(-1)
    # covariance 25 over sqrt(5 * 129)
    assert ev.pearson(a, b) == pytest.approx(25 / np.sqrt(5 * 129))


def test_ties_share_their_mean_rank():
    np.testing.assert_array_equal(ev.ranks(np.array([3, 1, 3, 0])), [2.5, 1, 2.5, 0])
    # 1 - 6 * sum d^2 / (n (n^2 - 1)) does not hold with ties; Pearson of the ranks does
    assert ev.spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(
        4.5 / np.sqrt(4.5 * 5)
    )


@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson", "spearman"])
def test_constant_predictions_count_nothing(metric):
    assert ev.METRICS[metric](np.zeros(4), np.array([0, 0, 1, 0])) == 0


def test_rows_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('idx\tlabel\tsentence1\tsentence2\n7\t4.5\tA "b"\tc\n8\t0\td\te\n')
    texts, labels = ev.read_rows(path, ev.TASKS["stsb"])
    assert texts == [('A "b"', "c"), ("d", "e")]
    np.testing.assert_array_equal(labels, [4.5, 0])
    assert ev.read_rows(path, ev.TASKS["stsb"], 1)[0] == texts[:1]


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "a.tsv"
    odd = "one\u2028two\x85three\x0cfour\x1cfive"
    path.write_bytes(f"idx\tlabel\tsentence\r\n0\t1\t{odd}\r\n1\t0\tplain\n".encode())
    texts, labels = ev.read_rows(path, ev.TASKS["sst2"])
    assert texts == [(odd,), ("plain",)]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'label'"),
        ("idx\tlabel\ttext\n", "no column 'sentence'"),
        ("idx\tlabel\tsentence\n", "no rows"),
        ("idx\tlabel\tsentence\n1\tx\tgood\n", "line 2"),
        ("idx\tlabel\tsentence\n1\t1\tgood\n2\t1\n", "line 3"),
        ("idx\tlabel\tsentence\n1\t2\tgood\n", "label 2 of 2 labels"),
    ],
)
def test_faulty_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.tsv"
    path.write_text(content)
    with pytest.raises(IntformerError, match=message) as error:
        ev.read_rows(path, ev.TASKS["sst2"])
    assert str(path) in error.value.where


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(IntformerError, match="cannot read"):
        ev.read_rows(tmp_path / "none.tsv", ev.TASKS["sst2"])
    (tmp_path / "b.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IntformerError, match="cannot read"):
        ev.read_rows(tmp_path / "b.tsv", ev.TASKS["sst2"])


@pytest.mark.parametrize(
    ("head", "labels", "fits"),
    [
        ("sentence-embedding", 0, {"stsb"}),
        ("sequence-classification", 2, {"sst2", "cola", "imdb", "mrpc", "qqp", "rte", "qnli"}),
        ("sequence-classification", 3, {"mnli"}),
        ("sequence-classification", 1, {"stsb"}),
        ("masked-lm", 0, set()),
        ("sparse-embedding", 0, set()),
    ],
)
def test_tasks_that_a_head_answers(head, labels, fits):
    meta = {"head": head, "labels": ["x"] * labels}
    answered = set()
    for name, task in ev.TASKS.items():
        try:
            ev.refuse_misfit(name, task, meta)
            answered.add(name)
        except IntformerError:
            continue
    assert answered == fits


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        (["entailment", "neutral", "contradiction"], [0, 1, 2]),
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], [2, 1, 0]),
        (["contradiction", "entailment", "neutral"], [2, 0, 1]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
    ],
)
def test_classes_go_by_their_names(labels, answers):
    meta = {"head": "sequence-classification", "labels": labels}
    np.testing.assert_array_equal(ev.predictions(ev.TASKS["mnli"], meta, np.eye(3)), answers)


def test_similarity_is_that_of_truncated_embeddings():
    rows = np.array([[3, 4, 9], [3, 4, -9]], np.float32)
    meta = {"head": "sentence-embedding", "labels": [], "truncate_dim": 2}
    np.testing.assert_allclose(ev.predictions(ev.TASKS["stsb"], meta, rows), [1], rtol=1e-6)


def test_unknown_task_is_refused():
    with pytest.raises(IntformerError, match="task 'sts' is unknown"):
        ev.evaluate("none.so", "sts", "none.tsv")
