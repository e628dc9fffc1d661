"""compile(): the phases from a checkpoint to a shared library, in order. Read this file first."""

import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

from intformer import knobs, scratch
from intformer.backends.object_cache import ObjectCache
from intformer.backends.targets import TargetSpec, chips, get, weight_packing
from intformer.errors import CompileError
from intformer.ir import ranges
from intformer.ir.model import IntModel
from intformer.ir.plan import Plan, Variant, symbol
from intformer.link import build as library
from intformer.passes import packing
from intformer.runtime import Library


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
    dump_ir: str | Path | None = None,
    cache: bool = True,
    tuning_logs: str | Path = "packaged",
    progress: Callable[[str], None] | None = None,
) -> Library:
    """Compile a checkpoint (or an IntModel) to a shared library and open it.

    source     Hugging Face directory, read by frontend.import_model with the options recipe, mode,
               head, calibrate, method and tokenizer; or an IntModel, which takes none of them
    output     the .so to write; nothing is left there if compiling fails
    target     a key of TARGETS, or "host": the fastest that this machine runs
    name       C identifier of the library (default: from the file name)
    header     also write intformer.h and intformer_open.c beside the library
    dump_ir    directory for the module after every phase, one text file each
    cache      keep objects of kernels in INTFORMER_CACHE and take known ones from there
    tuning_logs
               folder that `intformer tune` wrote; "packaged": what comes with intformer; "none":
               default schedules
    progress   called with a line of text at every phase
    Raises CheckpointError, RangeError or CompileError.
    """
    spec = get(target)
    tell = progress or (lambda line: None)
    dump = _dumper(Path(dump_ir) if dump_ir else None)
    if isinstance(source, IntModel):
        model = source
    else:
        from intformer.frontend import import_model

        tell(f"reading {source}")
        model = import_model(
            source,
            recipe=recipe,
            mode=mode,
            head=head,
            calibrate=calibrate,
            method=method,
            tokenizer=tokenizer,
        )
    from intformer.passes.unread_rows import drop_unread_rows

    model = drop_unread_rows(model)
    dump("0-model.json", lambda: json.dumps(model.to_json(), indent=1))

    tell("proving that no integer overflows")
    ranges.check(model)

    from intformer.backends.cpu import codegen
    from intformer.backends.cuda import codegen as cuda_code
    from intformer.passes.fuse import fuse
    from intformer.passes.layout import plan_layout
    from intformer.passes.lower import lower
    from intformer.passes.to_relax import to_relax
    from intformer.tuning import records

    tell("choosing layouts, packing weights")
    layout = plan_layout(model, weight_packing(spec))
    constants = {key: packing.pack(s, model.tensors) for key, s in layout.packing.items()}
    module = to_relax(model, layout, constants)
    dump("1-relax.py", module.script)
    module = fuse(module)
    dump("2-fused.py", module.script)

    kept = knobs.cache() if cache else None
    known = ObjectCache(kept / "objects") if kept else None
    if known:
        known.check()
    with scratch.folder() as folder:
        variants: list[Variant] = []
        plan: Plan | None = None
        tuning: dict[str, dict] = {}
        notes: list[str] = []
        for chip in chips(spec):
            tell(f"lowering to integer kernels for {chip.name}")
            mark = f".{chip.name}" if spec.variants else ""
            logs = records.read(tuning_logs, chip.name)
            choose = records.Choice(logs, chip)
            lowered = lower(module, model, layout, constants, chip.isa(), chip.schedule(), choose)
            tuning[chip.name] = choose.report(lowered.forms)
            notes += logs.notes
            scheduled, its_plan = lowered.scheduled, lowered.plan
            if not chip.arch:
                scheduled = _named_for(chip.name, scheduled)
            dump(f"3-tir{mark}.py", lowered.plain.script)
            dump(f"4-scheduled{mark}.py", scheduled.script)
            _check_integers(scheduled, chip)
            plan = plan or its_plan
            if its_plan != plan:
                raise CompileError("plans of two variants differ", where=f"target {chip.name}")
            tell(f"generating code for {len(scheduled.functions)} kernels")
            tir = compress(scheduled)
            if chip.arch:
                code = cuda_code.generate(scheduled, chip.arch, known)
                dump(f"5-kernels{mark}.cu", lambda code=code: code.source)
                variants.append(Variant(chip.name, tir=tir, arch=chip.arch, gpu=code))
                continue
            dump(f"5-kernels{mark}.s", lambda m=scheduled, t=chip.tvm: codegen.assembly(m, t))
            objects = codegen.generate(scheduled, chip.tvm, Path(folder), known, tell)
            variants.append(Variant(chip.name, objects, chip.features, tir))
        tell("linking")
        path = library.build(
            plan,
            variants,
            model,
            Path(output),
            target=spec.name,
            name=name,
            metadata={
                "kernels": len({s.kernel for s in plan.steps}),
                "steps": len(plan.steps),
                "tuning": tuning,
                "warnings": [*model.meta.get("warnings", []), *dict.fromkeys(notes)],
            },
            header=header,
        )
    return Library(path)  # not loaded: it may be for another machine


def _named_for(variant: str, module):
    """Return the kernels under the names that they have in a library with several variants."""
    import tvm

    functions = {symbol(var.name_hint, variant): f for var, f in module.functions.items()}
    return tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})


def compress(module) -> bytes:
    """Return a module as a section tir/VARIANT.json.xz holds it."""
    import tvm

    return lzma.compress(tvm.ir.save_json(module).encode(), preset=1)


def _check_integers(module, spec: TargetSpec) -> None:
    from intformer.proof import tir_check

    for finding in tir_check.check(module, vector_shifts=spec.vector_shifts):
        raise CompileError(f"kernel is not integer-only: {finding}", where=f"target {spec.name}")


def _dumper(folder: Path | None) -> Callable[[str, Callable[[], str]], None]:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def dump(name: str, text: Callable[[], str]) -> None:
        if folder:
            (folder / name).write_text(text())

    return dump
