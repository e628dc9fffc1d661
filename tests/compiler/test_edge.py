import gc
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from intformer.errors import IntformerError, LibraryError
from intformer.runtime import edge
from intformer.runtime.edge import Edge, Packed, pack

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "the", "cat", "sat", "##s", "##at", ",", "."]
VOCAB = {word: i for i, word in enumerate(SPECIAL + WORDS)}
PAD, CLS, SEP, MASK = (VOCAB[t] for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
META = {
    "head": "features",
    "position_rule": "column",
    "pad_token_id": PAD,
    "vocab_size": len(VOCAB),
    "type_vocab_size": 2,
    "max_length": 16,
    "output_scale": 0.5,
    "labels": [],
}


def files() -> dict[str, bytes]:
    """A small WordPiece tokenizer, saved as BERT's are: with padding switched on."""
    tokenizer = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_padding(length=64)
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        edge.SETTINGS_FILE: json.dumps({"mask_token": "[MASK]"}).encode(),
    }


def make(head="features", **meta) -> Edge:
    return Edge({**META, "head": head, **meta}, files())


# ---- padded arrays ----

ROWS = {  # ids and mask with pad id 1, and the positions of the kept tokens by either rule
    "right-padded": ([5, 6, 7, 1, 1], [1, 1, 1, 0, 0], [0, 1, 2], [2, 3, 4]),
    "left-padded": ([1, 1, 5, 6, 7], [0, 0, 1, 1, 1], [2, 3, 4], [2, 3, 4]),
    "hole": ([5, 6, 7, 8, 9], [1, 0, 1, 0, 1], [0, 2, 4], [2, 4, 6]),
    "pad id in the text": ([5, 1, 7, 1, 9], [1, 1, 1, 1, 1], [0, 1, 2, 3, 4], [2, 1, 3, 1, 4]),
    "one token": ([5, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0], [2]),
}


@pytest.mark.parametrize("rule", ["column", "padding"])
@pytest.mark.parametrize("names", [[name] for name in ROWS] + [list(ROWS)])
def test_pack(rule, names):
    ids, mask, column, padding = zip(*(ROWS[name] for name in names), strict=True)
    ids, mask = np.array(ids), np.array(mask)
    types = ids % 2
    meta = {"position_rule": rule, "pad_token_id": 1}
    packed = pack(meta, ids, mask, types, wanted=ids == 7)
    kept = mask.astype(bool)
    np.testing.assert_array_equal(packed.input_ids, ids[kept])
    np.testing.assert_array_equal(packed.token_type_ids, types[kept])
    np.testing.assert_array_equal(np.diff(packed.cu_seqlens), kept.sum(1))
    want = column if rule == "column" else padding
    np.testing.assert_array_equal(packed.position_ids, np.concatenate(want))
    np.testing.assert_array_equal(packed.positions, np.flatnonzero(packed.input_ids == 7))
    assert {a.dtype for a in packed.inputs().values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("lengths", [(1, 2, 3, 5, 511, 512), (512, 1), (1,)])
def test_pack_of_mixed_lengths(lengths):
    ids = np.random.default_rng(0).integers(5, 99, (len(lengths), max(lengths)))
    mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    ids[~mask] = 1
    for rule, first in (("column", 0), ("padding", 2)):
        packed = pack({"position_rule": rule, "pad_token_id": 1}, ids, mask)
        np.testing.assert_array_equal(np.diff(packed.cu_seqlens), lengths)
        want = np.concatenate([np.arange(length) + first for length in lengths])
        np.testing.assert_array_equal(packed.position_ids, want)
        assert packed.positions is None


def test_positions_are_transformers_own():
    torch = pytest.importorskip("torch")
    roberta = pytest.importorskip("transformers.models.roberta.modeling_roberta")
    ids = np.array([row[0] for row in ROWS.values()])
    create = roberta.RobertaEmbeddings.create_position_ids_from_input_ids
    want = create(torch.from_numpy(ids), 1).numpy()
    np.testing.assert_array_equal(edge.hf_positions(ids, "padding", 1), want)


def test_given_positions_win():
    ids = np.array([[5, 6, 7]])
    packed = pack(META, ids, position_ids=np.array([[4, 4, 9]]))
    assert packed.position_ids.tolist() == [4, 4, 9]
    assert packed.token_type_ids.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"input_ids": [1, 2]}, r"input_ids is int64 \[2\], not \[batch, seq\]"),
        ({"input_ids": [[0.5]]}, "input_ids is float64"),
        ({"attention_mask": [[1, 1]]}, r"attention_mask is \[1, 2\], input_ids \[2, 3\]"),
        ({"token_type_ids": [[1, 1]]}, "token_type_ids is"),
        ({"position_ids": [[1, 1]]}, "position_ids is"),
        ({"attention_mask": [[1, 1, 1], [0, 0, 0]]}, "sequence 1 is empty: all its tokens"),
    ],
)
def test_pack_refuses(arrays, match):
    with pytest.raises(IntformerError, match=match):
        pack(META, **{"input_ids": [[1, 2, 3], [4, 5, 6]], **arrays})


