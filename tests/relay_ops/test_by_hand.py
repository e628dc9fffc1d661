"""Each op on values worked out on paper, and the inputs it must refuse."""

import numpy as np
import pytest

from intformer.errors import RangeError
from intformer.relay_ops import (
    OPS,
    attention,
    attention_bias,
    attention_relative,
    gate,
    i_gelu,
    i_layernorm,
    i_stream_norm,
    requantize16,
    rescale,
    rotary,
    weighted_pool,
)
from intformer.relay_ops.fixedpoint import make_dyadic

HALF = (np.array([2**30], np.int32), np.array([31], np.int32))  # times 1/2
ONE = (np.array([2**30], np.int32), np.array([30], np.int32))


def i8(*x):
    return np.array(x, np.int8)


def i16(*x):
    return np.array(x, np.int16)


def i32(*x):
    return np.array(x, np.int32)


def run(op, *args, **attrs):
    return OPS[op].reference(*args, **attrs)


def test_every_op_is_listed_under_its_name():
    assert all(op.name == name and op.source for name, op in OPS.items())


def test_embed_clamps_twice():
    word, types, positions = i8([10, -20], [100, 100]), i8([5, 1]), i8([50, 3])
    scale = (np.array([2**30, 2**30]), np.array([30, 31]))  # second word row: times 1/2
    one = (np.array([2**30]), np.array([30]))
    args = (i32(0, 1), i32(0, 0), i32(0, 0), word, *scale, types, *one, positions, *one)
    # row 0: (10 + 5, -20 + 1) + (50, 3); row 1: (50 + 5 -> 52, 50 + 1) + (50, 3) -> 102, 54 -> 52
    assert run("embed", *args, lo=-60, hi=52, types=1).tolist() == [[52, -16], [52, 52]]
    assert run("embed", *args, lo=-60, hi=60, types=1).tolist() == [[60, -16], [60, 54]]


def test_embed_without_types():
    one = (np.array([2**30]), np.array([30]))
    out = run("embed", i32(0), i32(0), i8([7]), *one, i8([-3]), *one, lo=-9, hi=9, types=0)
    assert out.tolist() == [[4]]


def test_embed_without_positions():
    one = (np.array([2**30]), np.array([30]))
    words, attrs = (i8([7, -8]), *one), {"lo": -9, "hi": 6, "positions": 0}
    assert run("embed", i32(0), *words, **attrs, types=0).tolist() == [[6, -8]]
    types = (i8([1, -2]), *one)  # the words' 7 is clamped first
    assert run("embed", i32(0), i32(0), *words, *types, **attrs, types=1).tolist() == [[6, -9]]


def test_embed_refuses_an_id_beyond_the_table():
    one = (np.array([2**30]), np.array([30]))
    with pytest.raises(RangeError, match="embed"):
        run("embed", i32(1), i32(0), i8([7]), *one, i8([-3]), *one, lo=-9, hi=9, types=0)


def test_matmul():
    x, w = i8([1, 2, 3], [-1, 0, 1]), i8([1, 0, -1], [2, 2, 2])
    # 1 - 3 + 10, 2 + 4 + 6 - 10; -1 - 1 + 10, -2 + 2 - 10
    assert run("matmul", x, w, i32(10, -10)).tolist() == [[8, 2], [8, -10]]


def test_matmul_is_exact_beyond_float32(rng):
    x = rng.integers(-128, 128, (3, 5000)).astype(np.int8)
    w = rng.integers(-128, 128, (4, 5000)).astype(np.int8)
    x[0], w[0] = -128, -128  # 81 920 000, beyond 2^24
    exact = x.astype(np.int64) @ w.astype(np.int64).T + 7
    assert (run("matmul", x, w, np.full(4, 7, np.int32)) == exact).all()


def test_matmul_refuses_to_wrap():
    x, w = np.full((1, 4), 127, np.int8), np.full((1, 4), 127, np.int8)
    assert run("matmul", x, w, i32(2**31 - 1 - 4 * 127**2))[0, 0] == 2**31 - 1
    with pytest.raises(RangeError, match="matmul"):
        run("matmul", x, w, i32(2**31 - 4 * 127**2))


def test_requantize_rounds_half_to_even_and_clamps():
    x = i32([-300, -5, -3, -1, 0, 1, 3, 5, 300]).T
    out = run("requantize", x, *HALF, lo=-127, hi=127, dtype="int8")
    assert out.ravel().tolist() == [-127, -2, -2, 0, 0, 0, 2, 2, 127]
    assert out.dtype == np.int8


