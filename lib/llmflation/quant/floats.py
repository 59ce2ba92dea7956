"""Four and eight bits whose levels are not evenly spaced: NF4, FP8 (E4M3) and MXFP4.

Weights crowd around 0, so that is where these formats have their levels: NF4 at the quantiles of a normal distribution,
FP8 and MXFP4 at the numbers of a float with few bits.
"""

from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import BadInputError
from .tensor import QuantizedTensor, assemble, blocks, checked_weight, grouped, held

NF4_OUTERMOST = 0.9677083  # the largest level is this quantile; QLoRA's code, https://arxiv.org/abs/2305.14314
NF4_LEAST = 1e-38  # groups below this all go to 0, as bitsandbytes does it: one over it is still a float
E4M3_MOST = 448.0  # the next number up, 480, has the code of NaN; OCP 8-bit floating point, rev. 1.0
E2M1_MOST = 6.0
MX_BLOCK = 32  # OCP microscaling formats, v1.0


def nf4(w: Tensor, group_size: int | None = 64, name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in the 4 bits of QLoRA's NF4: a scale for each `group_size` weights, their largest magnitude.

    Codes and scales equal those of bitsandbytes; a value in the middle of two levels goes to the lower one.
    BadInputError for what cannot be quantized.

    >>> nf4(torch.tensor([[0.5, -2.0]]), group_size=2).dequantize()
    tensor([[ 0.4922, -2.0000]])
    """
    groups = grouped(checked_weight(w, name), group_size, name)
    levels = nf4_levels()
    most = groups.abs().amax(-1, keepdim=True)
    share = (groups * (1 / most.clamp(min=NF4_LEAST))).contiguous()
    codes = torch.bucketize(share, (levels[1:] + levels[:-1]) / 2, out_int32=True)
    return assemble("nf4", codes, levels, most, None, tuple(w.shape), 4)


def nf4_levels() -> Tensor:
    """The 16 values of NF4, ascending from -1 to 1, float32: quantiles of a normal distribution, and 0 itself.

    Eight positive ones and seven negative ones, each side evenly spaced in probability, divided by the largest.
    """
    def side(n: int) -> list[float]:  # the probabilities in float32, as in QLoRA's table
        return [NormalDist().inv_cdf(p) for p in torch.linspace(NF4_OUTERMOST, 0.5, n + 1)[:-1].tolist()]

    levels = torch.tensor([*(-x for x in side(7)), 0.0, *reversed(side(8))])
    return levels / levels.max()


def fp8(w: Tensor, *, scaled: bool = True, name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in FP8, 4 bits of exponent and 3 of mantissa (E4M3), with a scale for each row.

    The scale makes the largest magnitude of a row 448, the largest number of E4M3. Without (`scaled=False`) it is a
    plain cast, and BadInputError for a value beyond 448: frameworks differ in what they make of it (PyTorch 448,
    ml_dtypes NaN).

    >>> fp8(torch.tensor([[0.3, -2.0]])).dequantize()
    tensor([[ 0.2857, -2.0000]])
    """
    wide = checked_weight(w, name)
    most = wide.abs().amax(1, keepdim=True)
    if not scaled and (beyond := float(most.max())) > E4M3_MOST:
        raise BadInputError(f"{name} has a value of magnitude {beyond:g}; E4M3 holds up to {E4M3_MOST:g}. Leave "
                            f"scaled=True, so that each row gets a scale.")
    scale = held(most.double() / E4M3_MOST, torch.float32) if scaled else torch.ones(1, 1)
    codes = to_minifloat(wide / torch.where(scale == 0, 1, scale), 4, 3, E4M3_MOST)
    levels = minifloat_levels(4, 3)
    levels[[0x7F, 0xFF]] = torch.nan  # never made; a code from elsewhere must not pass for 480
    return assemble("fp8", codes, levels, scale, None, tuple(w.shape), 8)


def mxfp4(w: Tensor, name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in MXFP4: floats of 2 bits of exponent and 1 of mantissa (E2M1), a power of two for each 32.

    The scale is one byte of exponent (E8M0). It puts the largest magnitude of a block between 4 and 8, and what then
    lies above 6 becomes 6: so says the standard.

    >>> mxfp4(torch.arange(32.0)[None]).dequantize(rows=slice(1))[0, ::4]
    tensor([ 0.,  4.,  8., 12., 16., 16., 24., 24.])
    """
    groups = blocks(checked_weight(w, name), MX_BLOCK, "mxfp4", name)
    most = groups.abs().amax(-1, keepdim=True)
    scale = power_of_two(_exponent(most) - 2)  # 4 is 2**2
    codes = to_minifloat(groups / scale.float(), 2, 1, E2M1_MOST)
    return assemble("mxfp4", codes, minifloat_levels(2, 1), scale, None, tuple(w.shape), 4)


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent as E8M0, a byte that holds the exponent plus 127 and nothing else; below -127 it stays there."""
    return (exponent + 127).clamp(0, 254).to(torch.uint8).view(torch.float8_e8m0fnu)  # 255 is NaN


def minifloat_levels(exponent_bits: int, mantissa_bits: int) -> Tensor:
    """What each code of a small float stands for, float32; from the highest bit down: sign, exponent, mantissa.

    A number is (1 + mantissa / 2**mantissa_bits) * 2**(exponent - bias). Where the exponent is 0 (subnormal) the 1 is
    missing and the power is that of exponent 1. No code is infinite.

    >>> minifloat_levels(2, 1)[:8]
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 3.0000, 4.0000, 6.0000])
    """
    codes = torch.arange(2 ** (exponent_bits + mantissa_bits))
    exponent, mantissa = codes >> mantissa_bits, codes % 2**mantissa_bits
    fraction = mantissa / 2**mantissa_bits + (exponent > 0)
    values = fraction * power_of_two(exponent.clamp(min=1) - _bias(exponent_bits)).float()
    return torch.cat((values, -values))


def to_minifloat(x: Tensor, exponent_bits: int, mantissa_bits: int, most: float) -> Tensor:
    """The codes (uint8) of the small floats nearest to x, of two as near that with an even code.

    What is beyond `most` becomes `most`. -0 keeps its sign.
    """
    magnitude = x.abs().clamp(max=most)
    lowest = 1 - _bias(exponent_bits)  # from here down the spacing stays the same
    exponent = _exponent(magnitude).clamp(min=lowest)
    steps = (magnitude / power_of_two(exponent - mantissa_bits).float()).round()
    # A float's codes are in the order of its values, so a mantissa that is rounded up carries into the exponent.
    codes = ((exponent - lowest) << mantissa_bits) + steps
    return (codes + torch.signbit(x) * 2 ** (exponent_bits + mantissa_bits)).to(torch.uint8)


def _bias(exponent_bits: int) -> int:
    return 2 ** (exponent_bits - 1) - 1


def _exponent(x: Tensor) -> Tensor:
    """The power of two at or below each magnitude; for 0 one below that of every float32."""
    return torch.where(x == 0, -150, torch.frexp(x).exponent - 1)  # frexp's fraction lies from a half to 1
