"""Keys of config.json: those that change the arithmetic, and those that do not."""

import pytest
import transformers

from intformer_testing.foreign.directories import change, read, save, tokenizer
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import Transformers

CONFIG = "config.json"


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "albert"])
@equal_to(Transformers)
def test_model_type_said_by_architectures_alone(folder, family):
    made = save(folder, family, "sequence-classification")
    change(folder / CONFIG, remove=("model_type",))
    # transformers itself needs the key for its tokenizer; the tokenizer's own class says it here
    return made


@refused(CONFIG, "model_type")
def test_neither_model_type_nor_architectures(folder):
    save(folder, "bert")
    change(folder / CONFIG, remove=("model_type", "architectures"))


@refused(CONFIG, "'model_type' = 'bert'", "'architectures' = 'RobertaModel'")
def test_model_type_and_architectures_contradict(folder):
    save(folder, "bert")
    change(folder / CONFIG, architectures=["RobertaModel"])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_pytorch_tanh", "gelu_fast"])
@equal_to(Transformers)
def test_activation(folder, activation):
    save(folder, "bert", activation=activation)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 0.1])
@equal_to(Transformers)
def test_layer_norm_eps(folder, eps):
    save(folder, "roberta", layer_norm_eps=eps)


HARMLESS = {
    "chunk_size_feed_forward": 4,
    "hidden_dropout_prob": 0.5,
    "gradient_checkpointing": True,
    "use_cache": True,
    "classifier_dropout": 0.3,
    "initializer_range": 7.0,
    "torchscript": True,
    "output_attentions": True,
    "_name_or_path": "/nowhere",
    "transformers_version": "2.1.0",
}


@pytest.mark.slow
@pytest.mark.parametrize("key", HARMLESS)
@equal_to(Transformers)
def test_key_that_changes_nothing(folder, key):
    made = save(folder, "bert", "sequence-classification")
    change(folder / CONFIG, **{key: HARMLESS[key]})
    return made


@equal_to(Transformers)
def test_albert_with_groups(folder):
    save(folder, "albert", layers=4, num_hidden_groups=2, inner_group_num=2)


@equal_to(Transformers)
def test_embeddings_narrower_than_the_layers(folder):
    save(folder, "electra", embedding_size=20)


@equal_to(Transformers)
def test_one_token_type(folder):
    save(folder, "bert", type_vocab_size=1)
    tokenizer("bert", model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)


ARITHMETIC = {
    "is_decoder": True,
    "add_cross_attention": True,
    "position_embedding_type": "relative_key",
    "hidden_act": "mish",
    "auto_map": {"AutoModel": "modeling_new.NewModel"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


@pytest.mark.parametrize("key", ARITHMETIC)
@refused(CONFIG)
def test_key_that_changes_the_arithmetic(folder, key):
    save(folder, "bert")
    change(folder / CONFIG, **{key: ARITHMETIC[key]})


@refused(CONFIG, "feed_forward_type", "missing")
def test_alibi_is_jina_bert_with_all_its_keys(folder):
    save(folder, "bert")
    change(folder / CONFIG, position_embedding_type="alibi")


@pytest.mark.parametrize("key", ["position_embedding_type", "hidden_act", "is_decoder"])
@refused(CONFIG)
def test_arithmetic_of_other_families(folder, key):
    save(folder, "xlm-roberta")
    change(folder / CONFIG, **{key: ARITHMETIC[key]})


OTHER_FAMILIES = (
    "deberta t5 gpt2 bart vit clip xlnet funnel longformer qwen3 whisper roformer xlm flaubert"
).split()


@pytest.mark.parametrize("model_type", OTHER_FAMILIES)
@refused(CONFIG, "'model_type' = ")
def test_family_that_is_not_supported(folder, model_type):
    save(folder, "bert")  # a directory that would be read, but for what it says it is
    change(folder / CONFIG, model_type=model_type, architectures=["AnyModel"])


@pytest.mark.parametrize(
    "named",
    ["MPNetModel", "DebertaForSequenceClassification", "T5EncoderModel", "BertLMHeadModel"],
)
@refused(CONFIG)
def test_architecture_that_is_not_supported(folder, named):
    save(folder, "bert")
    change(folder / CONFIG, remove=("model_type",), architectures=[named])


@pytest.mark.parametrize(
    "ending", ["ForMultipleChoice", "ForNextSentencePrediction", "LMHeadModel", "ForPreTrainingX"]
)
@refused(CONFIG, "architectures")
def test_head_that_is_not_supported(folder, ending):
    save(folder, "bert")
    change(folder / CONFIG, architectures=["Bert" + ending])


@refused(CONFIG, "ElectraForPreTraining")
def test_discriminator_of_electra(folder):
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer()), hidden_size=32, num_attention_heads=4, num_hidden_layers=2
    )
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    tokenizer("electra").save_pretrained(folder)


# ---- labels ----


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@equal_to(Transformers)
def test_28_labels_of_which_several_may_hold(folder, family):
    save(
        folder,
        family,
        "sequence-classification",
        labels=28,
        problem_type="multi_label_classification",
    )


@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification"])
@equal_to(Transformers)
def test_one_label(folder, problem):
    save(folder, "bert", "sequence-classification", labels=1, problem_type=problem)


@pytest.mark.parametrize("labels", [2, 3])
@equal_to(Transformers)
def test_regression_with_several_values(folder, labels):
    save(folder, "bert", "sequence-classification", labels=labels, problem_type="regression")


@refused(CONFIG, "problem_type", "single_label_classification")
def test_one_label_of_which_one_holds(folder):
    save(folder, "bert", "sequence-classification", labels=1)
    change(folder / CONFIG, problem_type="single_label_classification")


@equal_to(Transformers)
def test_names_of_labels(folder):
    save(folder, "distilbert", "sequence-classification")
    names = {"0": "contradiction", "1": "naïve, or not", "2": ""}
    change(folder / CONFIG, id2label=names, label2id={v: int(k) for k, v in names.items()})
    assert read(folder / CONFIG)["id2label"]["1"] == "naïve, or not"


@refused(CONFIG, "id2label", "'same'")
def test_two_labels_of_one_name(folder):
    save(folder, "bert", "sequence-classification")
    change(folder / CONFIG, id2label={"0": "same", "1": "other", "2": "same"})


@pytest.mark.parametrize("names", [{"0": "a", "1": "b", "7": "c"}, {"zero": "a"}, ["a", "b", "c"]])
@refused(CONFIG, "id2label")
def test_labels_that_are_not_numbered(folder, names):
    save(folder, "bert", "sequence-classification")
    change(folder / CONFIG, id2label=names)


# ---- positions ----


@equal_to(Transformers)
def test_longer_than_the_kernels_take(folder):
    save(folder, "xlm-roberta", max_position_embeddings=8194)
