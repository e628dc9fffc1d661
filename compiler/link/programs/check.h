/* What check.c shares with the data that `compile --check` generates (link/check.py). */
#ifndef INTFORMER_CHECK_H
#define INTFORMER_CHECK_H

#include <stdint.h>

/* A batch and the numbers that it must give. Members called *_at say where in check_numbers arrays
 * start; -1: the library is left to make them. */
typedef struct {
  const char *name;
  int32_t tokens, batch, positions, rows;
  int64_t ids_at, offsets_at, types_at, places_at, positions_at;
  int64_t wanted_at; /* rows * channels numbers; or a hash per row, low word first */
  int32_t hashed;
} check_case;

typedef struct {
  int32_t batch, tokens;
} check_shape;

extern const char check_library[]; /* file name */
extern const int32_t check_channels, check_vocabulary, check_takes_positions;
extern const char *const check_variants[]; /* up to a NULL */
extern const check_shape check_shapes[]; /* to time; up to a batch of 0 */
extern const check_case check_cases[];
extern const int32_t check_num_cases;
extern const int32_t check_numbers[];

#endif
