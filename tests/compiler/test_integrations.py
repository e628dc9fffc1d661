"""Libraries as models of sentence-transformers and pipelines: beside the originals."""

import copy

import numpy as np
import pytest
import sentence_transformers as st
import torch
import transformers
from sentence_transformers.sentence_transformer import modules as st_modules
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import intformer
from intformer.errors import IntformerError
from intformer.integrations import cross_encoder, pipeline, sentence_transformer
from intformer.integrations.modules import LibraryEncoder
from intformer.integrations.pipelines import (
    QuestionAnswering,
    TextClassification,
    TokenClassification,
)
from intformer.runtime.edge.scores import softmax
from intformer_testing import random_hf, small_tokenizer
from intformer_testing.sentence_dirs import Exact, change, plain

TEXTS = [*small_tokenizer.SENTENCES[50:58], "The", "", "the you of"]
PAIRS = [(one, other) for one in TEXTS[:3] for other in TEXTS[3:6]]
SHAPE = {"hidden": 32, "heads": 2, "layers": 2, "ffn": 48}
PROMPTS = {"query": "the you: ", "short": "a"}


def compiled(folder, path, **options):
    calibration = path.with_suffix(".txt")
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    options = {"target": "x86-64", "method": "minmax", **options}
    intformer.compile(folder, path, calibrate=calibration, **options)
    return path


# ---- SentenceTransformer ----


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """A directory with prompts and a truncation, and its library."""
    made = tmp_path_factory.mktemp("embedder")
    transformer = st_modules.Transformer(str(plain(made / "plain", **SHAPE)))
    pooling = st_modules.Pooling(32, pooling_mode="mean")
    model = st.SentenceTransformer(
        modules=[transformer, pooling, st_modules.Normalize()],
        device="cpu",
        prompts=PROMPTS,
        truncate_dim=24,
        similarity_fn_name="dot",
    )
    model.save(str(made / "model"))
    return made / "model", compiled(made / "model", made / "model.so")


@pytest.fixture(scope="module")
def theirs(embedder):
    return st.SentenceTransformer(str(embedder[0]), device="cpu")


@pytest.fixture(scope="module")
def ours(embedder):
    return sentence_transformer(embedder[1])


def near(ours, theirs):
    """Of the same kind, and as near as integers of eight bits are."""
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    rows = np.asarray(ours, np.float64).reshape(-1, ours.shape[-1])
    other = np.asarray(theirs, np.float64).reshape(rows.shape)
    cosines = (rows * other).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > 0.97


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "query"},
        {"prompt": "of the "},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"truncate_dim": 32},
        {"convert_to_tensor": True, "batch_size": 2},
    ],
)
def test_encode(ours, theirs, options):
    near(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))
    near(ours.encode(TEXTS[0], **options), theirs.encode(TEXTS[0], **options))


def test_encode_is_predict(ours, embedder):
    """To the last bit, whatever the batches; the prompt and the truncation are the library's."""
    library = intformer.load(embedder[1])
    for name in (None, "query"):
        wanted = np.stack(list(intformer.predict(library, TEXTS, prompt_name=name)))
        for size in (1, 4, 32):
            np.testing.assert_array_equal(
                ours.encode(TEXTS, prompt_name=name, batch_size=size), wanted
            )


def test_settings(ours, theirs):
    for one in (ours, theirs):
        assert isinstance(one, st.SentenceTransformer)
        assert one.prompts == {"query": PROMPTS["query"], "document": "", "short": "a"}
        assert one.similarity_fn_name == "dot"
        assert one.truncate_dim == 24
        assert one.get_embedding_dimension() == 24
    assert ours.max_seq_length == theirs.max_seq_length
    features = ours.preprocess(TEXTS)
    for name, wanted in theirs.preprocess(TEXTS).items():
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(features[name], wanted), name
    near(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
    near(ours.encode_document(TEXTS), theirs.encode_document(TEXTS))
    assert ours.encode([]).shape == theirs.encode([]).shape


def test_similarity(ours, theirs):
    one, other = ours.encode(TEXTS), theirs.encode(TEXTS)
    found, wanted = ours.similarity(one, one), theirs.similarity(other, other)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), one @ one.T, rtol=1e-5)


def test_shorter_texts(embedder, theirs):
    ours = sentence_transformer(embedder[1])
    shorter = st.SentenceTransformer(str(embedder[0]), device="cpu")
    ours.max_seq_length = shorter.max_seq_length = 6
    assert torch.equal(ours.preprocess(TEXTS)["input_ids"], shorter.preprocess(TEXTS)["input_ids"])
    near(ours.encode(TEXTS), shorter.encode(TEXTS))
    with pytest.raises(IntformerError, match=r"max_seq_length = 99 .* 1 to 32 tokens"):
        ours.max_seq_length = 99


