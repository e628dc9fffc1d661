/* Threads and scratch memory for TVM's kernels, behind the hooks their object files ask for.
 *
 * One job at a time, in SHARE tasks for every thread: the launcher fills `job`, gives each slot its
 * share, raises `generation` and works like everybody else. A thread does the tasks of its own slot
 * from the first on, so that it finds the rows of the previous kernel in its own cache, and then
 * takes over what others have not come for, from their last on: on a quiet machine the shares stay
 * whole, and where a core is slow or taken, its thread does less. A claim is one exchange of the
 * slot's `left`, which also has the number of the job; the job is not over before who claimed a task
 * has counted it as done, hence after a successful claim the fields of `pool` are those of its job.
 *
 * On a machine that others use as well, a thread that has lost its CPU in the middle of a task holds
 * up the job. Who finds that sleeps early for a while: the system gives CPUs rather to threads that
 * sleep in between, and an idle CPU takes over the thread that is waited for. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"

enum {
  MAX_THREADS = 1024,
  SHARE = 8, /* tasks of a thread, to be taken over one by one */
  SPIN_NS = 30000,
  CROWDED_SPIN_NS = 5000,
  LATE_NS = 200000, /* no task takes that long once all are claimed: its thread has no CPU */
  CROWDED_JOBS = 1000, /* are launched before the machine is taken for quiet again */
  APART_NS = 1000000 /* between two moves of a thread to another CPU */
};

/* Tasks nobody has claimed: the number of the job, the first of them, the one behind the last. */
typedef uint64_t range;

typedef struct {
  _Alignas(ALIGN) _Atomic range left;
  atomic_uint cpu; /* on which its thread began with the newest job */
  int index;
  unsigned born; /* the newest job when the slot was made */
  int64_t moved; /* when keep_apart() moved the thread; its own */
  pthread_t thread;
} slot;

static struct {
  _Alignas(ALIGN) atomic_uint generation; /* number of the newest job */
  atomic_uint sleepers;
  _Alignas(ALIGN) atomic_uint done; /* tasks of the newest job */
  atomic_uint waited_for; /* the launcher sleeps on done */
  atomic_int crowded; /* jobs for which threads still sleep early */
  atomic_int result; /* of a task that failed */
  const void *failed_in; /* the thread_state of who did that task, or NULL */
  _Alignas(ALIGN) atomic_bool busy; /* somebody launches, or changes the fields below */
  parallel_fn fn;
  void *data;
  slot *slots; /* [size]; slot 0 is the launcher's */
  int size; /* 0: no worker was started */
  int failed_size; /* pthread_create refused to go beyond size when this many were wanted */
  atomic_bool stop;
} pool;

static atomic_int wanted; /* as set by the user; 0 = usable CPUs */
static atomic_int usable; /* 0 = not yet determined */

/* ---- per thread: scratch memory of kernels, why the last one failed ---- */

typedef struct {
  char *base;
  size_t size, top; /* of base */
  size_t total, peak; /* bytes in use, and the most there ever were */
  int live; /* allocations in use; memory is reused once there are none */
  char message[400];
  bool no_memory; /* the reason is that an allocation failed */
  bool alone; /* its runs use no other thread */
} thread_state;

static atomic_uint state_key; /* the pthread_key_t and 1; 0: none yet */

static void free_state(void *pointer) {
  thread_state *state = pointer;
  free(state->base);
  free(state);
}

/* False where the process has no key left; the next call asks again. */
static bool have_key(void) {
  pthread_key_t key;
  unsigned none = 0;
  if (atomic_load(&state_key)) return true;
  if (pthread_key_create(&key, free_state)) return atomic_load(&state_key);
  if (!atomic_compare_exchange_strong(&state_key, &none, key + 1)) pthread_key_delete(key);
  return true;
}

/* NULL where there is no key or no memory. */
static thread_state *this_thread(void) {
  if (!have_key()) return NULL;
  pthread_key_t key = atomic_load(&state_key) - 1;
  thread_state *state = pthread_getspecific(key);
  if (!state) {
    state = calloc(1, sizeof *state);
    if (state && pthread_setspecific(key, state)) {
      free(state);
      return NULL;
    }
  }
  return state;
}

static bool is_alone(void) {
  thread_state *state = this_thread();
  return state && state->alone;
}

