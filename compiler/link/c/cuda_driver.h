/* The part of the CUDA driver's interface that a library uses, as libcuda.so.1 exports it. Written
 * here, so that building a library needs no CUDA. */
#ifndef INTFORMER_CUDA_DRIVER_H
#define INTFORMER_CUDA_DRIVER_H

#include "plan.h"

typedef int cu_result; /* CUresult */
typedef int cu_device;
typedef uint64_t cu_pointer; /* CUdeviceptr */
typedef struct cu_context *cu_context;
typedef struct cu_module *cu_module;
typedef struct cu_function *cu_function;
typedef struct cu_stream *cu_stream;
typedef struct cu_graph *cu_graph;
typedef struct cu_graph_exec *cu_graph_exec;
typedef struct cu_node *cu_node;
typedef struct { /* CUDA_KERNEL_NODE_PARAMS_v1 */
  cu_function function;
  unsigned grid[3], threads[3], shared;
  void **params, **extra;
} cu_kernel;

enum { CU_SUCCESS = 0, CU_OUT_OF_MEMORY = 2 };
enum { CU_FIRST_KERNEL_FAULT = 700, CU_LAST_KERNEL_FAULT = 719 }; /* bad addresses, launches */
enum { CU_CONTEXT_IS_DESTROYED = 709 }; /* among them, but no kernel's doing */
enum { CU_MAJOR = 75, CU_MINOR = 76 };                   /* CUdevice_attribute */
enum { CU_JIT_ERROR_LOG = 5, CU_JIT_ERROR_LOG_SIZE = 6 }; /* CUjit_option */
enum { CU_STREAM_NON_BLOCKING = 1, CU_CAPTURE_MODE_RELAXED = 2 };

/* X(member, symbol, parameters): all of them are in every driver since CUDA 11.4 (470) */
#define CUDA_FUNCTIONS(X)                                                                         \
  X(init, cuInit, (unsigned))                                                                     \
  X(version, cuDriverGetVersion, (int *))                                                         \
  X(error_name, cuGetErrorName, (cu_result, const char **))                                       \
  X(error_text, cuGetErrorString, (cu_result, const char **))                                     \
  X(device_count, cuDeviceGetCount, (int *))                                                      \
  X(device, cuDeviceGet, (cu_device *, int))                                                      \
  X(device_name, cuDeviceGetName, (char *, int, cu_device))                                       \
  X(attribute, cuDeviceGetAttribute, (int *, int, cu_device))                                     \
  X(retain, cuDevicePrimaryCtxRetain, (cu_context *, cu_device))                                  \
  X(push, cuCtxPushCurrent_v2, (cu_context))                                                      \
  X(pop, cuCtxPopCurrent_v2, (cu_context *))                                                      \
  X(load, cuModuleLoadDataEx, (cu_module *, const void *, unsigned, int *, void **))              \
  X(function, cuModuleGetFunction, (cu_function *, cu_module, const char *))                      \
  X(unload, cuModuleUnload, (cu_module))                                                          \
  X(alloc, cuMemAlloc_v2, (cu_pointer *, size_t))                                                 \
  X(free, cuMemFree_v2, (cu_pointer))                                                             \
  X(alloc_host, cuMemAllocHost_v2, (void **, size_t))                                             \
  X(free_host, cuMemFreeHost, (void *))                                                           \
  X(to_device, cuMemcpyHtoD_v2, (cu_pointer, const void *, size_t))                               \
  X(to_device_async, cuMemcpyHtoDAsync_v2, (cu_pointer, const void *, size_t, cu_stream))         \
  X(to_host_async, cuMemcpyDtoHAsync_v2, (void *, cu_pointer, size_t, cu_stream))                 \
  X(stream, cuStreamCreate, (cu_stream *, unsigned))                                              \
  X(drop_stream, cuStreamDestroy_v2, (cu_stream))                                                 \
  X(wait, cuStreamSynchronize, (cu_stream))                                                       \
  X(launch, cuLaunchKernel,                                                                       \
    (cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,           \
     cu_stream, void **, void **))                                                                \
  X(capture_mode, cuThreadExchangeStreamCaptureMode, (int *))                                     \
  X(graph, cuGraphCreate, (cu_graph *, unsigned))                                                 \
  X(add_kernel, cuGraphAddKernelNode,                                                             \
    (cu_node *, cu_graph, const cu_node *, size_t, const cu_kernel *))                            \
  X(instantiate, cuGraphInstantiateWithFlags, (cu_graph_exec *, cu_graph, unsigned long long))    \
  X(launch_graph, cuGraphLaunch, (cu_graph_exec, cu_stream))                                      \
  X(drop_graph, cuGraphDestroy, (cu_graph))                                                       \
  X(drop_graph_exec, cuGraphExecDestroy, (cu_graph_exec))

#define CUDA_MEMBER(member, symbol, parameters) cu_result(*member) parameters;
typedef struct {
  CUDA_FUNCTIONS(CUDA_MEMBER)
} cuda_driver;
#undef CUDA_MEMBER

extern cuda_driver if_cuda; /* filled by if_cuda_open() */

/* The GPU this process uses: the first that CUDA_VISIBLE_DEVICES leaves. */
typedef struct {
  cu_device device;
  cu_context context; /* its primary one, shared with everything else in the process */
  int driver; /* CUDA version of the driver: 1000 * major + 10 * minor */
  int major, minor; /* compute capability */
  char name[128];
} cuda_gpu;
extern cuda_gpu if_gpu;

/* Loads the driver and takes the GPU; a code and the reason where there is none. */
int if_cuda_open(message why);
/* Makes the GPU's context current for this thread, and lets its calls be while another thread
 * records a stream that does not wait for the default one, until if_cuda_leave() gets what this put
 * into `mode`. */
cu_result if_cuda_enter(int *mode);
void if_cuda_leave(int mode);
/* `what` failed with this result; INTFORMER_MEMORY, INTFORMER_KERNEL or INTFORMER_GPU. */
int if_cuda_fail(message err, const char *what, cu_result result);

#endif