def test_save_and_load(ours, tmp_path, embedder):
    wanted = ours.encode(TEXTS, prompt_name="query")
    shorter = sentence_transformer(embedder[1], truncate_dim=7)
    shorter.max_seq_length = 6
    for one in (ours, shorter):
        one.save(str(tmp_path / "saved"))
        one.save(str(tmp_path / "saved"))  # over it
        again = st.SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
        assert isinstance(again[0], LibraryEncoder)
        assert again.max_seq_length == one.max_seq_length
        assert again.prompts == one.prompts
        np.testing.assert_array_equal(again.encode(TEXTS), one.encode(TEXTS))
    again.save(str(tmp_path / "saved"))  # over the library that it runs
    np.testing.assert_array_equal(copy.deepcopy(ours).encode(TEXTS, prompt_name="query"), wanted)


@pytest.mark.slow
def test_several_processes(ours):
    pool = ours.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = ours.encode(TEXTS, pool=pool, chunk_size=3)
        with pytest.warns(Warning, match="deprecated"):
            again = ours.encode_multi_process(TEXTS, pool)
    finally:
        ours.stop_multi_process_pool(pool)
    np.testing.assert_array_equal(found, ours.encode(TEXTS))
    np.testing.assert_array_equal(again, found)


def test_what_a_library_does_not_have(ours, embedder):
    with pytest.raises(IntformerError, match="'token_embeddings' is not computed"):
        ours.encode(TEXTS, output_value="token_embeddings")
    with pytest.raises(IntformerError, match="head sentence-embedding, sequence-classification"):
        cross_encoder(embedder[1])
    with pytest.raises(IntformerError, match="head sentence-embedding has no pipeline"):
        pipeline(embedder[1])
    with pytest.raises(IntformerError, match="option 'processing_kwargs' is not supported"):
        ours.encode(TEXTS, processing_kwargs={})
    with pytest.raises(IntformerError, match="lone surrogate"):
        ours.encode(["\ud800"])


# ---- CrossEncoder ----


@pytest.fixture(scope="module", params=[1, 3])
def ranker(request, tmp_path_factory):
    made = tmp_path_factory.mktemp("ranker")
    source = plain(made / "plain", "sequence-classification", labels=request.param, **SHAPE)
    theirs = st.CrossEncoder(str(source), device="cpu")
    theirs.save(str(made / "model"))
    return theirs, cross_encoder(compiled(made / "model", made / "model.so")), made


def test_scores(ranker):
    theirs, ours, _ = ranker
    assert isinstance(ours, st.CrossEncoder)
    assert ours.num_labels == theirs.num_labels
    assert ours.max_seq_length == theirs.max_seq_length
    assert type(ours.activation_fn) is type(theirs.activation_fn)
    for options in ({}, {"apply_softmax": True}, {"convert_to_tensor": True, "batch_size": 2}):
        found, wanted = ours.predict(PAIRS, **options), theirs.predict(PAIRS, **options)
        assert type(found) is type(wanted)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=0.35)
        assert np.corrcoef(np.ravel(found), np.ravel(wanted))[0, 1] > 0.95
    one, other = ours.predict(PAIRS[0]), theirs.predict(PAIRS[0])
    assert (type(one), one.shape) == (type(other), other.shape)


def test_scores_are_those_of_predict(ranker):
    _, ours, made = ranker
    answers = intformer.predict(intformer.load(made / "model.so"), *zip(*PAIRS, strict=True))
    wanted = np.array([list(answer["scores"].values()) for answer in answers]).squeeze()
    np.testing.assert_allclose(ours.predict(PAIRS).squeeze(), wanted, rtol=1e-5)


def test_ranks(ranker):
    theirs, ours, made = ranker
    ours.save(str(made / "saved"))
    again = st.CrossEncoder(str(made / "saved"), trust_remote_code=True)
    np.testing.assert_array_equal(again.predict(PAIRS), ours.predict(PAIRS))
    if theirs.num_labels > 1:
        for one in (theirs, ours, again):
            with pytest.raises(ValueError, match="only works for models with num_labels=1"):
                one.rank(TEXTS[0], TEXTS[1:])
        return
    found = ours.rank(TEXTS[0], TEXTS[1:], return_documents=True, top_k=4)
    wanted = theirs.rank(TEXTS[0], TEXTS[1:], return_documents=True, top_k=4)
    assert [one.keys() for one in found] == [one.keys() for one in wanted]
    scores = ours.predict([(TEXTS[0], text) for text in TEXTS[1:]])
    assert [one["corpus_id"] for one in found] == np.argsort(-scores, kind="stable")[:4].tolist()
    assert found == again.rank(TEXTS[0], TEXTS[1:], return_documents=True, top_k=4)


# ---- pipelines, with the float model in the library's place: what follows it is the same ----

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def word_pieces(folder):
    """A tokenizer with pieces of words, as BERT has it."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    ids = {w: i for i, w in enumerate([*small_tokenizer.SPECIAL, *pieces, "the", "of", "##ing"])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=["words", "pieces"])
def tagger(request, tmp_path_factory):
    """Ours and transformers'."""
    source = plain(tmp_path_factory.mktemp("model"), "token-classification", labels=5, **SHAPE)
    change(source / "config.json", id2label=dict(enumerate(TAGS)), label2id={})
    if request.param == "pieces":
        word_pieces(source)
    change(source / "tokenizer_config.json", model_max_length=32)
    return TokenClassification(Exact(source)), theirs_of(source, "ner")


