/* Runs the plan on a GPU: copies the input, launches the steps in order, copies the output.
 *
 * Everything of a run goes to the stream of its context, so runs of several threads share nothing
 * but the GPU. */
#define _GNU_SOURCE
#include <string.h>

#include "cuda.h"

static const plan_table *const plan = &intformer_plan;

enum { MAX_GRID_YZ = 65535 };

/* The kernel of a step for these rows; no blocks where there are none. */
static int size_up(message err, const plan_variant *variant, const context *c,
                   const intformer_input *in, int32_t step, cu_kernel *kernel) {
  const plan_step *s = &plan->steps[step];
  const int32_t *counts = (const int32_t *)c->host;
  const plan_launch *l = &plan->launches[s->first_launch];
  while (if_rows(in, l->rows) > l->limit) l++; /* the last has no limit */
  *kernel = (cu_kernel){.function = if_cuda_function(variant, l),
                        .threads = {(unsigned)l->threads, 1, 1},
                        .shared = (unsigned)l->shared,
                        .params = c->params + s->first_arg + step};
  for (int i = 0; i < 3; i++) {
    int64_t count = l->grid[i].count == ONE ? 1 : counts[l->grid[i].count];
    int64_t blocks = (count + l->grid[i].divisor - 1) / l->grid[i].divisor * l->grid[i].factor;
    if (blocks > (i ? MAX_GRID_YZ : INT32_MAX))
      return if_fail(err, INTFORMER_BAD_INPUT,
                     "kernel %s of step %d needs %lld blocks in one direction, more than a GPU "
                     "takes - split the batch",
                     s->name, step, (long long)blocks);
    kernel->grid[i] = (unsigned)blocks;
  }
  return INTFORMER_OK;
}

static bool has_blocks(const cu_kernel *k) { return k->grid[0] && k->grid[1] && k->grid[2]; }

static int launch(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t step) {
  cu_kernel k;
  int code = size_up(err, variant, c, in, step, &k);
  if (code || !has_blocks(&k)) return code;
  cu_result result =
      if_cuda.launch(k.function, k.grid[0], k.grid[1], k.grid[2], k.threads[0], k.threads[1],
                     k.threads[2], k.shared, c->stream, k.params, k.extra);
  if (!result) return INTFORMER_OK;
  char what[200];
  if_fail((message){what, sizeof what}, 0, "kernel %.100s of step %d", plan->steps[step].name,
          step);
  return if_cuda_fail(err, what, result);
}

static int observe(message err, context *c, const intformer_input *in, int32_t step) {
  const plan_step *s = &plan->steps[step];
  char *data = c->host + c->upload;
  for (int32_t i = 0; i < s->num_outputs; i++) {
    int32_t index = plan->outputs[s->first_output + i];
    const plan_tensor *p = &plan->tensors[index];
    cu_result result =
        if_cuda.to_host_async(data, c->address[index], if_cuda_bytes(p, in), c->stream);
    if (!result) result = if_cuda.wait(c->stream);
    if (result) {
      char what[200];
      if_fail((message){what, sizeof what}, 0, "kernel %.100s of step %d", s->name, step);
      return if_cuda_fail(err, what, result);
    }
    in->observer(in->user, step, p->name, data, if_rows(in, p->rows), p->width, p->dtype);
  }
  return INTFORMER_OK;
}

static int launch_all(message err, const plan_variant *variant, context *c,
                      const intformer_input *in) {
  for (int32_t i = 0; i < plan->num_steps; i++) {
    int code = launch(err, variant, c, in, i);
    if (!code && in->observer) code = observe(err, c, in, i);
    if (code) return code;
  }
  return INTFORMER_OK;
}

/* ---- runs of one size, over and over ---- */

/* The entry of runs like this one; a new one takes the place of what was used longest ago. */
static replay *find_replay(context *c, const plan_variant *variant) {
  replay *oldest = &c->replays[0];
  for (int i = 0; i < GRAPHS; i++) {
    replay *r = &c->replays[i];
    if (r->used && r->variant == variant && !memcmp(r->counts, c->host, sizeof r->counts))
      return r;
    if (r->used < oldest->used) oldest = r;
  }
  if (oldest->graph) if_cuda.drop_graph_exec(oldest->graph);
  *oldest = (replay){.variant = variant};
  memcpy(oldest->counts, c->host, sizeof oldest->counts);
  return oldest;
}

/* Built node by node: while a stream is recorded, nobody else may wait for the whole GPU. */
static cu_graph_exec build(const plan_variant *variant, context *c, const intformer_input *in) {
  cu_graph graph = NULL;
  cu_graph_exec exec = NULL;
  cu_node node = NULL;
  if (if_cuda.graph(&graph, 0)) return NULL;
  bool failed = false;
  for (int32_t i = 0; i < plan->num_steps && !failed; i++) {
    cu_kernel kernel;
    cu_node before = node;
    failed = size_up((message){NULL, 0}, variant, c, in, i, &kernel);
    if (!failed && has_blocks(&kernel))
      failed = if_cuda.add_kernel(&node, graph, &before, before != NULL, &kernel);
  }
  if (failed || if_cuda.instantiate(&exec, graph, 0)) exec = NULL;
  if_cuda.drop_graph(graph);
  return exec;
}

/* Starts all kernels. A size that comes again becomes a graph, whose launch costs the host less
 * than those of its kernels; where the driver makes none, it runs as it did the first time. */
static int start(message err, const plan_variant *variant, context *c, const intformer_input *in) {
  if (in->observer) return launch_all(err, variant, c, in);
  replay *r = find_replay(c, variant);
  if (r->used && !r->graph && !r->plain) {
    r->graph = build(variant, c, in);
    r->plain = !r->graph;
  }
  r->used = ++c->runs;
  if (!r->graph) return launch_all(err, variant, c, in);
  cu_result result = if_cuda.launch_graph(r->graph, c->stream);
  return result ? if_cuda_fail(err, "launching the kernels", result) : INTFORMER_OK;
}

/* Puts a whole run on the stream. */
static int enqueue(message err, const plan_variant *variant, context *c,
                   const intformer_input *in) {
  const plan_tensor *output = &plan->tensors[plan->output];
  cu_result result = if_cuda.to_device_async(c->arena, c->host, c->upload, c->stream);
  if (result) return if_cuda_fail(err, "copying the input to the GPU", result);
  int code = start(err, variant, c, in);
  if (code) return code;
  result = if_cuda.to_host_async(c->host + c->upload, c->address[plan->output],
                                 if_cuda_bytes(output, in), c->stream);
  return result ? if_cuda_fail(err, "copying the output from the GPU", result) : INTFORMER_OK;
}

static int run_in(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t *out) {
  int code = if_cuda_prepare(err, c, in);
  if (code) return code;
  code = enqueue(err, variant, c, in);
  cu_result result = if_cuda.wait(c->stream); /* after a fault too: the context is used again */
  if (!code && result) code = if_cuda_fail(err, "the run on the GPU", result);
  if (!code) if_copy_output(in, (const int32_t *)(c->host + c->upload), out);
  return code;
}

int if_execute(message err, const plan_variant *variant, const intformer_input *in, int32_t *out) {
  int mode;
  cu_result result = if_cuda_enter(&mode);
  if (result) return if_cuda_fail(err, "using the GPU", result);
  int code = if_cuda_weights(err);
  context *c = NULL;
  if (!code) code = if_cuda_take_context(err, &c);
  if (!code) code = run_in(err, variant, c, in, out);
  if (c) if_cuda_return_context(c);
  if_cuda_leave(mode);
  return code;
}
