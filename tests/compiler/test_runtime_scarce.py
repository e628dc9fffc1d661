"""A compiled library where the process has run out of something: an error, and nothing else.

The programs define functions of libc themselves (-rdynamic lets the library find them first), so
that a call fails when it is told to.
"""

import pytest

from intformer.link import build as library
from intformer_testing import toy
from intformer_testing.c_program import batch_c, run_c

OPENER = library.SOURCES / "intformer_open.c"
IDS, OFFSETS = toy.batch(3, (12,) * 200)  # a worker has the time to come for its task
TRY = """
    static const intformer_api *api;
    /* prints the code and the message, or the code and whether the numbers are right */
    static void try(void) {
      char err[300] = "";
      int32_t out[sizeof wanted / sizeof *wanted];
      int code = api->run(&input, out, sizeof out / sizeof *out, err, sizeof err);
      printf("%d %s\\n", code, code ? err : memcmp(out, wanted, sizeof out) ? "wrong" : "right");
    }
    static void load(const char *path) {
      char err[300];
      api = intformer_open(path, err, sizeof err);
      if (!api) { printf("%s", err); exit(0); }
    }
"""


def lines(tmp_path, path, code, main):
    """Compile a program that tries runs; return the lines it prints."""
    numbers = ", ".join(map(str, toy.expected(0, IDS, OFFSETS).ravel()))
    source = f"""
        #include <errno.h>
        #include <pthread.h>
        #include <stdbool.h>
        #include <sys/wait.h>
        #include <unistd.h>
        {batch_c(IDS, OFFSETS)}
        static const int32_t wanted[] = {{{numbers}}};
        {TRY}
        {code}
        int main(void) {{
          load("{path}");
          {main}
          return 0;
        }}
    """
    return run_c(tmp_path, source, OPENER, "-rdynamic").splitlines()


def test_a_process_without_a_free_key(toy_path, tmp_path):
    """The caller's own key 0 keeps its value, and a key that becomes free is enough."""
    code = """
        static char mine[4096];
        static pthread_key_t keys[PTHREAD_KEYS_MAX];
    """
    main = """
        int count = 0;
        while (!pthread_key_create(&keys[count], NULL)) count++;
        memset(mine, 42, sizeof mine);
        for (int i = 0; i < count; i++)
          if (pthread_setspecific(keys[i], mine)) return 1;
        try();
        for (int i = 0; i < count; i++)
          if (pthread_getspecific(keys[i]) != mine) return 2;
        for (size_t i = 0; i < sizeof mine; i++)
          if (mine[i] != 42) return 3;
        pthread_key_delete(keys[count - 1]);
        try();
        try();
    """
    refused, *later = lines(tmp_path, toy_path, "#include <limits.h>\n" + code, main)
    assert refused == (
        "4 no thread-specific storage for a run: pthread_key_create() has no key left in this "
        "process - delete keys that nobody uses"
    )
    assert later == ["0 right", "0 right"]


SETSPECIFIC = """
    #include <dlfcn.h>
    static pthread_t refused_in;
    static bool refusing, others;
    int pthread_setspecific(pthread_key_t key, const void *value) {
      if (refusing && pthread_equal(pthread_self(), refused_in) != others) return ENOMEM;
      int (*real)(pthread_key_t, const void *) = dlsym(RTLD_NEXT, "pthread_setspecific");
      return real(key, value);
    }
"""


@pytest.mark.parametrize("others", [0, 1], ids=["caller", "worker"])
def test_a_thread_whose_state_has_no_room(toy_path, tmp_path, others):
    """The message says so, also where a worker and not the caller is refused."""
    main = f"""
        refused_in = pthread_self();
        others = {others};
        api->set_threads(2);
        refusing = true;
        for (int i = 0; i < 200; i++) try();
        refusing = false;
        try();
    """
    code = "#define _GNU_SOURCE\n" + SETSPECIFIC
    *refused, last = lines(tmp_path, toy_path, code, main)
    why = "no memory for the state of a thread"
    if others:  # where the worker comes late, the caller does its task
        why = f"kernel scale of step 3 failed with code -1: {why}"
        assert set(refused) <= {f"4 {why}", "0 right"} and f"4 {why}" in refused
    else:
        assert set(refused) == {f"4 {why}"}
    assert last == "0 right"


@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_for_the_workspace_of_a_kernel(toy_path, tmp_path, threads):
    code = """
        static bool refusing;
        static const size_t workspace = 8192; /* of the toy's kernel `scale` */
        int posix_memalign(void **pointer, size_t alignment, size_t size) {
          if (refusing && size == workspace) return ENOMEM;
          *pointer = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
          return *pointer ? 0 : ENOMEM;
        }
    """
    main = f"""
        api->set_threads({threads});
        refusing = true;
        try();
        refusing = false;
        try();
    """
    refused, later = lines(tmp_path, toy_path, code, main)
    words = "no memory for 8192 bytes of workspace"
    assert refused == f"4 kernel scale of step 3 failed with code -1: {words}"
    assert later == "0 right"


def test_no_memory_for_the_handlers_of_fork(toy_path, tmp_path):
    """Asked for again at the next run; the child of a fork then computes, as ever."""
    code = """
        static int refusals;
        int __register_atfork(void (*a)(void), void (*b)(void), void (*c)(void), void *dso) {
          if (refusals-- > 0) return ENOMEM;
          int (*real)(void (*)(void), void (*)(void), void (*)(void), void *) =
              dlsym(RTLD_NEXT, "__register_atfork");
          return real(a, b, c, dso);
        }
    """
    main = """
        api->set_threads(2);
        refusals = 3; /* the first call asks three times */
        try();
        try();
        try();
        fflush(stdout);
        pid_t child = fork();
        if (!child) { try(); fflush(stdout); _exit(0); }
        waitpid(child, NULL, 0);
    """
    code = "#define _GNU_SOURCE\n#include <dlfcn.h>\n" + code
    found = lines(tmp_path, toy_path, code, main)
    assert found == ["4 no memory for the handlers of fork()", *["0 right"] * 3]
