"""Ids and types of a library equal transformers' on whatever a model directory says."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.runtime.edge import SETTINGS_FILE, Edge

transformers = pytest.importorskip("transformers")

CORPUS = [
    "The quick brown fox, jumps over the lazy dog.",
    "Élan vital: naïve café, Straße ﬁne 123 456.",
    "中文字符 and 日本語 beside English words",
    "How do I reset my password? The soup is cold!",
    "emoji 😀 and tabs\tand  double  spaces",
] * 4
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BPE = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LENGTH = 12
TEXTS = [
    "",
    " ",
    "The quick brown fox",
    "Élan NAÏVE café Straße",
    "中文 and 日本語",
    " leading  double spaces ",
    "[MASK] in [SEP] a <mask> text </s> with <s> [CLS] tokens [PAD] <pad> NEW new",
    "the lazy dog " * 12,
    "a\tb\nc\u200d\u0000😀",
]


def write(folder: Path, name: str, value) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def config(folder: Path, model_type: str, rows: int = 4000) -> None:
    write(folder, "config.json", {"model_type": model_type, "vocab_size": rows})


def wordpiece(folder: Path, *, json_file: bool = True, model_type="bert", **about) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=WORDPIECE, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *map(str.lower, CORPUS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    if json_file:
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        vocab = tokenizer.get_vocab()
        write(folder, "vocab.txt", "\n".join(sorted(vocab, key=vocab.get)) + "\n")
    config(folder, model_type)
    if about:
        write(folder, "tokenizer_config.json", about)


def byte_bpe(folder: Path, *, json_file: bool = True, **about) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=BPE, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    if json_file:
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.model.save(str(folder))
    config(folder, "roberta")
    if about:
        write(folder, "tokenizer_config.json", about)


def sentencepiece_model(folder: Path, name: str, model_type: str, **options) -> None:
    spm = pytest.importorskip("sentencepiece")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "trained"),
        vocab_size=150,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "trained.model").rename(folder / name)
    (folder / "trained.vocab").unlink()
    config(folder, model_type)


def albert(folder: Path, **about) -> None:
    sentencepiece_model(
        folder,
        "spiece.model",
        "albert",
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]"],
        user_defined_symbols=["[MASK]"],
    )
    if about:
        write(folder, "tokenizer_config.json", about)


def xlm_roberta(folder: Path, **about) -> None:
    sentencepiece_model(folder, "sentencepiece.bpe.model", "xlm-roberta")
    if about:
        write(folder, "tokenizer_config.json", about)


def added(folder: Path) -> None:
    """What an old save_pretrained wrote after add_tokens."""
    wordpiece(folder)
    write(folder, "added_tokens.json", {"NEW": 320, "password": 321})


def decoder(folder: Path) -> None:
    token = {"lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    entry = {**token, "content": "NEW", "special": False}
    wordpiece(folder)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {str(size): entry}})


def fixed(folder: Path) -> None:
    """A tokenizer.json published with padding and truncation to a fixed length."""
    wordpiece(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))


def left(folder: Path) -> None:
    """The side of truncation is in tokenizer.json alone."""
    wordpiece(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))


def special_map(folder: Path) -> None:
    wordpiece(folder)
    write(folder, "special_tokens_map.json", {"mask_token": "NEW", "sep_token": "dog"})


KINDS = {
    "wordpiece": wordpiece,
    "vocab.txt": lambda f: wordpiece(f, json_file=False),
    "vocab.txt, cased": lambda f: wordpiece(f, json_file=False, do_lower_case=False),
    "lower": lambda f: wordpiece(f, do_lower_case=True),
    "cased": lambda f: wordpiece(f, do_lower_case=False),
    "accents": lambda f: wordpiece(f, do_lower_case=True, strip_accents=False),
    "chinese": lambda f: wordpiece(f, tokenize_chinese_chars=False),
    "truncated left": lambda f: wordpiece(f, truncation_side="left"),
    "left in tokenizer.json": left,
    "fixed length": fixed,
    "no types": lambda f: wordpiece(f, model_input_names=["input_ids", "attention_mask"]),
    "types": lambda f: wordpiece(
        f, model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    ),
    "split special": lambda f: wordpiece(f, split_special_tokens=True),
    "fast class": lambda f: wordpiece(f, tokenizer_class="PreTrainedTokenizerFast"),
    "fast class, left": lambda f: wordpiece(
        f, tokenizer_class="PreTrainedTokenizerFast", truncation_side="left", mask_token="NEW"
    ),
    "distilbert": lambda f: wordpiece(f, model_type="distilbert"),
    "electra": lambda f: wordpiece(f, model_type="electra", do_lower_case=True),
    "added_tokens.json": added,
    "added_tokens_decoder": decoder,
    "special_tokens_map.json": special_map,
    "changed special token": lambda f: wordpiece(f, mask_token="NEW", cls_token="the"),
    "extra special tokens": lambda f: wordpiece(f, additional_special_tokens=["NEW", "fox"]),
    "byte BPE": byte_bpe,
    "byte BPE, files": lambda f: byte_bpe(f, json_file=False),
    "byte BPE, prefix space": lambda f: byte_bpe(f, add_prefix_space=True),
    "byte BPE, fast class": lambda f: byte_bpe(f, tokenizer_class="PreTrainedTokenizerFast"),
    "byte BPE, types": lambda f: byte_bpe(f, model_input_names=["input_ids", "token_type_ids"]),
    "albert": albert,
    "albert, cased": lambda f: albert(f, do_lower_case=False, keep_accents=True),
    "xlm-roberta": xlm_roberta,
    "xlm-roberta, left": lambda f: xlm_roberta(f, truncation_side="left"),
}
META = {"head": "features", "max_length": LENGTH}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return kind -> (transformers' tokenizer, ours), made once."""
    made = {}

    def get(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp("tokenizer")
            KINDS[kind](folder)
            theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            made[kind] = theirs, Edge(META, Checkpoint(folder).files())
        return made[kind]

    return get


def assert_equal(theirs, ours: Edge, rows: list[tuple[str, ...]]) -> None:
    columns = map(list, zip(*rows, strict=True))
    want = theirs(*columns, truncation=True, max_length=LENGTH)
    for row, ids, (got, types) in zip(rows, want["input_ids"], ours.sequences(rows), strict=True):
        assert got.tolist() == ids, row
        if "token_type_ids" not in want:
            assert not types.any(), row
    if "token_type_ids" in want and ours.sends_types:
        assert [t.tolist() for _, t in ours.sequences(rows)] == want["token_type_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_types_are_transformers_own(both, kind):
    theirs, ours = both(kind)
    assert_equal(theirs, ours, [(text,) for text in TEXTS])
    assert_equal(theirs, ours, [(a, b) for a in TEXTS for b in TEXTS])
    sends = "token_type_ids" in theirs.model_input_names
    assert ours.sends_types == (sends and kind != "distilbert")  # the model takes no types
    assert theirs.mask_token_id is None or ours.mask_id == theirs.mask_token_id


@pytest.mark.parametrize(
    "kind", ["lower", "added_tokens_decoder", "byte BPE", "albert", "truncated left"]
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_text(both, kind, data):
    theirs, ours = both(kind)
    word = st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["NEW", "[MASK]", "</s>", "fox", "Straße", "中文"]),
    )
    text = st.lists(word, max_size=12).map(" ".join)
    rows = data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
    assert_equal(theirs, ours, rows)
    assert_equal(theirs, ours, [(a,) for a, _ in rows])


# ---- refused ----


def test_the_tests_directories_differ_from_their_tokenizer_json(both):
    """The settings matter: with tokenizer.json alone these would be other ids."""
    for kind, text in (("lower", "The FOX"), ("added_tokens_decoder", "a NEW b")):
        theirs, _ = both(kind)
        plain, _ = both("cased")
        assert theirs(text)["input_ids"] != plain(text)["input_ids"]


def test_ids_beyond_the_embeddings(tmp_path):
    wordpiece(tmp_path, tokenizer_class="PreTrainedTokenizerFast", mask_token="NEW")
    size = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    config(tmp_path, "bert", size)
    with pytest.raises(CheckpointError, match=rf"token 'NEW' = id {size}, .*'vocab_size' = {size}"):
        Checkpoint(tmp_path).files()
    config(tmp_path, "bert", size + 1)
    assert "tokenizer.json" in Checkpoint(tmp_path).files()


def test_code_of_the_directory_is_not_run(tmp_path):
    wordpiece(tmp_path, auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]})
    write(tmp_path, "evil.py", "raise SystemExit('run')")
    with pytest.raises(CheckpointError, match=r"'auto_map'.* never run"):
        Checkpoint(tmp_path).files()


