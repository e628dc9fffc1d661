/* A plugin of qemu-user: how often each straight piece of code ran between two calls of getppid().
 *
 *   qemu-aarch64 -plugin count.so,syscall=NUMBER,out=FILE PROGRAM
 *
 * syscall is getppid's number on the emulated machine. FILE gets a line "ADDRESS BYTES
 * INSTRUCTIONS RUNS" per piece, in decimal, then the lines of /proc/self/maps, in which the addresses
 * are found: both are the emulator's own. The functions of qemu are declared here: no package has
 * their header. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t id_t_;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*on_translation)(id_t_, struct qemu_plugin_tb *);
typedef void (*on_syscall)(id_t_, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t, uint64_t);
enum { INLINE_ADD = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, on_translation);
void qemu_plugin_register_vcpu_syscall_cb(id_t_, on_syscall);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);

int qemu_plugin_version = 1;

struct piece {
  struct piece *next;
  void *address;
  size_t bytes, instructions;
  uint64_t runs; /* the emulator adds to it */
};
static struct piece *pieces;
static long number;
static const char *out;
static int calls;

static void translated(id_t_ id, struct qemu_plugin_tb *tb) {
  (void)id;
  struct piece *piece = calloc(1, sizeof *piece);
  if (!piece) abort();
  size_t count = qemu_plugin_tb_n_insns(tb);
  struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0);
  struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, count - 1);
  piece->next = pieces;
  piece->address = qemu_plugin_insn_haddr(first);
  piece->instructions = count;
  piece->bytes = qemu_plugin_insn_vaddr(last) - qemu_plugin_insn_vaddr(first) +
                 qemu_plugin_insn_size(last);
  pieces = piece;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD, &piece->runs, 1);
}

static void write_counts(void) {
  FILE *file = fopen(out, "w"), *maps = fopen("/proc/self/maps", "r");
  char line[4096];
  if (!file || !maps) abort();
  for (struct piece *piece = pieces; piece; piece = piece->next)
    if (piece->runs)
      fprintf(file, "%" PRIuPTR " %zu %zu %" PRIu64 "\n", (uintptr_t)piece->address,
              piece->bytes, piece->instructions, piece->runs);
  while (fgets(line, sizeof line, maps)) fputs(line, file);
  fclose(maps);
  fclose(file);
}

static void called(id_t_ id, unsigned cpu, int64_t num, uint64_t a, uint64_t b, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (num != number) return;
  if (++calls == 2) write_counts();
  for (struct piece *piece = pieces; piece; piece = piece->next) piece->runs = 0;
}

int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (!strncmp(argv[i], "syscall=", 8)) number = atol(argv[i] + 8);
    if (!strncmp(argv[i], "out=", 4)) out = strdup(argv[i] + 4);
  }
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
