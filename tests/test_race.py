"""`make bench` without rivals: driver, marks, report."""

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import intformer_records as records
import pytest

from intformer.frontend.shapes import SHAPES
from intformer_race import driver, footprint, report, texts
from intformer_race.cells import (
    AMX,
    BASE,
    CONTESTANTS,
    KEY,
    OURS,
    TORCH,
    VNNI,
    Cell,
    contestants,
    long_cells,
)
from intformer_race.cells import default_cells as default
from intformer_race.driver import Entrant, race
from intformer_race.marks import Mark, lead, marks
from intformer_race.meet import result

TOY = """
import json, os, sys, time
spec = json.loads(sys.argv[1])
def say(message): print(json.dumps(message), flush=True)
if spec["mode"] == "dies": sys.exit("no such instruction")
say({"ready": True, "info": {"version": "1", "logits": [1.5]}})
for turn, line in enumerate(sys.stdin):
    if spec["mode"] == "crashes" and turn == 1: os.abort()
    if spec["mode"] == "hangs": time.sleep(60)
    if spec["mode"] == "lies": say({"ms": [0.0], "cpu_ms": 0}); continue
    if spec["mode"] == "babbles": print("hello", flush=True); continue
    with open(spec["log"], "a") as log: log.write(spec["mode"])
    say({"ms": [spec["ms"], 2 * spec["ms"], 3 * spec["ms"]], "cpu_ms": spec["ms"]})
"""


def entrant(tmp_path, mode, ms=10.0, seconds=10):
    program = tmp_path / "toy.py"
    program.write_text(TOY)
    spec = {"mode": mode, "threads": 1, "isa": "amx", "ms": ms, "log": str(tmp_path / "turns")}
    spec["cpus"] = [min(os.sched_getaffinity(0))]
    one = Entrant(mode, [sys.executable, str(program)], spec, tmp_path / f"{mode}.log")
    one.get_ready(seconds)
    return one


def test_contestants_take_turns(tmp_path):
    both = [entrant(tmp_path, "a", 10), entrant(tmp_path, "b", 20)]
    race(both, rounds=4, turn=0.1)
    # a turn is 60 ms of runs: seven of them make 4 * 0.1 s; b's are twice as long
    assert (tmp_path / "turns").read_text() == "abababab"
    rows = [result(one) for one in both]
    assert [row["ms"] for row in rows] == [20, 40]
    assert rows[0]["runs"] == 12
    assert rows[0]["logits"] == [1.5]
    assert rows[0]["info"] == {"version": "1"}


def test_long_runs_end_early_but_not_before_three_turns(tmp_path):
    one = entrant(tmp_path, "a", 1000)
    race([one], rounds=5, turn=0.1)
    assert (tmp_path / "turns").read_text() == "aaa"


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("dies", "exit 1: no such instruction"),
        ("crashes", "exit -6"),
        ("hangs", "no answer in 0.4 s"),
        ("lies", "timed [0.0]"),
        ("babbles", "JSONDecodeError"),
    ],
)
def test_who_fails_is_out_and_the_others_go_on(tmp_path, mode, error):
    bad, good = entrant(tmp_path, mode), entrant(tmp_path, "a")
    start = time.monotonic()
    race([bad, good], rounds=3, turn=0.1, patience=0.3)
    assert time.monotonic() - start < 10
    assert error in bad.error
    assert "ms" not in result(bad)
    assert result(good)["runs"] == 9
    assert bad._process.poll() is not None
    assert good._process.poll() is not None


def test_who_takes_the_last_memory_is_out(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "available_memory", lambda: driver.RESERVE - 1)
    one = entrant(tmp_path, "a")
    assert one.error == "stopped: less than 1536 MiB of memory was left"
    assert one._process.poll() is not None


def test_who_is_never_ready_is_out(tmp_path):
    one = entrant(tmp_path, "a", seconds=0.001)
    assert one.error == "no answer in 0.001 s"


