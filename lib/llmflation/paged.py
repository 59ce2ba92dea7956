"""A cache in blocks: a sequence holds no more memory than it fills, up to a block, and equal beginnings lie there once.

To attend, a layer's blocks are gathered into one row a head, a few sequences at a time, so that what was gathered is
still in the processor's cache when it is read. A GPU's kernel follows the table itself and spares the copy
(PagedAttention, Kwon et al. 2023). Gathered at once, the results are those of a cache in one piece bit for bit; in
pieces, threads divide the rows in another way and round by another way.
Letters as in `layers`: B sequences, T new tokens, S positions, H query heads, K key-value heads, D width of a head.
"""

from collections.abc import Sequence
from copy import copy
from weakref import finalize

import torch
from torch import Tensor

from .blocks import BlockPool, BlockTable, blocks_needed
from .config import ModelConfig
from .errors import BadInputError, OutOfBlocksError, check_whole
from .kvcache import KVCache, check_entries, check_lengths, check_rows, whole_counts
from .layers import attend

PIECE_BYTES = 3 * 2**20  # of keys and values gathered at once: a share of most processors' last cache


class PagedKVCache(KVCache):
    """`batch` sequences in a pool of `n_blocks` blocks of `block_size` tokens each.

    With `poison`, blocks that are given back are filled with NaN, which no result may ever show. A call that does not
    fit raises OutOfBlocksError and changes nothing.
    """

    _most: int | None = None  # new tokens of a row in the call that was reserved

    def __init__(self, cfg: ModelConfig, batch: int, n_blocks: int, block_size: int = 16, dtype=torch.float32, *,
                 poison: bool = False):
        check_whole("batch", batch)
        self.cfg, self.pool, self.poison = cfg, BlockPool(n_blocks, block_size), poison
        # One block more than the pool has: zeros, gathered where a sequence is shorter than the longest.
        shape = cfg.n_layers, 2, cfg.n_kv_heads, n_blocks + 1, block_size, cfg.head_dim
        with torch.inference_mode(False):  # or it could not be written outside of it
            self._store = torch.zeros(shape, dtype=dtype)
            self._slots_of = [layer.flatten(2, 3) for layer in self._store]  # (2, K, slots, D) each
            self._blocks_of = [layer.view(-1, block_size * cfg.head_dim) for layer in self._store]  # a row a block
        self._first = torch.arange(2 * cfg.n_kv_heads).view(2, 1, -1, 1) * (n_blocks + 1)  # each head's first row
        self._take([BlockTable(self.pool) for _ in range(batch)])

    def with_tables(self, tables: Sequence[BlockTable]) -> "PagedKVCache":
        """A cache of these sequences over the same memory and pool; each table belongs to one cache."""
        if not tables or any(getattr(table, "pool", None) is not self.pool for table in tables):
            raise BadInputError(f"{len(tables or ())} block tables, not all of this cache's pool; "
                                "give one or more that were made with `BlockTable(cache.pool)`.")
        for i, table in enumerate(tables):
            table.check_in_use()
            if len(table.blocks) != -(-table.length // self.pool.block_size):
                raise BadInputError(f"block table {i} names {len(table.blocks)} blocks for {table.length} tokens in "
                                    f"blocks of {self.pool.block_size}; change a table through its methods alone.")
            if table.taken or any(table is other for other in tables[:i]):
                raise BadInputError(f"block table {i} belongs to a cache already; fork it to go on from it twice.")
        twin = copy(self)
        twin._take(tables)
        return twin

    def _take(self, tables: Sequence[BlockTable]) -> None:
        self.tables = list(tables)
        for table in tables:
            table.taken = True
        self._dropped = finalize(self, _give_back, self.tables)  # if nobody frees it, after an error perhaps
        self._dropped.atexit = False
        self.lengths = torch.tensor([table.length for table in tables])
        self._scratch = self._store.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool's blocks, used or not; the block of zeros is not counted."""
        return self._store[:, :, :, :-1].nbytes

    def utilization(self) -> float:
        """Share of the slots in this cache's blocks that hold a token; a shared block counts once. 1 without blocks."""
        filled, slots = self._filled()
        return filled / slots if slots else 1.0

    def waste(self) -> int:
        """Bytes of the slots in this cache's blocks that hold no token."""
        filled, slots = self._filled()
        return (slots - filled) * self._store[..., 0, 0, :].nbytes

    def reserve(self, n_new: Tensor) -> None:
        self._settle()
        new = whole_counts(n_new, len(self.tables))
        held = [table.length for table in self.tables]
        self._check_fit(held, new)
        before = [(table, list(table.blocks), table.length) for table in self.tables]
        try:
            copies = [pair for table, n in zip(self.tables, new, strict=True) for pair in table.append(n)]
            self._prepare(copies, [blocks for _, blocks, _ in before])
            self._plan(held, new)
        except BaseException:  # an interrupt by hand is one, too
            for table, blocks, length in before:
                table.put_back(blocks, length)
            raise

    def _prepare(self, copies: list[tuple[int, int]], before: list[list[int]]) -> None:
        """Copy what is shared and will be written. The rest of a block that is taken and not filled is gathered, too:
        it must not hold what was there before."""
        if begun := [table.blocks[-1] for table, blocks in zip(self.tables, before, strict=True)
                     if table.length % self.pool.block_size and table.blocks[-1:] != blocks[-1:]]:
            self._store[:, :, :, begun] = 0
        if copies:
            old, fresh = zip(*copies, strict=True)
            self._store[:, :, :, list(fresh)] = self._store[:, :, :, list(old)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._write(layer, k, v)
        whole = torch.cat([self._gathered(layer, piece).clone() for piece in self._pieces], dim=1)
        return whole[0], whole[1]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        self._write(layer, k, v)
        looked = [attend(q[rows], *self._gathered(layer, piece), None if mask is None else mask[rows])
                  for rows, piece in zip(self._rows, self._pieces, strict=True)]
        return looked[0] if len(looked) == 1 else torch.cat(looked)

    def truncate(self, lengths: Tensor) -> None:
        check_lengths(lengths, self.lengths)
        self.lengths = lengths.clone()
        self._settle()

    def fork(self, rows: list[int]) -> "PagedKVCache":
        """A cache on the same pool whose sequences own the blocks of these rows, too; who writes first copies."""
        check_rows(rows, len(self.tables))
        self._settle()
        return self.with_tables([self.tables[row].fork() for row in rows])

    def free(self) -> None:
        """Give every block back. The cache is then as new; the tables that it had are not."""
        self._dropped.detach()
        self._give_back([block for table in self.tables for block in table.free()])
        self._take([BlockTable(self.pool) for _ in self.tables])

    def _filled(self) -> tuple[int, int]:
        """Slots with a token and slots in all, of the blocks in this cache's tables, each counted once."""
        size, filled = self.pool.block_size, {}
        for table, length in zip(self.tables, self.lengths.tolist(), strict=True):
            for i, block in enumerate(table.blocks):
                filled[block] = max(filled.get(block, 0), min(size, length - i * size), 0)
        return sum(filled.values()), len(filled) * size

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        wanted = len(self.tables), self.cfg.n_kv_heads, self.cfg.head_dim
        check_entries((k, v), wanted, self._most, self._store.dtype)
        for slots, new in zip(self._slots_of[layer], (k.detach(), v.detach()), strict=True):
            heads = new.transpose(0, 1)  # (K, B, T, D)
            real = heads[:, :, : self._most].flatten(1, 2) if self._real is None else heads[self._real]
            slots.index_copy_(1, self._to, real)

    def _gathered(self, layer: int, piece: Tensor) -> Tensor:
        """Keys and values of some sequences, (2, B, K, S, D), in memory that the next piece overwrites."""
        size, width = self.pool.block_size, self.cfg.head_dim
        out = self._scratch[: len(piece) * size * width].view(len(piece), size * width)
        torch.index_select(self._blocks_of[layer], 0, piece, out=out)
        return out.view(2, -1, self.cfg.n_kv_heads, self._n_row * size, width)[:, :, :, : self._end]

    def _settle(self) -> None:
        """Take back what a call reserved and did not finish."""
        self._give_back([block for table, length in zip(self.tables, self.lengths.tolist(), strict=True)
                         for block in table.truncate(length)])

    def _give_back(self, blocks: list[int]) -> None:
        if blocks and self.poison:
            self._store[:, :, :, blocks] = torch.nan

    def _check_fit(self, held: list[int], new: list[int]) -> None:
        for row, (h, n) in enumerate(zip(held, new, strict=True)):
            if h + n > self.cfg.context:
                raise BadInputError(f"sequence {row} holds {h} tokens and {n} more do not fit into the model's context "
                                    f"of {self.cfg.context}; make the text shorter.")
            if (blocks := -(-(h + n) // self.pool.block_size)) > self.pool.n_blocks:
                what = f"sequence {row} with {h + n} tokens in blocks of {self.pool.block_size}"
                raise OutOfBlocksError(blocks, self.pool.n_available, self.pool.n_blocks, what)
        self.pool.require(blocks_needed(self.tables, new))

    def _plan(self, held: list[int], new: list[int]) -> None:
        """Where this call's tokens go and which blocks it gathers: once for all layers."""
        self._most, self._end = max(new), max(table.length for table in self.tables)
        self._to = torch.tensor([slot for table, h, n in zip(self.tables, held, new, strict=True)
                                 for slot in table.slots(h, h + n)], dtype=torch.long)
        self._real = None  # where each row's real tokens are; None: all rows have `_most`
        if min(new) < self._most:
            row, token = (torch.arange(self._most) < torch.tensor(new)[:, None]).nonzero(as_tuple=True)
            self._real = slice(None), row, token
        self._n_row = max(1, -(-self._end // self.pool.block_size))
        padding = [self.pool.n_blocks] * self._n_row
        blocks = torch.tensor([(table.blocks + padding)[: self._n_row] for table in self.tables])  # (B, blocks)
        each = max(1, PIECE_BYTES // (self._n_row * self._store[0, :, :, 0].nbytes))
        self._rows = [slice(i, i + each) for i in range(0, len(blocks), each)]
        self._pieces = [(self._first + blocks[rows, None]).flatten() for rows in self._rows]  # of (2, B, K, blocks)
        if self._scratch.numel() < (n := len(self._pieces[0]) * self._blocks_of[0].shape[1]):
            with torch.inference_mode(False):  # or it could not be written outside of it
                self._scratch = self._store.new_empty(n)


def _give_back(tables: Sequence[BlockTable]) -> None:
    for table in tables:
        if table.in_use:
            table.free()
