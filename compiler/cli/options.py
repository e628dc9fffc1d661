"""A verb's options are the parameters of a public function, which alone has their defaults.

A verb lists how each parameter is given on the command line; what it does not list (`progress`) is
for callers of the API. A parameter annotated with a dataclass stands for the fields of that.
"""

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """How one parameter is given on the command line.

    help      text of --help; the default is added where it is a number or a text
    flags     default: --NAME, or --no-NAME where the parameter is True unless given
    argument  given by its place, without a flag
    parse     text -> value
    choices   legal values
    metavar   of the value in --help
    repeat    may be given several times, an argument at least once; the value is a list
    default   of an option that is not a parameter of the function, or is not the only way to give
              one
    """

    help: str
    flags: tuple[str, ...] = ()
    argument: bool = False
    parse: Callable[[str], object] | None = None
    choices: Sequence[str] | None = None
    metavar: str | None = None
    repeat: bool = False
    default: object = REQUIRED


def parameters(function: Callable) -> dict[str, object]:
    """Return the parameters of a function with their defaults, REQUIRED where there is none."""
    found: dict[str, object] = {}
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            continue
        if dataclasses.is_dataclass(one.annotation):
            for field in dataclasses.fields(one.annotation):
                missing = field.default is dataclasses.MISSING
                found[field.name] = REQUIRED if missing else field.default
        else:
            found[one.name] = one.default
    return found


def given(args: argparse.Namespace, function: Callable) -> dict[str, object]:
    """Return the arguments of a function that the command line sets, by name."""
    found = {}
    for one in inspect.signature(function).parameters.values():
        if dataclasses.is_dataclass(one.annotation):
            names = [field.name for field in dataclasses.fields(one.annotation)]
            found[one.name] = one.annotation(**{name: getattr(args, name) for name in names})
        elif hasattr(args, one.name):
            found[one.name] = getattr(args, one.name)
    return found


def add(
    parser: argparse.ArgumentParser, function: Callable | None, options: Mapping[str, Option]
) -> None:
    """Add a verb's options to its parser; names of parameters are keys of `options`."""
    defaults = {} if function is None else parameters(function)
    for name, option in options.items():
        default = defaults.get(name, REQUIRED) if option.default is REQUIRED else option.default
        if option.argument:
            parser.add_argument(
                name,
                help=option.help,
                type=option.parse,
                metavar=option.metavar,
                **({"nargs": "+"} if option.repeat else {}),
                **({} if default is REQUIRED else {"nargs": "?", "default": default}),
            )
        elif isinstance(default, bool):
            flags = option.flags or (f"--{'no-' if default else ''}{name.replace('_', '-')}",)
            action = "store_false" if default else "store_true"
            parser.add_argument(*flags, dest=name, action=action, help=option.help)
        else:
            parser.add_argument(
                *(option.flags or (f"--{name.replace('_', '-')}",)),
                dest=name,
                required=default is REQUIRED,
                default=None if default is REQUIRED else default,
                help=option.help + shown(default),
                type=option.parse,
                metavar=option.metavar,
                **({"action": "append"} if option.repeat else {"choices": option.choices}),
            )


def shown(default: object) -> str:
    """Return what --help says of a default; nothing where `None` stands for something."""
    if default is REQUIRED or default is None or default == ():
        return ""
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {text})"


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """Parse a whole number."""
    return 0 if text == "0" else positive(text)


def counts(text: str) -> tuple[int, ...]:
    """Parse whole numbers with commas between them."""
    return tuple(positive(part) for part in text.split(","))


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse BATCHxTOKENS with commas between them."""
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected a list such as 1x128,8x256, got {text!r}")
    return tuple((int(one[1]), int(one[2])) for one in found)


def amount(text: str) -> float:
    """Parse a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def output_file(text: str) -> Path:
    """Parse the path of a library to write."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"output cannot be a directory: {text}")
    return Path(text)