def test_who_cannot_be_started_is_out(tmp_path):
    spec = {"threads": 1, "isa": "amx", "cpus": [0]}
    one = Entrant("gone", [str(tmp_path / "gone")], spec, tmp_path / "gone.log")
    one.get_ready(1)
    race([one], rounds=1, turn=0.1)
    assert "cannot be started" in one.error


def row(name, ms, role="rival", **more):
    return {"name": name, "computes": "", "role": role, **({"ms": ms} if ms else {}), **more}


def cell(where, ours, rivals, **more):
    rows = [row(OURS, ours, "ours", library="base", gops=65.0), *more.pop("rows", [])]
    rows += [row(name, ms) for name, ms in rivals.items()]
    about = dict(zip(("model", "batch", "seq", "threads", "isa"), where, strict=True))
    return {**about, "rows": rows, **more}


def key(threads=1, isa=VNNI):
    return BASE, *KEY, threads, isa


def found(cells, **more):
    wanted = {isa: default([isa]) for isa in (VNNI, AMX)}
    return {mark.what: mark for mark in marks({"cells": cells, **more}, wanted)}


@pytest.mark.parametrize(
    ("figure", "sense", "verdict"),
    [(1.4, ">=", "met"), (1.39, ">=", "missed"), (1.4, ">", "missed"), (1.41, "<=", "missed")],
)
def test_a_mark_is_met_or_missed(figure, sense, verdict):
    assert Mark("a", figure, sense, 1.4).verdict == verdict


def test_a_mark_without_a_figure_or_with_a_failed_rival_is_open():
    assert Mark("a", None, ">=", 1).verdict == "open"
    assert Mark("a", 2.0, ">=", 1, open=True).verdict == "open"
    assert Mark("a", 0.5, ">=", 1, open=True).verdict == "missed"


def test_the_lead_is_over_the_fastest_rival():
    raced = cell(key(), 10.0, {"slow": 30.0, "fast": 14.0, "failed": None})
    assert lead(raced) == (1.4, "fast", ["failed"])
    assert lead(cell(key(), None, {"slow": 30.0}))[0] is None


def test_marks_of_the_key_cell():
    rows = [row("vnni-peak", 1.0, "roof", gops=100.0), row("intformer-ibert", 14.0, "ours")]
    raced = cell(key(), 10.0, {TORCH: 49.0, "fast": 14.0}, rows=rows)
    got = found([raced], verified={"base": [{"ok": True}]})
    name = "VNNI, BERT-base 1x128, 1 thread"
    assert got[f"{name}: lead"].verdict == "met"
    assert got[f"{name}: times PyTorch FP32"].figure == pytest.approx(4.9)
    assert got[f"{name}: times PyTorch FP32"].verdict == "missed"
    assert got[f"{name}: of the practical peak"].figure == pytest.approx(65)
    assert got[f"{name}: of the practical peak"].verdict == "met"
    assert got["VNNI, BERT-base 1x128: ibert over native"].verdict == "missed"
    assert got["raced libraries not verified"].verdict == "met"
    assert got["VNNI, BERT-base 1x128, 2 threads: lead"].verdict == "open"
    assert got["memory and first run"].verdict == "open"


def test_an_unverified_library_misses_its_mark():
    raced = [cell(key(), 10.0, {"fast": 14.0})]
    assert found(raced)["raced libraries not verified"].verdict == "missed"
    checks = {"base": [{"ok": True}, {"ok": False}]}
    assert found(raced, verified=checks)["raced libraries not verified"].verdict == "missed"


def test_every_shape_counts_and_a_missing_one_leaves_the_mark_open():
    others = [c for c in default([VNNI]) if (c.model, c.shape) != (BASE, KEY)]
    everywhere = [(c.model, c.batch, c.seq, c.threads, c.isa) for c in others]
    raced = [cell(where, 10.0, {"fast": 13.0}) for where in everywhere]
    mean = "VNNI, other shapes and models: geometric mean"
    least = "VNNI, other shapes and models: least lead"
    got = found(raced)
    assert got[mean].figure == pytest.approx(1.3)
    assert got[mean].verdict == got[least].verdict == "met"
    assert found(raced[1:])[mean].verdict == "open"
    raced[3] = cell(everywhere[3], 10.0, {"fast": 9.0})
    assert found(raced)[least].verdict == "missed"
    raced[3] = cell(everywhere[3], 10.0, {"fast": 13.0, "failed": None})
    assert found(raced)[least].verdict == "open"


