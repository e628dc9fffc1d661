"""Measured tables, each with what produced it: what `docs/results.md` shows.

A benchmark calls `write`, which leaves out/records/NAME.json; `make results` copies those to
docs/results/ and rewrites the tables of docs/results.md from them.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from intformer.backends.cpu.host import cpu_name

OUT = Path("out/records")


def write(name: str, command: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Path:
    """Write a table to OUT/NAME.json and return the path.

    command  that measures it again
    The commit is that of the working directory; it ends in -dirty where files were changed.
    """
    data = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
    return path


def made_with(command: str, variable: str, options: list[str]) -> str:
    """Return a make command with the options that a program was given by a variable of it."""
    return f'{command} {variable}="{" ".join(options)}"' if options else command


def commit() -> str:
    """Return what git calls this version; "unknown" outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return the CPU, and how many of them this process may use."""
    return f"{cpu_name()}, {len(os.sched_getaffinity(0))} CPUs"


def markdown(record: dict) -> str:
    """Return a record as Markdown: its origin, then its table."""
    origin = (
        f"`{record['command']}`, {record['machine']}, {record['date']}, commit {record['commit']}"
    )
    columns = record["columns"]
    lines = [columns, ["---"] * len(columns), *record["rows"]]
    return f"{origin}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
