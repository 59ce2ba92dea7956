"""Where a model keeps the keys and values of the tokens that it has read, so that it reads each only once.

`KVCache` is what the model asks of any cache; how it stores is its own affair. A call of the model is one `reserve`,
an `attend` for each layer, one `advance`.
Letters as in `layers`: B sequences, T new tokens, S positions, K key-value heads, D width of a head.
"""

from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, bad_input, check_whole
from .layers import attend


def whole_counts(n_new: Tensor, rows: int) -> list[int]:
    """New tokens of each of `rows` sequences; BadInputError for another number of them, and for negative ones."""
    counts = n_new.tolist() if isinstance(n_new, Tensor) else n_new
    if not isinstance(n_new, Tensor) or n_new.shape != (rows,):
        raise BadInputError(f"n_new is {counts!r}; allowed: a tensor of one number for each of {rows} sequences.")
    return [check_whole("n_new", n, 0) for n in counts]


def check_lengths(lengths: Tensor, held: Tensor) -> None:
    """BadInputError unless `lengths` are whole numbers from 0 to what is held, one for each sequence."""
    if (not isinstance(lengths, Tensor) or lengths.dtype != torch.long or lengths.shape != held.shape
            or bool((lengths < 0).any() | (lengths > held).any())):
        found = lengths.tolist() if isinstance(lengths, Tensor) else repr(lengths)
        raise BadInputError(f"lengths {found} must be whole numbers between 0 and what is held, {held.tolist()}, one "
                            "for each sequence, as a tensor.")


def check_rows(rows: list[int], held: int) -> None:
    """BadInputError unless `rows` name sequences of the `held` that there are."""
    if not rows or any(isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < held for row in rows):
        raise BadInputError(f"rows {rows!r} must name sequences from 0 to {held - 1}.")


def check_entries(entries: tuple[Tensor, ...], wanted: tuple[int, int, int], most: int | None,
                  dtype: torch.dtype) -> None:
    """BadInputError unless all are (B, K, T, D), `wanted` being (B, K, D), T at least `most`, of this `dtype` and in
    main memory; `most` is None before the first call was reserved."""
    if most is None:
        raise BadInputError("no room was reserved for these keys and values; call `reserve` first.")
    for x in entries:
        if not isinstance(x, Tensor) or not x.is_cpu:
            raise bad_input("keys or values", f"{x.device}" if isinstance(x, Tensor) else type(x).__name__,
                            "tensors in main memory")
        if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != wanted or x.shape[2] < most or x.dtype != dtype:
            B, K, D = wanted
            raise BadInputError(f"keys or values are {x.dtype} {tuple(x.shape)}; this call reserved "
                                f"{dtype} {(B, K, most, D)}.")


class KVCache(ABC):
    """What every cache offers. `lengths` (B,) counts the tokens that it holds of each sequence."""

    lengths: Tensor

    @abstractmethod
    def reserve(self, n_new: Tensor) -> None:
        """Make out where this call's `n_new` (B,) tokens go. Refuse what would not fit, and change nothing then."""

    @abstractmethod
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values (B, K, T, D) of one layer; return those of all positions, (B, K, S, D)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store this call's keys and values of one layer, then let its queries (B, H, T, D) look at all of them."""
        return attend(q, *self.append(layer, k, v), mask)

    def advance(self, n_new: Tensor) -> None:
        """Count the tokens that every layer has now stored."""
        self.lengths = self.lengths + n_new  # not in place: it may have been made under inference_mode

    @abstractmethod
    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens: keep `lengths` (B,) of each sequence."""

    @abstractmethod
    def fork(self, rows: list[int]) -> "KVCache":
        """A cache whose sequences go on from these rows, each for itself; a row may be named more than once."""

    @abstractmethod
    def free(self) -> None:
        """Forget everything; the memory stays for the next sequences."""


class ContiguousKVCache(KVCache):
    """One block of memory for each layer, made in advance for `capacity` tokens of each of `batch` sequences."""

    _most: int | None = None  # new tokens of a row in the call that was reserved
    _end = 0  # positions that it fills at most

    def __init__(self, cfg: ModelConfig, batch: int, capacity: int | None = None, dtype=torch.float32):
        capacity = cfg.context if capacity is None else capacity
        for name, value, most in (("batch", batch, None), ("capacity", capacity, cfg.context)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                allowed = "a whole number of 1 or more" + (f", at most the model's context of {most}" if most else "")
                raise bad_input(name, value, allowed)
        shape = (cfg.n_layers, 2, batch, cfg.n_kv_heads, capacity, cfg.head_dim)
        with torch.inference_mode(False):  # or it could not be written outside of it
            self._store = torch.zeros(shape, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)  # tokens held of each sequence
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return self._store.nbytes

    def reserve(self, n_new: Tensor) -> None:
        """Make out where the `n_new` (B,) tokens of this call go, behind what is there; refuse what would not fit."""
        held, new = self.lengths.tolist(), whole_counts(n_new, len(self.lengths))
        ends = [h + n for h, n in zip(held, new, strict=True)]
        for b, end in enumerate(ends):
            if end > self.capacity:
                raise BadInputError(f"sequence {b} holds {held[b]} tokens and {new[b]} more do not fit into "
                                    f"{self.capacity}; make the cache larger or the text shorter.")
        self._end, self._most = max(ends), max(new)
        self._alike = len(set(held)) == len(set(new)) == 1
        if self._alike:  # one slice
            self._stored, self._taken = (..., slice(held[0], ends[0]), slice(None)), (..., slice(new[0]), slice(None))
        else:
            row, token = (torch.arange(max(new)) < n_new[:, None]).nonzero(as_tuple=True)
            self._stored, self._taken = (row, slice(None), self.lengths[row] + token), (row, slice(None), token)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values (B, K, T, D) of one layer at the places reserved; return all positions
        that any sequence fills, (B, K, S, D)."""
        keys, values = self._store[layer].narrow(3, 0, self._end).unbind()
        check_entries((k, v), (*keys.shape[:2], keys.shape[3]), self._most, keys.dtype)
        for store, x in ((keys, k.detach()), (values, v.detach())):
            if self._alike:  # the plain way to say the same, with fewer calls
                new = x if x.shape[2] == self._most else x.narrow(2, 0, self._most)
                store.narrow(2, self._end - self._most, self._most).copy_(new)
            else:
                store[self._stored] = x[self._taken]
        return keys, values

    def truncate(self, lengths: Tensor) -> None:
        check_lengths(lengths, self.lengths)
        self.lengths = lengths.clone()

    def fork(self, rows: list[int]) -> "ContiguousKVCache":
        """A new cache whose sequences are copies of these rows; a row may be named more than once."""
        check_rows(rows, len(self.lengths))
        twin = copy(self)
        with torch.inference_mode(False):
            twin._store, twin.lengths = self._store[:, :, rows].clone(), self.lengths[rows].clone()
        return twin

    def free(self) -> None:
        self.lengths = torch.zeros_like(self.lengths)
