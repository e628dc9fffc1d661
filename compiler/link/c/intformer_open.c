/* Loads a compiled intformer library after checking that the file is whole: a shared library cut
 * short kills the process when it is mapped. Compile this with your program (old glibc: -ldl). */
#ifndef _GNU_SOURCE /* C++ compilers define it, which take this file as well */
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include "intformer.h"

enum { FOOTER = 64, LIST = 20, PART = 1 << 16, LANES = 4, OLDEST_ABI = 4 };

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

/* Parts of a file, one after the other, that are data alone and left for the library's own code to
 * check: the CRC-32 of each as the file has it. */
typedef struct {
  long first, count;
  unsigned char *crcs; /* [4 * count] */
} data_parts;

/* Reads the list of parts before the footer; none where there is no list, or a damaged one, or no
 * memory: then all parts are read here. */
static data_parts read_list(FILE *file, long size) {
  data_parts none = {0, 0, NULL}, found;
  unsigned char list[LIST];
  if (size < LIST || fseek(file, size - LIST, SEEK_SET) || fread(list, 1, LIST, file) != LIST ||
      memcmp(list, "IFPARTS1", 8))
    return none;
  long whole = (long)word(list + 8), elf = size - LIST - 4 * whole;
  found.first = (long)word(list + 12);
  found.count = (long)word(list + 16);
  if (elf < 0 || elf / PART != whole || found.first + found.count > whole) return none;
  size_t bytes = 4 * (size_t)found.count;
  found.crcs = (unsigned char *)malloc(bytes + 1);
  if (found.crcs && !fseek(file, elf + 4 * found.first, SEEK_SET) &&
      fread(found.crcs, 1, bytes, file) == bytes)
    return found;
  free(found.crcs);
  return none;
}

static uint32_t add_crcs(crc_table table, uint32_t total, const uint32_t *crcs, long count) {
  for (long i = 0; i < count; i++) {
    unsigned char bytes[4] = {(unsigned char)crcs[i], (unsigned char)(crcs[i] >> 8),
                              (unsigned char)(crcs[i] >> 16), (unsigned char)(crcs[i] >> 24)};
    total = crc32(table, total, bytes, 4);
  }
  return total;
}

/* Goes on with the checksum over the bytes from `at`, where a part starts, to `end`. False when
 * they cannot be read. */
static bool add_bytes(crc_table table, FILE *file, long at, long end, uint32_t *total) {
  unsigned char *data = (unsigned char *)malloc(LANES * PART);
  uint32_t crc[LANES];
  long count = 0;
  if (data && !fseek(file, at, SEEK_SET))
    for (; at < end; at += count) {
      count = end - at < LANES * PART ? end - at : LANES * PART;
      if (fread(data, 1, (size_t)count, file) != (size_t)count) break;
      if (count == LANES * PART)
        crc32_lanes(table, crc, data);
      else
        for (long i = 0; i * PART < count; i++) {
          long part = count - i * PART;
          crc[i] = crc32(table, 0, data + i * PART, (size_t)(part < PART ? part : (long)PART));
        }
      *total = add_crcs(table, *total, crc, (count + PART - 1) / PART);
    }
  free(data);
  return at >= end;
}

/* What the footer holds: the CRC-32 of the CRC-32s (4 bytes each, low byte first) of all parts of
 * PART bytes before it, the last one shorter. Those of data are taken as they are listed. */
static bool checksum(crc_table table, FILE *file, long size, const data_parts *data,
                     uint32_t *total) {
  *total = 0;
  if (!add_bytes(table, file, 0, data->first * PART, total)) return false;
  *total = crc32(table, *total, data->crcs, 4 * (size_t)data->count);
  return add_bytes(table, file, (data->first + data->count) * PART, size, total);
}

/* Returns NULL when all but the data is as it was written, else what is wrong with the file.
 * machine  its e_machine
 * data     what is left to check; its crcs are the caller's to free, whatever is returned */
static const char *check_file(FILE *file, unsigned char footer[FOOTER], unsigned *machine,
                              data_parts *data) {
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
  *data = read_list(file, size - FOOTER);
  if (!checksum(table, file, size - FOOTER, data, &found)) return "library cannot be read to its end";
  return found == word(footer + 16) ? NULL : "library is altered: wrong checksum";
}

/* The same of the data, by the code of the loaded library. */
static const char *check_data(FILE *file, const data_parts *data, const intformer_api *api) {
  size_t size = (size_t)data->count * PART;
  if (!size) return NULL;
  uint32_t *crcs = (uint32_t *)malloc((size_t)data->count * sizeof *crcs);
  void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fileno(file), data->first * PART);
  const char *fault = "library cannot be read to its end";
  if (crcs && bytes != MAP_FAILED) {
    fault = NULL;
    api->checksums(bytes, size, PART, crcs);
    for (long i = 0; i < data->count; i++)
      if (crcs[i] != word(data->crcs + 4 * i)) fault = "library is altered: wrong checksum";
  }
  if (bytes != MAP_FAILED) munmap(bytes, size);
  free(crcs);
  return fault;
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

/* Bytes of the table of a library: what later versions have added lies behind. */
static size_t least_size(unsigned abi) {
  if (abi == OLDEST_ABI) return offsetof(intformer_api, checksums);
  return abi == 5 ? offsetof(intformer_api, run_alone) : sizeof(intformer_api);
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
    if (memcmp(get()->build_id, footer + 24, 32)) continue;
    size_t least = least_size((uint32_t)little_endian(footer + 56, 4));
    if (get()->size < least) {
      snprintf(err, err_len, "its table has %u bytes, %zu expected - %s", get()->size, least, path);
      return NULL;
    }
    return get();
  }
  snprintf(err, err_len, "an older library is loaded under this path - %s", path);
  return NULL;
}

/* Opens a file that is checked but for its data. */
static const intformer_api *open_checked(const char *path, const unsigned char *footer,
                                         unsigned machine, char *err, size_t err_len) {
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
  data_parts data = {0, 0, NULL};
  const intformer_api *api = NULL;
  const char *fault = check_file(file, footer, &machine, &data);
  if (!fault) api = open_checked(path, footer, machine, err, err_len);
  if (api) fault = check_data(file, &data, api);
  fclose(file);
  free(data.crcs);
  if (!fault) return api;
  snprintf(err, err_len, "%s - %s - copy it again, or compile the model again", fault, path);
  return NULL;
}
