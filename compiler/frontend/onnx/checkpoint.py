"""The directory around an ONNX file: configuration, tokenizer and modules, where it has them."""

from pathlib import Path

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.folder import Folder
from intformer.frontend.weights import GivenWeights

NAMES = ("model.onnx", "onnx/model.onnx")
FOLDER = "onnx"  # where optimum and sentence-transformers put the files


class OnnxCheckpoint(Checkpoint):
    """An ONNX file, and the directory it lies in or below whose folder "onnx" it lies.

    file    the ONNX file
    config  config.json; empty where there is none
    """

    mended = "give the directory that it was exported from"

    def __init__(self, source: str | Path, *, tokenizer: str | Path | None = None):
        """Find the file; raises CheckpointError where there is none, or several."""
        source = Path(source)
        self.tokenizer = Path(tokenizer) if tokenizer is not None else None
        if source.is_dir():
            name = file_name(source)
            if name is None:
                raise CheckpointError("no ONNX file", where=str(source))
        else:
            inner = source.parent.name == FOLDER and not (source.parent / "config.json").exists()
            folder = source.parent.parent if inner else source.parent
            name = str(source.relative_to(folder))
            source = folder
        file = Folder(source).file(name)
        if file is None:
            raise CheckpointError("no such ONNX file", where=str(source / name))
        self.path = self.root = source
        self.file_path = file
        self.config = self.read_json("config.json", dict) or {}
        self.weights = GivenWeights({}, str(file))
        self.unlike = []
        self.weights.rewritten = ["they are an ONNX file"]


def file_name(directory: Path) -> str | None:
    """Return the ONNX file of a directory, relative to it; None where it has none.

    Raises CheckpointError where there are several and none is called model.onnx.
    """
    folder = Folder(directory)
    for name in NAMES:
        if folder.file(name):
            return name
    found = [
        path.relative_to(directory).as_posix()
        for at in (directory, directory / FOLDER)
        for path in sorted(at.glob("*.onnx"))
    ]
    if len(found) > 1:
        raise CheckpointError(
            f"{len(found)} ONNX files: {', '.join(found[:4])}",
            where=str(directory),
            hint="name one of them",
        )
    return found[0] if found else None
