/* What the kernels for GPUs are made of beside plain C: tensor cores, shared memory, warps.
 * Every generated kernel starts with this file. Pointers come with an offset: in bytes for memory,
 * in numbers for the registers of a thread. tests/support/intformer_testing/cuda_on_cpu.h has the
 * same functions for the CPU. */
#ifndef INTFORMER_ON_CPU
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef __CUDACC_RTC__
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif

#define INTFORMER_DEVICE static __device__ __forceinline__

INTFORMER_DEVICE unsigned intformer_shared(const void *shared, int offset) {
  return (unsigned)__cvta_generic_to_shared((const char *)shared + offset);
}

/* ---- memory ---- */

/* 16, 8 or 4 bytes; the address is a multiple of that */
INTFORMER_DEVICE void intformer_read16(unsigned *to, int at, const void *from, int offset) {
  uint4 v = *(const uint4 *)((const char *)from + offset);
  to[at] = v.x, to[at + 1] = v.y, to[at + 2] = v.z, to[at + 3] = v.w;
}

INTFORMER_DEVICE void intformer_write16(void *to, int offset, const unsigned *from, int at) {
  *(uint4 *)((char *)to + offset) = make_uint4(from[at], from[at + 1], from[at + 2], from[at + 3]);
}

INTFORMER_DEVICE void intformer_write8(void *to, int offset, const unsigned *from, int at) {
  *(uint2 *)((char *)to + offset) = make_uint2(from[at], from[at + 1]);
}

INTFORMER_DEVICE void intformer_write4(void *to, int offset, const unsigned *from, int at) {
  *(unsigned *)((char *)to + offset) = from[at];
}

INTFORMER_DEVICE unsigned intformer_read4(const void *from, int offset) {
  return *(const unsigned *)((const char *)from + offset);
}

/* Bytes and halves of words */
INTFORMER_DEVICE unsigned intformer_pack8(int a, int b, int c, int d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

INTFORMER_DEVICE unsigned intformer_pack16(int a, int b) { return __byte_perm(a, b, 0x5410); }

/* Byte i of four words, as one word: i = 0..3 */
INTFORMER_DEVICE unsigned intformer_column(unsigned a, unsigned b, unsigned c, unsigned d, int i) {
  unsigned select = i | (i + 4) << 4;
  return __byte_perm(__byte_perm(a, b, select), __byte_perm(c, d, select), 0x5410);
}

INTFORMER_DEVICE int intformer_leading_zeros(int x) { return __clz(x); }

/* x + the sum of the products of four int8 */
INTFORMER_DEVICE int intformer_dot4(int x, int a, int b) { return __dp4a(a, b, x); }

/* ---- tensor cores ---- */

/* Four 8 x 16 matrices of bytes; thread t gives the address of row t % 8 of matrix t / 8 and gets
 * columns 4 (t % 4) .. + 3 of row t / 4 of each. */
INTFORMER_DEVICE void intformer_ldmatrix(unsigned *to, int at, const void *shared, int offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[at]), "=r"(to[at + 1]), "=r"(to[at + 2]), "=r"(to[at + 3])
               : "r"(intformer_shared(shared, offset))
               : "memory");
}

/* c[16 x 8] += a[16 x 32] b[32 x 8]. With g = thread / 4 and t = thread % 4 a thread has
 *   a  rows g, g + 8, g, g + 8; columns 4 t .. + 3, twice, then 16 + 4 t .. + 3, twice
 *   b  rows 4 t .. + 3, then 16 + 4 t .. + 3; column g
 *   c  rows g, g, g + 8, g + 8; columns 2 t, 2 t + 1, 2 t, 2 t + 1 */
#if __CUDA_ARCH__ >= 800
#define INTFORMER_MMA(name, type_a)                                                             \
  INTFORMER_DEVICE void name(int *c, int i, const unsigned *a, int j, const unsigned *b, int k) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." type_a ".s8.s32 {%0, %1, %2, %3}, "     \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                  \
                 : "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3])                     \
                 : "r"(a[j]), "r"(a[j + 1]), "r"(a[j + 2]), "r"(a[j + 3]), "r"(b[k]),             \
                   "r"(b[k + 1]));                                                                \
  }
#else
#define INTFORMER_MMA(name, type_a)                                                             \
  INTFORMER_DEVICE void name##_8x16(int *c, int i, unsigned a, unsigned b) {                      \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." type_a ".s8.s32 {%0, %1}, {%2}, {%3}, "  \
                 "{%0, %1};"                                                                      \
                 : "+r"(c[i]), "+r"(c[i + 1])                                                     \
                 : "r"(a), "r"(b));                                                               \
  }                                                                                               \
  INTFORMER_DEVICE void name(int *c, int i, const unsigned *a, int j, const unsigned *b, int k) { \
    name##_8x16(c, i, a[j], b[k]);                                                                \
    name##_8x16(c, i + 2, a[j + 1], b[k]);                                                        \
    name##_8x16(c, i, a[j + 2], b[k + 1]);                                                        \
    name##_8x16(c, i + 2, a[j + 3], b[k + 1]);                                                    \
  }
#endif
INTFORMER_MMA(intformer_mma_u8, "u8")
INTFORMER_MMA(intformer_mma_s8, "s8")

/* ---- warps ---- */

/* Over threads whose numbers differ below `span`: 32 for the warp, 4 for a quarter of a quarter */
INTFORMER_DEVICE int intformer_sum(int x, int span) {
  for (int i = span / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

INTFORMER_DEVICE long long intformer_sum64(long long x, int span) {
  for (int i = span / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

INTFORMER_DEVICE int intformer_max(int x, int span) {
  for (int i = span / 2; i > 0; i /= 2) {
    int y = __shfl_xor_sync(0xffffffffu, x, i);
    x = x > y ? x : y;
  }
  return x;
}
#endif /* INTFORMER_ON_CPU */
