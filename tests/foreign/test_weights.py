"""Weight files in the forms that people have them in."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from intformer_testing.foreign.directories import change, model, save, tokenizer, weights
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import Transformers


def renamed(folder, name, file="pytorch_model.bin", wrap=None):
    """Write the weights again under other keys; name(key) -> key."""
    state = {name(key): value for key, value in weights(folder).items()}
    torch.save({wrap: state} if wrap else state, folder / file)


@equal_to(Transformers)
def test_pytorch_model_bin(folder):
    made = save(folder, "bert", "sequence-classification")
    renamed(folder, str)
    return made


@equal_to(Transformers)
def test_sharded_safetensors(folder):
    model("roberta", "masked-lm").save_pretrained(folder, max_shard_size="20KB")
    tokenizer("roberta").save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2


@equal_to(Transformers)
def test_sharded_bin(folder):
    made = save(folder, "bert", "sequence-classification")
    state = weights(folder)
    first = dict(list(state.items())[:7])
    rest = dict(list(state.items())[7:])
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(rest, folder / "pytorch_model-00002-of-00002.bin")
    where = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    where |= dict.fromkeys(rest, "pytorch_model-00002-of-00002.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return made


@pytest.mark.parametrize("prefix", ["", "bert."])
@equal_to(Transformers)
def test_gamma_and_beta_of_tensorflow(folder, prefix):
    made = save(folder, "bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def name(key):
        for new, before in old.items():
            key = key.replace(new, before)
        return prefix + key

    renamed(folder, name)
    return made


@pytest.mark.parametrize("head", ["features", "sequence-classification"])
@equal_to(Transformers)
def test_data_parallel(folder, head):
    made = save(folder, "bert", head)
    renamed(folder, "module.{}".format)
    return made


@pytest.mark.parametrize("prefix", ["", "model."])
@equal_to(Transformers)
def test_lightning(folder, prefix):
    made = save(folder, "distilbert", "token-classification")
    renamed(folder, (prefix + "{}").format, wrap="state_dict")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@equal_to(Transformers)
def test_other_precisions(folder, dtype):
    made = model("bert", "sequence-classification").to(dtype)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return made


@equal_to(Transformers)
def test_torch_dtype_of_older_versions(folder):
    save(folder, "bert")
    change(folder / "config.json", remove=("dtype",), torch_dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "electra"])
@equal_to(Transformers)
def test_untied_decoder(folder, family):
    save(folder, family, "masked-lm", tie_word_embeddings=False)


@equal_to(Transformers)
def test_tied_decoder_whose_keys_are_there(folder):
    made = save(folder, "bert", "masked-lm")
    state = weights(folder)
    state["cls.predictions.decoder.weight"] = state[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    save_file(state, folder / "model.safetensors")
    return made


@equal_to(Transformers)
def test_pooler_of_a_bare_model_is_left_out(folder):
    model("bert").save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@equal_to(lambda folder, made: Transformers(folder, made, head="masked-lm"))
def test_bert_for_pretraining(folder):
    config = model("bert", "masked-lm").config
    config.architectures = None
    made = transformers.BertForPreTraining(config).eval()
    from intformer_testing import random_hf

    random_hf.randomise(made)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return transformers.BertForMaskedLM.from_pretrained(folder)


@equal_to(lambda folder, made: Transformers(folder, head="features"), head="features")
def test_features_below_a_head(folder):
    save(folder, "roberta", "sequence-classification")


@refused("float8_e4m3fn", "model.safetensors")
def test_float8(folder):
    save(folder, "bert")
    state = weights(folder)
    key = "encoder.layer.0.output.dense.weight"
    save_file({**state, key: state[key].to(torch.float8_e4m3fn)}, folder / "model.safetensors")


@refused("encoder.layer.1.output.dense.weight", "missing")
def test_missing_weight(folder):
    save(folder, "bert")
    state = weights(folder)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors")


@refused("encoder.layer.0.output.dense.bias", "NaN")
def test_not_a_number(folder):
    save(folder, "bert")
    state = weights(folder)
    state["encoder.layer.0.output.dense.bias"][3] = float("nan")
    save_file(state, folder / "model.safetensors")


@refused("classifier.weight", "missing")
def test_head_without_weights(folder):
    save(folder, "bert")
    change(folder / "config.json", architectures=["BertForSequenceClassification"])


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
@refused("onnx")
def test_onnx_alone(folder, place):
    save(folder, "bert")
    weights(folder)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(b"\x08\x08")


@refused("tf_model.h5")
def test_tensorflow_alone(folder):
    save(folder, "bert")
    weights(folder)
    (folder / "tf_model.h5").write_bytes(b"\x89HDF")
