"""Whole numbers of 2 to 8 bits: the nearest multiple of a step, with one step for a tensor, a row or a group.

Symmetric: the step is the largest magnitude over 2**(bits - 1) - 1, codes run as far below 0 as above it (absmax).
Asymmetric: the step is the range, 0 included, over 2**bits - 1, and one code is exactly 0 (zero point).
Others divide otherwise (torchao by 7.5 for 4 bits): with this step, what was dequantized quantizes to itself.
"""

import torch
from torch import Tensor

from ..errors import bad_input
from .packing import check_bits
from .tensor import QuantizedTensor, assemble, checked_weight, grouped, held, joined

SHRINKS = tuple(1 - i / 50 for i in range(26))  # shares of the range that the search for a clip tries
ROWS = 8192  # of a weight that are rounded at a time: a head's floats need not be held several times over
SCALE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def quantize(w: Tensor, bits: int, group_size: int | None = None, *, symmetric: bool = True,
             per_tensor: bool = False, clip: str | None = None, scale_dtype: torch.dtype = torch.float32,
             name: str = "weight") -> QuantizedTensor:
    """Round a weight (N, K) to whole numbers of `bits` bits times a step.

    Each row has its step, or each `group_size` weights of a row, or with `per_tensor` all together. `clip="mse"` takes
    the share of the range that makes the squared error of each group least, and cuts off what lies outside.
    BadInputError for what cannot be quantized; the weight is not changed.

    >>> quantize(torch.tensor([[0.6, -1.4, 0.3, 0.0]]), 4).dequantize()
    tensor([[ 0.6000, -1.4000,  0.4000,  0.0000]])
    """
    check_bits(bits)
    if clip not in (None, "mse"):
        raise bad_input("clip", clip, "None or 'mse'")
    if scale_dtype not in SCALE_DTYPES:
        raise bad_input("scale_dtype", scale_dtype, ", ".join(map(str, SCALE_DTYPES)))
    wide = checked_weight(w, name)
    if per_tensor and group_size is not None:
        raise bad_input("group_size", group_size, "None where the whole tensor has one scale")
    if not per_tensor and len(w) > ROWS:
        del wide
        how = {"symmetric": symmetric, "clip": clip, "scale_dtype": scale_dtype, "name": name}
        return joined([quantize(rows, bits, group_size, **how) for rows in w.split(ROWS)])
    groups = wide.reshape(1, 1, -1) if per_tensor else grouped(wide, group_size, name)
    low, high = _range(groups, symmetric)
    if clip:
        low, high = _least_error(groups, low, high, bits, symmetric, scale_dtype)
    scale, zero = _steps(low, high, bits, symmetric, scale_dtype)
    _check_reach(groups, scale, zero, bits, name)
    codes = round_to(groups, scale, zero, bits)
    levels = signed_levels(bits) if symmetric else torch.arange(2**bits).float()
    if per_tensor:
        scale, zero = scale.view(1, 1, 1), None if zero is None else zero.view(1, 1, 1)
    zeros = None if symmetric else zero.to(torch.uint8)
    return assemble(f"int{bits}", codes, levels, scale, zeros, tuple(w.shape), bits)


def signed_levels(bits: int) -> Tensor:
    """What each code of a symmetric format stands for: code 0 is the most negative whole number, (2**bits,)."""
    return torch.arange(2**bits).float() - 2 ** (bits - 1)


def round_to(groups: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """The code nearest to each value, uint8, given the steps; `zero` None is symmetric, whose code 0 is never taken.

    groups (N, G, S), scale and zero (N, G, 1).
    """
    half = 2 ** (bits - 1)
    steps = (groups / torch.where(scale == 0, 1, scale).float()).round()
    if zero is None:
        return (steps.clamp(1 - half, half - 1) + half).to(torch.uint8)
    return (steps + zero.float()).clamp(0, 2**bits - 1).to(torch.uint8)


def _range(groups: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The lowest and highest value to be told apart in each group, 0 among them, (N, G, 1) each."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    if symmetric:
        most = torch.maximum(-low, high)
        return -most, most
    return low.clamp(max=0), high.clamp(min=0)


def _steps(low: Tensor, high: Tensor, bits: int, symmetric: bool,
           scale_dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if symmetric:
        return held(high.double() / (2 ** (bits - 1) - 1), scale_dtype), None
    top = 2**bits - 1
    scale = held((high.double() - low) / top, scale_dtype)  # the range itself can be more than a float32 holds
    return scale, (-low / torch.where(scale == 0, 1, scale).float()).round().clamp(0, top)


def _check_reach(groups: Tensor, scale: Tensor, zero: Tensor | None, bits: int, name: str) -> None:
    """BadInputError if a step, or what the outermost codes stand for, is more than its format holds."""
    largest = float(groups.abs().max())
    if not bool(torch.isfinite(scale).all()):
        raise bad_input("scale_dtype", scale.dtype,
                        f"a format that holds the steps of {name}, whose weights go up to {largest:g}")
    most = 2 ** (bits - 1) - 1 if zero is None else torch.maximum(zero, 2**bits - 1 - zero)
    if bool((scale.double() * most > torch.finfo(torch.float32).max).any()):
        raise bad_input(f"{name}'s largest magnitude", largest,
                        f"what is still a float32 when it is rounded to {bits} bits")


def _least_error(groups: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool,
                 scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of all ranges shrunk by SHRINKS, for each group the one whose squared error is least."""
    least, best = torch.full_like(low, torch.inf), (low, high)
    offset = 2 ** (bits - 1) if symmetric else 0
    for share in SHRINKS:
        scale, zero = _steps(share * low, share * high, bits, symmetric, scale_dtype)
        made = (round_to(groups, scale, zero, bits).float() - (offset if zero is None else zero)) * scale.float()
        error = (made - groups).square().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(torch.where(better, share * edge, b) for edge, b in zip((low, high), best, strict=True))
    return best
