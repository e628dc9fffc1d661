/* Checks the input, lays out memory, calls the kernels of the plan in order. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static const plan_table *const plan = &intformer_plan;

enum { REASON = 600 }; /* characters of a message about variants */

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
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const plan_variant *_Atomic variant_in_use; /* NULL: none runs here */
static int refusal_code;                           /* why not, as found at the first call */
static char refusal[REASON];

static void before_fork(void) { pthread_mutex_lock(&idle_lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&idle_lock); }
static void after_fork_child(void) {
  pthread_mutex_unlock(&idle_lock); /* the forking thread holds it */
  if_pool_reset_after_fork();
}

/* ---- errors ---- */

typedef struct {
  char *text;
  size_t size;
} message;

__attribute__((format(printf, 3, 4))) static int fail(message err, int code, const char *format,
                                                      ...) {
  if (err.text && err.size) {
    va_list list;
    va_start(list, format);
    vsnprintf(err.text, err.size, format, list);
    va_end(list);
  }
  return code;
}

/* ---- variants ---- */

/* True if this CPU and the system let the variant run; else the reason is in why. */
static bool usable(const plan_variant *variant, message why) {
  const plan_feature *missing = if_missing_feature(variant);
  int refused = !missing && if_needs_tiles(variant) ? if_request_tiles() : 0;
  if (missing) fail(why, 0, "this CPU (or the system) lacks %s", missing->name);
  if (refused)
    fail(why, 0, "the system refuses AMX tiles to this process (arch_prctl: %s)",
         strerror(refused));
  return !missing && !refused;
}

static void list_variants(char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int32_t i = 0; i < plan->num_variants && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "",
                             plan->variants[i].name);
}

/* The variant called `name`; without a name the one INTFORMER_VARIANT says; without that the first
 * that runs here. Leaves the variant in use alone where that fails. */
static int choose(message err, const char *name) {
  const plan_variant *found = NULL;
  char reason[REASON] = "", all[REASON];
  message why = {reason, sizeof reason};
  if (!name || !*name) name = getenv("INTFORMER_VARIANT");
  bool any = !name || !*name;
  for (int32_t i = 0; i < plan->num_variants && !found; i++)
    if (any ? usable(&plan->variants[i], why) : !strcmp(plan->variants[i].name, name))
      found = &plan->variants[i];
  if (!found && any)
    return fail(err, INTFORMER_CPU, "%s - compile for another target, such as x86-64", reason);
  list_variants(all, sizeof all);
  if (!found)
    return fail(err, INTFORMER_BAD_INPUT, "variant %.100s is unknown - this library has %s", name,
                all);
  if (!any && !usable(found, why))
    return fail(err, INTFORMER_CPU, "variant %s does not run here: %s - this library has %s", name,
                reason, all);
  variant_in_use = found;
  return INTFORMER_OK;
}

static void set_up(void) {
  pthread_atfork(before_fork, after_fork_parent, after_fork_child);
  refusal_code = choose((message){refusal, sizeof refusal}, NULL);
}

const char *if_variant(void) {
  pthread_once(&once, set_up);
  const plan_variant *variant = variant_in_use;
  return variant ? variant->name : NULL;
}

int if_set_variant(const char *name, char *text, size_t size) {
  if (text && size) text[0] = 0;
  pthread_once(&once, set_up);
  return choose((message){text, size}, name);
}

/* ---- input ---- */

static int check_ids(message err, const char *what, const int32_t *ids, int32_t count,
                     int32_t limit, const char *of) {
  for (int32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= limit)
      return fail(err, INTFORMER_BAD_INPUT, "%s[%d] is %d - allowed are 0 to %d (%s)", what, i,
                  ids[i], limit - 1, of);
  return INTFORMER_OK;
}

