"""The command and the public API are one: options are parameters, with the same defaults."""

import inspect
from importlib import import_module

import pytest

import intformer
from intformer import cli
from intformer.cli.options import REQUIRED, parameters

API_ONLY = {  # parameters without an option
    "analyze": {"progress", "command"},
    "tune": {"progress", "command", "build"},
    "verify": {"progress", "batches"},
    "rpc-server": {"say"},
    "run": set(),
}
COMMAND_ONLY = {"run": {"file", "top_k", "prompt_name"}}  # predict hands the last two on


def module(verb):
    return import_module(f"intformer.cli.{verb.replace('-', '_')}")


def actions(verb):
    """The options of a verb by parameter, as argparse knows them."""
    parser = cli.parser()._subparsers._group_actions[0].choices[verb]
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    return {one.dest: one for one in parser._actions if one.dest not in ("help", "json")}


VERBS = [verb for verb in cli.VERBS if hasattr(module(verb), "function")]


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_the_parameters_of_one_function(verb, capsys):
    pytest.importorskip("tvm")
    function = module(verb).function()
    wanted = parameters(function)
    options = actions(verb)
    extra = COMMAND_ONLY.get(verb, set())
    assert options.keys() - extra == wanted.keys() - API_ONLY.get(verb, {"progress"})
    for name in options.keys() - extra:
        one, default = options[name], wanted[name]
        optional = one.nargs == "?" if not one.option_strings else not one.required
        if name != "texts":  # `run` may read them from --file
            assert optional == (default is not REQUIRED), name
        assert one.default == (None if default is REQUIRED else default), name
        if one.choices and one.default is not None:
            assert one.default in one.choices


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "rpc-server"])
def test_the_function_of_a_verb_is_public(verb):
    pytest.importorskip("tvm")
    function = module(verb).function()
    assert getattr(intformer, function.__name__) is function


@pytest.mark.parametrize("verb", VERBS)
def test_docstrings_name_every_parameter(verb):
    pytest.importorskip("tvm")
    function = module(verb).function()
    text = function.__doc__
    for name in inspect.signature(function).parameters:
        assert name in text, name
