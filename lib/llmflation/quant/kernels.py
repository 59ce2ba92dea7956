"""How a product with a quantized weight is computed: by the kernels that this PyTorch has for this processor.

A form holds a weight in the layout that one kernel reads; `Reference` holds the QuantizedTensor itself and takes any.
The kernels are private operators of PyTorch. Each is tried once in a process, on an example that brings out what can go
wrong; one that is missing or wrong here is not taken.
Letters: N rows (outputs) and K columns (inputs) of a weight, R vectors.
"""

import functools
import time
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown_name
from .int4_layout import pack_int4, unpack_int4, unpack_int4_rows
from .integer import quantize
from .packing import pack
from .tensor import QuantizedTensor

MANY = 256  # vectors from which on a weight-only kernel may be slower than making the weight bfloat16 for this product
CLEARLY = 1.1  # how many times as fast the other way must be to be taken
NOTHING = 1e-30  # the largest magnitude of zeros: no division by 0
PATHS = ("auto", "reference")

_path, _times_set = "auto", 0


class Form(ABC):
    """A weight (N, K) as a kernel reads it: made from a QuantizedTensor that it `takes`, and turned into it again."""

    by_row = True  # whether single rows can be looked up, as an embedding does

    @classmethod
    @abstractmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        """Whether the kernel computes what this weight, with activations in so many bits, means."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held."""

    @abstractmethod
    def tensor(self) -> QuantizedTensor:
        """The very QuantizedTensor that it was made from."""

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights (n, K) of the rows `ids` (n,)."""
        return self.tensor().dequantize(dtype, ids)

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x (R, K) -> (R, N), in the format of x."""


class Reference(Form):
    """Dequantize the weight, then multiply: what every kernel has to agree with."""

    def __init__(self, q: QuantizedTensor, activation_bits: int | None = None):
        self.q, self.activation_bits = q, activation_bits

    @classmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return self.q.nbytes

    def tensor(self) -> QuantizedTensor:
        return self.q

    def product(self, x: Tensor) -> Tensor:
        if self.activation_bits is None:
            return F.linear(x, self.q.dequantize(x.dtype))
        bits = dynamic_bits() if self.activation_bits == 8 else self.activation_bits
        return rounded_product(x, self.q, bits)


def rounded_product(x: Tensor, q: QuantizedTensor, bits: int) -> Tensor:
    """x (R, K), each vector rounded to whole numbers of `bits` bits times a step of its own, times the weight.

    What a text comes to so does not depend on the others in its batch.
    """
    step = step_of(wide := x.float(), bits)
    return (F.linear((wide / step).round_(), q.dequantize()) * step).to(x.dtype)


def step_of(x: Tensor, bits: int) -> Tensor | float:
    """The step of each vector of x (R, K) of which its largest magnitude is as many as whole numbers of `bits` bits go,
    (R, 1); of a single vector as a plain number, which takes fewer calls."""
    top = 2 ** (bits - 1) - 1
    if x.shape[0] != 1:
        return largest(x) / top
    low, high = x.aminmax()
    return max(-low.item(), high.item(), NOTHING) / top


def largest(x: Tensor) -> Tensor:
    """The largest magnitude of each vector of x (R, K), (R, 1); of zeros, next to nothing, to be divided by."""
    return x.abs().amax(-1, keepdim=True).clamp_(min=NOTHING)


