"""Every cache gives what no cache gives: the same words, the same scores at every position, from fewer tokens read.

A law is a function of the cache to be tested. So the faults of public teaching codes, planted into our caches, go
through the same laws: each must break one.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_oracle_llama import SHAPES, theirs

from llmflation.blocks import BlockPool, BlockTable
from llmflation.checkpoint import from_hugging_face
from llmflation.config import ModelConfig
from llmflation.cost.counts import kv_bytes
from llmflation.errors import BadInputError, OutOfBlocksError
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import set_linear_path
from llmflation.model import Transformer, generate, stream
from llmflation.paged import PagedKVCache
from llmflation.prefix import PrefixCache
from llmflation.prefix_index import PrefixIndex
from llmflation.quantized_cache import QuantizedKVCache
from llmflation.window import WindowKVCache

LAWFUL = settings(max_examples=200, derandomize=True, deadline=None, database=None)
CONTEXT, VOCABULARY = 48, 61


@pytest.fixture(autouse=True, scope="module")
def _plain_products():
    """One path for any number of vectors, so that only the cache can make a difference."""
    set_linear_path("plain")
    yield
    set_linear_path("auto")


# --- what is read, and in which order ------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Texts of several lengths, and how their tokens arrive: each call brings so many of each row."""

    cfg: ModelConfig
    texts: tuple[tuple[int, ...], ...]
    calls: tuple[tuple[int, ...], ...]
    block_size: int = 4
    new: int = 5  # words to be written behind each


@st.composite
def configs(draw) -> ModelConfig:
    group, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return ModelConfig(draw(st.integers(1, 3)), draw(st.sampled_from([8, 24, 40])), group * kv_heads, kv_heads,
                       draw(st.sampled_from([16, 56])), VOCABULARY, head_dim=draw(st.sampled_from([2, 6, 16])),
                       context=CONTEXT, tied_embeddings=draw(st.booleans()))


@st.composite
def cases(draw) -> Case:
    lengths = draw(st.lists(st.integers(1, 24), min_size=1, max_size=4))
    left, calls = lengths, []
    for most in draw(st.lists(st.sampled_from([1, 3, 8, 24]), max_size=6)):
        call = tuple(draw(st.integers(0, min(most, n))) for n in left)
        if any(call):
            left = [n - taken for n, taken in zip(left, call)]
            calls.append(call)
    calls += [tuple(left)] * any(left)
    texts = texts_of(lengths, seed=draw(st.integers(0, 99)))
    return Case(draw(configs()), texts, tuple(calls), draw(st.sampled_from([1, 2, 3, 4, 7, 16, 64])))


def texts_of(lengths, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths)


@lru_cache(maxsize=256)
def model_of(cfg: ModelConfig) -> Transformer:
    return Transformer(cfg, seed=1).eval().requires_grad_(False)


@st.composite
def arrivals(draw) -> list[Case]:
    """Batches that come one after another; texts begin alike for a while, or not at all."""
    cfg, size, texts = draw(configs()), draw(st.integers(1, 6)), list(texts_of([24, 24], seed=draw(st.integers(0, 99))))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        batch = []
        for _ in range(draw(st.integers(1, 3))):
            tail = draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=3))
            batch.append((*draw(st.sampled_from(texts))[: draw(st.integers(1, 24))], *tail))
        texts += batch
        batches.append(Case(cfg, tuple(batch), (), size, new=3))
    return batches


CASE = Case(ModelConfig(2, 24, 4, 2, 40, VOCABULARY, context=CONTEXT), texts_of([13, 1, 8, 5], seed=3),
            ((9, 1, 0, 4), (1, 0, 3, 0), (0, 0, 4, 1), (3, 0, 1, 0)))
MODEL = model_of(CASE.cfg)


