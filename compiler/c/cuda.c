/* Runs the plan on a GPU: copies the input, launches the steps in order, copies the output.
 *
 * Everything of a run goes to the stream of its context, so runs of several threads share nothing
 * but the GPU. */
#define _GNU_SOURCE
#include <string.h>

#include "cuda.h"

static const plan_table *const plan = &intformer_plan;

enum { MAX_GRID_YZ = 65535 };

static int launch(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t step, void **params) {
  const plan_step *s = &plan->steps[step];
  const int32_t *counts = (const int32_t *)c->host;
  const plan_launch *l = &plan->launches[s->first_launch];
  while (if_rows(in, l->rows) > l->limit) l++; /* the last has no limit */
  unsigned grid[3];
  for (int i = 0; i < 3; i++) {
    int64_t count = l->grid[i].count == ONE ? 1 : counts[l->grid[i].count];
    int64_t blocks = (count + l->grid[i].divisor - 1) / l->grid[i].divisor * l->grid[i].factor;
    if (blocks > (i ? MAX_GRID_YZ : INT32_MAX))
      return if_fail(err, INTFORMER_BAD_INPUT,
                     "kernel %s of step %d needs %lld blocks in one direction, more than a GPU "
                     "takes - split the batch",
                     s->name, step, (long long)blocks);
    grid[i] = (unsigned)blocks;
  }
  if (!grid[0] || !grid[1] || !grid[2]) return INTFORMER_OK; /* no rows */
  cu_result result =
      if_cuda.launch(if_cuda_function(variant, l), grid[0], grid[1], grid[2],
                     (unsigned)l->threads, 1, 1, (unsigned)l->shared, c->stream, params, NULL);
  if (!result) return INTFORMER_OK;
  char what[200];
  if_fail((message){what, sizeof what}, 0, "kernel %.100s of step %d", s->name, step);
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

/* Puts a whole run on the stream. */
static int enqueue(message err, const plan_variant *variant, context *c,
                   const intformer_input *in) {
  const plan_tensor *output = &plan->tensors[plan->output];
  void **params = c->params;
  cu_result result = if_cuda.to_device_async(c->arena, c->host, c->upload, c->stream);
  if (result) return if_cuda_fail(err, "copying the input to the GPU", result);
  for (int32_t i = 0; i < plan->num_steps; i++) {
    int code = launch(err, variant, c, in, i, params);
    if (!code && in->observer) code = observe(err, c, in, i);
    if (code) return code;
    params += plan->steps[i].num_args + 1;
  }
  result = if_cuda.to_host_async(c->host + c->upload, c->address[plan->output],
                                 if_cuda_bytes(output, in), c->stream);
  return result ? if_cuda_fail(err, "copying the output from the GPU", result) : INTFORMER_OK;
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

static cu_graph_exec record(const plan_variant *variant, context *c, const intformer_input *in) {
  cu_graph graph = NULL;
  cu_graph_exec exec = NULL;
  if (if_cuda.capture(c->stream, CU_CAPTURE_THREAD_LOCAL)) return NULL;
  int code = enqueue((message){NULL, 0}, variant, c, in);
  cu_result result = if_cuda.end_capture(c->stream, &graph);
  if (!code && !result && graph && if_cuda.instantiate(&exec, graph, 0)) exec = NULL;
  if (graph) if_cuda.drop_graph(graph);
  return exec;
}

/* A size that comes again is recorded as a graph, whose launch costs the host less than those of
 * its kernels. A size that cannot be recorded runs as it did the first time. */
static int start(message err, const plan_variant *variant, context *c, const intformer_input *in) {
  if (in->observer) return enqueue(err, variant, c, in);
  replay *r = find_replay(c, variant);
  if (r->used && !r->graph && !r->plain) {
    r->graph = record(variant, c, in);
    r->plain = !r->graph;
  }
  r->used = ++c->runs;
  if (!r->graph) return enqueue(err, variant, c, in);
  cu_result result = if_cuda.launch_graph(r->graph, c->stream);
  return result ? if_cuda_fail(err, "launching the kernels", result) : INTFORMER_OK;
}

static int run_in(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t *out) {
  int code = if_cuda_prepare(err, c, in);
  if (code) return code;
  code = start(err, variant, c, in);
  cu_result result = if_cuda.wait(c->stream); /* after a fault too: the context is used again */
  if (!code && result) code = if_cuda_fail(err, "the run on the GPU", result);
  if (!code) if_copy_output(in, (const int32_t *)(c->host + c->upload), out);
  return code;
}

int if_execute(message err, const plan_variant *variant, const intformer_input *in, int32_t *out) {
  cu_result result = if_cuda.push(if_gpu.context);
  if (result) return if_cuda_fail(err, "using the GPU", result);
  int code = if_cuda_weights(err);
  if (!code) {
    context *c = if_cuda_take_context();
    code = c ? run_in(err, variant, c, in, out)
             : if_fail(err, INTFORMER_MEMORY, "no memory for a run");
    if (c) if_cuda_return_context(c);
  }
  if_cuda.pop(&(cu_context){NULL});
  return code;
}
