/* A libcuda.so.1 for machines without a GPU: the calls that compiler/link/c/cuda.c makes, on host memory.
 *
 * What is put on a stream runs when the stream is waited for, as on a slow GPU. A kernel NAME is
 * `void emulate_NAME(const unsigned grid[3], unsigned threads, void **params)` of the library that
 * FAKE_CUDA_KERNELS names when the module is loaded; where that has `const int emulate_NAME_params`,
 * the number of its parameters, they are copied at the launch as the driver does, and checked.
 * Without that variable a "cubin" is such a library itself. A
 * call that the driver could not answer (wrong direction of a copy, memory that is not pinned, no
 * current context ...) ends the process.
 *
 * Environment, read at every call:
 *   FAKE_CUDA_FAIL    "cuInit=100,cuMemAlloc_v2=2": results of calls; "cuLaunchKernel=719@3": of
 *                     the third such call alone
 *   FAKE_CUDA_GPU     compute capability, default "7.5"
 *   FAKE_CUDA_COUNT   devices, default 1
 *   FAKE_CUDA_MEMORY  bytes of the device, default 1 GiB
 *   FAKE_CUDA_RECORDING  another thread records a stream: others may not do what could spoil it
 *   FAKE_CUDA_LOG     file that gets a line for each call that tests count */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { GUARD = 4096, MAX_ALLOCATIONS = 4096, MAX_PARAMS = 64, STACK = 8 };
enum { INVALID_VALUE = 1, NO_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };
enum { CAPTURE_UNSUPPORTED = 900 };

typedef void (*kernel_fn)(const unsigned grid[3], unsigned threads, void **params);

typedef struct {
  kernel_fn fn;
  char name[200];
  int params; /* -1: not known */
} function;

typedef struct {
  char *base; /* NULL: free entry */
  size_t size;
  bool device;
} allocation;

typedef struct op {
  struct op *next;
  enum { COPY_IN, COPY_OUT, KERNEL } kind;
  char *to, *staged; /* staged: of a synchronous copy */
  const char *from;
  size_t size;
  const function *fn;
  unsigned grid[3], threads;
  void **params; /* the caller's, where their number is not known */
  uint64_t values[MAX_PARAMS];
} op;

typedef struct queue {
  op *first, *last;
  bool capturing;
} queue;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static allocation table[MAX_ALLOCATIONS];
static size_t used;
static queue null_stream;
static int context_object;
static __thread void *current[STACK];
static __thread int depth;
static __thread int capture_mode; /* 0: global, 2: relaxed */

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "fake_cuda: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, "\n");
  _exit(99);
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
  const char *path = getenv("FAKE_CUDA_LOG");
  FILE *file = path && *path ? fopen(path, "a") : NULL;
  if (!file) return;
  va_list list;
  va_start(list, format);
  vfprintf(file, format, list);
  fprintf(file, "\n");
  fclose(file);
}

/* ---- failures on demand ---- */

static int demanded(const char *call) {
  static struct {
    char name[40];
    int calls;
  } seen[40];
  const char *text = getenv("FAKE_CUDA_FAIL");
  int number = 0, result = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < 40; i++)
    if (!*seen[i].name || !strcmp(seen[i].name, call)) {
      snprintf(seen[i].name, sizeof seen[i].name, "%s", call);
      number = ++seen[i].calls;
      break;
    }
  pthread_mutex_unlock(&lock);
  while (text && *text) {
    size_t length = strcspn(text, "=");
    if (length == strlen(call) && !strncmp(text, call, length)) {
      char *end;
      int code = (int)strtol(text + length + 1, &end, 10);
      if (*end != '@' || atoi(end + 1) == number) result = code;
    }
    text += strcspn(text, ",");
    text += *text == ',';
  }
  return result;
}
#define MAY_FAIL()                            \
  do {                                        \
    int result_ = demanded(__func__);         \
    if (result_) return result_;              \
  } while (0)