@torch.inference_mode()
def read(case: Case, cache) -> list[torch.Tensor]:
    """The scores (n, V) at every position of each text that the cache does not hold yet, read call by call."""
    model, held = model_of(case.cfg), cache.lengths.tolist()
    scores = [[] for _ in case.texts]
    for call in case.calls:
        tokens = torch.zeros(len(call), max(call), dtype=torch.long)
        for row, n in enumerate(call):
            tokens[row, :n] = torch.tensor(case.texts[row][held[row] : held[row] + n])
        made = model(tokens, cache, torch.tensor(call))
        for row, n in enumerate(call):
            scores[row].append(made[row, :n])
        held = [h + n for h, n in zip(held, call)]
    return [torch.cat(parts) for parts in scores]


@lru_cache(maxsize=1024)
@torch.inference_mode()
def uncached(cfg: ModelConfig, text: tuple[int, ...]) -> torch.Tensor:
    """The scores (n, V) at every position of a text that is read alone, whole, without a cache."""
    return model_of(cfg)(torch.tensor([text]))[0]


@lru_cache(maxsize=1024)
def written(case: Case) -> list[list[int]]:
    """What stands behind each text when every step reads everything again."""
    return generate(model_of(case.cfg), case.texts, case.new)


@contextmanager
def counted(model: Transformer):
    """Counts the tokens, padding too, that really go through the first layer."""
    count = [0]

    def add(_, given):
        count[0] += given[0].shape[:2].numel()

    hook = model.blocks[0].attention.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


# --- the laws ------------------------------------------------------------------------------------------------


def same_scores(case: Case, cache) -> None:
    """Position for position, the first one too, the scores are those without a cache."""
    held = cache.lengths.tolist()
    for got, text, h in zip(read(case, cache), case.texts, held, strict=True):
        torch.testing.assert_close(got, uncached(case.cfg, text)[h:], rtol=0, atol=1e-5)
    assert cache.lengths.tolist() == [len(text) for text in case.texts]


def same_words(case: Case, cache) -> None:
    """Behind what the cache already holds, all of a text but its last token, the same words are written."""
    held = [len(text) - 1 for text in case.texts]
    cache.truncate(torch.tensor(held))
    alike(case, generate(model_of(case.cfg), case.texts, case.new, cache))
    assert cache.lengths.tolist() == [h + case.new for h in held]


def alike(case: Case, got: list[list[int]]) -> None:
    """The words are those without a cache. Two that score the same but for rounding may stand for each other."""
    for text, mine, wanted in zip(case.texts, got, written(case), strict=True):
        if mine != wanted:
            assert len(mine) == len(wanted)
            at = next(i for i, (a, b) in enumerate(zip(mine, wanted)) if a != b)
            scores = uncached(case.cfg, (*text, *wanted[:at]))[-1]
            assert abs(scores[mine[at]] - scores[wanted[at]]) < 1e-5, f"{mine} instead of {wanted}"


def no_trace(case: Case, cache) -> None:
    """After a reset the texts are read as if nothing had been there before."""
    longer = texts_of([len(text) + 7 for text in case.texts], seed=77)
    read(replace(case, texts=longer, calls=(tuple(map(len, longer)),)), cache)
    cache.free()
    assert not cache.lengths.any()
    same_scores(case, cache)


def twins_are_apart(case: Case, cache) -> None:
    """A fork and what it came from go on with other words, each for itself; the copied row is not changed by either."""
    read(case, cache)
    rows = [len(case.texts) - 1, 0, 0]
    ways = [(cache, case.texts, 1), (cache.fork(rows), tuple(case.texts[row] for row in rows), 7)]
    for step in range(3):
        for i, (held, texts, stride) in enumerate(ways):
            words = [(stride * (row + 2) + step) % VOCABULARY for row in range(len(texts))]
            with torch.inference_mode():
                scores = model_of(case.cfg)(torch.tensor(words)[:, None], held)[:, 0]
            ways[i] = held, tuple((*text, word) for text, word in zip(texts, words)), stride
            for got, text in zip(scores, ways[i][1], strict=True):
                torch.testing.assert_close(got, uncached(case.cfg, text)[-1], rtol=0, atol=1e-5)


