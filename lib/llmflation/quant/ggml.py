"""Q8_0 and Q4_0, the block formats that llama.cpp's GGUF files hold most weights in, to the bit.

32 weights of a row share a scale d in float16. Rounding divides by d in float32, undoing it multiplies by the float16.
Source: `gguf.quants` 0.19 and llama.cpp's ggml-quants.c, whose results these equal.
"""

import torch
from torch import Tensor

from ..errors import BadInputError, bad_input, check_whole
from .integer import signed_levels
from .tensor import QuantizedTensor, assemble, blocks, checked_weight

BLOCK = 32  # weights
BITS = {"q8_0": 8, "q4_0": 4}


def q8_0(w: Tensor, name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in GGUF's Q8_0: whole numbers from -127 to 127 times d, the largest magnitude over 127.

    A value in the middle goes away from 0. BadInputError for what cannot be quantized, among it a d beyond float16.
    """
    groups = blocks(checked_weight(w, name), BLOCK, "q8_0", name)
    d = groups.abs().amax(-1, keepdim=True) / 127
    steps = groups * _inverse(d)
    whole = steps.trunc()
    whole += torch.where((steps - whole).abs() >= 0.5, steps.sign(), 0)
    return assemble("q8_0", (whole + 128).to(torch.uint8), signed_levels(8), _half(d, name), None, tuple(w.shape), 8)


def q4_0(w: Tensor, name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in GGUF's Q4_0: whole numbers from -8 to 7 times d.

    d is the value of the largest magnitude, with its sign, over -8: so that value gets the code of -8, and the other
    side ends at 7. A value in the middle goes up. BadInputError as for `q8_0`.

    >>> q4_0(torch.linspace(-8, 7, 32)[None]).dequantize()[0, :6]
    tensor([-8., -8., -7., -7., -6., -6.])
    """
    groups = blocks(checked_weight(w, name), BLOCK, "q4_0", name)
    d = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    codes = (groups * _inverse(d) + 8.5).clamp(0, 15).to(torch.uint8)
    return assemble("q4_0", codes, signed_levels(4), _half(d, name), None, tuple(w.shape), 4)


def to_blocks(q: QuantizedTensor) -> Tensor:
    """The bytes of a GGUF tensor, (N, bytes of a row) uint8: for each block d, then its codes.

    A byte of Q8_0 is a whole number with its sign. In Q4_0 the first 16 codes are the low halves of 16 bytes and the
    other 16 the high ones. BadInputError for another format.
    """
    _check_kind(q.format)
    codes = q.unpacked().view(q.shape[0], -1, BLOCK)
    body = codes ^ 128 if q.bits == 8 else codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    d = q.scales.contiguous().view(torch.uint8).view(*codes.shape[:2], 2)  # low byte first, as in GGUF
    return torch.cat((d, body), dim=-1).flatten(1)


def from_blocks(data: Tensor, kind: str, columns: int) -> QuantizedTensor:
    """The weight (N, columns) whose `to_blocks` are `data`; `kind` is "q8_0" or "q4_0".

    BadInputError for another kind, a width that does not belong to so many columns, and a d that is NaN or infinite.
    """
    _check_kind(kind)
    bits, groups = BITS[kind], check_whole("columns", columns) // BLOCK
    size = 2 + BLOCK * bits // 8
    if columns % BLOCK or data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] != groups * size:
        raise BadInputError(f"{data.dtype} {tuple(data.shape)} are no {kind} blocks of {columns} columns; allowed: "
                            f"bytes, (rows, {size} for each {BLOCK} columns).")
    each = data.view(len(data), groups, size)
    d, body = each[..., :2].contiguous().view(torch.float16), each[..., 2:]
    if not bool(torch.isfinite(d).all()):
        raise BadInputError(f"{int((~torch.isfinite(d)).sum())} scales of these {kind} blocks are NaN or infinite. "
                            f"Fetch the file again.")
    codes = body ^ 128 if bits == 8 else torch.cat((body & 15, body >> 4), dim=-1)
    return assemble(kind, codes, signed_levels(bits), d, None, (len(data), columns), bits)


def _check_kind(kind: str) -> None:
    if kind not in BITS:
        raise bad_input("format", kind, " or ".join(map(repr, BITS)), "GGUF's other formats are not written here.")


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 where d is 0 or so small that 1 / d is infinite: float16 holds that d as 0 in any case."""
    inverse = 1 / d
    return torch.where(torch.isfinite(inverse), inverse, 0)


def _half(d: Tensor, name: str) -> Tensor:
    half = d.half()
    if not bool(torch.isfinite(half).all()):
        raise BadInputError(f"{name} needs a scale of {float(d.abs().max()):g}; GGUF keeps it in float16, which holds "
                            f"up to 65504. Keep this layer in another format.")
    return half
