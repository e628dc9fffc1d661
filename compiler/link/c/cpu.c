/* What this machine lets us use: CPUs by affinity and cgroup quota, instruction sets by CPUID or by
 * the auxiliary vector. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) || defined(__riscv)
#include <sys/auxv.h>
#endif

#include "plan.h"

#ifndef IF_PROC_CGROUP /* tests point these elsewhere */
#define IF_PROC_CGROUP "/proc/self/cgroup"
#define IF_CGROUP_MOUNT "/sys/fs/cgroup"
#endif

static bool read_file(const char *path, char *text, size_t size) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  ssize_t count = read(file, text, size - 1);
  close(file);
  text[count > 0 ? count : 0] = 0;
  return count > 0;
}

/* Reads a decimal number and moves past it and one space; -1 for anything else ("max", "-1"). */
static int64_t number(const char **text) {
  int64_t value = -1;
  for (; **text >= '0' && **text <= '9'; ++*text)
    if (value < INT64_MAX / 20) value = (value < 0 ? 0 : value * 10) + (**text - '0');
  while (**text == ' ') ++*text;
  return value;
}

/* CPUs granted by one cgroup folder (v2: cpu.max, v1: cpu.cfs_*_us), INT_MAX where unlimited. */
static int folder_quota(const char *folder) {
  char path[1200], text[64];
  const char *at = text;
  int64_t quota, period;
  snprintf(path, sizeof path, "%s/cpu.max", folder);
  if (read_file(path, text, sizeof text)) {
    quota = number(&at);
    period = number(&at);
  } else {
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!read_file(path, text, sizeof text)) return INT_MAX;
    quota = number(&at);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (!read_file(path, text, sizeof text)) return INT_MAX;
    at = text;
    period = number(&at);
  }
  if (quota <= 0 || period <= 0 || quota / period >= INT_MAX) return INT_MAX;
  return quota < period ? 1 : (int)(quota / period);
}

/* Smallest quota from a cgroup up to the root. A container often sees the host's path, which does
 * not exist inside it: missing folders count as unlimited and the walk goes on. */
static int path_quota(const char *mount, const char *group) {
  char folder[1100];
  snprintf(folder, sizeof folder, "%s%s", mount, group);
  int least = INT_MAX;
  for (;;) {
    int quota = folder_quota(folder);
    if (quota < least) least = quota;
    char *slash = strrchr(folder, '/');
    if (strlen(folder) <= strlen(mount) || !slash) return least;
    *slash = 0;
  }
}

static int cgroup_quota(void) {
  char text[8192];
  if (!read_file(IF_PROC_CGROUP, text, sizeof text)) return INT_MAX;
  int least = INT_MAX;
  for (char *line = text, *next; line && *line; line = next) {
    next = strchr(line, '\n');
    if (next) *next++ = 0;
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group || strlen(group) > 1000) continue;
    *group++ = 0;
    int quota = INT_MAX;
    if (!controllers[1]) { /* v2, alone or beside v1 */
      quota = path_quota(IF_CGROUP_MOUNT, group);
      int hybrid = path_quota(IF_CGROUP_MOUNT "/unified", group);
      if (hybrid < quota) quota = hybrid;
    } else {
      char list[256];
      snprintf(list, sizeof list, ",%s,", controllers + 1);
      if (strstr(list, ",cpu,")) quota = path_quota(IF_CGROUP_MOUNT "/cpu", group);
    }
    if (quota < least) least = quota;
  }
  return least;
}

/* CPUs of a set; CPU_ALLOC() and CPU_COUNT_S() call functions that not every C library has. */
static int counted(const unsigned long *set, size_t words) {
  int count = 0;
  for (size_t i = 0; i < words; i++)
    for (unsigned long word = set[i]; word; word &= word - 1) count++;
  return count;
}

int if_usable_cpus(void) {
  int cpus = 1;
  for (size_t most = 1024; most <= 65536; most *= 4) {
    size_t words = most / (8 * sizeof(unsigned long));
    unsigned long *set = calloc(words, sizeof *set);
    if (!set) break;
    bool known = sched_getaffinity(0, words * sizeof *set, (cpu_set_t *)set) == 0;
    if (known) cpus = counted(set, words);
    free(set);
    if (known) break;
  }
  int quota = cgroup_quota();
  return quota < cpus ? quota : cpus > 0 ? cpus : 1;
}

#if defined(__x86_64__)
static uint32_t saved_state(void) {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return 0; /* no OSXSAVE */
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
}

static bool has(const plan_feature *feature) {
  uint32_t r[4] = {0, 0, 0, 0};
  if (!__get_cpuid_count(feature->leaf, feature->subleaf, &r[0], &r[1], &r[2], &r[3]))
    return false;
  if (!(r[feature->reg] >> feature->bit & 1)) return false;
  return !feature->xcr0 || (saved_state() & feature->xcr0) == feature->xcr0;
}

/* Tile data is 8 KiB a thread, so Linux gives it to a process that asks: arch_prctl(2). All threads
 * of the process and its forked children have it from then on. */
int if_request_tiles(void) {
  const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  return syscall(SYS_arch_prctl, request, tile_data) ? errno : 0;
}
#else
#if defined(__aarch64__) || defined(__riscv)
static bool has(const plan_feature *feature) {
  return getauxval(feature->leaf) >> feature->bit & 1;
}
#else
static bool has(const plan_feature *feature) {
  (void)feature;
  return false;
}
#endif

int if_request_tiles(void) { return ENOSYS; }
#endif

const plan_feature *if_missing_feature(const plan_variant *variant) {
  for (int32_t i = 0; i < variant->num_features; i++)
    if (!has(&variant->features[i])) return &variant->features[i];
  return NULL;
}

bool if_needs_tiles(const plan_variant *variant) {
  for (int32_t i = 0; i < variant->num_features; i++)
    if (variant->features[i].xcr0 >> 18 & 1) return true;
  return false;
}