def beginnings_change_nothing(batches: list[Case], prefixes: PrefixCache) -> None:
    """Batch after batch, of which each may find what those before it left: the same scores, the same words."""
    for case in batches:
        cache = prefixes.open(case.texts)
        left = [len(text) - held for text, held in zip(case.texts, cache.lengths.tolist(), strict=True)]
        assert min(left) > 0
        same_scores(replace(case, calls=(tuple(left),)), cache)
        cache.truncate(cache.lengths - 1)
        words = generate(model_of(case.cfg), case.texts, case.new, cache)
        alike(case, words)
        prefixes.close(cache, [[*text, *w] for text, w in zip(case.texts, words)])
        prefixes.pool.check()
        assert prefixes.pool.n_used == len(prefixes.index)


def no_token_is_read_twice(write) -> None:
    """`write(prompts, n)` puts n words behind each prompt, and computes nothing that it has computed before."""
    for n in (1, 2, 9):
        with counted(MODEL) as count:
            write([list(range(12))] * 3, n)
        assert count[0] == 3 * (12 + n - 1)


def nothing_is_lost(cache, case: Case, step: int) -> None:
    """Left after any step, the words so far and the cache are enough to go on as if nothing had been."""
    words, steps = [[] for _ in case.texts], stream(MODEL, case.texts, case.new, cache)
    for _ in range(step):
        for row, word in next(steps).items():
            words[row].append(word)
    steps.close()
    assert cache.lengths.tolist() == [len(text) + step - 1 if step else 0 for text in case.texts]
    go_on(case, words, cache)


def go_on(case: Case, words: list[list[int]], cache) -> None:
    """All that is still to come, behind the words that were kept."""
    rest = generate(MODEL, [[*text, *w] for text, w in zip(case.texts, words)], case.new - len(words[0]), cache)
    assert [a + b for a, b in zip(words, rest)] == written(case)


# --- the caches ----------------------------------------------------------------------------------------------


def contiguous(case: Case, kind=ContiguousKVCache):
    return kind(case.cfg, len(case.texts), CONTEXT)


def paged(case: Case, kind=PagedKVCache):
    blocks = (len(case.texts) + 3) * -(-CONTEXT // case.block_size)  # room for a fork, too
    return kind(case.cfg, len(case.texts), blocks, case.block_size)


def wide_window(case: Case):
    """A window that holds the whole context sees what no window sees."""
    return WindowKVCache(replace(case.cfg, sliding_window=CONTEXT), len(case.texts), CONTEXT)


def all_recent(case: Case):
    """A cache in 4 bits that still holds every token in full, too."""
    return QuantizedKVCache(case.cfg, len(case.texts), CONTEXT, 4, None, recent=CONTEXT)


CACHES = {"contiguous": contiguous, "paged": paged, "window": wide_window, "quantized": all_recent}
every_cache = pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)


@every_cache
@given(case=cases())
@LAWFUL
def test_scores_at_every_position_and_words_are_those_without_a_cache(make, case):
    cache = make(case)
    same_scores(case, cache)
    same_words(case, cache)


