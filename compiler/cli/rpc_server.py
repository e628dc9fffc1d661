"""`intformer rpc-server`: measuring for other machines."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from intformer.cli.options import Option, given, positive

ABOUT = "offer this machine and its GPU to `intformer tune --rpc`"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.tuning.remote import serve

    return serve


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "tracker": Option("TVM RPC tracker to register with", metavar="HOST:PORT"),
        "key": Option("name that machines of this kind are requested by"),
        "host": Option("address to listen on"),
        "port": Option("first port to try", parse=positive),
    }


def run(args: argparse.Namespace) -> NoReturn:
    """Serve until interrupted."""
    serve = function()
    serve(**given(args, serve), say=partial(print, file=sys.stderr, flush=True))
