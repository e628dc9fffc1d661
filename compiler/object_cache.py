"""Objects of kernels compiled before, in a folder that processes share.

An entry is a file named after its key; it holds the SHA-256 of the object, then the object. An
entry that was cut or altered counts as absent. Files appear by renaming, so two processes may write
the same one. The entries used longest ago go when the folder grows beyond its limit, and with them
what still has a temporary name, but for files that are new enough to be written still.
"""

import hashlib
import os
import tempfile
import time
from pathlib import Path

LIMIT_BYTES = 512 << 20
DIGEST = hashlib.sha256().digest_size
UNFINISHED = ".new-"
ABANDONED_SECONDS = 3600  # an unfinished file of this age was left by a process that was killed


class ObjectCache:
    """Objects by key, a hexadecimal text.

    folder  made when the first object is put
    limit   bytes that `trim` leaves at most
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES):
        """Remember where; nothing is read or written yet."""
        self.folder, self.limit = Path(folder), limit

    def get(self, key: str) -> bytes | None:
        """Return the object, or None where there is no whole one."""
        path = self.folder / key
        try:
            entry = path.read_bytes()
        except OSError:
            return None
        data = entry[DIGEST:]
        if hashlib.sha256(data).digest() != entry[:DIGEST]:
            return None
        try:
            os.utime(path)  # used now
        except OSError:  # another user's, or gone meanwhile
            pass
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep an object; OSError where the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(name, self.folder / key)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def trim(self) -> None:
        """Drop the files used longest ago until the rest is within the limit."""
        files = []
        abandoned = time.time() - ABANDONED_SECONDS
        for entry in os.scandir(self.folder):
            try:
                about = entry.stat()
            except FileNotFoundError:  # another process trims too
                continue
            if entry.name.startswith(UNFINISHED) and about.st_mtime > abandoned:
                continue  # another process writes it
            files.append((about.st_mtime_ns, about.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
