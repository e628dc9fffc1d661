"""`intformer analyze`: spoiled tensors are named, figures are right, the report stands alone."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from intformer import cli
from intformer.analysis import plots, report, study
from intformer.analysis.rows import OUTLIER
from intformer.analysis.tensors import BINS, REACH
from intformer.analysis.watched import watched
from intformer.analysis.weights import weights
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend import Q8BERT_FILE, calibrated
from intformer.frontend.checkpoint import Checkpoint
from intformer.ir.float_run import run
from intformer.qat import prepare
from intformer.quantize.observe import observe
from intformer.relay_ops import OPS
from intformer_testing import make_ibert, random_hf, small_tokenizer

IDS = [(s, np.zeros_like(s)) for s in random_hf.sequences((5, 9, 17, 2, 3, 11) * 8, seed=1)]
SPOILED = "layer1.context"
CHANNEL = 7


def observed(folder, head="sequence-classification", change=None):
    """A small BERT, what calibration saw, and held-out inputs; `change` alters its encoder."""
    random_hf.save(folder, "bert", head)
    seen = calibrated.observe(Checkpoint(folder), None, IDS)
    if change is None:
        return seen
    graph = change(seen.graph)
    inputs = calibrated.calibration.batches(IDS, seen.meta)
    return replace(seen, graph=graph, seen=observe(graph, inputs))


def analysis(seen, *, equalised=False, alter=lambda seen: seen):
    """Lower by minmax with what calibration saw altered, and compare on held-out text."""
    seen = replace(seen, seen=alter(dict(seen.seen)))
    model = seen.lower(seen.factors(equalised), "minmax")
    model.meta = {**seen.meta, **model.meta}
    one = study.Remedy("minmax", "--method minmax", 0.0, 1.0, True)
    subject = study.Subject(seen.graph, model, seen.fit, seen.batches(), "minmax", [one])
    return study.measured(subject, "SRC", "intformer analyze SRC", lambda what: None), model


def row(found, name):
    return next(row for row in found.rows if row.name == name)


def outlier_channel(graph):
    """V's channel 40 times as large, the weight that reads it 40 times smaller: same function."""
    qkv, out = graph["layer1.qkv"], graph["layer1.out"]
    channels = out.channels
    gain = np.ones(3 * channels, np.float32)
    gain[2 * channels + CHANNEL] = 40
    q, o = qkv.params, out.params
    louder = replace(q, weight=q.weight * gain[:, None], bias=q.bias * gain)
    softer = replace(o, weight=o.weight / gain[-channels:])
    return graph.replaced([replace(qkv, params=louder), replace(out, params=softer)])


def clipped(seen):
    """The range of one tensor a tenth of what it shows."""
    was = seen[SPOILED]
    return {**seen, SPOILED: replace(was, peaks=was.peaks * 0.1)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return observed(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def spoiled_channel(tmp_path_factory):
    return observed(tmp_path_factory.mktemp("outlier"), change=outlier_channel)


# ---- what is found ----


def test_an_outlier_channel_is_ranked_worst_and_named(plain, spoiled_channel):
    found, _ = analysis(spoiled_channel)
    worst = found.ranked()[0]
    assert (worst.name, worst.cause) == (SPOILED, "outlier channel")
    assert worst.outlier[0] == CHANNEL
    assert f"channel {CHANNEL} reaches" in worst.why
    assert any("outlier channel" in line and SPOILED in line for line in report.summary(found))
    sound, _ = analysis(plain)
    assert row(sound, SPOILED).outlier[1] < OUTLIER
    assert worst.output_db < row(sound, SPOILED).output_db - 10


def test_equalisation_mends_the_outlier_channel(spoiled_channel):
    without, _ = analysis(spoiled_channel)
    found, _ = analysis(spoiled_channel, equalised=True)
    assert row(found, SPOILED).cause != "outlier channel"
    assert row(found, SPOILED).output_db > row(without, SPOILED).output_db + 10
    assert found.snr_db > without.snr_db + 3


def test_a_clipped_range_is_ranked_worst_and_named(plain):
    found, model = analysis(plain, alter=clipped)
    worst = found.ranked()[0]
    assert (worst.name, worst.cause) == (SPOILED, "clipping")
    assert worst.clip_noise > 0.99
    x = floats(plain)[SPOILED]
    limit = np.asarray(model.values[SPOILED].scale) * 127.5
    assert worst.clipped == np.mean(np.abs(x) > limit) > 0.5
    assert f"{worst.clipped:.2%} of the values" in worst.why
    assert worst.share > 0.99


# ---- figures, worked out again ----


def floats(seen):
    """Every tap of all held-out inputs, float64."""
    taps = {}

    def tap(name, x):
        taps.setdefault(name, []).append(x.numpy().astype(np.float64))

    for batch in seen.batches():
        taps.setdefault("output", []).append(run(seen.graph, batch, tap))
    return {name: np.concatenate(parts) for name, parts in taps.items()}


def snr(wanted, got):
    return 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2))


