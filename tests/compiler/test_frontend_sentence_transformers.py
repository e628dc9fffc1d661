"""Directories of sentence-transformers, written by it and by hand: its values, or a refusal."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers as st
import torch
from sentence_transformers.sentence_transformer import modules as st_modules

import intformer
from intformer import cli
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend.calibrated import snr_db
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.measure.float_model import FloatModel
from intformer.qat import prepare
from intformer.runtime.edge import Edge, predict
from intformer_testing import random_hf, sentence_dirs, small_tokenizer
from intformer_testing.sentence_dirs import Exact, Quantized, change, plain, write

TEXTS = [*small_tokenizer.SENTENCES[50:56], "The", "the you of"]
DIMENSION = {"word_embedding_dimension": 60}
PAIRS = [(one, other) for one in TEXTS[:4] for other in TEXTS[4:7]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A plain directory of an encoder."""
    return plain(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def embedder(encoder, tmp_path_factory):
    """The same, saved by sentence-transformers 6 as Transformer, Pooling, Normalize."""
    folder = tmp_path_factory.mktemp("embedder")
    save_embedder(encoder, folder, "mean", st_modules.Normalize())
    return folder


@pytest.fixture
def folder(embedder, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(embedder, tmp_path / "model"))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    """A plain classifier with one label."""
    return plain(tmp_path_factory.mktemp("ranker"), "sequence-classification", labels=1)


def save_embedder(source, folder, mode, *more, **options):
    transformer = st_modules.Transformer(str(source))
    pooling = st_modules.Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    model = st.SentenceTransformer(modules=[transformer, pooling, *more], device="cpu", **options)
    model.save(str(folder))


def encoded(folder, texts, **options):
    """encode() of sentence-transformers, float32 [texts, channels]."""
    return st.SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


def same_embeddings(folder, texts=TEXTS, head=None, **options):
    """Compare with encode(); returns ours."""
    ours = np.stack(Exact(folder, head).answers(texts, **options))
    np.testing.assert_allclose(ours, encoded(folder, texts, **options), atol=2e-5)
    return ours


def same_scores(folder, columns=PAIRS):
    """Compare with CrossEncoder.predict(); returns ours."""
    exact = Exact(folder)
    assert exact.metadata["head"] == "sequence-classification"
    answers = exact.answers(*zip(*columns, strict=True))
    theirs = st.CrossEncoder(str(folder), device="cpu").predict(columns)
    ours = np.array([list(answer["scores"].values()) for answer in answers])
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=2e-5)
    return ours


# ---- embeddings ----


SEVERAL = ["lasttoken", "mean_sqrt_len_tokens", "cls", "max", "weightedmean", "mean"]


@pytest.mark.parametrize("mode", [*SEVERAL, SEVERAL, ["cls", "max"], ["mean", "mean"]], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_embedder(encoder, tmp_path, mode, normalize):
    save_embedder(encoder, tmp_path, mode, *[st_modules.Normalize()] * normalize)
    ours = same_embeddings(tmp_path)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-6)
    else:
        assert np.linalg.norm(ours, axis=1).min() > 1.5


@pytest.mark.parametrize(
    ("pooling", "normalize"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode": ["cls"]}, False),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, False),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, True),
        ({}, False),
    ],
)
def test_an_old_directory(encoder, tmp_path, pooling, normalize):
    folder = Path(shutil.copytree(encoder, tmp_path / "old"))
    sentence_dirs.old_modules(folder, "Transformer", "Pooling", *["Normalize"] * normalize)
    write(folder / "1_Pooling/config.json", {**DIMENSION, **pooling})
    same_embeddings(folder)


def test_a_plain_encoder_is_embedded_as_sentence_transformers_does(encoder):
    assert np.linalg.norm(same_embeddings(encoder, head="sentence-embedding"), axis=1).max() > 1.5


def test_dropout_does_nothing(encoder, tmp_path):
    save_embedder(encoder, tmp_path, "mean", st_modules.Dropout(0.5), st_modules.Normalize())
    same_embeddings(tmp_path)


