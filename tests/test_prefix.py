"""Prompts that begin alike: what is found, for whom, what is given up, and that nothing is lost."""

import gc
import random
from functools import lru_cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, OutOfBlocksError
from llmflation.model import Transformer, generate
from llmflation.paged import PagedKVCache
from llmflation.prefix import PrefixCache
from llmflation.prefix_index import START, PrefixIndex

CFG = ModelConfig(2, 24, 4, 2, 40, 61, context=64)
MODEL = Transformer(CFG, seed=2).eval().requires_grad_(False)
TEXT = list(range(32))


def ask(prefixes, prompt, n=3, model=MODEL, key=None):
    """How many tokens of the prompt were there, how many went through the model, and the words."""
    cache, count = prefixes.open([prompt], key), [0]
    held = int(cache.lengths[0])
    hook = model.blocks[0].register_forward_pre_hook(lambda _, x: count.append(x[0].shape[1]))
    words = generate(model, [prompt], n, cache)[0]
    hook.remove()
    prefixes.close(cache, [prompt + words])
    return held, sum(count), words


def test_a_second_request_reads_only_what_is_new():
    prefixes = PrefixCache(CFG, 32, block_size=4)
    cold = ask(prefixes, TEXT)
    warm = ask(prefixes, [*TEXT[:17], 60, 60])
    assert cold == (0, 32 + 2, generate(MODEL, [TEXT], 3)[0])
    assert warm == (16, 3 + 2, generate(MODEL, [[*TEXT[:17], 60, 60]], 3)[0])
    assert (prefixes.tokens_found, prefixes.tokens_asked) == (16, 32 + 19)
    assert prefixes.hit_rate == 16 / 51


def known_whole_is_as_cold(prefixes):
    """A known prompt has no scores of its own: one token at least goes through the model, and all come out the same."""
    size, cold = prefixes.pool.block_size, ask(prefixes, TEXT)
    for _ in range(3):
        held, read, words = ask(prefixes, TEXT)
        assert held == 31 // size * size and read == 32 - held + 2 and words == cold[2]
    with torch.no_grad():
        cache = prefixes.open([TEXT])
        scores = MODEL(torch.tensor([TEXT[int(cache.lengths) :]]), cache)[0]
        torch.testing.assert_close(scores, MODEL(torch.tensor([TEXT]))[0, -len(scores) :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 4, 8, 16, 31, 32, 33, 64])