def test_activation_figures(plain):
    found, model = analysis(plain)
    (batch,) = plain.batches()
    x, values = floats(plain), model.run(batch)
    line, scale = row(found, SPOILED), np.asarray(model.values[SPOILED].scale)
    assert line.total_db == pytest.approx(snr(x[SPOILED], values[SPOILED] * scale))
    on_grid = np.clip(np.round(x[SPOILED] / scale), -127, 127)
    assert line.grid_db == pytest.approx(snr(x[SPOILED], on_grid * scale))
    # the step alone: its operand exact but for its rounding
    (node,) = (node for node in model.nodes if node.outputs == (SPOILED,))
    s_qkv = np.asarray(model.values["layer1.qkv"].scale)
    qkv = np.clip(np.round(x["layer1.qkv"] / s_qkv), -127, 127).astype(np.int8)
    rest = [{**model.tensors, **batch}[name] for name in node.inputs[1:]]
    made = OPS["attention"].reference(qkv, *rest, **node.attrs)
    assert line.made_db == pytest.approx(snr(x[SPOILED], made * scale))
    # alone at the output
    rounded = torch.from_numpy((on_grid * scale).astype(np.float32))
    out = run(plain.graph, batch, lambda name, x: rounded if name == SPOILED else None)
    assert line.output_db == pytest.approx(snr(x["output"], out), abs=1e-3)
    assert found.snr_db == pytest.approx(
        snr(x["output"], values["output"] * model.meta["output_scale"])
    )
    assert found.cost_db["program"] == pytest.approx(found.snr_db)  # of as many tokens here
    assert (line.least, line.most) == (x[SPOILED].min(), x[SPOILED].max())
    assert line.steps == pytest.approx(np.sqrt(np.mean((x[SPOILED] / scale) ** 2)))
    assert sum(line.counts) == x[SPOILED].size
    inside = np.abs(x[SPOILED] / scale) <= 127
    edges = np.linspace(-REACH, REACH, BINS + 1)
    grid = np.asarray(line.counts)[(edges[:-1] >= -1) & (edges[1:] <= 1)]
    assert grid.sum() == pytest.approx(inside.sum(), rel=0.01)
    assert line.origin.startswith("calibration: minmax")


def test_operand_and_residual_of_one_tensor_are_told_apart(plain):
    """The int8 of a LayerNorm feeds the matmul, the int16 the residual: each costs its own."""
    found, model = analysis(plain)
    (batch,) = plain.batches()
    x = floats(plain)
    scale = np.asarray(model.values["layer0.norm1.int8"].scale)
    rounded = np.clip(np.round(x["layer0.norm1"] / scale), -127, 127) * scale
    new = torch.from_numpy(rounded.astype(np.float32))
    out = run(plain.graph, batch, None, lambda n, x: new if n == "layer0.norm1" else None)
    assert row(found, "layer0.norm1.int8").output_db == pytest.approx(
        snr(x["output"], out), abs=1e-3
    )
    assert row(found, "layer0.norm1.int16").output_db > 60
    names = [watch.name for watch in watched(plain.graph, model)]
    assert names.index("layer0.qkv Q") < names.index("layer0.qkv V") < names.index("layer0.context")
    assert [each.name for each in found.rows if each.kind == "activation"] == names


