"""Which instructions an integer-only program may hold, in every instruction set.

What is in no list is refused: a new instruction is read about first, then added.
"""

import re
from collections.abc import Collection, Mapping


def words(text: str) -> frozenset[str]:
    """Split a block of names."""
    return frozenset(text.split())


def fault(name: str, allowed: Collection[str], denied: Mapping[str, re.Pattern]) -> str | None:
    """Return why a program may not hold an instruction, None where it may.

    denied  reason -> names; the first match gives the reason, and none means "unknown instruction"
    """
    if name in allowed:
        return None
    fitting = (reason for reason, pattern in denied.items() if pattern.fullmatch(name))
    return next(fitting, "unknown instruction")
