"""Laws that every number format keeps, and for each law a fault that it finds."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_cases import FORMATS, every_format, formats, normal, weights

from llmflation.errors import BadInputError
from llmflation.quant import floats, integer, tensor
from llmflation.quant.tensor import QuantizedTensor, dequantize

some = settings(max_examples=15, deadline=None)
SLACK = 2.5e-5  # of a step: half a step times 5e-5, for the rounding of a quotient in float32


def values(q: QuantizedTensor) -> torch.Tensor:
    """What the codes stand for before scaling, (N, G, S) float64."""
    value = q.levels.double()[q.unpacked().int()].view(q.shape[0], q.scales.shape[1], -1)
    return value if q.zeros is None else value - q.zeros[..., None].double()


def divided_by(q: QuantizedTensor, w: torch.Tensor) -> torch.Tensor:
    """The step by which each group was divided, (1 or N, G, 1) float64; GGUF keeps no more than its float16."""
    groups = w.view(q.shape[0], q.scales.shape[1], -1)
    if q.format == "q8_0":
        return (groups.abs().amax(-1, keepdim=True) / 127).double()
    if q.format == "q4_0":
        return (groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8).double()
    return q.scales.double()[..., None] if q.scales.dtype.itemsize > 1 else q.scales.float().double()[..., None]


def law_of_the_nearest(make, w, clips=False, least=0.0):
    """Each code is that of the nearest level: half the gap between two levels off at most, if it is not cut off."""
    q = make(w)
    step, value = divided_by(q, w), values(q)
    exact = (w.double().view(value.shape) / torch.where(step == 0, 1, step))
    there = (step != 0) & (w.view(value.shape).abs().amax(-1, keepdim=True) >= least)
    levels = q.levels[1:] if q.zeros is None and q.format.startswith("int") else q.levels  # int's code 0 is never taken
    levels = levels[levels.isfinite()].double().sort().values
    zero = 0 if q.zeros is None else q.zeros.double()[..., None]
    upper = torch.searchsorted(levels, exact + zero).clamp(1, len(levels) - 1)
    above, below = levels[upper] - zero, levels[upper - 1] - zero
    nearest = torch.minimum((above - exact).abs(), (below - exact).abs())
    error, gap = (value - exact).abs(), above - below
    assert (error <= nearest + 2 * SLACK * gap)[there.expand_as(error)].all()
    inside = (exact >= below) & (exact <= above)
    assert (error <= gap / 2 + SLACK * gap)[(inside | (not clips)) & there].all()
    assert (q.dequantize().view(value.shape) == 0)[(step == 0).expand_as(error)].all()


def law_of_dequantizing(make, w):
    """A weight is its level, less the zero, times the scale in float32; any choice of rows is those rows of all."""
    q = make(w)
    whole = q.dequantize()
    assert torch.equal(whole, (values(q).float() * q.scales.float()[..., None]).flatten(1))
    assert torch.equal(whole, dequantize(q)) and whole.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(q.dequantize(dtype), whole.to(dtype))
    n = len(w)
    for rows in (slice(0, 0), slice(1, None, 2), torch.tensor([n - 1, 0, n - 1]), torch.arange(n) % 2 == 0):
        assert torch.equal(q.dequantize(rows=rows), whole[rows])


def law_of_repetition(make, w):
    once = make(w)
    again = make(once.dequantize())
    assert torch.equal(once.codes, again.codes) and torch.equal(once.scales.float(), again.scales.float())


def law_of_rows(make, w, order):
    """What happens to a row does not depend on its neighbours."""
    assert torch.equal(make(w[order]).dequantize(), make(w).dequantize()[order])
    if len(make(w).scales) > 1:
        assert torch.equal(make(w[:1]).dequantize(), make(w).dequantize()[:1])


def law_of_signs(make, w):
    assert torch.equal(make(-w).dequantize(), -make(w).dequantize())


def law_of_scaling(make, w, power):
    one, other = make(w), make(w * 2.0**power)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.dequantize() * 2.0**power, other.dequantize())


def law_of_bytes(make, w):
    """Bits per weight are the bytes that lie in memory."""
    q = make(w)
    held = [t.untyped_storage().nbytes() for t in (q.codes, q.scales, q.zeros) if t is not None]
    assert q.nbytes == sum(held) and q.bits_per_weight == 8 * sum(held) / w.numel()


def law_of_the_untouched(make, w):
    before, place = w.clone(), w.data_ptr()
    q = make(w)
    q.dequantize().zero_()
    q.scales.view(torch.uint8).zero_()
    assert torch.equal(w.view(torch.int32), before.view(torch.int32)) and w.data_ptr() == place


def mean_error(make, seeds=range(20)) -> float:
    return sum(float((make(w).dequantize() - w).square().mean() ** 0.5)
               for w in (normal(4, 128, seed) for seed in seeds)) / len(seeds)


def law_of_more_bits(make):
    errors = [mean_error(lambda w, b=bits: make(w, bits=b)) for bits in range(2, 9)]
    assert all(later < 0.6 * earlier for earlier, later in zip(errors, errors[1:]))  # nearly halved by each bit


def law_of_smaller_groups(make):
    errors = [mean_error(lambda w, s=size: make(w, group_size=s)) for size in (None, 64, 32, 16, 8)]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:]))


@every_format
@some
@given(data=st.data())
def test_codes_are_the_nearest_and_errors_half_a_step_at_most(name, data):
    f = FORMATS[name]
    law_of_the_nearest(f.make, data.draw(weights(most=min(f.most, 1e30))), f.clips, f.least)


@every_format
@some
@given(data=st.data())
def test_dequantizing_is_one_formula_for_all_rows_or_some(name, data):
    f = FORMATS[name]
    law_of_dequantizing(f.make, data.draw(weights(most=min(f.most, 6e4))))  # what float16 holds, too


@formats(repeats=True)
@some
@given(data=st.data())
def test_what_was_dequantized_quantizes_to_itself(name, data):
    law_of_repetition(FORMATS[name].make, data.draw(weights(least=2**-6)))


@formats(repeats=False)
@pytest.mark.parametrize("seed", range(10))
def test_with_a_zero_point_it_does_so_up_to_the_rounding_of_the_step(name, seed):
    """The step comes from a range whose two ends were rounded apart. (And not where a value lies between two codes.)"""
    once = FORMATS[name].make(normal(seed=seed))
    again = FORMATS[name].make(once.dequantize())
    if "clipped" not in name:
        assert torch.equal(once.codes, again.codes)
    assert torch.allclose(once.dequantize(), again.dequantize(), rtol=1e-6, atol=0)


@every_format
@some
@given(data=st.data())
def test_rows_stand_alone(name, data):
    w = data.draw(weights(most=min(FORMATS[name].most, 1e30)))
    law_of_rows(FORMATS[name].make, w, torch.tensor(data.draw(st.permutations(range(len(w))))))


@formats(mirrored=True)
@some
@given(data=st.data())
def test_the_negative_of_a_weight_gives_the_negative(name, data):
    law_of_signs(FORMATS[name].make, data.draw(weights(most=min(FORMATS[name].most, 1e30))))


@formats(scaled=True)
@some
@given(data=st.data())
def test_a_power_of_two_goes_into_the_scale(name, data):
    law_of_scaling(FORMATS[name].make, data.draw(weights(least=2**-6)), data.draw(st.integers(-3, 3)))


@every_format
@some
@given(w=weights())
def test_bits_per_weight_are_the_bytes_held(name, w):
    law_of_bytes(FORMATS[name].make, w)


@every_format
def test_the_weight_stays_as_it_was(name):
    for w in (normal(), normal(2, 128), torch.zeros(1, 64)):
        law_of_the_untouched(FORMATS[name].make, w)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_bits_and_smaller_groups_err_less(symmetric):
    law_of_more_bits(lambda w, bits: integer.quantize(w, bits, symmetric=symmetric))
    for bits in (2, 4, 8):
        law_of_smaller_groups(lambda w, group_size, b=bits: integer.quantize(w, b, group_size, symmetric=symmetric))
    law_of_smaller_groups(floats.nf4)


@pytest.mark.parametrize("symmetric", [True, False])
@some
@given(w=weights(), bits=st.integers(2, 8))
def test_clipping_errs_no_more_in_any_group(symmetric, w, bits):
    def errors(clip):
        q = integer.quantize(w, bits, 32, symmetric=symmetric, clip=clip)
        return (q.dequantize() - w).square().view(-1, 32).sum(-1)

    assert (errors("mse") <= errors(None) * (1 + 1e-5)).all()


# A law that cannot fail says nothing: each of these faults is found by the law it stands beside.

def shared_scale(format, codes, levels, scales, zeros, shape, bits):
    return tensor.assemble(format, codes, levels, scales[:1].expand_as(scales), zeros, shape, bits)


def floor_codes(groups, scale, zero, bits):
    half = 2 ** (bits - 1)
    return ((groups / scale.float()).floor().clamp(1 - half, half - 1) + half).to(torch.uint8)


def steps_of_7_5(low, high, bits, symmetric, dtype):
    return high / (2 ** (bits - 1) - 0.5), None


def steps_with_a_floor(low, high, bits, symmetric, dtype):
    return high / (2 ** (bits - 1) - 1) + 1e-3, None


def range_of_the_positive(groups, symmetric):
    high = groups.amax(-1, keepdim=True)
    return -high, high


def every_row_by_the_first_scale(self, dtype=torch.float32, rows=slice(None)):
    return (values(self).float()[rows] * self.scales[:1].float()[..., None]).flatten(1).to(dtype)


def int4(w, bits=4, group_size=None):
    return integer.quantize(w, bits, group_size)


def test_a_floor_in_place_of_rounding_is_found(monkeypatch):
    monkeypatch.setattr(integer, "round_to", floor_codes)
    with pytest.raises(AssertionError):
        law_of_the_nearest(int4, normal())


def test_a_small_float_that_is_cut_and_not_rounded_is_found(monkeypatch):
    monkeypatch.setattr(floats, "to_minifloat", lambda x, *how, to=floats.to_minifloat: to(x * 0.97, *how))
    for make in (floats.fp8, floats.mxfp4):
        with pytest.raises(AssertionError):
            law_of_the_nearest(make, normal(), clips=True)


def test_a_step_of_half_a_code_more_is_found(monkeypatch):
    """Other libraries' step (7.5 for 4 bits), with which a weight moves when it is quantized again."""
    monkeypatch.setattr(integer, "_steps", steps_of_7_5)
    with pytest.raises(AssertionError):
        law_of_repetition(int4, normal(64, 256))


