/* Memory of the GPU and of the host: weights for the process, a context for each run under way. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

static const plan_table *const plan = &intformer_plan;

static context *idle; /* contexts nobody runs in */
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t weights_lock = PTHREAD_MUTEX_INITIALIZER;
static cu_pointer weights;
static uint64_t first_weight; /* in the blob */

/* With the graphs, which hold its addresses. */
static void drop_arena(context *c) {
  for (int i = 0; i < GRAPHS; i++) {
    if (c->replays[i].graph) if_cuda.drop_graph_exec(c->replays[i].graph);
    c->replays[i] = (replay){0};
  }
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

/* As they lie in the blob; again at the next run where there was no memory. */
int if_cuda_weights(message err) {
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
  pthread_mutex_lock(&weights_lock);
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
  pthread_mutex_unlock(&weights_lock);
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

static int new_context(message err, context **made) {
  context *c = calloc(1, sizeof *c);
  if (!c) return if_fail(err, INTFORMER_MEMORY, "no memory for a run");
  c->address = calloc((size_t)plan->num_tensors + 1, sizeof *c->address); /* the last: counts */
  c->params = calloc((size_t)(plan->num_args + plan->num_steps), sizeof *c->params);
  bool room = c->address && c->params;
  cu_result result = room ? if_cuda.stream(&c->stream, CU_STREAM_NON_BLOCKING) : CU_SUCCESS;
  if (!room || result) {
    free_context(c);
    return room ? if_cuda_fail(err, "making a stream", result)
                : if_fail(err, INTFORMER_MEMORY, "no memory for a run");
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
  *made = c;
  return INTFORMER_OK;
}

int if_cuda_take_context(message err, context **c) {
  pthread_mutex_lock(&idle_lock);
  if ((*c = idle)) idle = idle->next;
  pthread_mutex_unlock(&idle_lock);
  return *c ? INTFORMER_OK : new_context(err, c);
}

void if_cuda_return_context(context *c) {
  pthread_mutex_lock(&idle_lock);
  c->next = idle;
  idle = c;
  pthread_mutex_unlock(&idle_lock);
}

static size_t aligned(size_t bytes) { return (bytes + GPU_ALIGN - 1) / GPU_ALIGN * GPU_ALIGN; }

static size_t whole_tiles(int64_t rows) {
  return (size_t)(rows + GPU_TILE - 1) / GPU_TILE * GPU_TILE;
}

size_t if_cuda_bytes(const plan_tensor *p, const intformer_input *in) {
  return (size_t)if_rows(in, p->rows) * (size_t)p->width * (p->bits / 8);
}

/* Bytes that are copied back at once. */
static size_t result_bytes(const intformer_input *in) {
  size_t most = if_cuda_bytes(&plan->tensors[plan->output], in);
  for (int32_t i = INPUTS; in->observer && i < plan->num_tensors; i++)
    if (plan->tensors[i].kind == BUFFER && if_cuda_bytes(&plan->tensors[i], in) > most)
      most = if_cuda_bytes(&plan->tensors[i], in);
  return most;
}

static cu_result grow_host(context *c, size_t size) {
  void *memory = NULL;
  if (size <= c->host_size) return CU_SUCCESS;
  if (c->host) if_cuda.free_host(c->host);
  c->host = NULL, c->host_size = 0;
  cu_result result = if_cuda.alloc_host(&memory, size);
  if (!result) c->host = memory, c->host_size = size;
  return result;
}

static cu_result grow_arena(context *c, size_t size) {
  cu_pointer memory = 0;
  if (size <= c->arena_size) return CU_SUCCESS;
  drop_arena(c);
  cu_result result = device_memory(&memory, size);
  if (!result) c->arena = memory, c->arena_size = size;
  return result;
}

static int no_room(message err, const intformer_input *in, const char *where, cu_result result) {
  return result == CU_OUT_OF_MEMORY ? if_no_memory(err, in, where)
                                    : if_cuda_fail(err, "taking memory", result);
}

/* Places counts, inputs and slots for whole tiles of rows.
 * data: where the host writes the inputs. */
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
  cu_result result = grow_host(c, c->upload + result_bytes(in));
  if (result) return no_room(err, in, " that the GPU can read", result);
  result = grow_arena(c, end);
  if (result) return no_room(err, in, " on the GPU", result);
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

int if_cuda_prepare(message err, context *c, const intformer_input *in) {
  int32_t *data[INPUTS];
  int code = lay_out(err, c, in, data);
  if (!code) code = if_take_inputs(err, in, data);
  if (!code) complete(c, in, data);
  return code;
}