def pool_for(batches: list[Case], spare: int = 0) -> PrefixCache:
    """Room for the widest batch and `spare` blocks that it leaves to the others."""
    size = batches[0].block_size
    widest = max(sum(-(-(len(text) + case.new) // size) for text in case.texts) for case in batches)
    return PrefixCache(batches[0].cfg, widest + spare, size)


@given(batches=arrivals(), spare=st.integers(0, 20))
@LAWFUL
def test_known_beginnings_change_nothing(batches, spare):
    beginnings_change_nothing(batches, pool_for(batches, spare))


@every_cache
@given(case=cases())
@settings(LAWFUL, max_examples=50)
def test_a_reset_leaves_no_trace_and_twins_are_apart(make, case):
    no_trace(case, make(case))
    twins_are_apart(case, make(case))


@every_cache
def test_what_a_cache_holds_is_not_computed_again(make):
    no_token_is_read_twice(lambda prompts, n: generate(MODEL, prompts, n, make(replace(CASE, texts=tuple(prompts)))))


@every_cache
@pytest.mark.parametrize("step", range(CASE.new))
def test_a_stream_is_left_at_any_step_and_gone_on_with(make, step):
    nothing_is_lost(make(CASE), CASE, step)


@every_cache
@pytest.mark.parametrize("at", range(2 * CASE.new))
def test_an_interrupt_in_any_layer_of_any_step_loses_nothing(make, at):
    """The interrupt comes when a layer has stored its keys and the next one has not: half a step is no step."""
    cache, calls = make(CASE), iter(range(99))

    def interrupt(*_):
        if next(calls) == at:
            raise KeyboardInterrupt

    hooks = [block.register_forward_hook(interrupt) for block in MODEL.blocks]
    with pytest.raises(KeyboardInterrupt) as caught:
        generate(MODEL, CASE.texts, CASE.new, cache)
    for hook in hooks:
        hook.remove()
    done = at // 2
    assert [len(words) for words in caught.value.written] == [done] * 4
    assert cache.lengths.tolist() == [len(text) + done - 1 if done else 0 for text in CASE.texts]
    go_on(CASE, caught.value.written, cache)


@every_cache
def test_an_interrupt_between_scores_and_word_costs_one_token(make):
    cache, calls = make(CASE), iter(range(99))

    def sampler(scores, _):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return scores.argmax(-1)

    with pytest.raises(KeyboardInterrupt) as caught:
        generate(MODEL, CASE.texts, CASE.new, cache, sampler)
    with pytest.raises(BadInputError, match="cache holds 15 tokens of sequence 0, whose prompt has 15; truncate it"):
        go_on(CASE, caught.value.written, cache)
    cache.truncate(cache.lengths - 1)
    go_on(CASE, caught.value.written, cache)


@every_cache
def test_a_finished_row_goes_on_with_the_others(make):
    """What ended with the stop token is truncated by one, and ends there again."""
    words = written(CASE)
    stop = words[0][2]
    whole = generate(MODEL, CASE.texts, CASE.new, stop=stop)
    cache, half = make(CASE), [[] for _ in CASE.texts]
    for step in [*zip(range(4), stream(MODEL, CASE.texts, CASE.new, cache, stop=stop))]:
        for row, word in step[1].items():
            half[row].append(word)
    assert len(half[0]) == words[0].index(stop) < max(map(len, half))
    prompts = [[*text, *w] for text, w in zip(CASE.texts, half)]
    cache.truncate(torch.minimum(cache.lengths, torch.tensor([len(p) - 1 for p in prompts])))
    rest = generate(MODEL, prompts, 1, cache, stop=stop)
    assert [a + b for a, b in zip(half, rest)] == whole


@every_cache
def test_a_cache_that_does_not_fit_the_prompts_is_refused_and_stays_as_it_was(make):
    cache = make(CASE)
    read(CASE, cache)
    for prompts, says in ((CASE.texts, "cache holds 13 tokens of sequence 0, whose prompt has 13; truncate"),
                          ([(*text, 1) for text in CASE.texts[:3]], "made for 4 sequences and there are 3 prompts"),
                          ([(1, 2)] * 4, "cache holds 13 tokens of sequence 0, whose prompt has 2")):
        with pytest.raises(BadInputError, match=says) as caught:
            generate(MODEL, prompts, 2, cache)
        assert caught.value.written == [[] for _ in prompts]
    assert cache.lengths.tolist() == [13, 1, 8, 5]
    same_words(CASE, cache)


# --- one cache beside another --------------------------------------------------------------------------------


@given(case=cases())
@LAWFUL
def test_paged_is_contiguous_bit_for_bit(case):
    """Heads of 64 bytes start at a multiple of 64 in both: a product rounds otherwise where memory lies askew."""
    case = replace(case, cfg=replace(case.cfg, head_dim=16))
    for a, b in zip(read(case, paged(case)), read(case, contiguous(case)), strict=True):
        assert torch.equal(a, b)


@given(case=cases())
@settings(LAWFUL, max_examples=50)
def test_a_batch_that_is_gathered_row_by_row_scores_the_same(case):
    """Not to the bit: attention sums in another order for another number of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmflation.paged.PIECE_BYTES", 1)
        same_scores(case, paged(case))


def test_a_pool_that_runs_out_in_the_middle_loses_nothing():
    """Another one's blocks are given back, and the words that follow are those of a run with room for all."""
    cache = PagedKVCache(CASE.cfg, 4, 14, 4)
    other = cache.fork([0])
    with torch.inference_mode():
        MODEL(torch.arange(16)[None], other)
    with pytest.raises(OutOfBlocksError) as caught:
        generate(MODEL, CASE.texts, CASE.new, cache)
    done = len(caught.value.written[0])
    assert 0 < done < CASE.new and cache.lengths.tolist() == [len(text) + done - 1 for text in CASE.texts]
    other.free()
    go_on(CASE, caught.value.written, cache)


@pytest.mark.parametrize("make", [contiguous, paged], ids=["contiguous", "paged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_words_are_those_of_transformers(make, shape):
    cfg = SHAPES[shape]
    other, model = theirs(cfg), Transformer(cfg).eval()
    model.load_state_dict(from_hugging_face(other.state_dict(), cfg))
    prompt = torch.randint(0, 97, (1, 12), generator=torch.Generator().manual_seed(2))
    expected = other.generate(prompt, max_new_tokens=30, do_sample=False)[0, 12:].tolist()
    assert generate(model, prompt.tolist(), 30, make(Case(cfg, ((),), ()))) == [expected]


@given(case=cases())
@settings(LAWFUL, max_examples=30)
def test_the_bytes_are_those_of_the_formula(case):
    for make in (contiguous, wide_window):
        assert make(case).nbytes == len(case.texts) * kv_bytes(case.cfg, CONTEXT, kv_bits=32)
    cache = paged(case)
    assert cache.nbytes == cache.pool.n_blocks * kv_bytes(case.cfg, case.block_size, kv_bits=32)


def grouped_is_repeated(cfg: ModelConfig, repeat=torch.Tensor.repeat_interleave) -> None:
    """Heads that share keys and values are heads that each have a copy of them."""
    wide, state = replace(cfg, n_kv_heads=cfg.n_heads), model_of(cfg).state_dict()
    sizes = [cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim]
    for name in (name for name in state if "qkv" in name):
        q, *kv = state[name].split(sizes)
        heads = [w.view(cfg.n_kv_heads, cfg.head_dim, -1) for w in kv]
        state[name] = torch.cat([q, *(repeat(w, cfg.n_heads // cfg.n_kv_heads, 0).flatten(0, 1) for w in heads)])
    tokens = torch.tensor(texts_of([20, 20]))
    with torch.inference_mode():
        copied = Transformer.of(wide, state)(tokens, ContiguousKVCache(wide, 2))
        torch.testing.assert_close(copied, model_of(cfg)(tokens, ContiguousKVCache(cfg, 2)), rtol=0, atol=1e-5)


@given(cfg=configs())
@settings(LAWFUL, max_examples=30)
def test_heads_that_share_are_heads_with_copies(cfg):
    grouped_is_repeated(cfg)


# --- each fault breaks a law ---------------------------------------------------------------------------------


class FirstLeftZero(ContiguousKVCache):
    """TrenTorch 192: position 0 is never stored."""

    def append(self, layer, k, v):
        keys, values = super().append(layer, k, v)
        keys[:, :, 0] = values[:, :, 0] = 0
        return keys, values


class NotReset(ContiguousKVCache):
    """LLMs-from-scratch 925: the pointer stays where the last text ended."""

    def free(self):
        pass


class Stale(ContiguousKVCache):
    """A place that was written once is taken to be written."""

    def append(self, layer, k, v):
        before = self._store[layer].clone()
        keys, values = super().append(layer, k, v)
        for now, then in zip((keys, values), before):
            then = then[:, :, : self._end]
            now.copy_(torch.where(then != 0, then, now))
        return keys, values


class PaddingCounts(ContiguousKVCache):
    """Every row is taken to be as long as the longest of the call."""

    def advance(self, n_new):
        super().advance(torch.full_like(n_new, int(n_new.max())))


class SharedFork(ContiguousKVCache):
    """A fork that shares its parent's memory."""

    def fork(self, rows):
        twin = super().fork(rows)
        twin._store = self._store[:, :, : len(rows)]
        return twin


@pytest.mark.parametrize("law, fault", [(same_scores, FirstLeftZero), (same_words, FirstLeftZero), (no_trace, NotReset),
                                        (no_trace, Stale), (same_scores, PaddingCounts), (twins_are_apart, SharedFork)])
def test_a_faulty_cache_breaks_the_law(law, fault):
    law_with_text = law if law is not same_words else after_reading
    law_with_text(CASE, contiguous(CASE))
    with pytest.raises((AssertionError, BadInputError)):
        law_with_text(CASE, contiguous(CASE, fault))


def after_reading(case: Case, cache) -> None:
    read(case, cache)
    same_words(case, cache)


def test_a_cache_that_is_never_used_breaks_the_law():
    """LLMs-from-scratch 913: the words are right, and every step reads everything."""
    with pytest.raises(AssertionError):
        no_token_is_read_twice(lambda prompts, n: generate(MODEL, prompts, n))


def test_heads_that_share_with_the_wrong_neighbour_break_the_law():
    with pytest.raises(AssertionError):
        grouped_is_repeated(CASE.cfg, lambda w, n, dim: w.repeat(n, 1, 1))


def test_a_place_off_by_one_at_a_border_breaks_the_law(monkeypatch):
    right = BlockTable.slots

    def slots(self, start, end):
        size = self.pool.block_size
        return [s - (t > 0 and t % size == 0) for t, s in zip(range(start, end), right(self, start, end))]

    monkeypatch.setattr(BlockTable, "slots", slots)
    with pytest.raises(AssertionError):
        same_scores(CASE, paged(CASE))


def test_a_copy_on_write_that_is_forgotten_breaks_the_law(monkeypatch):
    twins_are_apart(CASE, paged(CASE))
    monkeypatch.setattr(BlockPool, "owners", lambda self, block: min(1, self._owners[block]))
    with pytest.raises(AssertionError):
        twins_are_apart(CASE, paged(CASE))


class Orphans(PrefixIndex):
    """A block is known by its own tokens alone, whatever stood before it."""

    def match(self, tokens):
        of_tokens = {chunk: block for block, (_, chunk) in self._key.items()}
        found = []
        for chunk in self._chunks(tokens):
            if chunk not in of_tokens:
                break
            self.pool.share(of_tokens[chunk])
            found.append(of_tokens[chunk])
        return found


def test_an_index_that_ignores_the_block_before_breaks_the_law():
    texts = (1, 2, 3, 4, 5, 6, 7, 8, 9), (9, 9, 9, 9, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 0), (5, 6, 7, 8, 1)
    batches = [Case(CASE.cfg, (text,), (), new=3) for text in texts]
    beginnings_change_nothing(batches, pool_for(batches, 20))
    prefixes = pool_for(batches, 20)
    prefixes.pool.keeper = None
    prefixes.index = Orphans(prefixes.pool)
    with pytest.raises(AssertionError):
        beginnings_change_nothing(batches, prefixes)
