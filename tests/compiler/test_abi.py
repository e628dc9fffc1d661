"""The C table grows at its end alone: loaders take every interface version from 4 on."""

import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

from intformer import runtime
from intformer.errors import LibraryError
from intformer.link import build as library
from intformer.runtime import footer
from intformer_testing import toy
from intformer_testing.c_program import PRINT, batch_c, run_c

# a toy library, as the first version with ABI 4 built it: never built again
FIRST = Path(__file__).parents[1] / "data" / "abi4-toy.so.xz"
OPEN = """
    int main(void) {
      char err[300];
      const intformer_api *api = intformer_open("%s", err, sizeof err);
      if (!api) { printf("%%s", err); return 0; }
      print(api);
      return 0;
    }
"""


def opened_in_c(path, tmp_path, ids, offsets):
    """What a C program with intformer_open.c prints: the numbers, or the error."""
    source = batch_c(ids, offsets) + PRINT + OPEN % path
    return run_c(tmp_path, source, library.SOURCES / "intformer_open.c")


def check(path, tmp_path):
    ids, offsets = toy.batch(2, (3, 9))
    want = toy.expected(0, ids, offsets)
    np.testing.assert_array_equal(runtime.load(path).run(ids, offsets), want)
    numbers = opened_in_c(path, tmp_path, ids, offsets).split()
    assert [int(n) for n in numbers] == want.ravel().tolist()


def test_the_first_library_of_abi_4_loads(tmp_path):
    path = tmp_path / "libtoy.so"
    path.write_bytes(lzma.decompress(FIRST.read_bytes()))
    assert footer.check(path).abi == 4
    check(path, tmp_path)


def test_a_later_library_with_a_larger_table_loads(toy_library, tmp_path, monkeypatch):
    sources = tmp_path / "c"
    shutil.copytree(library.SOURCES, sources)
    header = (sources / "intformer.h").read_text()
    end = "} intformer_api;"
    assert header.count(end) == 1
    header = header.replace(end, f"  uint32_t vocab_size[9];\n{end}")
    version = f"ABI_VERSION {footer.ABI_VERSION}\n"
    assert header.count(version) == 1
    header = header.replace(version, "ABI_VERSION 99\n")
    (sources / "intformer.h").write_text(header)
    with monkeypatch.context() as patched:
        patched.setattr(library, "SOURCES", sources)
        patched.setattr(footer, "ABI_VERSION", 99)
        path = toy_library("later")
    assert footer.check(path).abi == 99
    check(path, tmp_path)


def test_an_older_library_is_refused(toy_path, tmp_path, monkeypatch):
    path = tmp_path / "old.so"
    path.write_bytes(toy_path.read_bytes()[: footer.check(toy_path).elf])
    with monkeypatch.context() as patched:
        patched.setattr(footer, "ABI_VERSION", 3)
        footer.append(path, (2, 2), bytes(32))
    with pytest.raises(LibraryError, match=r"interface version 3, .*4 and newer.*compile the mod"):
        runtime.load(path)
    message = opened_in_c(path, tmp_path, *toy.batch(0, (3,)))
    assert "interface version 3, this program reads 4 and newer" in message
    assert "compile the model again" in message
