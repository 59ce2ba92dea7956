"""Where a model keeps the keys and values of the tokens that it has read, so that it reads each only once.

`KVCache` is what the model asks of any cache; how it stores is its own affair. A call of the model is one `reserve`,
an `attend` for each layer, one `advance`.
Letters as in `layers`: B sequences, T new tokens, S positions, K key-value heads, D width of a head.
"""

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, bad_input
from .layers import attend


class KVCache:
    """What every cache offers. `lengths` (B,) counts the tokens that it holds of each sequence."""

    lengths: Tensor

    def reserve(self, n_new: Tensor) -> None:
        """Make out where this call's `n_new` (B,) tokens go. Refuse what would not fit, and change nothing then."""
        raise NotImplementedError

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values (B, K, T, D) of one layer; return those of all positions, (B, K, S, D)."""
        raise NotImplementedError

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store this call's keys and values of one layer, then let its queries (B, H, T, D) look at all of them."""
        return attend(q, *self.append(layer, k, v), mask)

    def advance(self, n_new: Tensor) -> None:
        """Count the tokens that every layer has now stored."""
        self.lengths = self.lengths + n_new  # not in place: it may have been made under inference_mode

    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens: keep `lengths` (B,) of each sequence."""
        raise NotImplementedError

    def fork(self, rows: list[int]) -> "KVCache":
        """A cache whose sequences go on from these rows, each for itself; a row may be named more than once."""
        raise NotImplementedError

    def free(self) -> None:
        """Forget everything; the memory stays for the next sequences."""
        raise NotImplementedError


class ContiguousKVCache(KVCache):
    """One block of memory for each layer, made in advance for `capacity` tokens of each of `batch` sequences."""

    def __init__(self, cfg: ModelConfig, batch: int, capacity: int | None = None, dtype=torch.float32):
        capacity = cfg.context if capacity is None else capacity
        for name, value, most in (("batch", batch, None), ("capacity", capacity, cfg.context)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                allowed = "a whole number of 1 or more" + (f", at most the model's context of {most}" if most else "")
                raise bad_input(name, value, allowed)
        shape = (cfg.n_layers, 2, batch, cfg.n_kv_heads, capacity, cfg.head_dim)
        self._store = torch.zeros(shape, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)  # tokens held of each sequence
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return self._store.nbytes

    def reserve(self, n_new: Tensor) -> None:
        """Make out where the `n_new` (B,) tokens of this call go, behind what is there; refuse what would not fit."""
        held, new = self.lengths.tolist(), n_new.tolist()
        ends = [h + n for h, n in zip(held, new, strict=True)]
        for b, end in enumerate(ends):
            if end > self.capacity:
                raise BadInputError(f"sequence {b} holds {held[b]} tokens and {new[b]} more do not fit into "
                                    f"{self.capacity}; make the cache larger or the text shorter.")
        self._end = max(ends)
        if len(set(held)) == len(set(new)) == 1:  # all alike: one slice
            self._stored, self._taken = (..., slice(held[0], ends[0]), slice(None)), (..., slice(new[0]), slice(None))
        else:
            row, token = (torch.arange(max(new)) < n_new[:, None]).nonzero(as_tuple=True)
            self._stored, self._taken = (row, slice(None), self.lengths[row] + token), (row, slice(None), token)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values (B, K, T, D) of one layer at the places reserved; return all positions
        that any sequence fills, (B, K, S, D)."""
        keys, values = self._store[layer]
        keys[self._stored], values[self._stored] = k[self._taken], v[self._taken]
        return keys[:, :, : self._end], values[:, :, : self._end]

    def truncate(self, lengths: Tensor) -> None:
        if lengths.shape != self.lengths.shape or bool((lengths < 0).any() | (lengths > self.lengths).any()):
            raise BadInputError(f"lengths {lengths.tolist()} must lie between 0 and what is held, "
                                f"{self.lengths.tolist()}, one for each sequence.")
        self.lengths = lengths.clone()

    def fork(self, rows: list[int]) -> "ContiguousKVCache":
        """A new cache whose sequences are copies of these rows; a row may be named more than once."""
        held = len(self.lengths)
        if not rows or any(not 0 <= row < held for row in rows):
            raise BadInputError(f"rows {rows} must name sequences from 0 to {held - 1}.")
        twin = object.__new__(ContiguousKVCache)
        twin._store, twin.lengths = self._store[:, :, rows].clone(), self.lengths[rows].clone()
        twin.capacity = self.capacity
        return twin

    def free(self) -> None:
        self.lengths = torch.zeros_like(self.lengths)
