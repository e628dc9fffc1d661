"""The tensor programs (TIR) that a library carries: integers alone, for the kernels it runs."""

from intformer.backends import targets
from intformer.proof import tir_check
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile


def check_programs(library: LibraryFile) -> Check:
    """Read the TIR that the library carries, which must be of the kernels it runs.

    That the machine code comes from this TIR is not shown here: check_machine_code reads the code.
    """
    kernels = {step["kernel"] for step in library.plan["steps"]}
    launches = library.plan["launches"]
    family = targets.of_machine(library.image.machine, str(library.path))
    findings, functions = [], 0
    for variant in library.metadata["variants"]:
        name, backend = variant["name"], targets.of_variant(variant, family)
        section = f"tir/{name}.json.xz"
        try:
            module = tir_check.load(library.section(section))
        except Exception as error:  # lzma, UTF-8, JSON and TVM each have their own
            fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
            findings.append(Finding(section, f"cannot be read: {fault}"))
            continue
        functions += len(module.functions)
        symbols = (backend.symbols(kernel, name, launches.get(kernel, [])) for kernel in kernels)
        findings += misnamed(module, set().union(*symbols))
        shifts = backend.vector_shifts(variant["cpu_features"])
        findings += tir_check.check(module, vector_shifts=shifts)
    return Check("tensor programs", f"{functions} functions", findings)


def misnamed(module, kernels: set[str]) -> list[Finding]:
    """Return what a module has beside one PrimFunc of its own name for each kernel, or lacks."""
    found = tir_check.programs(module)
    findings = [Finding(name, "is run, but has no tensor program") for name in kernels - found]
    findings += [Finding(name, "is not a kernel that the library runs") for name in found - kernels]
    return sorted(findings)
