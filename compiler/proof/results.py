"""Run a library and its NumPy reference on the same inputs: every value must be equal."""

from collections.abc import Container

import numpy as np

from intformer.ir.constants import BLOCK
from intformer.ir.model import IntModel
from intformer.proof.finding import Finding
from intformer.proof.inputs import LENGTHS, given, random_batch
from intformer.proof.report import Check
from intformer.runtime import Library

DEFAULTED = ("token_type_ids", "position_ids")  # inputs that a library can make itself
UNOBSERVED = 3  # runs without an observer: a GPU launches a graph from the second on


def check_results(library: Library, model: IntModel, batches: list[dict], kind: str) -> Check:
    """Run every variant and the reference on the same batches; name the first difference."""
    refusals = library.refusals()
    runs = [variant for variant, why in refusals.items() if not why]
    if not runs:
        return not_run("results", refusals)
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
    tokens = sum(len(batch["input_ids"]) for batch in batches)
    sequences = sum(len(batch["cu_seqlens"]) - 1 for batch in batches)
    detail = f"{kind}: {sequences} sequences, {tokens} tokens, {values} numbers equal"
    if len(refusals) > 1:
        detail += f", variants {' '.join(runs)}"
        detail += "".join(f"; {v} not run: {why}" for v, why in refusals.items() if why)
    return Check("results", detail, findings)


def check_defaults(library: Library, model: IntModel, seed: int) -> Check:
    """Leave types and positions to the library, on one thread and on several.

    The reference gets what they should be: type 0, and positions counted from the first.
    """
    if library.foreign or library.variant is None:
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


def not_run(name: str, refusals: dict[str, str]) -> Check:
    """Return the check of a library that this machine cannot run: it proves nothing."""
    findings = [Finding(variant, why) for variant, why in refusals.items()]
    return Check(name, "not run: no variant runs on this machine", findings, ran=False)


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
