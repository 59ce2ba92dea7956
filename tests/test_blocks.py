"""Blocks, tables of blocks and the prefix index: laws that hold after any sequence of calls, and every refusal."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmflation.blocks import BlockPool, BlockTable, blocks_needed
from llmflation.errors import BadInputError, LLMflationError, OutOfBlocksError
from llmflation.prefix_index import PrefixIndex


class Trace(RuleBasedStateMachine):
    """Sequences that grow, fork, shrink and end, on a pool with a prefix index. Beside the books of the library stand
    plain ones: what each slot really holds, and what each sequence should read from its slots."""

    @initialize(size=st.sampled_from([1, 2, 3]), n_blocks=st.integers(4, 14))
    def begin(self, size, n_blocks):
        self.pool, self.size = BlockPool(n_blocks, size), size
        self.index = PrefixIndex(self.pool)
        self.store = {}  # slot -> token: what a cache would hold there
        self.texts: dict[BlockTable, list[int]] = {}  # sequence -> its tokens

    def write(self, table, tokens):
        """What a cache does: room, copies, then the writing; nothing at all when there is no room."""
        before = self.books()
        needed = blocks_needed([table], [len(tokens)])
        if needed > self.pool.n_free + len(self.index.evictable(needed)):
            with pytest.raises(OutOfBlocksError, match=f"needs {needed} blocks"):
                table.append(len(tokens))
            assert self.books() == before
            return
        for old, new in table.append(len(tokens)):
            assert self.pool.owners(new) == 1
            for place in range(self.size):
                self.store[new * self.size + place] = self.store.get(old * self.size + place)
        end = table.length
        for slot, token in zip(table.slots(end - len(tokens), end), tokens, strict=True):
            assert self.pool.owners(slot // self.size) == 1  # nobody else's block is written
            self.store[slot] = token
        self.texts[table] += tokens

    def books(self):
        return ([self.pool.owners(b) for b in range(self.pool.n_blocks)], self.pool.n_free, list(self.index._key),
                [(t.length, list(t.blocks)) for t in self.texts])

    def one(self, data):
        return data.draw(st.sampled_from(list(self.texts)))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def new(self, tokens):
        found = self.index.match(tokens)
        assert len(found) * self.size <= len(tokens)
        table = BlockTable(self.pool, found)
        self.texts[table] = tokens[: table.length]
        self.write(table, tokens[table.length :])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=5))
    def append(self, data, tokens):
        self.write(self.one(data), tokens)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data):
        table = self.one(data)
        self.texts[table.fork()] = list(self.texts[table])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data, share):
        table = self.one(data)
        keep = int(share * table.length)
        freed = table.truncate(keep)
        assert all(self.pool.owners(block) == 0 for block in freed)
        del self.texts[table][keep:]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def keep(self, data):
        table = self.one(data)
        self.index.insert(self.texts[table], table.blocks)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data):
        table = self.one(data)
        table.free()
        del self.texts[table]
        with pytest.raises(BadInputError, match="was freed"):
            table.free()

    @rule(n=st.integers(0, 4))
    def evict(self, n):
        order, behind = list(self.index._key), {key[0] for key in self.index._key.values()}
        owned = {block for table in self.texts for block in table.blocks}
        chosen = self.index.evictable(n)
        assert not owned & set(chosen)
        assert [order.index(b) for b in chosen] == sorted(order.index(b) for b in chosen)
        if chosen:
            assert chosen[0] not in behind  # a leaf first
        self.index.evict(n)
        assert {key[0] for key in self.index._key.values()} <= {-1, *self.index._key}  # no child without its parent

    @invariant()
    def owners_are_those_that_can_be_counted(self):
        counted = Counter(block for table in self.texts for block in table.blocks)
        counted.update(list(self.index._key))
        assert {b: n for b in range(self.pool.n_blocks) if (n := self.pool.owners(b))} == counted
        assert self.pool.n_used == len(counted) and self.pool.n_free + self.pool.n_used == self.pool.n_blocks
        self.pool.check()

    @invariant()
    def every_sequence_reads_its_own_tokens(self):
        for table, text in self.texts.items():
            assert table.length == len(text) and len(table.blocks) == -(-len(text) // self.size)
            assert [self.store[slot] for slot in table.slots(0, len(text))] == text

    @invariant()
    def the_index_keeps_what_it_says(self):
        for block, (_, tokens) in self.index._key.items():
            assert tuple(self.store[block * self.size + place] for place in range(self.size)) == tokens

    def teardown(self):
        if hasattr(self, "pool"):
            for table in self.texts:
                table.free()
            self.index.evict(len(self.index))
            assert self.pool.n_free == self.pool.n_blocks and len(self.index) == 0


TestTrace = Trace.TestCase
TestTrace.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)


def table_of(pool, n):
    table = BlockTable(pool)
    table.append(n)
    return table


def test_slots_are_in_the_tables_order():
    pool = BlockPool(4, 3)
    a = table_of(pool, 2)
    b = table_of(pool, 1)
    a.append(3)
    assert (a.blocks, b.blocks) == ([0, 2], [1])
    assert a.slots(1, 5) == [1, 2, 6, 7] and a.slots(4, 4) == [] and a.slots(0, 1) == [0]


def test_a_shared_block_is_copied_by_all_but_its_last_owner():
    pool = BlockPool(8, 4)
    a = table_of(pool, 6)
    b, c = a.fork(), a.fork()
    assert pool.n_used == 2 and pool.owners(1) == 3
    assert blocks_needed([a, b, c], [1, 1, 1]) == 2 and blocks_needed([a, b], [1, 1]) == 2
    assert blocks_needed([a, b, c], [1, 0, 3]) == 3  # one copy each for a and c, and a fresh one for c
    assert a.append(1) == [(1, 2)] and b.append(1) == [(1, 3)] and c.append(1) == []
    assert [t.blocks for t in (a, b, c)] == [[0, 2], [0, 3], [0, 1]]


def test_a_full_last_block_is_shared_for_good():
    pool = BlockPool(4, 4)
    a = table_of(pool, 4)
    b = a.fork()
    assert b.append(1) == [] and a.append(1) == [] and a.blocks[0] == b.blocks[0]


def test_a_prefix_of_three_stays_when_one_of_them_ends():
    pool = BlockPool(6, 2)
    a = table_of(pool, 4)
    b, c = a.fork(), a.fork()
    assert a.free() == [] and [pool.owners(x) for x in b.blocks] == [2, 2] and pool.n_free == 4
    assert b.free() == [] and sorted(c.free()) == [0, 1] and pool.n_free == 6


def test_the_least_recently_used_goes_first_and_what_is_in_use_never():
    pool = BlockPool(4, 1)
    index = PrefixIndex(pool)
    texts = ([1, 2], [3], [4])
    tables = [table_of(pool, len(text)) for text in texts]
    for text, table in zip(texts, tables, strict=True):
        index.insert(text, table.blocks)
    assert index.evictable(9) == []
    with pytest.raises(OutOfBlocksError, match="needs 1 blocks, 0 are free of the pool's 4"):
        pool.allocate()
    for table in tables:
        table.free()
    assert index.evictable(9) == [1, 0, 2, 3]  # a child before its parent
    assert index.match([1, 9]) == [0] and index.evictable(9) == [1, 2, 3]  # block 0 is in use
    pool.release(0)
    assert index.evictable(9) == [1, 2, 3, 0]  # and was used last
    assert pool.allocate(2) == [2, 1] and index.match([3]) == [] and index.match([4]) == [3]
    with pytest.raises(OutOfBlocksError) as error:
        pool.allocate(2)
    assert (error.value.needed, error.value.free) == (2, 1) and len(index) == 2


def test_a_block_stays_for_the_sake_of_one_behind_it():
    """Two sequences wrote the same first block at the same time: the index keeps one, and the other's second block."""
    pool = BlockPool(4, 1)
    index, a, b = PrefixIndex(pool), table_of(pool, 1), table_of(pool, 2)
    index.insert([1], a.blocks)
    index.insert([1, 2], b.blocks)
    a.free()
    assert pool.owners(0) == 1 and index.evictable(9) == []
    b.free()
    assert index.evictable(9) == [2, 0] and index.match([1, 2]) == [0, 2]


