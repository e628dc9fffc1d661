"""The TIR check finds what an integer program may not hold, and nothing else."""

import lzma

import pytest

tvm = pytest.importorskip("tvm", reason="needs the compiler extra")

from tvm.script import tirx as T  # noqa: E402

from intformer.proof import tir_check  # noqa: E402


@T.prim_func(s_tir=True)
def integers(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32"), n: T.int32):
    for i in T.vectorized(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = (A[v] << 3) // 7 + T.truncmod(A[v], 5) + (A[v] >> n)


@T.prim_func(s_tir=True)
def a_float(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    for i in range(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = T.Cast("int32", T.Cast("float32", A[v]))


@T.prim_func(s_tir=True)
def a_float_buffer(A: T.Buffer((16,), "float16"), B: T.Buffer((16,), "int32")):
    for i in range(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = 1


@T.prim_func(s_tir=True)
def a_division(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32"), n: T.int32):
    for i in range(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = A[v] // n


@T.prim_func(s_tir=True)
def a_remainder(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    for i in range(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = T.truncmod(7, A[v])


@T.prim_func(s_tir=True)
def a_shift(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    for i in T.vectorized(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = A[v] << A[0]


@T.prim_func(s_tir=True)
def a_shift_of_a_vector(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    B[T.ramp(0, 1, 4)] = T.broadcast(1, 4) << A[T.ramp(0, 1, 4)]


@T.prim_func(s_tir=True)
def a_constant_shift_of_a_vector(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    B[T.ramp(0, 1, 4)] = A[T.ramp(0, 1, 4)] << T.broadcast(3, 4)


@T.prim_func(s_tir=True)
def a_scalar_shift(A: T.Buffer((16,), "int32"), B: T.Buffer((16,), "int32")):
    for i in range(16):
        with T.sblock("b"):
            v = T.axis.spatial(16, i)
            B[v] = A[v] << A[0]


def findings(function, vector_shifts=False):
    # through the bytes a library carries
    module = tvm.IRModule({"kernel": function})
    carried = tir_check.load(lzma.compress(tvm.ir.save_json(module).encode()))
    return tir_check.check(carried, vector_shifts=vector_shifts)


def test_integer_work_passes():
    assert findings(integers) == []
    assert findings(a_scalar_shift) == []
    assert findings(a_constant_shift_of_a_vector) == []


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (a_float, "float type: T.Cast"),
        (a_float_buffer, "float type"),
        (a_division, "division by a variable: A[v] // n"),
        (a_remainder, "division by a variable: T.truncmod(7, A[v])"),
        (a_shift, "vector shift by a variable: A[v] << A[0]"),
        (a_shift_of_a_vector, "vector shift by a variable: T.Broadcast(1, 4) << A["),
    ],
)
def test_each_fault_is_found(function, what):
    found = findings(function)
    assert found
    assert found[0].where == "kernel"
    assert any(finding.what.startswith(what) for finding in found)


def test_avx2_shifts_lanes_in_integers():
    assert findings(a_shift, vector_shifts=True) == []
    assert findings(a_shift_of_a_vector, vector_shifts=True) == []
