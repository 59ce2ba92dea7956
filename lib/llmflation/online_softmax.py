"""Attention without the square of scores: softmax that is corrected as the keys go by, a block of them at a time.

After Milakov and Gimelshein (2018), for softmax alone, and FlashAttention (Dao and others 2022), which made it
attention. Letters: B sequences, H heads, T queries, S positions of keys and values, D width of a head; the queries
are the last T of the S tokens, and each looks at what stands before it and at itself.
"""

import math

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import BadInputError, check_whole


def square_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as it is written on paper, (B, H, T, D): every score of queries (B, H, T, D) and keys (B, H, S, D)
    stands in memory at once."""
    seen = _seen(q, k, v, 0, k.shape[-2])
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)  # (B, H, T, S)
    return scores.softmax(-1) @ v


def online_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 128) -> Tensor:
    """The same for `block` keys at a time, so that no more than T times `block` scores of a head stand in memory.

    Weights are taken relative to the largest score so far; when a larger one comes, what was summed up shrinks to suit.
    """
    check_whole("block", block)
    largest = q.new_full((*q.shape[:-1], 1), -math.inf)  # score so far, of each query
    total, mixed = torch.zeros_like(largest), torch.zeros_like(q)  # the weights so far; their mix of values
    for start in range(0, k.shape[-2], block):
        keys, values = k[..., start:start + block, :], v[..., start:start + block, :]
        seen = _seen(q, k, v, start, keys.shape[-2])
        scores = (q @ keys.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)  # (B, H, T, block)
        larger = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - larger).exp(), (largest - larger).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        mixed = mixed * shrink + weights @ values
        largest = larger
    return mixed / total


def _seen(q: Tensor, k: Tensor, v: Tensor, start: int, count: int) -> Tensor:
    """Which of `count` keys from `start` on each query may look at, (T, count)."""
    T, S = q.shape[-2], k.shape[-2]
    if k.shape != v.shape or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1] or not 1 <= T <= S:
        raise BadInputError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not go "
                            "together; allowed: (B, H, T, D) and twice (B, H, S, D), with S of T or more.")
    return torch.arange(start, start + count) <= torch.arange(S - T, S)[:, None]


class Held(TorchDispatchMode):
    """While it is entered: the bytes that tensors made by PyTorch's operators hold, at most, as `peak_bytes`.

    What an operator takes for itself and gives back before it ends is not seen, nor what was there before.
    """

    def __init__(self):
        super().__init__()
        self.peak_bytes, self._living = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)):
            if storage._cdata not in known:  # no view of an argument
                self._living[StorageWeakRef(storage)] = storage.nbytes()
        self._living = {ref: nbytes for ref, nbytes in self._living.items() if not ref.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._living.values()))
        return made
