"""compile(): the phases from a checkpoint to a shared library, in order. Read this file first.

    imported   checkpoint -> IntModel                      frontend, quantize
    pruned     rows that nobody reads are not computed     passes.unread_rows
    proved     no integer overflows                        ir.ranges
    arranged   layouts, packed weights, Relax, fusion      passes.layout, packing, to_relax, fuse
    lowered    scheduled kernels and their plan, by chip   passes.lower, tuning.records
    checked    the kernels are integer-only                proof.tir_check
    generated  code of the kernels, by chip                backends
    linked     one shared library, and its check           link

Tuning and tests use the same phases.
"""

import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from intformer import knobs, scratch
from intformer.backends.backend import Backend, TargetSpec, Versions
from intformer.backends.object_cache import ObjectCache
from intformer.backends.targets import chips, get
from intformer.errors import CompileError
from intformer.ir import ranges
from intformer.ir.model import IntModel
from intformer.ir.plan import Plan, Variant
from intformer.link import build as library
from intformer.link import check as check_program
from intformer.link.static import StaticLibrary
from intformer.passes import packing
from intformer.runtime import Library, LibraryFile
from intformer.runtime.texts import read_texts

if TYPE_CHECKING:
    import tvm

    from intformer.passes.form import Form
    from intformer.passes.layout import Layout
    from intformer.passes.lower import Lowered

Tell = Callable[[str], None]
Dump = Callable[[str, Callable[[], str]], None]


def _nothing(*_) -> None:
    """Tell nobody, dump nothing."""


def compile(
    source: str | Path | IntModel,
    output: str | Path,
    *,
    target: str = "host",
    recipe: str | None = None,
    mode: str | None = None,
    head: str | None = None,
    calibrate: str | Path | Sequence | None = None,
    method: str | None = None,
    tokenizer: str | Path | None = None,
    name: str | None = None,
    header: bool = False,
    check: bool = False,
    musl: bool = False,
    static: bool = False,
    max_tokens: int | None = None,
    max_sequences: int | None = None,
    max_positions: int | None = None,
    dump_ir: str | Path | None = None,
    cache: bool = True,
    tuning_logs: str | Path = "packaged",
    progress: Callable[[str], None] | None = None,
) -> Library | StaticLibrary:
    """Compile a checkpoint (or an IntModel) to a shared library and open it.

    source     Hugging Face directory or ONNX file, read by frontend.import_model with the options
               recipe, mode, head, calibrate, method and tokenizer; or an IntModel, which takes none
               of them
    output     the .so to write; nothing is left there if compiling fails
    target     a key of TARGETS, or "host": the fastest that this machine runs
    name       C identifier of the library (default: from the file name)
    header     also write intformer.h, intformer.hpp and intformer_open.c beside the library
    check      also write NAME.check, a program that proves and times the library elsewhere
    musl       that program is for musl (Alpine Linux) in place of glibc; a library is for both
    static     write a static library in place of a shared one, for programs without threads, a heap
               or a C library: `output` is its .a, and NAME.h and NAME_example.c lie beside it
    max_tokens, max_sequences, max_positions
               what one run of a static library takes at most, for which its memory is laid out
               (default: one sequence of the greatest length, and a position for each sequence)
    dump_ir    directory for the module after every phase, one text file each
    cache      keep objects of kernels in INTFORMER_CACHE and take known ones from there
    tuning_logs
               folder that `intformer tune` wrote; "packaged": what comes with intformer; "none":
               default schedules
    progress   called with a line of text at every phase
    Raises CheckpointError, RangeError or CompileError.
    """
    spec, checker = get(target), _beside(Path(output), check, musl)
    limits = {"tokens": max_tokens, "sequences": max_sequences, "positions": max_positions}
    _check_form(spec, Path(output), static, {"--check": check, "--header": header}, limits)
    tell, dump = progress or _nothing, _dumper(Path(dump_ir) if dump_ir else None)
    about = {"recipe": recipe, "mode": mode, "head": head, "calibrate": calibrate}
    model = pruned(_imported(source, tell, **about, method=method, tokenizer=tokenizer))
    dump("0-model.json", lambda: json.dumps(model.to_json(), indent=1))
    tell("proving that no integer overflows")
    ranges.check(model)
    tell("choosing layouts, packing weights")
    program = arranged(model, spec.backend, dump=dump)
    with scratch.folder() as folder:
        job = _Job(program, Path(folder), tuning_logs, _object_cache(cache), tell, dump)
        if static:
            return job.static(spec, Path(output), name, limits)
        for chip in chips(spec):
            job.add(chip, mark=f".{chip.name}" if spec.variants else "")
        tell("linking")
        path = library.build(
            job.plan,
            job.variants,
            model,
            Path(output),
            target=spec.name,
            name=name,
            metadata=job.metadata(),
            header=header,
        )
        if checker:
            tell("computing what the library must give")
            _write_check(path, model, checker, calibrate, musl)
    return Library(path)  # not loaded: it may be for another machine