def test_requantize_refuses_a_result_beyond_int32():
    four = (i32(2**30), i32(28))
    assert run("requantize", i32([2**29 - 1]), *four, lo=-9, hi=9, dtype="int8")[0, 0] == 9
    with pytest.raises(RangeError, match="requantize"):
        run("requantize", i32([2**29]), *four, lo=-9, hi=9, dtype="int8")


def test_a_ratio_too_small_and_a_zero_row_are_legal():
    """A weight row of zeros keeps its bias; a multiplier of 0 gives 0."""
    acc = run("matmul", i8([5, 5]), i8([0, 0], [1, 1]), i32(-77, 3))
    assert acc.tolist() == [[-77, 13]]
    mult, shift = make_dyadic(np.array([1e-20, 1.0]))
    assert run("requantize", acc, mult, shift, lo=-9, hi=99, dtype="int8").tolist() == [[0, 13]]


def test_requantize_every_int8_through_every_nearby_ratio():
    x = np.arange(-128, 128, dtype=np.int8)[:, None]
    for mult in (-(2**30) - 1, -(2**30), 2**30 - 1, 2**30, 2**30 + 1):
        for shift in (28, 30, 31, 33):
            out = run("requantize", x, i32(mult), i32(shift), lo=-(2**15), hi=2**15, dtype="int32")
            exact = [round(int(v) * mult / 2**shift) for v in x.ravel()]  # floats are exact
            assert out.ravel().tolist() == exact


QUARTER = (i32(2**30), i32(2))  # times 1/4: half an output step is 2 of x


def test_rescale_rounds_half_up_and_clamps():
    x = i32([-511, -509, -7, -6, -5, -3, -2, -1, 0, 1, 2, 5, 6, 7, 600]).T
    out = run("rescale", x, *QUARTER, lift=0, lo=-127, hi=127, dtype="int8")
    # -7/4 -> -2, -6/4 -> -1 (up), -5/4 -> -1, -3/4 -> -1, -2/4 -> 0 (up) ... 6/4 -> 2 (up)
    want = [-127, -127, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 2, 2, 127]
    assert out.ravel().tolist() == want and out.dtype == np.int8


def test_rescale_lifts_ratios_of_one_and_more():
    x = i32([-3, -1, 0, 1, 3]).T
    # times 3: 3 = mult 2^4 / 2^32; half a step of the output is 2.67 of x 2^4, so that 3 is added
    assert [t.tolist() for t in rescale.tables(np.array([3.0]), 4)] == [[3 * 2**28], [3]]
    out = run("rescale", x, i32(3 * 2**28), i32(3), lift=4, lo=-99, hi=99, dtype="int16")
    assert out.ravel().tolist() == [-9, -3, 0, 3, 9] and out.dtype == np.int16


def test_rescale_by_nothing_is_nothing():
    """Also 2^-32, half a step of which x cannot reach."""
    for ratio in (0.0, 1e-20, 2.0**-32):
        table = rescale.tables(np.array([ratio]), 0)
        assert [t.tolist() for t in table] == [[0], [0]]
        ends = i32([-(2**31), 2**31 - 1]).T
        out = run("rescale", ends, *table, lift=0, lo=-127, hi=127, dtype="int8")
        assert out.ravel().tolist() == [0, 0]


def test_rescale_refuses_to_wrap():
    lifted = {"lift": 4, "lo": -9, "hi": 9, "dtype": "int8"}
    assert run("rescale", i32([2**27 - 1]), i32(1), i32(15), **lifted)[0, 0] == 0
    with pytest.raises(RangeError, match="rescale"):
        run("rescale", i32([2**27 - 1]), i32(1), i32(16), **lifted)


def test_a_ratio_that_rounds_to_2_31_is_the_largest():
    mult, offset = rescale.tables(np.array([1 - 2.0**-53]), 1)
    assert mult.tolist() == [2**31 - 1] and offset.tolist() == [1]
    with pytest.raises(RangeError, match="far too small"):
        rescale.tables(np.array([1.001]), 1)


