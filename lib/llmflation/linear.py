"""Matrix times a few vectors, the product that writing a token is made of, by the fastest of PyTorch's own ways.

Which way is fastest differs from machine to machine, between number formats, and between one vector and several, up to
threefold. So they are timed once, on the machine at hand; `set_linear_path` decides by hand.
"""

import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import unknown_name

TRIAL_BYTES = 48 * 2**20  # of weights: more than most processors keep in their cache
CLEARLY = 1.1  # how many times as fast as plain a path must be to be taken
SEVERAL = 16  # vectors of the second trial
MANY = 256  # and of the third
FEW = 64  # vectors that one packed product takes at its best; more go through it in parts of so many
MOST = 2 * FEW  # a large batch; more vectors are a prompt
ROWS = 16_384  # of a weight that are widened at a time: a head's copy need not be held whole


class Linear(nn.Linear):
    """The weights (out, in) of one product, without bias: x (..., in) -> (..., out).

    The path is that of `linear_path`; in training it is the plain one. Names and shapes of the weights are those of
    `torch.nn.Linear`.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)
        self._packed: Packed | None = None

    @classmethod
    def of(cls, weight: Tensor) -> "Linear":
        """The layer with these very weights, not to be trained."""
        with torch.device("meta"):  # no memory for weights that would be thrown away
            layer = cls(*reversed(weight.shape))
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight.requires_grad or x.requires_grad or weight.dtype != x.dtype or not weight.is_cpu:
            return F.linear(x, weight)
        return PATHS[linear_path(weight.dtype, x.numel() // weight.shape[1])](self, x)

    def packed(self) -> Tensor:
        """The weights in the order in which oneDNN's kernels read them; made anew when the weights have changed."""
        if self._packed is None or not self._packed.is_of(self.weight):
            self._packed = None  # frees the old copy first
            self._packed = Packed(self.weight)
        return self._packed.matrix

    def __getstate__(self):
        return self.__dict__ | {"_packed": None}  # a copy of this layer packs its own weights


class Packed:
    """A second copy of a weight, reordered, that knows whether the weight is still the one that it was made from.

    PyTorch counts the changes of every tensor, except those made through `.data` or NumPy: after such a change call
    `set_linear_path`, which makes all copies stale.
    """

    def __init__(self, weight: Tensor):
        self._weight, self._state = weight, _state(weight)
        self._memory = weight.detach()  # while this lives, no other weight can come to lie at its address
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(self._memory)

    def is_of(self, weight: Tensor) -> bool:
        """Whether `weight` is the same tensor in the same memory, unchanged."""
        return weight is self._weight and _state(weight) == self._state


def _state(weight: Tensor) -> tuple:
    return weight._version, weight.data_ptr(), weight.shape, weight.stride(), _times_set


def _by_packed(layer: Linear, x: Tensor) -> Tensor:
    if layer.weight.is_inference():  # made under inference_mode: PyTorch counts no changes
        return F.linear(x, layer.weight)
    packed = layer.packed()
    if x.numel() <= FEW * x.shape[-1]:
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    parts = [torch.ops.mkldnn._linear_pointwise(part, packed, None, "none", [], "")
             for part in x.reshape(-1, x.shape[-1]).split(FEW)]
    return torch.cat(parts).view(*x.shape[:-1], -1)


def _by_vector(layer: Linear, x: Tensor) -> Tensor:
    if x.numel() != x.shape[-1]:
        return F.linear(x, layer.weight)
    return torch.mv(layer.weight, x.reshape(-1)).view(*x.shape[:-1], -1)


def _by_widened(layer: Linear, x: Tensor) -> Tensor:
    wide = x.float()
    parts = [F.linear(wide, rows.float()) for rows in layer.weight.split(ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


PATHS = {"plain": lambda layer, x: F.linear(x, layer.weight), "packed": _by_packed, "vector": _by_vector,
         "widened": _by_widened}
_path = "auto"
_times_set = 0


def set_linear_path(name: str) -> None:
    """Take one path from now on: "plain" (`F.linear`), "packed" (oneDNN's kernels on a second, reordered copy of each
    weight), "vector" (`torch.mv` for a single one), "widened" (bfloat16 weights made float32 for each product: fast
    where the processor cannot multiply bfloat16), or "auto", the fastest here. Results differ by rounding alone.

    A path that this machine or this PyTorch does not have is plain. UnknownNameError for another name.
    """
    global _path, _times_set
    if name != "auto" and name not in PATHS:
        raise unknown_name("linear path", name, ["auto", *PATHS])
    _path, _times_set = name, _times_set + 1


def linear_path(dtype: torch.dtype = torch.float32, vectors: int = 1) -> str:
    """The path that products with so many vectors at once in this format take here.

    >>> set_linear_path("plain")
    >>> linear_path(torch.bfloat16)
    'plain'
    """
    if _path == "auto":
        return _fastest(dtype, 1 if vectors == 1 else SEVERAL if vectors <= MOST else MANY)
    return _path if _works(_path, dtype) else "plain"


@functools.cache
def _fastest(dtype: torch.dtype, vectors: int) -> str:
    """The path that is fastest for so many vectors, found in a tenth of a second or so, once in a process."""
    many = vectors > MOST  # plain could take a second for one large product of many, where no instruction helps it
    width, rows = (256, 512) if many else (512, 3072)
    count = 4 if many else TRIAL_BYTES // (width * rows * dtype.itemsize)
    layers = [_trial_layer(width, rows, dtype) for _ in range(count)]
    x = torch.ones(vectors, 1, width, dtype=dtype)
    names = [n for n in PATHS if n == "plain" or (_works(n, dtype) and not (many and n == "vector"))]
    times = {name: [float("inf")] * count for name in names}
    for _ in range(4):  # in turns, the best of each product: other programs disturb for longer than one takes
        for name, best in times.items():
            for i, layer in enumerate(layers):
                start = time.perf_counter()
                PATHS[name](layer, x)
                best[i] = min(best[i], time.perf_counter() - start)
    total = {name: sum(best) for name, best in times.items()}
    winner = min(total, key=total.get)
    return winner if total[winner] * CLEARLY < total["plain"] else "plain"


@functools.cache
def _works(name: str, dtype: torch.dtype) -> bool:
    """Whether a small product comes out right: not every build of PyTorch has every operator, or every processor."""
    if name == "widened" and dtype not in (torch.bfloat16, torch.float16):
        return False  # as wide as it gets, or wider
    layer, x = _trial_layer(32, 64, dtype), torch.ones(1, 1, 32, dtype=dtype)
    try:
        return torch.equal(PATHS[name](layer, x), torch.full((1, 1, 64), 32.0, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False


def _trial_layer(n_in: int, n_out: int, dtype: torch.dtype) -> Linear:
    with torch.inference_mode(False):  # a trial may begin inside of it
        return Linear.of(torch.ones(n_out, n_in, dtype=dtype))
