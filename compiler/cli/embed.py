"""`intformer embed`: a file of texts becomes a file of vectors."""

import argparse
from collections.abc import Callable
from dataclasses import asdict

from intformer.cli.options import Option, count_or_none, given, positive
from intformer.cli.text import Result

ABOUT = "embed every text of a file; resumes if interrupted"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.offline import embed

    return embed


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library of head sentence-embedding", argument=True),
        "input": Option("file of texts: .parquet, .csv, .tsv, .jsonl or .txt", metavar="FILE"),
        "output": Option("parquet file to write", ("-o", "--output"), metavar="FILE"),
        "column": Option("of the texts (default: sentence, text or the only one)", metavar="NAME"),
        "prompt_name": Option(
            "prompt of the model to put before each text", ("--prompt",), metavar="NAME"
        ),
        "batch_tokens": Option("tokens to compute at a time", parse=positive),
        "threads": Option("threads that compute; 0: as many as allowed", parse=count_or_none),
        "part_rows": Option("rows that are held in memory and kept at a time", parse=positive),
    }


def run(args: argparse.Namespace) -> Result:
    """Texts to vectors."""
    from intformer.offline import embed

    done = embed(**given(args, embed))
    before = f", {done.resumed} of them by an earlier run" if done.resumed else ""
    line = f"{args.output}: {done.rows} vectors of {done.channels} channels{before}"
    return asdict(done), [f"{line}, in {done.seconds:.1f} s"]
