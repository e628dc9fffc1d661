"""A library becomes what others install: a wheel with it, and a Dockerfile that serves it.

package  both
wheel    the format
texts    what is written into them
"""

import keyword
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import intformer
from intformer.backends.targets import of_machine
from intformer.errors import IntformerError
from intformer.runtime.file import LibraryFile
from intformer.ship import texts
from intformer.ship.wheel import OLDEST_GLIBC, Wheel

__all__ = ["Package", "package"]

VERSION = re.compile(  # what PEP 440 calls normalized
    r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?"
)


@dataclass(frozen=True)
class Package:
    """What `package` wrote.

    module      to import
    wheel       to install
    dockerfile  beside it
    """

    module: str
    wheel: Path
    dockerfile: Path


def package(
    library: str | os.PathLike,
    output: str | os.PathLike,
    *,
    name: str | None = None,
    version: str = "1.0",
) -> Package:
    """Write a wheel that holds a library, and a Dockerfile that serves it.

    library  compiled library with its tokenizer, for any CPU; it is not run
    output   folder to write into, made where it is missing
    name     of the package; default: from the file name
    version  of the package
    """
    file = LibraryFile(library)
    named = file.path.stem if name is None else name
    module = re.sub(r"[-_.]+", "_", named).lower()
    _check(file, named, module, version)
    machine = of_machine(file.image.machine, str(file.path)).machines[0]
    glibc = "{}_{}".format(*max(file.footer.glibc, OLDEST_GLIBC))
    wheel = Wheel(module, version, (f"manylinux_{glibc}_{machine}", f"musllinux_1_2_{machine}"))
    about = {
        "module": module,
        "name": module.replace("_", "-"),
        "version": version,
        "file": f"{module.replace('_', '-')}.so",
        "head": file.metadata["head"],
        "target": file.metadata["target"],
        "build": file.footer.build_id.hex(),
        "intformer": intformer.__version__,
    }
    wheel.add(f"{module}/__init__.py", texts.filled(texts.MODULE, about).encode())
    wheel.add_file(f"{module}/{about['file']}", file.path)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    written = wheel.write(folder, texts.filled(texts.METADATA, about))
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(texts.filled(texts.DOCKERFILE, about))
    return Package(module, written, dockerfile)


def _check(file: LibraryFile, named: str, module: str, version: str) -> None:
    """Raise IntformerError for a package that could not be installed, imported or run."""
    if "files/tokenizer.json" not in file.sections():
        raise IntformerError(
            "the model carries no tokenizer", where=str(file.path), hint="compile with --tokenizer"
        )
    taken = keyword.iskeyword(module) or module in {*sys.stdlib_module_names, "intformer"}
    if taken or not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", module):
        raise IntformerError(
            f"a package cannot be called {named!r}",
            hint="pass --name: letters, digits and -, and no module of Python",
        )
    if not VERSION.fullmatch(version):
        raise IntformerError(f"version {version!r}", hint="write it as 1.0 or 2.1.3")
