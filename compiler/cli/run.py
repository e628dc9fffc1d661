"""`intformer run`: texts become answers."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, tee

from intformer.cli.options import Option, positive
from intformer.cli.text import Result
from intformer.errors import IntformerError

ABOUT = "answer texts given by --text, in a file or on stdin"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.runtime.edge import predict

    return predict


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library", argument=True),
        "texts": Option("text to answer; may be repeated", ("--text",), repeat=True, default=None),
        "pairs": Option("second text (document) of each --text", ("--pair",), repeat=True),
        "file": Option(
            "a text per line, or two separated by a tab; -: stdin", metavar="FILE", default="-"
        ),
        "batch_tokens": Option("tokens to compute at a time", parse=positive),
        "top_k": Option(
            "words to answer (default: 5 for each mask of a masked LM, all of a sparse embedding)",
            parse=positive,
            default=None,
        ),
        "prompt_name": Option(
            "prompt of the model to put before each text",
            ("--prompt",),
            metavar="NAME",
            default=None,
        ),
    }


def run(args: argparse.Namespace) -> Result:
    """Texts to answers, which are printed as they come; memory does not grow with the texts."""
    from intformer.progress import progress
    from intformer.runtime import load
    from intformer.runtime.edge import predict
    from intformer.runtime.edge.answers import plain

    with ExitStack() as files:
        texts, pairs, rows, total = _given(args, files)
        library = load(args.library)
        options = {}
        if args.top_k is not None:
            options["top_k"] = args.top_k
        if args.prompt_name is not None:
            options["prompt_name"] = args.prompt_name
        answers = predict(library, texts, pairs, batch_tokens=args.batch_tokens, **options)
        if not sys.stdout.isatty():  # where answers are seen, they are the progress
            answers = progress(answers, "answering", total)
        found = zip(rows, answers, strict=True)
        if args.json:
            return [{"texts": list(row), "answer": plain(answer)} for row, answer in found], []
        lines = (f"{shown(answer)}\t{' | '.join(row)}" for row, answer in found)
        return None, _closing(files.pop_all(), lines)


def _given(args: argparse.Namespace, files: ExitStack) -> tuple[Iterable, ...]:
    """Return texts, their pairs or None, rows of both, and how many where that is known.

    files  takes what must stay open until the texts are read
    """
    from intformer.runtime.texts import opened, texts_in

    if args.texts is not None:
        texts, pairs = args.texts, args.pairs
        rows = zip(texts, pairs, strict=True) if pairs else ((text,) for text in texts)
        return texts, pairs, rows, len(texts)
    lines, where, total = sys.stdin.buffer, "stdin", None
    if args.file != "-":
        lines, where = files.enter_context(opened(args.file)), args.file
        total = sum(1 for _ in lines)
        lines.seek(0)
    found = texts_in(lines, where)
    first = next(found, None)
    if first is None:
        raise IntformerError("no texts", where=args.file, hint="pass --text TEXT or lines of text")
    # each is read a few runs ahead of the answers, which `rows` waits for
    left, right, rows = tee(chain([first], found), 3)
    pairs = (row[1] for row in right) if len(first) == 2 else None
    if pairs is None:
        del right  # or it would keep every row
    return (row[0] for row in left), pairs, rows, total


def _closing(files: ExitStack, lines: Iterator[str]) -> Iterator[str]:
    with files:
        yield from lines


def shown(answer: object) -> str:
    """Return an answer in a few words."""
    if hasattr(answer, "tolist"):
        flat = answer.reshape(-1)
        more = ", ..." if flat.size > 4 else ""
        return f"[{', '.join(f'{x:+.4f}' for x in flat[:4])}{more}] {list(answer.shape)}"
    if isinstance(answer, dict):
        return f"{answer.get('label', answer.get('answer'))} {answer['score']:.4f}"
    parts = [part[0] if isinstance(part, list) else part for part in answer]
    return " ".join(
        f"{p['token']}/{p['label']}" if "label" in p else f"{p['token']} {p['score']:.4f}"
        for p in parts
    )
