"""The command `intformer`: parses, calls the public function of a verb, prints its result.

Each verb is a module with ABOUT, function() (where it has options of a function), options() and
run(args), which returns plain data and lines of text; --json prints the data. Modules that a verb
works with are imported once it is chosen.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import intformer
from intformer import knobs, scratch
from intformer.cli import options
from intformer.errors import IntformerError, missing_extra

VERBS = (
    *("compile", "train", "run", "eval", "analyze", "bench", "tune", "rpc-server", "verify"),
    *("embed", "serve", "package", "triton", "inspect", "targets", "ops", "config"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 success, 1 an error (on stderr), 2 wrong usage."""
    with scratch.ends_by_signal():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    as_json = "--json" in argv
    try:
        args = parser().parse_args(argv)
        as_json = args.json
        data, lines = args.verb(args)
        for line in [json.dumps(data, indent=2)] if as_json else lines:
            print(line)
        sys.stdout.flush()
        return 0 if not isinstance(data, dict) or data.get("ok", True) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 1
    except (IntformerError, ModuleNotFoundError, OSError, MemoryError) as error:
        fault = as_fault(error)
        if knobs.debug():
            traceback.print_exc()
        print(f"error: {fault}", file=sys.stderr)
        if as_json:
            about = {"what": fault.what, "where": fault.where, "hint": fault.hint}
            print(json.dumps({"ok": False, "error": about}, indent=2))
        return 1


def as_fault(error: Exception) -> IntformerError:
    """Return an error as what, where and hint; raise it again if it is a bug of ours."""
    if isinstance(error, IntformerError):
        return error
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return IntformerError(what.lower(), where=str(error.filename or ""))
    if isinstance(error, MemoryError):
        return IntformerError("not enough memory", hint="close other programs, or use less text")
    return missing_extra(error)


class VerbParser(argparse.ArgumentParser):
    """The parser of one verb. Its options are added when the verb is chosen."""

    module = None

    def parse_known_args(self, args=None, namespace=None):
        """Add the options, then parse."""
        if self.module is not None:
            verb, self.module = self.module, None
            function = verb.function() if hasattr(verb, "function") else None
            options.add(self, function, verb.options())
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="intformer", description="Compile transformer encoders to integer-only libraries."
    )
    top.add_argument("--version", action="version", version=f"intformer {intformer.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", parser_class=VerbParser)
    for name in VERBS:
        module = import_module(f"{__name__}.{name.replace('-', '_')}")
        sub = verbs.add_parser(name, help=module.ABOUT, description=module.ABOUT)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(verb=module.run)
        sub.module = module
    return top
