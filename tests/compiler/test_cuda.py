"""Whole models for a GPU: the library of a compiled model, its kernels run on the CPU.

The library calls the driver of fake_cuda.c, which runs the CUDA source that the library carries
(see cuda_on_cpu.h). So all is the product's but the last step from CUDA C to machine code, which
verify reads.
"""

import ctypes

import numpy as np
import pytest

import intformer
from intformer.backends.cuda import toolchain
from intformer.backends.cuda.device import Device
from intformer.backends.targets import TARGETS
from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer.proof import inputs, results
from intformer_testing import cuda_compilers, fake_cuda, gpu, make_ibert, random_hf

CASES = [  # family, head, shape; one in the quick tests
    pytest.param("bert", "sequence-classification", {}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("roberta", "token-classification", {"hidden": 96, "heads": 3, "ffn": 200}),
            ("distilbert", "masked-lm", {"hidden": 128, "heads": 2, "activation": "relu"}),
            ("electra", "question-answering", {"hidden": 40, "heads": 4}),
            ("albert", "features", {"activation": "gelu_new"}),
            ("bert", "sparse-embedding", {}),
        ]
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return fake_cuda.build(tmp_path_factory.mktemp("driver"))


@gpu.needs_compiler
@pytest.mark.parametrize(("family", "head", "shape"), CASES)
def test_library_equals_the_composed_reference(tmp_path, driver, family, head, shape):
    random_hf.save(tmp_path / "model", family, head, **shape)
    model = import_model(
        tmp_path / "model", head=head, calibrate=random_hf.sequences(seed=1), method="minmax"
    )
    gpu.verified(intformer.compile(model, tmp_path / "m.so", target="t4"), driver, tmp_path)


@cuda_compilers.needs_ptxas
@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(toolchain.PTX_VERSIONS))
def test_ptx_of_a_whole_model_is_as_old_as_it_says(tmp_path, arch):
    cuda_compilers.any_compiler()
    random_hf.save(tmp_path / "model", "bert", "sequence-classification")
    model = import_model(tmp_path / "model", calibrate=random_hf.sequences(seed=1), method="minmax")
    library = intformer.compile(model, tmp_path / "m.so", target=f"cuda:{arch}")
    cuda_compilers.assemble(library.section(f"cuda/cuda:{arch}.ptx"), arch, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_library_on_a_real_gpu(tmp_path, case, own):
    """For this chip, and for a T4: newer ones compile the PTX."""
    cuda_compilers.any_compiler()
    try:
        chip = "cuda:sm_{}{}".format(*Device().capability)
    except IntformerError as error:
        pytest.skip(str(error))
    target = chip if own else "t4"
    if target not in TARGETS:
        pytest.skip(f"{target} is no target")
    family, head, shape = CASES[case].values
    random_hf.save(tmp_path / "model", family, head, **shape)
    model = import_model(
        tmp_path / "model", head=head, calibrate=random_hf.sequences(seed=1), method="minmax"
    )
    library = intformer.load(intformer.compile(model, tmp_path / "m.so", target=target).path)
    assert intformer.verify(library, cases=2).ok
    batches = inputs.random_batches(library.metadata, 2, seed=1)
    for form in ("cubin", "ptx") if own else ("ptx",):
        library.set_variant(f"{target} {form}")
        for batch in batches:
            finding, _ = results.first_difference(library, model, batch, model.run(batch))
            assert finding is None


@gpu.needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hf_compat", "fixed"])
def test_ibert_library_equals_the_composed_reference(tmp_path, driver, mode):
    make_ibert.random_model().save_pretrained(tmp_path / "model")
    model = import_model(tmp_path / "model", mode=mode)
    gpu.verified(intformer.compile(model, tmp_path / "m.so", target="t4"), driver, tmp_path)


@gpu.needs_compiler
@pytest.mark.parametrize("offset", [1, 63])
@pytest.mark.parametrize(("barrier", "wrong"), [("", {1, 63}), ("__syncthreads();", {0})])
def test_a_forgotten_barrier_gives_wrong_numbers(offset, barrier, wrong, tmp_path):
    """Threads that read what lower or higher ones write: the emulator has both orders."""
    source = f"""
    extern "C" __global__ void __launch_bounds__(64) f(int *x) {{
      __shared__ int s[64];
      s[threadIdx.x] = threadIdx.x + 1;
      {barrier}
      x[threadIdx.x] = s[(threadIdx.x + {offset}) % 64];
      __syncthreads();
      s[threadIdx.x] = 0;
    }}
    """
    library, found = ctypes.CDLL(str(gpu.emulate(source, tmp_path))), set()
    for _ in range(2):
        x = np.zeros(64, np.int32)
        pointer = ctypes.c_void_p(x.ctypes.data)
        params = (ctypes.c_void_p * 1)(ctypes.addressof(pointer))
        library.emulate_f((ctypes.c_uint * 3)(1, 1, 1), ctypes.c_uint(64), params)
        found.add(int(np.sum(x != (np.arange(64) + offset) % 64 + 1)))
    assert found == wrong