static int check_counts(message err, const intformer_input *in) {
  if (!in || !in->input_ids || !in->cu_seqlens)
    return fail(err, INTFORMER_BAD_INPUT, "input, input_ids or cu_seqlens is NULL");
  if (in->num_tokens < 1 || in->batch < 1)
    return fail(err, INTFORMER_BAD_INPUT,
                "num_tokens is %d and batch %d - a run needs at least one token and one sequence",
                in->num_tokens, in->batch);
  if (in->num_tokens > plan->max_rows || in->batch > plan->max_rows ||
      in->num_positions > plan->max_rows)
    return fail(err, INTFORMER_BAD_INPUT,
                "num_tokens is %d, batch %d, num_positions %d - one run takes at most %d of each; "
                "split the batch",
                in->num_tokens, in->batch, in->num_positions, plan->max_rows);
  if (!plan->takes_positions && in->num_positions)
    return fail(err, INTFORMER_BAD_INPUT,
                "num_positions is %d - this model computes all rows; pass 0", in->num_positions);
  if (plan->takes_positions && (in->num_positions < 1 || !in->positions))
    return fail(err, INTFORMER_BAD_INPUT,
                "num_positions is %d - this model needs the indices of the wanted tokens",
                in->num_positions);
  return INTFORMER_OK;
}

static int check_offsets(message err, const int32_t *offsets, int32_t batch, int32_t tokens) {
  if (offsets[0] != 0 || offsets[batch] != tokens)
    return fail(err, INTFORMER_BAD_INPUT,
                "cu_seqlens runs from %d to %d - it must run from 0 to the number of tokens, %d",
                offsets[0], offsets[batch], tokens);
  for (int32_t i = 0; i < batch; i++) {
    int64_t length = (int64_t)offsets[i + 1] - offsets[i];
    if (length == 0)
      return fail(err, INTFORMER_BAD_INPUT, "sequence %d is empty - drop it from the batch", i);
    if (length < 0)
      return fail(err, INTFORMER_BAD_INPUT,
                  "cu_seqlens[%d] is %d after %d - offsets must increase", i + 1, offsets[i + 1],
                  offsets[i]);
    if (length > plan->max_length)
      return fail(err, INTFORMER_BAD_INPUT,
                  "sequence %d has %lld tokens - the model takes at most %d; truncate it", i,
                  (long long)length, plan->max_length);
  }
  return INTFORMER_OK;
}

/* Checks the copied inputs, so that nobody can change them between check and use. */
static int check_copies(message err, const intformer_input *in, int32_t *const data[INPUTS]) {
  int code = check_offsets(err, data[CU_SEQLENS], in->batch, in->num_tokens);
  if (!code)
    code = check_ids(err, "input_ids", data[INPUT_IDS], in->num_tokens, plan->vocab_size,
                     "vocabulary");
  if (!code && in->token_type_ids)
    code = check_ids(err, "token_type_ids", data[TOKEN_TYPE_IDS], in->num_tokens,
                     plan->takes_types ? plan->type_vocab_size : 1, "token types of the model");
  if (!code && in->position_ids)
    code = check_ids(err, "position_ids", data[POSITION_IDS], in->num_tokens,
                     plan->num_position_ids, "position table");
  if (!code)
    code = check_ids(err, "positions", data[POSITIONS], in->num_positions, in->num_tokens,
                     "tokens of this run");
  return code;
}

static void copy_inputs(const intformer_input *in, int32_t *const data[INPUTS]) {
  size_t tokens = (size_t)in->num_tokens * sizeof(int32_t);
  memcpy(data[INPUT_IDS], in->input_ids, tokens);
  memcpy(data[CU_SEQLENS], in->cu_seqlens, ((size_t)in->batch + 1) * sizeof(int32_t));
  if (in->token_type_ids)
    memcpy(data[TOKEN_TYPE_IDS], in->token_type_ids, tokens);
  else
    memset(data[TOKEN_TYPE_IDS], 0, tokens);
  if (in->position_ids) memcpy(data[POSITION_IDS], in->position_ids, tokens);
  if (in->num_positions)
    memcpy(data[POSITIONS], in->positions, (size_t)in->num_positions * sizeof(int32_t));
}