@pytest.mark.parametrize("name", ["CanineTokenizer", "BertJapaneseTokenizer", "ByT5Tokenizer"])
def test_a_tokenizer_in_python_is_refused_by_name(tmp_path, name):
    folder, other = tmp_path / "model", tmp_path / "other"
    for each in (folder, other):
        each.mkdir()
    wordpiece(folder, json_file=False, tokenizer_class=name, truncation_side="left")
    with pytest.raises(CheckpointError, match=f"{name} runs in Python") as error:
        Checkpoint(folder).files()
    assert "\n" not in str(error.value)
    wordpiece(other)  # what the message advises
    files = Checkpoint(folder, tokenizer=other / "tokenizer.json").files()
    assert files["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    assert json.loads(files[SETTINGS_FILE])["truncation_side"] == "left"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("value", [[], 7, "text"])
def test_settings_that_are_no_object(tmp_path, name, value):
    wordpiece(tmp_path)
    write(tmp_path, name, json.dumps(value))
    with pytest.raises(CheckpointError, match="is not an object"):
        Checkpoint(tmp_path).files()


@pytest.mark.parametrize("nested", [True, False])
def test_a_template_of_tokens_that_it_does_not_define(tmp_path, capfd, nested):
    wordpiece(tmp_path)
    file = tmp_path / "tokenizer.json"
    pipeline = json.loads(file.read_text())
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "X", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces}
    template["special_tokens"] = {}
    several = {"type": "Sequence", "processors": [template]}
    pipeline["post_processor"] = several if nested else template
    file.write_text(json.dumps(pipeline))
    write(tmp_path, "tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="uses 'X', which it does not define"):
        Checkpoint(tmp_path).files()
    assert "panicked" not in capfd.readouterr().err


def test_files_outside_are_not_read(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
        wordpiece(each, json_file=False)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(outside / "vocab.txt")
    with pytest.raises(CheckpointError, match="outside the model directory"):
        Checkpoint(folder).files()
    (folder / "vocab.txt").unlink()
    os.mkfifo(folder / "vocab.txt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint(folder).files()


def test_a_path_in_the_settings_is_not_followed(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
    wordpiece(outside, tokenizer_class="PreTrainedTokenizerFast")
    file = str(outside / "tokenizer.json")
    wordpiece(folder, json_file=False, tokenizer_file=file)
    plain = tmp_path / "plain"
    plain.mkdir()
    wordpiece(plain, json_file=False)
    (plain / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    assert (
        Checkpoint(folder).files()["tokenizer.json"] == Checkpoint(plain).files()["tokenizer.json"]
    )


def test_links_of_a_hub_cache_are_read(tmp_path):
    blobs, folder = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/abc"
    folder.mkdir(parents=True)
    blobs.mkdir()
    wordpiece(folder)
    (folder / "tokenizer.json").rename(blobs / ("1" * 64))
    (folder / "tokenizer.json").symlink_to(f"../../blobs/{'1' * 64}")
    assert "tokenizer.json" in Checkpoint(folder).files()


def test_a_given_file_keeps_the_directorys_settings(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    wordpiece(folder, truncation_side="left", model_input_names=["input_ids"])
    other = tmp_path / "other"
    other.mkdir()
    wordpiece(other)
    files = Checkpoint(folder, tokenizer=other / "tokenizer.json").files()
    assert files["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    about = json.loads(files[SETTINGS_FILE])
    assert (about["truncation_side"], about["token_type_ids"]) == ("left", False)


def test_a_directory_without_tokenizer(tmp_path):
    config(tmp_path, "bert")
    assert set(Checkpoint(tmp_path).files()) == {"config.json"}


@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
def test_the_network_is_not_asked(tmp_path, monkeypatch, name):
    """A large vocabulary of a named model: transformers would ask the hub what model it is."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    words = {word: i for i, word in enumerate([*WORDPIECE, *map(str, range(100_100))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config(tmp_path, name, len(words))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "name_or_path": "owner/model"}
    write(tmp_path, "tokenizer_config.json", about)
    for each in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, each, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "tokenizer.json" in Checkpoint(tmp_path).files()
    assert not asked
