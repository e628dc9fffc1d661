"""Calibration text, the statistics taken from it, and the scales made from those."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from intformer.errors import CheckpointError
from intformer.frontend import calibration, import_model
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.progress import progress
from intformer.quantize import methods as scales
from intformer.quantize.native import lower
from intformer.quantize.native.scales import equalisation
from intformer.quantize.observe import Seen, observe
from intformer_testing import random_hf


def seen(rows, batches=4):
    rows = np.asarray(rows, np.float32)
    return Seen(np.stack([np.abs(part).max(0) for part in np.array_split(rows, batches)]), rows)


def write_tokenizer(folder, mask=True):
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]" if mask else "m": 4}
    words |= {f"w{i}": i for i in range(5, random_hf.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=20)  # as many published files have it
    tokenizer.save(str(folder / "tokenizer.json"))


def text(count, seed=0):
    return [" ".join(f"w{i}" for i in s) for s in random_hf.sequences((4, 9, 6) * count, seed)]


# ---- text ----


@pytest.mark.parametrize("content", ["", "\n \n", "idx\tsentence\n"])
def test_empty_text_is_refused(tmp_path, content):
    random_hf.save(tmp_path, "bert", "features")
    write_tokenizer(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text(content)
    with pytest.raises(CheckpointError, match="calibration text is empty"):
        import_model(tmp_path, calibrate=file)
    with pytest.raises(CheckpointError, match="calibration text is empty"):
        import_model(tmp_path, calibrate=[])


def test_text_that_cannot_be_used(tmp_path):
    random_hf.save(tmp_path, "bert", "features")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        import_model(tmp_path, calibrate=["w7 w8"])
    with pytest.raises(CheckpointError, match="token id 97 is out of range"):
        import_model(tmp_path, calibrate=[np.array([5, random_hf.VOCABULARY])])
    with pytest.raises(CheckpointError, match="sequence is empty"):
        import_model(tmp_path, calibrate=[np.array([], np.int32)])
    with pytest.raises(CheckpointError, match="has 33 tokens, the limit is 32"):
        import_model(tmp_path, calibrate=[np.full(33, 5)])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json"):
        import_model(tmp_path, calibrate=["w7 w8"])


def test_text_becomes_unpadded_tokens_and_pairs_have_types(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    meta = {"head": "sequence-classification", "truncate_length": 7, "type_vocab_size": 2}
    meta |= {"max_length": 32, "vocab_size": 97}
    (ids, types), (long, _) = calibration.encode([("w5 w6", "w7"), ("w5 " * 30,)], tokenizer, meta)
    assert ids.tolist() == [2, 5, 6, 3, 7, 3]
    assert types.tolist() == [0, 0, 0, 0, 1, 1]
    assert long.tolist() == [2, 5, 5, 5, 5, 5, 3]
    meta["head"] = "sentence-embedding"
    assert len(calibration.split_texts([("w5", "w6")], tokenizer, meta).fit) == 2


def test_masked_lm_is_calibrated_on_masks(tmp_path):
    random_hf.save(tmp_path, "bert", "masked-lm")
    write_tokenizer(tmp_path)
    model = import_model(tmp_path, calibrate=text(4), method="minmax")
    assert model.meta["mask_token_id"] == 4
    sequences = [(s, np.zeros_like(s)) for s in random_hf.sequences((8, 1, 9))]
    inputs = calibration.pack(sequences, model.meta, mask_id=4)
    assert (inputs["input_ids"][inputs["positions"]] == 4).all()
    ends = {0, 7, 8, 9, 17}
    assert len(inputs["positions"]) == 2
    assert not ends & set(inputs["positions"].tolist())
    assert calibration.pack(sequences[1:2], model.meta)["positions"].tolist() == [0]


def test_the_held_out_text_sets_no_range():
    ids = [(np.array([i]), np.zeros(1, np.int32)) for i in range(2000)]
    split = calibration.split_ids(ids)
    ranges, held = split.fit, split.held
    assert len(ranges) + len(held) == calibration.SENTENCES
    assert len(held) == calibration.SENTENCES // calibration.HELD_OUT
    assert not {int(s[0][0]) for s in ranges} & {int(s[0][0]) for s in held}
    few = calibration.split_ids(ids[:7])
    assert (few.fit, few.held) == (ids[:7], [])


def test_repeated_text_is_not_held_out_from_itself():
    """200 copies of 9 sentences are 9 sentences: one of them is held out, in none of its copies."""
    ids = [(np.array([i % 9]), np.zeros(1, np.int32)) for i in range(1800)]
    split = calibration.split_ids(ids)
    assert split.distinct == 9
    assert [int(s[0][0]) for s in split.held] == [7]
    assert sorted(int(s[0][0]) for s in split.fit) == [0, 1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize("lines, measured", [(1, False), (7, False), (8, True), (15, True)])
def test_few_lines_are_a_warning_and_nothing_is_measured_on_the_text_of_ranges(
    tmp_path, lines, measured
):
    random_hf.save(tmp_path, "bert", "token-classification")
    write_tokenizer(tmp_path)
    texts = [(line, line) for line in dict.fromkeys(text(9))][:lines]
    meta = import_model(tmp_path, calibrate=texts * 3).meta
    report = meta["calibration"]
    assert bool(report["held_out_snr_db"]) == measured == (report["held_out_sequences"] > 0)
    assert report["distinct"] == lines
    (warning,) = meta["warnings"]
    assert f"only {lines} distinct calibration texts" in warning


def test_enough_lines_are_no_warning(tmp_path):
    random_hf.save(tmp_path, "bert", "token-classification")
    write_tokenizer(tmp_path)
    meta = import_model(tmp_path, calibrate=text(9)).meta
    assert meta["warnings"] == []
    report = meta["calibration"]
    assert report["token_types"] == [0, 1]
    lengths = report["lengths"]
    assert lengths == sorted(lengths)
    assert lengths[2] > 11 + 2  # a pair of two lines is longer than the longest line


def test_single_texts_are_paired_for_models_that_take_pairs():
    two, one = {"type_vocab_size": 2}, {"type_vocab_size": 1}
    takes = calibration.takes_pairs
    for head in ("features", "token-classification", "masked-lm"):
        assert takes({"head": head, **two})
        assert not takes({"head": head, **one})
    for head in ("sequence-classification", "question-answering"):
        assert takes({"head": head, **two})
        assert takes({"head": head, **one})  # RoBERTa has one type, and pairs
    assert not takes({"head": "sentence-embedding", **two})
    singles = [("a",), ("b",), ("c",)]
    assert calibration.paired(singles) == [("a",), ("b",), ("a", "b"), ("c",)]


@pytest.mark.parametrize("lines", [6, 7, 8, 32, 400])
@pytest.mark.parametrize("pairs", [False, True])
def test_no_held_out_text_is_in_any_that_sets_a_range(tmp_path, lines, pairs):
    """Neither alone nor as a part of a pair, whoever made the pair; questions share documents."""
    write_tokenizer(tmp_path)
    files = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    meta = {"head": "sequence-classification", "truncate_length": 32, "type_vocab_size": 2}
    meta |= {"max_length": 32, "vocab_size": 97}
    texts = [f"w{5 + i % 90} w{5 + i // 90} w{5 + i * 7 % 90}" for i in range(lines)]
    rows = [(text,) for text in texts]
    if pairs:  # two questions on each document
        rows = [(text, texts[i // 2 * 2]) for i, text in enumerate(texts)]
    split = calibration.split_texts(rows, files, meta)
    assert split.distinct == lines
    assert bool(split.held) == (lines >= 8 and not (pairs and lines < 16))
    assert split.pairs > 0

    def parts(sequences):
        found = set()
        for ids, _ in sequences:
            ends = [0, *(np.flatnonzero(ids == 3) + 1)]
            found |= {tuple(i for i in ids[a:b] if i > 4) for a, b in pairwise(ends)}
        return found

    assert not parts(split.held) & parts(split.fit)


def test_a_model_for_pairs_is_right_on_pairs_when_calibrated_with_single_lines(tmp_path):
    """A type row as large as BERT's words: what calibration never sees is clipped."""
    model = random_hf.save(tmp_path, "bert", "sequence-classification")
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight[1] *= 8
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    lines = text(40)
    ours = import_model(tmp_path, calibrate=lines)
    assert ours.meta["calibration"]["token_types"] == [0, 1]
    files = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    pairs = list(zip(text(20, seed=5), text(20, seed=6), strict=True))
    sequences = calibration.encode(pairs, files, ours.meta)
    inputs = calibration.pack(sequences, ours.meta)
    got = ours.run(inputs)["output"] * ours.meta["output_scale"]
    ids, types = ([s[i] for s in sequences] for i in (0, 1))
    want = np.concatenate(random_hf.padded_outputs(model, ids, types))
    assert 1 in types[0]
    spread = want.std()
    assert np.abs(got - want).max() < 0.25 * spread
    # the same lines as ids of single texts: nothing can be paired, which is said
    alone = calibration.encode([(x,) for x in lines], files, ours.meta)
    blind = import_model(tmp_path, calibrate=alone)
    assert any("token type 1" in warning for warning in blind.meta["warnings"])
    clipped = blind.run(inputs)["output"] * blind.meta["output_scale"]
    assert np.square(clipped - want).sum() > 2 * np.square(got - want).sum()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([np.array([1.5, 2.0])], "token ids are float64 [2], not a row of integers"),
        ([np.array([[1, 2]])], "token ids are int64 [1, 2]"),
        ([np.array([-1, 2])], "token id -1 is out of range"),
        ([(np.array([5, 6]), np.array([0, 2]))], "token type 2 is out of range, the model has 2"),
        ([(np.array([5, 6]), np.array([0]))], "1 token types for 2 token ids"),
        ([[[1], [2, 3]]], "token ids are not a row of integers"),
        ([np.array([2**40])], "token ids go beyond 32 bits"),
    ],
)
def test_arrays_that_are_no_token_ids(tmp_path, wrong, said):
    random_hf.save(tmp_path, "bert", "features")
    with pytest.raises(CheckpointError, match=re.escape(said)) as raised:
        import_model(tmp_path, calibrate=[np.array([5, 6]), *wrong])
    assert raised.value.where == "calibration sequence 1"


