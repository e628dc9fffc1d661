"""The weight files of a model directory: safetensors or pickled state dicts, whole or in shards.

Keys are those that transformers' modules have. What training loops put around them is taken off:
`module.` (DataParallel), `model.` (Lightning), `_orig_mod.` (torch.compile), and the "state_dict"
of a Lightning checkpoint.
"""

import pickle
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.folder import Folder, reason, shown

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # or either with .index.json
UNREAD_FILES = (  # of other frameworks: named where there is nothing else
    *("model.onnx", "onnx/model.onnx", "openvino/openvino_model.xml", "openvino_model.xml"),
    *("tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
)
WORD = "embeddings.word_embeddings"  # of every family but two
WORDS = {  # key of the word table, at its end -> what the encoder's keys start with where that
    WORD: "",  # is a wrapper by its name
    "embeddings.tok_embeddings": "model.",
    "embed_tokens": "model.",
}
WRAPPERS = ("module", "model", "_orig_mod", "_forward_module")
FLOATS = ("float64", "float32", "float16", "bfloat16")  # what becomes float32
SHOWN_KEYS = 4


class Weights:
    """Weights of one directory by key.

    rewritten  how they differ from what transformers would read: a line for each difference
    notes      what the user should know about them, one line each
    """

    def __init__(self, files: dict[str, Path], where: str):
        """Take stored key -> file; raise where it is unclear which keys are the model's."""
        wrapper = wrapper_of(files, where)
        self.rewritten = [f"their keys start with {wrapper!r}"] if wrapper else []
        self.notes: list[str] = []
        self._stored = unwrapped(files, wrapper, where)
        self._files = files
        self._readers: dict[Path, Callable] = {}

    def __contains__(self, key: str) -> bool:
        """Say whether there is such a weight."""
        return key in self._stored

    def keys(self) -> Collection[str]:
        """Return all keys."""
        return self._stored.keys()

    def where(self, key: str) -> str:
        """Return the file that holds a weight."""
        return str(self._files[self._stored[key]])

    def read(self, key: str) -> np.ndarray:
        """Return a weight as float32."""
        stored = self._stored[key]
        file = self._files[stored]
        if file not in self._readers:
            self._readers[file] = open_weights(file)[1]
        try:
            return as_float32(self._readers[file](stored), key, file)
        except CheckpointError:
            raise
        except Exception as error:  # each format has its own family of errors
            raise CheckpointError(
                f"cannot read weight {key!r}: {reason(error)}",
                where=str(file),
                hint="the file is damaged, or the weight index names another file's weights",
            ) from error


class GivenWeights:
    """Weights in memory, float32 by key, with the interface of Weights."""

    def __init__(self, arrays: dict[str, np.ndarray], where: str):
        """Take the arrays and what errors name as their place."""
        self.arrays, self._where = arrays, where
        self.rewritten: list[str] = []
        self.notes: list[str] = []

    def __contains__(self, key: str) -> bool:
        """Say whether there is such a weight."""
        return key in self.arrays

    def keys(self) -> Collection[str]:
        """Return all keys."""
        return self.arrays.keys()

    def where(self, key: str) -> str:
        """Return what errors name as their place."""
        return self._where

    def read(self, key: str) -> np.ndarray:
        """Return a weight."""
        return self.arrays[key]


def stored_weights(folder: Folder) -> Weights:
    """Return the weights of a directory, from the file that transformers would take."""
    where = str(folder.path)
    for name in WEIGHT_FILES:
        file = folder.file(name)
        if file is not None:
            return Weights(dict.fromkeys(open_weights(file)[0], file), str(file))
        index = folder.json(f"{name}.index.json", dict)
        if index is not None:
            return Weights(_shards(folder, index, f"{where}/{name}.index.json"), where)
    found = next((name for name in UNREAD_FILES if (folder.path / name).is_file()), None)
    raise CheckpointError(
        "no weights found" + (f", {found} is not read" if found else ""),
        where=where,
        hint="expected " + " or ".join(WEIGHT_FILES),
    )


def has_weights(folder: Folder) -> bool:
    """Say whether a directory holds weights."""
    names = (name + end for name in WEIGHT_FILES for end in ("", ".index.json"))
    return any(folder.file(name) for name in names)


def _shards(folder: Folder, index: dict, where: str) -> dict[str, Path]:
    """Return key -> file of a weight index."""
    named = index.get("weight_map")
    if not isinstance(named, dict):
        raise CheckpointError("no 'weight_map' in the weight index", where=where)
    found: dict[str, Path] = {}
    for name in named.values():
        if isinstance(name, str) and name in found:
            continue
        file = folder.file(name, named_by=where)
        if file is None:
            raise CheckpointError(
                f"no file {shown(name)}, which the weight index names", where=where
            )
        found[name] = file
    return {key: found[name] for key, name in named.items()}


def wrapper_of(keys: Collection[str], where: str) -> str:
    """Return what stands before the keys of the model, "" or such as "module."."""
    words = sorted(key for key in keys if key.endswith(tuple(f"{word}.weight" for word in WORDS)))
    wrappers = {key: _wrapper(key) for key in words}
    if not any(wrappers.values()):
        return ""
    if len(words) > 1:
        raise CheckpointError(
            f"word embeddings are at several keys: {listed(words)}",
            where=where,
            hint="save the state dict of one model",
        )
    return wrappers[words[0]]


def _wrapper(key: str) -> str:
    found = ""
    while (part := key[len(found) :].split(".", 1)[0]) in WRAPPERS:
        found += f"{part}."
    word = key[len(found) :].removesuffix(".weight")
    return found.removesuffix(WORDS.get(word, ""))


def unwrapped(keys: Collection[str], wrapper: str, where: str) -> dict[str, str]:
    """Return key -> stored key; keys outside the wrapper stay as they are."""
    found: dict[str, str] = {}
    for stored in keys:
        key = stored.removeprefix(wrapper)
        if key in found:
            raise CheckpointError(
                f"weight {key!r} is at two keys: {listed([found[key], stored])}",
                where=where,
                hint="save the state dict of one model",
            )
        found[key] = stored
    return found


def open_weights(file: Path) -> tuple[list[str], Callable]:
    """Return (keys, key -> torch tensor) of one weight file."""
    if file.suffix != ".safetensors":
        state = load_pickle(file)
        return list(state), state.__getitem__
    try:
        from safetensors import safe_open

        handle = safe_open(file, framework="pt")
        return list(handle.keys()), handle.get_tensor
    except Exception as error:
        raise _unreadable(error, file) from error


def load_pickle(file: Path) -> dict:
    """Return the state dict that torch.save wrote, nothing in it run.

    Memory stays within the size of the file: entries that are compressed or lie over each other are
    refused.
    """
    import torch

    try:
        _refuse_inflation(file)
        state = torch.load(file, weights_only=True, map_location="cpu")
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable(error, file) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        beside = [key for key, value in state.items() if isinstance(value, torch.Tensor)]
        if beside:
            raise CheckpointError(
                f"weights lie beside 'state_dict' and in it: {listed(beside)}", where=str(file)
            )
        state = state["state_dict"]
    is_state = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not is_state or (state and not any(isinstance(v, torch.Tensor) for v in state.values())):
        found = f"keys {listed(state)}" if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"not a state dict: {found}",
            where=str(file),
            hint="save model.state_dict() alone, or below the key 'state_dict'",
        )
    return state


