"""The compiled library from C and from Python: results, threads, fork, neighbours, bad input."""

import itertools
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intformer import runtime
from intformer.backends.x86.backend import BACKEND
from intformer.errors import LibraryError
from intformer.link import build as library
from intformer.runtime import footer
from intformer_testing import sanitized, toy
from intformer_testing.c_program import PRINT, batch_c, run_c

SUPPORT = Path(toy.__file__).parents[1]


@pytest.fixture(scope="module")
def lib(toy_path):
    return runtime.load(toy_path)


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), np.int64).reshape(-1, toy.CHANNELS)


OPENER = library.SOURCES / "intformer_open.c"


@pytest.fixture(scope="module")
def pick(toy_library):
    """A library that computes rows at requested positions."""
    return runtime.load(toy_library("pick", rows="position"))


# ---- results ----


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lengths", [(1,), (8,), (3, 5, 12, 1), (12,) * 40])
def test_results(lib, lengths, threads):
    lib.set_threads(threads)
    assert lib.threads == threads
    ids, offsets = toy.batch(len(lengths), lengths)
    rng = np.random.default_rng(0)
    types = rng.integers(0, toy.TYPES, ids.size)
    places = rng.integers(0, toy.LENGTH, ids.size)
    np.testing.assert_array_equal(lib.run(ids, offsets), toy.expected(0, ids, offsets))
    np.testing.assert_array_equal(
        lib.run(ids, offsets, types, places), toy.expected(0, ids, offsets, types, places)
    )


def test_first_token_rows(toy_library):
    first = runtime.load(toy_library("first", rows="sequence"))
    ids, offsets = toy.batch(3, (4, 12, 1, 7, 2, 9, 9, 9, 5))
    want = toy.expected(0, ids, offsets)[offsets[:-1]]
    np.testing.assert_array_equal(first.run(ids, offsets), want)


def test_requested_rows(pick):
    ids, offsets = toy.batch(3, (4, 12, 1))
    wanted = np.array([16, 0, 0, 7])
    got = pick.run(ids, offsets, positions=wanted)
    np.testing.assert_array_equal(got, toy.expected(0, ids, offsets)[wanted])


def test_positions_after_padding(toy_library):
    meta = {"position_rule": "padding", "pad_token_id": 1, "max_length": toy.LENGTH - 2}
    padding = runtime.load(toy_library("padding", meta=meta))
    ids, offsets = toy.batch(3, (4, 10))
    places = np.concatenate([np.arange(4), np.arange(10)]) + 2
    want = toy.expected(0, ids, offsets, None, places)
    np.testing.assert_array_equal(padding.run(ids, offsets), want)
    with pytest.raises(LibraryError, match="sequence 0 has 11 tokens - the model takes at most 10"):
        padding.run(*toy.batch(0, (11,)))


def test_observer_sees_every_step(lib):
    ids, offsets = toy.batch(1, (5, 6))
    seen = []
    out = lib.run(ids, offsets, observer=lambda *s: seen.append((*s[:2], s[2].copy())))
    assert [s[:2] for s in seen] == [(0, "e"), (1, "twice"), (2, "positive"), (3, "scaled")]
    arrays = {name: array for _, name, array in seen}
    assert arrays["e"].shape == (11, toy.WIDTH)
    np.testing.assert_array_equal(arrays["twice"], 2 * arrays["e"])
    np.testing.assert_array_equal(lib.logical("scaled", arrays["scaled"]), out)


def test_observer_that_raises(lib):
    def observer(*_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        lib.run(*toy.batch(1, (5,)), observer=observer)


def test_logical_removes_zero_point_and_padding(lib, monkeypatch):
    about = {"channels": 2, "zero_point": 128, "channel_map": [3, 0]}
    monkeypatch.setitem(lib.__dict__, "plan", {"buffers": {"x": about}})
    got = lib.logical("x", np.array([[0, 1, 2, 255]], np.uint8))
    assert got.dtype == np.int8
    assert got.tolist() == [[127, -128]]


def test_replaced_file_is_loaded_anew(toy_library, toy_variant, tmp_path):
    ids, offsets = toy.batch(1, (5, 6))
    path = tmp_path / "libagain.so"
    for seed in range(3):
        library.build(toy.plan(seed), [toy_variant], toy.model(seed), path, target="x86-64")
        got = runtime.load(path).run(ids, offsets)
        np.testing.assert_array_equal(got, toy.expected(seed, ids, offsets))


def test_without_tvm_torch_and_transformers(toy_path):
    code = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tvm", "tvm_ffi", "torch", "transformers"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Refuse())
        sys.path.insert(0, {str(SUPPORT)!r})
        import intformer; from intformer_testing import toy
        ids, offsets = toy.batch(0, (3, 4))
        out = intformer.load({str(toy_path)!r}).run(ids, offsets)
        assert (out == toy.expected(0, ids, offsets)).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=100)


