/* The AMX int8 roof of one core: tdpbssd on tiles that stay loaded, nothing to wait for.
 * Used by `intformer bench`; no part of a compiled library. */
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18
#define TILES 8
#define ROWS 16
#define BYTES 64                           /* of a row */
#define MACS (4 * 16.0 * ROWS * BYTES)     /* multiply-adds in one round: four products */

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void configure(void) {
  static int8_t ones[ROWS * BYTES] __attribute__((aligned(64)));
  uint8_t config[64] = {1}; /* palette 1; bytes of a row from 16 on, rows from 48 on */
  for (int i = 0; i < TILES; i++) {
    config[16 + 2 * i] = BYTES;
    config[48 + i] = ROWS;
  }
  memset(ones, 1, sizeof ones);
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  __asm__ volatile(
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
      "tileloadd (%0,%1,1), %%tmm4\n\ttileloadd (%0,%1,1), %%tmm5\n\t"
      "tileloadd (%0,%1,1), %%tmm6\n\ttileloadd (%0,%1,1), %%tmm7"
      :
      : "r"(ones), "r"((int64_t)BYTES)
      : "memory");
}

/* Two tiles of one operand by two of the other: the block that a real kernel keeps in tiles. */
static void rounds(int64_t count) {
  __asm__ volatile(
      "1:\n\t"
      "tdpbssd %%tmm6, %%tmm4, %%tmm0\n\ttdpbssd %%tmm7, %%tmm4, %%tmm1\n\t"
      "tdpbssd %%tmm6, %%tmm5, %%tmm2\n\ttdpbssd %%tmm7, %%tmm5, %%tmm3\n\t"
      "dec %0\n\tjnz 1b"
      : "+r"(count)
      :
      : "cc");
}

/* Best of `tries` slices of about 10 ms, in multiply-adds per second; 0 where the kernel refuses. */
double intformer_amx_peak(int tries) {
  int64_t count = 1 << 12, best = INT64_MAX, start, spent;
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
  configure();
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
  __asm__ volatile("tilerelease");
  return MACS * count / (best * 1e-9);
}
