"""`intformer serve`: answers requests over HTTP."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option, amount, count_or_none, given, positive
from intformer.cli.text import Result

ABOUT = "serve libraries over HTTP, with the routes of text-embeddings-inference and OpenAI"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.serve import run_server

    return run_server


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "libraries": Option("compiled library", argument=True, repeat=True, metavar="library"),
        "host": Option("address to listen on; 0.0.0.0: all of this machine"),
        "port": Option("port to listen on", parse=positive),
        "threads": Option("threads of each library; 0: as many as allowed", parse=count_or_none),
        "api_key": Option(
            "file with the key that requests must bring (default: INTFORMER_API_KEY, or none)",
            metavar="FILE",
        ),
        "max_batch_tokens": Option("tokens of a run", parse=positive),
        "max_concurrent_requests": Option(
            "requests at a time; more get status 429", parse=positive
        ),
        "max_client_batch_size": Option("texts in a request", parse=positive),
        "max_body_bytes": Option("bytes of a request", parse=positive),
        "max_wait": Option("seconds until what is queued has run; 429 beyond", parse=amount),
        "timeout": Option("seconds a request may take", parse=amount),
        "auto_truncate": Option("cut texts that are too long, unless a request says otherwise"),
        "ray": Option("deploy on the Ray cluster that runs here, replacing what it serves"),
        "min_replicas": Option("processes on the cluster", parse=positive),
        "max_replicas": Option("processes while tokens wait", parse=positive),
        "target_queued_tokens": Option(
            "tokens that may wait for each process, before another one starts", parse=positive
        ),
    }


def run(args: argparse.Namespace) -> Result:
    """Serve until a signal comes, or deploy."""
    from intformer.serve import run_server

    address = run_server(**given(args, run_server))
    return {"ok": True, "address": address}, [f"deployed: {address}" if address else "stopped"]
