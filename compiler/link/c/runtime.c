/* The entry points of a library: choice of the kernels, what every run checks first, the caller's
 * output, the data carried along. Where the kernels run is the business of host.c or cuda.c. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static const plan_table *const plan = &intformer_plan;

enum { REASON = 800 }; /* characters of a message about variants */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const plan_variant *_Atomic variant_in_use; /* NULL: none runs here */
static int refusal_code;                           /* why not, as found at the first call */
static char refusal[REASON];

/* ---- variants ---- */

static void list_variants(char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int32_t i = 0; i < plan->num_variants && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "",
                             plan->variants[i].name);
}

/* "t4" means "t4 cubin" and "t4 ptx" alike. */
static bool called(const plan_variant *variant, const char *name) {
  size_t length = strlen(name);
  return !strncmp(variant->name, name, length) &&
         (!variant->name[length] || variant->name[length] == ' ');
}

/* The variant called `name`; without a name the one INTFORMER_VARIANT says; without that the first
 * that runs here. Leaves the variant in use alone where that fails. */
static int choose(message err, const char *name) {
  const plan_variant *found = NULL;
  char reason[REASON] = "", all[REASON];
  message why = {reason, sizeof reason};
  int code = INTFORMER_BAD_INPUT;
  if (!name || !*name) name = getenv("INTFORMER_VARIANT");
  bool any = !name || !*name, known = any;
  for (int32_t i = 0; i < plan->num_variants && !found; i++)
    if (any || called(&plan->variants[i], name)) {
      known = true;
      code = if_usable(why, &plan->variants[i]);
      if (!code) found = &plan->variants[i];
    }
  list_variants(all, sizeof all);
  if (!known)
    return if_fail(err, INTFORMER_BAD_INPUT, "variant %.100s is unknown - this library has %s",
                   name, all);
  if (!found && any)
    return if_fail(err, code, "%s%s", reason,
                   code == INTFORMER_CPU ? " - compile for another target, such as x86-64" : "");
  if (!found)
    return if_fail(err, code, "variant %.100s does not run here: %s - this library has %s", name,
                   reason, all);
  variant_in_use = found;
  return INTFORMER_OK;
}

static void set_up(void) {
  if_set_up();
  refusal_code = choose((message){refusal, sizeof refusal}, NULL);
}

static int ready(message err) {
  int code = if_check_process(err); /* first: set_up() may have been under way at a fork */
  if (!code) pthread_once(&once, set_up);
  return code;
}

const char *if_variant(void) {
  const plan_variant *variant = ready((message){NULL, 0}) ? NULL : variant_in_use;
  return variant ? variant->name : NULL;
}

const char *if_device(void) { return if_variant() ? if_device_name() : NULL; }

int if_set_variant(const char *name, char *text, size_t size) {
  message err = {text, size};
  if (text && size) text[0] = 0;
  int code = ready(err);
  return code ? code : choose(err, name);
}

/* ---- run ---- */

size_t if_output_size(const intformer_input *in) {
  message none = {NULL, 0};
  if (if_check_counts(none, in)) return 0;
  return (size_t)if_rows(in, plan->tensors[plan->output].rows) * intformer_table.output_channels;
}

void if_copy_output(const intformer_input *in, const int32_t *from, int32_t *out) {
  const plan_tensor *p = &plan->tensors[plan->output];
  size_t channels = intformer_table.output_channels;
  for (int64_t row = 0; row < if_rows(in, p->rows); row++, from += p->width, out += channels) {
    if (!plan->output_columns) {
      memcpy(out, from, channels * sizeof *out);
      continue;
    }
    for (size_t i = 0; i < channels; i++) out[i] = from[plan->output_columns[i]];
  }
}

int if_no_memory(message err, const intformer_input *in, const char *where) {
  return if_fail(err, INTFORMER_MEMORY,
                 "no memory%s for %d tokens in %d sequences - split the batch", where,
                 in->num_tokens, in->batch);
}

int if_run(const intformer_input *in, int32_t *out, size_t out_len, char *text, size_t size) {
  message err = {text, size};
  intformer_input copy; /* counts and pointers cannot change between check and use */
  if (text && size) text[0] = 0;
  int code = ready(err);
  if (code) return code;
  if (!variant_in_use && refusal_code == INTFORMER_MEMORY) /* there may be some by now */
    if ((code = choose(err, NULL))) return code;
  const plan_variant *variant = variant_in_use;
  if (!variant) return if_fail(err, refusal_code, "%s", refusal);
  if (in) {
    copy = *in;
    in = &copy;
  }
  if ((code = if_check_counts(err, in)) || (code = if_check_pointers(err, in))) return code;
  if (!out || out_len < if_output_size(in))
    return if_fail(err, INTFORMER_BAD_OUTPUT,
                   "out has room for %zu numbers - output_size() says that %zu are needed",
                   out ? out_len : 0, if_output_size(in));
  return if_execute(err, variant, in, out);
}

/* ---- sections ---- */

static const char *section_name(uint64_t number) {
  const blob_index *index = (const void *)plan->blob;
  return number < index->count ? (const char *)plan->blob + index->sections[number].name : NULL;
}

const void *if_section(const char *name, size_t *size) {
  const blob_index *index = (const void *)plan->blob;
  for (uint64_t i = 0; name && i < index->count; i++)
    if (!strcmp(section_name(i), name)) {
      if (size) *size = index->sections[i].size;
      return plan->blob + index->sections[i].offset;
    }
  return NULL;
}

const char *if_section_name(size_t index) { return section_name(index); }
