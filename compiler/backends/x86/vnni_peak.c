/* The VNNI roof of one core: vpdpbusd on registers alone, nothing to wait for.
 * Used by `intformer bench`; no part of a compiled library. */
#include <stdint.h>
#include <time.h>

/* 16 accumulators keep two ports busy over a latency of five cycles, with some to spare */
#define STEP(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define ALL(M) \
  M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define MACS (16 * 64.0) /* multiply-adds in one round */

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void rounds(int64_t count) {
  __asm__ volatile(
      ALL(CLEAR) CLEAR(30) CLEAR(31) "1:\n\t" ALL(STEP) "dec %0\n\tjnz 1b\n\tvzeroupper"
      : "+r"(count)
      :
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

/* Best of `tries` slices of about 10 ms, in multiply-adds per second. */
double intformer_vnni_peak(int tries) {
  int64_t count = 1 << 14, best = INT64_MAX, start, spent;
  do {
    count *= 2;
    start = nanoseconds();
    rounds(count);
    spent = nanoseconds() - start;
  } while (spent < 10000000);
  while (tries-- > 0) {
    start = nanoseconds();
    rounds(count);
    spent = nanoseconds() - start;
    if (spent < best) best = spent;
  }
  return MACS * count / (best * 1e-9);
}