#define NEEDS_CONTEXT() \
  if (!depth) die("%s without a current context", __func__)
#define NEEDS_RELAXED_MODE() \
  if (capture_mode != 2 && getenv("FAKE_CUDA_RECORDING")) return CAPTURE_UNSUPPORTED

EXPORT int cuGetErrorName(int code, const char **name) {
  static const struct {
    int code;
    const char *name;
  } names[] = {{1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},       {100, "CUDA_ERROR_NO_DEVICE"},
               {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {500, "CUDA_ERROR_NOT_FOUND"},
               {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
               {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
               {719, "CUDA_ERROR_LAUNCH_FAILED"},     {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code == code) return *name = names[i].name, 0;
  return *name = NULL, INVALID_VALUE;
}

EXPORT int cuGetErrorString(int code, const char **text) {
  static __thread char buffer[40];
  snprintf(buffer, sizeof buffer, "fake text of %d", code);
  return *text = buffer, 0;
}

/* ---- device ---- */

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

EXPORT int cuInit(unsigned flags) {
  MAY_FAIL();
  note("init");
  return flags ? INVALID_VALUE : 0;
}

EXPORT int cuDriverGetVersion(int *version) { return *version = 12020, 0; }

EXPORT int cuDeviceGetCount(int *count) {
  MAY_FAIL();
  return *count = number("FAKE_CUDA_COUNT", 1), 0;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
  MAY_FAIL();
  return *device = 70 + ordinal, 0;
}

EXPORT int cuDeviceGetName(char *name, int size, int device) {
  return snprintf(name, (size_t)size, "Fake %d", device), 0;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
  const char *gpu = getenv("FAKE_CUDA_GPU");
  int major = 7, minor = 5;
  if (gpu && sscanf(gpu, "%d.%d", &major, &minor) != 2) die("FAKE_CUDA_GPU=%s", gpu);
  if (device != 70 || (attribute != 75 && attribute != 76 && attribute != 38)) return INVALID_VALUE;
  return *value = attribute == 75 ? major : attribute == 76 ? minor : 8192, 0;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
  MAY_FAIL();
  note("retain");
  if (device != 70) return INVALID_VALUE;
  return *context = &context_object, 0;
}

EXPORT int cuCtxPushCurrent_v2(void *context) {
  MAY_FAIL();
  if (context != &context_object || depth == STACK) return INVALID_VALUE;
  return current[depth++] = context, 0;
}

EXPORT int cuCtxPopCurrent_v2(void **context) {
  NEEDS_CONTEXT();
  if (capture_mode) die("the thread's capture mode was not put back");
  return *context = current[--depth], 0;
}

/* ---- kernels ---- */

/* Opens a shared library that is in memory. */
static void *open_image(const char *image) {
  uint16_t machine, size, count;
  uint64_t sections; /* their table is the end of the file */
  memcpy(&machine, image + 18, sizeof machine);
  memcpy(&sections, image + 40, sizeof sections);
  memcpy(&size, image + 58, sizeof size);
  memcpy(&count, image + 60, sizeof count);
  if (machine == 190) die("an image for a GPU, and FAKE_CUDA_KERNELS is not set");
  char path[] = "/tmp/fake_cuda_XXXXXX";
  int file = mkstemp(path);
  size_t bytes = sections + (size_t)size * count;
  if (file < 0 || write(file, image, bytes) != (ssize_t)bytes || close(file)) die("%s", path);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  return library;
}

EXPORT int cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options,
                              void **values) {
  NEEDS_CONTEXT();
  NEEDS_RELAXED_MODE();
  bool cubin = !memcmp(image, "\177ELF", 4);
  if (cubin && count) die("options for a cubin");
  int result = demanded(cubin ? "cubin" : "ptx");
  if (result && count == 2 && options[0] == 5 && options[1] == 6)
    snprintf(values[0], (size_t)(uintptr_t)values[1], "ptxas: too new\nmore");
  if (result) return result;
  if (!cubin && !strstr(image, ".entry")) die("an image that is neither cubin nor PTX");
  note("load %s", cubin ? "cubin" : "ptx");
  const char *path = getenv("FAKE_CUDA_KERNELS");
  *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : cubin ? open_image(image) : NULL;
  if (!*module) die("FAKE_CUDA_KERNELS: %s", path || cubin ? dlerror() : "is not set");
  return 0;
}

EXPORT int cuModuleUnload(void *module) { return dlclose(module), 0; }

EXPORT int cuModuleGetFunction(function **made, void *module, const char *name) {
  char symbol[300];
  function *f = calloc(1, sizeof *f);
  snprintf(symbol, sizeof symbol, "emulate_%s", name);
  f->fn = (kernel_fn)dlsym(module, symbol);
  snprintf(f->name, sizeof f->name, "%s", name);
  snprintf(symbol, sizeof symbol, "emulate_%s_params", name);
  const int *params = dlsym(module, symbol);
  f->params = params ? *params : -1;
  if (f->params > MAX_PARAMS) die("%s has %d parameters", name, f->params);
  return *made = f, f->fn ? 0 : NOT_FOUND;
}

/* ---- memory ---- */

static bool whole(const allocation *a) {
  for (int i = 0; i < GUARD; i++)
    if (a->base[i - GUARD] != 0x5a || a->base[a->size + (size_t)i] != 0x5a) return false;
  return true;
}

static char *allocate(size_t size, bool device) {
  pthread_mutex_lock(&lock);
  const char *limit = getenv("FAKE_CUDA_MEMORY");
  size_t most = limit && *limit ? strtoull(limit, NULL, 10) : (size_t)1 << 30;
  allocation *a = NULL;
  for (int i = 0; i < MAX_ALLOCATIONS && !a; i++)
    if (!table[i].base) a = &table[i];
  if (!a || (device && used + size > most)) {
    pthread_mutex_unlock(&lock);
    return NULL;
  }
  char *memory = NULL;
  if (posix_memalign((void **)&memory, GUARD, size + 2 * GUARD)) die("no memory");
  memset(memory, 0x5a, size + 2 * GUARD);
  memset(memory + GUARD, 0xa5, size);
  *a = (allocation){memory + GUARD, size, device};
  if (device) used += size;
  pthread_mutex_unlock(&lock);
  return memory + GUARD;
}

static void release(char *base, bool device) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_ALLOCATIONS; i++) {
    allocation *a = &table[i];
    if (a->base != base || a->device != device) continue;
    if (!whole(a)) die("something wrote around an allocation of %zu bytes", a->size);
    if (device) used -= a->size;
    free(a->base - GUARD);
    a->base = NULL;
    pthread_mutex_unlock(&lock);
    return;
  }
  die("free of what is no %s memory", device ? "device" : "pinned");
}

/* The bytes lie in one allocation of this kind. */
static bool within(const char *at, size_t size, bool device) {
  bool found = false;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_ALLOCATIONS && !found; i++) {
    const allocation *a = &table[i];
    found = a->base && a->device == device && at >= a->base && at + size <= a->base + a->size;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

EXPORT int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
  NEEDS_CONTEXT();
  NEEDS_RELAXED_MODE();
  MAY_FAIL();
  if (!size) return INVALID_VALUE;
  char *memory = allocate(size, true);
  note(memory ? "alloc %zu" : "no memory for %zu", size);
  return memory ? (*pointer = (uint64_t)(uintptr_t)memory, 0) : NO_MEMORY;
}

EXPORT int cuMemFree_v2(uint64_t pointer) {
  NEEDS_CONTEXT();
  note("free");
  return release((char *)(uintptr_t)pointer, true), 0;
}

EXPORT int cuMemAllocHost_v2(void **pointer, size_t size) {
  NEEDS_CONTEXT();
  NEEDS_RELAXED_MODE();
  MAY_FAIL();
  note("alloc_host %zu", size);
  return (*pointer = allocate(size, false)) ? 0 : NO_MEMORY;
}

EXPORT int cuMemFreeHost(void *pointer) {
  NEEDS_CONTEXT();
  return release(pointer, false), 0;
}

__attribute__((destructor)) static void check_guards(void) {
  for (int i = 0; i < MAX_ALLOCATIONS; i++)
    if (table[i].base && !whole(&table[i]))
      die("something wrote around an allocation of %zu bytes", table[i].size);
}

/* ---- streams ---- */

static op *append(queue *stream, int kind) {
  op *o = calloc(1, sizeof *o);
  if (!o) die("no memory");
  o->kind = kind;
  *(stream->last ? &stream->last->next : &stream->first) = o;
  return stream->last = o;
}

static void forget(queue *stream) {
  for (op *o = stream->first, *next; o; o = next) {
    next = o->next;
    free(o->staged);
    free(o);
  }
  stream->first = stream->last = NULL;
}

static int perform(queue *stream) {
  static pthread_mutex_t device = PTHREAD_MUTEX_INITIALIZER; /* kernels may have static memory */
  pthread_mutex_lock(&device);
  for (op *o = stream->first; o; o = o->next) {
    if (o->kind == KERNEL) {
      void *values[MAX_PARAMS];
      for (int i = 0; i < MAX_PARAMS; i++) values[i] = &o->values[i];
      o->fn->fn(o->grid, o->threads, o->params ? o->params : values);
    } else {
      memcpy(o->to, o->staged ? o->staged : o->from, o->size);
    }
  }
  pthread_mutex_unlock(&device);
  forget(stream);
  return 0;
}

EXPORT int cuStreamCreate(queue **stream, unsigned flags) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  if (flags != 1) die("a stream that waits for the default one");
  note("stream");
  *stream = calloc(1, sizeof **stream);
  return *stream ? 0 : NO_MEMORY;
}