def test_requantize16():
    # 1/4 = 2^14 / 2^15 * 2^14 / 2^15; both roundings send halves up
    table = requantize16.tables(np.array([0.25]))
    assert [t.tolist() for t in table] == [[2**14], [2**14]]
    x = i16([-600, -6, -3, -2, -1, 0, 1, 2, 3, 5, 6, 600]).T
    # -3 -> -1.5 -> -1 -> -0.5 -> 0; 1 -> 0.5 -> 1 -> 0.5 -> 1
    want = [-127, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 127]
    assert run("requantize16", x, *table).ravel().tolist() == want


def test_requantize16_carries():
    """A fraction that rounds to 2^15 is 2^14 with one shift less; at 1/2 it stays 2^15 - 1."""
    below = 1 - 2.0**-18
    mult, down = requantize16.tables(np.array([below / 4, below / 2]))
    assert mult.tolist() == [2**14, 2**15 - 1] and down.tolist() == [2**14, 2**14]
    with pytest.raises(RangeError, match="not below"):
        requantize16.tables(np.array([0.5]))


def test_relu():
    assert run("relu", i32([-(2**31), -1, 0, 2**31 - 1])).tolist() == [[0, 0, 0, 2**31 - 1]]


def test_residual_add_every_int8_pair():
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    out = run("residual_add", a.astype(np.int32), b.astype(np.int8), *HALF, lo=-150, hi=150)
    assert (out == np.clip(a + np.rint(b / 2), -150, 150)).all()  # rint is half to even


def test_residual_add_refuses_to_wrap():
    with pytest.raises(RangeError, match="residual_add"):
        run("residual_add", i32([2**31 - 1]), i8([1]), *ONE, lo=-9, hi=9)


def test_add():
    assert run("add", i16([2**15 - 1, -(2**15), 5]), i16([2**15 - 1, -(2**15), -7])).tolist() == [
        [2**16 - 2, -(2**16), -2]
    ]


def test_take_rows():
    x = i8([1], [2], [3], [4])
    assert run("take_rows", x, i32(0, 1, 4), rows="sequence").ravel().tolist() == [1, 2]
    last = run("take_rows", x, i32(0, 1, 4), rows="sequence", last=True)
    assert last.ravel().tolist() == [1, 4]
    assert run("take_rows", x, i32(3, 0, 3), rows="position").ravel().tolist() == [4, 1, 4]


def test_mean_pool():
    x = np.array([[100], [1], [2], [-7], [-8], [-8]], np.int16)
    # 100; 3 / 2; -23 / 3 = -7.667, all times 256
    out = run("mean_pool", x, i32(0, 1, 3, 6), fraction_bits=8)
    assert out.ravel().tolist() == [25600, 384, -1963]


def test_weighted_pool():
    x = np.array([[100], [1], [2], [-7], [-8], [-8]], np.int16)
    table = weighted_pool.divisors(weighted_pool.WEIGHTED_MEAN, 3)
    assert table.tolist() == [1, 1, 3, 6]
    # 100; (1 + 2 2) / 3; -(7 + 2 8 + 3 8) / 6 = -47 / 6, all times 256: -2005.33
    out = run("weighted_pool", x, i32(0, 1, 3, 6), table, shift=8, rising=True)
    assert out.ravel().tolist() == [25600, 427, -2005]
    table = weighted_pool.divisors(weighted_pool.MEAN_SQRT, 4)
    # 2^24 times 1, 1.4142135624, 1.7320508076, 2
    assert table.tolist() == [1, 2**24, 23726566, 29058991, 2**25]
    # 100; 3 / 1.4142 = 2.1213; -23 / 1.73205 = -13.2791, all times 2^8: 543.06, -3399.44
    out = run("weighted_pool", x, i32(0, 1, 3, 6), table, shift=32, rising=False)
    assert out.ravel().tolist() == [25600, 543, -3399]


def test_concat():
    out = run("concat", i8([1, 2], [3, 4]), i8([5], [6]), border=2)
    assert out.dtype == np.int8 and out.tolist() == [[1, 2, 5], [3, 4, 6]]
    with pytest.raises(RangeError, match="border of 1"):
        run("concat", i8([1, 2]), i8([5]), border=1)


def test_max_pool():
    for dtype in (np.int16, np.int32):
        x = np.array([[100, -3], [1, 2], [2, 1], [-7, 0], [-9, -9], [-8, -1]], dtype)
        out = run("max_pool", x, i32(0, 1, 3, 6))
        assert out.dtype == dtype and out.tolist() == [[100, -3], [2, 2], [-7, 0]]