def test_truncated_embeddings(folder):
    change(folder / "config_sentence_transformers.json", truncate_dim=17)
    assert same_embeddings(folder).shape[1] == 17


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_the_length_of_a_text(encoder, tmp_path, name):
    folder = Path(shutil.copytree(encoder, tmp_path / "old"))
    sentence_dirs.old_modules(folder, "Transformer", "Pooling")
    write(folder / "1_Pooling/config.json", DIMENSION)
    write(folder / name, {"max_seq_length": 7, "do_lower_case": False})
    theirs = st.SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == read_encoder(Checkpoint(folder))[1]["truncate_length"] == 7
    (folder / "modules.json").unlink()  # without it nobody reads the file
    assert read_encoder(Checkpoint(folder))[1]["truncate_length"] == 32


@pytest.mark.parametrize("given", [False, True])
def test_lower_casing(tmp_path, given):
    """do_lower_case of the module comes before a tokenizer that keeps case."""
    folder = plain(tmp_path / "cased", cased=True)
    texts = ["THE You", *["The [MASK] OF [mask]"] * (not given)]
    sentence_dirs.old_modules(folder, "Transformer", "Pooling")
    write(folder / "1_Pooling/config.json", DIMENSION)
    ids = {}
    for lower in (False, True):
        write(folder / "sentence_bert_config.json", {"do_lower_case": lower})
        own = folder / "tokenizer.json" if given else None
        exact = Exact(folder, tokenizer=own)
        theirs = st.SentenceTransformer(str(folder), device="cpu")
        ours = Edge.of(exact).encode(texts)
        ids[lower] = ours.input_ids.tolist()
        wanted = theirs.tokenizer(texts)["input_ids"]
        assert ids[lower] == [number for row in wanted for number in row]
    assert ids[False] != ids[True]


@pytest.fixture
def oldest(tmp_path):
    """A directory as versions before 2 wrote it, with the Transformer in a folder of its own."""
    folder = tmp_path / "oldest"
    plain(folder / "0_Transformer", cased=True)
    sentence_dirs.old_modules(folder, "Transformer", "Pooling", "Normalize")
    change_module(folder, 0, path="0_Transformer")
    write(folder / "0_Transformer/sentence_bert_config.json", {"do_lower_case": True})
    write(folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True, **DIMENSION})
    write(folder / "config.json", {"__version__": "0.4.1"})
    return folder


def change_module(folder, number, **keys):
    modules = json.loads((folder / "modules.json").read_text())
    modules[number] |= keys
    write(folder / "modules.json", modules)


def test_a_transformer_in_its_own_folder(oldest):
    np.testing.assert_allclose(np.linalg.norm(same_embeddings(oldest), axis=1), 1, rtol=1e-6)
    (oldest / "config.json").unlink()
    same_embeddings(oldest)
    change(oldest / "0_Transformer/sentence_bert_config.json", max_seq_length=5)
    assert same_embeddings(oldest, ["the you of " * 9]).shape == (1, 60)
    assert read_encoder(Checkpoint(oldest))[1]["truncate_length"] == 5


def test_fp32_of_a_transformer_in_its_own_folder(oldest):
    """What `eval --source` and `bench` compare with."""
    exact = Exact(oldest)
    packed = Edge.of(exact).encode(TEXTS)
    rows = FloatModel(oldest, exact.metadata).rows(
        packed.input_ids, packed.token_type_ids, packed.cu_seqlens
    )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, encoded(oldest, TEXTS), atol=2e-5)


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp", "link", "a\0b"])
def test_a_transformer_outside_of_the_directory(oldest, tmp_path, path):
    plain(tmp_path / "elsewhere")
    (oldest / "link").symlink_to(tmp_path / "elsewhere")
    change_module(oldest, 0, path=path)
    with pytest.raises(CheckpointError, match=r"key 'path' = .* is not supported") as caught:
        Checkpoint(oldest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("normalize", [True, False])
def test_quantized_embeddings(encoder, tmp_path, normalize):
    save_embedder(encoder, tmp_path, "mean", *[st_modules.Normalize()] * normalize)
    ours = np.stack(Quantized(tmp_path).answers(TEXTS))
    theirs = encoded(tmp_path, TEXTS)
    lengths, wanted = (np.linalg.norm(rows, axis=1) for rows in (ours, theirs))
    cosines = np.sum(ours * theirs, axis=1) / lengths / wanted
    assert cosines.min() >= 0.995
    np.testing.assert_allclose(lengths, wanted, rtol=1e-6 if normalize else 0.02)


# ---- prompts ----


@pytest.fixture
def prompted(folder):
    prompts = {"query": "how do you ", "passage": "the "}
    change(folder / "config_sentence_transformers.json", prompts=prompts)
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "of the "}],
    ids=str,
)
def test_prompts(prompted, options):
    same_embeddings(prompted, **options)