def test_weight_figures(plain):
    found, model = analysis(plain)
    real = plain.graph["layer0.ffn1"].params.weight.astype(np.float64)
    step = np.abs(real).max(1, keepdims=True) / 127
    back = np.round(real / step) * step
    line = row(found, "layer0.ffn1.weight")
    assert line.grid_db == pytest.approx(snr(real, back))
    changed = plain.graph.with_weight("layer0.ffn1", back)
    (batch,) = plain.batches()
    out = run(changed, batch)
    assert line.output_db == pytest.approx(snr(floats(plain)["output"], out), abs=1e-3)
    assert changed["layer0.ffn1"].params.bias is plain.graph["layer0.ffn1"].params.bias
    named = {one.name: one for one in weights(plain.graph, model)}
    table = named["embed.word"]
    top = np.abs(plain.graph.tables.word).max(1)
    np.testing.assert_allclose(table.steps, np.maximum(top, top.max() / 2**12) / 127, rtol=1e-6)
    assert {"embed.position", "embed.type", "layer1.ffn2", "head0", "head1"} <= named.keys()


def test_shares_add_up_and_the_parts_explain_the_whole(plain):
    found, _ = analysis(plain)
    assert sum(line.share for line in found.rows) == pytest.approx(1)
    assert sum(found.parts.values()) == pytest.approx(1)
    for part in ("sum", "rounded"):
        assert abs(found.cost_db[part] - found.cost_db["program"]) < 4


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("albert", "masked-lm"),
        ("distilbert", "question-answering"),
        ("roberta", "features"),
        ("bert", "sparse-embedding"),
    ],
)
def test_every_kind_of_model(tmp_path, family, head):
    random_hf.save(tmp_path, family, head)
    found = study.analyze(tmp_path, IDS, method="ema", head=head, qat_steps=0)
    assert [remedy.name for remedy in found.remedies if remedy.chosen] == [
        "ema, channels equalised"
    ]
    assert len(found.remedies) == 8
    taps = {name.partition(".")[2] for name in (r.name.partition(" ")[0] for r in found.rows)}
    wanted = {"qkv", "context", "sum1", "norm1.int8", "norm1.int16", "act.in", "act.int8", "sum2"}
    assert wanted <= taps
    assert found.rows[-1].name == "output"
    assert found.snr_db == pytest.approx(found.cost_db["program"])
    assert report.page(found).count("<tr") > len(found.rows)


def test_rotary_positions_and_gates(tmp_path):
    random_hf.save(tmp_path, "nomic_bert", "features")
    found = study.analyze(tmp_path, IDS, method="ema", qat_steps=0)
    parts = {row.name.partition(".")[2]: row.part for row in found.rows}
    assert parts["qkv"] == "Q, K and V before rotation"
    assert [parts[f"turned {one}"] for one in "QKV"] == ["Q, K and V"] * 3
    assert (parts["ffn1.int16"], parts["gate"]) == ("activation inputs", "gated activations")
    assert found.rows[-1].name == "output" and found.snr_db > 15


@pytest.mark.parametrize("head", ["sequence-classification", "masked-lm"])
def test_ibert(tmp_path, head):
    make_ibert.random_model(head=head).save_pretrained(tmp_path)
    ids = [(s % 61, types) for s, types in IDS]
    found = study.analyze(tmp_path, ids, qat_steps=0)
    assert {remedy.options for remedy in found.remedies} == {"--mode hf_compat", "--mode fixed"}
    assert found.choice == "mode hf_compat"
    assert row(found, "layer0.context").origin.startswith("checkpoint: ")
    assert row(found, "layer0.sum1").limit == 2**21 - 1
    for part in ("sum", "rounded"):
        assert abs(found.cost_db[part] - found.cost_db["program"]) < 4
    with pytest.raises(CheckpointError, match="method 'mse' does not go with an IBert"):
        study.analyze(tmp_path, ids, method="mse")