def test_a_batch_of_sentences_is_raced_against_the_best_way_of_each_rival():
    what = "VNNI, 32 sentences of SST-2: lead"
    ways = [
        cell(key(), 10.0, {"a": 25.0, "b": 30.0}, way="padded"),
        cell(key(), 11.0, {"a": 33.0, "b": 22.0}, way="one by one"),
    ]
    got = found([], texts=ways)[what]
    assert (got.figure, got.verdict) == (2.0, "met")
    assert got.note == "fastest rival: b, one by one"
    ways[0]["rows"][1] = row("a", None)
    assert found([], texts=ways)[what].verdict == "open"
    assert found([], texts=[{**one, "isa": AMX} for one in ways])[what].verdict == "open"


def test_footprint_marks():
    data = {"memory": {"library": 130}, "weights": 100, "first": {"total": 151.0}}
    got = found([], footprint=data)
    assert got["memory, BERT-base 1x128"].verdict == "met"
    assert got["load to the end of a first 1x16"].verdict == "missed"


def test_default_cells_and_contestants():
    cells = default([VNNI])
    assert len(cells) == len(set(cells)) == 16
    assert [c.threads for c in cells if c.threads > 1] == [2]
    at_key = {one.name for one in contestants(Cell(*key()))}
    assert TORCH in at_key and "intformer-ibert" in at_key
    assert not any("bf16" in name or "amx" in name for name in at_key)
    elsewhere = {one.name for one in contestants(Cell("minilm-l6", 1, 16, 1, AMX))}
    assert TORCH not in elsewhere and "openvino-bf16" in elsewhere and "amx-peak" in elsewhere
    assert [one.name for one in contestants(Cell(*key()), [TORCH])] == [TORCH]
    for one in CONTESTANTS.values():
        assert (Path(texts.__file__).parent / "contestants" / f"{one.program}.py").is_file()


def test_multiply_adds_of_a_model():
    # 12 layers of 128 tokens: four 768x768, two 768x3072, two products of attention; the pooler
    layer = 128 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 128 * 768)
    assert Cell(*key()).macs == 12 * layer + 768 * 768
    # 22 layers, two products up and one down, 8 of them with all keys and 14 with 129
    linear = 4 * 768 * 768 + 3 * 768 * 1152
    attention = 2 * 768 * (8 * 2048 + 14 * 129)
    cell = Cell("modernbert-base", 1, 2048, 1, VNNI)
    assert cell.macs == 2048 * (22 * linear + attention) + 768 * 768


def test_cells_of_long_sequences():
    cells = long_cells([VNNI])
    assert {(cell.model, cell.seq) for cell in cells} == {
        *(("bert-base-8192", 2048), ("bert-base-8192", 8192)),
        *(("modernbert-base", 2048), ("modernbert-base", 8192)),
    }
    assert all(cell.size["hidden"] == SHAPES[cell.model]["hidden_size"] for cell in cells)
    names = {one.name for one in contestants(cells[-1])}
    assert "openvino-int8" in names and "ctranslate2-int8" not in names


def test_ways_cover_every_sentence_once():
    lengths = [5, 40, 7, 9, 11, 3, 8, 30, 2]
    found = texts.ways(lengths)
    assert list(found) == ["padded", "buckets of 4", "buckets of 8", "one by one"]
    for groups in found.values():
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert found["buckets of 4"][-1] == [1]


