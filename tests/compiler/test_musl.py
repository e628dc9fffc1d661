"""One library for glibc and for musl (Alpine): it asks for nothing that only glibc has.

musl's loader takes the names of glibc's libraries for its own, and ignores versions of symbols.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from intformer.backends.targets import TARGETS
from intformer.link import build as linker
from intformer_testing import toy
from intformer_testing.c_program import PRINT, batch_c, run_c
from intformer_testing.libc import needs_zig, only_in_glibc

LOADER = Path("/lib/ld-musl-x86_64.so.1")
MUSL_CC = (sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-dynamic")
IDS, OFFSETS = toy.batch(0, (3, 12, 7))


@pytest.fixture(scope="module", params=["cc", pytest.param("zig", marks=needs_zig)])
def path(request, toy_library):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "zig":
            patch.setattr(linker.shutil, "which", lambda name: None)
        return toy_library(f"for_musl_{request.param}")


def test_nothing_that_only_glibc_has(path):
    assert not only_in_glibc(path)


@needs_zig
@pytest.mark.skipif(not LOADER.exists(), reason=f"this machine lacks {LOADER} (package musl)")
def test_a_program_of_musl_runs_it(path, tmp_path):
    """With threads, and in the child of a fork."""
    source = f"""
        #include <sys/wait.h>
        #include <unistd.h>
        {batch_c(IDS, OFFSETS)}
        {PRINT}
        int main(void) {{
          char err[300] = "";
          const intformer_api *api = intformer_open("{path}", err, sizeof err);
          if (!api) {{ puts(err); return 1; }}
          api->set_threads(2);
          print(api);
          fflush(stdout);
          pid_t child = fork();
          if (!child) {{ print(api); fflush(stdout); _exit(0); }}
          int status = 1;
          waitpid(child, &status, 0);
          return status;
        }}
    """
    said = run_c(tmp_path, source, linker.SOURCES / "intformer_open.c", cc=MUSL_CC)
    assert LOADER.name.encode() in (tmp_path / "main").read_bytes()
    got = np.array(said.split(), np.int64).reshape(2, -1, toy.CHANNELS)
    for part in got:
        np.testing.assert_array_equal(part, toy.expected(0, IDS, OFFSETS))


@needs_zig
@pytest.mark.parametrize("target", ["x86-64", "aarch64", "riscv64"])
def test_programs_of_musl_can_open_libraries(tmp_path, target):
    """intformer_open.c is compiled with the program: it needs no glibc either."""
    triple = TARGETS[target].backend.zig_triple.partition("-gnu")[0] + "-musl"
    cc = (*MUSL_CC[:4], "-target", triple, "-c")
    source = "int main(void) { return intformer_open(0, 0, 0) != 0; }"
    run_c(tmp_path, source, cc=cc, runs=False)
    run_c(tmp_path, '#include "intformer_open.c"', cc=cc, runs=False)
