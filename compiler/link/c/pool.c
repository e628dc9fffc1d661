/* Threads and scratch memory for TVM's kernels, behind the hooks their object files ask for.
 *
 * One job at a time: the launcher fills `job`, raises `generation`, does task 0 itself, then every
 * task whose worker has not come for it, then waits for the rest. Worker i does task i, so that it
 * finds the rows of the previous kernel in its own cache. Every slot's `claimed` equals the number
 * of the last job it was part of; whoever moves it from g - 1 to g does that task of job g. A job
 * is not over before all its slots are done, hence a successful claim also means that the fields of
 * `job` are those of job g. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"

enum { MAX_THREADS = 1024, SPIN_NS = 30000 };

typedef struct {
  _Alignas(ALIGN) atomic_uint claimed;
  atomic_uint done;
  atomic_uint waited_for; /* the launcher sleeps on done */
  int result;
  const void *failed_in; /* where result is not 0: thread_state of who did the task, or NULL */
  int index;
  pthread_t thread;
} slot;

static struct {
  _Alignas(ALIGN) atomic_uint generation; /* number of the newest job */
  atomic_uint sleepers;
  _Alignas(ALIGN) atomic_bool busy; /* somebody launches, or changes the fields below */
  parallel_fn fn;
  void *data;
  slot *slots; /* [size]; slot 0 is the launcher's */
  int size; /* 0: no worker was started */
  int failed_size; /* pthread_create refused to go beyond size when this many were wanted */
  bool stop;
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

static void *take_workspace(thread_state *state, uint64_t bytes) {
  if (bytes > SIZE_MAX / 2) return NULL;
  size_t need = ((size_t)bytes + ALIGN - 1) / ALIGN * ALIGN;
  if (state->total + need > state->peak) state->peak = state->total + need;
  if (!state->live && state->size < state->peak) {
    void *base = NULL;
    free(state->base);
    state->base = NULL, state->size = 0;
    if (posix_memalign(&base, ALIGN, state->peak)) return NULL;
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

/* Watches a word for SPIN_NS; true when it came to (or, for `leave`, moved away from) value. */
static bool spin(atomic_uint *word, unsigned value, bool leave) {
  int64_t end = nanoseconds() + SPIN_NS;
  do {
    for (int i = 0; i < 32; i++) {
      if ((atomic_load_explicit(word, memory_order_acquire) == value) != leave) return true;
      relax();
    }
  } while (nanoseconds() < end);
  return false;
}

/* ---- workers ---- */

static bool claim(slot *s, unsigned job) {
  unsigned before = job - 1;
  return atomic_compare_exchange_strong(&s->claimed, &before, job);
}

static void do_task(slot *s, unsigned job) {
  parallel_env env = {NULL, pool.size};
  s->result = pool.fn(s->index, &env, pool.data);
  if (s->result) s->failed_in = this_thread();
  atomic_store(&s->done, job);
  if (atomic_load(&s->waited_for)) futex_wake(&s->done);
}

static void *work(void *pointer) {
  slot *s = pointer;
  unsigned seen = atomic_load(&s->done); /* the newest job when this slot was made */
  for (;;) {
    if (!spin(&pool.generation, seen, true)) {
      atomic_fetch_add(&pool.sleepers, 1);
      while (atomic_load(&pool.generation) == seen) futex_wait(&pool.generation, seen);
      atomic_fetch_sub(&pool.sleepers, 1);
    }
    seen = atomic_load(&pool.generation);
    if (claim(s, seen)) {
      if (pool.stop) return NULL;
      do_task(s, seen);
    }
  }
}

static void publish_job(void) {
  atomic_fetch_add(&pool.generation, 1);
  if (atomic_load(&pool.sleepers)) futex_wake(&pool.generation);
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
  void *slots = NULL;
  if (posix_memalign(&slots, ALIGN, (size_t)size * sizeof *pool.slots)) return;
  memset(slots, 0, (size_t)size * sizeof *pool.slots);
  pool.slots = slots;
  unsigned now = atomic_load(&pool.generation);
  for (pool.size = 0; pool.size < size; pool.size++) {
    slot *s = &pool.slots[pool.size];
    s->index = pool.size;
    atomic_store(&s->claimed, now);
    atomic_store(&s->done, now);
    if (pool.size && pthread_create(&s->thread, NULL, work, s)) break;
  }
  pool.failed_size = pool.size < size ? size : 0;
}

static int launch_on_pool(parallel_fn fn, void *data) {
  pool.fn = fn;
  pool.data = data;
  publish_job();
  unsigned job = atomic_load(&pool.generation);
  claim(&pool.slots[0], job);
  do_task(&pool.slots[0], job);
  for (int i = 1; i < pool.size; i++)
    if (claim(&pool.slots[i], job)) do_task(&pool.slots[i], job);
  int result = 0;
  for (int i = 0; i < pool.size; i++) {
    slot *s = &pool.slots[i];
    if (atomic_load(&s->done) != job && !spin(&s->done, job, false)) {
      unsigned done;
      atomic_store(&s->waited_for, 1);
      while ((done = atomic_load(&s->done)) != job) futex_wait(&s->done, done);
      atomic_store(&s->waited_for, 0);
    }
    if (s->result) result = s->result, adopt_fault(s->failed_in);
  }
  return result;
}

static int parallel_launch(parallel_fn fn, void *data, int num_task) {
  int threads = num_task == 1 ? 1 : if_get_threads();
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
