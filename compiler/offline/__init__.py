"""Many texts at once: files of texts become files of vectors, on one machine or on many.

embed     a file to a file; resumes where it was killed
Embedder  batches of columns to batches with vectors, which `embed` and Ray Data call
tables    files of texts, read a few rows at a time
parts     what is done of a file, kept until all of it is
"""

from intformer.offline.embedder import Embedder
from intformer.offline.files import Embedded, embed

__all__ = ["Embedded", "Embedder", "embed"]
