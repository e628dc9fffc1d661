"""A library for a GPU, run through a driver that emulates one: results, memory, threads, faults."""

import ctypes
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intformer import runtime
from intformer.errors import LibraryError
from intformer.link import build as library
from intformer_testing import fake_cuda, toy, toy_cuda
from intformer_testing.c_program import PRINT, batch_c, run_c

SUPPORT = Path(toy.__file__).parents[1]
BEGIN = f"""
    import os, sys
    sys.path.insert(0, {str(SUPPORT)!r})
    import numpy as np
    import intformer; from intformer_testing import toy
    from intformer.errors import LibraryError

    def check(lib, lengths, seed=0, **inputs):
        ids, offsets = toy.batch(len(lengths), lengths)
        np.testing.assert_array_equal(
            lib.run(ids, offsets, **inputs), toy.expected(seed, ids, offsets)
        )

    def message(call, *args, code=None):
        try:
            call(*args)
        except LibraryError as error:
            assert "\\n" not in str(error)
            assert code in (None, error.code)
            return error.what
        raise AssertionError("no error")
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return fake_cuda.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return toy_cuda.emulated(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a function that builds a library: (name, seed, rows, plan) -> path."""

    def make(name="toy", seed=0, rows="token", plan=None):
        plan = plan or toy_cuda.plan(seed, rows)
        path = tmp_path_factory.mktemp(name) / f"lib{name}.so"
        variants = [toy_cuda.variant(plan)]
        return library.build(plan, variants, toy.model(seed), path, target="t4", header=True)

    return make


@pytest.fixture(scope="module")
def path(built):
    return built()


