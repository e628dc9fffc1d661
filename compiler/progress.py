"""Progress for anything that takes more than two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec

SILENT_SECONDS = 2.0


def progress(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """Yield the items; once two seconds have passed, show a bar on stderr if it is a terminal.

    total  number of items where len(items) does not say; without either the bar only moves

    Without rich, which the base install does not have, there is no bar.
    """
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    start, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - start > SILENT_SECONDS:
                bar = _bar()
                bar.start()
                task = bar.add_task(label, total=total)
            if bar is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _bar():
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)
