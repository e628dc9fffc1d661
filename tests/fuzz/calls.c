/* run() and the other functions of the table, called with numbers made from bytes.
 *
 * Arrays have exactly as many numbers as the input states, so that the address sanitizer sees any
 * read beyond them. What a call answers is compared with the rules of intformer.h, written again in
 * valid(), and the rows of a batch with those of each of its sequences alone.
 *
 * Compiled with VOCAB, TYPES, LENGTH and ROWS (0: of tokens, 1: of sequences, 2: of positions). */
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demand.h"
#include "intformer.h"

enum { MOST = 48, OF_TOKENS = 0, OF_SEQUENCES = 1, OF_POSITIONS = 2 };

typedef struct {
  const uint8_t *at, *end;
} bytes;

static uint32_t take(bytes *from, int count) {
  uint32_t value = 0;
  while (count--) value = value << 8 | (from->at < from->end ? *from->at++ : 0);
  return value;
}

/* 0 to limit - 1, or, where wild, now and then something else. */
static int32_t number(bytes *from, int32_t limit, bool wild) {
  static const int32_t others[] = {-1, INT_MIN, INT_MAX, -2, 1 << 16, -(1 << 30)};
  uint32_t kind = take(from, 1);
  if (!wild || kind < 240) return (int32_t)(kind % (uint32_t)limit);
  if (kind < 246) return others[kind - 240];
  if (kind < 250) return limit + (int32_t)kind - 246;
  return (int32_t)take(from, 4);
}

/* The first numbers of an array of its own. */
static int32_t *copied(const int32_t *numbers, int32_t count) {
  size_t size = (size_t)(count > 0 ? count : 0) * sizeof *numbers;
  int32_t *copy = malloc(size ? size : 1);
  DEMAND(copy);
  return memcpy(copy, numbers, size);
}

/* Lengths of 1 to LENGTH that add up to tokens; where wild, some offset is changed. */
static int32_t *offsets(bytes *from, int32_t tokens, int32_t *batch, bool wild) {
  int32_t at[MOST + 2] = {0};
  for (*batch = 0; at[*batch] < tokens;) {
    int32_t length = 1 + number(from, LENGTH, false), left = tokens - at[*batch];
    at[*batch + 1] = at[*batch] + (length < left ? length : left);
    *batch += 1;
  }
  if (wild && take(from, 1) < 100) at[take(from, 1) % (uint32_t)(*batch + 1)] = number(from, 20, true);
  if (wild && take(from, 1) < 20 && *batch < MOST) *batch += 1, at[*batch] = number(from, 20, true);
  return copied(at, *batch + 1);
}

/* Counts that are not those of the arrays, and so must be refused before anything is read. */
static int32_t count_of(bytes *from, int32_t count, bool wild) {
  static const int32_t bad[] = {0, -1, INT_MIN, INT_MAX};
  return wild && take(from, 1) < 16 ? bad[take(from, 1) % 4] : count;
}

static intformer_input input(bytes *from) {
  uint32_t flags = take(from, 1);
  bool wild = flags & 1;
  int32_t tokens = 1 + number(from, MOST, false), numbers[4][MOST], wanted = 0, batch;
  for (int32_t i = 0; i < tokens; i++) {
    numbers[0][i] = number(from, VOCAB, wild);
    numbers[1][i] = flags & 2 ? number(from, TYPES, wild) : 0;
    numbers[2][i] = flags & 4 ? number(from, LENGTH, wild) : 0;
  }
  if (ROWS == OF_POSITIONS || (wild && flags & 8)) {
    wanted = 1 + number(from, MOST, false);
    for (int32_t i = 0; i < wanted; i++) numbers[3][i] = number(from, tokens, wild);
  }
  intformer_input in = {0};
  in.cu_seqlens = offsets(from, tokens, &batch, wild);
  in.input_ids = copied(numbers[0], tokens);
  in.token_type_ids = flags & 2 ? copied(numbers[1], tokens) : NULL;
  in.position_ids = flags & 4 ? copied(numbers[2], tokens) : NULL;
  in.positions = wanted ? copied(numbers[3], wanted) : NULL;
  in.num_tokens = count_of(from, tokens, wild);
  in.batch = count_of(from, batch, wild);
  in.num_positions = wild && take(from, 1) < 16 ? -1 : wanted;
  return in;
}

static void free_input(intformer_input *in) {
  free((void *)in->cu_seqlens), free((void *)in->input_ids), free((void *)in->token_type_ids);
  free((void *)in->position_ids), free((void *)in->positions);
}

static bool within(const int32_t *numbers, int32_t count, int32_t limit) {
  for (int32_t i = 0; numbers && i < count; i++)
    if (numbers[i] < 0 || numbers[i] >= limit) return false;
  return true;
}

static bool valid(const intformer_input *in) {
  if (in->num_tokens < 1 || in->num_tokens > MOST || in->batch < 1 || in->batch > MOST) return false;
  if ((ROWS == OF_POSITIONS) != (in->num_positions > 0) || in->num_positions < 0) return false;
  const int32_t *at = in->cu_seqlens;
  for (int32_t i = 0; i < in->batch; i++)
    if (at[i] < 0 || at[i] > MOST || at[i + 1] <= at[i] || at[i + 1] - at[i] > LENGTH) return false;
  return at[0] == 0 && at[in->batch] == in->num_tokens &&
         within(in->input_ids, in->num_tokens, VOCAB) &&
         within(in->token_type_ids, in->num_tokens, TYPES) &&
         within(in->position_ids, in->num_tokens, LENGTH) &&
         within(in->positions, in->num_positions, in->num_tokens);
}