static void count_positions(const intformer_input *in, int32_t *const data[INPUTS]) {
  for (int32_t i = 0; i < in->batch; i++)
    for (int32_t t = data[CU_SEQLENS][i]; t < data[CU_SEQLENS][i + 1]; t++)
      data[POSITION_IDS][t] = plan->first_position + t - data[CU_SEQLENS][i];
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
  const int64_t rows[ROW_KINDS] = {in->num_tokens, in->batch, in->num_positions};
  int64_t blocks[ROW_KINDS];
  for (int i = 0; i < ROW_KINDS; i++) blocks[i] = (rows[i] + BLOCK - 1) / BLOCK;

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

static int64_t rows_of(const intformer_input *in, enum rows rows) {
  return rows == TOKEN ? in->num_tokens : rows == SEQUENCE ? in->batch : in->num_positions;
}

size_t if_output_size(const intformer_input *in) {
  int64_t rows = in ? rows_of(in, plan->tensors[plan->output].rows) : 0;
  return rows > 0 ? (size_t)rows * intformer_table.output_channels : 0;
}

static void observe(const context *c, const intformer_input *in, int32_t step) {
  const plan_step *s = &plan->steps[step];
  for (int32_t i = 0; i < s->num_outputs; i++) {
    int32_t index = plan->outputs[s->first_output + i];
    const plan_tensor *p = &plan->tensors[index];
    in->observer(in->user, step, p->name, c->tensors[index].data, rows_of(in, p->rows), p->width,
                 p->dtype);
  }
}

static int run_steps(message err, const plan_variant *variant, const context *c,
                     const intformer_input *in) {
  if_clear_kernel_message();
  for (int32_t i = 0; i < plan->num_steps; i++) {
    const plan_step *s = &plan->steps[i];
    tvm_any result = {TVM_NONE, 0, NULL};
    int32_t code = variant->kernels[i](NULL, c->args + s->first_arg, s->num_args, &result);
    if (code)
      return fail(err, INTFORMER_KERNEL, "kernel %s of step %d failed with code %d: %s", s->name,
                  i, code, if_kernel_message());
    if (in->observer) observe(c, in, i);
  }
  return INTFORMER_OK;
}

static void copy_output(const context *c, const intformer_input *in, int32_t *out) {
  const plan_tensor *p = &plan->tensors[plan->output];
  const int32_t *from = c->tensors[plan->output].data;
  size_t channels = intformer_table.output_channels;
  for (int64_t row = 0; row < rows_of(in, p->rows); row++, from += p->width, out += channels) {
    if (!plan->output_columns) {
      memcpy(out, from, channels * sizeof *out);
      continue;
    }
    for (size_t i = 0; i < channels; i++) out[i] = from[plan->output_columns[i]];
  }
}

static int run_in(message err, const plan_variant *variant, context *c, const intformer_input *in,
                  int32_t *out) {
  int32_t *data[INPUTS];
  if (!lay_out(c, in))
    return fail(err, INTFORMER_MEMORY,
                "no memory for %d tokens in %d sequences - split the batch", in->num_tokens,
                in->batch);
  for (int32_t i = 0; i < INPUTS; i++) data[i] = c->tensors[i].data;
  copy_inputs(in, data);
  int code = check_copies(err, in, data);
  if (code) return code;
  if (!in->position_ids) count_positions(in, data);
  code = run_steps(err, variant, c, in);
  if (!code) copy_output(c, in, out);
  return code;
}

int if_run(const intformer_input *in, int32_t *out, size_t out_len, char *text, size_t size) {
  message err = {text, size};
  intformer_input copy; /* counts and pointers cannot change between check and use */
  if (text && size) text[0] = 0;
  pthread_once(&once, set_up);
  const plan_variant *variant = variant_in_use;
  if (!variant) return fail(err, refusal_code, "%s", refusal);
  if (in) {
    copy = *in;
    in = &copy;
  }
  int code = check_counts(err, in);
  if (code) return code;
  if (!out || out_len < if_output_size(in))
    return fail(err, INTFORMER_BAD_OUTPUT,
                "out has room for %zu numbers - output_size() says that %zu are needed",
                out ? out_len : 0, if_output_size(in));
  context *c = take_context();
  if (!c) return fail(err, INTFORMER_MEMORY, "no memory for a run");
  code = run_in(err, variant, c, in, out);
  return_context(c);
  return code;
}

/* ---- sections ---- */

const void *if_section(const char *name, size_t *size) {
  for (int32_t i = 0; name && i < plan->num_sections; i++)
    if (!strcmp(plan->sections[i].name, name)) {
      if (size) *size = plan->sections[i].size;
      return intformer_blob + plan->sections[i].offset;
    }
  return NULL;
}

const char *if_section_name(size_t index) {
  return index < (size_t)plan->num_sections ? plan->sections[index].name : NULL;
}