def test_mean_pool_ties_go_to_even():
    # sum * 256 / 512 = sum / 2
    for total, mean in ((1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2)):
        x = np.zeros((512, 1), np.int16)
        x[0] = total
        assert run("mean_pool", x, i32(0, 512), fraction_bits=8)[0, 0] == mean


@pytest.mark.parametrize("k", range(9, 14))
def test_gelu_on_paper(k):
    # 0 and everything past 3.5: x and 0; gelu(1) = 0.8413, gelu(-1) = -0.1587 within 1.8e-3
    top = min(4 << k, i_gelu.LIMIT)
    x = i16([0, top, -top, 1 << k, -1 << k])
    for form in ("erf", "tanh"):
        out = run("i_gelu", x, i_gelu.point(k), form=form)[0]
        assert out.dtype == np.int16
        assert out[0] == 0 and abs(out[1] - top) <= 8 and abs(out[2]) <= 8
        assert abs(out[3] / 2**k - 0.8413) < 1.8e-3 and abs(out[4] / 2**k + 0.1587) < 1.8e-3


def test_gelu_takes_as_many_fraction_bits_as_fit():
    tops = [0.0, 3.99, 4.0, 8.0, 31.99, 32.0, 63.9, 1e9]
    assert [i_gelu.fraction_bits(top, "erf") for top in tops] == [13, 13, 12, 11, 10, 9, 9, 9]
    assert [i_gelu.fraction_bits(top, "silu") for top in tops] == [12, 12, 12, 11, 10, 9, 9, 9]
    assert i_gelu.scale(4.7, "quick_gelu") == (12, 2.0**-12 / 1.702)  # 4.7 * 1.702 = 7.9994


def test_silu_on_paper():
    """8 sigmoid(8) = 7.9973, held from 7.94 on; -8 sigmoid(-8) = -0.0027; sigmoid(0) = 1 / 2."""
    one = 2**11
    x = i16([8 * one], [-8 * one], [one], [-one], [0])
    y = run("i_gelu", x, i_gelu.point(11, "silu"), form="silu").ravel() / one
    np.testing.assert_allclose(y, [7.9973, -0.0027, 0.7311, -0.2689, 0], atol=1.6e-3)


def test_a_gate_on_paper():
    """silu(8) = 7.9973 and silu(0) = 0 of the first half, times 3 and -3, at a scale of 1 / 4."""
    one, unit = 2**11, 2**8
    x = i16([8 * one, 0, 3 * unit, -3 * unit], [8 * one, 8 * one, -3 * unit, 99 * unit])
    tables = gate.tables(np.full(2, 4 / (one * unit)))
    about = {"form": "silu", "active": 0}
    out = run("gate", x, i_gelu.point(11, "silu"), *tables, **about)
    assert out.dtype == np.int8 and out.tolist() == [[96, 0], [-96, 127]]  # 95.97
    swapped = np.concatenate([x[:, 2:], x[:, :2]], 1)
    other = run("gate", swapped, i_gelu.point(11, "silu"), *tables, form="silu", active=1)
    assert other.tolist() == out.tolist()


def test_a_gate_refuses_a_result_too_fine_for_its_product():
    with pytest.raises(RangeError, match=r"0\.6, above 0\.5"):
        gate.tables(np.array([0.1, 0.6]))


def test_rotary_on_paper():
    """Two heads of one pair; a quarter turn: (x1, x2) becomes (-x2, x1); values pass by."""
    quarter, none = np.pi / 2, 0.0
    tables = rotary.tables(*(f(np.array([[none], [quarter]])) for f in (np.cos, np.sin)))
    assert [t.ravel().tolist() for t in tables] == [[32767, 0], [0, 32767]]
    unit = 2**rotary.FRACTION_BITS
    queries, keys = [5 * unit, -3 * unit, 100 * unit, 64], [0, unit, -unit, 200 * unit]
    x = i16(queries + keys + [1, -2, 300, -300])
    x = np.concatenate([x, x])
    out = run("rotary", x, i32(0, 1), *tables, heads=2, head_dim=2)
    assert out.dtype == np.int8
    values = [1, -2, 127, -127]
    assert out[0].tolist() == [5, -3, 100, 0, 0, 1, -1, 127, *values]  # 64 / 128 at 32767 / 32768
    assert out[1].tolist() == [3, 5, 0, 100, -1, 0, -127, -1, *values]