def test_equal_hashes_are_no_hit():
    twin = 2**61 - 1
    assert hash((0, 7)) == hash((twin, 7)) and twin != 0  # a collision, by the way Python hashes whole numbers
    pool = BlockPool(4, 2)
    index = PrefixIndex(pool)
    a, b = table_of(pool, 2), table_of(pool, 2)
    index.insert([0, 7], a.blocks)
    assert index.match([twin, 7]) == [] and index.match([0, 7]) == a.blocks
    index.insert([twin, 7], b.blocks)
    assert index.match([twin, 7]) == b.blocks


def test_the_same_tokens_behind_another_beginning_are_another_block():
    pool = BlockPool(8, 1)
    index = PrefixIndex(pool)
    a = table_of(pool, 2)
    index.insert([1, 5], a.blocks)
    assert index.match([2, 5]) == [] and index.match([5]) == []
    assert index.match([1, 5, 6]) == a.blocks


def test_what_is_known_already_is_not_kept_twice():
    pool = BlockPool(8, 2)
    index = PrefixIndex(pool)
    a, b = table_of(pool, 4), table_of(pool, 6)
    index.insert([1, 2, 3, 4], a.blocks)
    index.insert([1, 2, 3, 4, 5], b.blocks)  # the third block is not full
    assert len(index) == 2
    index.insert([1, 2, 3, 4, 5, 6], b.blocks)
    assert index.match([1, 2, 3, 4, 5, 6]) == [*a.blocks, b.blocks[2]]