def test_a_default_prompt(prompted):
    change(prompted / "config_sentence_transformers.json", default_prompt_name="query")
    without = same_embeddings(prompted, prompt="")
    assert not np.allclose(same_embeddings(prompted), without, atol=0.01)
    same_embeddings(prompted, prompt_name="passage")


def test_sequences_for_calibration_have_the_default_prompt(prompted):
    change(prompted / "config_sentence_transformers.json", default_prompt_name="query")
    edge = Edge.of(Exact(prompted))
    ((ids, _),) = edge.sequences([("the you",)])
    assert ids.tolist() == edge.encode(["the you"]).input_ids.tolist()
    assert len(ids) > len(edge.encode(["the you"], prompt="").input_ids)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt_name": "q"}, "no prompt 'q' - its prompts: 'query', 'document', 'passage'"),
        ({"prompt_name": "query", "prompt": "x"}, "prompt 'x' and prompt_name 'query'"),
        ({"prompt": 3}, "prompt 0 is int"),
    ],
)
def test_prompts_that_are_not_there(prompted, options, match):
    with pytest.raises(IntformerError, match=match):
        Exact(prompted).answers(["a"], **options)


def test_other_heads_take_no_prompt(prompted):
    change(prompted / "config_sentence_transformers.json", default_prompt_name="query")
    features = Exact(prompted, head="features")
    assert len(features.answers(["the you"])[0]) == 4  # and not the default prompt either
    with pytest.raises(IntformerError, match="head features takes no prompt"):
        features.answers(["the"], prompt_name="query")