def test_rotary_refuses_positions_and_tables_that_do_not_fit():
    x, table = i16([0] * 6), i16([1], [2])
    with pytest.raises(RangeError, match=r"position 2\.\.2 outside 0\.\.1"):
        run("rotary", x, i32(2), table, table, heads=1, head_dim=2)
    with pytest.raises(RangeError, match="for heads of 4"):
        run("rotary", i16([0] * 12), i32(0), table, table, heads=1, head_dim=4)


def test_gelu_refuses_the_one_number_without_a_negative_and_a_wrong_point():
    with pytest.raises(RangeError, match="i_gelu"):
        run("i_gelu", i16([-(2**15)]), i_gelu.point(12), form="erf")
    with pytest.raises(RangeError, match="of no k"):
        run("i_gelu", i16([0]), i16(14336, 8), form="erf")


def test_tanh_is_odd_and_legal_everywhere():
    x = np.concatenate([np.arange(2**15), 2**31 - 1 - np.arange(3)]).astype(np.int32)[None]
    assert (run("i_tanh", -x) == -run("i_tanh", x)).all()
    assert run("i_tanh", i32([0, -(2**31), 2**31 - 1])).tolist() == [[0, -32762, 32762]]


def test_add_bias():
    assert run("add_bias", i32([1, 2]), i32(10, -10)).tolist() == [[11, -8]]
    with pytest.raises(RangeError, match="add_bias"):
        run("add_bias", i32([2**31 - 1]), i32(1))


def test_layernorm_on_paper():
    # x = -1, 1 (times 1000): mean 0, std 1000, y = -1, 1; gamma 2, beta 0.5, scale 1/8
    gamma, beta = np.array([2.0, 2.0]), np.array([0.5, 0.5])
    table = i_layernorm.tables(0.001, gamma, beta, 1e-12, 1 / 8, 1 / 1024)
    out8, out16 = run("i_layernorm", i32([-1000, 1000]), *table.values())
    assert out8.tolist() == [[-12, 20]] and out16.tolist() == [[-1536, 2560]]


