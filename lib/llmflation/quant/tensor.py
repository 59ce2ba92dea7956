"""A weight in few bits: codes, and for each group of them a scale, from which the weight is made again.

Every number format of this package gives a `QuantizedTensor`; formats differ in which value a code stands for
(`levels`) and in how many codes share a scale.
Letters: N rows (outputs) and K columns (inputs) of a weight, G groups in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInputError, bad_input
from .packing import pack, packed_width, unpack


@dataclass(frozen=True, repr=False, eq=False)
class QuantizedTensor:
    """A weight (N, K) as codes. A weight is (level of its code - zero of its group) * scale of its group.

    `codes` uint8 (N, bytes of a row), packed; `levels` (2**bits,) float32, the value of each code before scaling;
    `scales` (1 or N, G), any float format; `zeros` the same shape or None, in steps of the scale.
    """

    format: str  # "int4", "nf4", ...
    codes: Tensor
    levels: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, int]
    bits: int

    def __post_init__(self):
        (n, k), groups = self.shape, self.scales.shape[-1] if self.scales.ndim == 2 else 0
        if self.codes.shape != (n, packed_width(k, self.bits)) or len(self.levels) != 2**self.bits:
            raise BadInputError(f"codes {tuple(self.codes.shape)} and {len(self.levels)} levels do not make a weight "
                                f"of {self.shape} in {self.bits} bits.")
        if groups == 0 or k % groups or self.scales.shape[0] not in (1, n):
            raise BadInputError(f"scales {tuple(self.scales.shape)} do not belong to a weight of {self.shape}; "
                                f"allowed: (1 or {n}, a number of groups that divides {k}).")
        if self.zeros is not None and self.zeros.shape != self.scales.shape:
            raise BadInputError(f"zeros {tuple(self.zeros.shape)} and scales {tuple(self.scales.shape)} must be alike.")

    @property
    def group_size(self) -> int:
        """Weights of a row that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held: codes, scales and zeros. The levels belong to the format."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits held for each weight, scales and zeros among them."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def unpacked(self) -> Tensor:
        """The codes, one a byte, (N, K) uint8."""
        return unpack(self.codes, self.bits, self.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: Tensor | slice = slice(None)) -> Tensor:
        """The weight (N, K) that the codes stand for, or some rows of it."""
        codes = unpack(self.codes[rows], self.bits, self.shape[1])
        each = slice(None) if len(self.scales) == 1 else rows
        value = self.levels[codes.int()].view(len(codes), self.scales.shape[1], self.group_size)
        if self.zeros is not None:
            value = value - self.zeros[each].float()[..., None]
        return (value * self.scales[each].float()[..., None]).flatten(1).to(dtype)

    def __repr__(self) -> str:
        n, k = self.shape
        share = "tensor" if len(self.scales) == 1 < n else f"group of {self.group_size}"
        return (f"{self.format}, {n:,} x {k:,}: a scale for each {share}, {self.bits_per_weight:.2f} bits a weight, "
                f"{self.nbytes:,} bytes")


def dequantize(q: QuantizedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (N, K) that a QuantizedTensor stands for."""
    return q.dequantize(dtype)


def joined(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """One weight of several that were quantized alike, their rows one below the other."""
    first = parts[0]
    zeros = None if first.zeros is None else torch.cat([part.zeros for part in parts])
    return QuantizedTensor(first.format, torch.cat([part.codes for part in parts]), first.levels,
                           torch.cat([part.scales for part in parts]), zeros,
                           (sum(part.shape[0] for part in parts), first.shape[1]), first.bits)


def checked_weight(w: Tensor, name: str = "weight") -> Tensor:
    """The weight (N, K) in float32, detached, as it may be quantized; else BadInputError that names it.

    Refused: what is no matrix of floats, empty ones, NaN and infinity.
    """
    if not isinstance(w, Tensor) or not w.dtype.is_floating_point:
        kind = str(w.dtype) if isinstance(w, Tensor) else type(w).__name__
        raise bad_input(name, kind, "a tensor of floats", "Call .float() on it, if its numbers are weights.")
    if w.ndim != 2 or 0 in w.shape:
        raise bad_input(f"{name}'s shape", tuple(w.shape), "(rows, columns), one of each at least")
    wide = w.detach().float()
    if not bool(torch.isfinite(wide).all()):
        nan, inf = w.isnan(), w.isinf()
        large = wide.isinf() & ~inf  # finite in float64, and beyond float32
        first = tuple((nan | inf | large).nonzero()[0].tolist())
        beyond = f" and {int(large.sum())} that float32 cannot hold" if bool(large.any()) else ""
        raise BadInputError(f"{name} has {int(nan.sum())} NaN and {int(inf.sum())} infinite values{beyond}, the first "
                            f"at {first}; nothing was quantized. Find the layer that made them.")
    return wide


def grouped(w: Tensor, group_size: int | None, name: str = "weight") -> Tensor:
    """The weight (N, K) as (N, G, group_size); None: a whole row is a group. BadInputError if it does not divide K."""
    n, k = w.shape
    if group_size is None:
        return w.unsqueeze(1)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise bad_input("group_size", group_size, "a whole number of 1 or more, or None for a whole row")
    if k % group_size:
        divisors = [d for d in range(1, k + 1) if k % d == 0]
        near = [*(d for d in divisors if d < group_size)][-1:] + [*(d for d in divisors if d > group_size)][:1]
        raise BadInputError(f"groups of {group_size} do not divide the {k} columns of {name} {(n, k)}; the nearest "
                            f"that do: {' and '.join(map(str, near))}.")
    return w.reshape(n, k // group_size, group_size)


def blocks(w: Tensor, size: int, format: str, name: str = "weight") -> Tensor:
    """The weight (N, K) as (N, G, size), for a format that has no other size; BadInputError if it does not divide K."""
    if w.shape[1] % size:
        raise BadInputError(f"{format} takes {size} weights of a row together, which does not divide the {w.shape[1]} "
                            f"columns of {name} {tuple(w.shape)}. Keep this layer in another format.")
    return grouped(w, size, name)


def held(step: Tensor, dtype: torch.dtype) -> Tensor:
    """Steps (float64) as `dtype` holds them. One below its normal numbers is rounded up, so that nothing is cut off."""
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    return torch.where(step < info.smallest_normal, (step / least).ceil() * least, step).to(dtype)


@torch.inference_mode(False)  # so that what is made in inference mode can be used, and changed, outside
def assemble(format: str, codes: Tensor, levels: Tensor, scales: Tensor, zeros: Tensor | None,
             shape: tuple[int, int], bits: int) -> QuantizedTensor:
    """A QuantizedTensor from codes (N, G, K / G) that are not packed yet, and scales (1 or N, G, 1)."""
    levels, scales = levels.clone(), scales.clone()
    zeros = None if zeros is None else zeros.clone().flatten(1)
    return QuantizedTensor(format, pack(codes.reshape(shape), bits).clone(), levels, scales.flatten(1), zeros,
                           tuple(shape), bits)