def test_import_is_reproducible_and_reports_the_choice(tmp_path):
    random_hf.save(tmp_path, "bert", "sequence-classification")
    write_tokenizer(tmp_path)
    one, two = (import_model(tmp_path, calibrate=text(8)) for _ in range(2))
    assert one.to_json() == two.to_json()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, two.tensors[name])
    report = one.meta["calibration"]
    scores = report["held_out_snr_db"]
    assert set(scores) == set(scales.METHODS)
    assert report["method"] == max(scores, key=lambda name: sum(scores[name].values()))
    assert set(one.files) == {"config.json", "tokenizer.json", "tokenizer_settings.json"}


# ---- scales ----


def test_the_moving_average_has_no_bias_towards_zero():
    for batches in (1, 2, 50):
        np.testing.assert_allclose(scales.ema(np.full((batches, 3), 5.0)), 5.0)
    rising = scales.ema(np.arange(1.0, 101.0))
    assert 90 < rising < 100  # late batches weigh most
    m = 0.0
    for value in (3.0, 1.0, 2.0):
        m = scales.EMA_DECAY * m + (1 - scales.EMA_DECAY) * value
    np.testing.assert_allclose(scales.ema(np.array([3.0, 1.0, 2.0])), m / (1 - scales.EMA_DECAY**3))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_no_method_exceeds_the_peak(seed, size):
    rows = np.random.default_rng(seed).standard_normal((64, 5)) * size
    stat = seen(rows)
    for method in scales.METHODS:
        assert 0 < scales.peak(stat, method) <= stat.peaks.max() * (1 + 1e-6), method
        top = scales.channel_peaks(stat, method)
        assert (top > 0).all() and (top <= stat.peaks.max(0) * (1 + 1e-6)).all(), method


