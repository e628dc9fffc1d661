/* intformer_open() of a library whose bytes were changed: nothing but the library as it was built
 * is loaded, and no change of lengths and lists makes the opener read where nothing is.
 *
 * The checksum of the footer alone is repaired, so that what it says is believed. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "demand.h"
#include "intformer.h"

enum { FOOTER = 64, LIST = 20, PART = 1 << 16, EDITS = 8, LOADED = 100 };

static unsigned char *sound, *altered; /* [length] */
static size_t length;
static int file;
static char path[40];

static uint32_t crc32(const unsigned char *data, size_t size) { /* zlib's, bit by bit */
  uint32_t crc = ~0u;
  while (size--) {
    crc ^= *data++;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

/* A file with the library's bytes; what is loaded keeps its own, or it would be changed as well. */
static void another_file(void) {
  file = memfd_create("library", 0);
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  DEMAND(file >= 0 && pwrite(file, sound, length, 0) == (ssize_t)length);
}

static void start(void) {
  FILE *from = fopen(LIBRARY, "rb");
  DEMAND(from && !fseek(from, 0, SEEK_END));
  length = (size_t)ftell(from);
  rewind(from);
  sound = malloc(length), altered = malloc(length);
  DEMAND(sound && altered && fread(sound, 1, length, from) == length);
  fclose(from);
  another_file();
}

/* Near the end, where footer and list are, as often as anywhere. */
static size_t place(uint32_t value) {
  return value & 1 ? length - 1 - (value >> 1) % 160 : (value >> 1) % length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!sound) start();
  memcpy(altered, sound, length);
  size_t first = length, last = 0, cut = length;
  bool repaired = size && data[0] & 1;
  if (size > 3 && (data[0] & 14) == 14) cut = length - (data[1] | (size_t)data[2] << 8) % length;
  for (size_t at = 1, edits = 0; at + 5 <= size && edits < EDITS; at += 5, edits++) {
    uint32_t value;
    memcpy(&value, data + at, 4);
    size_t where = place(value);
    altered[where] = data[at + 4];
    first = where < first ? where : first;
    last = where > last ? where : last;
  }
  if (repaired) {
    uint32_t crc = crc32(altered + length - FOOTER, FOOTER - 4);
    for (int i = 0; i < 4; i++) altered[length - 4 + (size_t)i] = (unsigned char)(crc >> 8 * i);
    first = first < length - 4 ? first : length - 4, last = length - 1;
  }
  static int loaded;
  uint32_t list[LIST / 4];
  memcpy(list, sound + length - FOOTER - LIST, LIST);
  size_t code = (size_t)list[3] * PART, rest = code + (size_t)list[4] * PART;
  bool same = cut == length && !memcmp(altered, sound, length - FOOTER);
  bool sound_code = cut == length && !memcmp(altered, sound, code) &&
                    !memcmp(altered + rest, sound + rest, length - FOOTER - rest);
  if (sound_code && loaded++ >= LOADED) return 0;
  if (first <= last) DEMAND(pwrite(file, altered + first, last - first + 1, (off_t)first) > 0);
  DEMAND(cut == length || !ftruncate(file, (off_t)cut));
  char err[200] = "";
  const intformer_api *api = intformer_open(path, err, sizeof err);
  DEMAND(api ? same : *err && !strchr(err, '\n'));
  if (sound_code) { /* its data was checked after it was loaded */
    another_file();
    return 0;
  }
  if (cut < length) first = first < cut ? first : cut, last = length - 1;
  if (first <= last)
    DEMAND(pwrite(file, sound + first, last - first + 1, (off_t)first) ==
           (ssize_t)(last - first + 1));
  return 0;
}