def test_the_run_verb_takes_a_prompt(prompted, monkeypatch, capsys):
    monkeypatch.setattr("intformer.runtime.load", lambda path: Exact(prompted))
    for name in ("query", "passage"):
        assert cli.main(["run", "x.so", "--text", TEXTS[0], "--prompt", name, "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        want = encoded(prompted, TEXTS[:1], prompt_name=name)[0]
        np.testing.assert_allclose(found["answer"], want, atol=2e-5)
    assert cli.main(["run", "x.so", "--text", "a", "--prompt", "q"]) == 1
    assert "no prompt 'q'" in capsys.readouterr().err


def test_a_library_carries_what_the_directory_says(prompted, tmp_path):
    change(prompted / "config_sentence_transformers.json", truncate_dim=20)
    quantized = Quantized(prompted)
    intformer.compile(quantized.model, tmp_path / "small.so", target="x86-64")
    library = intformer.load(tmp_path / "small.so")
    for options in ({}, {"prompt_name": "query"}):
        ours = list(predict(library, TEXTS, **options))
        np.testing.assert_array_equal(ours, quantized.answers(TEXTS, **options))
        assert ours[0].shape == (20,)


def test_a_library_of_every_pooling(encoder, tmp_path):
    """Poolings side by side, LayerNorms and a Dense module, in integers and in machine code."""
    made = [st_modules.LayerNorm(360), st_modules.Dense(360, 30), st_modules.LayerNorm(30)]
    save_embedder(encoder, tmp_path, SEVERAL, *made)
    quantized = Quantized(tmp_path)
    ours, theirs = np.stack(quantized.answers(TEXTS)), encoded(tmp_path, TEXTS)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert (np.sum(ours * theirs, axis=1) / norms).min() > 0.995
    library = intformer.compile(quantized.model, tmp_path / "small.so", target="x86-64")
    report = intformer.verify(library)
    assert report.ok, report
    np.testing.assert_array_equal(np.stack(list(predict(library, TEXTS))), ours)


@pytest.mark.parametrize("name", [None, "cosine", "dot", "euclidean", "manhattan"])
def test_similarity(folder, name):
    change(folder / "config_sentence_transformers.json", similarity_fn_name=name)
    exact, theirs = Exact(folder), st.SentenceTransformer(str(folder), device="cpu")
    assert exact.metadata["similarity"] == theirs.similarity_fn_name == (name or "cosine")
    vectors = 3 * np.stack(exact.answers(TEXTS))
    ours = Edge.of(exact).similarity(vectors[:3], vectors)
    wanted = theirs.similarity(vectors[:3], vectors).numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_similarity_of_others(folder, ranker, tmp_path):
    change(folder / "config_sentence_transformers.json", similarity_fn_name="maxsim")
    text = refusal(folder)
    assert "'similarity_fn_name' = 'maxsim'" in text and "manhattan" in text
    with pytest.raises(IntformerError, match="has no similarity function"):
        Edge.of(Exact(ranker)).similarity([[1.0]], [[1.0]])
    plain(tmp_path / "words", "masked-lm")
    theirs = st.SparseEncoder(str(tmp_path / "words"), device="cpu")
    sparse = Exact(tmp_path / "words", "sparse-embedding")
    assert sparse.metadata["similarity"] == theirs.similarity_fn_name


def test_a_trained_directory_keeps_what_the_source_says(prompted, tmp_path):
    change(prompted / "sentence_bert_config.json", do_lower_case=True, max_seq_length=9)
    write(prompted / "1_Pooling/config.json", {"pooling_mode": "cls", **DIMENSION})
    change_module(prompted, 1, path="pool/deep")
    (prompted / "pool").mkdir()
    shutil.move(prompted / "1_Pooling", prompted / "pool/deep")
    trained = prepare(prompted, calibrate=small_tokenizer.SENTENCES[:24])
    trained.save_pretrained(tmp_path / "trained")
    assert (
        read_encoder(Checkpoint(tmp_path / "trained"))[1] == read_encoder(Checkpoint(prompted))[1]
    )
    same_embeddings(tmp_path / "trained", prompt_name="query")


def test_a_trained_directory_of_the_oldest_form(oldest, tmp_path):
    prepare(oldest, calibrate=small_tokenizer.SENTENCES[:24]).save_pretrained(tmp_path / "trained")
    np.testing.assert_allclose(
        same_embeddings(tmp_path / "trained"), encoded(oldest, TEXTS), atol=2e-5
    )


def test_a_trained_directory_of_another_head(oldest, tmp_path):
    """It is that head's, with the ids of the source."""
    trained = prepare(oldest, head="features", calibrate=small_tokenizer.SENTENCES[:24])
    trained.save_pretrained(tmp_path / "trained")
    ours, source = Exact(tmp_path / "trained"), Exact(oldest, head="features")
    assert ours.metadata["head"] == "features"
    ids = [Edge.of(one).encode(["THE You"]).input_ids.tolist() for one in (ours, source)]
    assert ids[0] == ids[1]


# ---- cross-encoders ----


@pytest.mark.parametrize("activation", [None, "Identity", "Sigmoid"])
def test_a_saved_cross_encoder(ranker, tmp_path, activation):
    import torch

    function = getattr(torch.nn, activation)() if activation else None
    st.CrossEncoder(str(ranker), device="cpu", activation_fn=function).save(str(tmp_path))
    assert (tmp_path / "modules.json").exists()
    same_scores(tmp_path)
    function = read_encoder(Checkpoint(tmp_path))[1]["score_function"]
    assert function == (activation or "Sigmoid").lower()


def test_a_cross_encoder_of_three_classes(tmp_path):
    """Its scores are the logits, as those of predict(); a plain classifier's are a softmax."""
    source = plain(tmp_path / "plain", "sequence-classification", labels=3)
    st.CrossEncoder(str(source), device="cpu").save(str(tmp_path / "saved"))
    assert same_scores(tmp_path / "saved").min() < 0
    (answer,) = Exact(source).answers(["the"], ["you"])
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_quantized_scores(ranker, tmp_path):
    """The same bound as for every sequence classifier of random weights."""
    import torch

    st.CrossEncoder(str(ranker), device="cpu", activation_fn=torch.nn.Identity()).save(
        str(tmp_path)
    )
    known = small_tokenizer.SENTENCES
    answers = Quantized(tmp_path, calibrate=list(zip(known[:48], known[24:72], strict=True)))
    ours = np.array([a["score"] for a in answers.answers(*zip(*PAIRS, strict=True))])
    theirs = st.CrossEncoder(str(tmp_path), device="cpu").predict(PAIRS)
    assert snr_db(theirs, ours) > 14


OLD, NEWER, NEW = (
    ("config.json", "sbert_ce_default_activation_function"),
    ("config.json", "sentence_transformers"),
    ("config_sentence_transformers.json", "activation_fn"),
)
IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
SOURCES = [  # (what each of the places says, the score function)
    ({OLD: IDENTITY}, "identity"),
    ({OLD: SIGMOID}, "sigmoid"),
    ({NEWER: {"activation_fn": IDENTITY}}, "identity"),
    ({NEWER: {"activation_fn": IDENTITY}, OLD: SIGMOID}, "identity"),
    ({NEWER: {"version": "5.1.0"}, OLD: IDENTITY}, "identity"),
    ({NEWER: {"version": "5.1.0"}}, "sigmoid"),
    ({NEW: SIGMOID, NEWER: {"activation_fn": IDENTITY}, OLD: IDENTITY}, "sigmoid"),
    ({NEW: IDENTITY, NEWER: {"activation_fn": SIGMOID}}, "identity"),
    ({NEW: None, NEWER: {"activation_fn": IDENTITY}}, "identity"),
    ({NEW: None}, "sigmoid"),
]


@pytest.mark.parametrize(("said", "wanted"), SOURCES, ids=[str(i) for i in range(len(SOURCES))])
def test_where_the_activation_is_said(ranker, tmp_path, said, wanted):
    folder = tmp_path / "model"
    if any(place == NEW for place in said):
        st.CrossEncoder(str(ranker), device="cpu").save(str(folder))
    else:
        shutil.copytree(ranker, folder)
    for (file, key), value in said.items():
        change(folder / file, **{key: value})
    theirs = st.CrossEncoder(str(folder), device="cpu").activation_fn
    assert type(theirs).__name__.lower() == wanted
    assert read_encoder(Checkpoint(folder))[1]["score_function"] == wanted


def test_prompts_of_a_cross_encoder_come_before_the_first_text(ranker, tmp_path):
    prompts = {"ask": "how do you "}
    st.CrossEncoder(str(ranker), device="cpu", prompts=prompts, default_prompt_name="ask").save(
        str(tmp_path)
    )
    same_scores(tmp_path)


def test_heads_asked_for_are_those_of_the_plain_directory(ranker, tmp_path):
    """A directory saved for one head gives sentence-transformers' defaults for another."""
    st.CrossEncoder(str(ranker), device="cpu").save(str(tmp_path))
    change(tmp_path / "config_sentence_transformers.json", prompts={"q": "the "})
    meta = read_encoder(Checkpoint(tmp_path), "sentence-embedding")[1]
    assert (meta["pooling"], meta["normalize"]) == ("mean", False)
    assert meta["prompts"] == st.SentenceTransformer(str(tmp_path), device="cpu").prompts
    same_embeddings(tmp_path, head="sentence-embedding", prompt_name="query")


# ---- weights of words ----


def test_words_are_those_of_sparse_encoder(tmp_path):
    plain(tmp_path, "masked-lm")
    st.SparseEncoder(str(tmp_path), device="cpu").save(str(tmp_path))
    theirs = st.SparseEncoder(str(tmp_path), device="cpu")
    exact = Exact(tmp_path)
    assert (exact.metadata["head"], exact.metadata["pooling"]) == ("sparse-embedding", "max")
    for options in ({}, {"prompt": "how do you "}):
        wanted = theirs.decode(theirs.encode(TEXTS, **options))
        for ours, words in zip(exact.answers(TEXTS, **options), wanted, strict=True):
            found = {word["token"]: word["score"] for word in ours}
            assert found == pytest.approx(dict(words), abs=2e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)
    few = exact.answers(TEXTS, top_k=3)
    assert few == [words[:3] for words in exact.answers(TEXTS)]


# ---- refused by name ----


def refusal(folder, head=None):
    with pytest.raises(CheckpointError) as caught:
        read_encoder(Checkpoint(folder), head)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["MultiVectorEncoder", "Other"])
def test_models_that_do_not_compile(folder, kind):
    change(folder / "config_sentence_transformers.json", model_type=kind)
    for head in (None, "sentence-embedding", "sparse-embedding"):
        text = refusal(folder, head)
        assert "config_sentence_transformers.json" in text and f"'model_type' = '{kind}'" in text
    assert read_encoder(Checkpoint(folder), "features")[1]["head"] == "features"


@pytest.mark.parametrize("value", [False, None])
def test_prompts_that_are_not_pooled(encoder, tmp_path, value):
    """Without a prompt there is nothing to leave out."""
    save_embedder(encoder, tmp_path, "mean")
    change(tmp_path / "1_Pooling/config.json", include_prompt=value)
    same_embeddings(tmp_path)
    exact = Exact(tmp_path)
    with pytest.raises(IntformerError, match="pooling leaves prompts out"):
        exact.answers(TEXTS, prompt="the ")
    change(tmp_path / "config_sentence_transformers.json", prompts={"query": "the "})
    text = refusal(tmp_path)
    assert "1_Pooling/config.json" in text and "'include_prompt'" in text


def test_layer_norms(encoder, tmp_path):
    """Behind the pooling, a Dense module and another one."""
    made = [st_modules.LayerNorm(120), st_modules.Dense(120, 30, activation_function=None)]
    made += [st_modules.LayerNorm(30), st_modules.LayerNorm(30), st_modules.Normalize()]
    for module in made:
        for weight in module.parameters():
            torch.nn.init.normal_(weight, 0.1, 0.3)
    save_embedder(encoder, tmp_path, ["mean", "mean_sqrt_len_tokens"], *made)
    same_embeddings(tmp_path)
    with pytest.raises(CheckpointError, match="LayerNorm module does not go with training"):
        prepare(tmp_path)
    change(tmp_path / "2_LayerNorm/config.json", eps=1e-3)
    assert "2_LayerNorm/config.json" in refusal(tmp_path) and "'eps'" in refusal(tmp_path)
    change(tmp_path / "2_LayerNorm/config.json", eps=None, dimension=60)
    assert "2_LayerNorm" in refusal(tmp_path) and "[60]" in refusal(tmp_path)


def save_dense(encoder, folder, **changed):
    """Write an embedder with one Dense module; returns the module's folder."""
    save_embedder(encoder, folder, "mean", st_modules.Dense(60, 8))
    change(folder / "2_Dense/config.json", **changed)
    return folder / "2_Dense"


@pytest.mark.parametrize(
    "changed",
    [
        {"activation_function": "os.system"},
        {"use_residual": True},
        {"module_input_name": "token_embeddings"},
        {"module_output_name": "other"},
        {"surprise": 1},
        {"in_features": "60"},
        {"bias": 0},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_dense_settings_that_do_not_compile(encoder, tmp_path, changed):
    save_dense(encoder, tmp_path, **changed)
    text = refusal(tmp_path)
    assert "2_Dense/config.json" in text and f"'{next(iter(changed))}'" in text


def test_dense_of_the_wrong_size(encoder, tmp_path):
    save_dense(encoder, tmp_path, in_features=64)
    assert "2_Dense" in refusal(tmp_path) and "[8, 60]" in refusal(tmp_path)
    (tmp_path / "2_Dense/config.json").unlink()
    st_modules.Dense(64, 8).save(str(tmp_path / "2_Dense"))
    assert "2_Dense/linear reads 64 channels, the embedding has 60" in refusal(tmp_path)


def test_dense_without_weights(encoder, tmp_path):
    (save_dense(encoder, tmp_path) / "model.safetensors").unlink()
    assert "2_Dense" in refusal(tmp_path)


def test_dense_goes_with_recipe_native_alone(encoder, tmp_path):
    save_dense(encoder, tmp_path)
    with pytest.raises(CheckpointError, match="Dense module does not go with"):
        prepare(str(tmp_path), recipe="native")


def test_a_router(encoder, tmp_path):
    parts = [[st_modules.Transformer(str(encoder)), st_modules.Pooling(60)] for _ in range(2)]
    router = st_modules.Router.for_query_document(*parts)
    st.SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path))
    assert "Router' is not supported" in refusal(tmp_path)
    shutil.copy(encoder / "config.json", tmp_path)
    assert "Router' is not supported" in refusal(tmp_path)


MODULE = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}
FILES = {  # file -> (value, what the error names)
    "modules.json": [
        ({}, "modules.json is not a list"),
        ("x", "modules.json is not a list"),
        ([], "no Transformer module"),
        ([MODULE], "no Pooling module"),
        ([3], "module 0"),
        ([{}], "key 'type' is missing"),
        ([{"type": "sentence_transformers.models.Transformer"}], "key 'path' is missing"),
        ([{**MODULE, "type": 7}], "key 'type' = 7 is an integer, not text"),
        ([{**MODULE, "path": ["a"]}], "key 'path' = ['a'] is a list, not text"),
        ([{**MODULE, "type": "mine.Transformer"}, POOLING], "'mine.Transformer' is not supported"),
        ([MODULE, NORMALIZE, POOLING], "Normalize' is not supported"),
        ([POOLING, MODULE], "Pooling' is not supported"),
        ([MODULE, {**POOLING, "path": "../x"}], "key 'path' = '../x' is not supported"),
        ([MODULE, {**POOLING, "path": "/tmp"}], "key 'path' = '/tmp' is not supported"),
        ([MODULE, {**POOLING, "path": "nowhere"}], "nowhere/config.json"),
    ],
    "config_sentence_transformers.json": [
        ([], "is not an object"),
        ({"model_type": 3}, "key 'model_type' = 3 is not supported"),
        ({"model_type": None}, "key 'model_type' = null is not supported"),
        ({"prompts": ["a"]}, "key 'prompts' = ['a'] is a list, not an object"),
        ({"prompts": {"query": 1}}, "key 'query' = 1 is an integer, not text"),
        ({"default_prompt_name": "ask"}, "key 'default_prompt_name' = 'ask' is not supported"),
        ({"default_prompt_name": 5}, "key 'default_prompt_name' = 5 is an integer"),
        ({"truncate_dim": "8"}, "key 'truncate_dim' = '8'"),
        ({"truncate_dim": 0}, "key 'truncate_dim' = 0"),
    ],
    "sentence_bert_config.json": [
        ([], "is not an object"),
        ({"max_seq_length": "64"}, "key 'max_seq_length' = '64'"),
        ({"max_seq_length": -1}, "key 'max_seq_length' = -1"),
        ({"max_seq_length": True}, "key 'max_seq_length' = True"),
        ({"do_lower_case": "no"}, "key 'do_lower_case' = 'no' is text, not a bool"),
        ({"transformer_task": "fill-mask"}, "key 'transformer_task' = 'fill-mask'"),
        ({"query_length": 16}, "key 'query_length' = 16 is not supported"),
        ({"query_expansion": {"length": 8}}, "key 'query_expansion'"),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, "key 'max_length' = 9"),
        ({"config_args": {"hidden_act": "relu"}}, "key 'hidden_act' = 'relu'"),
        ({"model_kwargs": {"subfolder": "x"}}, "key 'subfolder' = 'x'"),
        ({"tokenizer_args": 3}, "key 'tokenizer_args' = 3"),
        ({"module_output_name": "sentence_embedding"}, "key 'module_output_name'"),
        ({"modality_config": {"image": {"method": "forward"}}}, "key 'image'"),
        (
            {"modality_config": {"text": {"method_output_name": "pooler_output"}}},
            "key 'method_output_name' = 'pooler_output'",
        ),
    ],
    "1_Pooling/config.json": [
        ([], "is not an object"),
        ({}, "no settings of Pooling"),
        ({"pooling_mode": 3}, "key 'pooling_mode' = 3"),
        ({"pooling_mode": "median"}, "key 'pooling_mode' = 'median'"),
        ({"pooling_mode": []}, "key 'pooling_mode' = []"),
        ({"pooling_mode": ["mean", "median"]}, "key 'pooling_mode' = ['mean', 'median']"),
        ({"pooling_mode": "mean", "include_prompt": 0}, "'include_prompt' = 0"),
        ({"pooling_mode_mean_tokens": "yes"}, "'pooling_mode_mean_tokens' = 'yes' is text"),
        ({"pooling_mode": "mean", "own": 1}, "key 'own' = 1"),
    ],
    "2_Normalize/config.json": [
        (3, "is not an object"),
        ({"module_input_name": "token_embeddings"}, "key 'module_input_name'"),
        ({"module_input_name": None}, "key 'module_input_name' = null"),
        ({"module_output_name": 3}, "key 'module_output_name' = 3"),
    ],
    "tokenizer_config.json": [
        ([], "is not an object"),
        ({"model_max_length": "x"}, "key 'model_max_length' = 'x'"),
    ],
}
WRONG = [(file, *case) for file, cases in FILES.items() for case in cases]