# -- the phases ------------------------------------------------------------------------------------


def _imported(source: str | Path | IntModel, tell: Tell, **about) -> IntModel:
    """Return a model, read from a file or directory unless it is one already."""
    if isinstance(source, IntModel):
        return source
    from intformer.frontend import import_model

    tell(f"reading {source}")
    return import_model(source, **about)


def pruned(model: IntModel) -> IntModel:
    """Return the model without the rows that nothing reads."""
    from intformer.passes.unread_rows import drop_unread_rows

    return drop_unread_rows(model)


@dataclass
class Program:
    """A model as fused Relax, before it is lowered for one chip of a family.

    constants  packed arrays by name
    """

    model: IntModel
    layout: "Layout"
    constants: dict
    module: "tvm.IRModule"


def arranged(
    model: IntModel, backend: Backend, layout: "Layout | None" = None, dump: Dump = _nothing
) -> Program:
    """Return the program of a model: layouts chosen, weights packed, chains of ops fused.

    layout  in place of the one that is chosen
    """
    from intformer.passes.fuse import fuse
    from intformer.passes.layout import plan_layout
    from intformer.passes.to_relax import to_relax

    layout = layout or plan_layout(model, backend.weight_packing, backend.zero_point)
    constants = {key: packing.pack(s, model.tensors) for key, s in layout.packing.items()}
    module = to_relax(model, layout, constants)
    dump("1-relax.py", module.script)
    module = fuse(module)
    dump("2-fused.py", module.script)
    return Program(model, layout, constants, module)


def lowered(
    program: Program,
    chip: TargetSpec,
    choose: "Callable[[Form], Versions]" = lambda form: [(None, {})],
) -> "Lowered":
    """Return scheduled kernels for a chip and the plan that calls them.

    choose  the versions of a kernel; by default the written-down rule
    """
    from intformer.passes.lower import lower

    return lower(program.module, program.model, program.layout, program.constants, chip, choose)


def check_integers(module: "tvm.IRModule", chip: TargetSpec) -> None:
    """Raise CompileError where a kernel does not hold integers alone."""
    from intformer.proof import tir_check

    for finding in tir_check.check(module, vector_shifts=chip.vector_shifts):
        raise CompileError(f"kernel is not integer-only: {finding}", where=f"target {chip.name}")


@dataclass
class _Job:
    """The kernels of one library, chip by chip.

    folder  for the files of code
    logs    tuning logs, see compile
    """

    program: Program
    folder: Path
    logs: str | Path
    cache: ObjectCache | None
    tell: Tell
    dump: Dump
    plan: Plan | None = None
    variants: list[Variant] = field(default_factory=list)
    tuning: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, chip: TargetSpec, mark: str) -> None:
        """Lower the program for a chip, check it and generate its code.

        mark  in the names of dumped files
        """
        done, scheduled = self._kernels(chip, mark, chip.name)
        self.plan = self.plan or done.plan
        if done.plan != self.plan:
            raise CompileError("plans of two variants differ", where=f"target {chip.name}")
        self.tell(f"generating code for {len(scheduled.functions)} kernels")
        listing = f"5-kernels{mark}.{chip.backend.listing_suffix}"
        self.dump(listing, lambda: chip.backend.listing(chip, scheduled))
        made = chip.backend.generate(chip, scheduled, self.folder, self.cache, self.tell)
        self.variants.append(replace(made, tir=compress(scheduled)))

    def static(
        self, chip: TargetSpec, path: Path, name: str | None, asked: dict[str, int | None]
    ) -> StaticLibrary:
        """Lower the program for a chip, check it and write it as a static library.

        asked  limits, see compile
        """
        from intformer.backends.cpu import plain
        from intformer.link import arena, static

        name = library.identifier(name or path.name.removeprefix("lib").split(".")[0])
        done, scheduled = self._kernels(chip, "", name)
        checked = library.limits(done.plan, self.program.model.meta)
        limits = arena.limits(done.plan, checked["max_rows"], checked["max_length"], **asked)
        self.tell(f"generating code for {len(scheduled.functions)} kernels")
        kernels = plain.generate(scheduled, chip, self.folder, self.tell)
        self.tell("linking")
        return static.build(done.plan, kernels, self.program.model, path, chip, name, limits)

    def _kernels(self, chip: TargetSpec, mark: str, name: str) -> "tuple[Lowered, tvm.IRModule]":
        """Return the lowered program, and its kernels as functions of a variant `name`, checked."""
        from intformer.tuning import records

        self.tell(f"lowering to integer kernels for {chip.name}")
        logs = records.read(self.logs, chip.name)
        choose = records.Choice(logs, chip)
        done = lowered(self.program, chip, choose)
        self.tuning[chip.name] = choose.report(done.forms)
        self.notes += logs.notes
        scheduled = chip.backend.named_for(name, done.scheduled)
        self.dump(f"3-tir{mark}.py", lambda: done.plain().script())
        self.dump(f"4-scheduled{mark}.py", scheduled.script)
        check_integers(scheduled, chip)
        return done, scheduled

    def metadata(self) -> dict:
        """Return what metadata.json says of the compilation."""
        warnings = self.program.model.meta.get("warnings", [])
        return {
            "kernels": len({step.kernel for step in self.plan.steps}),
            "steps": len(self.plan.steps),
            "tuning": self.tuning,
            "warnings": [*warnings, *dict.fromkeys(self.notes)],
        }


