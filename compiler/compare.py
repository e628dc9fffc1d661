"""verify: proves from the library file alone that it is integer-only and computes its IntModel.

Five checks, and a sixth with the source at hand:
  tensor programs  no float, no division by a variable, no shift LLVM turns into float
  machine code     every instruction is on the written list of integer work, and the CPU features
                   each variant uses are the ones it asks for; of a library for GPUs also PTX and
                   SASS, which must use tensor cores and fit the chip
  tensors          the packed constants, unpacked, have the SHA-256 recorded before packing
  results          every observed value equals the NumPy reference, bit for bit, in each variant
                   that this CPU runs
  defaults         the same with types and positions left to the library, on 1 thread and on several
  source           importing the checkpoint again gives the same program, integers and meaning
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from intformer import machine_code, tir_check
from intformer.cuda import code_check
from intformer.edge import Edge
from intformer.finding import Finding
from intformer.model import IntModel
from intformer.packing import pack, unpack
from intformer.plan import BLOCK, symbol
from intformer.runtime import Library, load

LENGTHS = (1, 2, 3, 5)  # every random batch starts with these, and ends with the longest
DEFAULTED = ("token_type_ids", "position_ids")  # inputs that a library can make itself
REAL_BATCH = 16  # texts in one batch of real inputs
UNOBSERVED = 3  # runs without an observer: a GPU launches a graph from the second on
RANDOM_LENGTH = 64  # other random sequences are up to this long
MEANING = (  # the meta that decides what goes in and what integers out mean
    *("family", "recipe", "mode", "head", "labels", "problem_type", "pooling", "output_scale"),
    *("vocab_size", "type_vocab_size", "pad_token_id", "position_rule", "max_length"),
    "truncate_length",
)
NOT_ASKED = "not run, as asked"  # of a check without findings that did not run
# CPUID features, as iced-x86 names them, that every x86-64 CPU has
BASELINE = {
    *(
        "INTEL8086",
        "INTEL8086_ONLY",
        "INTEL186",
        "INTEL286",
        "INTEL386",
        "INTEL486",
        "X64",
        "CPUID",
    ),
    *("CMOV", "CX8", "MMX", "FXSR", "SSE", "SSE2", "MULTIBYTENOP", "SYSCALL", "TSC", "CET_IBT"),
    *("PAUSE", "XSAVE"),  # hints and what the CPU check itself reads
}


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
    """All parts of the proof, in the order they ran."""

    library: str
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every check passed."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict:
        """Return the report as plain data."""
        return {
            "library": self.library,
            "ok": self.ok,
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


def verify(
    library: Library | str | Path,
    source: str | Path | None = None,
    *,
    calibrate: str | Path | Sequence | None = None,
    texts: Sequence[tuple[str, ...]] = (),
    batches: Sequence[dict[str, np.ndarray]] | None = None,
    cases: int = 2,
    seed: int = 0,
    run: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Check a compiled library; nothing but the file is needed.

    source     the checkpoint it was made from: import again and compare the integers
    calibrate  the calibration text of that import
    texts      real inputs to run as well: (sentence,) or (sentence1, sentence2) each
    batches    inputs to run in place of random ones
    cases      random batches
    run        False: read the file alone, and say so; nothing is computed
    progress   called with the name of each check when it starts
    """
    if not isinstance(library, Library):
        library = load(library, run=False)
    report = Report(str(library.path))

    def add(name: str, check: Callable[[], Check]) -> None:
        progress(name)
        report.checks.append(check())

    add("tensor programs", lambda: check_programs(library))
    add("machine code", lambda: check_machine_code(library))
    tensors = carried_tensors(library)
    add("tensors", lambda: check_tensors(library, tensors))
    model = IntModel.from_json(library.graph(), tensors, library.files())
    kind = "random" if batches is None else "given"
    batches = random_batches(model.meta, cases, seed) if batches is None else list(batches)
    if run:
        add("results", lambda: check_results(library, model, batches, kind))
        add("defaults", lambda: check_defaults(library, model, seed))
    else:
        report.checks += [Check(name, NOT_ASKED, ran=False) for name in ("results", "defaults")]
    if run and texts:
        real = real_batches(library, texts)
        add("results", lambda: check_results(library, model, real, "real"))
    if source is not None:
        # what answers are made with is metadata.json, which holds the model's meta
        shipped = replace(model, meta=library.metadata)
        add("source", lambda: check_source(shipped, source, calibrate))
    return report


