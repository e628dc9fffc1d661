/* Opens libcuda.so.1, which comes with the driver of the GPU, and says what is missing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "cuda_driver.h"

enum { UNCHANGED = -1 }; /* capture mode */

cuda_driver if_cuda;
cuda_gpu if_gpu;

static int open_driver(message why) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return if_fail(why, INTFORMER_GPU,
                   "no NVIDIA driver here: %s - this library needs a GPU; run it on a machine with "
                   "one, or compile for a CPU",
                   dlerror());
#define CUDA_LOAD(member, symbol, parameters)                                                     \
  if (!(if_cuda.member = (cu_result(*) parameters)dlsym(library, #symbol)))                       \
    return if_fail(why, INTFORMER_GPU, "the NVIDIA driver has no " #symbol " - update it");
  CUDA_FUNCTIONS(CUDA_LOAD)
#undef CUDA_LOAD
  return INTFORMER_OK;
}

static int take_gpu(message why) {
  cuda_gpu *gpu = &if_gpu;
  cu_result result = if_cuda.init(0);
  int count = 0;
  if (result) return if_cuda_fail(why, "starting the NVIDIA driver (see nvidia-smi)", result);
  if_cuda.version(&gpu->driver);
  result = if_cuda.device_count(&count);
  if (!result && !count)
    return if_fail(why, INTFORMER_GPU,
                   "no GPU is visible - this library needs one; see nvidia-smi and "
                   "CUDA_VISIBLE_DEVICES");
  if (!result) result = if_cuda.device(&gpu->device, 0);
  if (!result) result = if_cuda.attribute(&gpu->major, CU_MAJOR, gpu->device);
  if (!result) result = if_cuda.attribute(&gpu->minor, CU_MINOR, gpu->device);
  if (!result) result = if_cuda.device_name(gpu->name, sizeof gpu->name, gpu->device);
  if (!result) result = if_cuda.retain(&gpu->context, gpu->device);
  return result ? if_cuda_fail(why, "taking the GPU", result) : INTFORMER_OK;
}

int if_cuda_open(message why) {
  int code = open_driver(why);
  return code ? code : take_gpu(why);
}

cu_result if_cuda_enter(int *mode) {
  cu_result result = if_cuda.push(if_gpu.context);
  *mode = CU_CAPTURE_MODE_RELAXED;
  if (!result && if_cuda.capture_mode(mode)) *mode = UNCHANGED;
  return result;
}

void if_cuda_leave(int mode) {
  if (mode != UNCHANGED) if_cuda.capture_mode(&mode);
  if_cuda.pop(&(cu_context){NULL});
}

int if_cuda_fail(message err, const char *what, cu_result result) {
  const char *name = NULL, *text = NULL;
  if (if_cuda.error_name(result, &name)) name = "unknown error";
  if (if_cuda.error_text(result, &text)) text = "newer than this library";
  bool kernel = result >= CU_FIRST_KERNEL_FAULT && result <= CU_LAST_KERNEL_FAULT &&
                result != CU_CONTEXT_IS_DESTROYED;
  int code = result == CU_OUT_OF_MEMORY ? INTFORMER_MEMORY
             : kernel                   ? INTFORMER_KERNEL
                                        : INTFORMER_GPU;
  return if_fail(err, code, "%s failed: %s (%s)", what, name, text);
}