def test_a_scale_shared_by_all_rows_is_found(monkeypatch):
    monkeypatch.setattr(integer, "assemble", shared_scale)
    with pytest.raises(AssertionError):
        law_of_rows(int4, normal(), torch.tensor([2, 0, 1]))


def test_a_range_that_forgets_one_side_is_found(monkeypatch):
    monkeypatch.setattr(integer, "_range", range_of_the_positive)
    with pytest.raises(AssertionError):
        law_of_signs(int4, normal())


def test_a_constant_in_the_step_is_found(monkeypatch):
    monkeypatch.setattr(integer, "_steps", steps_with_a_floor)
    with pytest.raises(AssertionError):
        law_of_scaling(int4, normal(), 3)


def test_scales_that_are_not_counted_are_found(monkeypatch):
    monkeypatch.setattr(QuantizedTensor, "nbytes", property(lambda self: self.codes.nbytes))
    with pytest.raises(AssertionError):
        law_of_bytes(int4, normal())


def test_rows_with_another_rows_scale_are_found(monkeypatch):
    monkeypatch.setattr(QuantizedTensor, "dequantize", every_row_by_the_first_scale)
    with pytest.raises(AssertionError):
        law_of_dequantizing(int4, normal())


def test_a_weight_that_is_changed_is_found(monkeypatch):
    monkeypatch.setattr(integer, "checked_weight", lambda w, name: w.mul_(2))
    with pytest.raises(AssertionError):
        law_of_the_untouched(int4, normal())


