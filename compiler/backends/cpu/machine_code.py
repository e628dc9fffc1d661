"""What reading machine code finds, in every instruction set."""

from collections import Counter
from dataclasses import dataclass, field

from intformer.proof.finding import Finding


@dataclass
class MachineCode:
    """What the code of a library holds.

    instructions  how many were decoded
    mnemonics     how often each occurs
    functions     in the order of their addresses: name, and the CPU features its code uses, as the
                  reader names them
    findings      instructions and imports that are not integer work
    """

    instructions: int = 0
    mnemonics: Counter = field(default_factory=Counter)
    functions: list[tuple[str, set[str]]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def features(self) -> set[str]:
        """CPU features of all code."""
        return set().union(*(features for _, features in self.functions))