# ---- C programs ----


def test_opened_in_c(toy_path, tmp_path):
    ids, offsets = toy.batch(5, (3, 12))
    source = f"""
        {batch_c(ids, offsets)}
        {PRINT}
        int main(void) {{
          char err[300];
          const intformer_api *api = intformer_open("{toy_path}", err, sizeof err);
          if (!api) {{ puts(err); return 1; }}
          if (api->abi_version != INTFORMER_ABI_VERSION || strcmp(api->name, "toy")) return 2;
          size_t size, count = 0;
          const char *text = api->section("metadata.json", &size);
          if (!text || text[0] != '{{' || text[size - 1] != '}}') return 3;
          if (api->section("none", &size)) return 4;
          while (api->section_name(count)) count++;
          if (!api->section(api->section_name(count - 1), NULL)) return 5;
          if (api->set_threads(-1) != INTFORMER_BAD_INPUT || api->set_threads(3)) return 6;
          if (api->get_threads() != 3) return 7;
          print(api);
          return 0;
        }}
    """
    got = numbers(run_c(tmp_path, source, OPENER))
    np.testing.assert_array_equal(got, toy.expected(0, ids, offsets))


def test_two_models_in_one_program(toy_library, tmp_path):
    ids, offsets = toy.batch(5, (3, 12))
    source = f"""
        {batch_c(ids, offsets)}
        {PRINT}
        extern const intformer_api *intformer_get_one(void), *intformer_get_two(void);
        int main(void) {{
          print(intformer_get_one()); print(intformer_get_two()); print(intformer_get_one());
          return 0;
        }}
    """
    links = [toy_library("one", seed=1), toy_library("two", seed=2)]
    got = numbers(run_c(tmp_path, source, *links))
    want = [toy.expected(seed, ids, offsets) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(got, np.concatenate(want))


def test_eight_threads_on_one_model(toy_path, tmp_path):
    ids, offsets = toy.batch(5, (12,) * 9)
    source = f"""
        #include <pthread.h>
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_toy(void);
        static int32_t want[{ids.size * toy.CHANNELS}];
        static void *work(void *arg) {{
          static const int threads[] = {{1, 2, 3, 4}};
          int32_t out[{ids.size * toy.CHANNELS}];
          const intformer_api *api = intformer_get_toy();
          for (int i = 0; i < 300; i++) {{
            if (i % 50 == 0) api->set_threads(threads[(i / 50 + (arg != NULL)) % 4]);
            memset(out, 0, sizeof out);
            if (api->run(&input, out, {ids.size * toy.CHANNELS}, NULL, 0)) return "failed";
            if (memcmp(out, want, sizeof out)) return "wrong";
          }}
          return NULL;
        }}
        int main(void) {{
          pthread_t threads[8];
          void *fault;
          if (intformer_get_toy()->run(&input, want, {ids.size * toy.CHANNELS}, NULL, 0)) return 1;
          for (long i = 0; i < 8; i++) pthread_create(&threads[i], NULL, work, (void *)(i % 2));
          for (int i = 0; i < 8; i++) {{
            pthread_join(threads[i], &fault);
            if (fault) {{ puts(fault); return 2; }}
          }}
          for (size_t i = 0; i < sizeof want / 4; i++) printf("%d ", want[i]);
          return 0;
        }}
    """
    got = numbers(run_c(tmp_path, source, toy_path))
    np.testing.assert_array_equal(got, toy.expected(0, ids, offsets))


def test_after_fork(toy_path, tmp_path):
    """Fork while another thread computes: both processes go on, with their own workers."""
    ids, offsets = toy.batch(5, (12,) * 9)
    source = f"""
        #include <pthread.h>
        #include <stdatomic.h>
        #include <sys/wait.h>
        #include <unistd.h>
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_toy(void);
        static atomic_int stop;
        static int32_t want[{ids.size * toy.CHANNELS}];
        static int run(void) {{
          int32_t out[{ids.size * toy.CHANNELS}];
          memset(out, 0, sizeof out);
          if (intformer_get_toy()->run(&input, out, {ids.size * toy.CHANNELS}, NULL, 0)) return 1;
          return memcmp(out, want, sizeof out) ? 2 : 0;
        }}
        static void *work(void *unused) {{
          while (!stop) if (run()) exit(9);
          return unused;
        }}
        int main(void) {{
          pthread_t thread;
          intformer_get_toy()->set_threads(3);
          if (intformer_get_toy()->run(&input, want, {ids.size * toy.CHANNELS}, NULL, 0)) return 1;
          pthread_create(&thread, NULL, work, NULL);
          for (int round = 0; round < 30; round++) {{
            pid_t child = fork();
            if (!child) {{
              alarm(20);
              for (int i = 0; i < 20; i++) if (run()) _exit(8);
              pid_t grandchild = fork();
              if (!grandchild) _exit(run());
              int status;
              waitpid(grandchild, &status, 0);
              _exit(status ? 7 : 0);
            }}
            if (run()) return 3;
            int status;
            waitpid(child, &status, 0);
            if (status) {{ printf("child %x", status); return 4; }}
          }}
          stop = 1;
          pthread_join(thread, NULL);
          return run();
        }}
    """
    run_c(tmp_path, source, toy_path)


@pytest.mark.skipif(sanitized.KIND == "thread", reason="it takes the child's threads for its own")
def test_after_a_fork_before_the_first_run(toy_path, tmp_path):
    """Opening starts threads, which check the data: the child starts its own."""
    ids, offsets = toy.batch(5, (12,) * 9)
    source = f"""
        #include <dirent.h>
        #include <sys/wait.h>
        #include <unistd.h>
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_toy(void);
        static int threads(void) {{
          int count = -2; /* . and .. */
          DIR *folder = opendir("/proc/self/task");
          while (readdir(folder)) count++;
          closedir(folder);
          return count;
        }}
        int main(void) {{
          static int32_t out[{ids.size * toy.CHANNELS}];
          static unsigned char data[1 << 18];
          uint32_t crcs[4];
          const intformer_api *api = intformer_get_toy();
          int status, alone = threads();
          api->set_threads(3);
          api->checksums(data, sizeof data, 1 << 16, crcs);
          if (threads() < alone + 2) return 1; /* a sanitizer may have one of its own */
          pid_t child = fork();
          if (!child) {{
            alone = threads();
            alarm(20);
            if (api->run(&input, out, {ids.size * toy.CHANNELS}, NULL, 0)) _exit(2);
            int now = threads();
            api->set_threads(2);
            if (api->run(&input, out, {ids.size * toy.CHANNELS}, NULL, 0)) _exit(3);
            _exit(now >= alone + 2 && threads() == now - 1 ? 0 : 4);
          }}
          waitpid(child, &status, 0);
          return status ? 5 : 0;
        }}
    """
    run_c(tmp_path, source, toy_path)


def test_a_caller_who_changes_the_input_during_a_run(toy_path, tmp_path):
    """What was checked is what is used: the run has its own copy of counts and pointers."""
    ids, offsets = toy.batch(5, (3, 12))
    source = f"""
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_toy(void);
        static int steps;
        static void spoil(void *user, int32_t step, const char *buffer, const void *data,
                          int64_t rows, int64_t width, const char *dtype) {{
          intformer_input *in = user;
          in->num_tokens = in->batch = 1;
          in->input_ids = in->cu_seqlens = NULL;
          in->observer = NULL;
          steps++;
          (void)step, (void)buffer, (void)data, (void)rows, (void)width, (void)dtype;
        }}
        int main(void) {{
          static int32_t out[{ids.size * toy.CHANNELS}];
          intformer_input mine = input;
          mine.observer = spoil, mine.user = &mine;
          if (intformer_get_toy()->run(&mine, out, {ids.size * toy.CHANNELS}, NULL, 0)) return 1;
          if (steps != 4) return 2;
          for (size_t i = 0; i < sizeof out / 4; i++) printf("%d ", out[i]);
          return 0;
        }}
    """
    got = numbers(run_c(tmp_path, source, toy_path))
    np.testing.assert_array_equal(got, toy.expected(0, ids, offsets))


def test_idle_workers_sleep(toy_path, tmp_path):
    ids, offsets = toy.batch(5, (12,) * 9)
    source = f"""
        #include <time.h>
        #include <unistd.h>
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_toy(void);
        int main(void) {{
          int32_t out[{ids.size * toy.CHANNELS}];
          struct timespec before, after;
          intformer_get_toy()->set_threads(4);
          for (int i = 0; i < 50; i++)
            if (intformer_get_toy()->run(&input, out, {ids.size * toy.CHANNELS}, NULL, 0)) return 1;
          usleep(20000);
          clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
          usleep(200000);
          clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
          long us = (after.tv_sec - before.tv_sec) * 1000000 +
                    (after.tv_nsec - before.tv_nsec) / 1000;
          printf("%ld", us);
          return 0;
        }}
    """
    assert int(run_c(tmp_path, source, toy_path)) < 5000


@pytest.mark.parametrize("first", ["tvm", "library"])
def test_beside_an_imported_tvm(toy_path, first):
    """Both have kernels of the same names and the same hook variables."""
    code = f"""
        import ctypes, os, sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import numpy as np; from intformer_testing import toy
        def library():
            import intformer
            sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
            lib = intformer.load({str(toy_path)!r})
            lib.set_threads(3)
            ids, offsets = toy.batch(1, (12,) * 9)
            for _ in range(20):
                assert (lib.run(ids, offsets) == toy.expected(0, ids, offsets)).all()
        def tvm():
            import tvm
            run = toy.compiled()
            x = np.arange(-640, 640, dtype=np.int32).reshape(10, 8, 16)
            for _ in range(20):
                out = tvm.runtime.tensor(np.zeros_like(x))
                run["relu__x86_64"](tvm.runtime.tensor(x), out)
                assert (out.numpy() == np.maximum(x, 0)).all()
                factor = tvm.runtime.tensor(np.array([7], np.int32))
                run["scale__x86_64"](tvm.runtime.tensor(x), factor, out)
                assert (out.numpy() == 7 * x).all()
        for step in {["tvm", "library"] if first == "tvm" else ["library", "tvm"]} * 2:
            {{"tvm": tvm, "library": library}}[step]()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=200)


# ---- limits of the machine ----


def test_threads_follow_affinity(toy_path):
    code = f"""
        import os
        os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
        import intformer
        lib = intformer.load({str(toy_path)!r})
        assert lib.threads == 1
        lib.set_threads(2); assert lib.threads == 2
        lib.set_threads(0); assert lib.threads == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=100)


