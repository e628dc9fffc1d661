"""LoRA adapters of peft: adapter_config.json and adapter_model.safetensors beside a base model.

Every adapted matrix becomes W + (alpha / r) B A, as peft's merge_and_unload makes it, alpha /
sqrt(r) with use_rslora. Modules trained whole (modules_to_save) replace those of the base model.
Everything else that peft can write is refused by key, unknown settings included unless they are
off.
"""

import math
import re

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.architectures import CLASSES, head_named
from intformer.frontend.folder import Folder, shown
from intformer.frontend.weights import (
    Weights,
    as_float32,
    has_weights,
    listed,
    open_weights,
    stored_weights,
)
from intformer.ir.heads import HEADS

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # peft's order
READ = {  # settings that are honoured, or that change no weight of a saved adapter
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("bias", "init_lora_weights", "modules_to_save", "task_type", "base_model_name_or_path"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "revision"),
    *("auto_mapping", "inference_mode", "lora_dropout", "peft_version"),
    "fan_in_fan_out",  # peft takes it for false where a module is a Linear, and all of ours are
    *("megatron_core", "qalora_group_size"),  # say nothing without megatron_config, use_qalora
}
OFF = (None, False, "none", {}, [])
INITIAL = (True, False, "gaussian", "orthogonal", "eva")  # the others change the base model
TASKS = {head.peft: head for head in HEADS.values() if head.peft}
BEFORE = "base_model.model."
MATRIX = re.compile(r"(.+)\.lora_(A|B)\.weight")
PREFIXES = tuple(f"{stem.lower()}." for stem in CLASSES.values())
MERGE = "merge it: model.merge_and_unload().save_pretrained(DIRECTORY)"


class MergedWeights:
    """The weights of a base model with an adapter merged, with the interface of Weights."""

    def __init__(self, base: Weights, adapter: "Adapter"):
        """Take both; raise for an adapter that does not belong to the base model."""
        self.base, self.adapter = base, adapter
        self.rewritten = [*base.rewritten, f"{CONFIG_FILE} is merged into them"]
        self.notes = [
            f"{CONFIG_FILE}: the adapter is merged into the weights beside it, which must be those "
            f"of its base model {shown(adapter.config.get('base_model_name_or_path'))}"
        ]
        self.matrices = {self._target(path): path for path in adapter.paths}
        self.replaced = {self._target(key, new=True): key for key in adapter.saved}
        self._keys = dict.fromkeys([*base.keys(), *self.replaced])

    def _target(self, name: str, new: bool = False) -> str:
        """Return the key of the base model that a module path or key of the adapter means."""
        key = name if new else f"{name}.weight"
        short = next((key.removeprefix(p) for p in PREFIXES if key.startswith(p)), key)
        found = [k for k in dict.fromkeys([key, short, *(p + key for p in PREFIXES)])]
        found = [k for k in found if k in self.base]
        if len(found) == 1:
            return found[0]
        if new and not found:
            return key
        raise CheckpointError(
            f"adapter weight of {name!r} fits "
            + (f"several weights: {listed(found)}" if found else "no weight of the base model"),
            where=self.adapter.file,
            hint=MERGE,
        )

    def __contains__(self, key: str) -> bool:
        """Say whether there is such a weight."""
        return key in self._keys

    def keys(self):
        """Return all keys."""
        return self._keys.keys()

    def where(self, key: str) -> str:
        """Return the file that holds a weight."""
        return self.adapter.file if key in self.replaced else self.base.where(key)

    def read(self, key: str) -> np.ndarray:
        """Return a weight as float32, merged."""
        if key in self.replaced:
            return self.adapter.tensor(self.adapter.saved[self.replaced[key]])
        weight = self.base.read(key)
        if key not in self.matrices:
            return weight
        path = self.matrices[key]
        delta = self.adapter.delta(path)
        if delta.shape != weight.shape:
            raise CheckpointError(
                f"adapter of {path!r} has shape {list(delta.shape)}, the weight "
                f"{list(weight.shape)}",
                where=self.adapter.file,
                hint="the adapter belongs to another model",
            )
        return weight + delta


