"""The cache in blocks beside the cache in one piece: the same bits after any trace, no block lost, every refusal."""

import random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmflation import paged
from llmflation.blocks import BlockPool, BlockTable
from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, OutOfBlocksError
from llmflation.kvcache import ContiguousKVCache
from llmflation.model import Transformer, generate
from llmflation.paged import PagedKVCache

CFG = ModelConfig(2, 48, 4, 2, 96, 61, context=64)
MODEL = Transformer(CFG, seed=3).eval()
PROMPTS = [[5, 1, 2], [7], list(range(20)), [60, 0, 60, 0, 60]]
SIZES = (1, 3, 16, 100)  # the last holds more than the context


def cache(batch=1, n_blocks=None, size=16, **named):
    """A paged cache, with room for all if nothing is said, whose blocks come in random order."""
    made = PagedKVCache(CFG, batch, n_blocks or batch * -(-64 // size), size, **named)
    random.Random(1).shuffle(made.pool._free)
    return made


def whole(text):
    """The scores behind a text that is read at once, without a cache."""
    return MODEL(torch.tensor([text]))[0, -1]


class Trace(RuleBasedStateMachine):
    """Pairs of caches, one of each kind, that are given the same calls. All in blocks share a pool, poisoned."""

    @initialize(size=st.sampled_from(SIZES), batch=st.integers(1, 3), piece=st.sampled_from([1, 2**12, 2**30]))
    def begin(self, size, batch, piece):
        self.usual = paged.PIECE_BYTES, torch.get_num_threads()
        paged.PIECE_BYTES = piece
        if piece < 2**30:  # in pieces, other threads do other rows, and each rounds by where its own memory lies
            torch.set_num_threads(1)
        self.first = cache(batch, 12 * -(-64 // size), size, poison=True)
        self.pairs = [(self.first, ContiguousKVCache(CFG, batch))]
        self.random = torch.Generator().manual_seed(size)

    def pair(self, data):
        return data.draw(st.sampled_from(self.pairs))

    @rule(data=st.data(), padding=st.integers(0, 1), last_only=st.booleans())
    def call(self, data, padding, last_only):
        ours, theirs = self.pair(data)
        n_new = [data.draw(st.integers(0, min(9, 64 - n))) for n in ours.lengths.tolist()]
        tokens = torch.randint(0, 61, (len(n_new), max(1, *n_new) + padding), generator=self.random)
        with torch.inference_mode(data.draw(st.booleans())), torch.no_grad():
            a, b = (MODEL(tokens, c, torch.tensor(n_new), last_only=last_only) for c in (ours, theirs))
        for row, n in enumerate(n_new):  # what stands behind a row's real tokens means nothing
            assert torch.equal(a[row, :n], b[row, :n])

    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data, share):
        pair = self.pair(data)
        lengths = (pair[0].lengths * share).long()
        for c in pair:
            c.truncate(lengths)

    @precondition(lambda self: len(self.pairs) < 4)
    @rule(data=st.data())
    def fork(self, data):
        pair = self.pair(data)
        rows = data.draw(st.lists(st.integers(0, len(pair[0].lengths) - 1), min_size=1, max_size=3))
        self.pairs.append(tuple(c.fork(rows) for c in pair))

    @rule(data=st.data(), leave=st.booleans())
    def free(self, data, leave):
        pair = self.pair(data)
        for c in pair:
            c.free()
        if leave and len(self.pairs) > 1:
            self.pairs.remove(pair)

    @invariant()
    def the_books_are_right(self):
        tables = [table for ours, _ in self.pairs for table in ours.tables]
        assert self.first.pool.n_used == len({block for table in tables for block in table.blocks})
        for ours, theirs in self.pairs:
            assert torch.equal(ours.lengths, theirs.lengths) and ours.pool is self.first.pool
            assert [table.length for table in ours.tables] == ours.lengths.tolist()
        self.first.pool.check()

    def teardown(self):
        if hasattr(self, "pairs"):
            paged.PIECE_BYTES, threads = self.usual
            torch.set_num_threads(threads)
            for ours, _ in self.pairs:
                ours.free()
            assert self.first.pool.n_free == self.first.pool.n_blocks


TestTrace = Trace.TestCase
TestTrace.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_what_the_cache_in_one_piece_writes(size, dtype):
    model = Transformer(CFG, seed=3).eval().to(dtype)
    wanted = generate(model, PROMPTS, 30, ContiguousKVCache(CFG, 4, dtype=dtype))
    assert generate(model, PROMPTS, 30, cache(4, size=size, dtype=dtype)) == wanted


@torch.no_grad()
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), size=st.sampled_from(SIZES))
@settings(max_examples=50, deadline=None)
def test_append_gives_the_keys_and_values_that_were_stored(lengths, size):
    ours, theirs, n_new = cache(len(lengths), size=size), ContiguousKVCache(CFG, len(lengths)), torch.tensor(lengths)
    k, v = torch.randn(2, len(lengths), 2, max(lengths), 12, generator=torch.Generator().manual_seed(0))
    with patch.object(paged, "PIECE_BYTES", 1):  # each row for itself
        ours.reserve(n_new)
    theirs.reserve(n_new)
    for a, b in zip(ours.append(1, k, v), theirs.append(1, k, v), strict=True):
        assert torch.equal(a, b)  # zeros included


def test_a_fork_shares_all_and_copies_one_block_when_it_writes():
    ours = cache(2, 12, 4)
    generate(MODEL, [[1, 2, 3, 4, 5, 6], [9]], 1, ours)
    twins = ours.fork([0, 0, 1])
    assert ours.pool.n_used == 3 and [t.blocks for t in twins.tables[:2]] == [ours.tables[0].blocks] * 2
    kept = ours._store[:, :, :, ours.tables[0].blocks].clone()
    with torch.no_grad():
        scores = MODEL(torch.tensor([[7], [8], [5]]), twins)[:, -1]
        torch.testing.assert_close(scores[0], whole([1, 2, 3, 4, 5, 6, 7]), rtol=0, atol=1e-5)
        torch.testing.assert_close(scores[1], whole([1, 2, 3, 4, 5, 6, 8]), rtol=0, atol=1e-5)
        assert ours.pool.n_used == 3 + 3 and torch.equal(ours._store[:, :, :, ours.tables[0].blocks], kept)
        own = MODEL(torch.tensor([[9], [9]]), ours)[0, -1]
        torch.testing.assert_close(own, whole([1, 2, 3, 4, 5, 6, 9]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_is_given_back_is_poisoned_and_never_seen_again():
    ours = cache(2, 10, 4, poison=True)
    generate(MODEL, [[1] * 14, [2] * 9], 1, ours)
    old = ours.tables[0].blocks
    ours.truncate(torch.tensor([5, 9]))
    assert ours._store[:, :, :, old[2:]].isnan().all() and not ours._store[:, :, :, old[:2]].isnan().any()
    ours.free()
    assert ours._store[:, :, :, :-1].isnan().any((0, 1, 2, 4, 5)).sum() == 4 + 3  # all that were ever used
    assert generate(MODEL, PROMPTS[:2], 12, ours) == generate(MODEL, PROMPTS[:2], 12, ContiguousKVCache(CFG, 2))
    for table in ours.tables:  # neither in the last blocks' rest
        assert not ours._store[:, :, :, table.blocks].isnan().any()


@torch.no_grad()
@pytest.mark.parametrize("forked", [False, True])
def test_an_interrupted_call_is_taken_back(forked):
    ours = cache(1, 8, 4)
    MODEL(torch.tensor([[1, 2, 3]]), ours)
    with patch.object(MODEL.blocks[1], "forward", lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        MODEL(torch.tensor([[9] * 6]), ours)
    assert ours.lengths.tolist() == [3]
    then = ours.fork([0]) if forked else ours
    torch.testing.assert_close(MODEL(torch.tensor([[4, 5]]), then)[0, -1], whole([1, 2, 3, 4, 5]), rtol=0, atol=1e-5)
    assert ours.pool.n_used == (3 if forked else 2)


@torch.no_grad()
def test_an_interrupt_before_the_copy_on_write_is_taken_back(monkeypatch):
    ours = cache(1, 8, 4)
    MODEL(torch.tensor([[1, 2, 3]]), ours)
    twin = ours.fork([0])
    monkeypatch.setattr(PagedKVCache, "_prepare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        MODEL(torch.tensor([[9]]), twin)
    monkeypatch.undo()
    assert twin.tables[0].blocks == ours.tables[0].blocks and ours.pool.n_used == 1
    for held in (twin, ours):
        scores = MODEL(torch.tensor([[4, 5]]), held)[0, -1]
        torch.testing.assert_close(scores, whole([1, 2, 3, 4, 5]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cache_made_in_inference_mode_goes_out_of_it():
    with torch.inference_mode():
        ours = cache(1, 8, 4)
        MODEL(torch.tensor([[1, 2, 3]]), ours)
        twin = ours.fork([0])
    for held in (twin, ours):
        torch.testing.assert_close(MODEL(torch.tensor([[4]]), held)[0, -1], whole([1, 2, 3, 4]), rtol=0, atol=1e-5)


def test_a_call_that_could_be_trained_stores_all_the_same():
    ours = cache()
    for text in ([1, 2], [3], [4, 5]):
        scores = MODEL(torch.tensor([text]), ours)
    torch.testing.assert_close(scores[0, -1], whole([1, 2, 3, 4, 5]), rtol=0, atol=1e-5)
    assert not ours._store.requires_grad


def test_a_pool_that_runs_out_loses_nothing():
    wanted = generate(MODEL, PROMPTS[:2], 20, ContiguousKVCache(CFG, 2))
    ours = cache(2, 11, 4)
    other = ours.fork([0])
    generate(MODEL, [[3] * 16], 1, other)
    with pytest.raises(OutOfBlocksError, match="needs 1 blocks, 0 are free") as error:
        generate(MODEL, PROMPTS[:2], 20, ours)
    written = error.value.written
    assert error.value.needed > error.value.free
    assert 0 < len(written[0]) < 20 and ours.lengths.tolist() == [2 + len(written[0]), len(written[1])]
    assert [t.length for t in ours.tables] == ours.lengths.tolist()
    other.free()
    rest = generate(MODEL, [p + w for p, w in zip(PROMPTS, written)], 20 - len(written[0]), ours)
    assert [a + b for a, b in zip(written, rest, strict=True)] == wanted


@torch.no_grad()
def test_a_call_for_which_there_is_no_room_changes_nothing_for_any_sequence():
    ours = cache(3, 6, 4)
    MODEL(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), ours)
    twins = ours.fork([0, 1])
    before = ours._store.clone(), [list(t.blocks) for t in ours.tables], ours.pool.n_free
    with pytest.raises(OutOfBlocksError, match="needs 4 blocks, 3 are free of the pool's 6; free a sequence"):
        MODEL(torch.tensor([[1] * 2, [2] * 2, [3] * 2]), ours, torch.tensor([2, 1, 2]))
    assert torch.equal(ours._store, before[0]) and ours.lengths.tolist() == [3, 3, 3]
    assert ([list(t.blocks) for t in ours.tables], ours.pool.n_free) == before[1:]
    twins.free()
    MODEL(torch.tensor([[1] * 2, [2] * 2, [3] * 2]), ours, torch.tensor([2, 1, 2]))


@torch.no_grad()
def test_what_is_larger_than_the_pool_is_told_so_with_the_arithmetic():
    ours = cache(2, 3, 4)
    says = "sequence 1 with 17 tokens in blocks of 4 needs 5 blocks, 3 are free of the pool's 3; make the pool larger"
    with pytest.raises(OutOfBlocksError, match=says) as error:
        MODEL(torch.zeros(2, 17, dtype=torch.long), ours, torch.tensor([1, 17]))
    assert (error.value.needed, error.value.free, ours.pool.n_free) == (5, 3, 3)


def test_waste_and_utilization_by_hand():
    ours = cache(3, 20, 4)
    assert (ours.utilization(), ours.waste()) == (1.0, 0)
    generate(MODEL, [[1] * 5, [2] * 4, [3]], 1, ours)
    token_bytes = 2 * 2 * 2 * 12 * 4  # layers, k and v, heads, width, float32
    assert ours.utilization() == 10 / 16 and ours.waste() == 6 * token_bytes
    assert ours.nbytes == 20 * 4 * token_bytes
    twins = ours.fork([0, 0])  # two sequences in two blocks
    assert twins.utilization() == 5 / 8 and twins.waste() == 3 * token_bytes
    twins.truncate(torch.tensor([5, 2]))
    assert twins.utilization() == 5 / 8


def test_a_table_of_full_blocks_of_another_sequence_is_gone_on_from():
    ours = cache(1, 12, 4)
    generate(MODEL, [PROMPTS[2]], 1, ours)
    for block in ours.tables[0].blocks[:3]:
        ours.pool.share(block)
    mine = ours.with_tables([BlockTable(ours.pool, ours.tables[0].blocks[:3]), BlockTable(ours.pool)])
    assert mine.lengths.tolist() == [12, 0]
    prompts = [[*PROMPTS[2][:12], 9, 9], [4]]
    assert generate(MODEL, prompts, 5, mine) == generate(MODEL, prompts, 5, ContiguousKVCache(CFG, 2))


def kv(heads=2, width=12, dtype=torch.float32, batch=1, n=3):
    return torch.zeros(batch, heads, n, width, dtype=dtype)


def reserved(*entries):
    ours = cache()
    ours.reserve(torch.tensor([3]))
    ours.append(0, *entries)


def freed_table():
    ours = cache()
    table = ours.tables[0]
    ours.free()
    return ours.with_tables([table])


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: cache(size=-1, n_blocks=4), "block_size is -1", id="size-negative"),
    pytest.param(lambda: PagedKVCache(CFG, 1, 4, 0), "block_size is 0", id="size-0"),
    pytest.param(lambda: PagedKVCache(CFG, 1, 4, 2.5), "block_size is 2.5", id="size-float"),
    pytest.param(lambda: PagedKVCache(CFG, 1, 0), "n_blocks is 0", id="no-blocks"),
    pytest.param(lambda: PagedKVCache(CFG, 0, 4), "batch is 0", id="no-batch"),
    pytest.param(lambda: cache().reserve(torch.tensor([-1])), "n_new is -1", id="negative"),
    pytest.param(lambda: cache().reserve(torch.tensor([65])), "65 more do not fit into the model's context of 64",
                 id="context"),
    pytest.param(lambda: cache().truncate(torch.tensor([1])), "between 0 and what is held", id="beyond"),
    pytest.param(lambda: cache().truncate(torch.tensor([-1])), r"lengths \[-1\] must be", id="negative-length"),
    pytest.param(lambda: cache().truncate(torch.tensor([0, 0])), "one for each sequence", id="two-lengths"),
    pytest.param(lambda: cache().truncate(torch.tensor([0.0])), "must be whole numbers", id="float-length"),
    pytest.param(lambda: cache().truncate(torch.tensor([torch.nan])), "must be whole numbers", id="nan-length"),
    pytest.param(lambda: cache().reserve(torch.tensor([1, 1])), "one number for each of 1", id="two-counts"),
    pytest.param(lambda: (c := cache()).with_tables(c.tables), "block table 0 belongs to a cache", id="table-taken"),
    pytest.param(lambda: (c := cache()).with_tables([BlockTable(c.pool)] * 2), "block table 1 belongs", id="twice"),
    pytest.param(lambda: cache().fork([1]), r"rows \[1\] must name sequences from 0 to 0", id="fork"),
    pytest.param(lambda: cache().fork([]), r"rows \[\] must name", id="fork-none"),
    pytest.param(lambda: cache().with_tables([BlockTable(BlockPool(4, 16))]), "not all of this cache's",
                 id="other-pool"),
    pytest.param(lambda: cache().with_tables([]), "0 block tables", id="no-tables"),
    pytest.param(freed_table, "was freed", id="use-after-free"),
    pytest.param(lambda: reserved(kv(), kv(dtype=torch.bfloat16)), "values are torch.bfloat16", id="dtype"),
    pytest.param(lambda: reserved(kv(heads=4), kv(heads=4)), r"\(1, 4, 3, 12\); this call reserved .*\(1, 2, 3, 12\)",
                 id="heads"),
    pytest.param(lambda: reserved(kv(), kv(width=8)), r"\(1, 2, 3, 8\)", id="width"),
    pytest.param(lambda: reserved(kv(n=2), kv(n=2)), r"\(1, 2, 2, 12\)", id="fewer-tokens"),
    pytest.param(lambda: reserved(kv(batch=2), kv(batch=2)), r"\(2, 2, 3, 12\)", id="batch"),
])
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


def test_a_refusal_stores_nothing():
    ours = cache()
    ours.reserve(torch.tensor([3]))
    with pytest.raises(BadInputError):
        ours.append(0, kv() + 1, kv(width=8))
    assert not ours._store.any()


def test_a_table_that_lost_a_block_is_refused():
    first = cache(size=4, n_blocks=8)
    table = BlockTable(first.pool)
    table.append(5)
    lost = table.blocks.pop()
    with pytest.raises(BadInputError, match="block table 0 names 1 blocks for 5 tokens in blocks of 4"):
        first.with_tables([table])
    table.blocks.append(lost)
    assert first.with_tables([table]).lengths.tolist() == [5]


def test_a_freed_table_cannot_be_put_back():
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.append(3)
    table.free()
    with pytest.raises(BadInputError, match="was freed"):
        table.put_back([0], 3)
    assert pool.n_free == 4


ODD = {
    "a list for n_new": (lambda c: c.reserve([1]), "n_new is \\[1\\]; allowed: a tensor"),
    "a single number": (lambda c: c.reserve(torch.tensor(1)), "n_new is 1; allowed: a tensor"),
    "a list of lengths": (lambda c: c.truncate([0]), "lengths \\[0\\] must be whole numbers.*as a tensor"),
    "no lengths": (lambda c: c.truncate(None), "lengths None must be whole numbers"),
    "a row that is no whole number": (lambda c: c.fork([0.0]), "rows \\[0.0\\] must name"),
    "a word for rows": (lambda c: c.fork("a"), "rows 'a' must name"),
    "nothing reserved": (lambda c: c.append(0, torch.zeros(1, 2, 1, 12), torch.zeros(1, 2, 1, 12)), "call `reserve`"),
    "no keys": (lambda c: [c.reserve(torch.tensor([1])), c.append(0, None, None)], "keys or values is 'NoneType'"),
    "keys elsewhere": (lambda c: [c.reserve(torch.tensor([1])),
                                  c.append(0, *torch.zeros(2, 1, 2, 1, 12, device="meta"))], "keys or values is 'm"),
}


@pytest.mark.parametrize("kind", [cache, lambda: ContiguousKVCache(CFG, 1)])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_tensor_is_refused_in_our_words(kind, odd):
    call, says = ODD[odd]
    made = kind()
    with pytest.raises(BadInputError, match=says):
        call(made)
    assert made.lengths.tolist() == [0]
    assert generate(MODEL, [PROMPTS[0]], 4, made) == generate(MODEL, [PROMPTS[0]], 4)


@pytest.mark.parametrize("tables", [None, [], [1], "ab"])
def test_what_is_no_table_is_refused(tables):
    with pytest.raises(BadInputError, match="block tables, not all of this cache's pool"):
        cache().with_tables(tables)


def test_counts_may_come_as_a_list():
    assert torch.equal(MODEL(torch.tensor([[5, 1, 2]]), cache(), [3]), MODEL(torch.tensor([[5, 1, 2]]), cache()))
