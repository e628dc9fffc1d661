/* Loads a compiled intformer library after checking that the file is whole: a shared library cut
 * short kills the process when it is mapped. Compile this with your program (old glibc: -ldl). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <string.h>

#include "intformer.h"

enum { FOOTER = 64, CHUNK = 1 << 16 };

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

/* CRC-32 as in zlib, eight bytes a step. */
static uint32_t crc32(crc_table table, uint32_t crc, const unsigned char *data, size_t size) {
  crc = ~crc;
  for (; size >= 8; size -= 8, data += 8) {
    uint32_t low = crc ^ (uint32_t)little_endian(data, 4);
    uint32_t high = (uint32_t)little_endian(data + 4, 4);
    crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^
          table[4][low >> 24] ^ table[3][high & 255] ^ table[2][high >> 8 & 255] ^
          table[1][high >> 16 & 255] ^ table[0][high >> 24];
  }
  for (; size; size--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
  return ~crc;
}

/* Returns NULL when the file is whole, else what is wrong with it. */
static const char *check_file(FILE *file, unsigned char footer[FOOTER]) {
  static const char cut[] = "not an intformer library, or cut short (no footer)";
  unsigned char chunk[CHUNK];
  crc_table table;
  long size;
  fill_table(table);
  if (fseek(file, 0, SEEK_END) || (size = ftell(file)) < FOOTER) return cut;
  if (fseek(file, size - FOOTER, SEEK_SET) || fread(footer, 1, FOOTER, file) != FOOTER) return cut;
  if (memcmp(footer, "INTFORM1", 8)) return cut;
  if (crc32(table, 0, footer, FOOTER - 4) != little_endian(footer + 60, 4) ||
      little_endian(footer + 8, 8) != (uint64_t)size)
    return "library is damaged: its length is not the one in its footer";
  rewind(file);
  uint32_t crc = 0;
  for (long left = size - FOOTER; left > 0;) {
    size_t count = fread(chunk, 1, left < CHUNK ? (size_t)left : CHUNK, file);
    if (!count) return "library cannot be read to its end";
    crc = crc32(table, crc, chunk, count);
    left -= (long)count;
  }
  return crc == little_endian(footer + 16, 4) ? NULL : "library is altered: wrong CRC";
}

/* Whether this process's glibc is at least major.minor. */
static int glibc_at_least(unsigned major, unsigned minor) {
  unsigned have[2] = {0, 0};
  const char *text = gnu_get_libc_version();
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
  const char *fault = check_file(file, footer);
  fclose(file);
  if (fault) {
    snprintf(err, err_len, "%s - %s - copy it again, or compile the model again", fault, path);
    return NULL;
  }
  unsigned abi = (unsigned)little_endian(footer + 56, 4);
  unsigned major = (unsigned)little_endian(footer + 20, 2);
  unsigned minor = (unsigned)little_endian(footer + 22, 2);
  if (abi != INTFORMER_ABI_VERSION) {
    snprintf(err, err_len, "library has interface version %u, this program %d - %s", abi,
             INTFORMER_ABI_VERSION, path);
    return NULL;
  }
  if (!glibc_at_least(major, minor)) {
    snprintf(err, err_len, "library needs glibc %u.%u, this system has %s - %s", major, minor,
             gnu_get_libc_version(), path);
    return NULL;
  }
  return load(path, footer, err, err_len);
}
