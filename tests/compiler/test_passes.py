"""The passes on small graphs: what fuses and what does not, shared kernels, padded heads."""

import dataclasses
import re

import numpy as np
import pytest
from tvm import relax

from intformer.ir.model import Node
from intformer.passes.fuse import CHAINS
from intformer.relay_ops import attention, i_gelu, i_layernorm, requantize16, rescale
from intformer.relay_ops.fixedpoint import make_dyadic
from intformer_testing.kernels import Chain, Graph, Program, lowered, on_every_target, planned

C = 60


def kernels(graph, target="x86-64"):
    """Return the names of the kernels called, in order, without the given values."""
    _, plan, _ = lowered(graph, target)
    return [step.kernel for step in plan.steps if not step.kernel.startswith("given")]


def dense(g, x, name, dtype="int8", n=C, op="rescale"):
    """matmul + rescale or requantize; returns (accumulator, result)."""
    rng = np.random.default_rng(len(g.nodes))
    weight = rng.integers(-127, 128, (n, g.values[x].channels)).astype(np.int8)
    acc = g.op("matmul", [x, weight, np.zeros(n, np.int32)], f"{name}_acc", "int32", n)
    limit = 127 if dtype == "int8" else 2**15 - 1
    if op == "rescale":
        scale, attrs = rescale.tables(np.full(n, 1e-3), 0), {"lift": 0}
    else:
        scale, attrs = make_dyadic(np.full(n, 1e-3)), {}
    return acc, g.op(op, [acc, *scale], name, dtype, n, lo=-limit, hi=limit, **attrs)


def norm(g, x, name):
    tables = i_layernorm.tables(1e-3, np.ones(C), np.zeros(C), 1e-12, 0.03, 3e-4)
    outs = (f"{name}8", f"{name}16")
    return g.op("i_layernorm", [x, *tables.values()], outs, ("int8", "int16"), C)


def residual(g, a, b, name):
    scale = make_dyadic(np.array([0.5]))
    return g.op("residual_add", [a, b, *scale], name, "int32", C, lo=-(2**16), hi=2**16)


def add(g, a, b, name):
    return g.op("add", [a, b], name, "int32", C)


def layer(g, x8, x16, number, heads=3):
    """One encoder layer of the native recipe; returns its two outputs."""
    at = f"l{number}_"
    _, qkv = dense(g, x8, at + "qkv", n=3 * C)
    tables = attention.tables(0.05, 0.05, 0.05, C // heads, np.full(C, 0.03))
    inputs = [qkv, "cu_seqlens", *tables.values()]
    dim = C // heads
    context = g.op("attention", inputs, at + "ctx", "int8", C, heads=heads, head_dim=dim)
    _, wide = dense(g, context, at + "out", "int16")
    return norm(g, add(g, wide, x16, at + "sum"), at + "norm")


def called(module):
    """Ops of every private function of a Relax module, by its "Composite" name, in order."""
    found = []
    for var, function in module.functions.items():
        if var.name_hint != "main":
            calls = [b.value for block in function.body.blocks for b in block.bindings]
            ops = [c.op.name.removeprefix("intformer.") for c in calls if isinstance(c, relax.Call)]
            found.append((str(function.attrs["Composite"]), tuple(ops)))
    return found


@pytest.mark.parametrize(
    ("name", "ops"), [(name, ops) for name, chains in CHAINS.items() for ops in chains]
)
def test_a_chain_becomes_one_function(name, ops):
    into = {}
    lowered(Chain(ops, C, C).graph, "x86-64", into)
    assert called(into["before"]) == []
    assert called(into["after"]) == [(name, ops)]


def test_what_no_chain_takes_stays_alone():
    g = Graph()
    g.op("relu", [g.given("x", "int32", C)], "y", "int32", C)
    g.op("requantize", ["y", *make_dyadic(np.ones(C))], "z", "int8", C, lo=-9, hi=9)
    assert kernels(g) == ["relu_0", "requantize_0"]


def test_a_matmul_does_not_take_what_is_behind_a_lookup():
    """The value between two kernels that do not fuse is a buffer."""
    g = Graph()
    _, y = dense(g, g.given("x", "int8", C), "y")
    picked = g.op("take_rows", [y, "positions"], "picked", "int8", C, "position")
    dense(g, picked, "z")
    g.values["z_acc"] = dataclasses.replace(g.values["z_acc"], rows="position")
    g.values["z"] = dataclasses.replace(g.values["z"], rows="position")
    assert kernels(g) == ["dense_0", "take_rows_0", "dense_1"]


@on_every_target
@pytest.mark.parametrize("reader", ["relu", "requantize", "rescale", "residual_add"])
def test_a_value_read_twice_is_not_hidden(target, reader):
    """The accumulator is needed outside, so it is written, and both readers get it."""
    g = Graph()
    acc, _ = dense(g, g.given("x", "int8", C), "y")
    if reader == "relu":
        g.op("relu", [acc], "z", "int32", C)
    elif reader == "requantize":
        g.op("requantize", [acc, *make_dyadic(np.full(C, 2e-3))], "z", "int16", C, lo=-99, hi=99)
    elif reader == "rescale":
        scale = rescale.tables(np.full(C, 2e-3), 4)
        g.op("rescale", [acc, *scale], "z", "int16", C, lift=4, lo=-99, hi=99)
    else:
        residual(g, acc, g.given("b", "int16", C), "z")
    program = Program(g, target)
    assert program.kernels[0] == "dense_0" and len(program.kernels) == 3
    assert acc in program.steps[0].outputs
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(-128, 128, (11, C)).astype(np.int8)}
    arrays |= {"b": rng.integers(-99, 99, (11, C)).astype(np.int16)} if "b" in g.values else {}
    assert {"y_acc", "y", "z"} <= program.check(arrays).keys()


