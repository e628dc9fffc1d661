"""The base install: reads, loads and runs compiled libraries. Needs numpy alone, no TVM."""

from intformer.runtime.file import LibraryFile
from intformer.runtime.library import Library, Observer, load

__all__ = ["Library", "LibraryFile", "Observer", "load"]
