/* Runs the plan on a GPU: loads the kernels, keeps the weights on the device, launches the steps.
 *
 * A run has a context to itself: a stream, device memory for inputs and buffers, pinned memory of
 * the host for what is copied. Everything of a run goes to its stream, so runs of several threads
 * only share the GPU. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_driver.h"

static const plan_table *const plan = &intformer_plan;

enum { REASON = 700, MAX_GRID_YZ = 65535, GRAPHS = 8 };

/* A run of the same size as one before, as one launch. */
typedef struct {
  const plan_variant *variant;
  int32_t counts[LONGEST + 1];
  uint64_t used; /* number of the run that used it last; 0: never */
  cu_graph_exec graph; /* recorded at the second run */
  bool plain; /* it cannot be recorded */
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

typedef struct {
  cu_module module;
  cu_function *functions; /* [plan->num_launches]; NULL: not loaded */
} kernels;

static context *idle; /* contexts nobody runs in */
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static kernels *loaded; /* [plan->num_variants] */
static cu_pointer weights;
static uint64_t first_weight; /* in the blob */

static _Atomic pid_t opened_in; /* the process that opened the driver */
static int gpu_code; /* why there is no GPU */
static char gpu_reason[REASON];

/* ---- what this GPU runs ---- */

void if_set_up(void) {
  opened_in = getpid();
  gpu_code = if_cuda_open((message){gpu_reason, sizeof gpu_reason});
  if (gpu_code) opened_in = 0; /* nothing that a child could spoil */
  loaded = calloc((size_t)plan->num_variants, sizeof *loaded);
  if (!gpu_code && !loaded)
    gpu_code = if_fail((message){gpu_reason, sizeof gpu_reason}, INTFORMER_MEMORY, "no memory");
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

int if_usable(message why, const plan_variant *variant) {
  const cuda_gpu *gpu = &if_gpu;
  if (gpu_code) return if_fail(why, gpu_code, "%s", gpu_reason);
  bool newer = gpu->major > variant->major;
  bool same = gpu->major == variant->major && gpu->minor >= variant->minor;
  if (!same && !(newer && variant->ptx))
    return if_fail(why, INTFORMER_GPU,
                   "%s needs compute capability %d.%d%s, GPU %s has %d.%d - compile for another "
                   "target",
                   variant->name, variant->major, variant->minor, variant->ptx ? " or newer" : "",
                   gpu->name, gpu->major, gpu->minor);
  pthread_mutex_lock(&load_lock);
  kernels *k = &loaded[variant - plan->variants];
  int code = INTFORMER_OK;
  if (!k->functions) {
    cu_result result = if_cuda.push(gpu->context);
    code = result ? if_cuda_fail(why, "using the GPU", result) : load(why, variant, k);
    if (!result) if_cuda.pop(&(cu_context){NULL});
  }
  pthread_mutex_unlock(&load_lock);
  return code;
}

/* ---- memory ---- */

static void drop_graphs(context *c) {
  for (int i = 0; i < GRAPHS; i++) {
    if (c->replays[i].graph) if_cuda.drop_graph_exec(c->replays[i].graph);
    c->replays[i] = (replay){0};
  }
}

static void drop_arena(context *c) {
  drop_graphs(c); /* they hold addresses */
  if (c->arena) if_cuda.free(c->arena);
  c->arena = 0, c->arena_size = 0;
}

/* What idle contexts keep is given up before a run fails for want of memory. */
static cu_result device_memory(cu_pointer *pointer, size_t size) {
  cu_result result = if_cuda.alloc(pointer, size);
  if (result != CU_OUT_OF_MEMORY) return result;
  pthread_mutex_lock(&idle_lock);
  for (context *c = idle; c; c = c->next) drop_arena(c);
  pthread_mutex_unlock(&idle_lock);
  return if_cuda.alloc(pointer, size);
}

/* Copies the constants to the device, as they lie in the blob, at the first run that succeeds. */
static int load_weights(message err) {
  cu_result result = CU_SUCCESS;
  cu_pointer memory = 0;
  uint64_t from = UINT64_MAX, to = 0;
  for (int32_t i = 0; i < plan->num_tensors; i++) {
    const plan_tensor *p = &plan->tensors[i];
    uint64_t size = p->bits / 8;
    if (p->kind != CONSTANT) continue;
    for (int32_t k = 0; k < p->ndim; k++) size *= (uint64_t)p->shape[k];
    if (p->offset < from) from = p->offset;
    if (p->offset + size > to) to = p->offset + size;
  }
  pthread_mutex_lock(&load_lock);
  if (!weights && from < to) {
    result = device_memory(&memory, to - from);
    if (!result) result = if_cuda.to_device(memory, intformer_blob + from, to - from);
    /* the last part may still be on its way, on a stream that ours do not wait for */
    if (!result) result = if_cuda.wait(NULL);
    if (!result)
      weights = memory, first_weight = from;
    else if (memory)
      if_cuda.free(memory);
  }
  pthread_mutex_unlock(&load_lock);
  if (result == CU_OUT_OF_MEMORY)
    return if_fail(err, INTFORMER_MEMORY, "GPU %s has no memory for %llu MiB of weights",
                   if_gpu.name, (unsigned long long)((to - from) >> 20));
  return result ? if_cuda_fail(err, "copying the weights to the GPU", result) : INTFORMER_OK;
}

static void free_context(context *c) {
  if (c->stream) if_cuda.drop_stream(c->stream);
  free(c->address);
  free(c->params);
  free(c);
}

static context *new_context(void) {
  context *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  c->address = calloc((size_t)plan->num_tensors + 1, sizeof *c->address); /* the last: counts */
  c->params = calloc((size_t)(plan->num_args + plan->num_steps), sizeof *c->params);
  if (!c->address || !c->params || if_cuda.stream(&c->stream, CU_STREAM_NON_BLOCKING)) {
    free_context(c);
    return NULL;
  }
  for (int32_t i = 0; i < plan->num_tensors; i++)
    if (plan->tensors[i].kind == CONSTANT)
      c->address[i] = weights + (plan->tensors[i].offset - first_weight);
  void **param = c->params;
  for (int32_t i = 0; i < plan->num_steps; i++) {
    const plan_step *s = &plan->steps[i];
    for (int32_t k = 0; k < s->num_args; k++)
      *param++ = &c->address[plan->args[s->first_arg + k]];
    *param++ = &c->address[plan->num_tensors];
  }
  return c;
}

static context *take_context(void) {
  pthread_mutex_lock(&idle_lock);
  context *c = idle;
  if (c) idle = c->next;
  pthread_mutex_unlock(&idle_lock);
  return c ? c : new_context();
}

static void return_context(context *c) {
  pthread_mutex_lock(&idle_lock);
  c->next = idle;
  idle = c;
  pthread_mutex_unlock(&idle_lock);
}

static size_t aligned(size_t bytes) { return (bytes + GPU_ALIGN - 1) / GPU_ALIGN * GPU_ALIGN; }

static size_t whole_tiles(int64_t rows) {
  return (size_t)(rows + GPU_TILE - 1) / GPU_TILE * GPU_TILE;
}

static size_t bytes_of(const plan_tensor *p, const intformer_input *in) {
  return (size_t)if_rows(in, p->rows) * (size_t)p->width * (p->bits / 8);
}

/* Bytes that are copied back at once. */
static size_t result_bytes(const intformer_input *in) {
  size_t most = bytes_of(&plan->tensors[plan->output], in);
  for (int32_t i = INPUTS; in->observer && i < plan->num_tensors; i++)
    if (plan->tensors[i].kind == BUFFER && bytes_of(&plan->tensors[i], in) > most)
      most = bytes_of(&plan->tensors[i], in);
  return most;
}

static bool grow_host(context *c, size_t size) {
  void *memory = NULL;
  if (size <= c->host_size) return true;
  drop_graphs(c);
  if (c->host) if_cuda.free_host(c->host);
  c->host = NULL, c->host_size = 0;
  if (if_cuda.alloc_host(&memory, size)) return false;
  c->host = memory, c->host_size = size;
  return true;
}

static bool grow_arena(context *c, size_t size) {
  cu_pointer memory = 0;
  if (size <= c->arena_size) return true;
  drop_arena(c);
  if (device_memory(&memory, size)) return false;
  c->arena = memory, c->arena_size = size;
  return true;
}

/* Places counts, inputs and slots for whole tiles of rows. data: where the host writes the inputs. */
static int lay_out(message err, context *c, const intformer_input *in, int32_t *data[INPUTS]) {
  size_t rows[ROW_KINDS], input_at[INPUTS], slot_at[plan->num_slots + 1];
  size_t end = aligned((LONGEST + 1) * sizeof(int32_t));
  for (int i = 0; i < ROW_KINDS; i++) rows[i] = whole_tiles(if_rows(in, i));
  for (int32_t i = 0; i < INPUTS; i++) {
    input_at[i] = end;
    end += aligned((rows[plan->tensors[i].rows] + (i == CU_SEQLENS)) * sizeof(int32_t));
  }
  c->upload = end;
  for (int32_t i = 0; i < plan->num_slots; i++) {
    size_t most = 0;
    for (int k = 0; k < ROW_KINDS; k++) {
      size_t bytes = plan->slots[i].bytes[k] * (rows[k] / BLOCK);
      if (bytes > most) most = bytes;
    }
    slot_at[i] = end;
    end += aligned(most);
  }
  if (!grow_host(c, c->upload + result_bytes(in)))
    return if_no_memory(err, in, " that the GPU can read");
  if (!grow_arena(c, end)) return if_no_memory(err, in, " on the GPU");
  c->address[plan->num_tensors] = c->arena;
  for (int32_t i = 0; i < plan->num_tensors; i++) {
    const plan_tensor *p = &plan->tensors[i];
    if (p->kind == INPUT) {
      c->address[i] = c->arena + input_at[i];
      data[i] = (int32_t *)(c->host + input_at[i]);
    }
    if (p->kind == BUFFER) c->address[i] = c->arena + slot_at[p->slot];
  }
  return INTFORMER_OK;
}

/* Writes the counts; rows behind the last get id 0 and no tokens, so that a kernel that reads whole
 * tiles of them finds legal numbers. */
static void complete(context *c, const intformer_input *in, int32_t *const data[INPUTS]) {
  int32_t *counts = (int32_t *)c->host, longest = 0;
  for (int32_t i = 0; i < in->batch; i++) {
    int32_t length = data[CU_SEQLENS][i + 1] - data[CU_SEQLENS][i];
    if (length > longest) longest = length;
  }
  counts[TOKENS] = in->num_tokens, counts[SEQUENCES] = in->batch;
  counts[POSITION_ROWS] = in->num_positions, counts[LONGEST] = longest;
  for (int32_t i = 0; i < INPUTS; i++) {
    size_t used = (size_t)if_rows(in, plan->tensors[i].rows);
    size_t all = whole_tiles((int64_t)used);
    if (i != CU_SEQLENS) memset(data[i] + used, 0, (all - used) * sizeof(int32_t));
    for (size_t k = used; i == CU_SEQLENS && k < all; k++) data[i][k + 1] = in->num_tokens;
  }
}

/* ---- run ---- */

static int launch(message err, const kernels *k, context *c, const intformer_input *in,
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
      if_cuda.launch(k->functions[l - plan->launches], grid[0], grid[1], grid[2],
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
        if_cuda.to_host_async(data, c->address[index], bytes_of(p, in), c->stream);
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
static int enqueue(message err, const kernels *k, context *c, const intformer_input *in) {
  const plan_tensor *output = &plan->tensors[plan->output];
  void **params = c->params;
  cu_result result = if_cuda.to_device_async(c->arena, c->host, c->upload, c->stream);
  if (result) return if_cuda_fail(err, "copying the input to the GPU", result);
  for (int32_t i = 0; i < plan->num_steps; i++) {
    int code = launch(err, k, c, in, i, params);
    if (!code && in->observer) code = observe(err, c, in, i);
    if (code) return code;
    params += plan->steps[i].num_args + 1;
  }
  result = if_cuda.to_host_async(c->host + c->upload, c->address[plan->output],
                                 bytes_of(output, in), c->stream);
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

static cu_graph_exec record(const kernels *k, context *c, const intformer_input *in) {
  cu_graph graph = NULL;
  cu_graph_exec exec = NULL;
  if (if_cuda.capture(c->stream, CU_CAPTURE_THREAD_LOCAL)) return NULL;
  int code = enqueue((message){NULL, 0}, k, c, in);
  cu_result result = if_cuda.end_capture(c->stream, &graph);
  if (!code && !result && graph && if_cuda.instantiate(&exec, graph, 0)) exec = NULL;
  if (graph) if_cuda.drop_graph(graph);
  return exec;
}

/* A size that comes again is recorded as a graph, whose launch costs the host less than those of
 * its kernels. A size that cannot be recorded runs as it did the first time. */
static int start(message err, const plan_variant *variant, context *c, const intformer_input *in) {
  const kernels *k = &loaded[variant - plan->variants];
  if (in->observer) return enqueue(err, k, c, in);
  replay *r = find_replay(c, variant);
  if (r->used && !r->graph && !r->plain) {
    r->graph = record(k, c, in);
    r->plain = !r->graph;
  }
  r->used = ++c->runs;
  if (!r->graph) return enqueue(err, k, c, in);
  cu_result result = if_cuda.launch_graph(r->graph, c->stream);
  return result ? if_cuda_fail(err, "launching the kernels", result) : INTFORMER_OK;
}

static int run_in(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t *out) {
  int32_t *data[INPUTS];
  int code = lay_out(err, c, in, data);
  if (!code) code = if_take_inputs(err, in, data);
  if (code) return code;
  complete(c, in, data);
  code = start(err, variant, c, in);
  cu_result result = if_cuda.wait(c->stream); /* after a fault too: the context is used again */
  if (!code && result) code = if_cuda_fail(err, "the run on the GPU", result);
  if (!code) if_copy_output(in, (const int32_t *)(c->host + c->upload), out);
  return code;
}

int if_execute(message err, const plan_variant *variant, const intformer_input *in, int32_t *out) {
  cu_result result = if_cuda.push(if_gpu.context);
  if (result) return if_cuda_fail(err, "using the GPU", result);
  int code = load_weights(err);
  if (!code) {
    context *c = take_context();
    code = c ? run_in(err, variant, c, in, out)
             : if_fail(err, INTFORMER_MEMORY, "no memory for a run");
    if (c) return_context(c);
  }
  if_cuda.pop(&(cu_context){NULL});
  return code;
}
