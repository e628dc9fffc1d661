/* Which variants this GPU runs: compares compute capabilities, loads cubin or PTX, once each. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda.h"

static const plan_table *const plan = &intformer_plan;

enum { REASON = 700 };

typedef struct {
  cu_module module;
  cu_function *functions; /* [plan->num_launches]; NULL: not loaded */
} kernels;

static kernels *loaded; /* [plan->num_variants] */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER; /* of all these but opened_in */
static _Atomic pid_t opened_in; /* the process that opened the driver */
static int gpu_code; /* why there is no GPU */
static char gpu_reason[REASON];

static void open_gpu(void) {
  message why = {gpu_reason, sizeof gpu_reason};
  opened_in = getpid();
  gpu_code = if_cuda_open(why);
  if (gpu_code && gpu_code != INTFORMER_MEMORY) opened_in = 0; /* nothing a child could spoil */
  if (!loaded) loaded = calloc((size_t)plan->num_variants, sizeof *loaded);
  if (!gpu_code && !loaded) gpu_code = if_fail(why, INTFORMER_MEMORY, "no memory");
}

void if_set_up(void) {
  pthread_mutex_lock(&load_lock);
  open_gpu();
  pthread_mutex_unlock(&load_lock);
}

int if_check_process(message why) {
  pid_t opener = opened_in;
  if (!opener || opener == getpid()) return INTFORMER_OK;
  return if_fail(why, INTFORMER_GPU,
                 "process %d was forked from one that had opened the GPU (%d), which CUDA does not "
                 "survive - load the library after fork(), or spawn the process",
                 getpid(), opener);
}

const char *if_device_name(void) { return if_gpu.name; }

int if_set_threads(int threads) {
  return threads < 0 || threads > 1024 ? INTFORMER_BAD_INPUT : INTFORMER_OK;
}

int if_get_threads(void) { return 1; }

int if_run_alone(int alone) {
  (void)alone;
  return INTFORMER_OK;
}

void if_parallel(parallel_fn fn, void *data) {
  parallel_env env = {NULL, 1};
  fn(0, &env, data);
}

static int load(message why, const plan_variant *variant, kernels *k) {
  char log[300] = "";
  int options[] = {CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_SIZE};
  void *values[] = {log, (void *)(uintptr_t)sizeof log};
  cu_function *functions = calloc((size_t)plan->num_launches, sizeof *functions);
  if (!functions) return if_fail(why, INTFORMER_MEMORY, "no memory");
  const void *image = intformer_blob + variant->offset;
  cu_result result = if_cuda.load(&k->module, image, variant->ptx ? 2 : 0, options, values);
  if (result) {
    char fault[REASON - 200];
    int code = if_cuda_fail((message){fault, sizeof fault}, "loading", result);
    free(functions);
    log[strcspn(log, "\n")] = 0; /* messages are one line */
    return if_fail(why, code,
                   "%s: %s%s%s - GPU %s, driver for CUDA %d.%d; update the driver, or compile for "
                   "another target",
                   variant->name, fault, *log ? " " : "", log, if_gpu.name, if_gpu.driver / 1000,
                   if_gpu.driver % 1000 / 10);
  }
  for (int32_t i = 0; i < plan->num_launches && !result; i++)
    result = if_cuda.function(&functions[i], k->module, plan->launches[i].function);
  if (result) {
    if_cuda.unload(k->module);
    free(functions);
    return if_cuda_fail(why, "looking up a kernel", result);
  }
  k->functions = functions;
  return INTFORMER_OK;
}

static int usable(message why, const plan_variant *variant) {
  const cuda_gpu *gpu = &if_gpu;
  if (gpu_code == INTFORMER_MEMORY) open_gpu(); /* others may have left some since */
  if (gpu_code) return if_fail(why, gpu_code, "%s", gpu_reason);
  bool newer = gpu->major > variant->major;
  bool same = gpu->major == variant->major && gpu->minor >= variant->minor;
  if (!same && !(newer && variant->ptx))
    return if_fail(why, INTFORMER_GPU,
                   "%s needs compute capability %d.%d%s, GPU %s has %d.%d - compile for another "
                   "target",
                   variant->name, variant->major, variant->minor, variant->ptx ? " or newer" : "",
                   gpu->name, gpu->major, gpu->minor);
  kernels *k = &loaded[variant - plan->variants];
  if (k->functions) return INTFORMER_OK;
  int mode;
  cu_result result = if_cuda_enter(&mode);
  if (result) return if_cuda_fail(why, "using the GPU", result);
  int code = load(why, variant, k);
  if_cuda_leave(mode);
  return code;
}

int if_usable(message why, const plan_variant *variant) {
  pthread_mutex_lock(&load_lock);
  int code = usable(why, variant);
  pthread_mutex_unlock(&load_lock);
  return code;
}

cu_function if_cuda_function(const plan_variant *variant, const plan_launch *launch) {
  return loaded[variant - plan->variants].functions[launch - plan->launches];
}