EXPORT int cuStreamDestroy_v2(queue *stream) { return forget(stream), free(stream), 0; }

EXPORT int cuStreamSynchronize(queue *stream) {
  NEEDS_CONTEXT();
  stream = stream ? stream : &null_stream;
  if (stream->capturing) die("waiting for a stream that is recorded");
  int result = demanded(__func__);
  perform(stream);
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_ALLOCATIONS; i++)
    if (table[i].base && !whole(&table[i])) result = ILLEGAL_ADDRESS;
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
  NEEDS_CONTEXT();
  NEEDS_RELAXED_MODE();
  MAY_FAIL();
  note("copy in %zu", size);
  if (!within((char *)(uintptr_t)to, size, true)) die("copy to what is no device memory");
  op *o = append(&null_stream, COPY_IN); /* returns when it has read, not when it has written */
  o->to = (char *)(uintptr_t)to, o->size = size;
  o->staged = malloc(size);
  if (!o->staged) die("no memory");
  memcpy(o->staged, from, size);
  return 0;
}

EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  if (!within((char *)(uintptr_t)from, size, true)) die("copy from what is no device memory");
  perform(&null_stream);
  memcpy(to, (char *)(uintptr_t)from, size);
  return 0;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, queue *stream) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  note("copy in async %zu", size);
  if (!within((char *)(uintptr_t)to, size, true)) die("copy to what is no device memory");
  if (!within(from, size, false)) die("asynchronous copy from memory that is not pinned");
  op *o = append(stream, COPY_IN);
  o->to = (char *)(uintptr_t)to, o->from = from, o->size = size;
  return 0;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, queue *stream) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  note("copy out %zu", size);
  if (!within((char *)(uintptr_t)from, size, true)) die("copy from what is no device memory");
  if (!within(to, size, false)) die("asynchronous copy to memory that is not pinned");
  op *o = append(stream, COPY_OUT);
  o->to = to, o->from = (char *)(uintptr_t)from, o->size = size;
  return 0;
}

