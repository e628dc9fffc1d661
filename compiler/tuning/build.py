"""Candidate -> loadable kernel, in processes that may be killed."""

import subprocess
from pathlib import Path

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult, PyBuilder
from tvm.support.popen_pool import PopenPoolExecutor

from intformer.backends import targets
from intformer.backends.backend import TargetSpec
from intformer.backends.cpu import codegen
from intformer.backends.object_cache import ObjectCache
from intformer.link import build as library
from intformer.passes.form import Decisions, Form
from intformer.tuning.measure import TIMED_OUT
from intformer.tuning.workload import decided, identity, meant

SYMBOL = "kernel"


def build(form: str, target: str, decisions: Decisions, objects: str) -> str:
    """Compile one kernel and return the path of its shared library.

    form     canonical JSON
    objects  folder of what was compiled before and of the result
    """
    spec = targets.get(target)
    return link(scheduled(form, spec, decisions), spec, Path(objects))


def scheduled(form: str, spec: TargetSpec, decisions: Decisions) -> tvm.tirx.PrimFunc:
    """Return one kernel as a scheduled function called SYMBOL."""
    versions = [(None, decisions)]
    made = Form(form).scheduled(spec, versions)
    functions, _ = spec.backend.functions(SYMBOL, versions, made)
    return functions[SYMBOL]


def link(
    func: tvm.tirx.PrimFunc,
    spec: TargetSpec,
    folder: Path,
    command: list[str] | None = None,
    suffix: str = ".so",
) -> str:
    """Compile a scheduled function called SYMBOL into a library of its own, or into a program.

    command  compiler, flags and sources of a program, and the suffix of its path
    """
    path = folder / f"{codegen.key(func, spec)}{suffix}"
    command = command or [*library.compiler(spec.backend), "-shared"]
    if not path.exists():
        kept = ObjectCache(folder)
        part = folder / f"{path.stem}.parts"
        part.mkdir(parents=True, exist_ok=True)
        (made,) = codegen.generate(tvm.IRModule({SYMBOL: func}), spec, part, kept)
        new = part / "linked"
        subprocess.run([*command, "-o", new, made], check=True)
        new.replace(path)
        made.unlink()
    return str(path)


@derived_object
class Builder(PyBuilder):
    """Builds the candidates of MetaSchedule tasks.

    target  name of the target
    folder  where objects and libraries are kept
    jobs    processes
    timeout seconds for one candidate
    build   (form JSON, target, decisions, folder) -> path of the library
    An artifact is "LIBRARY#ID" with the ID of the task's inputs (workload.identity).
    """

    def __init__(self, target: str, folder: Path, jobs: int, timeout: float, build=build):
        """Start no process yet."""
        super().__init__()
        self.target, self.folder, self.timeout, self.make = target, folder, timeout, build
        self.pool = PopenPoolExecutor(max_workers=jobs, timeout=timeout)

    def build(self, build_inputs: list[BuilderInput]) -> list[BuilderResult]:
        """Build a batch; what fails or takes too long becomes an error message."""
        return [
            BuilderResult(path, error)
            for path, error in self.libraries(
                [
                    (*meant(given.mod), decided(tvm.s_tir.Schedule(given.mod)))
                    for given in build_inputs
                ]
            )
        ]

    def libraries(self, wanted: list[tuple[Form, int, Decisions]]):
        """Return (artifact, None) or (None, error) for each (form, rows, decisions)."""
        futures = [
            self.pool.submit(self.make, form.text, self.target, decisions, str(self.folder))
            for form, _, decisions in wanted
        ]
        return [
            self._outcome(future, identity(form, rows))
            for future, (form, rows, _) in zip(futures, wanted, strict=True)
        ]

    def _outcome(self, future, case: str):
        try:
            return f"{future.result()}#{case}", None
        except TimeoutError:
            return None, f"{TIMED_OUT}: not built within {self.timeout:g} s"
        except Exception as error:  # whatever TVM or LLVM raise is the candidate's failure
            return None, f"not built: {last_line(error)}"


def last_line(error: Exception) -> str:
    """Return the end of a message, where TVM says what is wrong."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
