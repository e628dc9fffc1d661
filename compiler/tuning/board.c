/* board CASE: checks one kernel, which is linked in, and prints the seconds of a call in its fastest
 * batches; tuning/board.py writes CASE and reads what is printed.
 *
 * CASE, all numbers int64: how many arguments; of each code, bits, dimensions, shape, then its bytes;
 * how many results; of each the argument, rows, width, then the bytes of what it must be; how many
 * constants, and which arguments they are. A wrong result has no speed: exit code 1 and a line on
 * stderr. Constants are taken in turn from copies that exceed the second-level cache, since a
 * model's next layer has others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plan.h"

enum { MOST = 32, COPIES = 64, BATCHES = 8, KEPT = 3, COLD = 16 << 20, SMALL = 32 << 10 };
static const double BATCH_SECONDS = 0.02;

extern int32_t __tvm_ffi_kernel(void *, const tvm_any *, int32_t, tvm_any *);

static dl_tensor tensors[COPIES][MOST];
static tvm_any arguments[COPIES][MOST];
static size_t sizes[MOST];
static int64_t count;
static FILE *file;

static int launch(parallel_fn fn, void *data, int num_task) {
  (void)num_task;
  parallel_env env = {NULL, 1};
  return fn(0, &env, data);
}

static void *take(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  void *memory = NULL;
  return posix_memalign(&memory, ALIGN, bytes) ? NULL : memory;
}

static int give_back(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  free(memory);
  return 0;
}

int (*__TVMBackendParallelLaunch)(parallel_fn, void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = give_back;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < num_parts; i++)
    if (parts[i]) fputs(parts[i], stderr);
}

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

static void *memory(size_t bytes) {
  void *data = take(0, 0, bytes + ALIGN, 0, 0);
  if (!data) fail("no memory");
  return data;
}

static void numbers(void *data, size_t bytes) {
  if (bytes && fread(data, 1, bytes, file) != bytes) fail("the case is cut short");
}

static int64_t number(void) {
  int64_t value;
  numbers(&value, sizeof value);
  return value;
}

static void call(int copy) {
  tvm_any result = {TVM_NONE, 0, NULL};
  if (__tvm_ffi_kernel(NULL, arguments[copy], (int32_t)count, &result)) fail("the kernel failed");
}

static void read_arguments(void) {
  count = number();
  if (count < 1 || count > MOST) fail("the case has too many arguments");
  for (int64_t i = 0; i < count; i++) {
    int64_t code = number(), bits = number(), dimensions = number();
    int64_t *shape = memory((size_t)dimensions * sizeof *shape);
    numbers(shape, (size_t)dimensions * sizeof *shape);
    sizes[i] = (size_t)bits / 8;
    for (int64_t k = 0; k < dimensions; k++) sizes[i] *= (size_t)shape[k];
    void *data = memory(sizes[i]);
    numbers(data, sizes[i]);
    tensors[0][i] = (dl_tensor){data, 1, 0, (int32_t)dimensions, (uint8_t)code, (uint8_t)bits, 1,
                                shape, NULL, 0};
    arguments[0][i] = (tvm_any){TVM_DLTENSOR, 0, &tensors[0][i]};
  }
}

static long long value_of(const void *data, size_t at, int bytes) {
  if (bytes == 1) return ((const int8_t *)data)[at];
  return bytes == 2 ? ((const int16_t *)data)[at] : ((const int32_t *)data)[at];
}

static void check_results(void) {
  for (int64_t left = number(); left > 0; left--) {
    int64_t index = number(), rows = number(), width = number();
    int bytes = tensors[0][index].bits / 8;
    size_t all = (size_t)(rows * width * bytes);
    char *want = memory(all), *got = tensors[0][index].data;
    numbers(want, all);
    for (size_t i = 0; i < all; i++) {
      if (want[i] == got[i]) continue;
      size_t at = i / (size_t)bytes;
      fprintf(stderr,
              "wrong result: argument %d row %zu column %zu is %lld, the reference says %lld\n",
              (int)index, at / (size_t)width, at % (size_t)width, value_of(got, at, bytes),
              value_of(want, at, bytes));
      exit(1);
    }
  }
}

/* Returns how many copies there are. */
static int copy_constants(void) {
  int64_t constants = number(), which[MOST];
  size_t size = 0;
  if (constants > MOST) fail("the case has too many constants");
  for (int64_t i = 0; i < constants; i++) size += sizes[which[i] = number()];
  int copies = size > SMALL ? (int)((COLD + size - 1) / size) : 1;
  if (copies > COPIES) copies = COPIES;
  for (int copy = 1; copy < copies; copy++) {
    memcpy(tensors[copy], tensors[0], sizeof tensors[0]);
    for (int64_t i = 0; i < constants; i++) {
      int64_t at = which[i];
      void *data = memory(sizes[at]);
      tensors[copy][at].data = memcpy(data, tensors[0][at].data, sizes[at]);
    }
    for (int64_t i = 0; i < count; i++)
      arguments[copy][i] = (tvm_any){TVM_DLTENSOR, 0, &tensors[copy][i]};
  }
  return copies;
}

/* Of this thread: what it waits for others does not count. */
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 2 || !(file = fopen(argv[1], "rb"))) fail("usage: board CASE");
  read_arguments();
  call(0);
  check_results();
  int copies = copy_constants(), at = 0;
  double start = now(), spent[BATCHES];
  for (int i = 0; i < copies; i++) call(i);
  double each = (now() - start) / copies;
  long calls = each > 0 ? (long)(BATCH_SECONDS / each + 0.5) : 1000;
  if (calls < 1) calls = 1;
  for (int batch = 0; batch < BATCHES; batch++) {
    start = now();
    for (long i = 0; i < calls; i++) call(at++ % copies);
    spent[batch] = (now() - start) / (double)calls;
  }
  qsort(spent, BATCHES, sizeof *spent, by_size);
  for (int i = 0; i < KEPT; i++) printf("%.9g\n", spent[i]);
  return 0;
}
