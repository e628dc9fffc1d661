"""What directories say in rarer ways: read as the libraries do that wrote them, or refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intformer import integrations
from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint
from intformer.ir.float_run import run
from intformer.runtime.library import Library
from intformer_testing import onnx_files, random_hf, small_tokenizer
from intformer_testing.sentence_dirs import TOKENS, change, plain, write

TEXTS = small_tokenizer.SENTENCES


class Floats(Library):
    """A library that computes the float graph of a directory, in steps of 1e-6."""

    def __init__(self, folder, head=None):
        checkpoint = Checkpoint(folder)
        self.graph, about = read_encoder(checkpoint, head)
        self.about, self.given = {**about, "output_scale": 1e-6}, checkpoint.files()
        self.path = str(folder)

    metadata = property(lambda self: self.about)
    runs_alone = False

    def __del__(self):
        pass

    def files(self):
        return self.given

    def run(self, **inputs):
        return np.rint(np.asarray(run(self.graph, inputs)) * 1e6).astype(np.int64)


# ---- tokenizers ----


@pytest.mark.parametrize(
    ("said", "length"), [({"max_len": 8}, 8), ({"max_len": 8, "model_max_length": 9}, 9)]
)
def test_the_older_name_of_a_length(tmp_path, said, length):
    folder = plain(tmp_path / "m", "sequence-classification")
    change(folder / "tokenizer_config.json", **said)
    assert transformers.AutoTokenizer.from_pretrained(folder).model_max_length == length
    assert read_encoder(Checkpoint(folder), None)[1]["truncate_length"] == length


def test_a_given_tokenizer_without_a_post_processor(tmp_path):
    folder = plain(tmp_path / "m")
    file = json.loads((folder / "tokenizer.json").read_text())
    del file["post_processor"]
    write(tmp_path / "tokenizer.json", file)
    files = Checkpoint(folder, tokenizer=tmp_path / "tokenizer.json").files()
    assert json.loads(files["tokenizer.json"]).get("post_processor") is None


@pytest.mark.parametrize("place", ["file", "key"])
def test_a_chat_template_around_texts(tmp_path, place):
    """SentenceTransformer writes each text into it, unless modules.json says otherwise."""
    folder, template = (
        plain(tmp_path / "m"),
        "{% for m in messages %}the {{ m['content'] }}{% endfor %}",
    )
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        change(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(CheckpointError, match=r"chat_template.* - .*tokenized as they are"):
        read_encoder(Checkpoint(folder), "sentence-embedding")
    assert read_encoder(Checkpoint(folder), "features")


# ---- weights and sizes ----


def test_distilbert_has_an_epsilon_of_its_own(tmp_path):
    tmp_path.joinpath("m").mkdir()
    folder = tmp_path / "m"
    random_hf.save(folder, "distilbert", "features")
    change(folder / "config.json", layer_norm_eps=0.1)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = random_hf.sequences()
    wanted = np.concatenate([np.asarray(rows) for rows in random_hf.padded_outputs(model, ids)])
    graph, about = read_encoder(Checkpoint(folder), None)
    np.testing.assert_allclose(run(graph, random_hf.packed(ids, about)), wanted, atol=1e-4)


def test_a_table_of_types_that_is_missing(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    random_hf.save(folder, "bert", "features")
    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "token_type" not in k}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="'type_vocab_size' = 2, the weights have no"):
        read_encoder(Checkpoint(folder), None)


# ---- score functions ----


PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
IDENTITY = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
CLASSIFIERS = {
    "softmax named": (
        3,
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}},
    ),
    "identity named": (1, IDENTITY),
    "regression": (1, {"problem_type": "regression"}),
    "several labels": (3, {"problem_type": "multi_label_classification"}),
    "three labels": (3, {}),
    "one label": (1, {}),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_score_functions_are_those_of_who_is_asked(tmp_path, name):
    """CrossEncoder and transformers' pipeline apply different functions to one directory."""
    from sentence_transformers import CrossEncoder

    labels, said = CLASSIFIERS[name]
    folder = plain(tmp_path / "m", "sequence-classification", labels=labels)
    change(folder / "config.json", **said)
    library = Floats(folder)
    theirs = CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(
        integrations.cross_encoder(library).predict(PAIRS), theirs, atol=1e-4
    )
    text = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    wanted = transformers.pipeline("text-classification", model=str(folder), device="cpu")(text)
    found = integrations.pipeline(library)(text)
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)


# ---- ONNX files with embeddings of their own ----


class Embedder(torch.nn.Module):
    """BERT with what comes behind it: CLS, Dense, tanh and norm (LaBSE), or mean and Dense."""

    def __init__(self, how):
        super().__init__()
        self.model = transformers.BertModel(
            random_hf.config("bert"), add_pooling_layer=how == "pooler"
        )
        random_hf.randomise(self.model)
        self.config, self.how = self.model.config, how
        self.dense = torch.nn.Linear(self.config.hidden_size, 24)

    def set_attn_implementation(self, name):
        self.model.set_attn_implementation(name)

    def forward(self, input_ids, attention_mask, token_type_ids, return_dict=True):
        found = self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        tokens = found[0]
        if self.how == "pooler":
            return {"last_hidden_state": tokens, "pooler_output": found[1]}
        if self.how == "labse":
            vector = torch.nn.functional.normalize(torch.tanh(self.dense(tokens[:, 0])), p=2, dim=1)
        else:
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            vector = self.dense((tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9))
            if self.how == "distiluse":
                vector = torch.tanh(vector)
        both = {"token_embeddings": tokens, "sentence_embedding": vector}
        return {"sentence_embedding": vector} if self.how == "alone" else both


def exported(folder, how):
    folder.mkdir()
    torch.manual_seed(0)
    model = Embedder(how).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    onnx_files.export(model, folder / "model.onnx", names=names)
    about = {**model.config.to_dict(), "architectures": ["BertModel"]}
    for key in ("id2label", "label2id"):
        about.pop(key, None)
    write(folder / "config.json", about)
    small_tokenizer.save(folder)
    write(folder / "tokenizer_config.json", TOKENS)
    return OnnxCheckpoint(folder)


@pytest.mark.parametrize("how", ["labse", "distiluse", "dense"])
def test_embeddings_of_an_onnx_file_that_are_not_understood(tmp_path, how):
    with pytest.raises(
        CheckpointError, match="has a vector for each text, made in a way that is not"
    ):
        read_encoder(exported(tmp_path / "m", how), "sentence-embedding")


def test_a_vector_for_each_text_is_no_classifier(tmp_path):
    """config.json names a class without a head."""
    checkpoint = exported(tmp_path / "m", "alone")
    with pytest.raises(
        CheckpointError, match=r"give no supported head - .* - it has: sequence-clas"
    ):
        read_encoder(checkpoint, None)
    assert (
        read_encoder(checkpoint, "sequence-classification")[1]["head"] == "sequence-classification"
    )


def test_a_pooler_is_no_embedding(tmp_path):
    about = read_encoder(exported(tmp_path / "m", "pooler"), "sentence-embedding")[1]
    assert (about["pooling"], about["normalize"]) == ("mean", False)