def check_programs(library: Library) -> Check:
    """Read the TIR that the library carries, which must be of the kernels it runs.

    That the machine code comes from this TIR is not shown here: check_machine_code reads the code.
    """
    kernels = {step["kernel"] for step in library.plan["steps"]}
    arches = gpu_arches(library)
    findings, functions = [], 0
    for variant, features in library.variants.items():
        section = f"tir/{variant}.json.xz"
        try:
            module = tir_check.load(library.section(section))
        except Exception as error:  # lzma, UTF-8, JSON and TVM each have their own
            fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
            findings.append(Finding(section, f"cannot be read: {fault}"))
            continue
        functions += len(module.functions)
        if variant in arches:
            run = {v["function"] for vs in library.plan["launches"].values() for v in vs}
        else:
            run = {symbol(kernel, variant) for kernel in kernels}
        findings += misnamed(module, run)
        shifts = variant in arches or "avx2" in features
        findings += tir_check.check(module, vector_shifts=shifts)
    return Check("tensor programs", f"{functions} functions", findings)


def gpu_arches(library: Library) -> dict[str, str]:
    """Return the chip generation ("sm_75") of each variant that is for GPUs."""
    variants = library.metadata["variants"]
    return {v["name"]: v["arch"] for v in variants if v.get("arch")}


def misnamed(module, kernels: set[str]) -> list[Finding]:
    """Return what a module has beside one PrimFunc of its own name for each kernel, or lacks."""
    found = tir_check.programs(module)
    findings = [Finding(name, "is run, but has no tensor program") for name in kernels - found]
    findings += [Finding(name, "is no kernel that the library runs") for name in found - kernels]
    return sorted(findings)


def check_machine_code(library: Library) -> Check:
    """Read every instruction of the library, and whose it is.

    The runtime comes first; the code of a variant starts with a function of that variant's name.
    Kernels for GPUs are data of the library: PTX and a cubin for each such variant.
    """
    code = machine_code.check(library.path)
    asked = {
        variant: {spelling(name) for name in (*BASELINE, *features)}
        for variant, features in {"": (), **library.variants}.items()
    }
    marks = {symbol("", variant): variant for variant in library.variants}
    here, unasked = "", {}
    for function, features in code.functions:
        here = next((v for mark, v in marks.items() if mark in function), here)
        for name in sorted(features):
            if spelling(name) not in asked[here]:
                unasked.setdefault((here, name), function)
    findings = code.findings + [
        Finding(
            function,
            f"code uses {name}, which variant {variant} does not ask for"
            if variant
            else f"code outside the kernels uses {name}",
        )
        for (variant, name), function in unasked.items()
    ]
    detail = f"{code.instructions} instructions, {len(code.mnemonics)} kinds"
    for variant, arch in gpu_arches(library).items():
        where = f"cuda/{variant}"
        cubin, ptx = (library.section(f"{where}.{kind}") for kind in ("cubin", "ptx"))
        read, wrong = code_check.check(cubin, ptx, arch, library.plan["launches"], where)
        detail += f"; {read}"
        findings += wrong
    return Check("machine code", detail, findings)


def spelling(feature: str) -> str:
    """Return a CPU feature's name without what LLVM and iced-x86 spell differently."""
    name = re.sub(r"[._-]", "", feature.lower())
    return "bmi" if name == "bmi1" else name


def carried_tensors(library: Library) -> dict[str, np.ndarray]:
    """Return the IntModel's tensors, unpacked from the constants in the library."""
    specs = {name: about["packing"] for name, about in library.packing.items()}
    return unpack(specs, {name: library.tensor(name) for name in specs})


def check_tensors(library: Library, tensors: dict[str, np.ndarray]) -> Check:
    """Hash every integer tensor and compare with what was recorded before packing.

    Packing them again must give every constant: a tensor may be there twice, and padding counts.
    """
    recorded = library.json("tensors.json")
    findings = []
    for name, about in recorded.items():
        if name not in tensors:
            findings.append(Finding(name, "is not in the library"))
            continue
        found = hashlib.sha256(np.ascontiguousarray(tensors[name]).tobytes()).hexdigest()
        if found != about["sha256"]:
            findings.append(
                Finding(name, f"SHA-256 {found[:16]}..., recorded {about['sha256'][:16]}...")
            )
    for name, about in library.packing.items():
        if not np.array_equal(pack(about["packing"], tensors), library.tensor(name)):
            findings.append(Finding(name, "is not what packing its tensor gives"))
    return Check("tensors", f"{len(recorded)} tensors, {len(library.packing)} constants", findings)


