/* What the sources of a GPU's runtime share. */
#ifndef INTFORMER_CUDA_H
#define INTFORMER_CUDA_H

#include "cuda_driver.h"

enum { GRAPHS = 8 };

/* A run of the same size as one before: its kernels as one launch. */
typedef struct {
  const plan_variant *variant;
  int32_t counts[LONGEST + 1];
  uint64_t used; /* number of the run that used it last; 0: never */
  cu_graph_exec graph; /* of its kernels, built at the second run */
  bool plain; /* the driver makes no graph of them */
} replay;

/* What one run needs; kept for the next run. */
typedef struct context {
  struct context *next;
  cu_stream stream;
  cu_pointer arena; /* on the device: counts, inputs, slots */
  size_t arena_size;
  char *host; /* pinned: counts and inputs as on the device, then what is copied back */
  size_t host_size;
  size_t upload; /* bytes of counts and inputs */
  cu_pointer *address; /* [plan->num_tensors] on the device */
  void **params; /* [plan->num_args + plan->num_steps]: of each step, its arguments and counts */
  uint64_t runs;
  replay replays[GRAPHS];
} context;

/* cuda_kernels.c: of every launch of the plan, in a variant that if_usable() found to run */
cu_function if_cuda_function(const plan_variant *variant, const plan_launch *launch);

/* cuda_memory.c; all of them with the GPU's context current */
int if_cuda_weights(message err); /* copies the constants to the device, once in a process */
int if_cuda_take_context(message err, context **c); /* after the weights */
void if_cuda_return_context(context *c);
size_t if_cuda_bytes(const plan_tensor *buffer, const intformer_input *in);
/* Copies the checked input to pinned memory and finds a place for everything on the device. */
int if_cuda_prepare(message err, context *c, const intformer_input *in);

#endif