# ---- text ----


def test_encode_packs_without_padding():
    packed = make().encode(["the cats", "a", ""])
    the, cat, s, a = (VOCAB[t] for t in ("the", "cat", "##s", "a"))
    assert packed.input_ids.tolist() == [CLS, the, cat, s, SEP, CLS, a, SEP, CLS, SEP]
    assert packed.cu_seqlens.tolist() == [0, 5, 8, 10]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert packed.text_of == [0, 1, 2]
    assert packed.positions is None


def test_encode_equals_padding_and_packing():
    """Text straight to packed tokens, or padded first: the same numbers, also with a pad id."""
    for rule in ("column", "padding"):
        one = make(position_rule=rule)
        packed = one.encode(["the cat [PAD] sat", "a b c d e f"])
        ids = np.full((2, 8), PAD)
        mask = np.zeros((2, 8), int)
        for i, (start, end) in enumerate(
            zip(packed.cu_seqlens, packed.cu_seqlens[1:], strict=False)
        ):
            ids[i, : end - start] = packed.input_ids[start:end]
            mask[i, : end - start] = 1
        again = pack(one.metadata, ids, mask)
        for name, array in again.inputs().items():
            np.testing.assert_array_equal(array, packed.inputs()[name], err_msg=name)


def test_pairs_and_types():
    packed = make().encode(["a b"], ["c"])
    assert packed.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    # transformers would read beyond the table of types, so no answer is right
    with pytest.raises(IntformerError, match="token type 1, the model has 1"):
        make(type_vocab_size=1).encode(["a b"], ["c"])
    settings = {edge.SETTINGS_FILE: b'{"token_type_ids": false}'}
    packed = Edge({**META, "type_vocab_size": 1}, {**files(), **settings}).encode(["a b"], ["c"])
    assert packed.token_type_ids.tolist() == [0] * 6


def test_truncation():
    assert make().encode(["a " * 40]).cu_seqlens.tolist() == [0, 16]
    assert make(truncate_length=8).encode(["a " * 40]).cu_seqlens.tolist() == [0, 8]


@pytest.mark.parametrize(
    ("head", "arguments", "match"),
    [
        ("features", ("text",), "a single text - pass a list"),
        ("features", ([],), "no texts"),
        ("features", (["a"], ["b", "c"]), "1 texts and 2 pairs"),
        ("question-answering", (["a"],), "needs a document"),
        ("question-answering", (["a " * 30], ["b"]), "cannot tokenize.*must leave room"),
        ("sentence-embedding", (["a"], ["b"]), "embed them one by one"),
        ("sparse-embedding", (["a"], ["b"]), "embed them one by one"),
        ("masked-lm", (["the [MASK]", "the cat"],), r"no mask token in text 1 - write"),
        ("masked-lm", (["the cat"],), r"no mask token in text 0 - write \[MASK\]"),
    ],
)
def test_encode_refuses(head, arguments, match):
    with pytest.raises(IntformerError, match=match):
        make(head).encode(*arguments)


def test_no_tokenizer():
    with pytest.raises(LibraryError, match="carries no tokenizer"):
        Edge(META, {})
    with pytest.raises(LibraryError, match=r"cannot read tokenizer.json"):
        Edge(META, {"tokenizer.json": b"{}"})


