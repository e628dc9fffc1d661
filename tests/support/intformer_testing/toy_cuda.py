"""The toy program of toy.py for a GPU: the same plan, and its kernels twice.

Once in CUDA C, once as a C file that emulates them for the driver of fake_cuda.py.
"""

import subprocess
from pathlib import Path

from intformer.backends.cuda.code import GpuCode
from intformer.ir.plan import Launch, Plan, Variant
from intformer_testing import toy

SMALL = 8  # rows: `add` has a version for runs up to here

_C = """
    #include <stdint.h>
    #define P(type, i) (*(type **)params[i])
    #define KERNEL(name, count) \\
      const int emulate_##name##_params = count; \\
      void emulate_##name(const unsigned grid[3], unsigned threads, void **params)
    /* a thread computes a row; blocks past the rows of the run do nothing */
    #define ROWS(kind, last) \\
      const int *counts = P(int, last); \\
      for (long row = 0; row < (long)grid[0] * threads; row++) \\
        if (row < counts[kind]) \\
          for (int c = 0; c < 16; c++)
    enum { TOKEN, SEQUENCE, POSITION, LONGEST };
    KERNEL(embed, 8) {
      int *ids = P(int, 0), *types = P(int, 1), *places = P(int, 2), *to = P(int, 6);
      int16_t *word = P(int16_t, 3), *kind = P(int16_t, 4), *place = P(int16_t, 5);
      ROWS(TOKEN, 7) to[row * 16 + c] = word[ids[row] * 16 + c] + kind[types[row] * 16 + c] +
                                        place[places[row] * 16 + c];
    }
    static void add(const unsigned grid[3], unsigned threads, void **params) {
      ROWS(TOKEN, 3) P(int, 2)[row * 16 + c] = P(int, 0)[row * 16 + c] + P(int, 1)[row * 16 + c];
    }
    KERNEL(add_small, 4) { add(grid, threads, params); }
    KERNEL(add, 4) { add(grid, threads, params); }
    KERNEL(relu, 3) {
      ROWS(TOKEN, 2) {
        int x = P(int, 0)[row * 16 + c];
        P(int, 1)[row * 16 + c] = x > 0 ? x : 0;
      }
    }
    KERNEL(scale, 4) {
      /* whole tiles of 128 rows are there to be written */
      long rows = (counts_of(params, 3)[TOKEN] + 127) / 128 * 128;
      for (long i = 0; i < rows * 16; i++) P(int, 2)[i] = P(int, 0)[i] * P(int, 1)[0] + MORE;
    }
    KERNEL(first, 4) {
      ROWS(SEQUENCE, 3) P(int, 2)[row * 16 + c] = P(int, 0)[P(int, 1)[row] * 16 + c];
    }
    KERNEL(pick, 4) {
      ROWS(POSITION, 3) P(int, 2)[row * 16 + c] = P(int, 0)[P(int, 1)[row] * 16 + c];
    }
    /* writes before its memory */
    KERNEL(wild, 4) { P(int, 3)[-8] = (int)(grid[0] + threads); }
"""


CUDA = """
#define ROWS(kind) \\
  int row = blockIdx.x * blockDim.x + threadIdx.x; \\
  if (row < counts[kind]) \\
    for (int c = 0; c < 16; c++)
enum { TOKEN, SEQUENCE, POSITION };
extern "C" __global__ void embed(const int *ids, const int *types, const int *places,
                                 const short *word, const short *kind, const short *place, int *to,
                                 const int *counts) {
  ROWS(TOKEN) to[row * 16 + c] = word[ids[row] * 16 + c] + kind[types[row] * 16 + c] +
                                 place[places[row] * 16 + c];
}
extern "C" __global__ void add_small(const int *x, const int *y, int *to, const int *counts) {
  ROWS(TOKEN) to[row * 16 + c] = x[row * 16 + c] + y[row * 16 + c];
}
extern "C" __global__ void add(const int *x, const int *y, int *to, const int *counts) {
  ROWS(TOKEN) to[row * 16 + c] = x[row * 16 + c] + y[row * 16 + c];
}
extern "C" __global__ void relu(const int *x, int *to, const int *counts) {
  ROWS(TOKEN) to[row * 16 + c] = max(x[row * 16 + c], 0);
}
extern "C" __global__ void scale(const int *x, const int *factor, int *to, const int *counts) {
  ROWS(TOKEN) to[row * 16 + c] = x[row * 16 + c] * factor[0];
}
extern "C" __global__ void first(const int *x, const int *offsets, int *to, const int *counts) {
  ROWS(SEQUENCE) to[row * 16 + c] = x[offsets[row] * 16 + c];
}
extern "C" __global__ void pick(const int *x, const int *index, int *to, const int *counts) {
  ROWS(POSITION) to[row * 16 + c] = x[index[row] * 16 + c];
}
extern "C" __global__ void wild(const int *x, int *to, const int *counts) {
  to[1l << 45] = x[0];
}
"""


def emulated(folder: Path, more: int = 0) -> Path:
    """Compile the kernels; more: what `scale` adds to the right result."""
    source, path = Path(folder) / f"kernels{more}.c", Path(folder) / f"kernels{more}.so"
    helper = "static const int *counts_of(void **params, int i) { return *(int **)params[i]; }\n"
    source.write_text(f"#define MORE {more}\n{helper}{_C}")
    subprocess.run(["cc", "-O1", "-Wall", "-fPIC", "-shared", source, "-o", path], check=True)
    return path


def launches() -> dict[str, list[Launch]]:
    """Versions of every kernel: blocks of 32 rows, for `add` also of 8 and only one of them."""
    one = ("one", 1, 1)

    def rows(kind, function, limit=None, threads=32):
        return Launch(function, limit, kind, ((kind, threads, 1), one, one), threads)

    made = {name: [rows("token", name)] for name in ("embed", "relu", "scale")}
    made["add"] = [rows("token", "add_small", SMALL, 8), rows("token", "add")]
    made["first"], made["pick"] = [rows("sequence", "first")], [rows("position", "pick")]
    return made


def plan(seed: int = 0, rows: str = "token") -> Plan:
    """The plan of toy.py with launches."""
    made = toy.plan(seed, rows)
    used = {step.kernel for step in made.steps}
    made.launches = {kernel: vs for kernel, vs in launches().items() if kernel in used}
    return made


def code(plan: Plan) -> GpuCode:
    """Code that the fake driver takes for a cubin and PTX of the kernels."""
    names = [v.function for versions in plan.launches.values() for v in versions]
    ptx = "".join(f".visible .entry {name}()\n" for name in names)
    return GpuCode("// CUDA C of the toy\n", b"\x7fELF no code", ptx.encode())


def real_variant(name: str = "t4", arch: str = "sm_75") -> Variant:
    """The kernels as nvcc or NVRTC compiles them."""
    from intformer.backends.cuda import toolchain

    built = toolchain.build(CUDA, arch)
    code = GpuCode(CUDA, built.cubin, built.ptx)
    return Variant(name, arch=arch, carried=code.carried(name))


def variant(plan: Plan, name: str = "t4", arch: str = "sm_75") -> Variant:
    """The only variant of most toy libraries."""
    return Variant(name, arch=arch, carried=code(plan).carried(name))
