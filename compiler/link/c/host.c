/* Runs the plan on this CPU: which variants it can run, memory, the kernels in order. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static const plan_table *const plan = &intformer_plan;

/* What one run needs; kept for the next run. */
typedef struct context {
  struct context *next;
  char *arena;
  size_t arena_size;
  dl_tensor *tensors; /* [plan->num_tensors] */
  int64_t (*shapes)[3]; /* of inputs and buffers */
  tvm_any *args; /* [plan->num_args] */
} context;

static context *idle; /* contexts nobody runs in */
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;

/* What another thread was changing at the fork is lost to the child; it may be called twice. */
static void after_fork_child(void) {
  if (pthread_mutex_trylock(&idle_lock)) {
    idle = NULL;
    idle_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  } else {
    pthread_mutex_unlock(&idle_lock);
  }
  if_pool_reset_after_fork();
}

/* ---- what this CPU runs ---- */

static atomic_bool registered; /* the handler of fork() */

/* glibc links a pthread_atfork() of its own into every library, which calls the first; musl has the
 * second alone. So the same library loads with either. */
extern int __register_atfork(void (*before)(void), void (*parent)(void), void (*child)(void),
                             void *library) __attribute__((weak));
extern __typeof__(pthread_atfork) pthread_atfork __attribute__((weak));

static int at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
  if (__register_atfork) return __register_atfork(before, parent, child, NULL);
  return pthread_atfork ? pthread_atfork(before, parent, child) : ENOSYS;
}

bool if_survives_fork(void) {
  if (atomic_load(&registered)) return true;
  if (at_fork(NULL, NULL, after_fork_child)) return false;
  atomic_store(&registered, true); /* by two threads at once: both are called */
  return true;
}

void if_set_up(void) { if_survives_fork(); }

int if_check_process(message why) {
  (void)why;
  return INTFORMER_OK;
}

const char *if_device_name(void) { return NULL; }

int if_usable(message why, const plan_variant *variant) {
  if (!if_survives_fork())
    return if_fail(why, INTFORMER_MEMORY, "no memory for the handlers of fork()");
  const plan_feature *missing = if_missing_feature(variant);
  int refused = !missing && if_needs_tiles(variant) ? if_request_tiles() : 0;
  if (missing)
    return if_fail(why, INTFORMER_CPU, "this CPU (or the system) lacks %s", missing->name);
  if (refused)
    return if_fail(why, INTFORMER_CPU,
                   "the system refuses AMX tiles to this process (arch_prctl: %s)",
                   strerror(refused));
  return INTFORMER_OK;
}

/* ---- memory ---- */

static void free_context(context *c) {
  free(c->arena);
  free(c->tensors);
  free(c->shapes);
  free(c->args);
  free(c);
}