def check_results(library: Library, model: IntModel, batches: list[dict], kind: str) -> Check:
    """Run every variant and the reference on the same batches; name the first difference."""
    refusals = library.refusals()
    runs = [variant for variant, why in refusals.items() if not why]
    before, values, wrong = library.variant, 0, {}
    try:
        for batch in batches:
            reference = model.run(batch)
            for variant in runs:
                if variant in wrong:
                    continue
                library.set_variant(variant)
                finding, compared = first_difference(library, model, batch, reference)
                values += compared
                if finding:
                    wrong[variant] = finding
    finally:
        if before:
            library.set_variant(before)
    findings = [
        finding if len(refusals) == 1 else finding._replace(where=f"{finding.where}, {variant}")
        for variant, finding in wrong.items()
    ]
    if not runs:
        return not_run("results", refusals)
    tokens = sum(len(batch["input_ids"]) for batch in batches)
    sequences = sum(len(batch["cu_seqlens"]) - 1 for batch in batches)
    detail = f"{kind}: {sequences} sequences, {tokens} tokens, {values} numbers equal"
    if len(refusals) > 1:
        detail += f", variants {' '.join(runs)}"
        detail += "".join(f"; {v} not run: {why}" for v, why in refusals.items() if why)
    return Check("results", detail, findings)


def not_run(name: str, refusals: dict[str, str]) -> Check:
    """Return the check of a library that this machine cannot run: it proves nothing."""
    findings = [Finding(variant, why) for variant, why in refusals.items()]
    return Check(name, "not run: no variant runs on this machine", findings, ran=False)


def check_defaults(library: Library, model: IntModel, seed: int) -> Check:
    """Leave types and positions to the library, on one thread and on several.

    The reference gets what they should be: type 0, and positions counted from the first.
    """
    if library.variant is None:
        return not_run("defaults", library.refusals())
    meta, before = model.meta, library.threads
    lengths = [n for n in (*LENGTHS, 4 * BLOCK) if n <= meta["max_length"]]
    batch = random_batch(meta, lengths, np.random.default_rng(seed))
    batch["token_type_ids"] = np.zeros_like(batch["token_type_ids"])
    reference = model.run(batch)
    counts, findings, values = (1, max(2, before)), [], 0
    try:
        for threads in counts:
            library.set_threads(threads)
            finding, compared = first_difference(library, model, batch, reference, DEFAULTED)
            values += compared
            if finding:
                where = f"{finding.where}, threads: {threads}"
                findings.append(finding._replace(where=where))
    finally:
        library.set_threads(before)
    each = " and ".join(map(str, counts))
    detail = f"default types and positions, {each} threads, {values} numbers equal"
    return Check("defaults", detail, findings)


def first_difference(
    library: Library,
    model: IntModel,
    batch: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    left_out: Container[str] = (),
) -> tuple[Finding | None, int]:
    """Compare every value the library shows with the reference, in the model's own order.

    reference  what the model's `run` makes of the batch
    left_out   inputs that the reference gets and the library does not
    Returns the first difference (op, value, index, both numbers), and how many numbers were equal.
    """
    shown: dict[str, np.ndarray] = {}

    def observer(_step: int, name: str, data: np.ndarray) -> None:
        if name in model.values:
            shown[name] = library.logical(name, data).copy()

    taken = {name: a for name, a in given(library, batch).items() if name not in left_out}
    results = [library.run(**taken, observer=observer)]
    results += [library.run(**taken) for _ in range(UNOBSERVED)]
    want = reference[model.output]
    wrong = (r for r in results if r.shape != want.shape or np.any(r != want))
    shown[model.output] = next(wrong, results[0])
    compared = 0
    for node in model.nodes:
        for name in node.outputs:
            if name not in shown:
                continue  # computed inside a fused kernel
            got, want = shown[name], reference[name]
            where = f"{node.op} -> {name}"
            if got.shape != want.shape:
                return Finding(where, f"shape {got.shape}, reference {want.shape}"), compared
            if len(wrong := np.argwhere(got != want)):
                at = tuple(int(i) for i in wrong[0])
                what = f"[{at[0]}, {at[1]}] is {got[at]}, reference {want[at]}"
                share = f"{len(wrong)} of {got.size} numbers differ"
                return Finding(where, f"{what}; {share}"), compared
            compared += got.size
    return None, compared