def _refuse_inflation(file: Path) -> None:
    if not zipfile.is_zipfile(file):
        return  # torch's older format: a pickle and raw storages
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise CheckpointError(
            "the weights take more memory than the file has bytes",
            where=str(file),
            hint="torch.save does not compress: save the weights again",
        )


def as_float32(tensor, key: str, file: Path) -> np.ndarray:
    """Return a torch tensor of a floating-point type as float32; raise for any other."""
    tensor = plain_tensor(tensor, key, file)
    if (name := str(tensor.dtype).removeprefix("torch.")) not in FLOATS:
        raise CheckpointError(
            f"weight {key!r} is {name}, not " + ", ".join(FLOATS[:-1]) + f" or {FLOATS[-1]}",
            where=str(file),
            hint="save the model in float32",
        )
    return tensor.float().numpy()


def plain_tensor(tensor, key: str, file: Path):
    """Return a torch tensor that lies in memory as it is; raise for any other value."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"weight {key!r} is not a tensor", where=str(file))
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = "quantized" if tensor.layout == torch.strided and not tensor.is_meta else "sparse"
        kind = "without values" if tensor.is_meta else kind
        raise CheckpointError(
            f"weight {key!r} is {kind}", where=str(file), hint="save the model in float32"
        )
    if tensor.numel() * tensor.element_size() > file.stat().st_size:
        raise CheckpointError(
            f"weight {key!r} of shape {list(tensor.shape)} is larger than its file",
            where=str(file),
            hint="it repeats its values: save it with .contiguous()",
        )
    return tensor.detach()


def listed(keys: Collection) -> str:
    """Return keys for an error message, the first few."""
    named = ", ".join(repr(key)[:80] for key in list(keys)[:SHOWN_KEYS])
    return named + (", ..." if len(keys) > SHOWN_KEYS else "")


def _unreadable(error: Exception, file: Path) -> CheckpointError:
    why = reason(error)
    if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in it
        why = "a damaged pickle, or one that holds more than tensors"
    return CheckpointError(
        f"cannot read the weights: {why}",
        where=str(file),
        hint="the file is damaged or incomplete, or is not a plain weight file",
    )
