"""C programs that call compiled libraries."""

import os
import subprocess
import textwrap
from pathlib import Path

from intformer.link import build as library
from intformer_testing import sanitized

PRINT = """
    static void print(const intformer_api *api) {
      char err[300];
      size_t size = api->output_size(&input);
      int32_t *out = malloc(size * sizeof *out);
      int code = api->run(&input, out, size, err, sizeof err);
      if (code) { printf("%d %s", code, err); exit(1); }
      for (size_t i = 0; i < size; i++) printf("%d ", out[i]);
      free(out);
    }
"""


def batch_c(ids, offsets) -> str:
    """C source of a batch: `ids`, `offsets` and an `input` that holds them."""
    return f"""
        static const int32_t ids[] = {{{", ".join(map(str, ids))}}};
        static const int32_t offsets[] = {{{", ".join(map(str, offsets))}}};
        static const intformer_input input = {{.num_tokens = {len(ids)},
            .batch = {len(offsets) - 1}, .input_ids = ids, .cu_seqlens = offsets}};
    """


def run_c(tmp_path, source: str, *links: Path | str, env=None, cc=("cc",), runs=True) -> str:
    """Compile and run a program; return what it prints.

    cc    the compiler
    runs  False: it is compiled only
    """
    file, program = tmp_path / "main.c", tmp_path / "main"
    file.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
        '#include "intformer.h"\n' + textwrap.dedent(source)
    )
    flags = sanitized.flags() if cc == ("cc",) else ()
    command = [*cc, "-O1", "-Wall", "-Werror", *flags, file, "-o", program]
    command.append(f"-I{library.SOURCES}")
    subprocess.run([*command, *links, "-lpthread", "-ldl"], check=True)
    if not runs:
        return ""
    folders = ":".join(str(Path(link).parent) for link in links)
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "LD_LIBRARY_PATH": folders, **(env or {})},
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout
