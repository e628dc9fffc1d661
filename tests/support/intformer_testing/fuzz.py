"""What damages files and reads them: how many cases from which seed on, as `make fuzz` sets them,
and how reading one may end.
"""

import os
import signal
from collections.abc import Callable

from intformer.errors import IntformerError

BLOCKS = 20  # of the cases of a test


def setting(name: str, usual: int) -> int:
    """Return the number in FUZZ_<name>; what `make test` does where there is none."""
    return int(os.environ.get(f"FUZZ_{name}") or usual)


SEED = setting("SEED", 0)


def fault(read: Callable[[], object], seconds: int) -> str | None:
    """Read; return what was wrong with how that ended.

    None: within the seconds it was done, or refused in one line that is not long and that a
    terminal shows as it is.
    """
    before = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(seconds)
    try:
        read()
    except IntformerError as error:
        text = str(error)
        if len(text.splitlines()) != 1 or not text.isprintable() or len(text) > 1000:
            return f"not one short line: {text!r}"
    except BaseException as error:  # panics of Rust are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _too_slow(*_) -> None:
    raise TimeoutError("too slow")


def faults(case: Callable[[int], str | None], block: int, count: int) -> list[str]:
    """Return what went wrong with the cases of one of BLOCKS: case(seed) says it, or None."""
    size = count // BLOCKS
    first = SEED + block * size
    return [f"seed {n}, {said}" for n in range(first, first + size) if (said := case(n))]
