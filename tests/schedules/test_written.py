"""Every op has loops: a tensor expression that is scheduled, or kernels written by hand."""

import pytest

from intformer.backends.targets import FAMILIES
from intformer.relay_ops import OPS
from intformer.schedules.kernels.table import CPU, CUDA


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_defined_or_written_for_every_kind_of_chip(op):
    kernels = [family.BACKEND.written_kernel(op) for family in FAMILIES]
    assert all(kernels) if OPS[op].define is None else not any(kernels)


def test_every_written_kernel_is_of_an_op():
    assert set(CPU) | set(CUDA) <= set(OPS)
