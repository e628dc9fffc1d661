"""Directories that point outside of themselves, or at what is no file."""

import os

import pytest

from intformer_testing.foreign.directories import change, model, read, save, tokenizer, write
from intformer_testing.foreign.expect import equal_to, refused
from intformer_testing.foreign.libraries import Transformers
from intformer_testing.sentence_dirs import old_modules

INDEX = "model.safetensors.index.json"


def sharded(folder):
    """Write shards and their index; return the name of one shard."""
    model("bert").save_pretrained(folder, max_shard_size="60KB")
    tokenizer("bert").save_pretrained(folder)
    return min(file.name for file in folder.glob("model-*.safetensors"))


def repointed(folder, name):
    """Give one weight of the index another file."""
    index = read(folder / INDEX)
    key = min(index["weight_map"])
    write(folder / INDEX, {**index, "weight_map": {**index["weight_map"], key: name}})


@pytest.mark.parametrize("above", ["..", "inside/../.."])
@refused(INDEX, "../")
def test_shard_above(folder, above):
    name = sharded(folder)
    (folder / "inside").mkdir()
    os.rename(folder / name, folder.parent / name)
    repointed(folder, f"{above}/{name}")


@refused(INDEX, "leaves the model directory")
def test_shard_at_an_absolute_path(folder):
    name = sharded(folder)
    os.rename(folder / name, folder.parent / name)
    repointed(folder, str(folder.parent / name))


@pytest.mark.parametrize("name", ["", ".", "no\0name", "x" * 5000, 7, None])
@refused(INDEX)
def test_shard_that_is_no_name(folder, name):
    sharded(folder)
    repointed(folder, name)


LINKED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", LINKED)
def test_link_that_leaves_the_directory(folder, name):
    @refused(name)
    def case(folder):
        save(folder, "bert")
        os.rename(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    case(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINKED)
@equal_to(Transformers)
def test_link_within_the_directory(folder, name):
    save(folder, "bert")
    (folder / "kept").mkdir()
    os.rename(folder / name, folder / "kept" / name)
    (folder / name).symlink_to(f"kept/{name}")


def test_hub_cache(folder):
    cache = folder / "models--somebody--a-model"
    snapshot, blobs = cache / "snapshots/0123456789abcdef", cache / "blobs"
    blobs.mkdir(parents=True)

    @equal_to(Transformers)
    def case(snapshot):
        save(snapshot, "bert")
        for i, file in enumerate(sorted(snapshot.iterdir())):
            os.rename(file, blobs / f"{i:040x}")
            file.symlink_to(f"../../blobs/{i:040x}")

    case(snapshot)


@pytest.mark.parametrize("name", [*LINKED, "modules.json", "adapter_config.json", INDEX])
def test_fifo(folder, name):
    @refused(name)
    def case(folder):
        save(folder, "bert")
        (folder / name).unlink(missing_ok=True)
        if name == INDEX:  # read where the weights are not in one file
            (folder / "model.safetensors").unlink()
        os.mkfifo(folder / name)

    case(folder)


@refused(".safetensors")
def test_fifo_as_a_shard(folder):
    name = sharded(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_in_place_of_a_file(folder, name):
    @refused(name)
    def case(folder):
        save(folder, "bert")
        (folder / name).unlink()
        (folder / name).mkdir()

    case(folder)


@pytest.mark.parametrize("path", ["../other", "/tmp", "1_Pooling/../../other", "\ud800", "x\0y"])
@refused("modules.json", "path")
def test_module_outside(folder, path):
    save(folder, "bert")
    old_modules(folder, "Transformer", "Pooling")
    write(folder.parent / "other/config.json", {"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling").mkdir()
    modules = read(folder / "modules.json")
    modules[1]["path"] = path
    write(folder / "modules.json", modules)


@refused("modules.json", "path")
def test_transformer_outside(folder):
    save(folder.parent / "other", "bert")
    old_modules(folder, "Transformer", "Pooling")
    write(folder / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    modules = read(folder / "modules.json")
    modules[0]["path"] = "../other"
    write(folder / "modules.json", modules)


@refused("config.json")
def test_empty_directory(folder):
    pass


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"text"', "null", "\x00", "[" * 100_000])
@refused("config.json")
def test_config_that_is_no_object(folder, text):
    save(folder, "bert")
    (folder / "config.json").write_text(text)


@refused("config.json", "5000 digits")
def test_integer_of_5000_digits(folder):
    save(folder, "bert")
    text = (folder / "config.json").read_text()
    text = text.replace('"hidden_size": 64', '"hidden_size": ' + "9" * 5000)
    (folder / "config.json").write_text(text)
    assert "9" * 5000 in text


@refused("config.json", "num_attention_heads")
def test_heads_that_do_not_divide(folder):
    save(folder, "bert")
    change(folder / "config.json", num_attention_heads=7)