def test_no_room_says_how_much_there_is():
    pool = BlockPool(3, 4)
    table = table_of(pool, 5)
    with pytest.raises(OutOfBlocksError, match="needs 2 blocks, 1 are free of the pool's 3; free a sequence") as error:
        table.append(8)
    assert (error.value.needed, error.value.free, table.length) == (2, 1, 5) and pool.n_free == 1
    assert isinstance(error.value, LLMflationError)
    with pytest.raises(OutOfBlocksError, match="needs 40 blocks, 1 are free of the pool's 3; make the pool larger"):
        pool.allocate(40)


@pytest.mark.parametrize("damage", [lambda p: p._free.append(0), lambda p: p._free.append(p._free[0]),
                                    lambda p: p._free.pop(), lambda p: p._owners.__setitem__(3, -1)])
def test_broken_books_are_noticed(damage):
    pool = BlockPool(4, 2)
    pool.allocate()
    pool.check()
    damage(pool)
    with pytest.raises(BadInputError, match="the pool is broken"):
        pool.check()


def freed():
    table = table_of(BlockPool(4, 2), 3)
    table.free()
    return table


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: BlockPool(0, 16), "n_blocks is 0", id="no-blocks"),
    pytest.param(lambda: BlockPool(4, 0), "block_size is 0", id="size-0"),
    pytest.param(lambda: BlockPool(4, -1), "block_size is -1", id="size-negative"),
    pytest.param(lambda: BlockPool(4, 2.0), "block_size is 2.0", id="size-float"),
    pytest.param(lambda: BlockPool(4, 2).allocate(-1), "n is -1", id="allocate"),
    pytest.param(lambda: BlockPool(4, 2).release(0), "block 0 is free already", id="double-free"),
    pytest.param(lambda: BlockPool(4, 2).release(4), "block is 4; allowed: one of the pool's 4", id="no-such-block"),
    pytest.param(lambda: BlockPool(4, 2).share(-1), "block is -1", id="negative-block"),
    pytest.param(lambda: BlockPool(4, 2).share(1), "block 1 is free and cannot be shared", id="share-free"),
    pytest.param(lambda: BlockTable(BlockPool(4, 2), [1]), "block 1 is free", id="table-of-free"),
    pytest.param(lambda: BlockTable(p := BlockPool(4, 2), p.allocate() * 2), "stands twice", id="block-twice"),
    pytest.param(lambda: table_of(BlockPool(4, 2), 3).append(-1), "n is -1", id="append"),
    pytest.param(lambda: table_of(BlockPool(4, 2), 3).truncate(4), "length is 4; allowed: up to the 3", id="beyond"),
    pytest.param(lambda: table_of(BlockPool(4, 2), 3).truncate(-1), "length is -1", id="negative-length"),
    pytest.param(lambda: table_of(BlockPool(4, 2), 3).slots(0, 4), "tokens 0 to 4 are not all there", id="slots"),
    pytest.param(lambda: table_of(BlockPool(4, 2), 3).slots(-1, 2), "tokens -1 to 2", id="negative-slot"),
    pytest.param(lambda: freed().free(), "was freed", id="free-twice"),
    pytest.param(lambda: freed().append(1), "was freed", id="append-after-free"),
    pytest.param(lambda: freed().slots(0, 0), "was freed", id="read-after-free"),
    pytest.param(lambda: freed().fork(), "was freed", id="fork-after-free"),
    pytest.param(lambda: [PrefixIndex(p) for p in [BlockPool(4, 2)] * 2], "has a prefix index", id="two-indexes"),
    pytest.param(lambda: PrefixIndex(BlockPool(4, 2)).insert([1, 2], []), "2 tokens fill 1 blocks", id="few-blocks"),
    pytest.param(lambda: PrefixIndex(BlockPool(4, 2)).insert([1, 2], [3]), "block 3 is free; only", id="keep-free"),
])
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


def test_a_block_is_kept_for_one_text_alone_and_a_refusal_changes_nothing():
    pool = BlockPool(4, 1)
    index, table = PrefixIndex(pool), table_of(pool, 2)
    index.insert([1], table.blocks)
    with pytest.raises(BadInputError, match="block 0 is kept already"):
        index.insert([2, 3], table.blocks)
    assert len(index) == 1 and pool.owners(1) == 1