# ---- answers ----


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"normalize": True}, [[0.6, 0.8], [0, 0], [-1, 0]]),
        ({}, [[0.6, 0.8], [0, 0], [-1, 0]]),  # libraries older than the key
        ({"normalize": False}, [[150, 200], [0, 0], [-3.5, 0]]),
        ({"normalize": True, "truncate_dim": 1}, [[0.6], [0], [-1]]),
    ],
)
def test_embeddings(meta, wanted):
    one = make("sentence-embedding", **meta)
    packed = one.encode(["a", "b", "c"])
    out = np.array([[300, 400], [0, 0], [-7, 0]], np.int32)
    got = np.stack(one.decode(packed, out))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert got.dtype == np.float32


def test_features_are_split_by_sequence():
    one = make(output_scale=[1.0, 0.25])
    packed = one.encode(["a", "b c"])
    out = np.arange(14, dtype=np.int32).reshape(7, 2)
    first, second = one.decode(packed, out)
    assert first.tolist() == [[0, 0.25], [2, 0.75], [4, 1.25]]
    assert len(second) == 4


def test_classes():
    one = make("sequence-classification", labels=["no", "yes", "maybe"])
    packed = one.encode(["a", "b"])
    got = one.decode(packed, np.array([[0, 4, 2], [9, 0, 0]], np.int32))
    want = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    assert [g["label"] for g in got] == ["yes", "no"]
    assert got[0]["scores"] == pytest.approx(dict(zip(one.metadata["labels"], want, strict=True)))
    assert got[0]["score"] == pytest.approx(want[1])


def test_regression_and_many_labels():
    one = make("sequence-classification", labels=["LABEL_0"], problem_type="regression")
    (got,) = one.decode(one.encode(["a"]), np.array([[5]], np.int32))
    assert got == {"label": "LABEL_0", "score": 2.5, "scores": {"LABEL_0": 2.5}}
    one = make("sequence-classification", labels=["LABEL_0"])  # as transformers' pipeline
    (got,) = one.decode(one.encode(["a"]), np.array([[5]], np.int32))
    assert got["score"] == pytest.approx(1 / (1 + np.exp(-2.5)))
    many = make(
        "sequence-classification", labels=["x", "y"], problem_type="multi_label_classification"
    )
    (got,) = many.decode(many.encode(["a"]), np.array([[0, 200]], np.int32))
    assert got["scores"] == pytest.approx({"x": 0.5, "y": 1.0})
    assert got["label"] == "y"


def test_token_labels_leave_out_special_tokens():
    one = make("token-classification", labels=["O", "ANIMAL"])
    packed = one.encode(["The cats", "a"])
    rows = np.zeros((8, 2), np.int32)
    rows[[2, 3], 1] = 8  # cat, ##s
    first, second = one.decode(packed, rows)
    assert [(t["token"], t["label"], t["start"], t["end"]) for t in first] == [
        ("the", "O", 0, 3),
        ("cat", "ANIMAL", 4, 7),
        ("##s", "ANIMAL", 7, 8),
    ]
    assert first[1]["score"] == pytest.approx(1 / (1 + np.exp(-4)))
    assert [t["token"] for t in second] == ["a"]


def answer(document: str, start: str, end: str, question="the", **options) -> dict:
    """Answer with logits that are high at single words of a document."""
    one = make("question-answering", max_length=10)
    stride = {"doc_stride": options.pop("doc_stride", 2)}
    packed = one.encode([question], [document], **stride)
    rows = np.zeros((packed.input_ids.size, 2), np.int32)
    rows[packed.input_ids == VOCAB[start], 0] = 40
    rows[packed.input_ids == VOCAB[end], 1] = 40
    (got,) = one.decode(packed, rows, **options)
    assert document[got["start"] : got["end"]] == got["answer"]
    return got


def test_answer_in_a_short_document():
    got = answer("a cat sat", "cat", "sat")
    assert got["answer"] == "cat sat"
    assert got["score"] > 0.99


def test_answer_in_a_long_document():
    """Six windows of six tokens; the answer lies in the overlap of two, and counts once."""
    document = "a b c d e f g h i j k l m n o p q r s t u v"
    got = answer(document, "i", "j")
    assert got["answer"] == "i j"
    assert got["score"] > 0.99
    assert answer(document, "v", "v")["answer"] == "v"


def test_answers_are_within_the_document():
    """The question holds the best words too, and an end before the start is no answer."""
    got = answer("a b", "the", "the", question="the")
    assert got["answer"] in ("a", "b", "a b")
    got = answer("a cat sat b", "sat", "cat")
    assert got["answer"] in ("cat", "sat", "a cat", "sat b")
    assert answer("a b c d", "a", "d", max_answer=2)["answer"] != "a b c d"