def test_threads_of_the_environment(toy_path):
    code = f"import intformer; print(intformer.load({str(toy_path)!r}).threads)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "INTFORMER_THREADS": "7"},
    )
    assert done.stdout.strip() == "7", done.stderr


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "350000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/gone\n", {"cpu.max": "400000 100000"}, 4),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "-1"}, None),
        (
            "5:memory:/y\n4:cpuacct,cpu:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "500000", "cpu/x/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000"}, None),
        ("2:cpu:/\n0::/u\n", {"unified/u/cpu.max": "600000 100000"}, 6),
        ("", {}, None),
        ("nonsense", {"cpu.max": "100 100"}, None),
    ],
)
def test_cgroup_quota(tmp_path, cgroup, files, quota):
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(cgroup)
    source = f"""
        #define IF_PROC_CGROUP "{tmp_path}/cgroup"
        #define IF_CGROUP_MOUNT "{tmp_path}/fs"
        #include "{library.SOURCES}/cpu.c"
        const plan_table intformer_plan;
        int main(void) {{ printf("%d %d", cgroup_quota(), if_usable_cpus()); return 0; }}
    """
    (tmp_path / "main.c").write_text(textwrap.dedent(source))
    command = ["cc", tmp_path / "main.c", f"-I{library.SOURCES}", "-o", tmp_path / "main"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    found, usable = map(int, done.stdout.split())
    cpus = len(os.sched_getaffinity(0))
    assert found == (2**31 - 1 if quota is None else quota)
    assert usable == min(found, cpus)


def test_a_cpu_that_cannot_run_it(toy_library, toy_variant, tmp_path):
    """avx512er exists on Xeon Phi alone."""
    path = toy_library("phi", variants=[replace(toy_variant, features=["sse3", "avx512er"])])
    phi = runtime.load(path)
    assert phi.variants == {"x86-64": ["avx512er", "sse3"]}
    assert phi.variant is None
    with pytest.raises(LibraryError, match=r"lacks avx512er - compile for another target"):
        phi.run(*toy.batch(0, (3,)))
    ids, offsets = toy.batch(0, (3,))
    source = f"""
        {batch_c(ids, offsets)}
        extern const intformer_api *intformer_get_phi(void);
        int main(void) {{
          char err[300];
          int32_t out[100];
          printf("%d ", intformer_get_phi()->run(&input, out, 100, err, sizeof err));
          puts(err);
          return 0;
        }}
    """
    assert run_c(tmp_path, source, path).startswith("3 this CPU (or the system) lacks avx512er")


@pytest.mark.skipif("amx-tile" not in BACKEND.host_features(), reason="this CPU has no AMX")
def test_tiles_are_asked_for(toy_library, toy_variant):
    """A library that needs AMX runs; one whose process may not have it says so, in one line."""
    features = ["amx-tile", "amx-int8"]
    path = toy_library("tiles", variants=[replace(toy_variant, features=features)])
    code = f"""
        import ctypes, sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import intformer; from intformer_testing import toy
        from intformer_testing.deny_tiles import deny_tiles
        if len(sys.argv) > 1:
            deny_tiles()
        ids, offsets = toy.batch(0, (3,))
        library = intformer.load({str(path)!r})
        for _ in range(2):
            try:
                assert (library.run(ids, offsets) == toy.expected(0, ids, offsets)).all()
            except intformer.IntformerError as error:
                print(error)
        given = ctypes.c_uint64()
        assert not ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(given))
        print(given.value >> 18 & 1)
    """

    def printed(*arguments):
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert printed() == ["1"]
    first, second, given = printed("deny")
    assert first == second and given == "0"
    assert "the system refuses AMX tiles to this process (arch_prctl: Operation not perm" in first


@pytest.mark.parametrize("tokens", [1, 8, 9, 40])
def test_a_kernel_may_read_24_rows_past_the_end(tmp_path, tokens):
    """Tiles are read whole: the arena goes on behind the last row of every buffer."""
    source = f"""
        #include "{library.SOURCES}/input.c"
        #define plan host_plan
        #include "{library.SOURCES}/host.c"
        const plan_feature *if_missing_feature(const plan_variant *v) {{ return (void)v, NULL; }}
        bool if_needs_tiles(const plan_variant *v) {{ return (void)v, false; }}
        int if_request_tiles(void) {{ return 0; }}
        void if_pool_reset_after_fork(void) {{}}
        int if_prepare_thread(message err) {{ return (void)err, 0; }}
        int if_kernel_fault(const char **why) {{ return *why = "", 1; }}
        void if_copy_output(const intformer_input *in, const int32_t *from, int32_t *out) {{
          (void)in, (void)from, (void)out;
        }}
        int if_no_memory(message err, const intformer_input *in, const char *where) {{
          return (void)err, (void)in, (void)where, 1;
        }}
        const unsigned char intformer_blob[64];
        const intformer_api intformer_table;
        static const plan_tensor tensors[] = {{
            {{"input_ids", "int32", INPUT, TOKEN, 0, 32, 0, 0, 1, NULL, 0}},
            {{"types", "int32", INPUT, TOKEN, 0, 32, 0, 0, 1, NULL, 0}},
            {{"position_ids", "int32", INPUT, TOKEN, 0, 32, 0, 0, 1, NULL, 0}},
            {{"cu_seqlens", "int32", INPUT, SEQUENCE, 0, 32, 0, 0, 1, NULL, 0}},
            {{"positions", "int32", INPUT, POSITION, 0, 32, 0, 0, 1, NULL, 0}},
            {{"wide", "int32", BUFFER, TOKEN, 0, 32, 0, 64, 3, NULL, 0}},
            {{"pooled", "int32", BUFFER, SEQUENCE, 0, 32, 1, 64, 3, NULL, 0}},
            {{"narrow", "uint8", BUFFER, TOKEN, 1, 8, 2, 16, 3, NULL, 0}},
        }};
        static const plan_slot slots[] = {{
            {{{{8 * 64 * 4}}}}, {{{{0, 8 * 64 * 4}}}}, {{{{8 * 16}}}}}};
        const plan_table intformer_plan = {{.tensors = tensors, .num_tensors = 8, .slots = slots,
            .num_slots = 3}};
        int main(void) {{
          context *c = new_context();
          intformer_input in = {{.num_tokens = {tokens}, .batch = 1}};
          if (!c || !lay_out(c, &in)) return 1;
          for (int i = INPUTS; i < 8; i++) {{
            const plan_tensor *t = &tensors[i];
            int64_t rows = c->shapes[i][0] * BLOCK + 24;
            char *end = (char *)c->tensors[i].data + rows * t->width * t->bits / 8;
            printf("%d ", end <= c->arena + c->arena_size);
          }}
          free_context(c);
          return 0;
        }}
    """
    assert run_c(tmp_path, source).split() == ["1"] * 3


def test_cpu_features_agree_with_linux(tmp_path):
    """Each feature that /proc/cpuinfo knows by the same name is found, and no other."""
    from intformer.backends.x86.features import CPU_FEATURES

    flags = next(
        line.split(":")[1].split()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("flags")
    )
    same = {"sse3": "pni", "pclmul": "pclmulqdq", "bmi": "bmi1", "lzcnt": "abm"}
    linux = {f: same.get(f, f).replace(".", "_") for f in CPU_FEATURES}
    linux |= {
        f: f"avx512_{f[6:]}"
        for f in ("avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq")
    }
    linux |= {"avxvnni": "avx_vnni", "amx-tile": "amx_tile", "amx-int8": "amx_int8"}
    rows = "".join(
        f'{{"{name}", {", ".join(map(str, row))}}},' for name, row in CPU_FEATURES.items()
    )
    source = f"""
        #include "{library.SOURCES}/cpu.c"
        #include <stdio.h>
        static const plan_feature rows[] = {{{rows}}};
        const plan_table intformer_plan;
        int main(void) {{
          for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            if (has(&rows[i])) puts(rows[i].name);
          return 0;
        }}
    """
    (tmp_path / "main.c").write_text(source)
    command = ["cc", tmp_path / "main.c", f"-I{library.SOURCES}", "-o", tmp_path / "main"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {f for f, name in linux.items() if name in flags}


# ---- bad input ----

IDS, OFFSETS = toy.batch(0, (3, 4))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input_ids": [0, 1, 2, 3, 4, 50, 6]}, r"input_ids\[5\] is 50 - allowed are 0 to 49"),
        ({"input_ids": [0, -1, 2, 3, 4, 5, 6]}, r"input_ids\[1\] is -1"),
        ({"input_ids": [2**31, 1, 2, 3, 4, 5, 6]}, "input_ids has numbers beyond 32 bits"),
        ({"input_ids": [0.5] * 7}, r"input_ids is float64 \[7\]"),
        ({"input_ids": [[1] * 7]}, r"input_ids is int64 \[1, 7\]"),
        ({"input_ids": []}, "num_tokens is 0"),
        ({"token_type_ids": [0, 0, 0, 2, 0, 0, 0]}, r"token_type_ids\[3\] is 2 - .* 0 to 1"),
        ({"token_type_ids": [0, 0, 0, -1, 0, 0, 0]}, r"token_type_ids\[3\] is -1"),
        ({"token_type_ids": [0] * 6}, "6 token_type_ids for 7 input_ids"),
        ({"position_ids": [0, 0, 12, 0, 0, 0, 0]}, r"position_ids\[2\] is 12 - .* 0 to 11"),
        ({"position_ids": [0, 0, -5, 0, 0, 0, 0]}, r"position_ids\[2\] is -5"),
        ({"position_ids": [0] * 8}, "8 position_ids for 7 input_ids"),
        ({"cu_seqlens": [0, 3, 3, 7]}, "sequence 1 is empty - drop it"),
        ({"cu_seqlens": [0, 5, 3, 7]}, r"cu_seqlens\[2\] is 3 after 5 - offsets must increase"),
        ({"cu_seqlens": [0, 5, -(2**31), 7]}, r"cu_seqlens\[2\] is -2147483648 after 5"),
        ({"cu_seqlens": [0, 8, 7]}, r"cu_seqlens\[2\] is 7 after 8"),
        ({"cu_seqlens": [1, 7]}, "cu_seqlens runs from 1 to 7"),
        ({"cu_seqlens": [0, 6]}, "cu_seqlens runs from 0 to 6 - it must run from 0 to .* 7"),
        ({"cu_seqlens": [0]}, "batch 0"),
        ({"cu_seqlens": []}, "batch -1"),
        ({"input_ids": [1] * 13, "cu_seqlens": [0, 13]}, "sequence 0 has 13 tokens .* at most 12"),
        ({"positions": [0]}, "num_positions is 1 - this model computes all rows"),
    ],
)
def test_bad_input(lib, change, match):
    with pytest.raises(LibraryError, match=match) as caught:
        lib.run(**{"input_ids": IDS, "cu_seqlens": OFFSETS, **change})
    assert "\n" not in str(caught.value)
    good = lib.run(IDS, OFFSETS)
    np.testing.assert_array_equal(good, toy.expected(0, IDS, OFFSETS))