def test_a_trained_directory_is_compared_with_the_ranges_it_learned(tmp_path):
    source, trained = tmp_path / "source", tmp_path / "trained"
    random_hf.save(source, "bert", "sequence-classification")
    prepare(source, calibrate=IDS, weights="tensor").save_pretrained(trained)
    found = study.analyze(trained, IDS, qat_steps=2)
    assert len(found.remedies) == 10
    (chosen,) = (remedy for remedy in found.remedies if remedy.chosen)
    assert chosen.name == found.choice == "ranges learned in training"
    assert chosen.snr_db == pytest.approx(found.snr_db)
    assert not found.untried
    assert row(found, "layer0.context").origin.startswith("checkpoint: ")
    assert row(found, "layer0.qkv.weight").scale[0] < row(found, "layer0.qkv.weight").scale[2]
    assert row(found, "layer0.out.weight").scale[0] == row(found, "layer0.out.weight").scale[2]
    calibrated_anew = study.analyze(trained, IDS, method="minmax", qat_steps=0)
    assert calibrated_anew.choice == "minmax, channels equalised"


def test_a_directory_trained_with_float_functions_is_calibrated(tmp_path):
    """Its learned ranges make no integer program; `compile --calibrate` is what there is."""
    source, trained = tmp_path / "source", tmp_path / "trained"
    random_hf.save(source, "bert", "sequence-classification")
    prepare(source, calibrate=IDS, nonlinear="float").save_pretrained(trained)
    found = study.analyze(trained, IDS, qat_steps=2)
    assert len(found.remedies) == 9
    assert found.snr_db == max(r.snr_db for r in found.remedies if r.options)
    assert (
        study.analyze(trained, IDS, method="mse", qat_steps=0).choice == "mse, channels equalised"
    )


def test_remedies_are_judged_on_text_that_sets_no_range(tmp_path, monkeypatch):
    """Calibration sees 7 of 8 rows; every figure comes from the eighth."""
    random_hf.save(tmp_path, "bert", "features")
    ranges, judged = [], []
    was, compare = calibrated.watch, study.compare

    def seen(graph, inputs, unusual):
        ranges.extend(batch["input_ids"] for batch in [*unusual, *inputs])
        return was(graph, inputs, unusual)

    def watch(encoder, model, inputs):
        judged.extend(batch["input_ids"] for batch in inputs)
        return compare(encoder, model, inputs)

    monkeypatch.setattr(calibrated, "watch", seen)
    monkeypatch.setattr(study, "compare", watch)
    ids = [(np.full(3, i, np.int32), np.zeros(3, np.int32)) for i in range(80)]
    found = study.analyze(tmp_path, ids, method="minmax", rows=64, qat_steps=0)
    ranges, judged = set(np.concatenate(ranges)), set(np.concatenate(judged))
    assert len(ranges) == 56
    assert len(judged) == 8 == found.held_sequences
    assert not ranges & judged


# ---- the report ----


