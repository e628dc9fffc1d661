"""What a proof reports: checks, each with what it found."""

from dataclasses import dataclass, field

from intformer.proof.finding import Finding

WITHOUT_SOURCE = (
    "shown: the file agrees with itself. Not shown: which checkpoint it was made from, or by "
    "whom - --source SRC compares the checkpoint and its tokenizer"
)
WITH_SOURCE = (
    "shown: the file agrees with itself, and with the checkpoint and tokenizer given. Not shown: "
    "how its code behaves on inputs that were not run"
)


@dataclass
class Check:
    """One part of the proof.

    name      what was checked
    detail    how much: counts, lengths
    findings  what is wrong; empty is good
    ran       False: nothing was checked, and `detail` or the findings say why
    """

    name: str
    detail: str
    findings: list[Finding] = field(default_factory=list)
    ran: bool = True

    @property
    def ok(self) -> bool:
        """Nothing found."""
        return not self.findings


@dataclass
class Report:
    """All parts of the proof, in the order they ran.

    library  the file
    source   the checkpoint was imported again and compared
    """

    library: str
    checks: list[Check] = field(default_factory=list)
    source: bool = False

    @property
    def ok(self) -> bool:
        """Every check passed."""
        return all(check.ok for check in self.checks)

    @property
    def scope(self) -> str:
        """What a passed proof shows, and what it does not, in a sentence."""
        return WITH_SOURCE if self.source else WITHOUT_SOURCE

    def to_json(self) -> dict:
        """Return the report as plain data."""
        return {
            "library": self.library,
            "ok": self.ok,
            "source": self.source,
            "scope": self.scope,
            "checks": [
                {
                    "name": check.name,
                    "ok": check.ok,
                    "ran": check.ran,
                    "detail": check.detail,
                    "findings": [finding._asdict() for finding in check.findings],
                }
                for check in self.checks
            ],
        }
