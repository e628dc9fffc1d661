"""Tokenizers as people have them: what other files say over tokenizer.json, and older forms."""

import pytest
import transformers
from tokenizers import Tokenizer

from intformer_testing.foreign.directories import (
    LENGTH,
    change,
    model,
    read,
    save,
    tokenizer,
    word_pieces,
    write,
)
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import SentenceTransformers, Transformers
from intformer_testing.sentence_dirs import old_modules
from intformer_testing.small_tokenizer import SENTENCES

SETTINGS, FILE = "tokenizer_config.json", "tokenizer.json"


def edited(folder, edit):
    """Change tokenizer.json through the tokenizers package."""
    tokenizer = Tokenizer.from_file(str(folder / FILE))
    edit(tokenizer)
    tokenizer.save(str(folder / FILE))


@equal_to(Transformers)
def test_vocab_txt_alone(folder):
    save(folder, "bert")
    for name in (FILE, SETTINGS):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n")


@pytest.mark.parametrize("lower", [True, False])
@equal_to(Transformers)
def test_vocab_txt_and_its_case(folder, lower):
    cased = word_pieces(cased=True)
    save(folder, "bert", words=len(cased))
    (folder / FILE).unlink()
    (folder / "vocab.txt").write_text("\n".join(cased) + "\n")
    write(folder / SETTINGS, {"do_lower_case": lower, "model_max_length": LENGTH})


@pytest.mark.parametrize("lower", [True, False])
@equal_to(Transformers)
def test_settings_contradict_the_case_of_tokenizer_json(folder, lower):
    made = tokenizer("bert", do_lower_case=not lower)
    save(folder, "bert", words=len(made))
    made.save_pretrained(folder)
    change(folder / SETTINGS, do_lower_case=lower)


@equal_to(Transformers)
def test_vocab_and_merges(folder):
    save(folder, "roberta")
    inside = read(folder / FILE)["model"]
    for name in (FILE, SETTINGS):
        (folder / name).unlink()
    write(folder / "vocab.json", inside["vocab"])
    merges = "\n".join(" ".join(pair) for pair in inside["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


@pytest.mark.parametrize("space", [True, False])
@equal_to(Transformers)
def test_space_before_the_first_word(folder, space):
    save(folder, "roberta")
    change(folder / SETTINGS, add_prefix_space=space)


@pytest.mark.parametrize("side", ["left", "right"])
@equal_to(Transformers)
def test_truncation_side(folder, side):
    save(folder, "bert")
    change(folder / SETTINGS, truncation_side=side)


@pytest.mark.parametrize("length", [8, 17, LENGTH, int(1e30)])
@equal_to(Transformers)
def test_model_max_length(folder, length):
    save(folder, "xlm-roberta")
    change(folder / SETTINGS, model_max_length=length)


@equal_to(Transformers)
def test_no_model_max_length(folder):
    save(folder, "bert")
    change(folder / SETTINGS, remove=("model_max_length",))


def fixed(tokenizer, length=128, cut=128):
    """Pad and cut to a fixed length, as published tokenizer.json files do."""
    tokenizer.enable_padding(length=length)
    tokenizer.enable_truncation(cut)


@pytest.mark.parametrize("cut", [8, 128])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@equal_to(Transformers)
def test_fixed_padding_and_truncation(folder, family, cut):
    save(folder, family)
    edited(folder, lambda made: fixed(made, cut=cut))


@equal_to(SentenceTransformers)
def test_fixed_padding_and_another_max_seq_length(folder):
    save(folder, "bert", max_position_embeddings=512)
    change(folder / SETTINGS, model_max_length=512)
    edited(folder, fixed)
    old_modules(folder, "Transformer", "Pooling", "Normalize")
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 64})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@equal_to(Transformers)
def test_types_that_a_tokenizer_does_not_send(folder, family):
    save(folder, family, "sequence-classification", type_vocab_size=2)
    names = ["input_ids", "attention_mask"]
    change(folder / SETTINGS, model_input_names=names)


@equal_to(Transformers)
def test_types_that_a_tokenizer_of_roberta_sends(folder):
    save(folder, "roberta", "sequence-classification", type_vocab_size=2)
    change(folder / SETTINGS, model_input_names=["input_ids", "attention_mask", "token_type_ids"])


@equal_to(Transformers)
def test_added_tokens(folder):
    made = model("bert")
    words = tokenizer("bert")
    words.add_tokens(["intformer", "London bridge"])
    made.resize_token_embeddings(len(words))
    made.save_pretrained(folder)
    words.save_pretrained(folder)