@pytest.mark.parametrize(
    ("positions", "match"),
    [
        (None, "num_positions is 0 - this model needs"),
        ([], "num_positions is 0 - this model needs"),
        ([7], r"positions\[0\] is 7 - allowed are 0 to 6"),
        ([0, -1], r"positions\[1\] is -1"),
    ],
)
def test_bad_positions(pick, positions, match):
    with pytest.raises(LibraryError, match=match):
        pick.run(IDS, OFFSETS, positions=positions)


def test_types_for_a_model_without(toy_library, toy_variant, tmp_path):
    plan = toy.plan()
    # the toy's kernel reads types: give it positions in their place
    step = plan.steps[0]
    args = tuple("position_ids" if a == "token_type_ids" else a for a in step.args)
    plan.steps[0] = type(step)(step.kernel, args, step.outputs)
    plan.inputs = ("input_ids", "position_ids")
    path = tmp_path / "libtypes.so"
    library.build(plan, [toy_variant], toy.model(type_vocab_size=2), path, target="x86-64")
    lib = runtime.load(path)
    places = np.zeros(7, np.int32)
    ok = lib.run(IDS, OFFSETS, np.zeros(7, np.int32), places)
    np.testing.assert_array_equal(ok, toy.expected(0, IDS, OFFSETS, places, places))
    with pytest.raises(LibraryError, match=r"token_type_ids\[6\] is 1 - allowed are 0 to 0"):
        lib.run(IDS, OFFSETS, [0, 0, 0, 0, 0, 0, 1], places)