class DynamicInt8(Form):
    """Whole numbers times whole numbers (W8A8): fbgemm's `quantized.linear_dynamic`, weights packed in its order.

    The operator has one step for all vectors, from the least to the largest value. So several come to it as multiples
    of their own largest, with one more vector that reaches from -128 to 127 steps: then the step is always the same.
    Where a value lies halfway between two codes the reference may take the other one.
    """

    by_row = False  # the packed weight can only be unpacked as a whole

    def __init__(self, q: QuantizedTensor):
        self.shape, self.scales = q.shape, q.scales
        each = q.scales.expand(q.shape[0], 1).flatten().double()
        with warnings.catch_warnings(), _engine("fbgemm"):  # the other engines keep a second copy of the weight
            warnings.simplefilter("ignore")  # PyTorch means to move quantized tensors elsewhere
            zeros = torch.zeros(len(each), dtype=torch.long)
            made = torch._make_per_channel_quantized_tensor(_signed(q), each, zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(made, None)

    @classmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        return activation_bits == 8 and _is_int8(q)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * (self.shape[1] + 12)  # for each row a scale, a zero point and the sum of its codes

    def tensor(self) -> QuantizedTensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codes = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()
        return _int8(codes, self.scales)

    def product(self, x: Tensor) -> Tensor:
        return self.in_bits(x, dynamic_bits())

    def in_bits(self, x: Tensor, bits: int) -> Tensor:
        wide = x if x.dtype is torch.float32 else x.float()
        y = self.of_one(wide, bits) if len(wide) == 1 else self.of_several(wide, bits)
        return y if x.dtype is torch.float32 else y.to(x.dtype)

    def of_several(self, x: Tensor, bits: int) -> Tensor:
        """Vectors (R, K), as multiples of their own largest, below one that reaches from the lowest to the highest."""
        most = largest(x)
        parts = torch.cat((x / most, _edges(x.shape[1], bits)))
        return torch.ops.quantized.linear_dynamic(parts, self.packed, bits == 7)[:-1] * most

    def of_one(self, x: Tensor, bits: int) -> Tensor:
        """A single vector, by an operator that is told the step: fewer calls."""
        operator = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        return operator(x, step_of(x, bits), 2 ** (bits - 1), self.packed)


@functools.cache
def _edges(width: int, bits: int) -> Tensor:
    """A vector (1, K) that holds the lowest and the highest code, over the highest."""
    with torch.inference_mode(False):
        edges = torch.zeros(1, width)
        edges[0, -1] = 1
        edges[0, 0] = -(2 ** (bits - 1)) / (2 ** (bits - 1) - 1)
        return edges


class PlainInt8(Form):
    """Int8 weights as they are, one byte after the other. What the two kinds of kernel on them share."""

    def __init__(self, q: QuantizedTensor):
        self.codes, self.alike = _signed(q), len(q.scales) < q.shape[0]  # one scale for all rows
        self.scales = q.scales.expand(q.shape[0], 1).flatten().contiguous()

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def tensor(self) -> QuantizedTensor:
        return _int8(self.codes, (self.scales[:1] if self.alike else self.scales)[:, None])

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.codes[ids].float() * self.scales[ids].float()[:, None]).to(dtype)


class RowwiseInt8(PlainInt8):
    """W8A8 with `torch._int_mm`: the same numbers as DynamicInt8, and rows can be read.

    With AVX-512 the product of one vector reads the weight as it lies, at the memory's speed; for several, and without
    AVX-512 always, the operator first copies it into another order.
    """

    def __init__(self, q: QuantizedTensor):
        super().__init__(q)
        self.turned = self.codes.t()

    @classmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        return activation_bits == 8 and _is_int8(q)

    def product(self, x: Tensor) -> Tensor:
        return self.in_bits(x, dynamic_bits())

    def in_bits(self, x: Tensor, bits: int) -> Tensor:
        wide = x if x.dtype is torch.float32 else x.float()  # conversions that change nothing would take time, too
        step = step_of(wide, bits)
        sums = torch._int_mm((wide / step).round_().to(torch.int8), self.turned).float()
        sums.mul_(self.scales.float()).mul_(step)  # in place: a head's result is large
        return sums if x.dtype is torch.float32 else sums.to(x.dtype)


class WeightOnlyInt8(PlainInt8):
    """Int8 weights times bfloat16 activations: `torch._weight_int8pack_mm`. float32 activations would be slow there.

    It reads whole registers and does not ask whether there is so much: other widths end the process.
    """

    @classmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        return (activation_bits is None and _is_int8(q) and q.scales.dtype == torch.bfloat16
                and q.shape[0] % 16 == 0 and q.shape[1] % 32 == 0)

    def dense(self) -> Tensor:
        return self.codes.to(torch.bfloat16).mul_(self.scales[:, None])

    def product(self, x: Tensor) -> Tensor:
        return _in_bfloat16(self, x)

    def kernel(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, self.codes, self.scales)


