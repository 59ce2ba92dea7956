"""In which order PyTorch's int4 kernel wants its codes, found out by asking it; other processors have other blocks.

A block of rows lies column by column, two rows to a byte. Letters: N rows and K columns of a weight.
"""

import functools

import torch
from torch import Tensor


def pack_int4(codes: Tensor) -> Tensor:
    """Codes (N, K) in the order in which the kernel reads them, (N, K / 2) bytes."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)


def unpack_int4(packed: Tensor) -> Tensor:
    """The codes (N, K) again."""
    n, k, block, made = packed.shape[0], 2 * packed.shape[1], _block(), []
    whole = n - n % block
    for part, rows in ((packed[:whole], block), (packed[whole:], n % block)):
        if len(part):
            pairs = part.reshape(-1, k, rows // 2)
            columns = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(2)  # (blocks, K, rows)
            made.append(columns[:, :, _places(rows)].transpose(1, 2).reshape(-1, k))
    return torch.cat(made)


def unpack_int4_rows(packed: Tensor, ids: Tensor) -> Tensor:
    """The codes (n, K) of some rows, without touching the others."""
    (n, half), block, flat = packed.shape, _block(), packed.flatten()
    found = [packed.new_empty(0, 2 * half)]
    for row in ids.tolist():
        start = row // block * block
        rows = min(block, n - start)  # of its block: the last one may have fewer
        place = int(_places(rows)[row - start])
        column = flat[start * half + place // 2:(start + rows) * half:rows // 2]
        found.append((column >> place % 2 * 4 & 15)[None])
    return torch.cat(found)


@functools.cache
def _places(rows: int) -> Tensor:
    """At which half-byte of a column each row of a block lies, (rows,). Packing the rows' own numbers tells."""
    with torch.inference_mode(False):
        row = torch.arange(rows)[:, None].expand(rows, 32)
        low, high = (pack_int4(part).flatten()[: rows // 2].long() for part in (row % 16, row // 16))
        return torch.stack((low % 16 + high % 16 * 16, low // 16 + high // 16 * 16), dim=-1).flatten().argsort()


@functools.cache
def _block() -> int:
    """Rows of a block, 64 with AVX-512 and fewer without: the last byte that belongs to the first 16 rows tells."""
    packed = pack_int4((torch.arange(128) < 16)[:, None].expand(128, 32)).flatten()
    return next(block for block in (16, 32, 64, 128) if int(packed.nonzero().max()) < 16 * block)