static void *take_workspace(thread_state *state, uint64_t bytes) {
  if (bytes > SIZE_MAX / 2) return NULL;
  size_t need = ((size_t)bytes + ALIGN - 1) / ALIGN * ALIGN;
  if (state->total + need > state->peak) state->peak = state->total + need;
  if (!state->live && state->size < state->peak) {
    void *base = NULL;
    free(state->base);
    state->base = NULL, state->size = 0;
    if (posix_memalign(&base, ALIGN, state->peak))
      state->peak = 0; /* there may be memory for this one yet, below */
    else
      state->base = base, state->size = state->peak;
  }
  void *pointer = NULL;
  if (state->size - state->top >= need) {
    pointer = state->base + state->top;
    state->top += need;
  } else if (posix_memalign(&pointer, ALIGN, need)) { /* this once: base grows to peak later */
    return NULL;
  }
  state->total += need;
  state->live++;
  return pointer;
}

static void *alloc_workspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  thread_state *state = this_thread();
  void *pointer = state ? take_workspace(state, bytes) : NULL;
  if (state && !pointer) {
    state->no_memory = true;
    snprintf(state->message, sizeof state->message, "no memory for %llu bytes of workspace",
             (unsigned long long)bytes);
  }
  return pointer;
}

static int free_workspace(int device_type, int device_id, void *pointer) {
  (void)device_type, (void)device_id;
  thread_state *state = this_thread();
  char *at = pointer;
  if (at < state->base || at >= state->base + state->size) free(pointer);
  if (--state->live == 0) state->top = state->total = 0;
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
  thread_state *state = this_thread();
  if (!state) return;
  size_t length = 0;
  for (int32_t i = -1; i < num_parts; i++) {
    const char *part = i < 0 ? kind : parts[i];
    if (!part) continue;
    for (; *part && length < sizeof state->message - 3; part++)
      state->message[length++] = *part == '\n' ? ' ' : *part; /* messages are one line */
    if (i < 0) state->message[length++] = ':', state->message[length++] = ' ';
  }
  state->message[length] = 0;
  state->no_memory = false;
}

int if_prepare_thread(message err) {
  if (!have_key())
    return if_fail(err, INTFORMER_MEMORY,
                   "no thread-specific storage for a run: pthread_key_create() has no key left in "
                   "this process - delete keys that nobody uses");
  thread_state *state = this_thread();
  if (!state) return if_fail(err, INTFORMER_MEMORY, "no memory for the state of a thread");
  state->message[0] = 0;
  state->no_memory = false;
  state->live = 0, state->top = state->total = 0; /* a kernel that failed may not have given back */
  return INTFORMER_OK;
}

int if_kernel_fault(const char **why) {
  thread_state *state = this_thread(); /* there is one since if_prepare_thread() */
  *why = state->message;
  return state->no_memory ? INTFORMER_MEMORY : INTFORMER_KERNEL;
}

/* Makes the reason of the thread that did a task the calling thread's; NULL: it has no state. */
static void adopt_fault(const thread_state *from) {
  thread_state *state = this_thread();
  if (from == state) return;
  state->no_memory = !from || from->no_memory;
  snprintf(state->message, sizeof state->message, "%s",
           from ? from->message : "no memory for the state of a thread");
}

/* ---- waiting ---- */