def test_bad_calls_in_c(toy_path, tmp_path):
    source = f"""
        {batch_c(IDS, OFFSETS)}
        extern const intformer_api *intformer_get_toy(void);
        static void try(const intformer_input *in, int32_t *out, size_t size) {{
          char err[300];
          printf("%d %s\\n", intformer_get_toy()->run(in, out, size, err, sizeof err), err);
        }}
        int main(void) {{
          int32_t out[{7 * toy.CHANNELS}];
          intformer_input bad = input;
          char tiny[8];
          try(NULL, out, 70);
          bad.input_ids = NULL; try(&bad, out, 70);
          bad = input; bad.cu_seqlens = NULL; try(&bad, out, 70);
          bad = input; bad.num_tokens = -5; try(&bad, out, 70);
          bad = input; bad.batch = 0; try(&bad, out, 70);
          bad = input; bad.batch = 2147483647; try(&bad, out, 70);
          bad = input; bad.num_positions = -1; try(&bad, out, 70);
          try(&input, out, 69);
          try(&input, NULL, 70);
          printf("%zu %zu\\n", intformer_get_toy()->output_size(NULL),
                 intformer_get_toy()->output_size(&input));
          bad = input; bad.num_tokens = -5;
          printf("%zu ", intformer_get_toy()->output_size(&bad));
          bad = input; bad.batch = 2147483647;
          printf("%zu\\n", intformer_get_toy()->output_size(&bad));
          printf("%d", intformer_get_toy()->run(NULL, out, 70, tiny, sizeof tiny));
          printf(" %s\\n", tiny);
          return 0;
        }}
    """
    assert run_c(tmp_path, source, toy_path).splitlines() == [
        "1 input is NULL",
        "1 input_ids is NULL",
        "1 cu_seqlens is NULL",
        "1 num_tokens is -5 and batch 2 - a run needs at least one token and one sequence",
        "1 num_tokens is 7 and batch 0 - a run needs at least one token and one sequence",
        "1 num_tokens is 7, batch 2147483647, num_positions 0 - one run takes at most 134217720 "
        "of each; split the batch",
        "1 num_positions is -1 - this model computes all rows; pass 0",
        "2 out has room for 69 numbers - output_size() says that 70 are needed",
        "2 out has room for 0 numbers - output_size() says that 70 are needed",
        "0 70",
        "0 0",
        "1 input i",
    ]