@pytest.mark.parametrize(
    ("file", "value", "named"), WRONG, ids=[f"{i}-{file}" for i, (file, *_) in enumerate(WRONG)]
)
def test_wrong_shapes_and_types(folder, file, value, named):
    write(folder / file, value)
    text = refusal(folder)
    assert named in text
    assert file in text or "/config.json" in named


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("torch.nn.modules.activation.Tanh", NEW),
        ("mine.Activation", NEW),
        ("torch.nn.modules.activation.Tanh", OLD),
        (7, NEW),
        (["x"], OLD),
        ("x", NEWER),
        ({"activation_fn": 3}, NEWER),
    ],
)
def test_activations_that_do_not_compile(ranker, tmp_path, name, where):
    folder = tmp_path / "model"
    if where == NEW:
        st.CrossEncoder(str(ranker), device="cpu").save(str(folder))
    else:
        shutil.copytree(ranker, folder)
    file, key = where
    change(folder / file, **{key: name})
    text = refusal(folder)
    assert file in text and repr(key) in text


# ---- labels ----


def classifier(tmp_path, labels, **config):
    folder = plain(tmp_path / "model", "sequence-classification", labels=labels)
    change(folder / "config.json", **config)
    return folder


def pipeline_scores(folder, texts):
    import transformers

    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    return [
        {one["label"]: one["score"] for one in answer}
        for answer in pipe(texts, truncation=True, max_length=32)
    ]


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (1, {}),
        (1, {"problem_type": "regression"}),
        (1, {"problem_type": "multi_label_classification"}),
        (3, {}),
        (3, {"problem_type": "single_label_classification"}),
        (3, {"problem_type": "regression"}),
        (28, {"problem_type": "multi_label_classification"}),
        (3, {"label2id": {"LABEL_0": 2, "LABEL_1": 0, "LABEL_2": 1}}),
        (2, {"id2label": {"1": 1, "0": 0}, "label2id": {}}),
    ],
    ids=str,
)
def test_scores_are_those_of_a_pipeline(tmp_path, labels, config):
    folder = classifier(tmp_path, labels, **config)
    for ours, theirs in zip(
        Exact(folder).answers(TEXTS), pipeline_scores(folder, TEXTS), strict=True
    ):
        theirs = {str(name): score for name, score in theirs.items()}
        assert ours["scores"] == pytest.approx(theirs, abs=2e-5)
        assert len(ours["scores"]) == labels
        assert ours["score"] == max(ours["scores"].values())