def test_one_outlier_does_not_set_the_range_of_percentile():
    rows = np.random.default_rng(0).standard_normal((2000, 16))
    rows[7, 3] = 300.0
    stat = seen(rows)
    assert scales.peak(stat, "minmax") == 300.0
    assert scales.peak(stat, "percentile") < 10


def test_mse_clips_a_long_tail():
    rows = np.random.default_rng(0).laplace(size=(scales.SEARCH_ROWS, 2000)).astype(np.float32)
    stat = seen(rows)
    best, top = scales.peak(stat, "mse"), stat.peaks.max()
    assert best < 0.9 * top
    assert scales.clip_error(rows, best) < scales.clip_error(rows, top)


def matmul_error(rows, weight, f):
    step = np.abs(weight * f).max(1, keepdims=True) / 127
    w = np.rint(weight * f / step) * step
    s = np.abs(rows / f).max() / 127
    return np.square(np.rint(rows / f / s) * s @ w.T - rows @ weight.T).sum()


def test_equalisation_pays_where_a_channel_stands_out():
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((200, 32)), rng.standard_normal((24, 32))
    rows[:, 5] *= 60
    weight[:, 5] /= 60
    f = scales.equalise([seen(rows)], weight.astype(np.float32))
    assert (f > 0).all()
    assert matmul_error(rows, weight, f) < matmul_error(rows, weight, np.ones(32)) / 100


