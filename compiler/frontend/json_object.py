"""A JSON object of a model directory, its values read with their types checked."""

from collections.abc import Collection

from intformer.errors import CheckpointError
from intformer.frontend import folder

KINDS = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "an object"}


class JsonObject:
    """One JSON object. Every error names the file and the key.

    values  the object as it is
    where   what errors call it: the file, or a part of the file
    """

    def __init__(self, values: object, where: str):
        """Take any parsed JSON value; raises CheckpointError where it is not an object."""
        if not isinstance(values, dict):
            raise CheckpointError(
                f"{shown(values)} is {kind_of(values)}, not an object", where=where
            )
        self.values, self.where = values, where

    @classmethod
    def read(cls, checkpoint, name: str) -> "JsonObject":
        """Read a file of a Checkpoint; empty where the directory has none."""
        return cls(checkpoint.read_json(name, dict) or {}, str(checkpoint.path / name))

    def get(self, key: str, kind: type, default=None):
        """Return a value of the given type (bool, int, str, list or dict), or raise.

        default  where the key is absent or null
        """
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not kind:
            wanted = KINDS.get(kind, "a bool")
            raise CheckpointError(
                f"key {key!r} = {shown(value)} is {kind_of(value)}, not {wanted}", where=self.where
            )
        return value

    def required(self, key: str, kind: type):
        """Return a value as `get` does; raises where the key is absent or null."""
        value = self.get(key, kind)
        if value is None:
            raise CheckpointError(f"key {key!r} is missing", where=self.where)
        return value

    def inner(self, key: str) -> "JsonObject":
        """Return the object below a key; empty where there is none."""
        return JsonObject(self.get(key, dict, {}), f"{self.where}, key {key!r}")

    def refusal(self, key: str, hint: str = "") -> CheckpointError:
        """Return the error that says that a key's value is not supported."""
        value = shown(self.values.get(key))
        return CheckpointError(
            f"key {key!r} = {value} is not supported", where=self.where, hint=hint
        )

    def refuse_others(self, known: Collection[str], hint: str = "") -> None:
        """Raise for the first key that is not one of `known` and that says something."""
        for key, value in self.values.items():
            if key not in known and value not in (None, {}, []):
                raise self.refusal(key, hint)


def shown(value: object) -> str:
    """Return a JSON value as an error shows it."""
    if value is None:
        return "null"
    if not isinstance(value, list):
        return folder.shown(value)
    return folder.shortened(repr(value))


def kind_of(value: object) -> str:
    """Return the name of a JSON value's type."""
    return "null" if value is None else KINDS.get(type(value), "a bool")
