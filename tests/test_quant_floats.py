"""NF4 beside bitsandbytes, FP8 and MXFP4 beside ml_dtypes and gguf, to the bit. Laws: tests/test_quant_laws.py."""

import re
from statistics import NormalDist

import numpy as np
import pytest
import torch
from quant_cases import normal, oracle

from llmflation.errors import BadInputError
from llmflation.quant.floats import fp8, minifloat_levels, mxfp4, nf4, nf4_levels, power_of_two, to_minifloat

SMALL_FLOATS = {(4, 3): ("float8_e4m3fn", 448.0), (2, 1): ("float4_e2m1fn", 6.0), (3, 2): ("float6_e3m2fn", 28.0),
                (2, 3): ("float6_e2m3fn", 7.5)}
every_small_float = pytest.mark.parametrize("bits", SMALL_FLOATS)


def ml_dtype(bits):
    return np.dtype(getattr(oracle("ml_dtypes"), SMALL_FLOATS[bits][0]))


def theirs(x: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
    return torch.from_numpy(x.numpy().astype(dtype).view(np.uint8))


def test_nf4s_levels_are_those_of_bitsandbytes():
    table = oracle("bitsandbytes.functional").get_4bit_type("nf4", device="cpu")
    assert torch.equal(nf4_levels(), table)


def test_nf4s_levels_are_quantiles():
    """Each side evenly spaced in probability: 7 steps below the middle, 8 above."""
    levels = nf4_levels().double()
    outermost = NormalDist().inv_cdf(0.9677083)
    p = torch.tensor([NormalDist().cdf(float(x) * outermost) for x in levels]).diff()
    assert torch.allclose(p[:7], torch.full((7,), 0.4677083 / 7), atol=1e-6)
    assert torch.allclose(p[7:], torch.full((8,), 0.4677083 / 8), atol=1e-6)


def awkward_for_nf4() -> torch.Tensor:
    """Noise of all sizes; blocks of 0, of -0, of one value; every middle between two levels, and its neighbours."""
    levels = nf4_levels()
    middle = (levels[1:] + levels[:-1]) / 2
    up, down = (middle.nextafter(torch.tensor(way)) for way in (9.0, -9.0))
    near = torch.cat((middle, up, down, torch.ones(19)))
    rows = [near * size for size in (1.0, -1.0, 0.25, 3.0, 1e-3, 1e30)]
    rows += [torch.full((64,), value) for value in (0.0, -0.0, 2.0, -2.0, 1e-39, 3e38)]
    return torch.cat((normal(4096, 64), 10 ** normal(2048, 64, 1, 8.0) * normal(2048, 64, 2).sign(), torch.stack(rows)))


def test_nf4s_codes_and_scales_are_those_of_bitsandbytes():
    functional, w = oracle("bitsandbytes.functional"), awkward_for_nf4()
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    ours = nf4(w)
    high_first = torch.stack((packed >> 4, packed & 15), -1).view(w.shape)
    assert torch.equal(ours.unpacked(), high_first) and torch.equal(ours.scales.flatten(), state.absmax)
    assert torch.equal(ours.dequantize(), functional.dequantize_4bit(packed, state))


def test_nf4_errs_as_much_as_published():
    w = normal(4096, 64)
    assert float((nf4(w).dequantize() - w).norm() / w.norm()) == pytest.approx(0.0920, abs=5e-4)
    assert nf4(w).bits_per_weight == 4 + 32 / 64


@every_small_float
def test_every_code_stands_for_what_ml_dtypes_says(bits):
    dtype = ml_dtype(bits)
    decoded = torch.from_numpy(np.arange(2 ** (1 + sum(bits)), dtype=np.uint8).view(dtype).astype(np.float32))
    ours = minifloat_levels(*bits)
    there = decoded.isfinite()
    assert torch.equal(ours[there], decoded[there]) and torch.equal(ours.signbit()[there], decoded.signbit()[there])
    assert torch.equal(to_minifloat(ours, *bits, SMALL_FLOATS[bits][1])[there],
                       torch.arange(len(ours)).to(torch.uint8)[there])
    assert there.all() == (bits != (4, 3))


def values_for(bits) -> torch.Tensor:
    """Every level, every middle of two and its neighbours, and a million numbers of all sizes, within the range."""
    most, levels = SMALL_FLOATS[bits][1], minifloat_levels(*bits).sort().values
    middle = (levels[1:] + levels[:-1]) / 2
    up, down = middle.nextafter(torch.tensor(torch.inf)), middle.nextafter(torch.tensor(-torch.inf))
    noise = normal(1000, 1000).flatten() * 2.0 ** torch.linspace(-20, 9, 1_000_000)
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38])
    return torch.cat((levels, middle, up, down, noise, tiny)).clamp(-most, most)


@every_small_float
def test_rounding_is_that_of_ml_dtypes(bits):
    x = values_for(bits)
    assert torch.equal(to_minifloat(x, *bits, SMALL_FLOATS[bits][1]), theirs(x, ml_dtype(bits)))


def test_rounding_to_fp8_is_pytorchs():
    x = values_for((4, 3))
    assert torch.equal(to_minifloat(x, 4, 3, 448.0), x.to(torch.float8_e4m3fn).view(torch.uint8))


