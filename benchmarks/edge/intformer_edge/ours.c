/* ours LIBRARY TOKENS [SECONDS]: runs one sequence of random tokens on one thread, counted between two calls of
 * getppid(); the first run, before them, is not counted. With SECONDS: prints the median of the runs in
 * that time instead, in milliseconds, and the clock in GHz. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "intformer.h"

enum { MOST = 512, VOCABULARY = 30000, RUNS = 10000 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* GHz, by products that wait for each other: three cycles each; 0 on other chips than x86. */
static double clock_rate(void) {
#ifdef __x86_64__
  enum { STEPS = 5000000 };
  double best = 1e9;
  for (int turn = 0; turn < 9; turn++) {
    long x = 3;
    double start = now();
    for (long i = 0; i < STEPS; i++)
      __asm__ volatile("imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0\n" : "+r"(x));
    double took = now() - start;
    if (took < best) best = took;
  }
  return 4 * 3 * STEPS / best * 1e-9;
#else
  return 0;
#endif
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  char err[4096] = "";
  const intformer_api *api = argc > 2 ? intformer_open(argv[1], err, sizeof err) : NULL;
  int32_t tokens = argc > 2 ? atoi(argv[2]) : 0, ids[MOST], offsets[2] = {0, tokens};
  if (!api || tokens < 1 || tokens > MOST) return fprintf(stderr, "%s\n", err), 2;
  for (int i = 0; i < tokens; i++) ids[i] = 1000 + rand() % (VOCABULARY - 1000);
  intformer_input input = {
      .num_tokens = tokens, .batch = 1, .input_ids = ids, .cu_seqlens = offsets};
  size_t size = api->output_size(&input);
  int32_t *out = malloc((size + 1) * sizeof *out);
  api->set_threads(1);
  int code = api->run(&input, out, size, err, sizeof err);
  double seconds = argc > 3 ? atof(argv[3]) : 0, end = now() + seconds;
  if (!seconds) {
    getppid();
    code |= api->run(&input, out, size, err, sizeof err);
    getppid();
  } else {
    static double took[RUNS];
    int runs = 0;
    while (runs < RUNS && (runs < 3 || now() < end)) {
      double start = now();
      code |= api->run(&input, out, size, err, sizeof err);
      took[runs++] = 1e3 * (now() - start);
    }
    qsort(took, (size_t)runs, sizeof *took, by_size);
    printf("%.4f %.4f\n", took[runs / 2], clock_rate());
  }
  if (code) fprintf(stderr, "%s\n", err);
  return code;
}
