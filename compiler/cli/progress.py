"""Progress of a command on stderr."""

import sys
import time


class Progress:
    """Prints what starts now, with the seconds so far.

    always  also where stderr is not a terminal
    """

    def __init__(self, always: bool = False):
        """Start the clock."""
        self.start, self.always = time.monotonic(), always

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def __call__(self, what: str) -> None:
        """Print one line."""
        if self.always or sys.stderr.isatty():
            print(f"[{self.seconds:6.1f}s] {what}", file=sys.stderr, flush=True)
