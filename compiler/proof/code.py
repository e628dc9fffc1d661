"""Whose instructions are in a library: each variant may use the CPU features it asks for."""

from intformer.backends import targets
from intformer.ir.plan import symbol
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile


def check_machine_code(library: LibraryFile) -> Check:
    """Read every instruction of the library, and whose it is.

    The runtime comes first; the code of a variant starts with a function of that variant's name.
    What a library carries for devices as data is read by their back end.
    """
    family = targets.of_machine(library.image.machine, str(library.path))
    code = family.read_code(library.path)
    asked = {
        variant: {family.spelling(name) for name in (*family.baseline, *features)}
        for variant, features in {"": (), **library.variants}.items()
    }
    marks = {symbol("", variant): variant for variant in library.variants}
    here, unasked = "", {}
    for function, features in code.functions:
        here = next((v for mark, v in marks.items() if mark in function), here)
        for name in sorted(features):
            looked_for = family.looked_for.get(function, frozenset())
            if family.spelling(name) not in asked[here] | looked_for:
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
    for variant in library.metadata["variants"]:
        if carried := targets.of_variant(variant, family).check_carried(library, variant):
            read, wrong = carried
            detail += f"; {read}"
            findings += wrong
    return Check("machine code", detail, findings)
