"""verify: proves from the library file alone that it is integer-only and computes its IntModel.

First the file is read, and nothing of it runs:
  loading          loading it maps it and does nothing else: no code runs, no other library comes
  C table          limits, buffers, steps and CPU features that the code works by are those of its
                   JSON, and what answers are made with is the model's
  tensor programs  no float, no division by a variable, no shift LLVM turns into float
  machine code     every instruction is on the written list of integer work, and the CPU features
                   each variant uses are the ones it asks for; of a library for a device also the
                   code that it carries as data, which must fit the chip
  tensors          the packed constants, unpacked, have the SHA-256 recorded before packing
Then, where nothing was found, it is loaded and run:
  results          every observed value equals the NumPy reference, bit for bit, in each variant
                   that this CPU runs
  defaults         the same with types and positions left to the library, on 1 thread and on several
And with the checkpoint at hand:
  source           importing it again gives the same program, integers, meaning and tokenizer
docs/security.md says what this proves, and what it does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from intformer.backends import targets
from intformer.errors import IntformerError, require
from intformer.ir.model import IntModel
from intformer.proof.code import check_machine_code
from intformer.proof.finding import Finding
from intformer.proof.inputs import random_batches, real_batches
from intformer.proof.loading import check_loading
from intformer.proof.programs import check_programs
from intformer.proof.report import Check, Report
from intformer.proof.results import check_defaults, check_results
from intformer.proof.source import check_source
from intformer.proof.table import check_table
from intformer.proof.tensors import carried_tensors, check_tensors
from intformer.proof.via import Via
from intformer.runtime import Library, LibraryFile
from intformer.runtime.texts import read_texts

NOT_ASKED = "not run, as asked"  # of a check without findings that did not run
NOT_SOUND = "not run: the library is not loaded, because a check of the file failed"
STATIC = (
    ("loading", check_loading),
    ("C table", check_table),
    ("tensor programs", check_programs),
    ("machine code", check_machine_code),
)


def verify(
    library: LibraryFile | str | Path,
    source: str | Path | None = None,
    *,
    calibrate: str | Path | Sequence | None = None,
    tokenizer: str | Path | None = None,
    texts: str | Path | Sequence[tuple[str, ...]] = (),
    limit: int = 64,
    batches: Sequence[dict[str, np.ndarray]] | None = None,
    cases: int = 2,
    seed: int = 0,
    run: bool = True,
    via: str | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Check a compiled library; nothing but the file is needed.

    library    a file, or what load() returned
    source     the checkpoint it was made from: import again and compare integers and files
    calibrate  the calibration text of that import
    tokenizer  the tokenizer.json of that import, where it is not the checkpoint's
    texts      real inputs to run as well: (sentence,) or (sentence1, sentence2) each, or a file
    limit      texts to run, from the front
    batches    inputs to run in place of random ones
    cases      random batches
    seed       of the random batches
    run        False: read the file alone, and say so; nothing is computed
    via        command that runs programs of the library's machine here, such as
               "qemu-aarch64 -cpu max": the library is run by it; None: by this process
    progress   called with the name of each check when it starts
    Raises LibraryError for a file that is no intformer library.
    """
    require("tvm")
    library = opened(library, via, run)
    require(*targets.of_machine(library.image.machine, str(library.path)).packages)
    texts = (read_texts(texts) if isinstance(texts, str | Path) else texts)[:limit]
    report = Report(str(library.path), source=source is not None)

    def add(name: str, check: Callable[[], Check], how: str = "") -> None:
        progress(name)
        report.checks.append(check())
        report.checks[-1].detail += how

    for name, check in STATIC:
        add(name, lambda name=name, check=check: guarded(name, check, library))
    model = read_model(library, report)
    if model:
        add("tensors", lambda: check_tensors(library, model.tensors))
    if not model or not report.ok or not run:
        why = NOT_ASKED if report.ok else NOT_SOUND
        report.checks += [Check(name, why, ran=False) for name in ("results", "defaults")]
    else:
        kind = "random" if batches is None else "given"
        batches = random_batches(model.meta, cases, seed) if batches is None else list(batches)
        how = f", via {via}" if via else ""
        add("results", lambda: check_results(library, model, batches, kind), how)
        add("defaults", lambda: check_defaults(library, model, seed), how)
        if texts:
            real = real_batches(library, texts)
            add("results", lambda: check_results(library, model, real, "real"), how)
    if source is not None and model:
        # what answers are made with is metadata.json, which holds the model's meta
        shipped = replace(model, meta=library.metadata)
        add("source", lambda: check_source(shipped, source, calibrate, tokenizer))
    return report


def opened(library: LibraryFile | str | Path, via: str | None, run: bool) -> LibraryFile:
    """Return the library as `verify` runs it."""
    if via is None:
        return library if isinstance(library, LibraryFile) else Library(library)
    if not run:
        raise IntformerError("--via runs the library, --no-run does not", hint="give one of them")
    return Via(library.path if isinstance(library, LibraryFile) else library, via)


def guarded(name: str, check: Callable[[LibraryFile], Check], library: LibraryFile) -> Check:
    """Return a check of the file; what it cannot read, in a file that may lie, is a finding."""
    try:
        return check(library)
    except IntformerError as error:
        return Check(name, "cannot be read", [Finding("file", error.what)])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return Check(name, "cannot be read", [Finding("file", f"{type(error).__name__}: {error}")])


def read_model(library: LibraryFile, report: Report) -> IntModel | None:
    """Return the model with the tensors in the library; None, and a finding, if it cannot."""
    try:
        return IntModel.from_json(library.graph(), carried_tensors(library), library.files())
    except (IntformerError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        finding = Finding("packing.json", f"cannot be unpacked: {error}")
        report.checks.append(Check("tensors", "cannot be read", [finding]))
        return None
