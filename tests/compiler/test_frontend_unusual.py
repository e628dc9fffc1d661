"""Texts of unusual shape set ranges, and so do channels that calibration text hardly fires."""

from math import erf, sqrt

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the compiler extra")

from intformer.frontend import calibration, unusual
from intformer.frontend.calibrated import import_calibrated
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.quantize.observe import SPREAD, observe
from intformer_testing import random_hf, small_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    random_hf.save(folder, "bert", "sequence-classification", hidden=32, heads=2, layers=2, ffn=48)
    small_tokenizer.save(folder)
    return Checkpoint(folder)


def test_short_texts_are_words_of_the_lines_and_repetitions():
    texts = unusual.short(["one two", "three"], 40)
    assert len(texts) == 50
    assert {word for text in texts for word in text.split()} == {"one", "two", "three"}
    assert all(1 <= len(text.split()) <= 3 for text in texts[:40])
    assert all(len(set(text.split())) == 1 for text in texts[40:])
    assert max(len(text.split()) for text in texts) >= 60
    assert not "".join(unusual.short(["", " "], 4)).strip()  # text without a word


def test_long_texts_have_the_tokens_asked_for():
    (text,) = unusual.long(["a line of words", ""], 100, 1)
    assert len(text) >= 600
    assert set(text.split()) == {"a", "line", "of", "words"}
    (dots,) = unusual.long([""], 10, 1)
    assert set(dots.split()) == {"."}


def test_characters_begin_with_the_empty_text():
    texts = unusual.characters()
    assert texts[0] == ""
    assert {"!", "!!!", "a", "7"} <= set(texts)
    assert any(text.split() == ["!"] * unusual.CHARACTER_RUN for text in texts)


def split(checkpoint, texts):
    meta = {
        "head": "sequence-classification",
        "type_vocab_size": 2,
        "max_length": 64,
        "truncate_length": 16,
        "vocab_size": 10**6,
        "pad_token_id": 0,
        "position_rule": "column",
    }
    return calibration.split_texts(texts, checkpoint.files(), meta)


def test_a_split_has_text_of_every_shape(checkpoint):
    singles = [(line,) for line in small_tokenizer.SENTENCES[:40]]
    found = split(checkpoint, singles)
    lengths = [len(ids) for ids, _ in found.unusual]
    assert min(lengths) == 2  # the empty text: special tokens alone
    assert max(lengths) == 64  # longer than texts are cut to, as long as the model takes
    assert {0, 1} == {int(t) for _, types in found.unusual for t in types}
    assert {len(ids) for ids, _ in found.longest} == {64}
    # nothing that judges was made from a line that sets ranges
    seen = {ids.tobytes() for ids, _ in found.unusual}
    assert not any(ids.tobytes() in seen for ids, _ in found.longest)


def test_pairs_are_given_as_pairs(checkpoint):
    lines = small_tokenizer.SENTENCES[:40]
    found = split(checkpoint, list(zip(lines[::2], lines[1::2], strict=True)))
    long = [types for ids, types in found.longest]
    assert long and all(set(types.tolist()) == {0, 1} for types in long)


def test_ids_get_no_made_up_text(checkpoint):
    ids = [np.arange(2, 9, dtype=np.int32) + i for i in range(20)]
    model = import_calibrated(checkpoint, calibrate=ids)
    assert model.meta["calibration"]["unusual"] == 0
    assert set(model.meta["calibration"]["held_out_snr_db"]["ema"]) == {"ordinary"}


def test_the_report_has_every_kind_of_text(checkpoint):
    model = import_calibrated(checkpoint, calibrate=small_tokenizer.SENTENCES[:40])
    report = model.meta["calibration"]
    assert set(report["held_out_snr_db"]["minmax"]) == {"short", "ordinary", "longest"}
    assert report["unusual"] > 100


def test_a_channel_that_hardly_fires_gets_the_range_it_may_need(checkpoint):
    """Its input is -2 in the mean with deviation 1: GELU of 2 is likely, though never seen."""
    graph, _ = read_encoder(checkpoint, None)
    act = graph.of_kind("act")[0]
    rng = np.random.default_rng(0)
    lengths = np.array([0, 600], np.int32)
    inputs = {
        "input_ids": rng.integers(0, 50, 600).astype(np.int32),
        "token_type_ids": np.zeros(600, np.int32),
        "position_ids": np.arange(600, dtype=np.int32) % 16,
        "cu_seqlens": lengths,
    }
    x = {}

    def keep(name, value):
        x[name] = value.numpy().copy()

    run(graph, inputs, tap=keep)
    seen = observe(graph, [inputs])[act.name]
    before = x[act.inputs[0]].astype(np.float64)
    reach = before.mean(0) + SPREAD * before.std(0)
    wanted = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in reach])
    assert (seen.peaks.max(0) >= wanted - 1e-4).all()
    assert (seen.peaks.max(0) >= np.abs(x[act.name]).max(0)).all()
    # and no more than the larger of the two, GELU's dip included
    assert (
        seen.peaks.max(0) <= np.maximum(np.abs(x[act.name]).max(0), wanted.clip(0.1701)) + 1e-4
    ).all()