EXPORT int cuLaunchKernel(const function *fn, unsigned x, unsigned y, unsigned z,
                          unsigned threads, unsigned threads_y, unsigned threads_z,
                          unsigned shared, queue *stream, void **params, void **extra) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  note("launch %s %u,%u,%u %u %u", fn->name, x, y, z, threads, shared);
  if (!x || !y || !z || !threads || threads_y != 1 || threads_z != 1 || extra)
    return INVALID_VALUE;
  op *o = append(stream, KERNEL);
  o->fn = fn, o->threads = threads;
  o->grid[0] = x, o->grid[1] = y, o->grid[2] = z;
  if (fn->params < 0) o->params = params;
  for (int i = 0; i < fn->params; i++) {
    memcpy(&o->values[i], params[i], sizeof o->values[i]);
    if (!within((char *)(uintptr_t)o->values[i], 1, true))
      die("parameter %d of %s is no device memory", i, fn->name);
  }
  return 0;
}

/* ---- graphs ---- */

EXPORT int cuThreadExchangeStreamCaptureMode(int *mode) {
  int before = capture_mode;
  if (*mode < 0 || *mode > 2) return INVALID_VALUE;
  capture_mode = *mode;
  return *mode = before, 0;
}

EXPORT int cuGraphCreate(queue **graph, unsigned flags) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  return flags ? INVALID_VALUE : (*graph = calloc(1, sizeof **graph), 0);
}