class WeightOnlyInt4(Form):
    """Int4 weights in groups times bfloat16 activations: `torch._weight_int4pack_mm_for_cpu`.

    The kernel computes (code - 8) * scale + offset. It wants N in steps of 16 and bfloat16 scales. A zero point z is
    the offset (8 - z) * scale, which bfloat16 rounds by up to a 64th of a step.
    """

    def __init__(self, q: QuantizedTensor):
        self.shape, self.format, self.levels, self.asymmetric = q.shape, q.format, q.levels, q.zeros is not None
        self.packed, self.group_size = pack_int4(q.unpacked()), q.group_size
        offset = (8 - q.zeros.float()) * q.scales.float() if self.asymmetric else torch.zeros_like(q.scales)
        self.scales = torch.stack((q.scales.T, offset.to(torch.bfloat16).T), dim=-1).contiguous()  # (G, N, 2)

    @classmethod
    def takes(cls, q: QuantizedTensor, activation_bits: int | None) -> bool:
        levels = torch.arange(16.0) - (8 if q.zeros is None else 0)
        return (activation_bits is None and q.bits == 4 and torch.equal(q.levels, levels) and q.shape[0] % 16 == 0
                and len(q.scales) == q.shape[0] and q.scales.dtype == torch.bfloat16
                and q.group_size in (32, 64, 128, 256))

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def tensor(self) -> QuantizedTensor:
        scales, offset = (part.T.contiguous() for part in self.scales.unbind(-1))
        zeros = (8 - offset.float() / scales.float()).round()
        zeros = torch.where(scales == 0, 0, zeros).to(torch.uint8) if self.asymmetric else None
        codes = pack(unpack_int4(self.packed), 4)
        return QuantizedTensor(self.format, codes, self.levels, scales, zeros, self.shape, 4)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        codes = unpack_int4_rows(self.packed, ids).float() - 8
        scales, offset = self.scales[:, ids].float().permute(2, 1, 0)[..., None]  # (n, G, 1) each
        return (codes.view(len(ids), scales.shape[1], -1) * scales + offset).flatten(1).to(dtype)

    def dense(self) -> Tensor:
        scales, offset = self.scales.permute(2, 1, 0)[..., None]  # (N, G, 1) each
        codes = unpack_int4(self.packed).to(torch.bfloat16) - 8
        return (codes.view(self.shape[0], scales.shape[1], -1) * scales + offset).flatten(1)

    def product(self, x: Tensor) -> Tensor:
        return _in_bfloat16(self, x)

    def kernel(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self.packed, self.group_size, self.scales)


# --- many vectors --------------------------------------------------------------------------------------------


def _widened(form: Form, x: Tensor) -> Tensor:
    """The product with a bfloat16 copy of the weight, made for this product and thrown away."""
    return F.linear(x, form.dense())


def _in_bfloat16(form: Form, x: Tensor) -> Tensor:
    """The product by the form's kernel, or widened where there are so many vectors that this pays. Conversions that
    change nothing are left out: beside the product of one vector their calls take time, too."""
    half = (x if x.dtype is torch.bfloat16 else x.to(torch.bfloat16)).contiguous()
    many = x.shape[0] >= MANY and _widening_pays(type(form))
    y = _widened(form, half) if many else form.kernel(half)
    return y if y.dtype is x.dtype else y.to(x.dtype)


@functools.cache
def _widening_pays(kind: type[Form]) -> bool:
    """Timed on a weight of 512 x 1024, with MANY vectors, once in a process."""
    with torch.inference_mode(False):
        form, x = kind(_example(kind, 512, 1024)), torch.ones(MANY, 1024, dtype=torch.bfloat16)
    best = {kind.kernel: float("inf"), _widened: float("inf")}
    for _ in range(4):  # in turns: other programs disturb for longer than one takes
        for way in best:
            start = time.perf_counter()
            way(form, x)
            best[way] = min(best[way], time.perf_counter() - start)
    return best[_widened] * CLEARLY < best[kind.kernel]


# --- which form ----------------------------------------------------------------------------------------------

_W8A8 = (RowwiseInt8, DynamicInt8) if torch.cpu._is_avx512_supported() else (DynamicInt8, RowwiseInt8)
KERNELS = (*_W8A8, WeightOnlyInt8, WeightOnlyInt4)  # of two that take the same, the faster first


def set_kernel_path(name: str) -> None:
    """How quantized weights are multiplied from now on: "reference" (dequantize, then multiply, whatever the format) or
    "auto" (the kernel of this processor where there is one for the format). Layers change their form when they are
    next used; their weights stay the same to the bit. UnknownNameError for another name."""
    global _path, _times_set
    if name not in PATHS:
        raise unknown_name("kernel path", name, PATHS)
    _path, _times_set = name, _times_set + 1