class Page(HTMLParser):
    """Keeps the open tags, every id and every attribute that could load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.closed = [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("meta", "br"):
            self.open.pop()
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data") and not value.startswith("#"):
                self.loads.append((tag, name, value))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.closed += 1


def test_the_report_is_whole_and_stands_alone(plain):
    found, _ = analysis(plain)
    found.source, found.command = "models/<my> model", "intformer analyze 'models/<my> model' -o r"
    text = report.page(found)
    page = Page(text)
    assert page.open == []
    assert page.closed > 500
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    for sign in ("http:", "https:", "src=", "@import", "<link", "models/<my>"):
        assert sign not in text
    assert "Where &lt;my&gt; model loses accuracy" in text
    assert "intformer analyze &#x27;models/&lt;my&gt; model&#x27; -o r" in text
    for line in found.rows:
        assert f"<code>{line.name}</code>" in text
    assert f"{found.snr_db:.1f} dB against FP32" in text


def test_a_remedy_that_helps_is_said(plain):
    found, _ = analysis(plain)
    found.remedies = [
        study.Remedy("mse", "--method mse", 25.0, 1.0, False),
        study.Remedy("ema, not equalised", None, 29.0, 1.0, False),
        study.Remedy("minmax", "--method minmax", 20.0, 1.0, True),
    ]
    assert "--method mse</code></b> gains 5.0 dB" in report.advice(found)
    found.remedies[0].snr_db = 20.1
    assert "No option of compile gains" in report.advice(found)


def test_no_error_is_drawn_at_the_top_and_much_of_it_below(plain):
    found, _ = analysis(plain)
    assert [plots.height(db) for db in (None, 0.0, -3.0, 200.0)] == [80, 0, -3, 80]
    found.rows[-1].total_db = -30.0
    assert "−20" in plots.network(found)  # the axis reaches there


def test_a_report_is_replaced_whole_or_not_at_all(plain, tmp_path, monkeypatch):
    found, _ = analysis(plain)
    file = tmp_path / "report.html"
    file.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            report.write(found, file)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert file.read_text() == "old"
    report.write(found, file)
    assert file.read_text() == report.page(found)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_verb(tmp_path, capsys):
    source, text, file = tmp_path / "model", tmp_path / "text.txt", tmp_path / "report.html"
    source.mkdir()
    random_hf.save(source, "bert", "sequence-classification", layers=1, labels=2)
    small_tokenizer.save(source)
    text.write_text("\n".join(small_tokenizer.SENTENCES))
    arguments = ["analyze", str(source), "--calibrate", str(text), "-o", str(file)]
    assert cli.parser().parse_args(arguments).qat_steps == study.QAT_STEPS
    assert cli.main([*arguments, "--rows", "40", "--qat-steps", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [each["steps"] for each in data["remedies"]].count(2) == 1
    assert data["report"] == str(file)
    # 35 and 5 rows, with their 17 and 2 pairs of neighbours
    assert (data["sequences"], data["held_sequences"]) == (52, 7)
    shares = [line["share"] for line in data["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert str(source) in file.read_text()
    assert cli.main([*arguments, "--method", "mse", "--qat-steps", "0"]) == 0
    out = capsys.readouterr().out
    assert "mse, channels equalised" in out
    assert re.search(r"^layer0\.\S+ ", out, re.MULTILINE)


def test_errors(tmp_path, capsys, monkeypatch):
    random_hf.save(tmp_path, "bert", "features")
    with pytest.raises(CheckpointError, match="7 different rows of calibration text"):
        study.analyze(tmp_path, IDS[:7])
    with pytest.raises(CheckpointError, match="method 'best' is not known"):
        study.analyze(tmp_path, IDS, method="best")
    with pytest.raises(CheckpointError, match="mode 'fixed' needs an IBert"):
        study.analyze(tmp_path, IDS, mode="fixed")
    with pytest.raises(IntformerError, match=r"no such folder - .*absent"):
        report.check(tmp_path / "absent" / "report.html")
    file = tmp_path / "report.html"
    report.check(file)
    assert not list(tmp_path.glob("*report*"))

    def refuse(**arguments):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(report.tempfile, "mkstemp", refuse)
        with pytest.raises(IntformerError, match=r"cannot write: Permission denied .*report\.html"):
            report.check(file)
    text = tmp_path / "text.txt"
    text.write_text("one\n" * 9)
    arguments = ["analyze", str(tmp_path), "--calibrate", str(text), "-o", str(tmp_path / "r.html")]
    assert cli.main(arguments) == 1
    assert "no tokenizer" in capsys.readouterr().err
    (tmp_path / Q8BERT_FILE).touch()
    with pytest.raises(CheckpointError, match="no FP32 weights to compare"):
        study.analyze(tmp_path, IDS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "matplotlib is not installed" in error
    assert "intformer[qat]" in error
    assert error.count("\n") == 1
