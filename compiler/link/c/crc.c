/* CRC-32 as in zlib, with the instructions that this CPU has for it: what loaders check the data of
 * a library with, which is most of the file. */
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <wmmintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "plan.h"

/* ---- by tables, on any CPU ---- */

#define POLYNOMIAL 0xEDB88320u /* x^32 + x^26 + .. + 1, reflected */
enum { TABLES = 8 };

static uint32_t table[TABLES][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void fill_table(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
    table[0][i] = value;
  }
  for (int k = 1; k < TABLES; k++)
    for (int i = 0; i < 256; i++)
      table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
}

/* The register of a CRC after more bytes: no bit of it is inverted before or after. */
static uint32_t by_tables(uint32_t crc, const unsigned char *data, size_t size) {
  for (; size >= 8; size -= 8, data += 8) {
    uint32_t low, high;
    memcpy(&low, data, 4), memcpy(&high, data + 4, 4);
    low ^= crc;
    crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^
          table[4][low >> 24] ^ table[3][high & 255] ^ table[2][high >> 8 & 255] ^
          table[1][high >> 16 & 255] ^ table[0][high >> 24];
  }
  for (; size; size--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
  return crc;
}

/* ---- x86-64: folding by carry-less products ---- */

#if defined(__x86_64__)
static bool has_instructions(void) {
  uint32_t eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_PCLMUL;
}

/* 128 bits times the powers of x that move them on, plus what is there. */
__attribute__((target("pclmul"), always_inline)) static inline __m128i fold(__m128i bits, __m128i by,
                                                                             const void *data) {
  __m128i low = _mm_clmulepi64_si128(bits, by, 0x00), high = _mm_clmulepi64_si128(bits, by, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128(data));
}

/* Whole blocks of 64 bytes become 16 bytes with the same CRC, from register 0 (V. Gopal et al.,
 * "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel, 2009). The constants are
 * x^(n+32) and x^(n-32) modulo the polynomial, reflected, for steps of n = 512 and of 128 bits. */
__attribute__((target("pclmul"))) uint32_t if_crc_instructions(uint32_t crc, const void *data,
                                                               size_t size) {
  const unsigned char *at = data, *end = at + size / 64 * 64;
  const __m128i by_512 = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4);
  const __m128i by_128 = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);
  unsigned char rest[16];
  if (at < end) {
    __m128i a = _mm_loadu_si128((const void *)at), b = _mm_loadu_si128((const void *)(at + 16));
    __m128i c = _mm_loadu_si128((const void *)(at + 32)), d = _mm_loadu_si128((const void *)(at + 48));
    a = _mm_xor_si128(a, _mm_cvtsi32_si128((int)crc));
    for (at += 64; at < end; at += 64) {
      a = fold(a, by_512, at), b = fold(b, by_512, at + 16);
      c = fold(c, by_512, at + 32), d = fold(d, by_512, at + 48);
    }
    b = fold(a, by_128, &b), c = fold(b, by_128, &c), d = fold(c, by_128, &d);
    _mm_storeu_si128((void *)rest, d);
    crc = by_tables(0, rest, sizeof rest);
  }
  return by_tables(crc, at, size % 64);
}

/* ---- AArch64: an instruction of its own ---- */

#elif defined(__aarch64__)
static bool has_instructions(void) {
  return getauxval(AT_HWCAP) >> 7 & 1; /* HWCAP_CRC32 */
}

/* Four stretches side by side would hide the latency; the memory is not faster than one. */
__attribute__((noinline)) /* the proof knows by name who may use the instructions */
uint32_t if_crc_instructions(uint32_t crc, const void *data, size_t size) {
  const unsigned char *at = data, *end = at + size / 8 * 8;
  for (; at < end; at += 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(crc) : "r"(word));
  }
  return by_tables(crc, at, size % 8);
}
#else
static bool has_instructions(void) { return false; }

uint32_t if_crc_instructions(uint32_t crc, const void *data, size_t size) {
  return by_tables(crc, data, size);
}
#endif

/* ---- the parts of a file ---- */

typedef struct {
  const unsigned char *data;
  size_t size, part;
  uint32_t *crcs;
  bool instructions;
} request;

static int some_parts(int task, parallel_env *env, void *pointer) {
  const request *r = pointer;
  size_t count = (r->size + r->part - 1) / r->part, tasks = (size_t)env->num_task;
  for (size_t i = count * (size_t)task / tasks; i < count * ((size_t)task + 1) / tasks; i++) {
    const unsigned char *at = r->data + i * r->part;
    size_t left = r->size - i * r->part, length = left < r->part ? left : r->part;
    r->crcs[i] = ~(r->instructions ? if_crc_instructions(~0u, at, length)
                                   : by_tables(~0u, at, length));
  }
  return 0;
}

void if_checksums(const void *data, size_t size, size_t part, uint32_t *crcs) {
  request r = {data, size, part, crcs, has_instructions()};
  pthread_once(&table_once, fill_table);
  if (part) if_parallel(some_parts, &r);
}
