"""The same runtime on a real GPU; what the fake driver of test_runtime_cuda.py cannot show."""

import ctypes
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intformer import runtime
from intformer.backends.cuda import toolchain
from intformer.backends.cuda.device import Device
from intformer.link import build as library
from intformer_testing import cuda_compilers, toy, toy_cuda

SUPPORT = Path(toy.__file__).parents[1]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function that builds a library: (name, seed, rows, plan) -> path."""
    cuda_compilers.any_compiler()
    variant = toy_cuda.real_variant()

    def make(name="toy", seed=0, rows="token", plan=None):
        plan = plan or toy_cuda.plan(seed, rows)
        path = tmp_path_factory.mktemp(name) / f"lib{name}.so"
        return library.build(plan, [variant], toy.model(seed), path, target="t4")

    return make


@pytest.fixture(scope="module")
def load(build):
    """Return a function that builds and loads one on a GPU; skip where there is none."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        pytest.skip("no NVIDIA driver")
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        pytest.skip("no CUDA device")
    return lambda *args, **options: runtime.load(build(*args, **options))


def check(lib, lengths, seed=0):
    ids, offsets = toy.batch(len(lengths), lengths)
    np.testing.assert_array_equal(lib.run(ids, offsets), toy.expected(seed, ids, offsets))


def test_real_code_makes_a_library(build):
    """What the compiler of CUDA writes is what the builder reads."""
    lib = runtime.load(build("real"), run=False)
    assert lib.section("cuda/t4.cubin")[:4] == b"\x7fELF"
    assert b".entry add_small(" in lib.section("cuda/t4.ptx")


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["in use", "t4 ptx"])
def test_results(load, form):
    lib = load()
    assert lib.device
    if form != "in use":
        lib.set_variant(form)
    for lengths in [(1,), (8,), (3, 5, 12, 1), (12,) * 40, (12,) * 4000, (1,)] * 3:
        check(lib, lengths)  # step by step, then as a graph
    lib.set_variant(None)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["cubin", "ptx"])
def test_code_for_this_chip(load, tmp_path, form):
    arch = "sm_{}{}".format(*Device().capability)
    if arch not in toolchain.PTX_VERSIONS:
        pytest.skip(f"{arch} is no target")
    variants = [toy_cuda.real_variant(f"cuda:{arch}", arch)]
    path = library.build(
        toy_cuda.plan(), variants, toy.model(), tmp_path / "own.so", target=f"cuda:{arch}"
    )
    lib = runtime.load(path)
    lib.set_variant(f"cuda:{arch} {form}")
    for lengths in [(1,), (3, 5, 12, 1), (12,) * 4000] * 3:
        check(lib, lengths)


@pytest.mark.gpu
def test_rows_types_positions(load):
    ids, offsets = toy.batch(3, (4, 12, 1, 7, 2, 9, 9, 9, 5))
    want = toy.expected(0, ids, offsets)
    got = load("first", rows="sequence").run(ids, offsets)
    np.testing.assert_array_equal(got, want[offsets[:-1]])
    wanted = np.array([16, 0, 0, 7] * 50)
    got = load("pick", rows="position").run(ids, offsets, positions=wanted)
    np.testing.assert_array_equal(got, want[wanted])


@pytest.mark.gpu
def test_observer(load):
    lib = load()
    ids, offsets = toy.batch(1, (5, 6))
    arrays = {}
    out = lib.run(ids, offsets, observer=lambda _, name, data: arrays.update({name: data.copy()}))
    np.testing.assert_array_equal(arrays["twice"], 2 * arrays["e"])
    np.testing.assert_array_equal(lib.logical("scaled", arrays["scaled"]), out)


@pytest.mark.gpu
def test_threads_and_two_libraries(load):
    libraries, faults = {seed: load(f"lib{seed}", seed=seed) for seed in (1, 2)}, []

    def work(number):
        try:
            for i in range(200):
                seed = (number + i) % 2 + 1
                check(libraries[seed], ((12,) * 20, (3, 4), (7,) * 9, (12,) * 200)[i % 4], seed)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


@pytest.mark.gpu
def test_beside_torch(load):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("a torch without CUDA")
    lib, x = load("beside"), torch.arange(1000, device="cuda")
    for _ in range(4):
        check(lib, (3, 5))
        assert int((x * 2).sum()) == 999_000


@pytest.mark.gpu
def test_while_torch_waits_and_records(load):
    """Neither waiting for the whole GPU nor recording it hinders the other."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("a torch without CUDA")
    lib, ended, faults = load("waits"), threading.Event(), []
    x, graph = torch.arange(1000, device="cuda"), torch.cuda.CUDAGraph()

    def wait():
        try:
            while not ended.is_set():
                torch.cuda.synchronize()
        except RuntimeError as error:
            faults.append(error)

    def run(lengths):
        try:
            check(lib, lengths)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        for tokens in range(1, 200):
            for _ in range(3):
                check(lib, (tokens % 12 + 1,) * (tokens // 12 + 1))
    finally:
        ended.set()
        thread.join()
    assert not faults, faults[0]
    with torch.cuda.graph(graph):  # in the mode that forbids every thread what could spoil it
        y = x * 2
        other = threading.Thread(target=run, args=((12,) * 4000,))
        other.start()
        other.join()
    graph.replay()
    assert int(y.sum()) == 999_000
    assert not faults, faults[0]


def alone(code):
    """Run Python in a process of its own; a fault of the GPU ends all work of its process."""
    begin = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\nimport intformer\n"
    begin += "from intformer_testing import toy\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.gpu
def test_a_kernel_that_fails(load, build):
    plan = toy_cuda.plan()
    plan.launches["relu"] = [replace(plan.launches["relu"][0], function="wild")]
    out = alone(f"""
        lib = intformer.load({str(build("wild", plan=plan))!r})
        for observer in (lambda *_: None, None):
            try:
                lib.run(*toy.batch(0, (3,)), observer=observer)
            except intformer.IntformerError as error:
                print(error.what)
    """)
    first, second = out.splitlines()
    assert first.startswith("kernel relu of step 2 failed: CUDA_ERROR_ILLEGAL_ADDRESS (")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in second


@pytest.mark.gpu
def test_after_fork(load, build):
    out = alone(f"""
        import os
        lib = intformer.load({str(build("fork"))!r})
        lib.run(*toy.batch(0, (3,)))
        child = os.fork()
        if not child:
            try:
                lib.run(*toy.batch(0, (3,)))
            except intformer.IntformerError as error:
                print(error.what, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        lib.run(*toy.batch(0, (3,)))
    """)
    assert "was forked from one that had opened the GPU" in out


@pytest.mark.gpu
def test_no_device_memory(load, build):
    """Somebody else has nearly all of it: one line, and a smaller run goes on."""
    alone(f"""
        import ctypes
        lib = intformer.load({str(build("large"))!r})
        ids, offsets = toy.batch(0, (12,))
        lib.run(ids, offsets)
        driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        assert not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        assert not driver.cuCtxPushCurrent_v2(context)
        size, pointer = 1 << 40, ctypes.c_uint64()
        while size > 1 << 20:
            if driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)):
                size //= 2
        try:
            lib.run(*toy.batch(0, (12,) * 40_000))
            raise SystemExit("no error")
        except intformer.IntformerError as error:
            assert error.code == 4 and "for 480000 tokens in 40000 sequences" in str(error), error
        assert (lib.run(ids, offsets) == toy.expected(0, ids, offsets)).all()
    """)