def theirs_of(source, task):
    return transformers.pipeline(task, model=str(source), device="cpu")


def as_theirs(found, wanted):
    """The same values, types and order of keys; scores within the step of the float model."""
    assert type(found) is type(wanted)
    if isinstance(found, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            as_theirs(one, other)
    else:
        assert list(found) == list(wanted)
        assert isinstance(found["score"], float)
        assert {**found, "score": 0} == {**wanted, "score": 0}
        assert found["score"] == pytest.approx(float(wanted["score"]), abs=1e-5)


def generated(values):
    yield from values


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_entities(tagger, strategy):
    ours, theirs = tagger
    texts = [text for text in TEXTS if text] + ["Theing offing the Thé unknown-word  x"]
    options = {"aggregation_strategy": strategy}
    as_theirs(ours(texts, **options), theirs(texts, **options))
    as_theirs(list(ours(generated(texts), **options)), theirs(texts, **options))
    options["ignore_labels"] = ["B-PER"]
    as_theirs(ours(texts[1], **options), theirs(texts[1], **options))


@pytest.fixture(scope="module", params=[1, 3])
def classifier(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    source = plain(folder, "sequence-classification", labels=request.param, **SHAPE)
    change(source / "tokenizer_config.json", model_max_length=32)
    return TextClassification(Exact(source)), theirs_of(source, "text-classification")


@pytest.mark.parametrize(("text", "other"), [("", TEXTS[1]), (TEXTS[0], ""), (TEXTS[0], None)])
def test_pairs_of_which_one_is_empty(classifier, text, other):
    ours, theirs = classifier
    pair = {"text": text, "text_pair": other}
    as_theirs(ours([pair]), theirs([pair]))


@pytest.mark.parametrize("top_k", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}])
def test_labels(classifier, top_k):
    ours, theirs = classifier
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for inputs in (TEXTS, TEXTS[0], pair, [pair, *TEXTS[:2], pair], [[list(PAIRS[0])]]):
        for function in ("default", "sigmoid", "softmax", "none"):
            named = {} if function == "default" else {"function_to_apply": function}
            options = {**top_k, **named, "truncation": True}
            as_theirs(ours(inputs, **options), theirs(inputs, **options))
    assert ours([], **top_k) == []


def test_a_library_in_a_pipeline(ranker):
    _, _model, made = ranker
    library = intformer.load(made / "model.so")
    answers = list(intformer.predict(library, TEXTS))
    if len(library.metadata["labels"]) > 1:  # predict has CrossEncoder's identity
        for answer in answers:
            answer["score"] = softmax(np.array([[*answer["scores"].values()]])).max()
    for one in (library, str(made / "model.so")):
        found = pipeline(one, task="sentiment-analysis")(TEXTS, batch_size=8)
        assert found == [{"label": one["label"], "score": one["score"]} for one in answers]
    always = pipeline(library, top_k=None)  # transformers nests it like this, too
    assert always(TEXTS[0]) == [always(TEXTS[0], top_k=None)]
    with pytest.raises(IntformerError, match=r"task 'ner' .* text-classification"):
        pipeline(library, task="ner")


@pytest.mark.parametrize(
    ("inputs", "options", "match"),
    [
        ([1], {}, "an input is int, not a text"),
        ([None], {}, "an input is NoneType"),
        ("a", {"max_length": 3}, "option max_length = 3 is not supported - options: top_k"),
        ("a", {"truncation": False}, "option truncation = False is not supported"),
        ("a", {"function_to_apply": "tanh"}, "function_to_apply = 'tanh' - one of"),
    ],
)
def test_pipelines_refuse(classifier, inputs, options, match):
    with pytest.raises(IntformerError, match=match):
        classifier[0](inputs, **options)


def test_answers_to_questions(tmp_path):
    """transformers 5 has no such pipeline any more; the calls are those of its last one."""
    random_hf.save(tmp_path, "bert", "question-answering", **SHAPE)
    small_tokenizer.save(tmp_path)
    library = Exact(tmp_path)
    ask = QuestionAnswering(library)
    questions, contexts = ["the you", "of"], [" ".join(TEXTS[:4]), TEXTS[5]]
    wanted = list(intformer.predict(library, questions, contexts))
    rows = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    assert ask(rows) == ask(question=questions, context=contexts) == wanted
    assert ask(rows[0]) == ask(question=questions[0], context=contexts[0]) == wanted[0]
    assert wanted[0].keys() == {"score", "start", "end", "answer"}
    for one, context in zip(wanted, contexts, strict=True):
        assert context[one["start"] : one["end"]] == one["answer"]
    assert ask(question="of", context=contexts) == ask(question=["of", "of"], context=contexts)
    (short,) = ask([rows[0]], max_answer_len=1)
    assert len(short["answer"].split()) == 1
    with pytest.raises(IntformerError, match=r"an input is not \{'question'"):
        ask("of")
    with pytest.raises(IntformerError, match="2 questions and 1 contexts"):
        ask(question=["of", "a"], context=["b"])