def times_set() -> int:
    """How often the path was set: a form made at another count may not be the right one."""
    return _times_set


def form_of(q: QuantizedTensor, activation_bits: int | None = None, by_row: bool = False) -> Form:
    """The weight in the form that is multiplied fastest here; with `by_row` one of which rows can be looked up.

    Where a kernel is for it and this processor or this PyTorch lacks it, that is said once, and it is the reference.
    """
    if _path == "auto":
        kinds = [kind for kind in KERNELS if kind.takes(q, activation_bits) and (kind.by_row or not by_row)]
        for kind in kinds:
            if works(kind):
                return kind(q)
        if kinds:
            _say_once(kinds[0].__name__)
    return Reference(q, activation_bits)


@functools.cache
def _say_once(kernel: str) -> None:
    warnings.warn(f"this PyTorch has no {kernel} kernel that works on this processor; such weights are dequantized for "
                  "each product, which is slow.", RuntimeWarning, stacklevel=2)


@functools.cache
def works(kind: type[Form]) -> bool:
    """Whether a kernel is there and gives what the reference gives, weights and products."""
    with torch.inference_mode(False):
        q = _example(kind, 80, 96)
        try:
            form = kind(q)
            back = form.tensor()
            same = all(torch.equal(getattr(back, part), getattr(q, part)) for part in ("codes", "scales"))
            bits = 8 if issubclass(kind, DynamicInt8 | RowwiseInt8) else None
            return same and all(_agree(form.product(x), Reference(q, bits).product(x), bits)
                                for x in (_vectors(), _vectors()[:1], _vectors()[2:]))
        except (AttributeError, RuntimeError, StopIteration):
            return False


@functools.cache
def dynamic_bits() -> int:
    """Bits of an activation where they are rounded: 8, or 7 where the processor cannot add products of 8 bits rightly.

    Without VNNI instructions it adds products of bytes in pairs, in 16 bits: 2 * 255 * 127 is too large for them.
    """
    with torch.inference_mode(False):
        q, found = _example(DynamicInt8, 80, 96), []
        for kind, bits in ((k, b) for k in (DynamicInt8, RowwiseInt8) for b in (8, 7)):
            try:
                found.append((bits, _agree(kind(q).in_bits(_vectors(), bits), rounded_product(_vectors(), q, bits), 8)))
            except (AttributeError, RuntimeError):
                continue
    return 7 if (8, False) in found and (7, True) in found else 8


def _example(kind: type[Form], n: int, k: int) -> QuantizedTensor:
    """A weight that brings out what can go wrong: rows of the largest codes only, and a last block that is not full."""
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    w[0], w[1] = 1, -1
    if kind is WeightOnlyInt4:
        return quantize(w, 4, 32, symmetric=False, scale_dtype=torch.bfloat16)
    return quantize(w, 8, scale_dtype=torch.bfloat16 if kind is WeightOnlyInt8 else torch.float32)


def _vectors() -> Tensor:
    """Three vectors for it, two of them as large as they get."""
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    x[0], x[1] = 1, -1
    return x


def _agree(found: Tensor, wanted: Tensor, bits: int | None) -> bool:
    """Whether they differ by rounding alone: of float32 where activations are rounded, else of bfloat16."""
    return bool((found - wanted).abs().max() <= (1e-5 if bits else 2**-6) * wanted.abs().max())


def _is_int8(q: QuantizedTensor) -> bool:
    """Whether it is int8, symmetric, one scale for a row or for all; `torch._int_mm` fails with a single column."""
    plain = q.bits == 8 and q.zeros is None and q.scales.shape[1] == 1 < q.shape[1]
    return plain and torch.equal(q.levels, torch.arange(256.0) - 128)


def _signed(q: QuantizedTensor) -> Tensor:
    """Int8 codes as the numbers that they stand for, (N, K) int8."""
    return (q.codes ^ 128).view(torch.int8)


def _int8(codes: Tensor, scales: Tensor) -> QuantizedTensor:
    return QuantizedTensor("int8", codes.view(torch.uint8) ^ 128, torch.arange(256.0) - 128, scales, None,
                           tuple(codes.shape), 8)


@contextmanager
def _engine(name: str):
    """While it lasts, weights are packed for this engine of PyTorch's. RuntimeError where it is not there."""
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = name
        yield
    finally:
        torch.backends.quantized.engine = before
