"""Threads of a run: every task is done once, by whoever comes for it (link/c/pool.c)."""

from intformer.link import build as library
from intformer_testing.c_program import run_c

POOL = [library.SOURCES / name for name in ("pool.c", "cpu.c")]
HEAD = """
    #include <pthread.h>
    #include <stdatomic.h>
    #include <stdarg.h>
    #include <unistd.h>
    #include "plan.h"
    int if_fail(message err, int code, const char *format, ...) {
      (void)err, (void)format;
      return code;
    }
    bool if_survives_fork(void) { return true; }
"""


def run_pool(tmp_path, source: str) -> str:
    return run_c(tmp_path, HEAD + source, *POOL)


def test_every_task_is_done_once(tmp_path):
    """Also while the number of threads changes, and where several programs' threads launch."""
    source = """
        static atomic_int count[1 << 8];
        static int add(int task, parallel_env *env, void *data) {
          int *times = data;
          if (task < 0 || task >= env->num_task) return 1;
          atomic_fetch_add(&count[task], 1);
          __atomic_store_n(times, env->num_task, __ATOMIC_RELAXED);
          return 0;
        }
        static atomic_int sums[4];
        static int sum(int task, parallel_env *env, void *data) {
          int first = task * 100 / env->num_task, end = (task + 1) * 100 / env->num_task;
          for (int i = first; i < end; i++) atomic_fetch_add((atomic_int *)data, i);
          return 0;
        }
        static void *launch(void *number) {
          for (int i = 0; i < 50; i++) if_parallel(sum, number);
          return NULL;
        }
        int main(void) {
          int threads[] = {2, 3, 7, 1, 4, 2};
          for (int k = 0; k < 6; k++) {
            if_set_threads(threads[k]);
            for (int round = 0; round < 50; round++) {
              int tasks = 0;
              for (int i = 0; i < 1 << 8; i++) atomic_store(&count[i], 0);
              if_parallel(add, &tasks);
              if (tasks < threads[k]) return 2;
              for (int i = 0; i < 1 << 8; i++)
                if (atomic_load(&count[i]) != (i < tasks)) return 3;
            }
          }
          pthread_t launchers[4];
          for (int i = 0; i < 4; i++) pthread_create(&launchers[i], NULL, launch, &sums[i]);
          for (int i = 0; i < 4; i++) {
            pthread_join(launchers[i], NULL);
            if (sums[i] != 50 * 4950) return 4;
          }
          puts("once");
          return 0;
        }
    """
    assert run_pool(tmp_path, source) == "once\n"


def test_the_tasks_of_a_thread_without_a_cpu_are_taken_over(tmp_path):
    """A worker does not go on with its task before everybody else has done all others."""
    source = """
        static atomic_int done, stuck;
        static pthread_t launcher;
        static int wait_for_all(int task, parallel_env *env, void *data) {
          (void)task, (void)data;
          if (!pthread_equal(pthread_self(), launcher)) {
            atomic_fetch_add(&stuck, 1);
            while (atomic_load(&done) < env->num_task - atomic_load(&stuck)) usleep(100);
          } else { /* the test is about a worker that has come */
            while (!atomic_load(&stuck)) usleep(100);
          }
          atomic_fetch_add(&done, 1);
          return 0;
        }
        int main(void) {
          launcher = pthread_self();
          for (int threads = 2; threads < 5; threads++) {
            if_set_threads(threads);
            for (int round = 0; round < 5; round++) {
              atomic_store(&done, 0), atomic_store(&stuck, 0);
              if_parallel(wait_for_all, NULL);
              if (atomic_load(&done) % threads) return 1;
            }
          }
          puts("taken over");
          return 0;
        }
    """
    assert run_pool(tmp_path, source) == "taken over\n"


