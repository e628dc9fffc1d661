"""What `make fuzz` sets: how many cases, from which seed on."""

import os


def setting(name: str, usual: int) -> int:
    """Return the number in FUZZ_<name>; what `make test` does where there is none."""
    return int(os.environ.get(f"FUZZ_{name}") or usual)


SEED = setting("SEED", 0)


def is_line(text: str) -> bool:
    """Whether the text of an error is one line that a terminal shows as it is, and not long."""
    return len(text.splitlines()) == 1 and text.isprintable() and len(text) <= 1000
