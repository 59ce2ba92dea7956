"""Where a model keeps the keys and values of the tokens that it has read, so that it reads each only once.

A cache offers `lengths`, `append`, `advance`, `truncate`, `fork` and `free`; how it stores is its own affair.
Letters as in `layers`: B sequences, T new tokens, S positions, K key-value heads, D width of a head.
"""

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, bad_input


class ContiguousKVCache:
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

    def append(self, layer: int, k: Tensor, v: Tensor, n_new: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values (B, K, T, D) of one layer behind what is there, of each sequence the
        first `n_new`; return all positions that any sequence fills, (B, K, S, D). `advance` ends the call."""
        store, end = self._store[layer], int((self.lengths + n_new).max())
        for b, (start, n) in enumerate(zip(self.lengths.tolist(), n_new.tolist(), strict=True)):
            store[0, b, :, start : start + n] = k[b, :, :n]
            store[1, b, :, start : start + n] = v[b, :, :n]
        return store[0, :, :, :end], store[1, :, :, :end]

    def check_room(self, n_new: Tensor) -> None:
        """Refuse tokens that would not fit, before anything is stored."""
        for b, (held, new) in enumerate(zip(self.lengths.tolist(), n_new.tolist(), strict=True)):
            if held + new > self.capacity:
                raise BadInputError(f"sequence {b} holds {held} tokens and {new} more do not fit into {self.capacity}; "
                                    "make the cache larger or the text shorter.")

    def advance(self, n_new: Tensor) -> None:
        """Count the tokens that every layer has now stored."""
        self.lengths += n_new

    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens: keep `lengths` (B,) of each sequence."""
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
        """Forget everything; the memory stays for the next sequences."""
        self.lengths = torch.zeros_like(self.lengths)