@pytest.fixture
def gpu(driver, kernels, tmp_path):
    """Return a function that runs Python with the fake driver: (code, settings) -> log lines."""

    def go(code, **settings):
        log = tmp_path / "log"
        log.write_text("")
        env = fake_cuda.environment(driver, kernels, log=log, **settings)
        command = [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return log.read_text().splitlines()

    return go


def test_results(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        assert (lib.variant, lib.device, lib.threads) == ("t4 cubin", "Fake 70", 1)
        for lengths in [(1,), (8,), (3, 5, 12, 1), (12,) * 40, (1,)]:
            check(lib, lengths)
    """)
    assert log.count("load cubin") == 1
    assert "load ptx" not in log


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="an NVIDIA driver is installed")
def test_without_a_driver(path):
    """Loading says so in one line; reading needs none."""
    with pytest.raises(LibraryError, match=r"no NVIDIA driver here: libcuda.so.1.*run it on"):
        runtime.load(path)
    lib = runtime.load(path, run=False)
    assert lib.on_device
    assert (lib.variant, lib.device) == (None, None)
    assert lib.metadata["variants"] == [{"name": "t4", "arch": "sm_75", "cpu_features": []}]
    with pytest.raises(LibraryError, match="no NVIDIA driver here") as caught:
        lib.run(*toy.batch(1, (3,)))
    assert "\n" not in str(caught.value)


# ---- results ----


def test_rows_types_positions(path, built, gpu):
    first, pick = built("first", rows="sequence"), built("pick", rows="position")
    gpu(f"""
        ids, offsets = toy.batch(3, (4, 12, 1, 7, 2, 9, 9, 9, 5))
        want = toy.expected(0, ids, offsets)
        first = intformer.load({str(first)!r})
        np.testing.assert_array_equal(first.run(ids, offsets), want[offsets[:-1]])
        wanted = np.array([16, 0, 0, 7] * 50)
        pick = intformer.load({str(pick)!r})
        np.testing.assert_array_equal(pick.run(ids, offsets, positions=wanted), want[wanted])
        rng = np.random.default_rng(0)
        types = rng.integers(0, toy.TYPES, ids.size)
        places = rng.integers(0, toy.LENGTH, ids.size)
        got = intformer.load({str(path)!r}).run(ids, offsets, types, places)
        np.testing.assert_array_equal(got, toy.expected(0, ids, offsets, types, places))
    """)


def test_versions_and_grids(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        for lengths in [(8,), (9,), (8, 1), (12,) * 9]:
            check(lib, lengths)
    """)
    adds = [line for line in log if line.startswith("launch add")]
    assert adds == [
        "launch add_small 1,1,1 8 0",
        "launch add 1,1,1 32 0",
        "launch add 1,1,1 32 0",
        "launch add 4,1,1 32 0",
    ]


def test_every_count_of_a_grid(built, gpu):
    """Factor, divisor, and all that a grid can follow; a grid without blocks is left out."""
    plan = toy_cuda.plan()
    grids = {
        "embed": (("token", 2, 3), ("sequence", 1, 1), ("longest", 4, 1)),
        "relu": (("one", 7, 5), ("one", 1, 2), ("one", 1, 1)),
    }
    for kernel, grid in grids.items():
        plan.launches[kernel] = [replace(plan.launches[kernel][0], grid=grid, shared=64)]
    plan.launches["add"][1] = replace(
        plan.launches["add"][1], grid=(("position", 1, 1), *plan.launches["add"][1].grid[1:])
    )
    log = gpu(f"""
        lib = intformer.load({str(built("grids", plan=plan))!r})
        lib.run(*toy.batch(0, (2, 9)))
    """)
    assert [line for line in log if line.startswith("launch")] == [
        "launch embed 18,2,3 32 64",
        "launch relu 5,2,1 32 64",
        "launch scale 1,1,1 32 0",
    ]


def test_observer_sees_every_step(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        ids, offsets = toy.batch(1, (5, 6))
        for _ in range(3):
            seen = []
            out = lib.run(ids, offsets, observer=lambda *s: seen.append((*s[:2], s[2].copy())))
            assert [s[:2] for s in seen] == [
                (0, "e"), (1, "twice"), (2, "positive"), (3, "scaled")
            ]
            arrays = {{name: array for _, name, array in seen}}
            assert arrays["e"].shape == (11, toy.WIDTH)
            np.testing.assert_array_equal(arrays["twice"], 2 * arrays["e"])
            np.testing.assert_array_equal(lib.logical("scaled", arrays["scaled"]), out)
            np.testing.assert_array_equal(out, toy.expected(0, ids, offsets))
        def observer(*_):
            raise RuntimeError("mine")
        try:
            lib.run(ids, offsets, observer=observer)
            raise AssertionError
        except RuntimeError:
            pass
        check(lib, (5, 6))
    """)
    assert "graph" not in log  # what is observed is launched step by step


def test_bad_input(path, gpu):
    """The same checks as on a CPU, and good runs afterwards."""
    gpu(f"""
        lib = intformer.load({str(path)!r})
        ids, offsets = toy.batch(0, (3, 4))
        assert "input_ids[5] is 50" in message(lib.run, [0, 1, 2, 3, 4, 50, 6], offsets)
        assert "sequence 1 is empty" in message(lib.run, ids, [0, 3, 3, 7])
        assert "offsets must increase" in message(lib.run, ids, [0, 5, 3, 7])
        assert "num_positions is 1" in message(lib.run, ids, offsets, None, None, [0])
        check(lib, (3, 4))
    """)


# ---- memory ----


def test_weights_are_copied_once_and_memory_is_kept(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        check(lib, (3,))
        check(lib, (12,) * 40)  # larger
        check(lib, (12,) * 30)
        check(lib, (3,))
    """)
    weights = [line for line in log if line.startswith("copy in ") and "async" not in line]
    assert len(weights) == 1
    assert len([line for line in log if line.startswith("alloc ")]) == 3  # weights, arena, larger
    assert log.count("stream") == 1
    assert log.count("free") == 1


def test_whole_tiles_of_rows_may_be_written(path, gpu):
    """`scale` of the toy writes all of the last 128 rows; the driver guards its memory."""
    gpu(f"""
        lib = intformer.load({str(path)!r})
        for tokens in (1, 11, 12, 10 * 12 + 7, 10 * 12 + 8, 11 * 12):
            check(lib, (12,) * (tokens // 12) + ((tokens % 12,) if tokens % 12 else ()))
    """)


def test_no_device_memory(path, gpu):
    """One line with the size of the run; smaller runs go on."""
    log = gpu(
        f"""
        lib = intformer.load({str(path)!r})
        check(lib, (3,))
        fault = message(lib.run, *toy.batch(0, (12,) * 400))
        assert fault == "no memory on the GPU for 4800 tokens in 400 sequences - split the batch"
        check(lib, (3,))
        os.environ["FAKE_CUDA_FAIL"] = "cuMemAllocHost_v2=2"
        fault = message(lib.run, *toy.batch(0, (12,) * 500))
        assert fault.startswith("no memory that the GPU can read for 6000 tokens"), fault
        del os.environ["FAKE_CUDA_FAIL"]
        check(lib, (12,) * 40)
        """,
        memory=100_000,
    )
    assert any(line.startswith("no memory for") for line in log)


def test_no_memory_for_the_weights(path, gpu):
    gpu(
        f"""
        lib = intformer.load({str(path)!r})
        run = (lib.run, *toy.batch(0, (3,)))
        assert message(*run) == "GPU Fake 70 has no memory for 0 MiB of weights"
        os.environ["FAKE_CUDA_MEMORY"] = "1000000"
        check(lib, (3,))
        """,
        memory=100,
    )


@pytest.mark.parametrize("fail", ["cuDevicePrimaryCtxRetain=2", "cubin=2,ptx=2"])
def test_a_full_gpu_is_asked_again(path, gpu, fail):
    gpu(
        f"""
        lib = intformer.load({str(path)!r}, run=False)
        fault = message(lib.run, *toy.batch(0, (3,)), code=4)
        assert "CUDA_ERROR_OUT_OF_MEMORY" in fault, fault
        assert message(intformer.load, {str(path)!r}) == fault
        del os.environ["FAKE_CUDA_FAIL"]
        check(lib, (3,))
        check(intformer.load({str(path)!r}), (3,))
        """,
        fail=fail,
    )


def test_idle_memory_is_given_up(path, gpu):
    """Two threads leave two contexts; when memory runs out the idle one gives up its own."""
    gpu(
        f"""
        import threading
        lib = intformer.load({str(path)!r})
        inside, done = threading.Event(), threading.Event()
        def wait(*_):
            inside.set()
            assert done.wait(20)
        other = threading.Thread(target=lib.run, args=toy.batch(0, (12,) * 20), kwargs=dict(
            observer=wait))
        other.start()
        assert inside.wait(20)
        check(lib, (12,) * 20)
        done.set()
        other.join()
        for lengths in ((12,) * 30, (12,) * 40, (12,) * 20):
            check(lib, lengths)
        """,
        memory=100_000,  # a run of 480 tokens needs 73 000
    )


# ---- runs of one size, over and over ----


def test_a_size_that_comes_again_is_one_launch(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        for lengths in [(3, 5)] * 4 + [(5, 3)]:  # the same counts, other offsets
            ids, offsets = toy.batch(lengths[0], lengths)
            got = lib.run(ids, offsets)
            np.testing.assert_array_equal(got, toy.expected(0, ids, offsets))
    """)
    assert log.count("graph") == 1
    assert log.count("launch graph") == 4
    assert log.count("launch relu 1,1,1 32 0") == 2  # the first run, and into the graph


def test_graphs_go_when_memory_moves(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        for lengths in [(3, 5)] * 3 + [(12,) * 40] + [(3, 5)] * 3:
            check(lib, lengths)
    """)
    assert log.count("graph") == 2
    assert log.count("drop graph") == 1
    assert log.count("launch graph") == 4


def test_the_graphs_of_eight_sizes_are_kept(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        check(lib, (12,) * 12)  # the largest first: memory stays where it is
        for _ in range(3):
            for tokens in range(1, 9):
                check(lib, (tokens,))
        check(lib, (9,))
        check(lib, (1,))
        check(lib, (8,))
    """)
    assert log.count("graph") == 8
    assert log.count("launch graph") == 16 + 1  # size 8 is still there, size 1 had to go
    assert log.count("drop graph") == 2


def test_without_graphs(path, gpu):
    """A driver that makes none: the kernels are launched one by one."""
    for call in ("cuGraphCreate", "cuGraphAddKernelNode", "cuGraphInstantiateWithFlags"):
        log = gpu(
            f"""
            lib = intformer.load({str(path)!r})
            for _ in range(4):
                check(lib, (3, 5))
            """,
            fail=f"{call}=801",
        )
        assert "launch graph" not in log


def test_while_another_thread_records(path, gpu):
    """As torch.cuda.graph does: what could spoil its graph is refused in a thread that is not told
    to go on."""
    log = gpu(
        f"""
        lib = intformer.load({str(path)!r})
        for _ in range(3):
            check(lib, (3, 5))
        """,
        recording=1,
    )
    assert log.count("launch graph") == 2


# ---- threads, processes, neighbours ----


def test_threads(path, gpu):
    log = gpu(f"""
        import threading
        lib = intformer.load({str(path)!r})
        faults = []
        def work(number):
            try:
                for i in range(60):
                    check(lib, ((12,) * 20, (3, 4), (number + 1,), (7,) * 9)[i % 4])
            except BaseException as error:
                faults.append(error)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults[0]
    """)
    assert log.count("stream") <= 8
    assert len([line for line in log if line.startswith("copy in ") and "async" not in line]) == 1


def test_two_libraries(built, tmp_path, gpu):
    """Kernels of the same names, weights and memory of their own."""
    one, two = built("one", seed=1), built("two", seed=2)
    other = toy_cuda.emulated(tmp_path, more=5)
    gpu(f"""
        one = intformer.load({str(one)!r})
        os.environ["FAKE_CUDA_KERNELS"] = {str(other)!r}
        two = intformer.load({str(two)!r})
        ids, offsets = toy.batch(0, (3, 9))
        for _ in range(3):
            check(one, (3, 9), seed=1)
            ids, offsets = toy.batch(2, (3, 9))
            np.testing.assert_array_equal(
                two.run(ids, offsets), toy.expected(2, ids, offsets) + 5
            )
    """)


def test_after_fork(path, gpu):
    """The child of a process that used the GPU says so; one that forked before it goes on."""
    gpu(f"""
        import multiprocessing
        fork = multiprocessing.get_context("fork")
        def child(want):
            lib = intformer.load({str(path)!r}, run=False)
            if want:
                assert want in message(lib.run, *toy.batch(0, (3,)))
                assert want in message(lib.set_variant, "t4")
                assert lib.variant is None and lib.device is None
            else:
                check(lib, (3, 4))
        def run(want):
            process = fork.Process(target=child, args=(want,))
            process.start()
            process.join(30)
            assert process.exitcode == 0
        lib = intformer.load({str(path)!r}, run=False)
        run("")
        check(lib, (3, 4))
        run("was forked from one that had opened the GPU")
        check(lib, (3, 4))
    """)


def test_after_fork_without_a_gpu(path, gpu):
    """The child says what its parent says."""
    gpu(
        f"""
        lib = intformer.load({str(path)!r}, run=False)
        want = message(lib.run, *toy.batch(0, (3,)))
        assert "CUDA_ERROR_NO_DEVICE" in want
        child = os.fork()
        if not child:
            os._exit(message(lib.run, *toy.batch(0, (3,))) != want)
        assert os.waitpid(child, 0)[1] == 0
        """,
        fail="cuInit=100",
    )


def test_in_c(path, tmp_path, driver, kernels):
    ids, offsets = toy.batch(5, (3, 12))
    source = f"""
        {batch_c(ids, offsets)}
        {PRINT}
        int main(void) {{
          char err[300];
          const intformer_api *api = intformer_open("{path}", err, sizeof err);
          if (!api) {{ puts(err); return 1; }}
          if (strcmp(api->variant(), "t4 cubin") || strcmp(api->device(), "Fake 70")) return 2;
          if (api->set_threads(-1) != INTFORMER_BAD_INPUT || api->set_threads(3)) return 3;
          if (api->get_threads() != 1) return 4;
          print(api);
          return 0;
        }}
    """
    env = {**fake_cuda.environment(driver, kernels)}
    library_path = {"LD_LIBRARY_PATH": str(driver.parent)}
    printed = run_c(tmp_path, source, library.SOURCES / "intformer_open.c", env=env | library_path)
    got = np.array(printed.split(), np.int64).reshape(-1, toy.CHANNELS)
    np.testing.assert_array_equal(got, toy.expected(0, ids, offsets))


# ---- which GPU ----


@pytest.mark.parametrize(
    ("gpu_is", "variant"),
    [("7.5", "t4 cubin"), ("7.6", "t4 cubin"), ("8.0", "t4 ptx"), ("9.0", "t4 ptx")],
)
def test_form_by_compute_capability(path, gpu, gpu_is, variant):
    log = gpu(
        f"""
        lib = intformer.load({str(path)!r})
        assert lib.variant == {variant!r}
        check(lib, (3, 5))
        """,
        gpu=gpu_is,
    )
    assert f"load {variant.split()[1]}" in log


def test_variants_by_name(path, gpu):
    log = gpu(f"""
        lib = intformer.load({str(path)!r})
        for name, variant in (("t4 ptx", "t4 ptx"), ("t4", "t4 cubin"), ("t4 cubin",) * 2):
            lib.set_variant(name)
            assert lib.variant == variant
            for _ in range(3):
                check(lib, (3, 5))
        assert lib.refusals() == {{"t4": ""}}
        fault = message(lib.set_variant, "t")
        assert fault == "variant t is unknown - this library has t4 cubin, t4 ptx"
        assert lib.variant == "t4 cubin"
    """)
    assert log.count("load cubin") == log.count("load ptx") == 1
    assert log.count("graph") == 2


def test_variant_of_the_environment(path, gpu, monkeypatch):
    monkeypatch.setenv("INTFORMER_VARIANT", "t4 ptx")
    gpu(f"assert intformer.load({str(path)!r}).variant == 't4 ptx'")
    monkeypatch.setenv("INTFORMER_VARIANT", "t4 cubin")
    gpu(
        f"""
        fault = message(intformer.load, {str(path)!r})
        assert fault == (
            "variant t4 cubin does not run here: t4 cubin needs compute capability 7.5, GPU "
            "Fake 70 has 8.0 - compile for another target - this library has t4 cubin, t4 ptx"
        ), fault
        """,
        gpu="8.0",
    )


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"gpu": "7.0"},
            "t4 ptx needs compute capability 7.5 or newer, GPU Fake 70 has 7.0 - compile for "
            "another target",
        ),
        (
            {"fail": "cuInit=100"},
            "starting the NVIDIA driver (see nvidia-smi) failed: CUDA_ERROR_NO_DEVICE "
            "(fake text of 100)",
        ),
        (
            {"count": 0},
            "no GPU is visible - this library needs one; see nvidia-smi and CUDA_VISIBLE_DEVICES",
        ),
        (
            {"fail": "cuDevicePrimaryCtxRetain=2"},
            "taking the GPU failed: CUDA_ERROR_OUT_OF_MEMORY (fake text of 2)",
        ),
        (
            {"fail": "cubin=209,ptx=222"},
            "t4 ptx: loading failed: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (fake text of 222) "
            "ptxas: too new - GPU Fake 70, driver for CUDA 12.2; update the driver, or compile "
            "for another target",
        ),
    ],
)
def test_loading_where_it_cannot_run(path, gpu, settings, fault):
    gpu(
        f"""
        fault = message(intformer.load, {str(path)!r})
        assert fault == {fault!r}, fault
        lib = intformer.load({str(path)!r}, run=False)
        assert lib.variant is None
        assert message(lib.run, *toy.batch(0, (3,))) == {fault!r}
        why = "variant t4 does not run here: {fault} - this library has t4 cubin, t4 ptx"
        assert lib.refusals() == {{"t4": why}}
        assert lib.section("cuda/t4.ptx").startswith(b".visible .entry")
        """,
        **settings,
    )


def test_a_cubin_that_does_not_load_gives_way_to_the_ptx(path, gpu):
    gpu(
        f"""
        lib = intformer.load({str(path)!r})
        assert lib.variant == "t4 ptx"
        check(lib, (3,))
        """,
        fail="cubin=209",
    )


def test_a_kernel_that_is_not_there(built, gpu):
    plan = toy_cuda.plan()
    plan.launches["relu"] = [replace(plan.launches["relu"][0], function="nowhere")]
    gpu(f"""
        fault = message(intformer.load, {str(built("nowhere", plan=plan))!r})
        assert fault == (
            "looking up a kernel failed: CUDA_ERROR_NOT_FOUND (fake text of 500)"
        ), fault
    """)


def test_a_driver_of_another_age(path, tmp_path, kernels):
    """One that lacks a function."""
    (tmp_path / "old.c").write_text("int cuInit(unsigned flags) { return (int)flags; }")
    old = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", old], check=True)
    code = f"import intformer; intformer.load({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=fake_cuda.environment(old, kernels),
    )
    assert "the NVIDIA driver has no cuDriverGetVersion - update it" in done.stderr


# ---- faults of a run ----


@pytest.mark.parametrize(
    ("fail", "code", "fault"),
    [
        ("cuLaunchKernel=1@3", 6, "kernel relu of step 2 failed: CUDA_ERROR_INVALID"),
        ("cuStreamSynchronize=719@2", 5, "the run on the GPU failed: CUDA_ERROR_LAUNCH_FAILED"),
        ("cuMemcpyHtoDAsync_v2=700@1", 5, "copying the input to the GPU failed: CUDA_ERROR_ILLEG"),
        ("cuMemcpyDtoHAsync_v2=700@1", 5, "copying the output from the GPU failed: CUDA_ERROR_I"),
        ("cuStreamSynchronize=709@2", 6, "the run on the GPU failed: CUDA_ERROR_CONTEXT_IS_DE"),
        ("cuMemcpyHtoD_v2=700@1", 5, "copying the weights to the GPU failed: CUDA_ERROR_ILLEGAL"),
        ("cuStreamCreate=2@1", 4, "making a stream failed: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuStreamCreate=700@1", 5, "making a stream failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuMemAllocHost_v2=700@1", 5, "taking memory failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuMemAlloc_v2=700@2", 5, "taking memory failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_faults(path, gpu, fail, code, fault):
    """The step is named, and the next run goes on where the driver does."""
    gpu(
        f"""
        lib = intformer.load({str(path)!r})
        fault = message(lib.run, *toy.batch(0, (3,)), code={code})
        assert fault.startswith({fault!r}), fault
        check(lib, (3,))
        check(lib, (3, 5))
        """,
        fail=fail,
    )


def test_a_kernel_that_fails_under_an_observer_is_named(path, gpu):
    gpu(
        f"""
        lib = intformer.load({str(path)!r})
        run = lambda: lib.run(*toy.batch(0, (3,)), observer=lambda *_: None)
        fault = message(run)
        assert fault.startswith("kernel add of step 1 failed: CUDA_ERROR_ILLEGAL_ADDRESS"), fault
        check(lib, (3,))
        """,
        fail="cuStreamSynchronize=700@3",  # weights, step 0, step 1
    )


def test_a_grid_beyond_the_gpu(built, gpu):
    plan = toy_cuda.plan()
    grid = (("one", 1, 1), ("token", 1, 9000), ("one", 1, 1))
    plan.launches["relu"] = [replace(plan.launches["relu"][0], grid=grid)]
    gpu(f"""
        lib = intformer.load({str(built("wide", plan=plan))!r})
        lib.run(*toy.batch(0, (7,)))
        for _ in range(3):
            fault = message(lib.run, *toy.batch(0, (8,)))
            assert fault.startswith("kernel relu of step 2 needs 72000 blocks in one direction")
        lib.run(*toy.batch(0, (7,)))
    """)


def test_the_driver_guards_its_memory(built, gpu):
    """The fake driver sees a kernel that writes outside: else it would prove little."""
    plan = toy_cuda.plan()
    plan.launches["add"] = [replace(plan.launches["add"][1], function="wild")]
    gpu(f"""
        fault = message(
            intformer.load({str(built("wild", plan=plan))!r}).run, *toy.batch(0, (3,))
        )
        assert fault.startswith("the run on the GPU failed: CUDA_ERROR_ILLEGAL_ADDRESS"), fault
        os._exit(0)
    """)


# ---- the command ----


def test_inspect(path, gpu, driver, kernels):
    def inspect(*options, **settings):
        command = [sys.executable, "-m", "intformer", "inspect", str(path), *options]
        env = fake_cuda.environment(driver, kernels, **settings)
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # it reads the file: no driver is asked
    assert re.search(r"t4 +not tried +GPU, sm_75 or newer", inspect())
    assert inspect("--json") == inspect("--json", fail="cuInit=100")