@equal_to(Transformers)
def test_added_tokens_of_older_versions(folder):
    save(folder, "bert", words=len(word_pieces()) + 2)
    (folder / FILE).unlink()
    write(folder / SETTINGS, {"model_max_length": LENGTH, "tokenizer_class": "BertTokenizer"})
    (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n")
    first = len(word_pieces())
    write(folder / "added_tokens.json", {"password": first, "London bridge": first + 1})


@equal_to(Transformers)
def test_special_tokens_map(folder):
    save(folder, "bert", "masked-lm")
    write(folder / "special_tokens_map.json", {"mask_token": "[MASK]", "sep_token": "[SEP]"})


@refused("id 9", "vocab_size")
def test_more_ids_than_the_embeddings(folder):
    save(folder, "bert", words=9)


@refused("'intformer'", "vocab_size")
def test_one_token_too_many(folder):
    save(folder, "bert")
    words = tokenizer("bert")
    words.add_tokens(["intformer"])
    words.save_pretrained(folder)


@equal_to(Transformers)
def test_fewer_ids_than_the_embeddings(folder):
    save(folder, "bert", words=len(word_pieces()) + 37)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_padding_token_within_a_text(folder, family):
    texts = [("one <pad> two three",), ("<pad><pad> two",), ("a </s> b <mask> <s> c",)]
    pairs = [("one <pad> two", "three <pad> four"), ("<pad>", "x")]

    @equal_to(Transformers, groups=[texts, pairs])
    def case(folder):
        save(folder, family)

    case(folder)


def test_special_tokens_within_a_text(folder):
    texts = [("one [SEP] two [PAD] three",), ("[CLS]",), ("[MASK] [mask]",), ("[UNK] 東京",)]

    @equal_to(Transformers, groups=[texts])
    def case(folder):
        save(folder, "bert")

    case(folder)


ODD = [
    *("", " ", "\t\n", "\u200b", "é", "é", "ﬁ", "İ", "ẞ", "東京タワー", "🙂" * 3, "a" * 300),
    *("\u2028", "x\u00a0y", "\ufeffx", "\u0000x", "don't", "1,000.50", "<s>", "[SEP]", "\ud7ff"),
]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "albert", "distilbert"])
def test_odd_texts(folder, family):
    @equal_to(Transformers, groups=[[(text,) for text in ODD], [(t, "pair") for t in ODD]])
    def case(folder):
        save(folder, family)

    case(folder)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "bert"])
def test_lengths_around_the_limit(folder, family):
    """max_position_embeddings of RoBERTa counts two more than the tokens that it takes."""
    word = " ".join(SENTENCES).split()[0]
    lengths = range(LENGTH - 6, LENGTH + 3)
    texts = [(" ".join([word] * length),) for length in lengths]

    @equal_to(Transformers, groups=[texts])
    def case(folder):
        save(folder, family)
        change(folder / SETTINGS, model_max_length=512)

    case(folder)


@refused("auto_map", SETTINGS)
def test_code_of_the_directory(folder):
    save(folder, "bert")
    change(folder / SETTINGS, auto_map={"AutoTokenizer": ["tokenization_new.NewTokenizer", None]})


@refused("BertJapaneseTokenizer")
def test_tokenizer_that_runs_in_python(folder):
    save(folder, "bert")
    (folder / FILE).unlink()
    (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n")
    write(folder / SETTINGS, {"tokenizer_class": "BertJapaneseTokenizer"})


@refused("tokenizer")
def test_no_tokenizer(folder):
    save(folder, "bert")
    (folder / FILE).unlink()
    (folder / SETTINGS).unlink()


@equal_to(Transformers)
def test_class_that_says_nothing(folder):
    save(folder, "bert")
    change(folder / SETTINGS, tokenizer_class="PreTrainedTokenizerFast")


@equal_to(Transformers)
def test_tokenizer_of_another_family(folder):
    made = model("bert", words=len(tokenizer("xlm-roberta")))
    made.save_pretrained(folder)
    tokenizer("xlm-roberta").save_pretrained(folder)


SPECIAL = {  # family -> name of its sentencepiece model, special pieces in it
    "xlm-roberta": ("sentencepiece.bpe.model", {}),
    "albert": (
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
        | {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "user_defined_symbols": ["[MASK]"]},
    ),
    "deberta-v2": (  # v3's has no [MASK]: that is added behind the last piece
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]"}
        | {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    ),
}


@pytest.mark.parametrize("family", SPECIAL)
@equal_to(Transformers)
def test_sentencepiece_alone(folder, family):
    sentencepiece = pytest.importorskip("sentencepiece")
    name, special = SPECIAL[family]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "trained"),
        vocab_size=250,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    (folder / "trained.vocab").unlink()
    (folder / "trained.model").rename(folder / name)
    model(family, words=300).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder)