def test_stream_norm_on_paper():
    """LayerNorm of -1, 1 is itself; RMSNorm of 3, 4, 0, 0 divides by 2.5; far above 2^17 too."""
    for size in (1000, 2**24 // 4):
        table = i_stream_norm.tables(1 / size, np.full(2, 2.0), np.full(2, 0.5), 1e-12, 1 / 8)
        args = i32([-size, size]), *table.values()
        out = run("i_stream_norm", *args, rms=False, dtype="int8")
        assert out.tolist() == [[-12, 20]]
        table = i_stream_norm.tables(1 / size, np.full(4, 2.5), np.zeros(4), 1e-12, 1 / 16)
        args = i32([3 * size, 4 * size, 0, 0]), *table.values()
        out = run("i_stream_norm", *args, rms=True, dtype="int16")
        assert out.tolist() == [[48, 64, 0, 0]]


def test_stream_norm_divides_eps_by_what_a_row_lost():
    """A variance of 1 and an eps of 3: half of the row."""
    for size in (2**10, 2**17, 2**20):
        table = i_stream_norm.tables(1 / size, np.ones(2), np.zeros(2), 3.0, 1 / 64)
        out = run("i_stream_norm", i32([-size, size]), *table.values(), rms=False, dtype="int8")
        assert out.tolist() == [[-32, 32]]


def test_attention_on_paper():
    """Two keys, one 1 / 2 as likely as the other: (2 * 90 + 30) / 3 = 70; one head, one channel."""
    table = attention.tables(1.0, np.log(2) / 4, 1.0, 1, np.ones(1))
    qkv = i8([1, 4, 90], [1, 0, 30])  # q, k, v: scores 4 and 0 in units of ln 2 / 4
    out = run("attention", qkv, i32(0, 2), *table.values(), heads=1, head_dim=1)
    assert out.ravel().tolist() == [70, 70]


def test_attention_through_a_window_on_paper():
    """The third key, whose score is far above the others', is for tokens 1 and 2 alone."""
    table = attention.tables(1.0, np.log(2) / 4, 1.0, 1, np.ones(1))
    qkv = i8([1, 4, 90], [1, 0, 30], [1, 127, -7], [1, 127, 0])
    shape = {"heads": 1, "head_dim": 1}
    out = run("attention", qkv, i32(0, 3, 4), *table.values(), window=1, **shape)
    assert out.ravel().tolist() == [70, -7, -7, 0]
    out = run("attention", qkv, i32(0, 3, 4), *table.values(), window=0, **shape)
    assert out.ravel().tolist() == [90, 30, -7, 0]
    assert OPS["attention"].work({**shape, "window": 1}, 4, np.array([3, 1]), {}) == 2 * (7 + 1)
    assert OPS["attention"].work(shape, 4, np.array([3, 1]), {}) == 2 * (9 + 1)


def test_attention_over_more_keys_than_an_accumulator_holds():
    """Equal scores: the mean of the values, which is 85."""
    table = attention.tables(0.1, 0.1, 1.0, 1, np.ones(1))
    v = np.resize(np.array([127, 127, 1]), 6000)
    qkv = np.stack([0 * v, 0 * v, v], 1).astype(np.int8)
    u = attention.mean_of_values(np.full((1, 6000), attention.TOP), v[:, None].astype(float), 1)
    assert abs(int(u[0, 0]) - 85 * 2**16) <= 1
    out = run("attention", qkv[:5001], i32(0, 5001), *table.values(), heads=1, head_dim=1)
    assert set(out.ravel().tolist()) == {85}


def test_attention_bias_on_paper():
    """Equal scores: the bias alone makes each token's own key twice as likely as the other."""
    table = attention.tables(1.0, np.log(2) / 4, 1.0, 1, np.ones(1))
    bias = attention_bias.table(np.array([[0.0, np.log(2), 0.0]]), 1.0, np.log(2) / 4, 1)
    assert bias.tolist() == [[0, 4, 0]]  # of distances -1, 0 and 1, in units of ln 2 / 4
    qkv = i8([0, 1, 90], [0, 1, 30])
    args = qkv, i32(0, 2), *table.values()
    out = run("attention_bias", *args, bias, heads=1, head_dim=1)
    assert out.ravel().tolist() == [70, 50]
    before = attention_bias.table(np.array([[0.0, 0.0, np.log(2)]]), 1.0, np.log(2) / 4, 1)
    out = run("attention_bias", *args, before, heads=1, head_dim=1)
    assert out.ravel().tolist() == [50, 60]  # token 0 prefers the key after it, token 1 has none


def test_attention_relative_on_paper():
    """Both products of a distance; q is (2, 0) at token 0, k is (0, 3) at token 1, all else 0.

    From the key of distance 1 query 0 has 2 * 1, from its query key 1 has 3 * 2. So the scores of
    query 0 are 0 and 8 in units of ln 2 / 8, and key 1 is twice as likely; those of query 1 are 0.
    """
    table = attention.tables(1.0, np.log(2) / 8 * 2**0.5, 1.0, 2, np.ones(2))
    qkv = i8([2, 0, 0, 0, 90, 3], [0, 0, 0, 3, 30, 3])
    keys = i8([0, 9], [0, 9], [1, 9])  # distances -1, 0 and 1, key less query
    queries = i8([7, 0], [7, 0], [7, 2])
    args = qkv, i32(0, 2), *table.values()
    out = run("attention_relative", *args, keys, queries, heads=1, head_dim=2)
    assert out.tolist() == [[50, 3], [60, 3]]
    out = run("attention_relative", *args, keys[::-1], queries[::-1], heads=1, head_dim=2)
    assert out.tolist() == [[60, 3], [60, 3]]


def test_distances_are_at_the_scale_of_their_channel_and_never_clipped():
    rows = np.array([[1.0, -0.5], [0.26, 127.0]])
    assert attention_relative.table(rows, np.array([0.5, 1.0])).tolist() == [[2, 0], [1, 127]]
    with pytest.raises(RangeError, match="128 steps"):
        attention_relative.table(rows, np.array([1 / 128, 1.0]))


def test_attention_bias_is_at_the_scale_of_the_scores():
    """After 1 / sqrt(head_dim): one LSB of q . k is 0.5 * 0.25 / 4 with 16 channels."""
    bias = attention_bias.table(np.array([[1.0, -0.5, 0.016]]), 0.5, 0.25, 16)
    assert bias.tolist() == [[32, -16, 1]]
    with pytest.raises(RangeError, match="steps of the scores"):
        attention_bias.table(np.array([[1.0]]), 1e-6, 1e-6, 16)
