/* run_library LIBRARY BATCH THREADS: runs one batch and writes what the library shows.
 *
 * BATCH: tokens, sequences, positions, whether types and position ids follow (int32 each); then ids,
 * offsets, types, position ids, positions. Standard output: for each value a line
 * "name rows width dtype" and its bytes; the result last, called "output". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intformer.h"

static int32_t *numbers(FILE *file, size_t count) {
  int32_t *data = malloc((count + 1) * sizeof *data);
  if (!data || fread(data, sizeof *data, count, file) != count) exit(3);
  return data;
}

static void show(void *user, int32_t step, const char *name, const void *data, int64_t rows,
                 int64_t width, const char *dtype) {
  (void)user, (void)step;
  const char *digits = strpbrk(dtype, "0123456789");
  printf("%s %lld %lld %s\n", name, (long long)rows, (long long)width, dtype);
  fwrite(data, (size_t)atoi(digits) / 8, (size_t)(rows * width), stdout);
}

int main(int argc, char **argv) {
  char err[400];
  if (argc != 4) return 2;
  const intformer_api *api = intformer_open(argv[1], err, sizeof err);
  if (!api) {
    fprintf(stderr, "%s\n", err);
    return 1;
  }
  FILE *file = fopen(argv[2], "rb");
  if (!file || api->set_threads(atoi(argv[3]))) return 2;
  int32_t *head = numbers(file, 5);
  intformer_input input = {
      .num_tokens = head[0], .batch = head[1], .num_positions = head[2], .observer = show};
  input.input_ids = numbers(file, (size_t)head[0]);
  input.cu_seqlens = numbers(file, (size_t)head[1] + 1);
  if (head[3]) input.token_type_ids = numbers(file, (size_t)head[0]);
  if (head[4]) input.position_ids = numbers(file, (size_t)head[0]);
  if (head[2]) input.positions = numbers(file, (size_t)head[2]);
  size_t size = api->output_size(&input);
  int32_t *out = malloc((size + 1) * sizeof *out);
  if (!out || api->run(&input, out, size, err, sizeof err)) {
    fprintf(stderr, "%s\n", err);
    return 1;
  }
  show(NULL, -1, "output", out, (int64_t)(size / api->output_channels), api->output_channels,
       "int32");
  return 0;
}
