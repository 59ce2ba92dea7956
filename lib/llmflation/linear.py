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
FEW = 64  # vectors that one packed product takes at its best; more go through it in parts of so many
MOST = 2 * FEW  # a large batch; more vectors are a prompt, for which plain is nearly as fast and rounds less


class Linear(nn.Linear):
    """The weights (out, in) of one product, without bias: x (..., in) -> (..., out).

    Up to MOST vectors take the path of `linear_path`; more, and everything in training, the plain one. Names and shapes
    of the weights are those of `torch.nn.Linear`.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)
        self._packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight.requires_grad or x.requires_grad or weight.dtype != x.dtype or not weight.is_cpu:
            return F.linear(x, weight)
        vectors = x.numel() // weight.shape[1]
        if vectors > MOST:
            return F.linear(x, weight)
        return PATHS[linear_path(weight.dtype, vectors)](self, x)

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


PATHS = {"plain": lambda layer, x: F.linear(x, layer.weight), "packed": _by_packed, "vector": _by_vector}
_path = "auto"
_times_set = 0


def set_linear_path(name: str) -> None:
    """Take one path from now on: "plain" (`F.linear`), "packed" (oneDNN's kernels on a second, reordered copy of each
    weight), "vector" (`torch.mv` for a single vector), or "auto", the fastest here. Results differ by rounding alone.

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
        return _fastest(dtype, vectors > 1)
    return _path if _works(_path, dtype) else "plain"


@functools.cache
def _fastest(dtype: torch.dtype, several: bool) -> str:
    """The path that is fastest for one vector or for several, found in a tenth of a second or so, once in a process."""
    width, rows = 512, 3072
    count = TRIAL_BYTES // (width * rows * dtype.itemsize)
    layers = [_trial_layer(width, rows, dtype) for _ in range(count)]
    x = torch.ones(SEVERAL if several else 1, 1, width, dtype=dtype)
    times = {name: [float("inf")] * count for name in PATHS if name == "plain" or _works(name, dtype)}
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
    """Whether a small product comes out right: not every build of PyTorch has every operator."""
    layer, x = _trial_layer(32, 64, dtype), torch.ones(1, 1, 32, dtype=dtype)
    try:
        return torch.equal(PATHS[name](layer, x), torch.full((1, 1, 64), 32.0, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False


def _trial_layer(n_in: int, n_out: int, dtype: torch.dtype) -> Linear:
    with torch.device("meta"):
        layer = Linear(n_in, n_out)
    with torch.inference_mode(False):  # a trial may begin inside of it
        layer.weight = nn.Parameter(torch.ones(n_out, n_in, dtype=dtype), requires_grad=False)
    return layer
