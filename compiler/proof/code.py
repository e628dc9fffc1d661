"""Whose instructions are in a library: each variant may use the CPU features it asks for."""

import re

from intformer.backends.cuda import code_check
from intformer.backends.x86 import machine_code
from intformer.ir.plan import symbol
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile

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


def check_machine_code(library: LibraryFile) -> Check:
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


def gpu_arches(library: LibraryFile) -> dict[str, str]:
    """Return the chip generation ("sm_75") of each variant that is for GPUs."""
    variants = library.metadata["variants"]
    return {v["name"]: v["arch"] for v in variants if v.get("arch")}


def spelling(feature: str) -> str:
    """Return a CPU feature's name without what LLVM and iced-x86 spell differently."""
    name = re.sub(r"[._-]", "", feature.lower())
    return "bmi" if name == "bmi1" else name