static size_t rows_of(const intformer_input *in) {
  return (size_t)(ROWS == OF_TOKENS      ? in->num_tokens
                  : ROWS == OF_SEQUENCES ? in->batch
                                         : in->num_positions);
}

/* Every row of `out` is that of its sequence, or of its token, in a run without the others. */
static void compare_alone(const intformer_api *api, const intformer_input *in, const int32_t *out) {
  size_t channels = api->output_channels;
  for (int32_t s = 0; s < in->batch; s++) {
    int32_t first = in->cu_seqlens[s], count = in->cu_seqlens[s + 1] - first, ends[] = {0, count};
    intformer_input one = {.num_tokens = count, .batch = 1, .cu_seqlens = ends};
    one.input_ids = in->input_ids + first;
    one.token_type_ids = in->token_type_ids ? in->token_type_ids + first : NULL;
    one.position_ids = in->position_ids ? in->position_ids + first : NULL;
    int32_t places[MOST], owners[MOST];
    for (int32_t i = 0; i < in->num_positions; i++)
      if (in->positions[i] >= first && in->positions[i] < first + count) {
        owners[one.num_positions] = i;
        places[one.num_positions++] = in->positions[i] - first;
      }
    one.positions = one.num_positions ? places : NULL;
    if (ROWS == OF_POSITIONS && !one.num_positions) continue;
    size_t rows = rows_of(&one), size = rows * channels;
    int32_t *alone = malloc(size * sizeof *alone);
    DEMAND(alone && api->run(&one, alone, size, NULL, 0) == INTFORMER_OK);
    for (size_t r = 0; r < rows; r++) {
      size_t row = ROWS == OF_TOKENS      ? (size_t)first + r
                   : ROWS == OF_SEQUENCES ? (size_t)s
                                          : (size_t)owners[r];
      DEMAND(!memcmp(alone + r * channels, out + row * channels, channels * sizeof *out));
    }
    free(alone);
  }
}

static void check_message(int code, const char *err, size_t size) {
  if (!size || code == INTFORMER_OK) return;
  DEMAND(memchr(err, 0, size) && !strchr(err, '\n') && (size == 1 || *err));
}

static void call_run(const intformer_api *api, bytes *from) {
  intformer_input in = input(from);
  uint32_t flags = take(from, 1);
  size_t size = api->output_size(&in), err_size = flags & 1 ? take(from, 1) : 0;
  bool short_out = flags & 2 && size && (flags & 12) == 0;
  int32_t *out = malloc(size ? size * sizeof *out : 1);
  char *err = malloc(err_size ? err_size : 1);
  DEMAND(out && err);
  int code = api->run(&in, out, short_out ? size - 1 : size, err_size ? err : NULL, err_size);
  check_message(code, err, err_size);
  bool sound = valid(&in);
  if (sound) DEMAND(size == rows_of(&in) * api->output_channels);
  DEMAND(code == INTFORMER_OK || code == INTFORMER_BAD_INPUT || code == INTFORMER_BAD_OUTPUT);
  DEMAND((code == INTFORMER_OK) == (sound && !short_out));
  DEMAND(!sound || !short_out || code == INTFORMER_BAD_OUTPUT);
  if (code == INTFORMER_OK && (flags & 48) == 0) compare_alone(api, &in, out);
  free(out), free(err), free_input(&in);
}

static void call_others(const intformer_api *api, bytes *from) {
  char text[40], err[100];
  size_t size, length = take(from, 1) % sizeof text;
  int threads = number(from, 5, true), code;
  for (size_t i = 0; i < length; i++) text[i] = (char)take(from, 1);
  text[length] = 0;
  switch (take(from, 1) % 6) {
    case 0:
      code = api->set_threads(threads);
      DEMAND((code == INTFORMER_OK) == (threads >= 0 && threads <= 1024));
      if (threads > 4) api->set_threads(3);
      return;
    case 1:
      DEMAND(api->run_alone(threads & 1) == INTFORMER_OK);
      return;
    case 2:
      code = api->set_variant(text, err, sizeof err);
      check_message(code, err, sizeof err);
      DEMAND((code == INTFORMER_OK) == (!*text || !strcmp(text, api->variant())));
      return;
    case 3:
      DEMAND(!api->section(text, &size) || strlen(text) > 8);
      return;
    case 4:
      DEMAND(api->section_name(take(from, 4) | 1u << 20) == NULL);
      return;
    default:
      DEMAND(api->output_size(NULL) == 0 && api->run(NULL, NULL, 0, NULL, 0) == INTFORMER_BAD_INPUT);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const intformer_api *api;
  bytes from = {data, data + size};
  char err[300];
  if (!api) api = intformer_open(LIBRARY, err, sizeof err);
  if (!api) fprintf(stderr, "%s\n", err), abort();
  if (take(&from, 1) < 240)
    call_run(api, &from);
  else
    call_others(api, &from);
  return 0;
}
