"""Damaged model directories, two thousand or FUZZ_CHECKPOINTS: read, or refused in one line."""

import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intformer.frontend import import_model
from intformer.frontend.calibrated import import_uncalibrated, split
from intformer.frontend.checkpoint import Checkpoint
from intformer.measure.float_model import quiet
from intformer_testing import fuzz, make_ibert, mutate, random_hf, small_tokenizer

COUNT = fuzz.setting("CHECKPOINTS", 2000)
SECONDS = 10  # for one directory; most take 20 ms
SHAPE = {"hidden": 16, "heads": 2, "layers": 1, "ffn": 24}
QUANTIZED = ("q8bert", "ibert")  # whose ranges are in the directory


def tokenizer_settings(folder, names=("input_ids", "token_type_ids", "attention_mask")):
    small_tokenizer.save(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 30,
        "model_input_names": list(names),
        "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": 4}))


def sentence(folder):
    random_hf.save(folder, "bert", "features", **SHAPE)
    tokenizer_settings(folder)
    name = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{name}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{name}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{name}.Normalize"},
    ]
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    for file, value in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False}),
        (
            "config_sentence_transformers.json",
            {
                "prompts": {"query": "q: "},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        ),
    ):
        (folder / file).write_text(json.dumps(value))


def classifier(folder):
    random_hf.save(folder, "roberta", "sequence-classification", **SHAPE)
    tokenizer_settings(folder, ["input_ids", "attention_mask"])


def sharded(folder):
    random_hf.save(folder, "albert", "masked-lm", **SHAPE)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(sorted(state))}
    for part in set(where.values()):
        save_file({key: state[key] for key in state if where[key] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def pickled(folder):
    random_hf.save(folder, "distilbert", "question-answering", **SHAPE)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(
        {f"module.{key}": value for key, value in state.items()}, folder / "pytorch_model.bin"
    )


def adapted(folder):
    random_hf.save(folder, "bert", "sequence-classification", **SHAPE)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    about = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(base, about).save_pretrained(folder)


def q8bert(folder):
    model = random_hf.save(folder, "bert", "sequence-classification", **SHAPE)
    (folder / "model.safetensors").unlink()
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding | torch.nn.Linear):
            scale = 127 / module.weight.detach().abs().max()
            state[f"{name}.quantized_weight"] = (module.weight.detach() * scale).round().char()
            state[f"{name}._weight_scale"] = scale
        if isinstance(module, torch.nn.Linear):
            state[f"{name}._quantized_bias"] = (module.bias.detach() * 100).round().int()
            state |= {f"{name}.{end}_thresh": torch.tensor([4.0]) for end in ("input", "output")}
        elif isinstance(module, torch.nn.LayerNorm):
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    torch.save(state, folder / "quant_pytorch_model.bin")


def ibert(folder):
    make_ibert.random_model(hidden=16, layers=1, heads=2, ffn=24).save_pretrained(folder)


DIRECTORIES = (sentence, classifier, sharded, pickled, adapted, q8bert, ibert)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    quiet()
    folders = []
    for make in DIRECTORIES:
        folders.append(tmp_path_factory.mktemp(make.__name__))
        make(folders[-1])
    return folders


def read(folder):
    """Do all that an import does but calibration, whose text is not the directory's."""
    if any(kind in str(folder) for kind in QUANTIZED):
        return import_model(folder)
    checkpoint = Checkpoint(folder)
    model = import_uncalibrated(checkpoint)
    files = checkpoint.files()
    if "tokenizer.json" in files:
        split([("the cat sat", "a dog"), ("", "é " * 40)], files, model.meta)
    return model


def case(seed: int, originals: list[Path], scratch: Path) -> str | None:
    """Damage a copy of a directory and read it; return what went wrong, None where nothing did."""
    rng = random.Random(seed)
    original = rng.choice(originals)
    folder = scratch / original.name
    shutil.copytree(original, folder)
    said = mutate.damage(folder, rng)
    try:
        fault = fuzz.fault(lambda: read(folder), SECONDS)
    finally:
        shutil.rmtree(folder)
    return fault and f"{original.name}, {said}: {fault}"


@pytest.mark.parametrize("block", range(fuzz.BLOCKS))
def test_a_damaged_directory_is_read_or_refused_in_one_line(block, originals, tmp_path):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        faults = fuzz.faults(lambda seed: case(seed, originals, tmp_path), block, COUNT)
    assert not faults, "\n".join(faults)


def test_undamaged_directories_are_read(originals):
    for folder in originals:
        assert read(folder).nodes