static context *new_context(void) {
  context *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  c->tensors = calloc((size_t)plan->num_tensors, sizeof *c->tensors);
  c->shapes = calloc((size_t)plan->num_tensors, sizeof *c->shapes);
  c->args = calloc((size_t)plan->num_args, sizeof *c->args);
  if (!c->tensors || !c->shapes || !c->args) {
    free_context(c);
    return NULL;
  }
  for (int32_t i = 0; i < plan->num_tensors; i++) {
    const plan_tensor *p = &plan->tensors[i];
    dl_tensor *t = &c->tensors[i];
    t->device_type = 1;
    t->code = p->code, t->bits = p->bits, t->lanes = 1;
    t->ndim = p->ndim;
    t->shape = p->kind == CONSTANT ? p->shape : c->shapes[i];
    if (p->kind == CONSTANT) t->data = (void *)(intformer_blob + p->offset);
    if (p->kind == BUFFER) c->shapes[i][1] = BLOCK, c->shapes[i][2] = p->width;
  }
  for (int32_t i = 0; i < plan->num_args; i++)
    c->args[i] = (tvm_any){TVM_DLTENSOR, 0, &c->tensors[plan->args[i]]};
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

static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* Places inputs and slots for these counts; false when there is no memory. */
static bool lay_out(context *c, const intformer_input *in) {
  int64_t rows[ROW_KINDS], blocks[ROW_KINDS];
  for (int i = 0; i < ROW_KINDS; i++) {
    rows[i] = if_rows(in, i);
    blocks[i] = (rows[i] + BLOCK - 1) / BLOCK;
  }

  size_t input_at[INPUTS], slot_at[plan->num_slots + 1], end = 0, longest = 0;
  for (int32_t i = 0; i < INPUTS; i++) {
    int64_t length = rows[plan->tensors[i].rows] + (i == CU_SEQLENS);
    c->shapes[i][0] = length;
    input_at[i] = end;
    end += aligned((size_t)length * sizeof(int32_t));
  }
  for (int32_t i = 0; i < plan->num_slots; i++) {
    size_t most = 0;
    for (int k = 0; k < ROW_KINDS; k++) {
      size_t bytes = plan->slots[i].bytes[k] * (size_t)blocks[k];
      if (bytes > most) most = bytes;
      if (plan->slots[i].bytes[k] > longest) longest = plan->slots[i].bytes[k];
    }
    slot_at[i] = end;
    end += aligned(most);
  }

  /* kernels read whole tiles of rows: up to READ_AHEAD blocks past the last row of any buffer */
  end += longest * READ_AHEAD;

  if (end > c->arena_size) {
    void *arena = NULL;
    free(c->arena);
    c->arena = NULL, c->arena_size = 0;
    if (posix_memalign(&arena, ALIGN, end)) return false;
    c->arena = arena, c->arena_size = end;
  }
  for (int32_t i = 0; i < plan->num_tensors; i++) {
    const plan_tensor *p = &plan->tensors[i];
    if (p->kind == INPUT) c->tensors[i].data = c->arena + input_at[i];
    if (p->kind == BUFFER) {
      c->tensors[i].data = c->arena + slot_at[p->slot];
      c->shapes[i][0] = blocks[p->rows];
    }
  }
  return true;
}

/* ---- run ---- */

static void observe(const context *c, const intformer_input *in, int32_t step) {
  const plan_step *s = &plan->steps[step];
  for (int32_t i = 0; i < s->num_outputs; i++) {
    int32_t index = plan->outputs[s->first_output + i];
    const plan_tensor *p = &plan->tensors[index];
    in->observer(in->user, step, p->name, c->tensors[index].data, if_rows(in, p->rows), p->width,
                 p->dtype);
  }
}

static int run_steps(message err, const plan_variant *variant, const context *c,
                     const intformer_input *in) {
  int prepared = if_prepare_thread(err);
  if (prepared) return prepared;
  for (int32_t i = 0; i < plan->num_steps; i++) {
    const plan_step *s = &plan->steps[i];
    tvm_any result = {TVM_NONE, 0, NULL};
    int32_t code = variant->kernels[i](NULL, c->args + s->first_arg, s->num_args, &result);
    if (code) {
      const char *why;
      int fault = if_kernel_fault(&why);
      return if_fail(err, fault, "kernel %s of step %d failed with code %d: %s", s->name, i, code,
                     why);
    }
    if (in->observer) observe(c, in, i);
  }
  return INTFORMER_OK;
}

int if_execute(message err, const plan_variant *variant, const intformer_input *in, int32_t *out) {
  context *c = take_context();
  if (!c) return if_fail(err, INTFORMER_MEMORY, "no memory for a run");
  int32_t *data[INPUTS];
  int code = lay_out(c, in) ? INTFORMER_OK : if_no_memory(err, in, "");
  if (!code) {
    for (int32_t i = 0; i < INPUTS; i++) data[i] = c->tensors[i].data;
    code = if_take_inputs(err, in, data);
  }
  if (!code) code = run_steps(err, variant, c, in);
  if (!code) if_copy_output(in, c->tensors[plan->output].data, out);
  return_context(c);
  return code;
}
