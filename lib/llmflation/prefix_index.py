"""Which blocks hold the beginning of a text that was read before, so that the next request need not read it again.

A full block is known by its own tokens and by the block before it, so that two blocks of the same tokens behind
different beginnings are two. The index owns what it keeps, and gives it up when the pool runs out.
"""

from collections import Counter
from collections.abc import Sequence

from .blocks import BlockPool
from .errors import BadInputError

START = -1  # what stands before a first block


class PrefixIndex:
    """Full blocks by what they hold."""

    def __init__(self, pool: BlockPool):
        if pool.keeper is not None:
            raise BadInputError("the pool has a prefix index already; use that one, `pool.keeper`.")
        pool.keeper = self
        self.pool = pool
        self._block: dict[tuple[int, tuple[int, ...]], int] = {}  # (block before, tokens) -> block
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}  # the other way; least recently used first
        self._children = Counter()  # how many blocks stand behind each

    def __len__(self) -> int:
        return len(self._key)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest beginning of `tokens` that is known, each now owned by the caller, too.

        A dictionary finds a place by a hash and then compares the tokens themselves, so equal hashes give no false hit.
        """
        found, before = [], START
        for chunk in self._chunks(tokens):
            if (block := self._block.get((before, chunk))) is None:
                break
            self.pool.share(block)
            found.append(block)
            before = block
        self._touch(found)
        return found

    def insert(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Keep `blocks`, in which the `tokens` were written. A last block that is not full is left out, and so is one
        whose text is known from another block already."""
        chunks = self._chunks(tokens)
        if len(chunks) > len(blocks):
            raise BadInputError(f"{len(tokens)} tokens fill {len(chunks)} blocks of {self.pool.block_size}; "
                                f"{len(blocks)} were given.")
        path, new, before = [], {}, START
        for chunk, block in zip(chunks, blocks, strict=False):
            known = self._block.get((before, chunk))
            if known is None:
                self._check_new(block, new)
                new[block] = (before, chunk)
            before = block if known is None else known
            path.append(before)
        for block, key in new.items():
            self.pool.share(block)
            self._block[key], self._key[block] = block, key
            self._children[key[0]] += 1
        self._touch(path)

    def evictable(self, n: int) -> list[int]:
        """Up to `n` blocks that nobody else owns, least recently used first, a block never before those behind it."""
        found, gone = [], Counter()
        for block, (before, _) in self._key.items():  # a block always comes after all those behind it
            if len(found) >= n:
                break
            if self.pool.owners(block) == 1 and gone[block] == self._children[block]:
                found.append(block)
                gone[before] += 1
        return found

    def evict(self, n: int) -> None:
        """Give up to `n` blocks back, those that `evictable` names."""
        for block in self.evictable(n):
            key = self._key.pop(block)
            del self._block[key]
            self._children[key[0]] -= 1
            self.pool.release(block)

    def _chunks(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        size = self.pool.block_size
        return [tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)]

    def _touch(self, path: Sequence[int]) -> None:
        """Make these the most recently used, the first of the text last of all."""
        for block in reversed(path):
            self._key[block] = self._key.pop(block)

    def _check_new(self, block: int, new: dict) -> None:
        if self.pool.owners(block) == 0:
            raise BadInputError(f"block {block} is free; only blocks that somebody owns can be kept.")
        if block in self._key or block in new:
            raise BadInputError(f"block {block} is kept already, for other tokens; what it holds must not change.")
