/* Runs generated CUDA kernels on the CPU, thread by thread and number by number.
 *
 * Compile the generated source as C++ with -DINTFORMER_ON_CPU -include cuda_on_cpu.h; it leaves out
 * its own prelude and finds the same functions here. Every CUDA thread is a fiber: it runs until
 * it waits for others (a barrier, or a warp that works together), then the next one does: upwards in
 * one block, downwards in the next, so that a forgotten barrier gives wrong numbers. The fragments
 * of tensor cores are laid out as the PTX manual says (mma.m16n8k32 and ldmatrix), which is the
 * meaning that generated kernels rely on.
 *
 * EMULATE(name) exports emulate_name(grid, threads, params), params as for cuLaunchKernel, and
 * emulate_name_params, how many there are: what fake_cuda.c calls kernels by. */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

typedef unsigned char uchar;
template <class A, class B> static inline auto max(A a, B b) { return a > b ? a : b; }
template <class A, class B> static inline auto min(A a, B b) { return a < b ? a : b; }
#define alignas(n) __attribute__((aligned(n))) /* TVM has it behind __shared__ */
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(n)

struct intformer_index {
  int x, y, z;
};
static intformer_index threadIdx, blockIdx;

/* ---- fibers ---- */

enum { WARP = 32, STACK = 64 << 10 };

struct intformer_fiber {
  void *stack_pointer;
  char *stack;
  bool done;
};

struct intformer_group { /* threads that wait for each other */
  int arrived, generation;
};

static struct {
  std::vector<intformer_fiber> fibers;
  std::vector<intformer_group> warps;
  intformer_group block;
  int current, alive, waited; /* waited: switches without progress */
  int step; /* to the next thread: 1 or -1 */
  void *scheduler;
  void (*call)(void *);
  void *argument;
} intformer_emulator;

extern "C" void intformer_switch(void **save, void *to);
asm(R"(
.text
.type intformer_switch, @function
intformer_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

static void intformer_next() {
  auto &e = intformer_emulator;
  int from = e.current, count = (int)e.fibers.size();
  do e.current = (e.current + e.step + count) % count;
  while (e.fibers[e.current].done && e.alive);
  if (!e.alive) {
    void *unused;
    intformer_switch(&unused, e.scheduler);
  }
  if (++e.waited > 4 * count) {
    fprintf(stderr, "threads of block %d %d %d wait for ever\n", blockIdx.x, blockIdx.y, blockIdx.z);
    abort();
  }
  threadIdx.x = e.current;
  if (e.current != from)
    intformer_switch(&e.fibers[from].stack_pointer, e.fibers[e.current].stack_pointer);
}

static void intformer_start() {
  auto &e = intformer_emulator;
  e.waited = 0;
  e.call(e.argument);
  e.fibers[e.current].done = true;
  e.alive--;
  e.waited = 0;
  intformer_next();
}

/* Waits until `size` threads of the group are here; the last one does the work for all. */
template <class Work> static void intformer_meet(intformer_group &group, int size, Work work) {
  auto &e = intformer_emulator;
  if (++group.arrived == size) {
    work();
    group.arrived = 0;
    group.generation++;
    e.waited = 0;
    return;
  }
  for (int generation = group.generation; generation == group.generation;) intformer_next();
}

template <class Work> static void intformer_warp(Work work) {
  intformer_meet(intformer_emulator.warps[threadIdx.x / WARP], WARP, work);
}

static void __syncthreads() {
  /* a thread that has left never comes: as on a GPU, that is no good for those who wait */
  intformer_meet(intformer_emulator.block, (int)intformer_emulator.fibers.size(), [] {});
}

static void intformer_block(int threads, void (*call)(void *), void *argument) {
  auto &e = intformer_emulator;
  while ((int)e.fibers.size() < threads) e.fibers.push_back({nullptr, (char *)malloc(STACK), false});
  while ((int)e.fibers.size() > threads) free(e.fibers.back().stack), e.fibers.pop_back();
  e.warps.assign((threads + WARP - 1) / WARP, {});
  e.block = {};
  e.step = e.step == 1 ? -1 : 1;
  e.call = call, e.argument = argument, e.alive = threads, e.waited = 0;
  e.current = e.step == 1 ? 0 : threads - 1;
  for (auto &fiber : e.fibers) {
    void **top = (void **)(fiber.stack + STACK) - 1; /* aligned as after a call */
    *--top = (void *)intformer_start;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top, fiber.done = false;
  }
  threadIdx = {e.current, 0, 0};
  intformer_switch(&e.scheduler, e.fibers[e.current].stack_pointer);
}

template <class... Args, size_t... I>
static void intformer_launch(void (*kernel)(Args...), const unsigned grid[3], unsigned threads,
                             void **params, std::index_sequence<I...>) {
  struct Call {
    void (*kernel)(Args...);
    void **params;
  } call = {kernel, params};
  auto run = [](void *argument) {
    Call *c = (Call *)argument;
    c->kernel(*(Args *)c->params[I]...);
  };
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        blockIdx = {(int)x, (int)y, (int)z};
        intformer_block((int)threads, run, &call);
      }
}

template <class... Args>
static void intformer_launch(void (*kernel)(Args...), const unsigned grid[3], unsigned threads,
                             void **params) {
  intformer_launch(kernel, grid, threads, params, std::index_sequence_for<Args...>{});
}

template <class... Args> static constexpr int intformer_count(void (*)(Args...)) {
  return (int)sizeof...(Args);
}

static std::mutex intformer_lock; /* one block runs at a time */