static void futex_wait(atomic_uint *word, unsigned expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
  __asm__ volatile("pause");
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Watches a word for a while; true when it came to (or, for `leave`, moved away from) value. */
static bool spin(atomic_uint *word, unsigned value, bool leave) {
  bool crowded = atomic_load_explicit(&pool.crowded, memory_order_relaxed) > 0;
  int64_t end = nanoseconds() + (crowded ? CROWDED_SPIN_NS : SPIN_NS);
  do {
    for (int i = 0; i < 32; i++) {
      if ((atomic_load_explicit(word, memory_order_acquire) == value) != leave) return true;
      relax();
    }
  } while (nanoseconds() < end);
  return false;
}

/* ---- workers ---- */

static range tasks(unsigned job, unsigned first, unsigned end) {
  return (range)job << 32 | first << 16 | end;
}

/* Claims a task of a slot, its first or its last; -1: there is none. */
static int claim(slot *s, bool last) {
  range left = atomic_load_explicit(&s->left, memory_order_acquire);
  for (;;) {
    unsigned first = left >> 16 & 0xFFFF, end = left & 0xFFFF;
    if (first == end) return -1;
    range less = last ? left - 1 : left + (1 << 16);
    if (atomic_compare_exchange_weak(&s->left, &left, less)) return (int)(last ? end - 1 : first);
  }
}

static void do_task(int task) {
  parallel_env env = {NULL, pool.size * SHARE};
  int result = pool.fn(task, &env, pool.data), none = 0;
  if (result && atomic_compare_exchange_strong(&pool.result, &none, result))
    pool.failed_in = this_thread();
}

/* Moves the thread where it shares a CPU with one of a lower number: to a system with one thread
 * beside it on every CPU, both places are equal. It may leave the new CPU at once. */
static void keep_apart(slot *me) {
  unsigned cpu = (unsigned)sched_getcpu();
  atomic_store_explicit(&me->cpu, cpu, memory_order_relaxed);
  bool shared = false;
  for (int i = 0; i < me->index && !shared; i++)
    shared = atomic_load_explicit(&pool.slots[i].cpu, memory_order_relaxed) == cpu;
  int64_t now = shared ? nanoseconds() : 0;
  if (!shared || now - me->moved < APART_NS) return;
  me->moved = now;
  unsigned long all[16] = {0}, others[16]; /* 1024 CPUs; where there may be more, it stays */
  const unsigned bits = 8 * sizeof *all;
  if (sched_getaffinity(0, sizeof all, (cpu_set_t *)all)) return;
  memcpy(others, all, sizeof all);
  for (int i = 0; i < me->index; i++) {
    unsigned taken = atomic_load_explicit(&pool.slots[i].cpu, memory_order_relaxed);
    if (taken < 16 * bits) others[taken / bits] &= ~(1ul << taken % bits);
  }
  if (sched_setaffinity(0, sizeof others, (cpu_set_t *)others)) return; /* also if it is empty */
  sched_setaffinity(0, sizeof all, (cpu_set_t *)all);
}

/* Does what is left of the job, own tasks first, and counts it. */
static void take_part(int own) {
  unsigned count = 0;
  keep_apart(&pool.slots[own]);
  for (int i = 0; i < pool.size; i++) {
    slot *s = &pool.slots[(own + i) % pool.size];
    for (int task; (task = claim(s, i > 0)) >= 0; count++) do_task(task);
  }
  if (!count) return;
  unsigned all = (unsigned)pool.size * SHARE; /* the job may be over after the next line */
  if (atomic_fetch_add(&pool.done, count) + count == all && atomic_load(&pool.waited_for))
    futex_wake(&pool.done);
}

static void *work(void *pointer) {
  slot *s = pointer;
  unsigned seen = s->born;
  for (;;) {
    if (!spin(&pool.generation, seen, true)) {
      atomic_fetch_add(&pool.sleepers, 1);
      while (atomic_load(&pool.generation) == seen) futex_wait(&pool.generation, seen);
      atomic_fetch_sub(&pool.sleepers, 1);
    }
    seen = atomic_load(&pool.generation);
    if (pool.stop) return NULL;
    take_part(s->index);
  }
}

static void publish_job(void) {
  atomic_fetch_add(&pool.generation, 1);
  if (atomic_load(&pool.sleepers)) futex_wake(&pool.generation);
}

/* Workers leave signals to the threads of the program, which may wait for them. Not those that a
 * thread brings on itself, that the C library sends to all threads, or that profile them. */
#define BIT(signal) (1ull << ((signal) - 1))
static const uint64_t FOR_ALL_THREADS = BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGABRT) | BIT(SIGBUS) |
                                        BIT(SIGFPE) | BIT(SIGSEGV) | BIT(SIGSYS) | BIT(SIGPROF) |
                                        BIT(32) | BIT(33) | BIT(34);

static void set_signals(uint64_t blocked) {
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &blocked, NULL, sizeof blocked);
}

/* Returns what was blocked before. */
static uint64_t block_signals(uint64_t these) {
  uint64_t before = 0;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, &these, &before, sizeof these);
  return before;
}

