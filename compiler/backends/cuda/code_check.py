"""Judges the code that a library carries for a GPU: its PTX and its cubin."""

import re
from collections.abc import Mapping, Sequence

from intformer.backends.cuda import ptx_check, sass_check
from intformer.errors import CompileError
from intformer.proof.finding import Finding


def check(
    cubin: bytes, ptx: bytes, arch: str, launches: Mapping[str, Sequence[Mapping]], where: str
) -> tuple[str, list[Finding]]:
    """Return how much was read, and what is wrong.

    arch      "sm_75", which both must be for
    launches  of plan.json: kernel -> versions, each with its "function" and "threads"
    where     name of the variant's sections up to the dot, such as "cuda/t4"
    """
    threads = {v["function"]: v["threads"] for versions in launches.values() for v in versions}
    text = ptx.decode("utf-8", errors="replace")
    read = ptx_check.check(text)
    findings = [Finding(f"{where}.ptx, {at}", what) for at, what in read.findings]
    target = re.search(r"(?m)^\s*\.target\s+(\w+)", text)
    if not target or target[1] != arch:
        what = f"is for {target[1] if target else 'no chip'}; the variant is for {arch}"
        findings.append(Finding(f"{where}.ptx", what))
    findings += misnamed(f"{where}.ptx", set(read.entries), set(threads))
    detail = f"{read.instructions} PTX"
    try:
        code = sass_check.check(cubin, threads=threads)
    except CompileError as error:
        return detail, [*findings, Finding(f"{where}.cubin", str(error))]
    findings += [Finding(f"{where}.cubin, {at}", what) for at, what in code.findings]
    if code.arch != arch:
        what = f"is for {code.arch or 'no chip'}; the variant is for {arch}"
        findings.append(Finding(f"{where}.cubin", what))
    findings += misnamed(f"{where}.cubin", code.functions.keys(), set(threads))
    detail += f" and {code.instructions} SASS instructions for {arch}"
    if code.constant_moves:
        detail += f", {code.constant_moves} of them constants by HFMA2"
    return detail, findings


def misnamed(where: str, found: set[str], run: set[str]) -> list[Finding]:
    """Return the kernels that are run but not there, and those there that nothing runs."""
    lacking = [Finding(f"{where}, {name}", "is run, but is not there") for name in run - found]
    extra = [
        Finding(f"{where}, {name}", "is not a kernel that the library runs") for name in found - run
    ]
    return sorted(lacking + extra)
