/* MODEL.check [LIBRARY] [--runs N] [--json]: whether a library computes, on this machine, the
 * numbers that the reference gave when it was compiled; how long it takes; what machine this is.
 *
 * LIBRARY  default: the file it was made for, beside this program
 * --runs   timed runs of each shape (default 30, fewer where they take long); 0: none
 * Exit code: 0 bit-exact, 1 a number differs, 2 wrong usage or a library that does not run. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "intformer.h"

enum { SAME = 0, DIFFERENT = 1, UNUSABLE = 2, TEXT = 4096, MOST_RUNS = 10000, LEAST_RUNS = 3 };
static const int64_t MOST_NS = 3000000000; /* for one shape */

static const intformer_api *api;
static bool json;

/* ---- output ---- */

__attribute__((format(printf, 1, 2))) static int unusable(const char *format, ...) {
  char text[TEXT];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  fflush(stdout);
  fprintf(stderr, "error: %s\n", text);
  return UNUSABLE;
}

static void print_json_string(const char *text) {
  putchar('"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') putchar('\\');
    putchar((unsigned char)*text < ' ' ? ' ' : *text);
  }
  putchar('"');
}

/* "name: value" as a line, or as a member that others follow. */
static void print_text(const char *name, const char *value) {
  printf(json ? "\"%s\": " : "%s: ", name);
  if (!json) {
    puts(value);
    return;
  }
  print_json_string(value);
  printf(", ");
}

/* ---- this machine ---- */

/* The first value of any of the names, up to a NULL, in a file of lines "name : value". */
static bool field(const char *file, const char *const *names, char *value, size_t size) {
  char line[TEXT];
  FILE *lines = fopen(file, "re");
  bool found = false;
  while (lines && !found && fgets(line, sizeof line, lines)) {
    char *colon = strchr(line, ':');
    if (!colon) continue;
    char *end = colon++;
    while (end > line && (end[-1] == ' ' || end[-1] == '\t')) end--;
    *end = 0;
    for (int i = 0; names[i] && !found; i++) found = !strcmp(line, names[i]);
    while (*colon == ' ' || *colon == '\t') colon++;
    colon[strcspn(colon, "\n")] = 0;
    snprintf(value, size, "%s", colon);
  }
  if (lines) fclose(lines);
  return found;
}

static void print_machine(void) {
  static const char info[] = "/proc/cpuinfo";
  static const char *const names[] = {"model name", "uarch", "CPU part", NULL};
  static const char *const boards[] = {"Model", "Hardware", NULL};
  static const char *const features[] = {"flags", "Features", "isa", NULL};
  char text[TEXT];
  if (field(info, names, text, sizeof text)) print_text("chip", text);
  if (field(info, boards, text, sizeof text)) print_text("board", text);
  if (field(info, features, text, sizeof text)) print_text("features", text);
  snprintf(text, sizeof text, "%#lx %#lx", getauxval(AT_HWCAP), getauxval(AT_HWCAP2));
  print_text("hwcap", text);
}

/* ---- results ---- */

static intformer_input input_of(const check_case *c) {
  intformer_input in = {.num_tokens = c->tokens, .batch = c->batch, .num_positions = c->positions};
  in.input_ids = check_numbers + c->ids_at;
  in.cu_seqlens = check_numbers + c->offsets_at;
  if (c->types_at >= 0) in.token_type_ids = check_numbers + c->types_at;
  if (c->places_at >= 0) in.position_ids = check_numbers + c->places_at;
  if (c->positions_at >= 0) in.positions = check_numbers + c->positions_at;
  return in;
}

typedef struct {
  const char *variant;
  int threads, number;
  const check_case *of;
  int64_t row, channel; /* channel -1: of a row of which a hash is kept */
  int64_t wanted, got;
} difference;

static int64_t hash(const int32_t *row) { /* the same in link/check.py */
  uint64_t sum = 0;
  for (int32_t i = 0; i < check_channels; i++)
    sum = sum * UINT64_C(6364136223846793005) + (uint32_t)row[i] + 1;
  return (int64_t)sum;
}

/* False, and where it is, when a number is not the wanted one. */
static bool equal(const check_case *c, const int32_t *out, difference *d) {
  const int32_t *wanted = check_numbers + c->wanted_at;
  for (d->row = 0; d->row < c->rows; d->row++, out += check_channels) {
    if (c->hashed) {
      d->channel = -1, d->got = hash(out);
      d->wanted = (int64_t)((uint64_t)(uint32_t)wanted[1] << 32 | (uint32_t)wanted[0]);
      if (d->wanted != d->got) return false;
      wanted += 2;
      continue;
    }
    for (d->channel = 0; d->channel < check_channels; d->channel++) {
      d->wanted = *wanted++, d->got = out[d->channel];
      if (d->wanted != d->got) return false;
    }
  }
  return true;
}

