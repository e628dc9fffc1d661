"""Objects of kernels compiled before, in a folder that processes share.

An entry is a file named after its key; it holds the SHA-256 of the object, then the object. An
entry that was cut or altered counts as absent. Files appear by renaming, so two processes may write
the same one. The entries used longest ago go when the folder grows beyond its limit, and with them
what still has a temporary name, but for files that are new enough to be written still.
"""

import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from intformer.errors import IntformerError

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

    def check(self) -> None:
        """Make the folder, mode 0700; raise IntformerError where others could put objects in it.

        What lies in it is linked into libraries.
        """
        try:
            self._make()
        except OSError:  # `put` says so; nothing is taken from a folder that is not there
            return
        given, real = self.folder.absolute(), self.folder.resolve()  # with and without links
        for folder in dict.fromkeys((given, *given.parents, *real.parents)):
            about = folder.stat()
            inside = folder == given
            if about.st_uid not in (os.geteuid(), *(() if inside else (0,))):
                fault = "belongs to another user"
            elif about.st_mode & (0o022 if inside else 0o002) and not about.st_mode & stat.S_ISVTX:
                fault = "can be written by other users"
            else:
                continue
            raise IntformerError(
                f"the cache of objects {fault if inside else f'is below a folder that {fault}'}",
                where=str(folder),
                hint="chmod 700 it, set INTFORMER_CACHE to one of your own, or pass --no-cache",
            )

    def _make(self) -> None:
        """Make the folder and those above it, for this user alone whatever the umask."""
        for folder in (*reversed(self.folder.parents), self.folder):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """Return the object, or None where there is no whole one."""
        path = self.folder / key
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                about = os.fstat(file.fileno())
                if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode):
                    return None
                entry = file.read()
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
        self._make()
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
