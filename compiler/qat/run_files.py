"""The files of a training run: whose they are, and which are complete."""

import hashlib
import json
import shutil
from pathlib import Path

from intformer.errors import IntformerError


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a model's weights."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def digest(*files: Path) -> str:
    """Return the SHA-256 of files, one after the other."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def finished(output: Path, about: dict) -> dict | None:
    """Return the result of a finished run; raise where DIR holds anything but this run."""
    if output.exists() and not output.is_dir():
        raise IntformerError("not a directory", where=str(output), hint="give -o another name")
    done, begun = output / "metrics.json", output / "checkpoints" / "settings.json"
    found = read_object(done)
    before = (found or {}).get("settings") if done.exists() else read_object(begun)
    if not isinstance(before, dict):
        if not output.is_dir() or not any(output.iterdir()):
            return None
        raise IntformerError(
            "the directory is not empty, and no run of ours",
            where=str(output),
            hint="give -o another name",
        )
    if differing := [name for name in about if before.get(name) != about[name]]:
        name = differing[0]
        raise IntformerError(
            f"a run with {name} {before.get(name)!r} is there, not {about[name]!r}",
            where=str(output),
            hint="give -o another name, or delete it",
        )
    return found


def read_object(path: Path) -> dict | None:
    """Return a JSON object of ours; None where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, data: object) -> None:
    """Write a JSON file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; one that was being written when the run ended goes.

    The Trainer writes trainer_state.json last.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None
