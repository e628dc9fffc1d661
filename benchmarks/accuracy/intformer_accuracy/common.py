"""What the parts share: bounds, packages with models, library beside reference."""

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import intformer
from intformer.backends.targets import host_target
from intformer.errors import IntformerError
from intformer.ir.model import IntModel
from intformer.proof.results import first_difference
from intformer.proof.tensors import carried_tensors
from intformer.runtime import Library


@dataclass
class Bound:
    """A figure and what it must not fall below or rise above, if anything."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def ok(self) -> bool:
        """The figure is within both ends."""
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def __str__(self) -> str:
        """Return the figure beside its bound."""
        return f"{self.what}: {', '.join(filter(None, (f'{self.value:.6g}', self.goal)))}"

    @property
    def goal(self) -> str:
        """The bound in words."""
        least = "" if self.least is None else f"at least {self.least:g}"
        most = "" if self.most is None else f"at most {self.most:g}"
        return ", ".join(filter(None, (least, most)))

    def row(self) -> tuple[str, str, str]:
        """Return the figure as a row of a table."""
        return self.what, f"{self.value:.4g}", self.goal + ("" if self.ok else ": **missed**")


def package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise IntformerError(f"package {name} is not installed", hint="run it by `make accuracy`")
    return Path(spec.submodule_search_locations[0])


def table(data: Path, name: str) -> Path:
    """Return a data file; it must be there."""
    path = data / name
    if not path.is_file():
        raise IntformerError("no such data file", where=str(path), hint="see `make accuracy`")
    return path


def compiled(source, path: Path, **options) -> Library:
    """Compile for this CPU, saying what goes on. Options are import_model's."""
    say(f"reading {source}")
    model = intformer.import_model(source, **options)
    return intformer.compile(model, path, target=host_target(), progress=say)


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"   {text}", file=sys.stderr, flush=True)


def exact(library: Library, batches: Iterable[dict]) -> Bound:
    """Run library and NumPy reference on all batches, and count what is not bit-exact."""
    model = IntModel.from_json(library.graph(), carried_tensors(library), library.files())
    equal, differing = 0, 0
    for number, batch in enumerate(batches):
        finding, compared = first_difference(library, model, batch, model.run(batch))
        equal += compared
        if finding:
            differing += 1
            say(f"batch {number}: {finding.where}: {finding.what}")
    return Bound(f"batches that are not bit-exact ({equal} numbers equal)", differing, most=0)
