/* serve LIBRARY: runs a library for a process that cannot load it (proof/via.py), which writes
 * requests to standard input: int32 numbers, the kind first.
 *
 *   RUN      whether values are shown, tokens, sequences, positions, whether types and position ids
 *            follow; then ids, offsets, types, position ids, positions
 *   THREADS  how many; negative: as before
 *   VARIANT  how many bytes of a name follow, 0: the library chooses; negative: as before
 *
 * Every request has answers on standard output. To RUN: for each shown value a line "value NAME rows
 * width dtype" and its bytes, then a line "result rows width dtype" and those of the result. To the
 * others a line "threads N" or "variant NAME" ("variant -": none runs here). A line "error CODE
 * MESSAGE" in place of the last answer says what failed. The first line, before any request, is
 * "open NAME". */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intformer.h"

enum request { RUN, THREADS, VARIANT };
enum { NAME = 200 };

static const intformer_api *api;

static void numbers(void *data, size_t count) {
  if (fread(data, 1, count, stdin) != count) exit(0); /* nobody asks any more */
}

static int32_t number(void) {
  int32_t value;
  numbers(&value, sizeof value);
  return value;
}

/* NULL where there are none, or no memory. */
static int32_t *row(int32_t count) {
  int32_t *data = count > 0 ? malloc((size_t)count * sizeof *data) : NULL;
  if (data) numbers(data, (size_t)count * sizeof *data);
  return data;
}

/* name  NULL: of the result */
static void show(void *user, int32_t step, const char *name, const void *data, int64_t rows,
                 int64_t width, const char *dtype) {
  (void)user, (void)step;
  const char *digits = strpbrk(dtype, "0123456789");
  printf("%s%s %lld %lld %s\n", name ? "value " : "result", name ? name : "", (long long)rows,
         (long long)width, dtype);
  fwrite(data, (size_t)atoi(digits) / 8, (size_t)(rows * width), stdout);
}

static void run(void) {
  char err[400] = "no memory";
  int32_t head[6];
  numbers(head, sizeof head);
  int32_t *ids = row(head[1]), *offsets = row(head[2] + 1), *types = row(head[4] ? head[1] : 0);
  int32_t *places = row(head[5] ? head[1] : 0), *positions = row(head[3]);
  intformer_input input = {.num_tokens = head[1],
                           .batch = head[2],
                           .num_positions = head[3],
                           .input_ids = ids,
                           .cu_seqlens = offsets,
                           .token_type_ids = types,
                           .position_ids = places,
                           .positions = positions,
                           .observer = head[0] ? show : NULL};
  size_t size = api->output_size(&input);
  int32_t *out = malloc((size + 1) * sizeof *out);
  int code = out ? api->run(&input, out, size, err, sizeof err) : INTFORMER_MEMORY;
  if (code)
    printf("error %d %s\n", code, err);
  else
    show(NULL, -1, NULL, out, (int64_t)(size / api->output_channels), api->output_channels,
         "int32");
  free(out);
  free(positions);
  free(places);
  free(types);
  free(offsets);
  free(ids);
}

static void threads(void) {
  int32_t count = number();
  int code = count < 0 ? INTFORMER_OK : api->set_threads(count);
  if (code)
    printf("error %d %d threads\n", code, count);
  else
    printf("threads %d\n", api->get_threads());
}

static void variant(void) {
  char name[NAME + 1], err[800];
  int32_t length = number();
  if (length > NAME) exit(2);
  if (length >= 0) {
    numbers(name, (size_t)length);
    name[length] = 0;
    int code = api->set_variant(length ? name : NULL, err, sizeof err);
    if (code) {
      printf("error %d %s\n", code, err);
      return;
    }
  }
  const char *used = api->variant();
  printf("variant %s\n", used ? used : "-");
}

int main(int argc, char **argv) {
  char err[4096];
  if (argc != 2) return 2;
  api = intformer_open(argv[1], err, sizeof err);
  if (!api) {
    printf("error 0 %s\n", err);
    return 2;
  }
  printf("open %s\n", api->name);
  for (;;) {
    fflush(stdout);
    switch ((enum request)number()) {
      case RUN: run(); break;
      case THREADS: threads(); break;
      case VARIANT: variant(); break;
      default: return 2;
    }
  }
}
