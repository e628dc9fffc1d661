"""Small machines: little stack, no threads, nothing that can be written. Libraries work there."""

import json
import resource
import subprocess

import pytest

from intformer import pipeline
from intformer.link import build as library
from intformer_testing import emulated, golden_models, toy
from intformer_testing.c_program import PRINT, batch_c, run_c
from intformer_testing.emulated import HERE

OPENER = library.SOURCES / "intformer_open.c"
STACK = 32 << 10  # bytes; docs/c-api.md promises that a run needs no more
IDS, OFFSETS = toy.batch(3, (12,) * 8)
WANTED = " ".join(map(str, toy.expected(0, IDS, OFFSETS).ravel()))


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """A model with its check, for any x86-64 CPU."""
    folder = tmp_path_factory.mktemp("limits")
    model = golden_models.cases()["native/bert/one type"](folder)
    pipeline.compile(model, folder / "model.so", target="x86-64", check=True)
    return folder / "model.check"


def exact(command, **options):
    """Run a check; tell that every number was equal."""
    done = subprocess.run(
        [*map(str, command), "--json", "--runs", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = json.loads(done.stdout)
    assert found["outputs"] > 1000
    return found["ok"]


def little_stack():
    resource.setrlimit(resource.RLIMIT_STACK, (2 * STACK, 2 * STACK))  # and of each worker


def test_little_stack(check):
    assert exact([check], preexec_fn=little_stack, env={})


BATCH = f"""
    #include <pthread.h>
    {batch_c(IDS, OFFSETS)}
    {PRINT}
"""
IN_A_THREAD = f"""
    {BATCH}
    static void *work(void *path) {{
      char err[300];
      const intformer_api *api = intformer_open(path, err, sizeof err);
      if (!api) {{ puts(err); exit(1); }}
      api->set_threads(2);
      print(api);
      return NULL;
    }}
"""


def test_a_thread_with_little_stack(toy_path, tmp_path):
    source = f"""
        {IN_A_THREAD}
        int main(void) {{
          pthread_t thread;
          pthread_attr_t small;
          pthread_attr_init(&small);
          if (pthread_attr_setstacksize(&small, {STACK})) return 2;
          if (pthread_create(&thread, &small, work, "{toy_path}")) return 3;
          return pthread_join(thread, NULL);
        }}
    """
    assert run_c(tmp_path, source, OPENER).strip() == WANTED


@pytest.mark.parametrize("granted", [0, 2])
def test_no_more_threads(toy_path, tmp_path, granted):
    """What threads there are do the work; it is tried again when more are wanted."""
    source = f"""
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        {BATCH}
        static int left = {granted}, refused;
        int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*fn)(void *),
                           void *of) {{
          int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
              dlsym(RTLD_NEXT, "pthread_create");
          if (left-- > 0) return real(thread, how, fn, of);
          refused++;
          return EAGAIN;
        }}
        int main(void) {{
          const intformer_api *api = intformer_open("{toy_path}", NULL, 0);
          api->set_threads(4);
          print(api);
          int once = refused;
          print(api);
          if (once != 1 || refused != 1) return 4; /* not asked for at every run */
          left = 8;
          api->set_threads(3);
          print(api);
          return refused != 1 || left != {8 if granted else 6}; /* the two there are will do */
        }}
    """
    got = run_c(tmp_path, source, OPENER, "-rdynamic")
    assert got.strip() == " ".join([WANTED] * 3)


def test_a_file_system_that_cannot_be_written(check):
    """No cache, lock or temporary file: the root is remounted for this process alone."""
    inside = "mount -o remount,bind,ro / && ! touch {} 2>/dev/null"
    ready = inside.format(check.parent / "file")
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", ready], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mounting is not permitted: {tried.stderr.strip()}")
    command = ["unshare", "-rm", "sh", "-c", f'{ready} && exec "$@"', "sh", check]
    assert exact(command)


def test_no_file_may_grow(check):
    def none():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    assert exact([check], preexec_fn=none)


@pytest.mark.parametrize("target", [emulated.needs("aarch64")])
def test_little_stack_on_another_machine(target, tmp_path):
    model = golden_models.cases()["native/bert/one type"](tmp_path)
    pipeline.compile(model, tmp_path / "model.so", target=target, check=True)
    emulator, root = HERE[183]
    command = [emulator, "-s", str(4 * STACK), "-cpu", "cortex-a53", "-L", root]
    assert exact([*command, tmp_path / "model.check"])
