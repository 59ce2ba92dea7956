"""A cache whose keys and values lie in 8 or 4 bits each: it holds and moves fewer bytes, and rounds what it holds.

A head's vector is cut into groups of channels, each with a scale and a zero point of its own, as in `quant.integer`:
keys have a few channels that are far larger than the others, so a group confines what such a channel costs, and a zero
point spends no codes on the side of 0 where nothing lies. Every token is rounded by itself, so its codes do not depend
on what else a call brings. KIVI (Liu et al. 2024) rounds keys channel by channel over blocks of tokens, so that a large
channel costs the others nothing; that is not offered here.
Letters as in `kvcache`: B sequences, T new tokens, S positions, H query heads, K key-value heads, D width of a head;
G groups of a head, R recent tokens, E tokens held in full.
"""

from copy import copy

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, bad_input, check_whole
from .kvcache import ContiguousKVCache, check_entries, check_lengths, check_rows
from .layers import attend
from .quant.integer import quantize
from .quant.packing import packed_width, unpack
from .quant.tensor import grouped

PIECE_BYTES = 3 * 2**20  # of keys and values made again at once: a share of most processors' last cache


class QuantizedKVCache(ContiguousKVCache):
    """Codes for `capacity` tokens of each of `batch` sequences. A token finds itself and the `recent` - 1 before it in
    full precision (`dtype`), all others rounded, however many tokens a call brings.

    A scale and a zero point serve `group_size` channels of a token's head; None, or more than it has: all of them.
    Up to `recent` tokens nothing is different from a ContiguousKVCache. Beyond, with `recent` above 0, only the last
    token can be forgotten, or all.
    """

    def __init__(self, cfg: ModelConfig, batch: int, capacity: int | None = None, bits: int = 8,
                 group_size: int | None = 32, recent: int = 0, dtype=torch.float32, *, scale_dtype=torch.float32):
        if type(bits) is not int or bits not in (4, 8):
            raise bad_input("bits", bits, "8 or 4")
        for name, kind in (("dtype", dtype), ("scale_dtype", scale_dtype)):
            if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
                raise bad_input(name, kind, "a float format, such as torch.float32")
        if type(group_size) is int and group_size > cfg.head_dim:
            group_size = None  # a head is as wide as a group gets
        recent, groups = check_whole("recent", recent, 0), grouped(torch.empty(1, cfg.head_dim), group_size, "a head")
        with torch.device("meta"):  # no memory: less is needed than for keys and values
            super().__init__(cfg, batch, capacity, dtype)
        del self._store
        self.bits, self.group_size, self.recent = bits, group_size, min(recent, self.capacity)
        self.dtype, self._wide = dtype, torch.promote_types(dtype, torch.float32)
        self._heads, self._width = cfg.n_kv_heads, cfg.head_dim
        token = cfg.n_layers, 2, batch, cfg.n_kv_heads, self.capacity
        with torch.inference_mode(False):  # or it could not be written outside of it
            self._codes = torch.zeros((*token, packed_width(cfg.head_dim, bits)), dtype=torch.uint8)
            self._scales = torch.zeros((*token, groups.shape[1]), dtype=scale_dtype)
            self._zeros = torch.zeros((*token, groups.shape[1]), dtype=torch.uint8)
            self._ring = torch.zeros((*token[:-1], self.recent, cfg.head_dim), dtype=dtype)  # token p at place p % R
            self._scratch = torch.empty(0, dtype=self._wide)
        self.lengths, self._lost = (torch.zeros(batch, dtype=torch.long) for _ in range(2))  # the ring lost the first

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not: codes, scales, zero points and the recent tokens."""
        return self._rounded_bytes + self._ring.nbytes

    @property
    def bits_per_value(self) -> float:
        """Bits that a key's or value's channel takes beyond the recent tokens, with its share of scale and zero."""
        return 8 * self._rounded_bytes / (self._codes[..., 0].numel() * self._width)

    @property
    def _rounded_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes

    def reserve(self, n_new: Tensor) -> None:
        super().reserve(n_new)
        self._ends, self._shown, self._kept = self.lengths + n_new, None, None
        if 0 < self.recent < self._end:  # what the ring keeps of this call: nothing is overwritten before `advance`
            token = torch.arange(self._most)
            newest = (token >= (n_new - self.recent)[:, None]) & (token < n_new[:, None])
            self._row, self._token = newest.nonzero(as_tuple=True)
            self._place = (self.lengths[self._row] + self._token) % self.recent
            self._kept = self._ring.new_zeros((len(self._row), *self._ring.shape[:2], self._heads, self._width))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values of one layer; return all positions as each row's last token sees them."""
        self._write(layer, k, v)
        if self._end <= self.recent:
            keys, values = self._ring[layer, ..., : self._end, :]
            return keys, values
        whole = self._codes.new_empty((2, len(k), self._heads, self._end, self._width), dtype=self._wide)
        self._dequantize(whole, layer)
        if self.recent:
            exact, at = self._exact(layer, k, v), self._positions()
            row, column = ((at >= 0) & (at >= (self._ends - self.recent)[:, None])
                           & (at < self._ends[:, None])).nonzero(as_tuple=True)
            whole[:, row, :, at[row, column]] = exact[:, row, :, column].to(self._wide)
        return whole[0].to(self.dtype), whole[1].to(self.dtype)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        self._write(layer, k, v)
        if self._end <= self.recent:
            return attend(q, *self._ring[layer, ..., : self._end, :], mask)
        exact = None
        if self.recent:
            exact, mask = self._exact(layer, k, v), self._mask_of(mask, q.shape[2])
        n_rounded, n_exact = self._end - self.recent, 0 if exact is None else exact.shape[3]
        group, looked = q.shape[1] // self._heads, torch.empty_like(q)
        for rows, heads in self._pieces(n_rounded + n_exact):
            made = self._room(rows, heads, n_rounded + n_exact)
            self._dequantize(made[..., :n_rounded, :], layer, rows, heads)
            if exact is not None:
                made[..., n_rounded:, :] = exact[:, rows, heads]
            asks = rows, slice(heads.start * group, heads.stop * group)
            looked[asks] = attend(q[asks], *made.to(self.dtype), None if mask is None else mask[rows])
        return looked

    def advance(self, n_new: Tensor) -> None:
        lengths, lost = self.lengths + n_new, torch.maximum(self._lost, self._ends - self.recent)
        if self._kept is not None:
            self._ring[:, :, self._row, :, self._place] = self._kept
        self.lengths, self._lost, self._kept, self._shown = lengths, lost, None, None

    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens. BadInputError where the next token would look at recent ones that are only held
        rounded any more."""
        check_lengths(lengths, self.lengths)
        gone = (lengths > 0) & ((lengths - self.recent + 1).clamp(min=0) < self._lost)
        if self.recent and gone.any():
            row = int(gone.nonzero()[0])
            raise BadInputError(f"sequence {row} cannot go back to {int(lengths[row])} tokens: its first "
                                f"{int(self._lost[row])} are rounded, and its next token finds {self.recent - 1} in "
                                "full; free it and read the text again, fork it before, or take recent=0.")
        self._lost = torch.where(lengths == 0, 0, self._lost)
        self.lengths = lengths.clone()

    def fork(self, rows: list[int]) -> "QuantizedKVCache":
        """A new cache whose sequences are copies of these rows; a row may be named more than once."""
        check_rows(rows, len(self.lengths))
        twin = copy(self)
        with torch.inference_mode(False):
            for name in ("_codes", "_scales", "_zeros", "_ring"):
                setattr(twin, name, getattr(self, name)[:, :, rows].clone())
            twin.lengths, twin._lost = self.lengths[rows].clone(), self._lost[rows].clone()
            twin._scratch = torch.empty(0, dtype=self._wide)
        return twin

    def free(self) -> None:
        super().free()
        self._lost = torch.zeros_like(self._lost)

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Round this call's tokens; keep the newest as they are, too."""
        check_entries((k, v), (len(self.lengths), self._heads, self._width), self._most, self.dtype)
        if self._most == 0:
            return
        new = torch.stack((k.detach()[self._taken], v.detach()[self._taken]))  # (2, B, K, T, D) or (2, tokens, K, D)
        rounded = quantize(new.flatten(0, -2), self.bits, self.group_size, symmetric=False,
                           scale_dtype=self._scales.dtype, name="keys or values")
        parts = [(self._codes, rounded.codes), (self._scales, rounded.scales), (self._zeros, rounded.zeros)]
        if self._end <= self.recent:  # nothing has left the ring, and a position is its place
            parts.append((self._ring, new))
        for store, part in parts:
            keys, values = store[layer]
            keys[self._stored], values[self._stored] = part.view(*new.shape[:-1], -1)
        if self._kept is not None:
            for i, x in enumerate((k, v)):
                self._kept[:, layer, i] = x.detach()[self._row, :, self._token]

    def _dequantize(self, out: Tensor, layer: int, rows: slice = slice(None), heads: slice = slice(None)) -> None:
        """Fill `out` (2, B, K, S, D) with the first S tokens of these rows and heads: (code - zero) * scale."""
        codes, scales, zeros = (store[layer, :, rows, heads, : out.shape[3]]
                                for store in (self._codes, self._scales, self._zeros))
        if self.bits < 8:
            codes = unpack(codes.flatten(0, -2), self.bits, self._width).view(out.shape)
        groups = out.unflatten(-1, (scales.shape[-1], -1))  # (2, B, K, S, G, D / G)
        groups.copy_(codes.unflatten(-1, groups.shape[-2:])).sub_(zeros[..., None]).mul_(scales[..., None])

    def _exact(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """The tokens held in full, (2, B, K, E, D): those of the ring that are filled, and this call's."""
        new = torch.stack((k.detach(), v.detach()))[..., : self._most, :]
        return torch.cat((self._ring[layer, ..., : self._filled(), :], new), dim=3)

    def _filled(self) -> int:
        return min(self.recent, int(self.lengths.max()))

    def _positions(self) -> Tensor:
        """Which position each of the `_exact` tokens has, (B, E); below 0 where a row has none there."""
        newest = self.lengths[:, None] - 1
        ring = newest - (newest - torch.arange(self._filled())) % self.recent
        return torch.cat((ring, self.lengths[:, None] + torch.arange(self._most)), dim=1)

    def _mask_of(self, mask: Tensor | None, n_asking: int) -> Tensor:
        """The mask over positions as one over the rounded tokens and, behind them, those in full: each query sees
        its recent ones in full and the others rounded, (B, 1, T, S - R + E)."""
        if self._shown and self._shown[0] is mask and self._shown[1] == n_asking:  # another layer's, too
            return self._shown[2]
        last = (self._ends - 1).clamp(min=0)[:, None]
        asks = last if n_asking == 1 else torch.minimum(self.lengths[:, None] + torch.arange(n_asking), last)
        asks = asks[:, None, :, None]  # (B, 1, T, 1)
        rounded, at = torch.arange(self._end - self.recent), self._positions()[:, None, None]
        if mask is None:
            mask_rounded, mask_exact = rounded <= asks, at <= asks
        else:
            mask_rounded = mask[..., : self._end - self.recent]
            mask_exact = mask.gather(-1, at.clamp(0, self._end - 1).expand(-1, -1, n_asking, -1))
        shown = torch.cat((mask_rounded & (rounded <= asks - self.recent),
                           mask_exact & (at > asks - self.recent) & (at >= 0) & (at < self._end)), dim=-1)
        self._shown = mask, n_asking, shown
        return shown

    def _pieces(self, columns: int) -> list[tuple[slice, slice]]:
        """Rows and heads whose keys and values fill PIECE_BYTES or less: some rows, or of one row some heads."""
        head = 2 * columns * self._width * self._wide.itemsize
        heads = min(self._heads, max(1, PIECE_BYTES // head))
        rows = max(1, PIECE_BYTES // (head * self._heads))
        return [(slice(b, b + rows), slice(h, min(h + heads, self._heads)))
                for b in range(0, len(self.lengths), rows) for h in range(0, self._heads, heads)]

    def _room(self, rows: slice, heads: slice, columns: int) -> Tensor:
        """Memory for a piece, (2, B, K, S, D), that the next piece overwrites."""
        n_rows = min(rows.stop, len(self.lengths)) - rows.start
        shape = 2, n_rows, heads.stop - heads.start, columns, self._width
        if self._scratch.numel() < (n := torch.Size(shape).numel()):
            with torch.inference_mode(False):
                self._scratch = torch.empty(n, dtype=self._wide)
        return self._scratch[:n].view(shape)
