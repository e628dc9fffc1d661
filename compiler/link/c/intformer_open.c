/* Loads a compiled intformer library after checking that the file is whole: a shared library cut
 * short kills the process when it is mapped. Compile this with your program (old glibc: -ldl). */
#ifndef _GNU_SOURCE /* C++ compilers define it, which take this file as well */
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include "intformer.h"

enum { FOOTER = 64, PART = 1 << 16, LANES = 4, OLDEST_ABI = 4 };

/* e_machine of the libraries that this program can load; 0: not known, dlopen() decides. */
#if defined(__x86_64__)
enum { MACHINE = 62 };
#elif defined(__aarch64__)
enum { MACHINE = 183 };
#elif defined(__riscv) && __riscv_xlen == 64
enum { MACHINE = 243 };
#else
enum { MACHINE = 0 };
#endif

static uint32_t word(const unsigned char *b) {
  return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint64_t little_endian(const unsigned char *bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
  return value;
}

typedef uint32_t crc_table[8][256];

static void fill_table(crc_table table) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    table[0][i] = value;
  }
  for (int k = 1; k < 8; k++)
    for (int i = 0; i < 256; i++)
      table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
}

static uint32_t eight_bytes(crc_table table, uint32_t crc, const unsigned char *data) {
  uint32_t low = crc ^ word(data), high = word(data + 4);
  return table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^
         table[4][low >> 24] ^ table[3][high & 255] ^ table[2][high >> 8 & 255] ^
         table[1][high >> 16 & 255] ^ table[0][high >> 24];
}