class Adapter:
    """One LoRA adapter.

    paths  of the modules it adapts
    saved  key -> stored key of whole weights that it brings
    """

    def __init__(self, folder: Folder, config: dict):
        """Read settings and keys; raise for whatever is not a plain LoRA."""
        self.where = str(folder.path / CONFIG_FILE)
        self.config = config
        self._check()
        file = next((f for name in WEIGHT_FILES if (f := folder.file(name))), None)
        if file is None:
            raise CheckpointError(
                "no weights of the adapter",
                where=self.where,
                hint="expected " + " or ".join(WEIGHT_FILES),
            )
        self.path, self.file = file, str(file)
        keys, self._read = open_weights(file)
        halves = {m[1]: set() for key in keys if (m := MATRIX.fullmatch(key))}
        self.saved = {}
        for key in keys:
            if match := MATRIX.fullmatch(key):
                halves[match[1]].add(match[2])
            elif self._is_saved(key):
                self.saved[key.removeprefix(BEFORE)] = key
            else:
                self._refuse(f"adapter weight {key!r} is not supported", self.file)
        for path, parts in halves.items():
            if len(parts) < 2 or not path.startswith(BEFORE):
                self._refuse(f"adapter weight of {path!r} is not a pair of matrices", self.file)
        self.paths = [path.removeprefix(BEFORE) for path in halves]

    def _check(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":  # whose other settings would mean something else
            self._refuse(f"adapter setting 'peft_type' = {shown(kind)} is not supported")
        for key, value in self.config.items():
            if key not in READ and value not in OFF:
                self._refuse(f"adapter setting {key!r} = {shown(value)} is not supported")
        for key, legal in (
            ("bias", (None, "none")),
            ("init_lora_weights", (None, *INITIAL)),
            ("use_rslora", (None, True, False)),
        ):
            value = self.config.get(key)
            if isinstance(value, dict | list) or value not in legal:
                self._refuse(f"adapter setting {key!r} = {shown(value)} is not supported")
        for key, kind in (
            ("rank_pattern", dict),
            ("alpha_pattern", dict),
            ("modules_to_save", list),
            ("task_type", str),
        ):
            if not isinstance(self.config.get(key), kind | None):
                self._refuse(f"adapter setting {key!r} has the wrong type")

    def _is_saved(self, key: str) -> bool:
        parts = key.removeprefix(BEFORE).split(".")
        modules = self.config.get("modules_to_save") or []
        return key.startswith(BEFORE) and any(part in modules for part in parts[:-1])

    def _refuse(self, what: str, where: str = "") -> None:
        raise CheckpointError(what, where=where or self.where, hint=MERGE)

    def check_head(self, config: dict) -> None:
        """Refuse an adapter that brings a head which config.json does not name."""
        head = TASKS.get(self.config.get("task_type"))
        architectures = config.get("architectures")
        named = architectures[0] if isinstance(architectures, list) and architectures else "Model"
        if self.saved and head and head_named(str(named)) != head:
            raise CheckpointError(
                f"the adapter brings {listed(self.saved)} for {head.name}, but config key "
                f"'architectures' = {shown(named)} has no such head",
                where=self.where,
                hint="name the class that was trained in 'architectures', or " + MERGE,
            )

    def tensor(self, key: str) -> np.ndarray:
        """Return a tensor of the adapter as float32."""
        return as_float32(self._read(key), key, self.path)

    def delta(self, path: str) -> np.ndarray:
        """Return what the adapter adds to the weight of a module, float32."""
        a, b = (self.tensor(f"{BEFORE}{path}.lora_{half}.weight") for half in "AB")
        rank = self._number("rank_pattern", "r", path)
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            self._refuse(
                f"adapter of {path!r} has shapes {list(a.shape)} and {list(b.shape)}, and rank "
                f"{shown(rank)}",
                self.file,
            )
        alpha = self._number("alpha_pattern", "lora_alpha", path)
        return (b @ a) * np.float32(
            alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        )

    def _number(self, patterns: str, default: str, path: str) -> float:
        """Return r or alpha of a module: that of the first pattern that fits, else the default."""
        value = self.config.get(default)
        for pattern, own in (self.config.get(patterns) or {}).items():
            if self._fits(pattern, path, patterns):
                value = own
                break
        if type(value) not in (int, float) or not 0 < value < 2**31:
            self._refuse(f"adapter setting {default!r} = {shown(value)} of {path!r} is not usable")
        return value

    def _fits(self, pattern: str, path: str, patterns: str) -> bool:
        """Match as peft does; repetitions, which may take for ever, are refused."""
        try:
            if not set(pattern) & set("*+?{"):
                return bool(re.match(rf"(.*\.)?({pattern})$", path))
        except re.error:
            pass
        self._refuse(f"adapter setting {patterns!r} has the pattern {shown(pattern)}")


def merged(folder: Folder, config: dict) -> Weights | MergedWeights:
    """Return the weights of a directory, an adapter beside them merged."""
    about = folder.json(CONFIG_FILE, dict)
    if about is None:
        return stored_weights(folder)
    if not has_weights(folder):
        refuse_alone(folder)
    adapter = Adapter(folder, about)
    adapter.check_head(config)
    return MergedWeights(stored_weights(folder), adapter)


def refuse_alone(folder: Folder) -> None:
    """Raise where a directory holds an adapter, but no base model."""
    about = folder.json(CONFIG_FILE, dict)
    if about is not None:
        raise CheckpointError(
            f"an adapter without its base model {shown(about.get('base_model_name_or_path'))}",
            where=str(folder.path / CONFIG_FILE),
            hint=MERGE,
        )