/* Makes the pool `size` threads strong, or as strong as the system allows. The caller is busy. */
static void resize(int size) {
  if (pool.size > 1) {
    pool.stop = true;
    publish_job();
    for (int i = 1; i < pool.size; i++) pthread_join(pool.slots[i].thread, NULL);
    pool.stop = false;
  }
  free(pool.slots);
  pool.slots = NULL;
  pool.size = 0;
  if (size > 1 && !if_survives_fork()) return;
  void *slots = NULL;
  if (posix_memalign(&slots, ALIGN, (size_t)size * sizeof *pool.slots)) return;
  memset(slots, 0, (size_t)size * sizeof *pool.slots);
  pool.slots = slots;
  unsigned now = atomic_load(&pool.generation);
  uint64_t before = block_signals(~FOR_ALL_THREADS);
  for (pool.size = 0; pool.size < size; pool.size++) {
    slot *s = &pool.slots[pool.size];
    s->index = pool.size;
    s->born = now;
    if (pool.size && pthread_create(&s->thread, NULL, work, s)) break;
  }
  set_signals(before);
  pool.failed_size = pool.size < size ? size : 0;
}

static int launch_on_pool(parallel_fn fn, void *data) {
  unsigned job = atomic_load(&pool.generation) + 1, all = (unsigned)pool.size * SHARE, done;
  pool.fn = fn;
  pool.data = data;
  pool.failed_in = NULL;
  atomic_store(&pool.result, 0);
  atomic_store(&pool.done, 0);
  for (int i = 0; i < pool.size; i++) {
    unsigned first = (unsigned)i * SHARE;
    atomic_store(&pool.slots[i].left, tasks(job, first, first + SHARE));
  }
  publish_job();
  take_part(0);
  if (atomic_load(&pool.crowded) > 0) atomic_fetch_sub(&pool.crowded, 1);
  if (atomic_load(&pool.done) != all && !spin(&pool.done, all, false)) {
    int64_t start = nanoseconds();
    atomic_store(&pool.waited_for, 1);
    while ((done = atomic_load(&pool.done)) != all) futex_wait(&pool.done, done);
    atomic_store(&pool.waited_for, 0);
    if (nanoseconds() - start > LATE_NS) atomic_store(&pool.crowded, CROWDED_JOBS);
  }
  int result = atomic_load(&pool.result);
  if (result) adopt_fault(pool.failed_in);
  return result;
}

static int parallel_launch(parallel_fn fn, void *data, int num_task) {
  int threads = num_task == 1 || is_alone() ? 1 : if_get_threads();
  if (threads > 1 && !atomic_exchange(&pool.busy, true)) {
    if (pool.size != threads && pool.failed_size != threads) resize(threads);
    bool parallel = pool.size > 1;
    int result = parallel ? launch_on_pool(fn, data) : 0;
    atomic_store(&pool.busy, false);
    if (parallel) return result;
  }
  parallel_env env = {NULL, 1};
  return fn(0, &env, data);
}

void if_parallel(parallel_fn fn, void *data) { parallel_launch(fn, data, 0); }

int if_set_threads(int threads) {
  if (threads < 0 || threads > MAX_THREADS) return INTFORMER_BAD_INPUT;
  atomic_store(&wanted, threads);
  return INTFORMER_OK;
}

int if_run_alone(int alone) {
  thread_state *state = this_thread();
  if (state) state->alone = alone != 0;
  return state ? INTFORMER_OK : INTFORMER_MEMORY;
}

int if_get_threads(void) {
  int threads = atomic_load_explicit(&wanted, memory_order_relaxed);
  if (threads) return threads;
  threads = atomic_load_explicit(&usable, memory_order_relaxed);
  if (!threads) {
    threads = if_usable_cpus();
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    atomic_store(&usable, threads);
  }
  return threads;
}

void if_pool_reset_after_fork(void) { /* only the forking thread goes on in the child */
  pool.slots = NULL;
  pool.size = 0;
  pool.failed_size = 0;
  pool.stop = false;
  atomic_store(&pool.sleepers, 0);
  atomic_store(&pool.busy, false);
  atomic_store(&usable, 0);
}

/* The variables TVM's object files call through; theirs are weak. */
typedef int (*launch_hook)(parallel_fn, void *, int);
typedef void *(*alloc_hook)(int, int, uint64_t, int, int);
typedef int (*free_hook)(int, int, void *);
launch_hook __TVMBackendParallelLaunch = parallel_launch;
alloc_hook __TVMBackendAllocWorkspace = alloc_workspace;
free_hook __TVMBackendFreeWorkspace = free_workspace;