typedef struct {
  const function *fn;
  unsigned grid[3], threads[3], shared;
  void **params, **extra;
} node_params;

EXPORT int cuGraphAddKernelNode(op **node, queue *graph, op *const *before, size_t count,
                                const node_params *p) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  if (count != (graph->last != NULL) || (count && *before != graph->last))
    die("a node that does not wait for the one before");
  int result = cuLaunchKernel(p->fn, p->grid[0], p->grid[1], p->grid[2], p->threads[0],
                              p->threads[1], p->threads[2], p->shared, graph, p->params, p->extra);
  return *node = graph->last, result;
}

EXPORT int cuStreamBeginCapture_v2(queue *stream, int mode) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  if (mode != 1 || stream->first || stream->capturing) return INVALID_VALUE;
  return stream->capturing = true, 0;
}

EXPORT int cuStreamEndCapture(queue *stream, queue **graph) {
  if (!stream->capturing) return INVALID_VALUE;
  *graph = calloc(1, sizeof **graph);
  **graph = *stream;
  *stream = (queue){0};
  return 0;
}

static void copy_ops(queue *to, const queue *from) {
  for (const op *o = from->first; o; o = o->next) {
    op *made = append(to, o->kind);
    *made = *o;
    made->next = NULL;
  }
}

EXPORT int cuGraphInstantiateWithFlags(queue **exec, const queue *graph,
                                       unsigned long long flags) {
  MAY_FAIL();
  if (flags) return INVALID_VALUE;
  note("graph");
  *exec = calloc(1, sizeof **exec);
  return copy_ops(*exec, graph), 0;
}

EXPORT int cuGraphLaunch(const queue *exec, queue *stream) {
  NEEDS_CONTEXT();
  MAY_FAIL();
  note("launch graph");
  for (const op *o = exec->first; o; o = o->next)
    for (int i = 0; o->kind == KERNEL && i < o->fn->params; i++)
      if (!within((char *)(uintptr_t)o->values[i], 1, true)) die("a graph of memory that is gone");
  return copy_ops(stream, exec), 0;
}

EXPORT int cuGraphDestroy(queue *graph) { return forget(graph), free(graph), 0; }

EXPORT int cuGraphExecDestroy(queue *exec) {
  note("drop graph");
  return forget(exec), free(exec), 0;
}