#define EMULATE(name)                                                                          \
  extern "C" const int emulate_##name##_params;                                                  \
  const int emulate_##name##_params = intformer_count(name);                                     \
  extern "C" void emulate_##name(const unsigned grid[3], unsigned threads, void **params) {      \
    std::lock_guard<std::mutex> lock(intformer_lock);                                            \
    intformer_launch(name, grid, threads, params);                                               \
  }

/* ---- what the prelude has ---- */

static inline int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }

static void intformer_aligned(const void *p, size_t size) {
  if ((uintptr_t)p % size) {
    fprintf(stderr, "an address is not a multiple of %zu\n", size);
    abort();
  }
}

static inline void intformer_read16(unsigned *to, int at, const void *from, int offset) {
  intformer_aligned((const char *)from + offset, 16);
  memcpy(to + at, (const char *)from + offset, 16);
}

static inline void intformer_write(void *to, int offset, const unsigned *from, int at, size_t size) {
  intformer_aligned((char *)to + offset, size);
  memcpy((char *)to + offset, from + at, size);
}

static inline void intformer_write16(void *to, int offset, const unsigned *from, int at) {
  intformer_write(to, offset, from, at, 16);
}

static inline void intformer_write8(void *to, int offset, const unsigned *from, int at) {
  intformer_write(to, offset, from, at, 8);
}

static inline void intformer_write4(void *to, int offset, const unsigned *from, int at) {
  intformer_write(to, offset, from, at, 4);
}

static inline unsigned intformer_read4(const void *from, int offset) {
  unsigned word;
  intformer_aligned((const char *)from + offset, 4);
  memcpy(&word, (const char *)from + offset, 4);
  return word;
}

static inline unsigned intformer_pack8(int a, int b, int c, int d) {
  return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | (unsigned)d << 24;
}

static inline unsigned intformer_pack16(int a, int b) { return (a & 65535u) | (unsigned)b << 16; }

static inline unsigned intformer_column(unsigned a, unsigned b, unsigned c, unsigned d, int i) {
  return intformer_pack8(a >> 8 * i, b >> 8 * i, c >> 8 * i, d >> 8 * i);
}

static inline int intformer_leading_zeros(int x) { return x ? __builtin_clz(x) : 32; }

static inline int intformer_dot4(int x, int a, int b) {
  for (int i = 0; i < 32; i += 8) x += (signed char)(a >> i) * (signed char)(b >> i);
  return x;
}

static void intformer_ldmatrix(unsigned *to, int at, const void *shared, int offset) {
  static const char *rows[1024];
  static unsigned *results[1024];
  int thread = threadIdx.x, first = thread / WARP * WARP;
  rows[thread] = (const char *)shared + offset;
  results[thread] = to + at;
  intformer_aligned(rows[thread], 16);
  intformer_warp([&] {
    for (int t = 0; t < WARP; t++)
      for (int matrix = 0; matrix < 4; matrix++)
        memcpy(results[first + t] + matrix, rows[first + 8 * matrix + t / 4] + 4 * (t % 4), 4);
  });
}

/* Byte `i` of a fragment register */
template <class A> static int intformer_byte(unsigned word, int i) { return (A)(word >> 8 * i); }

template <class A>
static void intformer_mma(int *c, const unsigned *a, const unsigned *b) {
  static int *all_c[1024];
  static const unsigned *all_a[1024], *all_b[1024];
  int thread = threadIdx.x, first = thread / WARP * WARP;
  all_c[thread] = c, all_a[thread] = a, all_b[thread] = b;
  intformer_warp([&] {
    static int left[16][32], right[8][32]; /* rows of a, columns of b */
    for (int t = 0; t < WARP; t++)
      for (int i = 0; i < 4; i++)
        for (int r = 0; r < 4; r++) {
          left[t / 4 + r % 2 * 8][r / 2 * 16 + t % 4 * 4 + i] =
              intformer_byte<A>(all_a[first + t][r], i);
          if (r < 2)
            right[t / 4][r * 16 + t % 4 * 4 + i] =
                intformer_byte<int8_t>(all_b[first + t][r], i);
        }
    for (int t = 0; t < WARP; t++)
      for (int r = 0; r < 4; r++) {
        int sum = 0;
        for (int k = 0; k < 32; k++)
          sum += left[t / 4 + r / 2 * 8][k] * right[t % 4 * 2 + r % 2][k];
        all_c[first + t][r] += sum;
      }
  });
}

static void intformer_mma_u8(int *c, int i, const unsigned *a, int j, const unsigned *b, int k) {
  intformer_mma<uint8_t>(c + i, a + j, b + k);
}

static void intformer_mma_s8(int *c, int i, const unsigned *a, int j, const unsigned *b, int k) {
  intformer_mma<int8_t>(c + i, a + j, b + k);
}

template <class T, class Op> static T intformer_reduce(T x, int span, Op op) {
  static T values[1024];
  int thread = threadIdx.x, first = thread / WARP * WARP;
  values[thread] = x;
  intformer_warp([&] {
    T made[WARP];
    for (int i = span / 2; i > 0; i /= 2) {
      for (int t = 0; t < WARP; t++) made[t] = op(values[first + t], values[first + (t ^ i)]);
      std::copy(made, made + WARP, values + first);
    }
  });
  return values[thread];
}

static inline int intformer_sum(int x, int span) {
  return intformer_reduce(x, span, [](int a, int b) { return a + b; });
}

static inline int64_t intformer_sum64(int64_t x, int span) {
  return intformer_reduce(x, span, [](int64_t a, int64_t b) { return a + b; });
}

static inline int intformer_max(int x, int span) {
  return intformer_reduce(x, span, [](int a, int b) { return a > b ? a : b; });
}
