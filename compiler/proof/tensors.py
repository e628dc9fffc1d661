"""The constants of a library, unpacked to the tensors of its IntModel."""

import hashlib

import numpy as np

from intformer.passes.packing import pack, unpack
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile


def carried_tensors(library: LibraryFile) -> dict[str, np.ndarray]:
    """Return the IntModel's tensors, unpacked from the constants in the library."""
    specs = {name: about["packing"] for name, about in library.packing.items()}
    return unpack(specs, {name: library.tensor(name) for name in specs})


def check_tensors(library: LibraryFile, tensors: dict[str, np.ndarray]) -> Check:
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
