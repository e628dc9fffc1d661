"""The logs that come with intformer cover the well-known shapes from 1 to 4096 tokens."""

import json
from functools import cache

import pytest

import intformer
from intformer.backends.targets import TARGETS
from intformer.ir.constants import BLOCK
from intformer.tuning import records
from intformer.tuning.driver import TOKENS
from intformer.tuning.tasks import models_of_shape, tasks

TARGET = "cascadelake"
COVERED = ("bert-base", "bert-large", "minilm-l6", "distilbert")


@cache
def models(shape):
    return models_of_shape(shape)


@pytest.mark.parametrize("shape", COVERED)
def test_every_kernel_has_records_at_every_row_count(shape):
    logs = records.read(records.PACKAGED, TARGET)
    for task in tasks(models(shape), TARGETS[TARGET], TOKENS):
        if task.title.startswith("take_rows"):  # copies a few rows: its default is what is used
            continue
        seconds = logs.known(task.form, task.space).get(-(-task.rows // BLOCK), {})
        assert tuple(sorted(task.default.items())) in seconds, f"{shape}: {task.title}"


def test_a_model_compiles_from_the_logs(tmp_path):
    model = models("minilm-l6")[0]
    library = intformer.compile(model, tmp_path / "m.so", target=TARGET)
    about = library.metadata["tuning"][TARGET]
    assert about["logs"] == records.PACKAGED
    copies = {s["kernel"] for s in library.plan["steps"] if s["kernel"].startswith("take_rows")}
    assert about["tuned"] == about["kernels"] - len(copies) > 0


def test_the_logs_say_where_they_come_from():
    folder = records.packaged() / TARGET
    assert records.check_provenance(folder) == []
    runs = json.loads((folder / records.PROVENANCE).read_text())["runs"]
    for run in runs:
        assert run.keys() >= {"tvm", "cpu", "cores", "threads", "date", "command", "trials"}
    assert all(any(shape in run["command"] for run in runs) for shape in COVERED)
