/* @name@: a transformer encoder as integer code, made by intformer @version@ for @target@.
 *
 * Token ids in, int32 numbers out@scale@. No thread, no heap, no file and no floating point; of the
 * C library memcpy and memset alone. The numbers of a batch do not depend on its other sequences.
 * Runs may go on side by side, each with an arena and an `out` of its own. */
#ifndef @NAME@_H
#define @NAME@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What one run takes at most: compile with other limits for a smaller or larger arena. */
#define @NAME@_MAX_TOKENS @max_tokens@ /* of all sequences together */
#define @NAME@_MAX_SEQUENCES @max_sequences@
#define @NAME@_MAX_POSITIONS @max_positions@ /* 0: the model has rows of its own choice */
#define @NAME@_MAX_LENGTH @max_length@ /* tokens of one sequence */

#define @NAME@_CHANNELS @channels@ /* numbers of a row; a row for each @row@ */
#define @NAME@_MAX_OUTPUT @max_output@ /* numbers of the largest result */

/* Memory that a run works in, all of it; nothing in it lasts from one run to the next. */
#define @NAME@_ARENA_BYTES @arena_bytes@
#define @NAME@_ARENA_ALIGN @align@

enum @name@_code {
  @NAME@_OK = 0,
  @NAME@_NO_INPUT = 1, /* in, input_ids, cu_seqlens or out is NULL */
  @NAME@_BAD_ARENA = 2, /* NULL, not aligned or too small */
  @NAME@_NO_TOKENS = 3, /* a run needs at least one token and one sequence */
  @NAME@_TOO_MANY_TOKENS = 4,
  @NAME@_TOO_MANY_SEQUENCES = 5,
  @NAME@_TOO_MANY_POSITIONS = 6,
  @NAME@_NO_POSITIONS = 7, /* this model needs the tokens whose rows are wanted */
  @NAME@_OUT_TOO_SMALL = 8, /* out has room for fewer than @name@_output_size() numbers */
  @NAME@_BAD_OFFSETS = 9, /* cu_seqlens does not rise from 0 to num_tokens */
  @NAME@_TOO_LONG = 10, /* a sequence has more than @NAME@_MAX_LENGTH tokens */
  @NAME@_BAD_TOKEN = 11, /* outside 0..@last_token@, the vocabulary */
  @NAME@_BAD_TYPE = 12, /* outside 0..@last_type@, the token types of the model */
  @NAME@_BAD_POSITION_ID = 13, /* outside 0..@last_position_id@, the position table */
  @NAME@_BAD_POSITION = 14 /* outside the tokens of this run */
};

/* A batch of packed sequences: no padding, sequence i holds tokens cu_seqlens[i] up to
 * cu_seqlens[i + 1]. */
typedef struct {
  int32_t num_tokens;
  int32_t batch;
  int32_t num_positions; /* 0 where @NAME@_MAX_POSITIONS is 0 */
  const int32_t *input_ids; /* [num_tokens] */
  const int32_t *cu_seqlens; /* [batch + 1], from 0 to num_tokens, rising */
  const int32_t *token_type_ids; /* [num_tokens], or NULL: all 0 */
  const int32_t *position_ids; /* [num_tokens], or NULL: counted from the first position */
  const int32_t *positions; /* [num_positions] indices of tokens whose rows are wanted, or NULL */
} @name@_input;

/* Numbers that a run writes: rows * @NAME@_CHANNELS; 0 where the counts are unusable. */
size_t @name@_output_size(const @name@_input *in);

/* Computes a batch. out_len counts numbers. Every number of the input is checked, on a copy in the
 * arena, before anything uses it. Returns @NAME@_OK or what is wrong; out is untouched then. */
int @name@_run(const @name@_input *in, void *arena, size_t arena_bytes, int32_t *out,
               size_t out_len);

/* A line of text for a code. */
const char *@name@_message(int code);

#ifdef __cplusplus
}
#endif
#endif