def test_a_fault_is_told_and_the_next_job_is_sound(tmp_path):
    source = """
        static int refuse(int task, parallel_env *env, void *data) {
          return task == *(int *)data % env->num_task ? 7 : 0;
        }
        extern int (*__TVMBackendParallelLaunch)(parallel_fn, void *, int);
        int main(void) {
          if_set_threads(3);
          if (if_prepare_thread((message){NULL, 0})) return 1;
          for (int round = 0; round < 50; round++) {
            int never = -1;
            if (__TVMBackendParallelLaunch(refuse, &round, 0) != 7) return 2;
            if (__TVMBackendParallelLaunch(refuse, &never, 0) != 0) return 3;
          }
          puts("told");
          return 0;
        }
    """
    assert run_pool(tmp_path, source) == "told\n"


def test_a_thread_that_runs_alone_uses_no_other(tmp_path):
    """It has one task, which it does itself; other threads' work is shared out as before."""
    source = """
        typedef struct { atomic_int tasks, own; pthread_t caller; } counts;
        static int note(int task, parallel_env *env, void *data) {
          counts *seen = data;
          (void)task, (void)env;
          atomic_fetch_add(&seen->tasks, 1);
          atomic_fetch_add(&seen->own, pthread_equal(pthread_self(), seen->caller) != 0);
          return 0;
        }
        static void *launch(void *alone) {
          counts seen = {0, 0, pthread_self()};
          if (if_run_alone(alone != NULL)) return "no memory";
          if_parallel(note, &seen);
          if (alone) return seen.tasks == 1 && seen.own == 1 ? "" : "one task was expected, here";
          return seen.tasks >= 3 ? "" : "three tasks were expected";
        }
        int main(void) {
          if_set_threads(3);
          for (int i = 0; i < 4; i++) {
            pthread_t thread;
            void *said;
            pthread_create(&thread, NULL, launch, i % 2 ? &i : NULL);
            pthread_join(thread, &said);
            if (((char *)said)[0]) return puts(said), 1;
          }
          puts(launch("alone"));
          puts(launch(NULL)); /* told otherwise */
          return 0;
        }
    """
    assert run_pool(tmp_path, source).strip() == ""


def test_workers_leave_signals_to_the_program(tmp_path):
    """A program that waits for a signal gets it, although workers were started before it did."""
    source = """
        #include <signal.h>
        #include <time.h>
        static int nothing(int task, parallel_env *env, void *data) {
          return (void)task, (void)env, (void)data, 0;
        }
        int main(void) {
          sigset_t set;
          struct timespec soon = {10, 0};
          if_set_threads(3);
          if_parallel(nothing, NULL);
          sigemptyset(&set);
          sigaddset(&set, SIGTERM);
          pthread_sigmask(SIG_BLOCK, &set, NULL);
          for (int i = 0; i < 20; i++) {
            kill(getpid(), SIGTERM);
            if (sigtimedwait(&set, NULL, &soon) != SIGTERM) return 1;
          }
          puts("got");
          return 0;
        }
    """
    assert run_pool(tmp_path, source) == "got\n"


def test_scratch_memory_that_was_refused_is_not_asked_for_again(tmp_path):
    """What needs less afterwards gets it while there is as little memory as before."""
    source = """
        #include <errno.h>
        int posix_memalign(void **pointer, size_t alignment, size_t size) {
          if (size > 1 << 20) return ENOMEM;
          *pointer = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
          return *pointer ? 0 : ENOMEM;
        }
        extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
        extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
        int main(void) {
          message none = {NULL, 0};
          for (int round = 0; round < 3; round++) {
            if (if_prepare_thread(none)) return 1;
            if (__TVMBackendAllocWorkspace(1, 0, 8 << 20, 0, 8)) return 2;
            void *some = __TVMBackendAllocWorkspace(1, 0, 1000, 0, 8);
            if (!some) return 3;
            if (round) __TVMBackendFreeWorkspace(1, 0, some); /* not by a kernel that failed */
          }
          puts("given");
          return 0;
        }
    """
    assert run_pool(tmp_path, source) == "given\n"
