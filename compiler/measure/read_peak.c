/* How fast one core reads a buffer again and again: bytes per second, best of `tries` passes.
 * Used by `intformer bench`; no part of a compiled library. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LINE 64

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* One number of every line is enough to bring the line in. */
static uint64_t pass(const uint64_t *p, int64_t lines) {
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (int64_t i = 0; i + 4 <= lines; i += 4, p += 4 * LINE / 8) {
    a += p[0];
    b += p[LINE / 8];
    c += p[2 * LINE / 8];
    d += p[3 * LINE / 8];
  }
  return a + b + c + d;
}

double intformer_read_peak(int64_t bytes, int tries) {
  int64_t lines = bytes / LINE, best = INT64_MAX;
  int64_t repeats = 1 + (4 << 20) / bytes; /* a small buffer several times in one measurement */
  uint64_t *buffer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  volatile uint64_t sink;
  if (!buffer) return 0;
  memset(buffer, 1, bytes);
  sink = pass(buffer, lines);
  while (tries-- > 0) {
    int64_t start = nanoseconds(), spent;
    for (int64_t i = 0; i < repeats; ++i) sink = pass(buffer, lines);
    spent = nanoseconds() - start;
    if (spent < best) best = spent;
  }
  (void)sink;
  free(buffer);
  return (double)(lines * LINE) * repeats / (best * 1e-9);
}