/* Runs all cases; returns SAME and adds to `outputs`, DIFFERENT and fills `d`, or UNUSABLE. */
static int run_cases(int64_t *outputs, difference *d) {
  char err[400];
  for (int32_t i = 0; i < check_num_cases; i++) {
    const check_case *c = &check_cases[i];
    intformer_input in = input_of(c);
    size_t size = (size_t)c->rows * (size_t)check_channels;
    if (api->output_size(&in) != size)
      return unusable("case %d gives %zu numbers, not %zu: another model - %s", i,
                      api->output_size(&in), size, api->name);
    int32_t *out = malloc(size * sizeof *out);
    if (!out) return unusable("no memory for %zu numbers", size);
    memset(out, 0x55, size * sizeof *out);
    int code = api->run(&in, out, size, err, sizeof err);
    bool same = !code && equal(c, out, d);
    free(out);
    if (code) return unusable("case %d (%s): %s", i, c->name, err);
    d->number = i, d->of = c;
    if (!same) return DIFFERENT;
    *outputs += (int64_t)size;
  }
  return SAME;
}

/* All cases in a variant, on one thread and on all. */
static int run_variant(const char *variant, int64_t *outputs, difference *d) {
  api->set_threads(0);
  int counts[2] = {1, api->get_threads()};
  d->variant = variant;
  for (int i = 0; i < (counts[1] > 1 ? 2 : 1); i++) {
    d->threads = counts[i];
    api->set_threads(counts[i]);
    int code = run_cases(outputs, d);
    if (code) return code;
  }
  return SAME;
}

static void print_difference(const difference *d) {
  if (json) {
    printf("\"difference\": {\"case\": %d, \"name\": ", d->number);
    print_json_string(d->of->name);
    printf(", \"variant\": \"%s\", \"threads\": %d, \"row\": %lld, ", d->variant, d->threads,
           (long long)d->row);
    printf("\"channel\": %lld, \"expected\": %lld, \"got\": %lld}, ", (long long)d->channel,
           (long long)d->wanted, (long long)d->got);
    return;
  }
  printf("DIFFERENT: case %d (%s), variant %s, %d threads: ", d->number, d->of->name, d->variant,
         d->threads);
  if (d->channel < 0)
    printf("row %lld: expected a row of hash %016llx, got %016llx\n", (long long)d->row,
           (unsigned long long)d->wanted, (unsigned long long)d->got);
  else
    printf("output [%lld, %lld]: expected %lld, got %lld\n", (long long)d->row,
           (long long)d->channel, (long long)d->wanted, (long long)d->got);
}

/* Every variant that runs here. */
static int check_results(void) {
  char err[400];
  difference d = {0};
  int64_t outputs = 0;
  int ran = 0, code = SAME;
  if (json) printf("\"variants\": {");
  for (int i = 0; check_variants[i] && !code; i++) {
    const char *name = check_variants[i];
    bool runs = !api->set_variant(name, err, sizeof err);
    char *more = runs ? NULL : strstr(err, " - this library has");
    if (more) *more = 0;
    if (json) {
      printf("%s\"%s\": ", i ? ", " : "", name);
      print_json_string(runs ? "" : err);
    } else {
      printf("variant %s: %s%s\n", name, runs ? "runs" : "not run: ", runs ? "" : err);
    }
    if (!runs) continue;
    code = run_variant(name, &outputs, &d);
    ran++;
  }
  if (json) printf("}, ");
  if (code == UNUSABLE) return code;
  if (!ran) return unusable("no variant of the library runs here: %s", err);
  if (json) printf("\"ok\": %s, \"outputs\": %lld, ", code ? "false" : "true", (long long)outputs);
  if (code) print_difference(&d);
  if (!code && !json) printf("bit-exact: %lld outputs\n", (long long)outputs);
  fflush(stdout);
  return code;
}

/* ---- times ---- */

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* Fills `times`, in ascending order; returns how many there are, or -1. */
static int time_input(const intformer_input *in, int runs, int64_t *times) {
  size_t size = api->output_size(in);
  int32_t *out = malloc(size * sizeof *out);
  char err[400];
  int64_t spent = 0;
  int count = out && !api->run(in, out, size, err, sizeof err) ? 0 : -1; /* the first one warms up */
  while (count >= 0 && count < runs && (count < LEAST_RUNS || spent < MOST_NS)) {
    int64_t began = nanoseconds();
    api->run(in, out, size, NULL, 0);
    spent += times[count++] = nanoseconds() - began;
  }
  free(out);
  if (count > 0) qsort(times, (size_t)count, sizeof *times, ascending);
  return count;
}

