/* What libFuzzer does, without its eye for coverage, where there is no clang:
 *
 *     program SEED COUNT FILE...
 *
 * calls the harness with each file, then COUNT times with random bytes, and says on a signal which
 * they were. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state; /* splitmix64 */
static char note[80];
static int noted;

static uint64_t next(void) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

static void last_words(int number) {
  (void)!write(2, note, (size_t)noted);
  signal(number, SIG_DFL);
  raise(number);
}

static void call_with_file(const char *path) {
  uint8_t data[1 << 12];
  FILE *file = fopen(path, "rb");
  size_t size = file ? fread(data, 1, sizeof data, file) : 0;
  if (file) fclose(file);
  noted = snprintf(note, sizeof note, "harness: file %.60s\n", path);
  LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  uint64_t seed = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
  signal(SIGABRT, last_words);
  for (int i = 3; i < argc; i++) call_with_file(argv[i]);
  for (uint64_t i = seed; i < seed + count; i++) {
    uint8_t data[512];
    state = i;
    size_t size = next() % (sizeof data + 1);
    for (size_t k = 0; k < size; k++) data[k] = (uint8_t)(next() >> 56);
    noted = snprintf(note, sizeof note, "harness: seed %llu, count 1\n", (unsigned long long)i);
    LLVMFuzzerTestOneInput(data, size);
  }
  printf("%llu calls\n", (unsigned long long)count);
  return 0;
}
