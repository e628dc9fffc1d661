"""Tuning on a board that a command reaches: an emulator here, or this machine through `ssh`."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intformer.backends.targets import TARGETS
from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer.tuning import board, records
from intformer.tuning.board import Board
from intformer.tuning.build import SYMBOL
from intformer.tuning.driver import tune
from intformer.tuning.measure import TIMED_OUT, WRONG
from intformer.tuning.tasks import tasks
from intformer_testing import emulated, random_hf
from intformer_testing.libc import needs_zig

TOKENS = (20,)
EMULATOR = "qemu-aarch64 -cpu max"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_hf.save(folder, "bert", "sequence-classification", hidden=64, ffn=96, labels=2)
    return import_model(folder, calibrate=random_hf.sequences(seed=1), method="minmax")


@pytest.fixture
def ssh(tmp_path):
    """A command called ssh that runs on this machine what it is given for HOST."""
    path = tmp_path / "ssh"
    there = tmp_path / "there"
    there.mkdir()
    path.write_text(
        f"#!/bin/sh\nTMPDIR={there}\nexport TMPDIR\n"
        '[ "$1" = HOST ] && [ $# = 2 ] && exec sh -c "$2"\nexit 255\n'
    )
    path.chmod(0o755)
    return f"{path} HOST"


@pytest.fixture
def candidate(model, tmp_path):
    """Return a function (target) -> (program of a product, its case, path of that case)."""

    def made(target):
        task = next(
            one for one in tasks([model], TARGETS[target], TOKENS) if one.form.name == "dense"
        )
        case = task.kernels.case(task.kernel, task.rows)
        case.save(tmp_path / "case.npz")
        program = board.build(task.form.text, target, task.default, str(tmp_path))
        return program, case, str(tmp_path / "case.npz")

    return made


@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
def test_a_candidate_in_an_emulator(candidate, target):
    program, _, case = candidate(target)
    seconds = board.there(program, case, SYMBOL, 1, Board.parse(EMULATOR), 300)
    assert len(seconds) == 3 and 0 < seconds[0] <= seconds[1] <= seconds[2]


@needs_zig
def test_a_candidate_through_ssh(candidate, ssh, tmp_path):
    program, _, case = candidate("x86-64")
    seconds = board.there(program, case, SYMBOL, 1, Board.parse(ssh), 300)
    assert len(seconds) == 3 and seconds[0] > 0
    assert not os.listdir(tmp_path / "there")


@needs_zig
def test_a_wrong_result_has_no_speed(candidate, tmp_path, ssh):
    program, case, _ = candidate("x86-64")
    ((index, rows),) = case.expected.items()
    wrong = rows.copy()
    wrong[3, 5] += 1
    replace(case, expected={index: wrong}).save(tmp_path / "wrong.npz")
    what = (
        f"{WRONG}: argument {index} row 3 column 5 is {rows[3, 5]}, the reference says "
        f"{wrong[3, 5]}"
    )
    with pytest.raises(ValueError, match=what):
        board.there(program, str(tmp_path / "wrong.npz"), SYMBOL, 1, Board.parse(ssh), 300)
    case.arguments[0] = np.zeros((1, 1), np.int8)
    (tmp_path / "cut").write_bytes(board.written(case)[:40])
    with pytest.raises(ValueError, match="the case is cut short"):
        Board.parse(ssh).run(Path(program), tmp_path / "cut", 300)


def test_a_board_that_does_not_answer(tmp_path):
    with pytest.raises(ValueError, match=TIMED_OUT):
        Board.parse("sh -c 'sleep 60'").run(tmp_path, tmp_path, 0.2)
    with pytest.raises(IntformerError, match="cannot start 'no-such-command': No such file"):
        Board.parse("no-such-command").run(tmp_path, tmp_path, 10)
    with pytest.raises(ValueError, match="exit code 1"):
        Board.parse("false").run(tmp_path, tmp_path, 10)


@needs_zig
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"via": "ssh HOST", "threads": 2}, "a board is measured on one thread, without RPC"),
        ({"via": "ssh HOST", "rpc": "a:1"}, "a board is measured on one thread, without RPC"),
        ({"via": ""}, "no command"),
        ({"via": "'"}, "is not a command: No closing quotation"),
        ({"via": "false"}, "no program runs there: exit code 1"),
        ({"via": "false", "target": "t4"}, "t4 is a GPU"),
    ],
)
def test_what_is_refused(model, tmp_path, options, what):
    with pytest.raises(IntformerError, match=what):
        given = {"target": "aarch64", "trials": 1, "out": tmp_path, "tokens": TOKENS}
        tune(model, **given | options)


@pytest.mark.slow
@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
def test_a_job_in_an_emulator(model, tmp_path, target):
    every = tasks([model], TARGETS[target], TOKENS)
    report = tune(
        model, target=target, trials=len(every) + 2, out=tmp_path, tokens=TOKENS, timeout=900,
        via=EMULATOR,
    )  # fmt: skip
    assert report.failures == {} and report.trials >= len(every)
    assert len(report.lines) == len(every)
    (run,) = json.loads((tmp_path / target / "provenance.json").read_text())["runs"]
    assert run["cpu"] == f"via {EMULATOR}" and run["cores"] is None
    assert records.read(tmp_path, target).seconds