static void print_time(const check_shape *shape, int threads, int count, const int64_t *times) {
  int64_t median = times[count / 2] / 1000, late = times[(count * 95 - 1) / 100] / 1000;
  const char *line = json ? "{\"batch\": %d, \"tokens\": %d, \"threads\": %d, \"runs\": %d, "
                            "\"median_ms\": %lld.%03lld, \"p95_ms\": %lld.%03lld}"
                          : "%4dx%-6d %7d %5d %10lld.%03lld %10lld.%03lld\n";
  printf(line, shape->batch, shape->tokens, threads, count, (long long)(median / 1000),
         (long long)(median % 1000), (long long)(late / 1000), (long long)(late % 1000));
}

/* Random ids in a shape, on this many threads; false where there is no memory for it. */
static bool time_shape(const check_shape *shape, int threads, int runs, int64_t *times) {
  int32_t tokens = shape->batch * shape->tokens;
  int32_t *ids = malloc((size_t)tokens * sizeof *ids);
  int32_t *offsets = malloc(((size_t)shape->batch + 1) * sizeof *offsets);
  int count = -1;
  if (ids && offsets) {
    for (int32_t i = 0; i < tokens; i++) ids[i] = (int32_t)(i * INT64_C(7919) % check_vocabulary);
    for (int32_t i = 0; i <= shape->batch; i++) offsets[i] = i * shape->tokens;
    intformer_input in = {
        .num_tokens = tokens, .batch = shape->batch, .input_ids = ids, .cu_seqlens = offsets};
    if (check_takes_positions) in.num_positions = shape->batch, in.positions = offsets;
    api->set_threads(threads);
    count = time_input(&in, runs, times);
    if (count > 0) print_time(shape, threads, count, times);
  }
  free(ids);
  free(offsets);
  return count > 0;
}

/* The fastest variant, on one thread and on all. */
static int check_times(int runs) {
  static int64_t times[MOST_RUNS];
  bool first = true;
  api->set_variant(NULL, NULL, 0);
  api->set_threads(0);
  int counts[2] = {1, api->get_threads()};
  if (json) printf("\"timed\": \"%s\", \"times\": [", api->variant());
  if (!json) printf("times of %s\n   shape     threads  runs      median ms         p95 ms\n",
                    api->variant());
  for (const check_shape *shape = check_shapes; shape->batch; shape++)
    for (int i = 0; i < (counts[1] > 1 ? 2 : 1); i++, first = false) {
      if (json && !first) printf(", ");
      if (!time_shape(shape, counts[i], runs, times))
        return unusable("%d sequences of %d tokens cannot be timed", shape->batch, shape->tokens);
    }
  if (json) printf("], ");
  return SAME;
}

/* ---- the program ---- */

static int wrong_usage(const char *program) {
  fprintf(stderr, "usage: %s [LIBRARY] [--runs N] [--json]\n", program);
  return UNUSABLE;
}

/* The library beside this program. */
static const char *default_library(char *path, size_t size) {
  ssize_t length = readlink("/proc/self/exe", path, size - 1);
  path[length > 0 ? length : 0] = 0;
  char *slash = strrchr(path, '/');
  size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
  snprintf(path + folder, size - folder, "%s", check_library);
  return path;
}

static int check(const char *path, int runs) {
  char err[TEXT];
  static const char *const peak[] = {"VmHWM", NULL};
  api = intformer_open(path, err, sizeof err);
  if (!api) return unusable("%s", err);
  if (api->output_channels != (uint32_t)check_channels)
    return unusable("library has %u output channels, not %d: another model - %s",
                    api->output_channels, check_channels, path);
  if (json) putchar('{');
  print_text("library", path);
  print_machine();
  int code = check_results();
  if (code == SAME && runs) code = check_times(runs);
  if (code == UNUSABLE) return code;
  if (field("/proc/self/status", peak, err, sizeof err)) print_text("peak_memory", err);
  if (json) printf("\"exit\": %d}\n", code);
  return code;
}

int main(int argc, char **argv) {
  char beside[TEXT];
  const char *path = NULL;
  int runs = 30;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--json")) {
      json = true;
    } else if (!strcmp(argv[i], "--runs") && i + 1 < argc) {
      char *end;
      long number = strtol(argv[++i], &end, 10);
      if (*end || !*argv[i] || number < 0 || number > MOST_RUNS) return wrong_usage(argv[0]);
      runs = (int)number;
    } else if (argv[i][0] != '-' && !path) {
      path = argv[i];
    } else {
      return wrong_usage(argv[0]);
    }
  }
  return check(path ? path : default_library(beside, sizeof beside), runs);
}
