"""Compiled encoders in C programs: threads, fork, and two of them linked into one program."""

import numpy as np
import pytest

import intformer
from intformer.frontend import import_model
from intformer_testing import random_hf
from intformer_testing.c_program import PRINT, batch_c, run_c

LENGTHS = (5, 1, 17, 2, 30, 11)


def compiled(folder, name, seed, **shape):
    random_hf.save(folder / name, "bert", "sequence-classification", seed=seed, **shape)
    model = import_model(
        folder / name, calibrate=random_hf.sequences(seed=seed + 10), method="minmax"
    )
    return intformer.compile(model, folder / f"lib{name}.so", target="x86-64")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Two encoders of different size and weights."""
    folder = tmp_path_factory.mktemp("real")
    return (
        compiled(folder, "small", 1, layers=1, hidden=32, ffn=64),
        compiled(folder, "large", 2, labels=7, activation="relu"),
    )


@pytest.fixture(scope="module")
def batch():
    ids = random_hf.sequences(LENGTHS, seed=5)
    return np.concatenate(ids), np.cumsum([0, *LENGTHS]).astype(np.int32)


def numbers(text):
    return np.array(text.split(), np.int64)


def program(batch, api, body):
    """C source whose run() computes `batch` with `api` into `out`, printed by show()."""
    return f"""
        #include <pthread.h>
        #include <sys/wait.h>
        #include <unistd.h>
        {batch_c(*batch)}
        extern const intformer_api *{api}(void);
        static int32_t want[1000];
        static size_t size;
        static int run(int32_t *out) {{
          memset(out, 0, size * sizeof *out);
          return {api}()->run(&input, out, size, NULL, 0);
        }}
        static int same(void) {{
          int32_t out[1000];
          return run(out) ? 1 : memcmp(out, want, size * sizeof *out) ? 2 : 0;
        }}
        static void *work(void *unused) {{
          for (int i = 0; i < 100; i++) if (same()) return "wrong";
          return unused;
        }}
        int main(void) {{
          {api}()->set_threads(3);
          size = {api}()->output_size(&input);
          if (size > 1000 || run(want)) return 1;
          for (size_t i = 0; i < size; i++) printf("%d ", want[i]);
          fflush(stdout);
          {body}
        }}
    """


def test_two_threads_on_one_model(libraries, batch, tmp_path):
    body = """
          pthread_t threads[2];
          void *fault[2];
          for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, work, NULL);
          for (int i = 0; i < 2; i++) pthread_join(threads[i], &fault[i]);
          return fault[0] || fault[1] ? 2 : 0;
    """
    for lib in libraries:
        source = program(batch, f"intformer_get_{lib.metadata['name']}", body)
        got = numbers(run_c(tmp_path, source, lib.path))
        np.testing.assert_array_equal(got, lib.run(*batch).ravel())


def test_after_fork(libraries, batch, tmp_path):
    """Fork beside a running thread: parent, child and grandchild give the same numbers."""
    body = """
          pthread_t thread;
          void *fault;
          pthread_create(&thread, NULL, work, NULL);
          for (int round = 0; round < 5; round++) {
            int status;
            pid_t child = fork();
            if (!child) {
              alarm(30);
              if (same()) _exit(3);
              pid_t grandchild = fork();
              if (!grandchild) _exit(same());
              waitpid(grandchild, &status, 0);
              _exit(status ? 4 : same());
            }
            if (same()) return 5;
            waitpid(child, &status, 0);
            if (status) return 6;
          }
          pthread_join(thread, &fault);
          return fault ? 7 : same();
    """
    lib = libraries[1]
    got = numbers(run_c(tmp_path, program(batch, "intformer_get_large", body), lib.path))
    np.testing.assert_array_equal(got, lib.run(*batch).ravel())


def test_two_models_in_one_program(libraries, batch, tmp_path):
    source = f"""
        {batch_c(*batch)}
        {PRINT}
        extern const intformer_api *intformer_get_small(void), *intformer_get_large(void);
        int main(void) {{
          print(intformer_get_small()); print(intformer_get_large());
          print(intformer_get_small()); print(intformer_get_large());
          return 0;
        }}
    """
    got = numbers(run_c(tmp_path, source, *(lib.path for lib in libraries)))
    outputs = [lib.run(*batch).ravel() for lib in libraries]
    np.testing.assert_array_equal(got, np.concatenate(outputs * 2))
