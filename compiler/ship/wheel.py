"""Wheels: a zip file with a list of its files, so that a library ships without build tools."""

import base64
import hashlib
import zipfile
from pathlib import Path

import intformer

OLDEST_GLIBC = (2, 17)  # that wheels for every machine can name
DATE = (1980, 1, 1, 0, 0, 0)  # of every file: equal content makes equal wheels


class Wheel:
    """A wheel in the making.

    module     the distribution's name, as file names have it
    platforms  it runs on, as tags of wheels name them
    """

    def __init__(self, module: str, version: str, platforms: tuple[str, ...]):
        """Start an empty one."""
        self.platforms = platforms
        self.name = f"{module}-{version}-py3-none-{'.'.join(platforms)}.whl"
        self.info = f"{module}-{version}.dist-info"
        self._files: dict[str, bytes | Path] = {}

    def add(self, name: str, data: bytes) -> None:
        """Add a file."""
        self._files[name] = data

    def add_file(self, name: str, path: Path) -> None:
        """Add a file by what another holds."""
        self._files[name] = path

    def write(self, folder: Path, metadata: str) -> Path:
        """Write it into a folder, under its name once it is complete; return the path."""
        tags = "".join(f"Tag: py3-none-{platform}\n" for platform in self.platforms)
        about = f"Wheel-Version: 1.0\nGenerator: intformer {intformer.__version__}\n"
        self.add(f"{self.info}/METADATA", metadata.encode())
        self.add(f"{self.info}/WHEEL", f"{about}Root-Is-Purelib: false\n{tags}".encode())
        record = f"{self.info}/RECORD"
        path = folder / self.name
        unfinished = folder / f".{self.name}.unfinished"
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            lines = [self._put(archive, *one) for one in self._files.items()]
            self._put(archive, record, "\n".join([*lines, f"{record},,", ""]).encode())
        return unfinished.replace(path)

    def _put(self, archive: zipfile.ZipFile, name: str, content: bytes | Path) -> str:
        """Write a file into the archive; return its line of the list."""
        data = content.read_bytes() if isinstance(content, Path) else content
        entry = zipfile.ZipInfo(name, DATE)
        entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        archive.writestr(entry, data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return f"{name},sha256={digest},{len(data)}"