def test_a_prompt_that_is_known_whole_is_read_from_its_last_block_on(size):
    known_whole_is_as_cold(PrefixCache(CFG, 2 * 36 // size + 2, block_size=size))


def test_what_was_written_is_found_as_well_but_never_the_newest_word():
    """The next turn of a talk begins with the last answer; its last word was written and not read."""
    prefixes = PrefixCache(CFG, 32, block_size=4)
    words = ask(prefixes, TEXT[:8], n=9)[2]
    assert ask(prefixes, [*TEXT[:8], *words, 5])[0] == 16  # of 8 + 9 written, 8 were read
    fresh = PrefixCache(CFG, 32, block_size=1)
    words = ask(fresh, TEXT[:8], n=9)[2]
    assert ask(fresh, [*TEXT[:8], *words, 5])[0] == 16


def test_a_batch_finds_each_of_its_beginnings_and_twins_lie_there_once():
    prefixes = PrefixCache(CFG, 64, block_size=4)
    prompts = [TEXT, TEXT[:9], [7] * 10, TEXT]
    cache = prefixes.open(prompts)
    words = generate(MODEL, prompts, 3, cache)
    prefixes.close(cache, [p + w for p, w in zip(prompts, words)])
    assert len(prefixes.index) == 8 + 3 == prefixes.pool.n_used  # 34 tokens once; of 12 that begin with two 7s a third
    again = prefixes.open(prompts)
    assert again.lengths.tolist() == [28, 8, 8, 28] and prefixes.pool.n_used == 11
    assert generate(MODEL, prompts, 3, again) == words


class Colliding(int):
    """A token id whose hash is that of every other one."""

    def __hash__(self):
        return 1


def equal_hashes_are_no_hit(prefixes):
    ask(prefixes, TEXT)
    other = TEXT[::-1]
    assert hash(Colliding(3)) == hash(Colliding(4))
    assert ask(prefixes, other) == (0, 34, generate(MODEL, [other], 3)[0])
    assert ask(prefixes, TEXT)[0] == 28


def test_equal_hashes_are_no_hit(monkeypatch):
    monkeypatch.setattr("llmflation.prefix.index", Colliding)
    equal_hashes_are_no_hit(PrefixCache(CFG, 32, block_size=4))


def swap(layer):
    """Another weight, where the old one lay unless somebody holds that."""
    place, shape = layer.weight.data_ptr(), layer.weight.shape
    del layer.weight
    spots = [torch.full(shape, 0.5) for _ in range(1000)]
    layer.weight = torch.nn.Parameter(min(spots, key=lambda spot: spot.data_ptr() != place))


def test_other_weights_never_share():
    prefixes = PrefixCache(CFG, 99, block_size=4)
    model, twin = Transformer(CFG, seed=2).eval(), Transformer(CFG, seed=2).eval()
    for each in (model, twin):  # even equal weights are read by each for itself
        assert [ask(prefixes, TEXT, model=each, key=each)[0] for _ in range(2)] == [0, 28]
    assert ask(prefixes, TEXT)[0] == 0  # nor does anything leak into requests that name no model
    assert ask(prefixes, TEXT, model=model, key=model)[0] == 28
    changes = [lambda: model.blocks[0].attention.qkv.weight.data_ptr(),  # looking is no change
               lambda: swap(model.head), lambda: swap(model.head), lambda: swap(model.head),
               lambda: model.norm.weight.detach().mul_(1.01),
               lambda: model.cos.mul_(0.5),
               lambda: model.load_state_dict(twin.state_dict()),
               lambda: model.to(torch.bfloat16).to(torch.float32)]
    held = []
    for change in changes:
        change()
        held.append(ask(prefixes, TEXT, model=model, key=model)[0])
    assert held == [28, *[0] * (len(changes) - 1)]


def test_a_model_made_in_inference_mode_has_a_key_too():
    """PyTorch counts no changes of its weights."""
    with torch.inference_mode():
        model = Transformer(CFG, seed=2).eval()
    prefixes = PrefixCache(CFG, 32, block_size=4)
    assert [ask(prefixes, TEXT, model=model, key=model)[0] for _ in range(2)] == [0, 28]


def test_a_model_that_is_gone_leaves_nothing_to_its_successor():
    """The next one may come to lie at the same address."""
    prefixes = PrefixCache(CFG, 99, block_size=4)
    for seed in range(5):
        model = Transformer(CFG, seed=seed).eval()
        assert ask(prefixes, TEXT, model=model, key=model) == (0, 34, generate(model, [TEXT], 3)[0])
        del model


def test_other_settings_and_other_numbers_are_refused():
    prefixes = PrefixCache(CFG, 32, block_size=4)
    for other in (ModelConfig(2, 24, 4, 2, 40, 61, context=64, rope_theta=500.0),
                  ModelConfig(2, 24, 4, 2, 40, 61, context=128)):
        with pytest.raises(BadInputError, match="make one for each architecture"):
            prefixes.open([TEXT], Transformer(other))
    half = Transformer(CFG).to(torch.bfloat16)
    with pytest.raises(BadInputError, match="bfloat16"):
        generate(half, [TEXT], 2, prefixes.open([TEXT], half))


def what_is_in_use_stays(prefixes):
    """And of the rest goes first what was not used for longest. Of 12 blocks of 4."""
    a, b, c = ([n] * 12 for n in (1, 2, 3))
    for prompt in (a, b, a):  # 3 blocks each: b has waited longest
        ask(prefixes, prompt, 1)
    ask(prefixes, [4] * 32, 1)  # 8 of 12 blocks
    assert [ask(prefixes, prompt, 1)[0] for prompt in (a, b)] == [8, 0]
    using = prefixes.open([a])
    assert using.lengths.tolist() == [8]
    with pytest.raises(OutOfBlocksError):
        ask(prefixes, [5] * 44, 1)  # 11 blocks, and 2 are in use
    assert generate(MODEL, [a], 3, using) == generate(MODEL, [a], 3)
    prefixes.pool.check()
    assert ask(prefixes, c, 1)[0] == 0


def test_what_was_not_used_for_longest_goes_first_and_what_is_in_use_never():
    what_is_in_use_stays(PrefixCache(CFG, 12, block_size=4))


def test_nothing_leaks_over_hundreds_of_requests():
    """Closed, freed without closing, forked, run out of blocks, just dropped after an error: all come back."""
    prefixes, draw = PrefixCache(CFG, 24, block_size=4), random.Random(0)
    waiting, answers = [], {}
    for _ in range(300):
        prompt = [draw.randrange(3)] * draw.randrange(1, 20) + [draw.randrange(3)] * draw.randrange(1, 9)
        cache = prefixes.open([prompt])
        try:
            words = generate(MODEL, [prompt], 3, cache)[0]
        except OutOfBlocksError:
            if draw.random() < 0.5:
                cache.free()
            del cache  # or just drop it
        else:
            assert words == answers.setdefault(tuple(prompt), words)
            waiting.append((cache, [prompt + words], cache.fork([0, 0])))
        while len(waiting) > 2:
            cache, tokens, fork = waiting.pop(draw.randrange(len(waiting)))
            fork.free()
            if draw.random() < 0.8:
                prefixes.close(cache, tokens)
            else:
                cache.free()
        prefixes.pool.check()
    for cache, _, fork in waiting:
        fork.free(), cache.free()
    assert prefixes.pool.n_used == len(prefixes.index) > 0 and 0.2 < prefixes.hit_rate < 1
    prefixes.index.evict(24)
    assert prefixes.pool.n_free == 24
    for prompt in list(answers)[:40]:
        assert answers[prompt] == generate(MODEL, [prompt], 3)[0]


def test_the_bytes_are_those_of_the_pool():
    assert PrefixCache(CFG, 10, block_size=4).nbytes == 10 * 4 * 2 * 2 * 2 * 6 * 4  # k and v, layers, heads, width


@pytest.mark.parametrize("call, says", [
    (lambda p: p.open([]), "there are 0 prompts"),
    (lambda p: p.open([[1], []]), "prompt 1 has 0 tokens"),
    (lambda p: p.open([["a"]]), "prompt 0 holds something that is no token id"),
    (lambda p: p.close(p.open([TEXT]), [TEXT[1:]]), "tokens of sequence 0 do not begin with its prompt of 32"),
    (lambda p: p.close(p.open([TEXT]), [TEXT[::-1]]), "tokens of sequence 0 do not begin with its prompt"),
    (lambda p: p.close(p.open([TEXT, [1]]), [TEXT, [2, 1]]), "tokens of sequence 1 do not begin with its prompt of 1"),
    (lambda p: p.close(p.open([TEXT, [1]]), [TEXT]), "tokens of 1 sequences came; this cache was opened for 2"),
    (lambda p: p.close(p.open([TEXT]), [TEXT, [1]]), "tokens of 2 sequences came; this cache was opened for 1"),
    (lambda p: p.close(PrefixCache(CFG, 8).open([TEXT]), [TEXT]), "not open here"),
    (lambda p: [p.close(cache, [TEXT]) for cache in [p.open([TEXT])] * 2], "not open here"),
    (lambda p: PrefixCache(CFG, 0), "n_blocks is 0"),
    (lambda p: PrefixCache(CFG, 8, block_size=0), "block_size is 0"),
])
def test_bad_input_is_refused_and_nothing_is_lost(call, says):
    prefixes = PrefixCache(CFG, 32, block_size=4)
    ask(prefixes, TEXT)
    with pytest.raises(BadInputError, match=says):
        call(prefixes)
    prefixes.pool.check()
    assert ask(prefixes, TEXT)[0] == 28


# --- random traces over poison -------------------------------------------------------------------------------


def poisoned(prefixes):
    """Blocks that nobody owns hold NaN: at the start, and from the moment in which the last owner lets go, whether the
    sequence ended, was dropped or taken back, or the index gave the block up."""
    pool, store, release = prefixes.pool, prefixes._root._store, prefixes.pool.release

    def release_and_fill(block):
        if free := release(block):
            store[:, :, :, block] = torch.nan
        return free

    store[:, :, :, :-1] = torch.nan
    pool.release = release_and_fill
    return prefixes


@lru_cache(maxsize=4096)
@torch.inference_mode()
def alone(text):
    """The scores (n, V) at every position of a text that is read whole, without a cache."""
    return MODEL(torch.tensor([text]))[0]


class Requests(RuleBasedStateMachine):
    """Batches of one or two texts in a pool that is too small for all: alike for a while, or but for the first token.

    Each is a cache, its prompts, and its texts: what it holds and what it has still to read.
    """

    index = PrefixIndex

    @initialize(size=st.sampled_from([1, 2, 3, 4, 7]), tokens=st.integers(31, 60), seed=st.integers(0, 9))
    def begin(self, size, tokens, seed):
        self.prefixes = poisoned(with_index(self.index, PrefixCache(CFG, -(-tokens // size), block_size=size)))
        self.pool, self.random, self.batches = self.prefixes.pool, random.Random(seed), []
        self.random.shuffle(self.pool._free)

    def one(self, data):
        return data.draw(st.integers(0, len(self.batches) - 1))

    @precondition(lambda self: len(self.batches) < 4)
    @rule(texts=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 4, 9, 16, 18]), st.integers(0, 1)),
                         min_size=1, max_size=2), at_once=st.booleans())
    def open(self, texts, at_once):
        prompts = [[first, *range(5, 5 + n), end] for first, n, end in texts]
        self.batches.append((self.prefixes.open(prompts), prompts, [list(p) for p in prompts]))
        if at_once:  # a request from its beginning to its end
            held = self.batches[-1][0].lengths.tolist()
            self.check(-1, [len(prompt) - h for prompt, h in zip(prompts, held)])
            self.close(-1)

    def call(self, cache, texts, n_new):
        held = cache.lengths.tolist()
        for text, h, n in zip(texts, held, n_new):  # behind what is left to read come any words
            text += self.random.choices(range(61), k=h + n - len(text))
        tokens = torch.zeros(len(texts), max(1, *n_new), dtype=torch.long)
        for row, (text, h, n) in enumerate(zip(texts, held, n_new)):
            tokens[row, :n] = torch.tensor(text[h : h + n])
        with torch.inference_mode():
            return MODEL(tokens, cache, torch.tensor(n_new))

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def read(self, data):
        i = self.one(data)
        self.check(i, [data.draw(st.integers(0, min(12, 30 - h))) for h in self.batches[i][0].lengths.tolist()])

    def check(self, i, n_new):
        """All scores of the new tokens are those without a cache; or they do not fit, and nothing has changed."""
        cache, _, texts = self.batches[i]
        held = cache.lengths.tolist()
        try:
            scores = self.call(cache, texts, n_new)
        except OutOfBlocksError:
            assert cache.lengths.tolist() == held
            return
        for row, (text, h, n) in enumerate(zip(texts, held, n_new)):
            if n:
                torch.testing.assert_close(scores[row, :n], alone(tuple(text[: h + n]))[h:], rtol=0, atol=1e-5)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def interrupt(self, data):
        """When the first layer has stored its keys."""
        cache, _, texts = self.batches[self.one(data)]
        held = cache.lengths.tolist()
        with patch.object(MODEL.blocks[1], "forward", lambda *_: 1 / 0):
            try:
                self.call(cache, texts, [min(5, 30 - h) for h in held])
            except (ZeroDivisionError, OutOfBlocksError):
                assert cache.lengths.tolist() == held

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data, share):
        cache, prompts, texts = self.batches[self.one(data)]
        cache.truncate((cache.lengths * share).long())
        for row, (prompt, n) in enumerate(zip(prompts, cache.lengths.tolist())):
            texts[row] = list(prompt) if n < len(prompt) else texts[row][:n]

    @precondition(lambda self: 0 < len(self.batches) < 4)
    @rule(data=st.data())
    def fork(self, data):
        cache, prompts, texts = self.batches[self.one(data)]
        row = data.draw(st.integers(0, len(texts) - 1))
        self.batches.append((cache.fork([row]), [prompts[row]], [list(texts[row])]))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), how=st.sampled_from(["close", "free", "drop"]))
    def end(self, data, how):
        i = self.one(data)
        if self.batches[i][0] not in self.prefixes._opened:  # a fork is none of theirs
            self.batches.pop(i)[0].free()
        elif how == "close":
            self.close(i)
        else:
            cache, _, _ = self.batches.pop(i)
            cache.free() if how == "free" else None

    def close(self, i):
        cache, _, texts = self.batches.pop(i)
        self.prefixes.close(cache, texts)

    @invariant()
    def what_is_held_is_not_poisoned(self):
        if not hasattr(self, "prefixes"):
            return
        self.pool.check()
        held = set(self.prefixes.index._key)
        for cache, _, _ in self.batches:
            for table, n in zip(cache.tables, cache.lengths.tolist()):
                held |= set(table.blocks[: -(-n // self.pool.block_size)])
        assert not self.prefixes._root._store[:, :, :, [self.pool.n_blocks, *held]].isnan().any()

    def teardown(self):
        if hasattr(self, "prefixes"):
            for cache, _, _ in self.batches:
                cache.free()
            assert self.pool.n_used == len(self.prefixes.index)
            self.prefixes.index.evict(self.pool.n_blocks)
            assert self.pool.n_free == self.pool.n_blocks


def with_index(kind, prefixes):
    """The same prefix cache, still empty, with another kind of index."""
    prefixes.pool.keeper = None
    prefixes.index = kind(prefixes.pool)
    return prefixes


TRACES = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True, database=None)
TestRequests = Requests.TestCase
TestRequests.settings = TRACES


# --- each fault breaks a law ---------------------------------------------------------------------------------


class ReusesAll(PrefixCache):
    """A prompt that is known whole is not read at all, so nothing gives its scores."""

    def open(self, prompts, model=None):
        cache = super().open([[*prompt, 0] for prompt in prompts], model)
        self._opened[cache] = None, [list(prompt) for prompt in prompts], cache.tables
        return cache


class ByHash(PrefixIndex):
    """vLLM 12621: a block belongs to everyone whose tokens have its hash."""

    def match(self, tokens):
        of_hash, found, before = {hash(key): block for key, block in self._block.items()}, [], START
        for chunk in self._chunks(tokens):
            if (before := of_hash.get(hash((before, chunk)))) is None:
                break
            self.pool.share(before)
            found.append(before)
        return found


class EvictsInUse(PrefixIndex):
    """Whoever else owns a block is not asked."""

    def evictable(self, n):
        return [*self._key][:n]

    def evict(self, n):
        for block in self.evictable(n):
            while self.pool.owners(block) > 1:
                self.pool.release(block)
        super().evict(n)


class EvictsFirstBlockFirst(PrefixIndex):
    """The blocks behind one that is given up stay, and are found behind whatever comes to lie in its place."""

    def evictable(self, n):
        return [block for block in reversed(self._key) if self.pool.owners(block) == 1][:n]


class OwnsNothing(PrefixIndex):
    """Blocks are remembered and not owned, so that their sequence frees them when it ends."""

    def insert(self, tokens, blocks):
        before = len(self)
        super().insert(tokens, blocks)
        for block in [*self._key][before - len(self) :] if len(self) > before else []:
            self.pool.release(block)


NOTICED = AssertionError, BadInputError, pytest.fail.Exception


def test_a_known_prompt_that_is_not_read_at_all_breaks_the_law():
    with pytest.raises(NOTICED):
        known_whole_is_as_cold(ReusesAll(CFG, 99, block_size=4))


def test_a_hit_by_the_hash_alone_breaks_the_law(monkeypatch):
    monkeypatch.setattr("llmflation.prefix.index", Colliding)
    with pytest.raises(NOTICED):
        equal_hashes_are_no_hit(with_index(ByHash, PrefixCache(CFG, 32, block_size=4)))


def test_a_block_that_is_evicted_in_use_breaks_the_law():
    with pytest.raises(NOTICED):
        what_is_in_use_stays(with_index(EvictsInUse, PrefixCache(CFG, 12, block_size=4)))


def rest_not_cleared(self, copies, before):
    """A block that is not filled yet keeps what another sequence left in its rest."""
    for old, new in copies:
        self._store[:, :, :, new] = self._store[:, :, :, old]


@pytest.mark.parametrize("fault", [EvictsInUse, EvictsFirstBlockFirst, OwnsNothing, rest_not_cleared])
def test_a_fault_shows_in_the_traces(fault, monkeypatch):
    class Faulty(Requests):
        index = fault if isinstance(fault, type) else PrefixIndex

    if Faulty.index is PrefixIndex:
        monkeypatch.setattr(PagedKVCache, "_prepare", fault)
    with pytest.raises(NOTICED):
        run_state_machine_as_test(Faulty, settings=settings(TRACES, max_examples=1000, phases=[Phase.generate]))


def test_a_cache_that_was_freed_and_holds_another_text_is_not_kept():
    prefixes = PrefixCache(CFG, 16, block_size=4)
    cache = prefixes.open([TEXT])
    cache.free()
    other = [60 - t for t in TEXT]
    generate(MODEL, [other], 1, cache)
    with pytest.raises(BadInputError, match="freed since it was opened"):
        prefixes.close(cache, [[*TEXT, 1]])
    cache.free()
    assert prefixes.open([TEXT]).lengths.tolist() == [0]


@pytest.mark.parametrize("how", ["freed and used again", "closed and used again", "forked"])
def test_whatever_is_dropped_gives_its_blocks_back(how):
    prefixes = PrefixCache(CFG, 48, block_size=4)
    cache = prefixes.open([TEXT])
    generate(MODEL, [TEXT], 2, cache)
    twin = cache.fork([0, 0]) if how == "forked" else None
    if twin:
        generate(MODEL, [[*TEXT, 1, 2]] * 2, 2, twin)
        cache.free()
    elif how.startswith("closed"):
        prefixes.close(cache, [[*TEXT, 1, 2]])
    else:
        cache.free()
    kept = prefixes.pool.n_used if how.startswith("closed") else 0  # by the index
    if not twin:
        generate(MODEL, [TEXT], 2, cache)
    assert prefixes.pool.n_used > kept
    del cache, twin
    gc.collect()
    assert prefixes.pool.n_used == kept
    prefixes.pool.check()


@pytest.mark.parametrize("model", ["x", torch.nn.Linear(2, 2), None.__class__])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(BadInputError, match="this prefix cache was made for"):
        PrefixCache(CFG, 4).open([TEXT], model)
