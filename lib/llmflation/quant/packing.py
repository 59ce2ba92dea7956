"""Codes of 1 to 8 bits laid into bytes without a gap, the first code in the lowest bits."""

import torch
from torch import Tensor

from ..errors import bad_input


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row of so many codes; the last byte may be filled in part.

    >>> packed_width(5, 3)
    2
    """
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) from 0 to 2**bits - 1 as bytes, (rows, `packed_width`), uint8.

    BadInputError for a code out of range: it is never wrapped.
    """
    check_bits(bits, 1)
    if codes.ndim != 2 or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise bad_input("codes", f"{codes.dtype} {tuple(codes.shape)}", "whole numbers, (rows, columns)")
    for edge in map(int, codes.aminmax() if codes.numel() else ()):
        if not 0 <= edge < 2**bits:
            raise bad_input("code", edge, f"0 to {2**bits - 1}, what {bits} bits hold")
    if bits == 8:
        return codes.to(torch.uint8)
    rows, columns = codes.shape
    stream = torch.zeros(rows, packed_width(columns, bits) * 8, dtype=torch.uint8)
    places = torch.arange(bits, dtype=torch.uint8)
    stream[:, : columns * bits] = (codes.to(torch.uint8)[..., None] >> places & 1).flatten(1)
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (stream.view(rows, stream.shape[1] // 8, 8) * weights).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes (rows, columns), uint8, of what `pack` has made."""
    check_bits(bits, 1)
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != packed_width(columns, bits):
        raise bad_input("packed codes", f"{packed.dtype} {tuple(packed.shape)}",
                        f"bytes, (rows, {packed_width(columns, bits)}) for {columns} codes of {bits} bits")
    if bits == 8:
        return packed.clone()
    if bits == 4:  # two to a byte: no need to go through single bits
        return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :columns]
    stream = (packed[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)[:, : columns * bits]
    return (stream.view(len(packed), columns, bits) << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def check_bits(bits: int, least: int = 2) -> None:
    """BadInputError unless `bits` is a whole number from `least` to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 8:
        raise bad_input("bits", bits, f"a whole number from {least} to 8")
