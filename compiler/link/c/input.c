/* What the caller hands over: every number is checked, on a copy, before anything uses it. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "plan.h"

static const plan_table *const plan = &intformer_plan;

int if_fail(message err, int code, const char *format, ...) {
  if (err.text && err.size) {
    va_list list;
    va_start(list, format);
    vsnprintf(err.text, err.size, format, list);
    va_end(list);
    for (char *at = err.text; *at; at++) /* of a caller's name: the message is one line */
      if ((unsigned char)*at < ' ' || *at == 127) *at = '?';
  }
  return code;
}

int64_t if_rows(const intformer_input *in, enum rows rows) {
  return rows == TOKEN ? in->num_tokens : rows == SEQUENCE ? in->batch : in->num_positions;
}

static int check_ids(message err, const char *what, const int32_t *ids, int32_t count,
                     int32_t limit, const char *of) {
  for (int32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= limit)
      return if_fail(err, INTFORMER_BAD_INPUT, "%s[%d] is %d - allowed are 0 to %d (%s)", what, i,
                  ids[i], limit - 1, of);
  return INTFORMER_OK;
}

int if_check_counts(message err, const intformer_input *in) {
  if (!in) return if_fail(err, INTFORMER_BAD_INPUT, "input is NULL");
  if (in->num_tokens < 1 || in->batch < 1)
    return if_fail(err, INTFORMER_BAD_INPUT,
                "num_tokens is %d and batch %d - a run needs at least one token and one sequence",
                in->num_tokens, in->batch);
  if (in->num_tokens > plan->max_rows || in->batch > plan->max_rows ||
      in->num_positions > plan->max_rows)
    return if_fail(err, INTFORMER_BAD_INPUT,
                "num_tokens is %d, batch %d, num_positions %d - one run takes at most %d of each; "
                "split the batch",
                in->num_tokens, in->batch, in->num_positions, plan->max_rows);
  if (!plan->takes_positions && in->num_positions)
    return if_fail(err, INTFORMER_BAD_INPUT,
                "num_positions is %d - this model computes all rows; pass 0", in->num_positions);
  if (plan->takes_positions && in->num_positions < 1)
    return if_fail(err, INTFORMER_BAD_INPUT,
                "num_positions is %d - this model needs the indices of the wanted tokens",
                in->num_positions);
  return INTFORMER_OK;
}

int if_check_pointers(message err, const intformer_input *in) {
  if (in->input_ids && in->cu_seqlens && (in->positions || !plan->takes_positions))
    return INTFORMER_OK;
  return if_fail(err, INTFORMER_BAD_INPUT, "%s is NULL",
                 !in->input_ids ? "input_ids" : !in->cu_seqlens ? "cu_seqlens" : "positions");
}

static int check_offsets(message err, const int32_t *offsets, int32_t batch, int32_t tokens) {
  if (offsets[0] != 0 || offsets[batch] != tokens)
    return if_fail(err, INTFORMER_BAD_INPUT,
                "cu_seqlens runs from %d to %d - it must run from 0 to the number of tokens, %d",
                offsets[0], offsets[batch], tokens);
  for (int32_t i = 0; i < batch; i++) {
    int64_t length = (int64_t)offsets[i + 1] - offsets[i];
    if (length == 0)
      return if_fail(err, INTFORMER_BAD_INPUT, "sequence %d is empty - drop it from the batch", i);
    if (length < 0)
      return if_fail(err, INTFORMER_BAD_INPUT,
                  "cu_seqlens[%d] is %d after %d - offsets must increase", i + 1, offsets[i + 1],
                  offsets[i]);
    if (length > plan->max_length)
      return if_fail(err, INTFORMER_BAD_INPUT,
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

int if_take_inputs(message err, const intformer_input *in, int32_t *const data[INPUTS]) {
  copy_inputs(in, data);
  int code = check_copies(err, in, data);
  if (!code && !in->position_ids) count_positions(in, data);
  return code;
}
