"""The interval and the table of `make qat-results`, on cells made by hand."""

import json

import numpy as np
import pytest

from intformer_qat_results import report


def test_the_interval_of_equal_predictions_is_nothing():
    wanted = np.array([0, 1] * 20)
    assert report.interval("accuracy", [wanted], [wanted], wanted) == (0, 0)


def test_the_interval_is_that_of_the_binomial():
    """10 of 100 rows differ: 0.1, and 1.96 standard deviations of sqrt(0.1 * 0.9 / 100)."""
    wanted = np.ones(100, int)
    theirs = wanted.copy()
    theirs[:10] = 0
    low, high = report.interval("accuracy", [wanted, wanted], [theirs, theirs], wanted)
    assert low == pytest.approx(0.1 - 1.96 * 0.03, abs=0.012)
    assert high == pytest.approx(0.1 + 1.96 * 0.03, abs=0.012)


def test_cells_become_a_table(tmp_path):
    wanted = [0, 1, 1, 0]
    predicted = {"fp32": [0, 1, 1, 1], "qat": [0, 1, 1, 0], "ptq": [1, 1, 1, 1]}
    for kind, labels in predicted.items():
        path = tmp_path / "out" / "sst2" / "0" / f"{kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        score = float(np.mean(np.array(labels) == wanted))
        cell = {"metrics": {"accuracy": score}, "predictions": labels, "wanted": wanted}
        path.write_text(json.dumps({**cell, "versions": {"torch": "x"}, "seconds": 1}))
    results = tmp_path / "results.json"
    report.write(tmp_path / "out", results)
    data = json.loads(results.read_text())
    assert data["versions"] == {"torch": "x"}
    assert "predictions" not in data["tasks"]["sst2"]["cells"]["qat"]["0"]
    assert data["tasks"]["sst2"]["minus_fp32"]["qat"]["mean"] == 0.25
    (line,) = (line for line in report.table(results) if line.startswith("| sst2"))
    assert line.startswith("| sst2, accuracy | 75.0 | 50.0 | 100.0 |  |  | +25.0 (")
