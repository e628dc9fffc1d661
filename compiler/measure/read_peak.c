/* How fast one core reads a buffer again and again: bytes per second, best of `tries` passes.
 * Used by `intformer bench`; no part of a compiled library. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LINE 64
#define STREAMS 4
#define AHEAD 4096 /* bytes */

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* One number of every line is enough to bring the line in. Four parts side by side, each asked for
 * ahead: what the caches fetch by themselves for one stream is half as fast on some cores. */
static uint64_t pass(const uint64_t *p, int64_t lines) {
  int64_t part = lines / STREAMS * LINE / 8;
  const uint64_t *q = p + part, *r = q + part, *s = r + part;
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (int64_t i = 0; i < part; i += LINE / 8) {
    __builtin_prefetch(p + i + AHEAD / 8);
    __builtin_prefetch(q + i + AHEAD / 8);
    __builtin_prefetch(r + i + AHEAD / 8);
    __builtin_prefetch(s + i + AHEAD / 8);
    a += p[i];
    b += q[i];
    c += r[i];
    d += s[i];
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
  return (double)(lines / STREAMS * STREAMS * LINE) * repeats / (best * 1e-9);
}