def test_the_same_op_reading_a_value_twice_does_not_hide_it():
    g = Graph()
    _, wide = dense(g, g.given("x", "int8", C), "y", "int16")
    norm(g, add(g, wide, wide, "sum"), "n")
    assert kernels(g) == ["dense_0", "add_layernorm_0"]


def test_a_chain_in_the_middle_of_which_the_output_lies_is_cut():
    g = Graph()
    acc, _ = dense(g, g.given("x", "int8", C), "y")
    model = dataclasses.replace(g.model(), output=acc)
    g.model = lambda: model
    _, plan, _ = lowered(g, "x86-64")
    assert plan.output == acc and acc in plan.steps[1].outputs


def test_both_outputs_of_a_layernorm_are_written_by_its_kernel():
    g = Graph()
    x8, x16 = norm(g, g.given("x", "int32", C), "n")
    _, wide = dense(g, x8, "y", "int16")
    add(g, wide, x16, "sum")
    _, plan, layout = lowered(g, "x86-64")
    assert plan.steps[1].outputs == (x8, x16)
    assert [step.kernel for step in plan.steps[1:]] == ["layernorm_0", "dense_0", "add_0"]
    assert layout.buffers[x8].dtype == "uint8" and layout.buffers[x8].zero_point == 128
    assert layout.buffers[x16].dtype == "int16" and layout.buffers[x16].zero_point == 0


@on_every_target
def test_layers_of_one_shape_give_one_kernel(target):
    g = Graph()
    x8, x16 = g.given("x8", "int8", C), g.given("x16", "int16", C)
    for number in range(4):
        x8, x16 = layer(g, x8, x16, number)
    g.operand(x8)  # as the layer after would
    of_a_layer = ["dense_0", "attention_0", "dense_1", "add_layernorm_0"]
    program = Program(g, target)
    assert program.kernels == of_a_layer * 4
    rng = np.random.default_rng(0)
    program.check(
        {
            "x8": rng.integers(-127, 128, (20, C)).astype(np.int8),
            "x16": rng.integers(-999, 999, (20, C)).astype(np.int16),
            "cu_seqlens": np.array([0, 1, 4, 20], np.int32),
        }
    )


@pytest.mark.parametrize(
    ("change", "count"),
    [("nothing", 1), ("width", 2), ("clamp", 2), ("type", 2), ("operand", 2), ("order", 2)],
)
def test_kernels_are_shared_only_between_equal_forms(change, count):
    """Numbers in tensors make no difference; shapes, types, attributes and roles do."""
    g = Graph()
    scale = make_dyadic(np.array([0.5]))
    terms = [g.given("a", "int32", C), g.given("b", "int32", C)]
    limits = {"lo": -(2**16), "hi": 2**16}
    g.op("residual_add", [*terms, *scale], "y", "int32", C, **limits)
    channels = 90 if change == "width" else C
    b = g.given("d", "int8" if change in ("type", "operand") else "int32", channels)
    if change == "operand":
        g.operand(b)
    if change == "clamp":
        limits["hi"] = 2**15
    terms = [g.given("c", "int32", channels), b]
    if change == "order":
        terms[1] = terms[0]
    other = make_dyadic(np.array([0.25]))
    g.op("residual_add", [*terms, *other], "z", "int32", channels, **limits)
    assert len(set(kernels(g))) == count


def test_kernel_names_never_meet():
    """`dense` counts past `dense_gelu`, whose name begins like it."""
    g = Graph()
    x = g.given("x", "int8", C)
    for number, n in enumerate((16, 32, 48)):
        acc, _ = dense(g, x, f"a{number}", "int32", n, "requantize")
        alone = dense(g, x, f"b{number}", "int16", n)[1]
        assert acc and g.op("relu", [alone], f"r{number}", "int16", n)
    for number, n in enumerate((16, 32)):
        _, y = dense(g, x, f"c{number}", "int16", n)
        y = g.op("i_gelu", [y, i_gelu.point(11)], f"g{number}", "int16", n, form="erf")
        g.op("requantize16", [y, *requantize16.tables(np.full(n, 0.01))], f"d{number}", "int8", n)
    module, plan, _ = lowered(g, "x86-64")
    symbols = [str(f.attrs["global_symbol"]) for f in module.functions.values()]
    assert len(set(symbols)) == len(symbols) == len({step.kernel for step in plan.steps})
    for step in plan.steps:
        assert re.fullmatch(r"[a-z_]+_\d+", step.kernel)