def test_bits_and_groups_that_do_nothing_are_found():
    with pytest.raises(AssertionError):
        law_of_more_bits(lambda w, bits: int4(w))
    with pytest.raises(AssertionError):
        law_of_smaller_groups(lambda w, group_size: int4(w))


# Bad input, and odd input: the same for every format.

@every_format
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_and_counted(name, bad):
    w = normal()
    w[0, 17] = w[2, 3] = bad
    count = "2 NaN and 0 infinite" if bad != bad else "0 NaN and 2 infinite"
    with pytest.raises(BadInputError, match=rf"^blocks\.0\.qkv has {count} values, the first at \(0, 17\)"):
        FORMATS[name].make(w, name="blocks.0.qkv")


@every_format
@pytest.mark.parametrize("shape", [(), (64,), (1, 2, 3, 64), (0, 64), (3, 0)])
def test_what_is_no_matrix_is_refused(name, shape):
    with pytest.raises(BadInputError, match=f"^weight's shape is {re_shape(shape)}; allowed: .rows, columns"):
        FORMATS[name].make(torch.zeros(shape))


def re_shape(shape: tuple) -> str:
    return str(shape).replace("(", r"\(").replace(")", r"\)")


@every_format
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, None])
def test_what_is_not_of_floats_is_refused(name, dtype):
    w = [[0.0] * 64] if dtype is None else torch.ones(1, 64).to(dtype)
    with pytest.raises(BadInputError, match=rf"^weight is '{dtype or 'list'}'; allowed: a tensor of floats"):
        FORMATS[name].make(w)