def test_equalisation_of_dead_channels_and_dead_rows():
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((50, 8)), rng.standard_normal((4, 8))
    rows[:, 2] = 0
    weight[:, 3] = 0
    weight[1] = 0
    for stat in (seen(rows), seen(np.zeros((50, 8)))):
        f = scales.equalise([stat], weight.astype(np.float32))
        assert np.isfinite(f).all() and (f > 0).all()


def test_q_and_k_split_one_product_in_every_channel(tmp_path):
    random_hf.save(tmp_path, "bert", "features")
    model = import_model(tmp_path, calibrate=random_hf.sequences(seed=1), method="minmax")
    q, k, _ = np.split(np.array(model.values["layer0.qkv"].scale), 3)
    np.testing.assert_allclose(q * k, (q * k)[0], rtol=1e-6)
    assert q.max() / q.min() > 1.5


def test_equalisation_is_what_brings_the_output_closer(tmp_path):
    """A model with loud channels: without channel factors its error is much larger."""
    hf = random_hf.save(tmp_path, "bert", "features", layers=1)
    import torch

    with torch.no_grad():  # an exact rescaling of two channels between norm1 and ffn1
        norm = hf.encoder.layer[0].attention.output.LayerNorm
        ffn = hf.encoder.layer[0].intermediate.dense
        for channel in (3, 17):
            norm.weight[channel] *= 50
            norm.bias[channel] *= 50
            ffn.weight[:, channel] /= 50
    hf.save_pretrained(tmp_path)
    encoder, meta = read_encoder(Checkpoint(tmp_path))
    inputs = calibration.batches([(s, np.zeros_like(s)) for s in random_hf.sequences()], meta)
    stats = observe(encoder, inputs)
    want = run(encoder, inputs[0])

    def error(factors):
        model = lower(encoder, stats, factors, "minmax", "test")
        out = model.run(inputs[0])[model.output] * model.meta["output_scale"]
        return np.square(out - want).sum()

    plain = {o.stem: np.ones(o.linear.weight.shape[1]) for o in encoder.operands()}
    assert error(equalisation(encoder, stats)) < error(plain) / 10


def test_progress_shows_once_it_takes_long(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("intformer.progress.SILENT_SECONDS", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err


def test_progress_yields_everything():
    assert list(progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert list(progress((i for i in range(3)), "counting", total=3)) == [0, 1, 2]


def test_an_old_vocabulary_becomes_a_tokenizer_file(tmp_path):
    random_hf.save(tmp_path, "bert", "features")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 97))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = import_model(tmp_path, calibrate=["w7 W8 w9", "w10"], method="minmax")
    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode())
    assert tokenizer.encode("w7 W8").ids == [2, 7, 8, 3]


def test_a_tokenizer_file_can_be_given(tmp_path):
    folder = tmp_path / "model"
    random_hf.save(folder, "bert", "features")
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    model = import_model(folder, calibrate=["w7 w8"], method="minmax", tokenizer=file)
    assert model.files["tokenizer.json"] == file.read_bytes()
    with pytest.raises(CheckpointError, match="no such tokenizer file"):
        import_model(folder, calibrate=["w7"], tokenizer=tmp_path / "absent.json")