# -- layout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "dim"), [(3, 20), (2, 26), (4, 16), (1, 60), (5, 1)])
def test_heads_are_padded_to_whole_vectors(heads, dim):
    channels, padded = heads * dim, -(-dim // 16) * 16
    g = Graph()
    x = g.given("x", "int8", C)
    _, qkv = dense(g, x, "qkv", n=3 * channels)
    tables = attention.tables(0.05, 0.05, 0.05, dim, np.full(channels, 0.03))
    inputs = [qkv, "cu_seqlens", *tables.values()]
    g.op("attention", inputs, "ctx", "int8", channels, heads=heads, head_dim=dim)
    dense(g, "ctx", "out")
    layout = planned(g.model())

    assert layout.maps["qkv"] == layout.maps["qkv_acc"] == (3 * heads, dim, padded)
    assert layout.maps["ctx"] == (heads, dim, padded)
    assert layout.buffers["qkv"].width == 3 * heads * padded
    assert layout.buffers["ctx"].width == heads * padded
    assert layout.buffers["ctx"].zero_point == 128 and layout.buffers["qkv"].zero_point == 0
    index = layout.buffers["ctx"].channel_map
    if dim == padded or heads == 1:
        assert index is None
    else:
        assert index.tolist() == [h * padded + j for h in range(heads) for j in range(dim)]
    # the weights on both sides follow, and padding takes part in no sum
    into, back = layout.packing["qkv_acc.1"], layout.packing["out_acc.1"]
    assert into["map_out"] == (3 * heads, dim, padded) and into["width_out"] == 3 * heads * padded
    assert back["map_in"] == (heads, dim, padded) and back["width_in"] == heads * padded
    assert layout.packing["ctx.3"]["fill"] == layout.packing["ctx.4"]["fill"] == 0


def test_every_width_is_a_multiple_of_a_vector():
    for channels in (1, 15, 16, 17, 312):
        g = Graph()
        norm_input = g.given("x", "int32", channels)
        g.op("relu", [norm_input], "y", "int32", channels)
        layout = planned(g.model())
        assert layout.buffers["y"].width == -(-channels // 16) * 16
        assert layout.buffers["y"].channels == channels
        assert layout.buffers["y"].channel_map is None


def test_a_tensor_with_two_layouts_is_packed_twice():
    g = Graph()
    mult = g.constant("mult", np.ones(C, np.int32))
    shift = g.constant("shift", np.ones(C, np.int32))
    limits = {"lo": -9, "hi": 9}
    g.op("requantize", [g.given("x", "int32", C), mult, shift], "y", "int8", C, **limits)
    g.op("requantize", [g.given("z", "int32", C), mult, shift], "ctx", "int8", C, **limits)
    tables = attention.tables(0.05, 0.05, 0.05, 10, np.full(20, 0.03))
    inputs = ["ctx", "cu_seqlens", *tables.values()]
    g.op("attention", inputs, "out", "int8", 20, heads=2, head_dim=10)
    layout = planned(g.model())
    assert {"mult", "mult#2", "shift", "shift#2"} <= layout.packing.keys()
    assert layout.packing["mult"]["map"] == (1, C, 64)
    assert layout.packing["mult#2"]["map"] == (6, 10, 16)


def test_a_tied_table_is_packed_once_as_the_decoder_reads_it():
    g = Graph()
    scale = np.ones(9, np.int32), np.ones(9, np.int32)
    word = g.constant("word", np.ones((9, C), np.int8))
    tables = [word, *scale, np.ones((9, C), np.int16), *scale]
    ids = ["input_ids", "position_ids"]
    g.op("embed", [*ids, *tables], "e", "int32", C, types=0, lo=-9, hi=9)
    g.op("matmul", [g.given("x", "int8", C), "word", np.ones(9, np.int32)], "y", "int32", 9)
    layout = planned(g.model())
    embed = next(i for i, node in enumerate(g.nodes) if node.op == "embed")
    matmul = next(i for i, node in enumerate(g.nodes) if node.op == "matmul")
    assert layout.names[embed, 2] == layout.names[matmul, 1] == "word"
    assert layout.packing["word"]["kind"] == "weight"
    assert not any(name.startswith("word#") for name in layout.packing)


def test_a_reader_does_not_change_its_graph():
    """`operand` of the test graphs leaves nodes alone."""
    g = Graph()
    g.operand(g.given("x", "int8", C))
    assert g.nodes == [Node("given", (), ("x",))]