@pytest.mark.parametrize("head", ["question-answering", "token-classification"])
def test_answers_that_need_the_text(head):
    one = make(head, labels=["x", "y"])
    with pytest.raises(IntformerError, match="needs the text"):
        one.decode(pack(META, [[5, 6]]), np.zeros((2, 2), np.int32))


def test_answers_to_several_questions():
    one = make("question-answering", max_length=10)
    documents = ["a b c d e f g h i j k l", "x y z"]
    packed = one.encode(["the", "cat"], documents, doc_stride=1)
    assert len(packed.cu_seqlens) - 1 == len(packed.text_of) > 2
    rows = np.zeros((packed.input_ids.size, 2), np.int32)
    for word in ("k", "y"):
        rows[packed.input_ids == VOCAB[word]] = 60
    assert [a["answer"] for a in one.decode(packed, rows)] == ["k", "y"]


@pytest.mark.parametrize("length", range(1, 16))
def test_a_question_of_any_length(length):
    """Windows move on and hold the whole document, or one line says that there is no room."""
    one = make("question-answering", max_length=16)  # three of which are special tokens
    document = list("abcdefghijklmnopqrstuvwxyz")
    questions, documents = ["the " * length, "cat"], [" ".join(document)] * 2
    if length > 12:
        with pytest.raises(IntformerError, match="must leave room"):
            one.encode(questions, documents, doc_stride=5)
        return
    packed = one.encode(questions, documents, doc_stride=5)
    windows = [e for e, text in zip(packed.encodings, packed.text_of, strict=True) if text == 0]
    seen = [[t for t, s in zip(e.tokens, e.sequence_ids, strict=True) if s == 1] for e in windows]
    assert sorted({token for tokens in seen for token in tokens}) == document
    assert len({tokens[0] for tokens in seen}) == len(seen)


def test_fillings():
    one = make("masked-lm")
    packed = one.encode(["the [MASK] sat", "[MASK] [MASK]"])
    assert packed.input_ids[packed.positions].tolist() == [MASK] * 3
    rows = np.zeros((3, len(VOCAB)), np.int32)
    rows[0, VOCAB["cat"]] = 20
    rows[1, [VOCAB["b"], VOCAB["c"]]] = 10, 8
    first, second = one.decode(packed, rows, top_k=2)
    assert [len(first), len(second)] == [1, 2]
    assert first[0][0]["token"] == "cat"
    assert first[0][0]["id"] == VOCAB["cat"]
    assert first[0][0]["score"] > 0.99
    assert [guess["token"] for guess in second[0]] == ["b", "c"]
    assert second[1][0]["score"] == pytest.approx(1 / len(VOCAB))


def test_options_of_another_head(monkeypatch):
    """Refused before anything is run, by name."""
    for head, wrong in (
        ("masked-lm", "max_answer"),
        ("sentence-embedding", "top_k"),
        ("sequence-classification", "doc_stride"),
        ("question-answering", "top_k"),
    ):
        monkeypatch.setattr(Edge, "of", lambda library, head=head: make(head))
        with pytest.raises(IntformerError, match=f"head {head} takes no {wrong}"):
            edge.predict(None, ["a"], **{wrong: 3})
    one = make("sequence-classification")
    with pytest.raises(IntformerError, match="takes no top_k - leave it out; it has no options"):
        one.decode(one.encode(["a"]), np.zeros((1, 2), np.int32), top_k=3)


def test_weights_of_words():
    one = make("sparse-embedding")
    packed = one.encode(["the cat", "a"])
    rows = np.full((2, len(VOCAB)), -8, np.int32)
    rows[0, [VOCAB["cat"], VOCAB["sat"], CLS]] = 6, 14, 0  # 0.5 each
    first, second = one.decode(packed, rows)
    assert second == []
    assert [word["token"] for word in first] == ["sat", "cat"]
    assert [word["id"] for word in first] == [VOCAB["sat"], VOCAB["cat"]]
    assert [word["score"] for word in first] == pytest.approx(np.log([8, 4]))
    assert one.decode(packed, rows, top_k=1) == [first[:1], []]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [(b"{}", MASK), (b'{"mask_token": null}', MASK), (b'{"mask_token": "the"}', VOCAB["the"])],
)
def test_mask_token(settings, wanted):
    assert Edge(META, {**files(), edge.SETTINGS_FILE: settings}).mask_id == wanted


