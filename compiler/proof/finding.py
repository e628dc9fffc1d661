"""Finding: one fault that a check of a compiled library reports."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One fault.

    where  function and offset, tensor, or op
    what   the instruction, expression or numbers found there
    """

    where: str
    what: str