def test_the_report_shows_it_all(tmp_path):
    rows = [row("gone", None, error="exit 4"), row("vnni-peak", 1.0, "roof", gops=600.0)]
    results = {
        "command": "python benchmarks/race --quick",
        "machine": {"CPU": "a CPU"},
        "versions": {"torch": "2"},
        "skipped": ["amx level: this CPU lacks amx-int8"],
        "cells": [cell(key(), 10.0, {"fast": 14.0}, rows=rows)],
        "texts": [
            cell(key(), 10.0, {"fast": 25.0}, way="padded", sentences=32, tokens=857),
            cell(key(), 10.0, {"fast": 21.0}, way="one by one", sentences=32, tokens=857),
        ],
        "verified": {"base": [{"name": "results", "ok": False, "detail": "12 numbers"}]},
        "functions": {"base": {"attention": 1.25}},
        "footprint": {
            "library": "base",
            "memory": {"library": 130_000_000},
            "weights": 100_000_000,
            "first": {"total": 151.0},
            "tries": [151.0],
        },
    }
    text = report.markdown(results, found(results["cells"]).values())
    for part in (
        "`python benchmarks/race --quick`",
        "| **intformer** |  | 10.00, 65 GOP/s |",
        "| fast |  | 14.00, 1.40x |",
        "| gone |  | failed |",
        "* gone failed: exit 4",
        "| vnni-peak |  | 600 GOP/s |",
        "| fast |  | 25.00, 2.50x | 21.00, 2.10x |",
        "amx level: this CPU lacks amx-int8",
        "| base | results | **FAIL** | 12 numbers |",
        "| base | 1.25 |",
        "| int8 weights | 100.0 |",
    ):
        assert part in text, part
    json.dumps(results)


def test_a_speed_table_has_multiples_of_our_time_and_our_share_of_the_peak():
    rows = [row("vnni-peak", 1.0, "roof", gops=130.0)]
    cells = [
        cell(key(), 10.0, {"fast": 14.0, "slow": 30.0, "once": 20.0}, rows=rows),
        cell((BASE, 8, 128, 1, VNNI), 20.0, {"fast": 70.0, "slow": 30.0}),
    ]
    columns, table = report.speed({"cells": cells}, VNNI)
    assert columns == ["vnni level", "**intformer**, ms", "fast", "slow", "share of peak"]
    assert table == [
        ["bert-base 1x128", "10", "**1.40x**", "3.00x", "50 %"],
        ["bert-base 8x128", "20", "3.50x", "**1.50x**", ""],
    ]


def test_a_record_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = records.write("speed", "make bench", ("what", "ms"), [("one", "1.5")])
    found = json.loads(path.read_text())
    assert found["commit"] == "unknown"  # no repository here
    assert records.markdown(found) == (
        f"`make bench`, {records.machine()}, {found['date']}, commit unknown\n\n"
        "| what | ms |\n| --- | --- |\n| one | 1.5 |\n"
    )


def test_a_report_of_nothing_has_open_marks():
    results = {"command": "c", "machine": {}, "versions": {}, "cells": []}
    listed = list(found([]).values())
    assert {mark.verdict for mark in listed} == {"open"}
    assert "open" in report.markdown(results, listed)


def test_pss_is_read():
    size = 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as block:
        before = footprint.pss()
        block.write(b"\1" * size)
        assert footprint.pss() - before > 0.9 * size
    assert footprint.pss_of(Path(sys.executable).resolve()) > 0


@pytest.mark.slow
def test_a_cell_is_raced_in_the_environment_of_make_bench(tmp_path):
    """Every kind of contestant, in an environment that has what `make bench` installs, no more."""
    root = Path(__file__).parents[1]
    python = root / ".venv-bench" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no .venv-bench: `make bench` makes it")
    names = [OURS, TORCH, "openvino-int8", "onnxruntime-int8", "ctranslate2-int8"]
    command = [python, root / "benchmarks" / "race", "--models", "minilm-l6", "--shapes", "1x16"]
    command += ["--isa", VNNI, "--threads", "1", "--contestants", ",".join(names)]
    command += ["--rounds", "1", "--turn", "0.05", "--out", tmp_path]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    if not results["cells"]:
        pytest.skip("; ".join(results["skipped"]))
    (raced,) = results["cells"]
    assert {row["name"]: row.get("error", "") for row in raced["rows"]} == dict.fromkeys(names, "")
    assert all(row["ms"] > 0 for row in raced["rows"])
    ours = next(row for row in raced["rows"] if row["name"] == OURS)
    assert all(check["ok"] for check in results["verified"][ours["library"]])
