"""A cache for models whose layers look back a fixed number of tokens: such a layer keeps no more than these.

Its places form a ring: token p of a sequence lies at place p % window, where it takes the place of the one that has
just gone out of sight. Letters as in `kvcache`; R places of a ring.
"""

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, bad_input
from .kvcache import ContiguousKVCache, check_entries, whole_counts
from .layers import attend, window_of


class WindowKVCache(ContiguousKVCache):
    """For a ModelConfig with a `sliding_window`: a ring for each layer with a window, and `capacity` places for each
    layer without one. Up to `window` tokens nothing is different from a ContiguousKVCache."""

    def __init__(self, cfg: ModelConfig, batch: int, capacity: int | None = None, dtype=torch.float32):
        if cfg.sliding_window is None:
            raise bad_input("sliding_window", None, "a number of tokens", "Take ContiguousKVCache for this model.")
        with torch.device("meta"):  # no memory: what each layer needs is made below
            super().__init__(cfg, batch, capacity, dtype)
        _, *layer, width = self._store.shape
        self.window = min(cfg.sliding_window, self.capacity)
        with torch.inference_mode(False):
            self._store = torch.zeros((cfg.n_global_layers, *layer, width), dtype=dtype)
            layer[-1] = self.window
            self._rings = torch.zeros((cfg.n_layers - cfg.n_global_layers, *layer, width), dtype=dtype)
        near = [window_of(cfg, i) is not None for i in range(cfg.n_layers)]
        self._home = [(near[i], near[:i].count(near[i])) for i in range(cfg.n_layers)]  # windowed or not, which of them
        self.lengths, self._lost = (torch.zeros(batch, dtype=torch.long) for _ in range(2))  # the first _lost are gone;
        # of an empty sequence it does not count

    @property
    def nbytes(self) -> int:
        return self._store.nbytes + self._rings.nbytes

    def reserve(self, n_new: Tensor) -> None:
        new = torch.tensor(whole_counts(n_new, len(self.lengths)))
        lost = torch.where(self.lengths == 0, 0, self._lost)
        if ((new > 0) & ((self.lengths - self.window + 1).clamp(min=0) < lost)).any():
            raise BadInputError("a call that was interrupted has overwritten what the next token looks back at; free "
                                "the cache and read the text again.")
        super().reserve(n_new)
        held, new = self.lengths.tolist(), new.tolist()
        self._ends, self._shown = self.lengths + n_new, (None, None)
        self._lost = torch.maximum(lost, self._ends - self.window)  # also if this call ends half-way
        self._alike = len(set(held)) == len(set(new)) == 1
        if self._alike and new[0] == 1:  # a step of a batch: one slice
            place = held[0] % self.window
            self._into, self._from = (..., slice(place, place + 1), slice(None)), ...
        else:
            token, kept = torch.arange(max(new)), (n_new - self.window).clamp(min=0)[:, None]  # the last of a long text
            row, token = ((kept <= token) & (token < n_new[:, None])).nonzero(as_tuple=True)
            self._into = row, slice(None), (self.lengths[row] + token) % self.window
            self._from = row, slice(None), token

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """BadInputError: a ring does not hold all positions that could be handed out."""
        raise BadInputError("a cache with windows hands out no keys and values; let `attend` look at them.")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        windowed, index = self._home[layer]
        if not windowed:
            return attend(q, *super().append(index, k, v), mask)
        ring, T = self._rings[index], k.shape[2]
        check_entries((k, v), (*ring.shape[1:3], ring.shape[4]), self._most, ring.dtype)
        if T == 1 or self._end <= self.window:  # a token that is overwritten now is out of sight of the new ones
            seen = self._mask_of(mask, self._ends.clamp(min=1), 0)
            self._store_in(ring, k, v)
            keys, values = ring[:, :, :, : self._end]
        else:
            seen = self._mask_of(mask, self.lengths, T)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(ring, (k, v), strict=True))  # (B, K, R + T, D)
            self._store_in(ring, k, v)
        return attend(q, keys, values, seen)

    def _store_in(self, ring: Tensor, k: Tensor, v: Tensor) -> None:
        ring[0][self._into], ring[1][self._into] = k.detach()[self._from], v.detach()[self._from]

    def _mask_of(self, mask: Tensor | None, held: Tensor, behind: int) -> Tensor | None:
        """The mask over positions as one over the places of a ring that holds `held` (B,) tokens of each sequence,
        and over the `behind` tokens that stand behind it."""
        if self._end <= self.window:  # the places are the positions
            return mask
        if mask is None:
            raise bad_input("mask", None, f"one that ends at the window of {self.window}",
                            "This cache is for a model of the same sliding_window; take ContiguousKVCache for others.")
        if behind == 0 and self._alike:  # the ring is what one token sees
            return None
        if mask is not self._shown[0]:  # else it is another layer's, too
            newest = held[:, None] - 1
            position = newest - (newest - torch.arange(self.window)) % self.window  # (B, R), below 0 where none lies
            position = torch.cat((position, held[:, None] + torch.arange(behind)), dim=1)[:, None, None]
            there = (position >= 0) & (position < self._end)  # (B, 1, 1, R + T)
            at = position.clamp(0, self._end - 1).expand(-1, -1, mask.shape[2], -1)
            self._shown = mask, mask.gather(-1, at) & there
        return self._shown[1]

    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens. BadInputError where the window of what is left reaches back to tokens that were
        overwritten: of a sequence longer than the window only its last token can be forgotten, or all."""
        before = self.lengths
        super().truncate(lengths)
        gone = (lengths > 0) & ((lengths - self.window + 1).clamp(min=0) < self._lost)
        if gone.any():
            self.lengths, row = before, int(gone.nonzero()[0])
            raise BadInputError(f"sequence {row} cannot go back to {int(lengths[row])} tokens: its first "
                                f"{int(self._lost[row])} are overwritten, and the window of {self.window} reaches "
                                "there; free it and read the text again, or fork it before.")

    def fork(self, rows: list[int]) -> "WindowKVCache":
        twin = super().fork(rows)
        with torch.inference_mode(False):
            twin._rings, twin._lost = self._rings[:, :, rows].clone(), self._lost[rows].clone()
        return twin