/* CRC-32 as in zlib. */
static uint32_t crc32(crc_table table, uint32_t crc, const unsigned char *data, size_t size) {
  crc = ~crc;
  for (; size >= 8; size -= 8, data += 8) crc = eight_bytes(table, crc, data);
  for (; size; size--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
  return ~crc;
}

/* The same of LANES whole parts side by side: every step of one waits for the step before,
 * so four chains take a third of the time of one after the other. */
static void crc32_lanes(crc_table table, uint32_t crc[LANES], const unsigned char *data) {
  uint32_t a = ~0u, b = ~0u, c = ~0u, d = ~0u;
  for (const unsigned char *end = data + PART; data < end; data += 8) {
    a = eight_bytes(table, a, data);
    b = eight_bytes(table, b, data + PART);
    c = eight_bytes(table, c, data + 2 * PART);
    d = eight_bytes(table, d, data + 3 * PART);
  }
  crc[0] = ~a, crc[1] = ~b, crc[2] = ~c, crc[3] = ~d;
}

/* What the footer holds: the CRC-32 of the CRC-32s (4 bytes each, low byte first) of all parts of
 * PART bytes, the last one shorter. False when the file ends before `size`. */
static bool checksum(crc_table table, FILE *file, long size, uint32_t *result) {
  unsigned char *data = (unsigned char *)malloc(LANES * PART);
  uint32_t total = 0, crc[LANES];
  while (data && size > 0) {
    long count = size < LANES * PART ? size : LANES * PART;
    if (fread(data, 1, (size_t)count, file) != (size_t)count) break;
    size -= count;
    if (count == LANES * PART)
      crc32_lanes(table, crc, data);
    else
      for (long i = 0; i * PART < count; i++) {
        long part = count - i * PART;
        if (part > PART) part = PART;
        crc[i] = crc32(table, 0, data + i * PART, (size_t)part);
      }
    for (long i = 0; i * PART < count; i++) {
      unsigned char bytes[4] = {(unsigned char)crc[i], (unsigned char)(crc[i] >> 8),
                                (unsigned char)(crc[i] >> 16), (unsigned char)(crc[i] >> 24)};
      total = crc32(table, total, bytes, 4);
    }
  }
  free(data);
  *result = total;
  return size == 0;
}

/* Returns NULL when the file is whole, else what is wrong with it.
 * machine  its e_machine */
static const char *check_file(FILE *file, unsigned char footer[FOOTER], unsigned *machine) {
  static const char cut[] = "not an intformer library, or cut short (no footer)";
  crc_table table;
  uint32_t found;
  unsigned char head[20];
  long size;
  fill_table(table);
  if (fseek(file, 0, SEEK_END) || (size = ftell(file)) < FOOTER) return cut;
  if (fseek(file, size - FOOTER, SEEK_SET) || fread(footer, 1, FOOTER, file) != FOOTER) return cut;
  if (memcmp(footer, "INTFORM2", 8)) return cut;
  if (crc32(table, 0, footer, FOOTER - 4) != word(footer + 60) ||
      little_endian(footer + 8, 8) != (uint64_t)size)
    return "library is damaged: its length is not the one in its footer";
  rewind(file);
  if (fread(head, 1, sizeof head, file) != sizeof head) return cut;
  *machine = (unsigned)little_endian(head + 18, 2);
  rewind(file);
  if (!checksum(table, file, size - FOOTER, &found)) return "library cannot be read to its end";
  return found == word(footer + 16) ? NULL : "library is altered: wrong checksum";
}

/* The version of this process's glibc; NULL under another C library, which ignores versions. */
static const char *glibc(void) {
#ifdef __GLIBC__
  return gnu_get_libc_version();
#else
  return NULL;
#endif
}

static int at_least(const char *text, unsigned major, unsigned minor) {
  unsigned have[2] = {0, 0};
  for (int i = 0; i < 2; i++, text += *text == '.')
    for (; *text >= '0' && *text <= '9'; text++) have[i] = have[i] * 10 + (unsigned)(*text - '0');
  return have[0] > major || (have[0] == major && have[1] >= minor);
}

static const intformer_api *load(const char *path, const unsigned char *footer, char *err,
                                 size_t err_len) {
  char alias[4096];
  const char *base = strrchr(path, '/');
  size_t folder = base ? (size_t)(base - path) + 1 : 0;
  base = path + folder;
  /* dlopen() answers with the library it already has under this name, even if the file has been
   * replaced since: another spelling of the path makes it look again. */
  for (int dots = 0; dots < 64; dots++) {
    int length = snprintf(alias, sizeof alias, "%.*s", (int)folder, path);
    for (int i = 0; i < dots + !folder && length < 4000; i++)
      length += snprintf(alias + length, sizeof alias - (size_t)length, "./");
    if ((size_t)length + strlen(base) >= sizeof alias) {
      snprintf(err, err_len, "path is too long - %s", path);
      return NULL;
    }
    strcpy(alias + length, base);
    void *handle = dlopen(alias, RTLD_NOW | RTLD_LOCAL);
    void *symbol = handle ? dlsym(handle, "intformer_get") : NULL;
    if (!symbol) {
      snprintf(err, err_len, "%s", dlerror());
      return NULL;
    }
    const intformer_api *(*get)(void);
    memcpy(&get, &symbol, sizeof get);
    if (get()->size < sizeof(intformer_api)) {
      snprintf(err, err_len, "its table has %u bytes, %zu expected - %s", get()->size,
               sizeof(intformer_api), path);
      return NULL;
    }
    if (!memcmp(get()->build_id, footer + 24, 32)) return get();
  }
  snprintf(err, err_len, "an older library is loaded under this path - %s", path);
  return NULL;
}

const intformer_api *intformer_open(const char *path, char *err, size_t err_len) {
  char none[1];
  unsigned char footer[FOOTER];
  if (!err || !err_len) err = none, err_len = sizeof none;
  err[0] = 0;
  FILE *file = fopen(path, "rbe");
  if (!file) {
    snprintf(err, err_len, "cannot open library - %s", path);
    return NULL;
  }
  unsigned machine;
  const char *fault = check_file(file, footer, &machine);
  fclose(file);
  if (fault) {
    snprintf(err, err_len, "%s - %s - copy it again, or compile the model again", fault, path);
    return NULL;
  }
  if (MACHINE != 0 && machine != MACHINE) {
    snprintf(err, err_len, "library has code for ELF machine %u, this program runs %u - %s", machine,
             (unsigned)MACHINE, path);
    return NULL;
  }
  unsigned abi = (unsigned)little_endian(footer + 56, 4);
  unsigned major = (unsigned)little_endian(footer + 20, 2);
  unsigned minor = (unsigned)little_endian(footer + 22, 2);
  if (abi < OLDEST_ABI) {
    snprintf(err, err_len, "library has interface version %u, this program reads %d and newer - %s - "
             "compile the model again", abi, OLDEST_ABI, path);
    return NULL;
  }
  if (glibc() && !at_least(glibc(), major, minor)) {
    snprintf(err, err_len, "library needs glibc %u.%u, this system has %s - %s", major, minor, glibc(),
             path);
    return NULL;
  }
  return load(path, footer, err, err_len);
}
