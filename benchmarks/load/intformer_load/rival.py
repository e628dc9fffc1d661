"""The application of `intformer serve` around another runtime.

python benchmarks/load rival RUNTIME LIBRARY MODEL --port N --threads N [--auto-truncate]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from intformer.serve import Limits
from intformer.serve.app import application
from intformer_load.rivals import RUNTIMES, Rival, runtime


def main(argv: Sequence[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("library", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--auto-truncate", action="store_true")
    args = parser.parse_args(argv)
    rival = Rival(args.library, runtime(args.runtime, args.model, args.threads))
    limits = Limits(auto_truncate=args.auto_truncate)
    app = application({args.library.stem: rival}, limits)
    uvicorn.run(app, port=args.port, access_log=False, log_level="critical")