class Model:
    """Stands for a library: counts its runs and how often its files are read."""

    runs_alone = False

    def __init__(self):
        self.metadata = {**META, "head": "sequence-classification", "labels": ["x", "y"]}
        self.calls = self.reads = 0

    def files(self):
        self.reads += 1
        return files()

    def run(self, input_ids, cu_seqlens, **_):
        self.calls += 1
        sums = np.add.reduceat(input_ids, cu_seqlens[:-1])
        return np.stack([sums, sums // 2], 1).astype(np.int32)


def test_predict_does_not_depend_on_the_batch():
    texts = ["the cat", "a", "sat", "b c d e"]
    model = Model()
    results = [list(edge.predict(model, texts, batch_tokens=most)) for most in (1, 7, 10, 64)]
    assert results[0] == results[1] == results[2] == results[3]
    assert model.calls == 4 + 3 + 2 + 1  # 4, 3, 3 and 6 tokens


# ---- texts to verify a masked LM with ----


def test_masking_comes_after_cutting():
    edge = make("masked-lm", truncate_length=6)
    packed = edge.encode_masked(["the cat", "the cat sat , the cat", ""])
    assert np.diff(packed.cu_seqlens).tolist() == [4, 6, 2]
    assert packed.positions.tolist() == [2, 8, 10]
    np.testing.assert_array_equal(packed.input_ids[packed.positions], MASK)
    assert packed.input_ids.tolist().count(MASK) == 3
    assert packed.input_ids[4:10].tolist() == [
        *(CLS, VOCAB["the"], VOCAB["cat"], VOCAB["sat"], MASK, SEP)
    ]


def test_masking_needs_a_mask_token():
    edge = make("masked-lm")
    edge.mask_id = None
    with pytest.raises(IntformerError, match="no mask token") as error:
        edge.encode_masked(["the cat"])
    assert "\n" not in str(error.value)


# ---- what predict takes ----


@pytest.mark.parametrize(
    "kind", [iter, tuple, np.array, lambda x: np.array(x, object), dict.fromkeys]
)
def test_predict_takes_any_iterable(kind):
    texts, pairs = ["the cat", "a", "sat"], ["b", "c", "d e"]
    wanted = list(edge.predict(Model(), texts, pairs, batch_tokens=9))
    assert list(edge.predict(Model(), kind(texts), kind(pairs), batch_tokens=9)) == wanted
    assert len(wanted) == 3
    assert list(edge.predict(Model(), kind(texts[:0]))) == []


class Threaded(Model):
    """One whose runs take a thread each, the longest text the least time."""

    runs_alone, threads = True, 3

    def __init__(self):
        super().__init__()
        self.alone = set()

    def run_alone(self):
        self.alone.add(threading.get_ident())

    def run(self, input_ids, cu_seqlens, **rest):
        assert threading.get_ident() in self.alone
        time.sleep(0.01 / input_ids.size)
        return super().run(input_ids, cu_seqlens, **rest)


def test_predict_runs_a_batch_on_each_thread():
    texts = [" ".join("cat" for _ in range(1 + i * 7 % 11)) for i in range(300)]
    model = Threaded()
    found = list(edge.predict(model, texts, batch_tokens=20))
    assert found == list(edge.predict(Model(), texts, batch_tokens=20))
    assert 1 < len(model.alone) <= 3


def test_predict_reads_a_few_runs_ahead():
    """An endless generator is answered as it comes."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "the cat"

    answers = edge.predict(Model(), endless(), batch_tokens=8)
    assert [next(answers)["label"] for _ in range(500)] == ["x"] * 500
    assert len(taken) <= 500 + 3 * 16
    answers.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("intformer-predict")]


@pytest.mark.parametrize(
    ("texts", "pairs", "match"),
    [
        ("text", None, "a single text - pass a list"),
        (b"text", None, "a single text - pass a list"),
        (["a"], "b", "a single text - pass a list"),
        (None, None, "texts is NoneType, not a list of texts"),
        (7, None, "texts is int, not a list of texts"),
        (["a", "b", None], None, "text 2 is NoneType, not a string"),
        (["a", "b", 1.5], None, "text 2 is float, not a string"),
        (["a", "b", b"c"], None, "text 2 is bytes, not a string"),
        (["a", "b", ["c"]], None, "text 2 is list, not a string"),
        (["a", "b", "c\ud800"], None, r"text 2 has a lone surrogate, U\+D800, at character 1"),
        (["a", "b", "c"], ["d", "e", None], "pair 2 is NoneType, not a string"),
        (["a", "b", "c"], ["d", "e"], "2 pairs, but more texts"),
        (["a", "b"], ["c", "d", "e"], "2 texts, but more pairs"),
        (["a"], ("c", "d", "e"), "1 texts, but more pairs"),
        ([], ["c"], "0 texts, but more pairs"),
    ],
)
@pytest.mark.parametrize("most", [1, 2, 32])
def test_predict_refuses_what_is_no_text(texts, pairs, match, most):
    with pytest.raises(IntformerError, match=match) as error:
        list(edge.predict(Model(), texts, pairs, batch_tokens=most))
    assert "\n" not in str(error.value)


def test_predict_refuses_an_empty_batch():
    with pytest.raises(IntformerError, match="batch_tokens = 0"):
        edge.predict(Model(), ["a"], batch_tokens=0)


def test_a_bad_text_comes_after_the_answers_before_it():
    """Also where it is read while they are computed."""
    answers = edge.predict(Model(), ["the cat"] * 100 + [None], batch_tokens=8)
    got = []
    with pytest.raises(IntformerError, match="text 100 is NoneType"):
        for answer in answers:
            got.append(answer)
    assert 16 <= len(got) <= 100
    assert len({str(answer) for answer in got}) == 1


def test_a_failed_run_ends_the_stream():
    class Broken(Model):
        def run(self, input_ids, cu_seqlens, **rest):
            if self.calls > 2:
                raise LibraryError("no memory")
            return super().run(input_ids, cu_seqlens, **rest)

    with pytest.raises(LibraryError, match="no memory"):
        list(edge.predict(Broken(), ["the cat"] * 100, batch_tokens=8))


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), most=st.integers(1, 30))
def test_runs_are_the_sequences_in_order(lengths, most):
    """Whatever their lengths: each within the budget or one sequence, and together all of them."""
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    ids = np.arange(offsets[-1], dtype=np.int32)
    marked = np.flatnonzero(ids % 4 == 1).astype(np.int32)
    for positions in (None, marked):
        packed = Packed(ids, offsets, ids + 1, ids + 2, positions)
        runs = list(packed.runs(most))
        for run in runs:
            assert run["input_ids"].size == run["cu_seqlens"][-1]
            assert run["input_ids"].size <= most or run["cu_seqlens"].size == 2
            np.testing.assert_array_equal(run["token_type_ids"], run["input_ids"] + 1)
            np.testing.assert_array_equal(run["position_ids"], run["input_ids"] + 2)
        if positions is None:
            np.testing.assert_array_equal(np.concatenate([r["input_ids"] for r in runs]), ids)
            found = np.concatenate([np.diff(run["cu_seqlens"]) for run in runs])
            np.testing.assert_array_equal(found, lengths)
        else:
            found = [run["input_ids"][run["positions"]] for run in runs]
            np.testing.assert_array_equal(np.concatenate([[], *found]), marked)


def test_one_tokenizer_per_library_and_none_for_a_dead_one():
    model, other = Model(), Model()
    with ThreadPoolExecutor(8) as pool:
        made = set(map(id, pool.map(Edge.of, [model] * 64)))
    assert len(made) == 1
    assert model.reads == 1
    assert Edge.of(other) is not Edge.of(model)
    alive = weakref.ref(Edge.of(model))
    del model
    gc.collect()
    assert alive() is None


def test_threads_share_an_edge_with_different_windows():
    """Tokenizers keep the width of windows in themselves; calls must not change each other's."""
    one = make("question-answering", max_length=12)
    document = "a b c d e f g h i j k l m n o p q r s t"
    wanted = {
        stride: make("question-answering", max_length=12)
        .encode(["the"], [document], doc_stride=stride)
        .input_ids.tolist()
        for stride in (1, 2, 3)
    }
    assert len({len(ids) for ids in wanted.values()}) == 3
    strides = [1, 2, 3] * 60
    with ThreadPoolExecutor(6) as pool:
        got = pool.map(lambda s: one.encode(["the"], [document], doc_stride=s), strides)
        for stride, packed in zip(strides, got, strict=True):
            assert packed.input_ids.tolist() == wanted[stride]