@every_format
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_all_zero_groups_stay_zero(name, zero):
    w = torch.full((3, 64), zero)
    w[1, 40] = 0.5
    q = FORMATS[name].make(w)
    assert (q.dequantize()[[0, 2]] == 0).all() and (q.dequantize()[1, :32] == 0).all() and q.dequantize()[1, 40] > 0.45


@every_format
@pytest.mark.parametrize("tiny", [1e-45, 1e-44, 3e-43, 1e-40, -1e-40, 1.1e-38])
def test_numbers_near_the_smallest_do_no_harm(name, tiny):
    """The error is no larger than the number itself: it may go to 0 (NF4 below 1e-38, GGUF below float16)."""
    w = torch.zeros(2, 64)
    w[0, 5], w[0, 6] = tiny, tiny / 2
    made = FORMATS[name].make(w).dequantize()
    assert ((made - w).abs() <= abs(tiny)).all() and (made[1] == 0).all()


@every_format
def test_large_numbers_give_finite_ones_or_are_refused(name):
    f, w = FORMATS[name], normal(2, 64)
    w[0, 5], w[1, 9] = f.most, -f.most
    assert f.make(w).dequantize().isfinite().all()
    if f.most < 1e38:
        with pytest.raises(BadInputError, match="weight"):
            f.make(w * 1.1)


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_widened_to_float32(name, dtype):
    w = normal().to(dtype)
    assert torch.equal(FORMATS[name].make(w).dequantize(), FORMATS[name].make(w.float()).dequantize())


@every_format
def test_the_order_in_memory_does_not_matter(name):
    square = normal(64, 64)
    wide = normal(3, 128)
    for w in (square.T, wide[:, ::2], wide[:1, :64].expand(4, 64), wide.T[:64].T):
        assert not w.is_contiguous()
        assert torch.equal(FORMATS[name].make(w).codes, FORMATS[name].make(w.contiguous()).codes)


@every_format
def test_a_weight_that_is_trained_stays_so(name):
    w = torch.nn.Parameter(normal())
    q = FORMATS[name].make(w)
    assert w.requires_grad and w.grad is None and not q.dequantize().requires_grad and not q.scales.requires_grad


@every_format
def test_inference_mode_makes_what_can_be_used_and_changed_outside(name):
    with torch.inference_mode():
        w = normal()
        q = FORMATS[name].make(w)
    for part in (q.codes, q.levels, q.scales, q.zeros):
        assert part is None or not part.is_inference()
    x = torch.ones(1, 64, requires_grad=True)
    (x @ q.dequantize().T).sum().backward()
    assert torch.equal(FORMATS[name].make(w).dequantize(), q.dequantize())


@every_format
def test_scales_of_another_weight_are_refused(name):
    """Q31: both shapes are named. (A scale of the same shape fits any weight, and nothing can tell.)"""
    q, other = FORMATS[name].make(normal(3)), FORMATS[name].make(normal(5))
    if len(q.scales) > 1:
        with pytest.raises(BadInputError, match=r"^scales \(5, \d+\) do not belong to a weight of \(3, 64\)"):
            replace(q, scales=other.scales)
    for wrong in (q.scales.flatten(), q.scales[:, :0], torch.ones(3, 7)):
        with pytest.raises(BadInputError, match=rf"{re_shape(tuple(wrong.shape))} do not belong to .*\(3, 64\)"):
            replace(q, scales=wrong)
    with pytest.raises(BadInputError, match=r"codes \(5, \d+\) .* \(3, 64\)"):
        replace(q, codes=other.codes)
    if q.zeros is not None:
        with pytest.raises(BadInputError, match=r"zeros \(7, 2\) and scales"):
            replace(q, zeros=torch.ones(7, 2))


@every_format
def test_it_says_what_it_is(name):
    q = FORMATS[name].make(normal())
    assert repr(q).startswith(f"{q.format}, 3 x 64: a scale for each ") and f"{q.nbytes:,} bytes" in repr(q)