def test_opener_refuses(toy_path, tmp_path):
    data = toy_path.read_bytes()
    flipped = bytearray(data)
    flipped[9000] ^= 1
    damaged = data[:-64] + b"more" + data[-64:]
    files = {"cut": data[:5000], "short": b"x", "flipped": bytes(flipped), "grown": damaged}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = f"""
        int main(void) {{
          const char *names[] = {{"cut", "short", "flipped", "grown", "none"}};
          char path[4096], err[5000];
          for (int i = 0; i < 5; i++) {{
            snprintf(path, sizeof path, "{tmp_path}/%s", names[i]);
            if (intformer_open(path, err, sizeof err) || !strstr(err, path)) return 1;
            *strstr(err, " - ") = 0;
            puts(err);
          }}
          return intformer_open("{tmp_path}/none", NULL, 0) != NULL;
        }}
    """
    assert run_c(tmp_path, source, OPENER).splitlines() == [
        "not an intformer library, or cut short (no footer)",
        "not an intformer library, or cut short (no footer)",
        "library is altered: wrong checksum",
        "library is damaged: its length is not the one in its footer",
        "cannot open library",
    ]


@pytest.mark.parametrize("size", [1 << 16, 1 << 10, 7])
def test_checksums(lib, size):
    """Those of the library are zlib's, for every length and alignment, whatever computes them."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 3 * size + 300, np.uint8)
    lengths = [*range(200), 2 * size - 1, 2 * size, 2 * size + 65]
    for length, start in itertools.product(lengths, (0, 1, 7, 13)):
        part = np.ascontiguousarray(data[start : start + length])
        got = np.empty(-(-length // size), np.uint32)
        lib._api.checksums(part.ctypes.data, length, size, got.ctypes.data)
        assert got.tolist() == [zlib.crc32(part[i : i + size]) for i in range(0, length, size)]


def test_checksums_without_instructions_for_them(tmp_path):
    """The tables of crc.c alone, as on a CPU without them, and both beside each other."""
    source = """
        #include "plan.h"
        void if_parallel(parallel_fn fn, void *data) {
          parallel_env env = {NULL, 3};
          for (int task = 0; task < 3; task++) fn(task, &env, data);
        }
        int main(void) {
          static unsigned char data[700];
          uint32_t crcs[10];
          for (int i = 0; i < 700; i++) data[i] = (unsigned char)(i * i * 31 >> 3);
          for (int start = 0; start < 9; start++)
            for (int size = 0; size < 200; size++) {
              if_checksums(data + start, size, 100, crcs);
              for (int i = 0; i * 100 < size; i++) printf("%u ", crcs[i]);
            }
          return 0;
        }
    """
    data = bytes((i * i * 31 >> 3) & 255 for i in range(700))
    want = [
        zlib.crc32(data[start : start + size][at : at + 100])
        for start in range(9)
        for size in range(200)
        for at in range(0, size, 100)
    ]
    for by_tables in (False, True):
        folder = tmp_path / str(by_tables)
        folder.mkdir()
        (folder / "crc.c").write_text((library.SOURCES / "crc.c").read_text())
        if by_tables:
            text = (folder / "crc.c").read_text()
            assert text.count("has_instructions()};") == 1
            text = text.replace("has_instructions()};", "has_instructions() && false};")
            (folder / "crc.c").write_text(text)
        got = run_c(folder, source, folder / "crc.c")
        assert [int(n) for n in got.split()] == want


@pytest.mark.parametrize("more", [-1, 0, 1, 7, footer.PART, 4 * footer.PART - 1])
@pytest.mark.parametrize("parts", [4, 8])
@pytest.mark.parametrize("listed", [False, True])
def test_checksum_around_whole_parts(toy_path, tmp_path, parts, more, listed):
    """Python's, C's and the definition agree, whatever is left behind the last whole part.

    listed  what follows the library is data, which its own code checks
    """
    path = tmp_path / "libpadded.so"
    data = toy_path.read_bytes()[: -footer.SIZE]
    whole = -(-len(data) // footer.PART) + parts
    added = np.random.default_rng(0).bytes(whole * footer.PART + more - len(data))
    path.write_bytes(data + added)
    part = (len(data), len(added)) if listed else (0, 0)
    footer.append(path, (2, 2), footer.check(toy_path).build_id, part)
    found, left = footer.check_but_data(path)
    assert found == footer.check(path)
    assert found.elf == len(data) + len(added)
    assert left.crcs.size == (parts + more // footer.PART if listed else 0)
    before = path.read_bytes()[: -footer.SIZE]
    crcs = [zlib.crc32(before[i : i + footer.PART]) for i in range(0, len(before), footer.PART)]
    assert found.checksum == zlib.crc32(struct.pack(f"<{len(crcs)}I", *crcs))
    assert opened(tmp_path, path) == ""
    runtime.load(path)
    for at in {len(data) + len(added) - 1, (whole - 2) * footer.PART, len(before) - 3}:
        altered = bytearray(path.read_bytes())
        altered[at] ^= 1
        other = tmp_path / f"{at}.so"  # a file that is loaded must not change
        other.write_bytes(altered)
        assert opened(tmp_path, other).startswith("library is altered: wrong checksum")
        with pytest.raises(LibraryError, match="library is altered"):
            footer.check(other)
        with pytest.raises(LibraryError, match="library is altered"):
            runtime.load(other)


def opened(tmp_path, path) -> str:
    """Open a library from C; return the error, "" where there is none."""
    source = f"""
        int main(void) {{
          char err[300];
          if (!intformer_open("{path}", err, sizeof err)) puts(err);
          return 0;
        }}
    """
    return run_c(tmp_path, source, OPENER)


def test_opener_loads_a_replaced_file_anew(toy_library, tmp_path):
    ids, offsets = toy.batch(5, (3, 2))
    paths = [toy_library("same_name", seed=seed) for seed in (1, 2)]
    source = f"""
        {batch_c(ids, offsets)}
        {PRINT}
        int main(void) {{
          char err[300];
          const char *files[] = {{"{paths[0]}", "{paths[1]}"}};
          for (int i = 0; i < 2; i++) {{
            if (rename(files[i], "model.so")) return 1;
            const intformer_api *api = intformer_open("model.so", err, sizeof err);
            if (!api) {{ puts(err); return 2; }}
            print(api);
          }}
          return 0;
        }}
    """
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        got = numbers(run_c(tmp_path, source, OPENER))
    finally:
        os.chdir(here)
    want = [toy.expected(seed, ids, offsets) for seed in (1, 2)]
    np.testing.assert_array_equal(got, np.concatenate(want))


def test_a_kernel_that_fails_is_named(toy_variant, tmp_path):
    plan = toy.plan()
    step = plan.steps[2]
    plan.steps[2] = type(step)("broken", step.args, step.outputs)
    path = library.build(
        plan, [toy_variant], toy.model(), tmp_path / "libbroken.so", target="x86-64"
    )
    with pytest.raises(LibraryError, match=r"kernel broken of step 2 failed .*: ValueError: .*32"):
        runtime.load(path).run(IDS, OFFSETS)