def test_rounding_a_middle_up_is_found():
    """The fault that a test without ties would not see."""
    x = values_for((4, 3))
    assert not torch.equal(to_minifloat(x.nextafter(2 * x), 4, 3, 448.0), theirs(x, ml_dtype((4, 3))))


def test_fp8_holds_a_row_by_its_largest_magnitude():
    w = normal(16, 256)
    q = fp8(w)
    assert torch.equal(q.scales, w.abs().amax(1, keepdim=True) / 448)
    assert torch.equal(q.codes, theirs((w / q.scales).clamp(-448, 448), ml_dtype((4, 3))))
    assert q.bits_per_weight == 8 + 32 / 256 and q.dequantize().isfinite().all()
    assert q.levels[[0x7F, 0xFF]].isnan().all() and q.levels.isfinite().sum() == 254


@pytest.mark.parametrize("value", [449.0, 464.0, 480.0, -480.0, 1e9])
def test_fp8_scales_what_is_large_and_a_plain_cast_refuses_it(value):
    w = torch.tensor([[value, 1.0]])
    assert fp8(w).dequantize()[0, 0] == pytest.approx(value, rel=1e-6)
    shown = re.escape(f"{abs(value):g}")
    with pytest.raises(BadInputError, match=rf"^up has a value of magnitude {shown};.*448\. Leave scaled=True"):
        fp8(w.clone(), scaled=False, name="up")


def test_a_plain_cast_has_one_scale_and_it_is_one():
    w = normal(2, 64).clamp(-3, 3)
    q = fp8(w, scaled=False)
    assert q.scales.tolist() == [[1.0]] and torch.equal(q.dequantize(), w.to(torch.float8_e4m3fn).float())


def test_every_power_of_two_is_that_of_ml_dtypes():
    dtype = np.dtype(oracle("ml_dtypes").float8_e8m0fnu)
    scale = power_of_two(torch.arange(-127, 128))
    assert torch.equal(scale.view(torch.uint8), torch.arange(255).to(torch.uint8))
    assert torch.equal(scale.float(), torch.from_numpy(np.arange(255, dtype=np.uint8).view(dtype).astype(np.float32)))
    assert torch.equal(scale.double(), 2.0 ** torch.arange(-127, 128, dtype=torch.float64))
    assert power_of_two(torch.tensor([-300, -128, 128, 300])).view(torch.uint8).tolist() == [0, 0, 254, 254]


def awkward_for_mxfp4() -> torch.Tensor:
    """Noise of all sizes, and blocks whose largest magnitude is a power of two, just below one, or clipped."""
    w = torch.cat((normal(2048, 32), 10 ** normal(2048, 32, 1, 6.0) * normal(2048, 32, 2).sign()))
    below, above = torch.tensor(2.0).nextafter(torch.tensor([0.0, 3.0])).tolist()
    for i, most in enumerate((1.0, 4.0, 5.0, 6.0, 7.0, below, above, 2.0**-120)):
        w[i] = (w[i] / w[i].abs().max()) * most
    w[8:10] = 0
    return w


def test_mxfp4s_codes_are_those_of_ml_dtypes():
    w = awkward_for_mxfp4()
    q = mxfp4(w)
    exponent = torch.tensor([np.frexp(most)[1] - 3 for most in w.abs().amax(1).numpy()])
    some = w.abs().amax(1) >= 2.0**-125
    assert torch.equal(q.scales.view(torch.uint8)[some, 0], (exponent + 127).to(torch.uint8)[some])
    assert torch.equal(q.unpacked(), theirs(w / q.scales.float(), ml_dtype((2, 1))))
    assert q.bits_per_weight == 4.25 and q.scales.dtype == torch.float8_e8m0fnu


def test_mxfp4s_values_are_ggufs():
    """Save in the middle of two levels, where gguf takes the smaller and the standard the even one, and just below a
    power of two, where gguf's logarithm in float32 is rounded up."""
    quants, gguf = oracle("gguf.quants"), oracle("gguf")
    w = awkward_for_mxfp4()
    w = w[(w.abs().amax(1) == 0) | (w.abs().amax(1) > 2.0**-120)]  # below, gguf's byte wraps around
    kind = gguf.GGMLQuantizationType.MXFP4
    blocks = quants.quantize(w.numpy(), kind)
    ours, values = mxfp4(w), torch.from_numpy(quants.dequantize(blocks, kind))
    same = ours.scales.view(torch.uint8).flatten() == torch.from_numpy(blocks[:, 0].copy())
    assert (~same).sum() <= 4 and same[8:10].all()
    levels = minifloat_levels(2, 1)[:8]
    middle = torch.isin((w / ours.scales.float()).abs(), (levels[1:] + levels[:-1]) / 2)
    assert middle.float().mean() < 1e-3
    assert torch.equal(ours.dequantize()[same][~middle[same]], values[same][~middle[same]])


def test_columns_that_blocks_do_not_divide():
    with pytest.raises(BadInputError, match=r"^mxfp4 takes 32 weights of a row .* 31 columns of up \(2, 31\)"):
        mxfp4(torch.zeros(2, 31), name="up")
    with pytest.raises(BadInputError, match=r"groups of 64 do not .* the 100 columns of up \(2, 100\); .* 50 and 100"):
        nf4(torch.zeros(2, 100), name="up")
    for size in (0, -1, 2.5, True, "32"):
        with pytest.raises(BadInputError, match=f"^group_size is {size!r}; allowed"):
            nf4(torch.zeros(2, 64), size)
