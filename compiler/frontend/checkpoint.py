"""A Hugging Face model directory, read without running anything that is in it."""

import math
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import sentence_transformers
from intformer.frontend.architectures import named_model_type
from intformer.frontend.folder import Folder, shown
from intformer.frontend.hub_config import canonical, unlike
from intformer.frontend.lora import MergedWeights, merged, refuse_alone
from intformer.frontend.weights import GivenWeights, Weights

REFUSED = {  # config keys that change the arithmetic, and the values under which they do not
    "lora_adaptations": (None, []),  # of jina-embeddings-v3: an adapter per task, none merged
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "transformers_weights": (None,),  # names another weight file
}


class Checkpoint:
    """config.json and the weights of one directory.

    path       the directory; of old sentence-transformers models, its folder with the Transformer
    root       the directory
    config     config.json under the keys of transformers, with the model_type that its architecture
               names where it has none
    unlike     why transformers would not read config.json as it is read here, one line each
    tokenizer  a tokenizer.json to use instead of the directory's own
    """

    takes_types = True  # whether the model tells token types apart, if its model_type does
    mended = "save it with transformers' own class first, where there is one"  # if it reads it not

    def __init__(self, source: str | Path, *, tokenizer: str | Path | None = None):
        """Read config.json; raises CheckpointError for anything unusable."""
        self.path = Path(source)
        self.tokenizer = Path(tokenizer) if tokenizer is not None else None
        if not self.path.is_dir():
            raise CheckpointError(
                "not a model directory",
                where=str(source),
                hint="give a directory with config.json and model.safetensors",
            )
        self.root = self.path
        self.path = self.root / sentence_transformers.transformer_path(self)
        config = self.read_json("config.json", dict)
        if config is None:
            sentence_transformers.read(self)  # names a module that has no config.json
            refuse_alone(Folder(self.path))
            raise CheckpointError(
                "config.json is missing",
                where=str(self.path),
                hint="save the model with save_pretrained",
            )
        where = str(self.path / "config.json")
        self.config = named_model_type(canonical(config, where), where)
        self.unlike = unlike(config)

    def file(self, name: str) -> Path | None:
        """Return the path of a regular file inside the directory (Folder.file)."""
        return Folder(self.path).file(name)

    def whole(self) -> "Checkpoint":
        """Return this checkpoint with `root` as its path: for what is not the Transformer's."""
        other = copy(self)
        other.path = self.root
        return other

    def module(self, path: str) -> "Checkpoint":
        """Return the folder of a module of sentence-transformers, with the weights that lie there.

        path  relative to the directory, and inside it
        """
        other = self.whole()
        other.path = self.root / path
        if path:
            other.__dict__.pop("weights", None)
            other.config = {}
        return other

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file of the directory, None where there is none."""
        return Folder(self.path).read(name)

    def read_json(self, name: str, kind: type | None = None):
        """Return the parsed JSON file, or None where the directory has none.

        kind  dict or list: what its top level must be
        """
        return Folder(self.path).json(name, kind)

    def setting(self, key: str, kind: type, default=None, *, least=None, most=None):
        """Return one config value, checked; raises an error that names the key.

        kind     int, float (an integer will do, the result is a float), str, list or dict
        default  where the key is absent or null; None: the key is required
        least    smallest number allowed
        most     largest number allowed
        """
        value = self.config.get(key)
        value = default if value is None else value
        where = str(self.path / "config.json")
        if value is None:
            raise CheckpointError(f"config key {key!r} is missing", where=where)
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"config key {key!r} = {shown(value)} is {_named(type(value))}, not {_named(kind)}",
                where=where,
            )
        if kind is float and not math.isfinite(value):
            raise CheckpointError(f"config key {key!r} = {value} is not finite", where=where)
        if least is not None and value < least:
            raise CheckpointError(
                f"config key {key!r} = {shown(value)} is less than {least}", where=where
            )
        if most is not None and value > most:
            raise CheckpointError(
                f"config key {key!r} = {shown(value)} is more than {most}", where=where
            )
        return value

    def heads_of(self, hidden_key: str, heads_key: str) -> tuple[int, int]:
        """Return (hidden, heads), which fit each other."""
        hidden, heads = (self.setting(key, int, least=1) for key in (hidden_key, heads_key))
        if hidden % heads:
            raise CheckpointError(
                f"config key {hidden_key!r} = {hidden} is not a multiple of "
                f"{heads_key!r} = {heads}",
                where=str(self.path / "config.json"),
            )
        return hidden, heads

    def refuse_unsupported(self, neutral: dict[str, tuple] | None = None) -> None:
        """Raise for a config key that asks for arithmetic which is not here.

        neutral  more keys and their values than REFUSED has, or others
        """
        for key, values in {**REFUSED, **(neutral or {})}.items():
            value = self.config.get(key)
            if value not in values:
                raise CheckpointError(
                    f"config key {key!r} = {shown(value)} is not supported",
                    where=str(self.path / "config.json"),
                    hint="supported: " + ", ".join(shown(one) for one in values),
                )

    @cached_property
    def weights(self) -> Weights | GivenWeights | MergedWeights:
        """The weights, an adapter beside them merged."""
        return merged(Folder(self.path), self.config)

    def with_weights(self, weights: dict[str, np.ndarray]) -> "Checkpoint":
        """Return this directory's configuration with other weights, float32 by key."""
        other = copy(self)
        other.weights = GivenWeights(weights, str(self.path))
        return other

    def unread(self) -> list[str]:
        """Return why transformers would not read what is read here, one line each."""
        directory = "transformers does not read this directory"
        weights = "transformers does not read these weights"
        return [
            *(f"{directory}: {note}" for note in self.unlike),
            *(f"{weights}: {note}" for note in self.weights.rewritten),
        ]

    def refuse_rewritten(self) -> None:
        """Raise where transformers would not read what is read here.

        For whatever hands the directory itself to transformers.
        """
        for note in self.unread():
            raise CheckpointError(note, where=str(self.path), hint=self.mended)

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Return weights one below the other, in the kind of array that `tensor` returns."""
        return np.concatenate(arrays)

    def zeros(self, count: int) -> np.ndarray:
        """Return zeros [count], in the kind of array that `tensor` returns: a bias of none."""
        return np.zeros(count, np.float32)

    def __contains__(self, key: str) -> bool:
        """Say whether the weights hold this key."""
        return key in self.weights

    def keys(self):
        """Return all weight keys."""
        return self.weights.keys()

    def tensor(self, key: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
        """Return one weight as float32, finite, not empty, of the stated shape (None: any extent).

        Raises CheckpointError, with the key and the file, for everything else.
        """
        if key not in self.weights:
            raise CheckpointError(
                f"weight {key!r} is missing",
                where=str(self.path),
                hint="is this the checkpoint of the head that config.json names?",
            )
        array, where = self.weights.read(key), self.weights.where(key)
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise CheckpointError(f"weight {key!r} holds {bad} NaN or Inf", where=where)
        fits = shape is None or (
            len(shape) == array.ndim
            and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
        )
        if not (fits and array.size):
            extents = ", ".join("any" if n is None else str(n) for n in shape or ())
            raise CheckpointError(
                f"weight {key!r} has shape {list(array.shape)}, expected [{extents}]",
                where=where,
                hint="config.json and the weights belong to different models",
            )
        return array

    def files(self) -> dict[str, bytes]:
        """Return what travels with a library: config.json, and the tokenizer where there is one."""
        return dict(self._files)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        from intformer.frontend.tokenizer import tokenizer_files

        config = self.read("config.json")
        found = {} if config is None else {"config.json": config}
        return {**found, **tokenizer_files(self)}


def _named(kind: type) -> str:
    names = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(kind, "true or false")
