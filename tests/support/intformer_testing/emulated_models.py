"""Whole models compiled for another machine, and which of them the tests run in an emulator."""

import subprocess
from pathlib import Path

import pytest

from intformer import pipeline
from intformer.backends.targets import TARGETS
from intformer.link import build as linker
from intformer_testing import emulated, golden_models

CASES = golden_models.cases()


class Models:
    """Libraries of the golden models, each compiled once.

    folders  makes a folder by a prefix, as pytest's tmp_path_factory does
    """

    def __init__(self, folders):
        self.folders, self.known = folders, {}

    def __call__(self, case: str, target: str) -> tuple[Path, object]:
        """Return the path of a library and its model."""
        if (case, target) not in self.known:
            folder = self.folders.mktemp("model")
            model = pipeline.pruned(CASES[case](folder))
            path = pipeline.compile(model, folder / "model.so", target=target).path
            self.known[case, target] = path, model
        return self.known[case, target]


def each(targets, fast: dict[str, tuple[str, ...]]):
    """Parametrize a test by (case, target): every model for every target.

    fast  case -> targets; all others are slow
    """
    return pytest.mark.parametrize(
        ("case", "target"),
        [
            pytest.param(
                case,
                target,
                marks=[
                    *emulated.needs(target).marks,
                    *([] if target in fast.get(case, ()) else [pytest.mark.slow]),
                ],
            )
            for case in CASES
            for target in targets
        ],
    )


def library_of(folder: Path, target: str, source: str) -> Path:
    """Return a library of C source for a target's machine; code has pages of its own."""
    file, path = folder / "code.c", folder / "code.so"
    file.write_text(source)
    command = [*linker.compiler(TARGETS[target].backend), "-O2", "-shared", "-fPIC"]
    command += ["-Wl,-T", f"-Wl,{linker.SOURCES / 'zig.ld'}"]
    env = linker.compiler_files_in(folder)
    subprocess.run([*command, file, "-o", path, "-lm"], check=True, env=env)
    return path
