"""Who owns which block of a cache: a pool with reference counts, and each sequence's table of blocks.

A cache in blocks is handed out like the pages of a computer's memory (Kwon et al. 2023): a sequence takes a block when
it needs one, wherever it lies, and sequences that begin alike own the same blocks. Nothing here touches keys or values;
whoever stores them asks for `slots` and copies what `append` says. `prefix_index` keeps blocks for later requests.
"""

from collections import Counter
from collections.abc import Sequence

from .errors import BadInputError, OutOfBlocksError, bad_input, check_whole


class BlockPool:
    """`n_blocks` blocks of `block_size` tokens each. A block is free, or used by one owner or more."""

    def __init__(self, n_blocks: int, block_size: int):
        self.n_blocks, self.block_size = check_whole("n_blocks", n_blocks), check_whole("block_size", block_size)
        self._owners = [0] * self.n_blocks
        self._free = list(range(self.n_blocks))[::-1]  # the last one is handed out next
        self.keeper = None  # a PrefixIndex, which owns blocks that it can do without

    @property
    def n_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def n_used(self) -> int:
        """Blocks that somebody owns, the keeper included."""
        return self.n_blocks - len(self._free)

    @property
    def n_available(self) -> int:
        """Blocks that are free or that the keeper could give up."""
        return self.n_free + (len(self.keeper.evictable(self.n_blocks)) if self.keeper else 0)

    def owners(self, block: int) -> int:
        """How many own this block; 0: it is free."""
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < self.n_blocks:
            raise bad_input("block", block, f"one of the pool's {self.n_blocks} blocks, 0 to {self.n_blocks - 1}")
        return self._owners[block]

    def require(self, n: int) -> None:
        """OutOfBlocksError unless `n` blocks are free or can be made free; nothing changes."""
        if n > self.n_free and n > (available := self.n_available):
            raise OutOfBlocksError(n, available, self.n_blocks)

    def allocate(self, n: int = 1) -> list[int]:
        """`n` blocks with one owner each, or OutOfBlocksError and none. The keeper gives up what was not used for
        the longest time, as far as the free ones do not suffice."""
        self.require(check_whole("n", n, 0))
        if n > self.n_free:
            self.keeper.evict(n - self.n_free)
        blocks = [self._free.pop() for _ in range(n)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """One more owner of a block that is used."""
        if self.owners(block) == 0:
            raise BadInputError(f"block {block} is free and cannot be shared; allocate it first.")
        self._owners[block] += 1

    def release(self, block: int) -> bool:
        """One owner less; whether the block became free."""
        if self.owners(block) == 0:
            raise BadInputError(f"block {block} is free already; each owner releases a block once.")
        self._owners[block] -= 1
        if self._owners[block] == 0:
            self._free.append(block)
        return self._owners[block] == 0

    def check(self) -> None:
        """BadInputError if the pool's books are wrong: a block both free and used, neither, or free twice."""
        used = {block for block, owners in enumerate(self._owners) if owners > 0}
        both, lost = used & set(self._free), set(range(self.n_blocks)) - used - set(self._free)
        if both or lost or len(self._free) + len(used) != self.n_blocks or min(self._owners) < 0:
            raise BadInputError(f"the pool is broken: {len(self._free)} free and {len(used)} used of {self.n_blocks} "
                                f"blocks, {sorted(both)} both, {sorted(lost)} neither; owners {self._owners}.")


class BlockTable:
    """One sequence: its `blocks` in order and its `length` in tokens. It takes over `blocks` that are full and that
    the caller owns, like those that `PrefixIndex.match` found."""

    def __init__(self, pool: BlockPool, blocks: Sequence[int] = ()):
        for i, block in enumerate(blocks):
            if pool.owners(block) == 0:
                raise BadInputError(f"block {block} is free; a table can take over only blocks that are owned.")
            if block in blocks[:i]:
                raise BadInputError(f"block {block} stands twice in this table; each of its tokens has one place.")
        self.pool, self.blocks, self.length = pool, list(blocks), len(blocks) * pool.block_size
        self.taken = False  # by a cache that stores for it
        self._freed = False

    def append(self, n: int) -> list[tuple[int, int]]:
        """Room for `n` tokens more, or OutOfBlocksError and no change.

        A last block that is partly filled and that others own, too, is replaced by one of its own: such a pair
        (from block, to block) is returned, and whoever stores copies the one to the other before anyone writes.
        """
        self.check_in_use()
        taken = self.pool.allocate(blocks_needed([self], [n]))
        copies = []
        if n > 0 and self.length % self.pool.block_size and self.pool.owners(self.blocks[-1]) > 1:
            copies = [(self.blocks[-1], taken[0])]
            self.pool.release(self.blocks.pop())
        self.blocks += taken
        self.length += n
        return copies

    def slots(self, start: int, end: int) -> list[int]:
        """Where tokens `start` to `end` - 1 lie: block * block_size + place in the block."""
        self.check_in_use()
        if not 0 <= start <= end <= self.length:
            raise BadInputError(f"tokens {start} to {end} are not all there; the sequence holds {self.length}.")
        size = self.pool.block_size
        return [self.blocks[t // size] * size + t % size for t in range(start, end)]

    def truncate(self, length: int) -> list[int]:
        """Keep the first `length` tokens and give whole blocks back; those that became free."""
        self.check_in_use()
        if check_whole("length", length, 0) > self.length:
            raise bad_input("length", length, f"up to the {self.length} tokens that the sequence holds")
        keep = -(-length // self.pool.block_size)
        dropped, self.blocks, self.length = self.blocks[keep:], self.blocks[:keep], length
        return [block for block in reversed(dropped) if self.pool.release(block)]

    def fork(self) -> "BlockTable":
        """A second sequence that begins with the same tokens and owns the same blocks."""
        self.check_in_use()
        for block in self.blocks:
            self.pool.share(block)
        twin = BlockTable(self.pool, self.blocks)
        twin.length = self.length
        return twin

    def put_back(self, blocks: Sequence[int], length: int) -> None:
        """Undo an `append`: own these blocks again, those from before it, and what came since no more."""
        self.check_in_use()
        for block in blocks:
            self.pool.share(block)
        for block in self.blocks:
            self.pool.release(block)
        self.blocks, self.length = list(blocks), length

    def free(self) -> list[int]:
        """Give every block back, for good; those that became free."""
        freed = self.truncate(0)
        self._freed = True
        return freed

    @property
    def in_use(self) -> bool:
        """Whether it was not freed yet."""
        return not self._freed

    def check_in_use(self) -> None:
        """BadInputError once the sequence was freed."""
        if self._freed:
            raise BadInputError("this sequence was freed, its blocks may hold another one's tokens; make a new one.")


def blocks_needed(tables: Sequence[BlockTable], n_new: Sequence[int]) -> int:
    """How many blocks it takes to append so many tokens to each of these sequences, copies on write included."""
    fresh, writers = 0, Counter()
    for table, n in zip(tables, n_new, strict=True):
        size = table.pool.block_size
        fresh += -(-(table.length + check_whole("n", n, 0)) // size) - len(table.blocks)
        if n > 0 and table.length % size:
            writers[table.blocks[-1]] += 1
    # Who is left as the last owner of a block writes into it; all others copy it.
    return fresh + sum(min(n, table.pool.owners(block) - 1) for block, n in writers.items())