def _check_form(
    spec: TargetSpec, output: Path, static: bool, others: dict[str, bool], limits: dict
) -> None:
    """Raise CompileError where a target or an option does not go with the form of the library.

    others  options that a static library does not take: flag -> given
    limits  of a static library
    """
    if not static:
        for kind in (kind for kind, most in limits.items() if most is not None):
            raise CompileError("limits are for static libraries", where=f"--max-{kind}")
        if output.suffix == ".a":
            raise CompileError(
                "a shared library is not called .a", where=str(output), hint="add --static"
            )
        if not spec.backend.loads:
            raise CompileError(
                "such chips load no shared library", where=spec.name, hint="add --static"
            )
        return
    for flag in (flag for flag, given in others.items() if given):
        raise CompileError(
            f"{flag} goes with shared libraries, not with --static",
            where=str(output),
            hint="a static library always comes with its header and an example",
        )
    if output.suffix != ".a":
        raise CompileError(
            "a static library is called NAME.a", where=str(output), hint="-o libmodel.a"
        )
    if fault := spec.backend.static_fault(spec):
        raise CompileError(f"no static library for it: {fault}", where=f"target {spec.name}")


def _beside(output: Path, check: bool, musl: bool) -> Path | None:
    """Return the path of the check of a library; None: there is to be none."""
    if musl and not check:
        raise CompileError(
            "musl is for a check alone: libraries run on it as they are",
            where="--musl",
            hint="add --check",
        )
    if not check:
        return None
    program = output.with_suffix(".check")
    if program == output:
        raise CompileError(
            "the library has the name of its check", where=str(output), hint="call it NAME.so"
        )
    return program


def _write_check(
    path: Path,
    model: IntModel,
    program: Path,
    calibrate: str | Path | Sequence | None,
    musl: bool,
) -> None:
    """Write the check of a library; where that fails, remove both."""
    given = read_texts(calibrate) if isinstance(calibrate, str | Path) else calibrate or ()
    pairs = [(text,) if isinstance(text, str) else text for text in given]
    texts = [text for text in pairs if len(text) and all(isinstance(t, str) for t in text)]
    try:
        check_program.build(LibraryFile(path), model, program, texts, musl)
    except BaseException:
        path.unlink()
        raise


def _object_cache(wanted: bool) -> ObjectCache | None:
    """Return the cache of objects, where it is wanted and safe to use."""
    folder = knobs.cache() if wanted else None
    if not folder:
        return None
    cache = ObjectCache(folder / "objects")
    cache.check()
    return cache


def compress(module) -> bytes:
    """Return a module as a section tir/VARIANT.json.xz holds it."""
    import tvm

    return lzma.compress(tvm.ir.save_json(module).encode(), preset=1)


def _dumper(folder: Path | None) -> Callable[[str, Callable[[], str]], None]:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def dump(name: str, text: Callable[[], str]) -> None:
        if folder:
            (folder / name).write_text(text())

    return dump