def given(library: Library, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the part of a batch that this library takes."""
    taken = {"input_ids", "cu_seqlens", *library.plan["inputs"]}
    return {name: array for name, array in batch.items() if name in taken}


def random_batches(meta: dict, cases: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Return random inputs: ids from the whole vocabulary, lengths from 1 to the longest mixed."""
    rng = np.random.default_rng(seed)
    longest = meta["max_length"]
    batches = []
    for case in range(cases):
        lengths = [n for n in LENGTHS if n <= longest]
        lengths += rng.integers(1, min(RANDOM_LENGTH, longest) + 1, 3).tolist()
        if case == 0:
            lengths.append(longest)
        rng.shuffle(lengths)
        batches.append(random_batch(meta, lengths, rng))
    return batches


def random_batch(meta: dict, lengths: list[int], rng: np.random.Generator) -> dict:
    """Return one packed batch of random ids and types, with every input a model may take."""
    tokens = sum(lengths)
    first = meta["pad_token_id"] + 1 if meta["position_rule"] == "padding" else 0
    batch = {
        "input_ids": rng.integers(0, meta["vocab_size"], tokens),
        "token_type_ids": rng.integers(0, meta["type_vocab_size"], tokens),
        "position_ids": np.concatenate([np.arange(n) + first for n in lengths]),
        "cu_seqlens": np.cumsum([0, *lengths]),
        "positions": np.sort(rng.choice(tokens, max(1, tokens // 8), replace=False)),
    }
    return {name: array.astype(np.int32) for name, array in batch.items()}


def real_batches(
    library: Library, texts: Sequence[tuple[str, ...]], size: int = REAL_BATCH
) -> list[dict]:
    """Return texts tokenized and packed, `size` at a time, as the head needs them."""
    edge = Edge.of(library)
    head = library.metadata["head"]
    if head == "sentence-embedding":
        texts = [(part,) for text in texts for part in text]
    elif head == "question-answering":
        texts = [text if len(text) == 2 else (text[0], text[0]) for text in texts]
    encode = edge.encode
    if head == "masked-lm":
        encode, texts = edge.encode_masked, [text[:1] for text in texts]
    batches = []
    for first in range(0, len(texts), size):
        columns = zip(*texts[first : first + size], strict=True)
        batches.append(encode(*(list(column) for column in columns)).inputs())
    return batches


def check_source(
    model: IntModel, source: str | Path, calibrate: str | Path | Sequence | None
) -> Check:
    """Import the checkpoint again, as the library's metadata says, and compare what it means.

    Compared are nodes, values (all but the origin of scales, which is prose), output, tensors and
    the meta in MEANING.
    """
    from intformer.frontend import import_model

    meta = model.meta
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = None
        if "tokenizer.json" in model.files:
            tokenizer = Path(folder) / "tokenizer.json"
            tokenizer.write_bytes(model.files["tokenizer.json"])
        again = import_model(
            source,
            recipe=meta["recipe"],
            mode=meta.get("mode"),
            head=meta["head"],
            calibrate=calibrate,
            method=(meta.get("calibration") or {}).get("method"),
            tokenizer=tokenizer,
        )
    findings = different_graphs(model, again)
    for name in sorted(model.tensors.keys() | again.tensors.keys()):
        here, there = model.tensors.get(name), again.tensors.get(name)
        if here is None or there is None:
            findings.append(Finding(name, f"only in the {'source' if here is None else 'library'}"))
        elif (here.dtype, here.shape) != (there.dtype, there.shape):
            what = f"{here.dtype} {here.shape}, source {there.dtype} {there.shape}"
            findings.append(Finding(name, what))
        elif len(wrong := np.argwhere(here != there)):
            at = tuple(int(i) for i in wrong[0])
            findings.append(Finding(name, f"{list(at)} is {here[at]}, source {there[at]}"))
    detail = f"{len(again.nodes)} nodes, {len(again.values)} values, {len(again.tensors)} tensors"
    return Check("source", detail, findings)


def different_graphs(model: IntModel, again: IntModel) -> list[Finding]:
    """Return what differs between the graphs of a library and of its source, tensors aside."""
    here, there = described(model), described(again)
    return [
        Finding(name, f"is {short(here.get(name))}, source {short(there.get(name))}")
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]


def described(model: IntModel) -> dict[str, object]:
    """Return name -> plain data for every part of a graph that is compared."""
    graph = json.loads(json.dumps(model.to_json()))  # tuples are lists in a library
    for value in graph["values"].values():
        del value["origin"]
    return {
        **{f"node {i}": node for i, node in enumerate(graph["nodes"])},
        **{f"value {name}": value for name, value in graph["values"].items()},
        "output": graph["output"],
        **{f"meta {key}": graph["meta"].get(key) for key in MEANING},
    }


def short(part: object) -> str:
    """Return plain data in at most 60 characters."""
    text = "absent" if part is None else json.dumps(part)
    return text if len(text) <= 60 else f"{text[:57]}..."
