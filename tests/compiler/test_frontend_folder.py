"""Reads stay inside the model directory and never wait."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from intformer.errors import CheckpointError
from intformer.frontend import import_model
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.folder import Folder, parse_json
from intformer_testing import random_hf, small_tokenizer

SECRET = b'{"secret": "of another directory"}'


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    random_hf.save(folder, "bert", "features")
    small_tokenizer.save(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    (tmp_path / "outside.json").write_bytes(SECRET)
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        import_model(folder, calibrate=random_hf.sequences(), method="ema", **options)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


READ_BY_NAME = ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]


@pytest.mark.parametrize("name", READ_BY_NAME)
def test_a_link_that_leaves_the_directory(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside.json")
    error = refusal(folder)
    assert f"{name!r} is a link to a file outside the model directory" in error


@pytest.mark.parametrize("name", READ_BY_NAME)
@pytest.mark.parametrize("kind", ["named pipe", "directory", "socket", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(folder / name)
    elif kind == "directory":
        (folder / name).mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
        os.chdir(here)
    else:
        (folder / name).symlink_to("/dev/zero")
        kind = "link to a file outside the model directory"
    assert f"{name!r} is a {kind}" in refusal(folder)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_an_index_that_names_a_file_elsewhere(folder, absolute, first):
    weights = folder / "model.safetensors"
    other = folder.parent / "other.safetensors"
    weights.rename(other)
    name = str(other) if absolute else "../other.safetensors"
    if not first:
        (folder / "sub").mkdir()
        name = f"sub/../{name}"
        name = name if not absolute else str(other)
    where = {"weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))
    assert "leaves the model directory" in refusal(folder)


@pytest.mark.parametrize("name", [5, None, "", "a\0b", "\ud800", ["a"]])
def test_an_index_whose_file_name_is_none(folder, name):
    (folder / "model.safetensors").unlink()
    where = {"weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))
    assert "is not a file name" in refusal(folder)


def test_an_index_that_names_a_pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "part.safetensors")
    where = {"weight_map": {"embeddings.word_embeddings.weight": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))
    assert "named pipe" in refusal(folder)


def test_a_link_to_nothing_is_not_taken_for_an_absent_file(folder):
    (folder / "special_tokens_map.json").symlink_to("nowhere.json")
    assert "special_tokens_map.json" in refusal(folder)


def test_links_inside_the_directory_are_followed(folder):
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    assert Checkpoint(folder).file("tokenizer.json") == folder / "tokenizer.json"


def cached(folder, repository):
    """Move a directory's files into the layout of the huggingface_hub cache."""
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{i:064x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_a_snapshot_of_the_hub_cache_reads_like_its_files(folder, tmp_path):
    names = sorted(file.name for file in folder.iterdir())
    want = {name: (folder / name).read_bytes() for name in names}
    snapshot = Folder(cached(folder, tmp_path / "models--some--model"))
    assert {name: snapshot.read(name) for name in names} == want


def test_a_link_from_a_snapshot_to_anything_but_a_blob(folder, tmp_path):
    snapshot = cached(folder, tmp_path / "models--some--model")
    (snapshot / "a.json").symlink_to("../../../outside.json")
    outside = tmp_path / "models--some--model" / "blobs" / ("d" * 64)
    outside.symlink_to("../../outside.json")  # a blob that is a link itself
    (snapshot / "b.json").symlink_to(f"../../blobs/{outside.name}")
    (tmp_path / "models--other--model/blobs").mkdir(parents=True)
    foreign = tmp_path / "models--other--model/blobs" / ("e" * 64)
    foreign.write_bytes(SECRET)
    (snapshot / "c.json").symlink_to(f"../../../models--other--model/blobs/{foreign.name}")
    for name in ("a.json", "b.json", "c.json"):
        with pytest.raises(CheckpointError, match="outside the model directory"):
            Folder(snapshot).file(name)


def test_the_same_layout_elsewhere_is_no_cache(folder, tmp_path):
    snapshot = cached(folder, tmp_path / "model-of-mine")
    with pytest.raises(CheckpointError, match="outside the model directory"):
        Folder(snapshot).file("config.json")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"),
        (b"\xff", "utf-8"),
        (b"{", "property name"),
    ],
)
def test_json_that_does_not_parse(text, why):
    with pytest.raises(CheckpointError, match=why) as caught:
        parse_json(text, "a.json")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(folder):
    with open(folder / "special_tokens_map.json", "wb") as stream:
        stream.truncate(1 << 40)  # no block of it is on the disk
    assert "bytes, more than" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_only_objects_are_carried(folder, name):
    (folder / name).write_text('["not", "an", "object"]')
    assert f"{name} is not an object" in refusal(folder)
