"""Whole numbers of 2 to 8 bits: beside a plain calculation, and beside bitsandbytes. Laws: test_quant_laws.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_cases import normal, oracle, weights

from llmflation.errors import BadInputError
from llmflation.quant import integer
from llmflation.quant.integer import quantize


@settings(max_examples=60, deadline=None)
@given(w=weights(least=2**-6), bits=st.integers(2, 8), symmetric=st.booleans(), size=st.sampled_from([None, 16, 32]))
def test_it_equals_a_plain_calculation(w, bits, symmetric, size):
    """One group after the other in NumPy, from the definition: largest magnitude or range, divide, round, multiply."""
    q = quantize(w, bits, size, symmetric=symmetric)
    for made, group in zip(q.dequantize().view(-1, q.group_size).numpy(), w.view(-1, q.group_size).numpy()):
        if symmetric:
            step, shift = abs(group).max() / np.float32(2 ** (bits - 1) - 1), np.float32(0)
        else:
            low, high = min(group.min(), 0), max(group.max(), 0)
            step = np.float32((float(high) - float(low)) / (2**bits - 1))
            shift = np.round(-low / step) if step else np.float32(0)
        top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        codes = (np.round(group / step) + shift).clip(-top if symmetric else 0, top) if step else np.zeros_like(group)
        assert (made == (codes - shift) * step).all()


def test_eight_bits_a_row_equal_bitsandbytes():
    """Its step is the same, but it multiplies before it divides: a value in the middle may go the other way."""
    theirs = oracle("bitsandbytes.functional").int8_vectorwise_quant
    w = torch.cat((normal(64, 512), torch.zeros(1, 512), normal(3, 512, scale=1e-3)))
    codes, most, _ = theirs(w)
    ours = quantize(w, 8)
    assert torch.equal(ours.scales, most[:, None] / 127)
    differ = ours.unpacked().int() - 128 != codes.int()
    middle = ((w / ours.scales.clamp(min=1e-30)) % 1 - 0.5).abs() < 1e-4
    assert not (differ & ~middle).any() and differ.float().mean() < 1e-3


def test_a_row_by_hand():
    q = quantize(torch.tensor([[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 2.0]]), 2, symmetric=False)
    assert q.unpacked().tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]] and q.zeros.tolist() == [[0], [1]]
    assert q.codes.tolist() == [[0b11100100], [0b11100100]] and q.bits_per_weight == 2 + (32 + 8) / 4
    q = quantize(torch.tensor([[-7.0, 3.4, 7.0, 0.6]]), 4)
    assert q.unpacked().tolist() == [[1, 11, 15, 9]] and q.dequantize().tolist() == [[-7, 3, 7, 1]]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("values", [(3.0, 9.0), (-9.0, -3.0), (5.0, 5.0), (-5.0, -5.0), (0.0, 4.0)])
def test_zero_is_a_code_and_a_constant_comes_back(bits, values):
    """Q21, Q22: the range always has 0 in it, so that a weight of 0 stays 0 and no range is empty."""
    w = torch.linspace(*values, 64)[None]
    q = quantize(w, bits, symmetric=False)
    assert 0 <= int(q.zeros) < 2**bits and ((q.dequantize() - w).abs() <= q.scales / 2 * (1 + 5e-5)).all()
    if values[0] == values[1]:
        assert torch.allclose(q.dequantize(), w, rtol=1e-6)


@pytest.mark.parametrize(("columns", "bits"), [(1, 4), (3, 4), (5, 3), (7, 2), (31, 5), (33, 6)])
def test_odd_numbers_of_columns(columns, bits):
    """Q18: the last byte of a row is filled up, and the filling is no weight."""
    w = normal(3, columns)
    q = quantize(w, bits)
    assert q.unpacked().shape == q.dequantize().shape == (3, columns) and q.codes.shape[1] == -(-columns * bits // 8)


def test_one_scale_for_all_a_row_or_a_group():
    w = normal(4, 64)
    shapes = {"tensor": (1, 1), "row": (4, 1), "group": (4, 4)}
    made = {"tensor": quantize(w, 4, per_tensor=True), "row": quantize(w, 4), "group": quantize(w, 4, 16)}
    assert {name: q.scales.shape for name, q in made.items()} == shapes
    assert made["tensor"].scales == w.abs().max() / 7
    assert torch.equal(made["group"].scales, w.view(4, 4, 16).abs().amax(-1) / 7)
    assert made["row"].bits_per_weight == 4 + 32 / 64 and made["group"].bits_per_weight == 4 + 32 / 16
    half = quantize(w, 4, 16, symmetric=False, scale_dtype=torch.float16)
    assert half.bits_per_weight == 4 + (16 + 8) / 16


def test_one_outlier_costs_a_row_its_small_weights_and_a_group_only_its_own():
    w = normal(1, 64)
    w[0, 3] = 100
    row, group = (quantize(w, 4, size).dequantize()[0, 16:] for size in (None, 16))
    assert (row == 0).all() and (group - w[0, 16:]).abs().max() < 0.3


def test_clipping_gives_up_an_outlier_for_the_rest():
    w = normal(1, 256)
    w[0, 3] = 6
    plain, clipped = quantize(w, 3), quantize(w, 3, clip="mse")
    assert clipped.scales < 0.8 * plain.scales and clipped.dequantize()[0, 3] < 5
    errors = [float((q.dequantize() - w).square().mean()) for q in (plain, clipped)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_codes_are_chosen_for_the_scale_that_is_kept(scale_dtype):
    w = normal(8, 256)
    q = quantize(w, 8, 32, scale_dtype=scale_dtype)
    assert q.scales.dtype == scale_dtype
    assert ((q.dequantize() - w).abs() <= q.scales.float().repeat_interleave(32, 1) * 0.5001).all()


def test_a_step_below_the_normal_numbers_is_rounded_up():
    """Rounded down, it would cut off the largest weight: 180 times the smallest float, over 127, is 1.4 of them."""
    for w, dtype in ((torch.tensor([[180 * 2.0**-149]]), torch.float32), (torch.tensor([[1.1e-5]]), torch.float16)):
        q = quantize(w, 8, scale_dtype=dtype)
        assert abs(q.dequantize() - w) <= q.scales.float() / 2 and q.scales > 0


@pytest.mark.parametrize("bits", [0, 1, 9, -4, 3.0, None, True, "4"])
def test_bits_that_there_are_not(bits):
    with pytest.raises(BadInputError, match=f"^bits is {bits!r}; allowed: a whole number from 2 to 8"):
        quantize(normal(), bits)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "32"])
def test_group_sizes_that_there_are_not(size):
    with pytest.raises(BadInputError, match=f"^group_size is {size!r}; allowed: a whole number of 1 or more, or None"):
        quantize(normal(), 4, size)


def test_a_group_that_does_not_divide_names_those_that_do():
    with pytest.raises(BadInputError, match=r"groups of 32 do not .* the 100 columns of up \(3, 100\); .*25 and 50"):
        quantize(normal(3, 100), 4, 32, name="up")


@pytest.mark.parametrize(("choice", "says"), [
    ({"clip": "max"}, "clip is 'max'; allowed: None or 'mse'"),
    ({"scale_dtype": torch.int8}, r"scale_dtype is torch.int8; allowed: torch.float32, torch.float16"),
    ({"scale_dtype": torch.float8_e4m3fn}, "scale_dtype is torch.float8_e4m3fn; allowed"),  # would saturate
    ({"scale_dtype": "float16"}, "scale_dtype is 'float16'; allowed"),
    ({"group_size": 32, "per_tensor": True}, "group_size is 32; allowed: None where the whole tensor has one scale"),
])
def test_choices_that_there_are_not(choice, says):
    with pytest.raises(BadInputError, match=says):
        quantize(normal(), 4, **choice)


def test_what_leaves_its_format_is_refused():
    with pytest.raises(BadInputError, match=r"scale_dtype is torch.float16; allowed: .* steps of up, .* up to 1e\+06"):
        quantize(torch.tensor([[1e6, 1.0]]), 4, scale_dtype=torch.float16, name="up")
    with pytest.raises(BadInputError, match=r"^up's largest magnitude is 3e\+38|^up's largest magnitude is 3\.0000"):
        quantize(torch.tensor([[-3e38, 3e38]]), 2, symmetric=False, name="up")
    assert quantize(torch.tensor([[-3e38, 3e38]]), 2).dequantize().isfinite().all()


@pytest.mark.parametrize("how", [{}, {"group_size": 8}, {"symmetric": False}, {"clip": "mse", "group_size": 4}])
def test_a_large_weight_is_rounded_in_parts_and_comes_out_the_same(how, monkeypatch):
    w = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    whole = integer.quantize(w, 4, **how)
    monkeypatch.setattr(integer, "ROWS", 3)
    parts = integer.quantize(w, 4, **how)
    assert torch.equal(parts.codes, whole.codes) and torch.equal(parts.scales, whole.scales)
    assert parts.zeros is whole.zeros is None or torch.equal(parts.zeros, whole.zeros)
    assert parts.shape == whole.shape == (10, 16)
    together = integer.quantize(w, 4, per_tensor=True)  # has one scale for all and is never cut
    assert together.scales.shape == (1, 1)
    w[7, 3] = torch.nan
    with pytest.raises(BadInputError, match=r"first at \(7, 3\)"):
        integer.quantize(w, 4, **how)


def test_what_float32_cannot_hold_is_told_from_infinity():
    with pytest.raises(BadInputError, match=r"0 NaN and 0 infinite values and 64 that float32 cannot hold.*\(0, 0\)"):
        quantize(torch.full((2, 32), 1e300, dtype=torch.float64), 8)