def test_scores_of_large_logits_do_not_tie(ranker):
    exact = Exact(ranker)
    for logits in ((17.0, 18.0, 25.0), (-300.0, -200.0, -40.0)):
        exact.run = lambda logits=logits, **_: np.array(logits)[:, None] / exact.STEP
        scores = [answer["score"] for answer in exact.answers(["a", "b", "c"])]
        assert scores[0] < scores[1] < scores[2]


def test_one_label_has_nothing_to_choose_from(tmp_path):
    import transformers

    folder = classifier(tmp_path, 1, problem_type="single_label_classification")
    assert "'problem_type' = 'single_label_classification' with one label" in refusal(folder)
    with pytest.raises(Exception, match="num_labels > 1"):
        transformers.AutoConfig.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "names several classes 'a'"),
        ({"id2label": {"0": "1", "1": 1, "2": "c"}}, "names several classes '1'"),
        ({"id2label": {"0": "a", "1": "b"}}, "names classes [0, 1], the classifier has 3"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "names classes [1, 2, 3]"),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "names classes [0, 1, 2, 3]"),
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, "has key 'a', not the number of a class"),
        ({"id2label": {"0": "a", "1": None, "2": "c"}}, "for class 1, not a name"),
        ({"id2label": {"0": "a", "1": ["b"], "2": "c"}}, "['b'] for class 1, not a name"),
        ({"id2label": ["a", "b", "c"]}, "'id2label'"),
        ({"problem_type": "guess"}, "'problem_type' = 'guess'"),
        ({"problem_type": ["x"]}, "'problem_type' = ['x']"),
    ],
    ids=str,
)
def test_labels_that_are_refused(tmp_path, config, named):
    text = refusal(classifier(tmp_path, 3, **config))
    assert named in text and "config.json" in text


def test_duplicate_names_of_token_classes_lose_nothing(tmp_path):
    random_hf.save(tmp_path, "bert", "token-classification")
    change(tmp_path / "config.json", id2label={"0": "O", "1": "X", "2": "O"})
    assert read_encoder(Checkpoint(tmp_path))[1]["labels"] == ["O", "X", "O"]
