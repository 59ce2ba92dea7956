"""Sliding windows: in the model beside Hugging Face's Mistral, and in the cache that keeps no more than the window."""

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from llmflation import model as model_file
from llmflation.checkpoint import from_hugging_face
from llmflation.config import ModelConfig
from llmflation.cost.counts import kv_bytes
from llmflation.errors import BadInputError
from llmflation.kvcache import ContiguousKVCache
from llmflation.layers import attend, window_of
from llmflation.model import Transformer, generate
from llmflation.window import WindowKVCache

W = 7
EVERY = ModelConfig(2, 48, 4, 2, 96, 61, context=64, sliding_window=W)
SOME = replace(EVERY, n_layers=5, global_every=3)  # layers 0, 1, 3 and 4 have a window, layer 2 sees all
CONFIGS = {"a window in every layer": EVERY, "every third layer global": SOME}
PROMPTS = [[5, 1, 2], [7], list(range(20)), [60, 0, 60, 0, 60, 1, 2]]


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    return Transformer(CONFIGS[request.param], seed=3).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(2))


def read(model, tokens, cache, chunks):
    """The scores of all positions when the tokens (B, T) are read in chunks."""
    edges = [0]
    for n in chunks:
        edges.append(edges[-1] + n)
    return torch.cat([model(tokens[:, a:b], cache) for a, b in pairwise(edges)], dim=1)


class Seeing(WindowKVCache):
    """Each query, that of padding too, has to see something: attention over nothing is NaN in some PyTorch."""

    def _mask_of(self, mask, held, behind):
        seen = super()._mask_of(mask, held, behind)
        assert seen is None or seen.shape[-1] == 0 or seen.any(-1).all()
        return seen


def assert_near(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- the model -----------------------------------------------------------------------------------------------


def test_which_layers_have_a_window():
    assert [window_of(SOME, i) for i in range(5)] == [W, W, None, W, W]
    assert [window_of(EVERY, i) for i in range(2)] == [W, W]
    assert [window_of(replace(EVERY, sliding_window=None), i) for i in range(2)] == [None, None]
    for cfg in (SOME, EVERY, replace(SOME, n_layers=6), replace(SOME, global_every=2)):
        assert [window_of(cfg, i) for i in range(cfg.n_layers)].count(None) == cfg.n_global_layers


@torch.no_grad()
def test_the_scores_are_mistrals(tokens):
    torch.manual_seed(1)
    other = MistralForCausalLM(MistralConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=61, max_position_embeddings=64, sliding_window=W, rms_norm_eps=1e-5, initializer_range=0.2,
        head_dim=12, pad_token_id=0, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
        rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"}, attn_implementation="eager")).eval()
    model = Transformer.of(EVERY, from_hugging_face(other.state_dict(), EVERY))
    wanted = other(tokens).logits
    assert_near(model(tokens), wanted, 1e-4)
    for chunks in ([40], [1] * 40, [5, 1, 20, 14]):
        for cache in (ContiguousKVCache, WindowKVCache):
            assert_near(read(model, tokens, cache(EVERY, 3), chunks), wanted, 1e-4)
    steps, past = [], None
    for i in range(40):
        made = other(tokens[:, i : i + 1], past_key_values=past, use_cache=True)
        past, steps = made.past_key_values, [*steps, made.logits]
    assert_near(torch.cat(steps, 1), wanted, 1e-4)


@torch.no_grad()
def test_each_layer_looks_as_far_as_its_own_window(model, tokens):
    """Layer by layer, with the mask written out as a table."""
    x = model.embedding(tokens)
    cos, sin = model.cos[None, None, :40], model.sin[None, None, :40]
    for i, block in enumerate(model.blocks):
        reach = 40 if model.cfg.global_every and i % 3 == 2 else W
        mask = torch.tensor([[q - reach < key <= q for key in range(40)] for q in range(40)])[None, None]
        x = block(x, cos, sin, mask, attend)
    assert_near(model(tokens), model.head(model.norm(x)))


@torch.no_grad()
def test_what_lies_out_of_sight_changes_nothing(tokens):
    """With 2 layers of 7, a token sees 12 back, through the layer between; one more is out of sight."""
    model = Transformer(EVERY, seed=3).eval()
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 61
    for cache in (None, ContiguousKVCache, WindowKVCache):
        for chunks in ([40], [1] * 40)[: 1 if cache is None else 2]:
            a, b = (read(model, text, cache and cache(EVERY, 3), chunks) for text in (tokens, changed))
            differ = (a != b).any(-1).any(0).nonzero().squeeze(-1).tolist()
            assert differ == list(range(20, 33))


@torch.no_grad()
@pytest.mark.parametrize("last_only", [False, True])
def test_padding_longer_than_any_row_is_no_text(model, tokens, last_only):
    n_new = torch.tensor([12, 1, 0])
    for cache in (None, ContiguousKVCache(model.cfg, 3), Seeing(model.cfg, 3)):
        scores = model(tokens, cache, n_new, last_only=last_only)
        assert torch.isfinite(scores).all()
        for row, n in ((0, 12), (1, 1)):
            wanted = model(tokens[row : row + 1, :n])[0]
            assert_near(scores[row, :1] if last_only else scores[row, :n], wanted[-1:] if last_only else wanted)


def test_a_model_without_the_window_is_refused(tokens):
    model = Transformer(replace(EVERY, sliding_window=None), seed=3).eval()
    for chunks in ([W + 1], [W, 1]):
        with pytest.raises(BadInputError, match="mask is None.*the same sliding_window"):
            read(model, tokens, WindowKVCache(EVERY, 3), chunks)


@torch.no_grad()
def test_a_window_as_wide_as_the_text_is_no_window(tokens):
    wide, whole = replace(EVERY, sliding_window=40), replace(EVERY, sliding_window=None)
    a, b = Transformer(wide, seed=3).eval(), Transformer(whole, seed=3).eval()
    assert torch.equal(a(tokens), b(tokens))
    assert torch.equal(read(a, tokens, WindowKVCache(wide, 3), [30, 1, 9]),
                       read(b, tokens, ContiguousKVCache(whole, 3), [30, 1, 9]))


# --- the cache -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [W, 1, W + 1, 25], [3, 2, 1, 1, 1, 30, 1, 1], [39, 1], [6, 34]])
def test_the_ring_scores_as_the_whole_cache_does(model, tokens, chunks):
    whole = read(model, tokens, ContiguousKVCache(model.cfg, 3), chunks)
    assert_near(read(model, tokens, WindowKVCache(model.cfg, 3), chunks), whole)
    assert_near(whole, model(tokens))


@torch.no_grad()
def test_rows_of_any_length_score_as_alone(model):
    """Random calls of 0 to 12 new tokens a row, the padding longer than any row or not, all scores or the last."""
    generator = torch.Generator().manual_seed(5)

    def draw(least, most, *shape):
        return torch.randint(least, most + 1, shape, generator=generator)

    for _ in range(10):
        cache, texts = Seeing(model.cfg, 4), [[] for _ in range(4)]
        while True:
            n_new = draw(0, int(draw(1, 12)), 4)
            if int((cache.lengths + n_new).max()) > 64:
                break
            new = draw(0, 60, 4, max(int(n_new.max()), 1) + int(draw(0, 2)))
            last_only = bool(draw(0, 1))
            scores = model(new, cache, n_new, last_only=last_only)
            assert torch.isfinite(scores).all()
            for row, n in enumerate(n_new.tolist()):
                texts[row] += new[row, :n].tolist()
                if n:
                    alone = model(torch.tensor([texts[row]]))[0, -1 if last_only else slice(-n, None)]
                    assert_near(scores[row, 0] if last_only else scores[row, :n], alone)


@pytest.mark.parametrize("n", [2, 30])
def test_the_same_is_written_with_any_cache_and_without(model, n):
    written = generate(model, PROMPTS, n)
    assert generate(model, PROMPTS, n, ContiguousKVCache(model.cfg, 4)) == written
    assert generate(model, PROMPTS, n, WindowKVCache(model.cfg, 4, 20 + n)) == written


@pytest.mark.parametrize("cfg", [EVERY, SOME, replace(SOME, sliding_window=1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity", [None, 3, W, 50])
def test_its_bytes_are_those_that_the_cost_model_counts(cfg, dtype, capacity):
    held = kv_bytes(cfg, capacity or cfg.context, 8 * dtype.itemsize)
    assert WindowKVCache(cfg, 3, capacity, dtype).nbytes == 3 * held


def test_no_place_is_written_twice_in_one_call():
    """Which of the two would stay is not said."""
    cache = WindowKVCache(EVERY, 3)
    cache.reserve(torch.tensor([20, 3, 8]))
    row, _, place = cache._into
    assert sorted(zip(row.tolist(), place.tolist(), strict=True)) == [
        (b, p) for b, n in enumerate((W, 3, W)) for p in range(n)]


@torch.no_grad()
def test_a_window_of_one_token(tokens):
    cfg = replace(EVERY, sliding_window=1)
    model = Transformer(cfg, seed=3).eval()
    assert_near(read(model, tokens, WindowKVCache(cfg, 3), [1, 1, 30, 1, 7]), model(tokens))


@torch.no_grad()
def test_nothing_of_the_last_text_is_left(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    fresh = read(model, tokens[:, 20:30], cache, [2, 8])
    for forget in (cache.free, lambda: cache.truncate(torch.zeros(3, dtype=torch.long))):
        read(model, tokens, cache, [10, 30])
        forget()
        assert torch.equal(read(model, tokens[:, 20:30], cache, [2, 8]), fresh)
    cache.truncate(torch.tensor([9, 9, 9]))  # one back is allowed, as for any text


@torch.no_grad()
def test_forks_go_on_each_for_itself(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :12], cache)
    twins = cache.fork([2, 0, 0])
    a, b = torch.tensor([[1], [2], [3]]), torch.tensor([[4], [5], [6]])
    after_a, after_b = model(a, cache), model(b, twins)
    assert_near(after_a, model(torch.cat((tokens[:, :12], a), 1))[:, -1:])
    assert_near(after_b, model(torch.cat((tokens[[2, 0, 0], :12], b), 1))[:, -1:])
    assert cache.lengths.tolist() == twins.lengths.tolist() == [13, 13, 13]
    twins.free()
    assert_near(model(b, cache), model(torch.cat((tokens[:, :12], a, b), 1))[:, -1:])


@torch.no_grad()
def test_every_truncation_either_goes_on_rightly_or_is_refused(model, tokens):
    """A text within the window goes back to anywhere, a longer one by one token, or to nothing."""
    for held in range(1, 20):
        for kept in range(held + 1):
            cache = WindowKVCache(model.cfg, 3)
            model(tokens[:, :held], cache)
            if held <= W or kept in (0, held - 1, held):
                cache.truncate(torch.full((3,), kept))
                again = read(model, tokens[:, kept:], cache, [1, 2, 40 - kept - 3])
                assert_near(again, model(tokens)[:, kept:])
            else:
                with pytest.raises(BadInputError, match=f"go back to {kept} tokens: its first {held - W} are"):
                    cache.truncate(torch.full((3,), kept))
                assert cache.lengths.tolist() == [held] * 3
                assert_near(model(tokens[:, held : held + 1], cache), model(tokens)[:, held : held + 1])


@torch.no_grad()
def test_two_tokens_cannot_be_taken_back_one_by_one(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :12], cache)
    cache.truncate(torch.tensor([12, 11, 11]))
    with pytest.raises(BadInputError, match="sequence 1 cannot go back to 10 tokens"):
        cache.truncate(torch.tensor([11, 10, 10]))
    assert cache.lengths.tolist() == [12, 11, 11]


@torch.no_grad()
def test_a_call_between_does_not_bring_back_what_is_overwritten(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :12], cache)
    cache.truncate(torch.tensor([11, 12, 12]))
    model(tokens[:, 12:13], cache, torch.tensor([0, 1, 1]))  # the first row only waits
    with pytest.raises(BadInputError, match="sequence 0 cannot go back to 10 tokens: its first 5"):
        cache.truncate(torch.tensor([10, 13, 13]))


@torch.no_grad()
def test_a_fork_can_go_back_as_far_as_the_rows_that_it_came_from(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :12], cache, torch.tensor([12, 4, 9]))
    twins = cache.fork([1, 0, 2])
    with pytest.raises(BadInputError, match="sequence 1 cannot go back to 10 tokens: its first 5"):
        twins.truncate(torch.tensor([3, 10, 9]))
    twins.truncate(torch.tensor([3, 11, 8]))
    after = model(torch.tensor([[1], [2], [3]]), twins)
    for row, (source, kept) in enumerate(((1, 3), (0, 11), (2, 8))):
        text = torch.cat((tokens[source, :kept], torch.tensor([row + 1])))[None]
        assert_near(after[row, 0], model(text)[0, -1])


@torch.no_grad()
def test_a_row_that_is_empty_waits_beside_long_ones(model, tokens):
    cache = Seeing(model.cfg, 3)
    model(tokens[:, :12], cache, torch.tensor([12, 0, 3]))
    for _ in range(3):
        scores = model(tokens[:, 12:13], cache, torch.tensor([1, 0, 1]))
        assert torch.isfinite(scores).all()
    text = torch.cat((tokens[2, :3], tokens[2, 12:13].expand(3)))[None]
    assert_near(scores[2, 0], model(text)[0, -1])


def test_a_cache_made_in_inference_mode_goes_out_of_it(model, tokens):
    with torch.inference_mode():
        cache = WindowKVCache(model.cfg, 3)
        model(tokens[:, :12], cache)
        twins = cache.fork([0, 1, 2])
    with torch.no_grad():
        for held in (cache, twins):
            assert_near(model(tokens[:, 12:], held), model(tokens)[:, 12:])


@torch.no_grad()
def test_a_mask_in_the_memory_of_the_last_one_is_another_mask(model, tokens, monkeypatch):
    """A caller may write each call's mask into the same tensor. The short rows' rings are not full yet."""
    right, kept = model_file._mask, {}

    def reused(*args):
        mask = right(*args)
        return None if mask is None else kept.setdefault((args[-1], mask.shape), mask).copy_(mask)

    monkeypatch.setattr(model_file, "_mask", reused)
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :20], cache, torch.tensor([20, 2, 3]))
    for n in range(1, 5):
        new = torch.stack((tokens[0, :1], tokens[1, 1 + n : 2 + n], tokens[2, 2 + n : 3 + n]))
        scores = model(new, cache, torch.tensor([0, 1, 1]))
        for row, end in ((1, 2 + n), (2, 3 + n)):
            assert_near(scores[row, 0], model(tokens[row : row + 1, :end])[0, -1])


@torch.no_grad()
def test_a_step_looks_at_the_ring_itself(model, tokens, monkeypatch):
    """For one new token no key is copied, and rows that are alike need no mask."""
    cache, looked = WindowKVCache(model.cfg, 3), []
    model(tokens[:, :12], cache)
    monkeypatch.setattr("llmflation.window.attend", lambda q, k, v, mask: looked.append((k.data_ptr(), mask)) or attend(
        q, k, v, mask))
    model(tokens[:, 12:13], cache)
    places = [(cache._rings if windowed else cache._store)[index, 0] for windowed, index in cache._home]
    assert looked == [(place.data_ptr(), None) for place in places]


@pytest.mark.parametrize("entry", [torch.zeros(3, 2, 2, 12, dtype=torch.bfloat16), torch.zeros(3, 2, 1, 12),
                                   torch.zeros(3, 4, 2, 12), torch.zeros(2, 2, 2, 12), torch.zeros(3, 2, 2, 6)])
def test_keys_that_were_not_reserved_are_refused_and_not_stored(entry):
    cache, good = WindowKVCache(EVERY, 3), torch.ones(3, 2, 2, 12)
    cache.reserve(torch.tensor([2, 2, 2]))
    for k, v in ((entry, good), (good, entry)):
        with pytest.raises(BadInputError, match=r"this call reserved torch.float32 \(3, 2, 2, 12\)"):
            cache.attend(0, torch.ones(3, 4, 2, 12), k, v, None)
    assert not cache._rings.any()


def interrupted(model, tokens, cache, n_new=None):
    """A call that ends when the first layer has stored its keys."""
    with patch.object(model.blocks[1], "forward", lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        model(tokens, cache, n_new)


@torch.no_grad()
def test_an_interrupt_costs_no_more_than_it_has_overwritten(model, tokens):
    """Two tokens, one that is still seen. A row that took no part goes on, and an empty one begins again."""
    cache, new = WindowKVCache(model.cfg, 3), torch.stack((tokens[0, 12:24], tokens[1, 12:24], tokens[2, :12]))
    model(tokens[:, :12], cache, torch.tensor([12, 12, 0]))
    interrupted(model, new, cache, torch.tensor([2, 0, 12]))
    with pytest.raises(BadInputError, match="was interrupted has overwritten what the next token looks back at"):
        model(new, cache, torch.tensor([1, 0, 0]))
    scores = model(new, cache, torch.tensor([0, 1, 12]))
    assert_near(scores[1, 0], model(tokens)[1, 12])
    assert_near(scores[2], model(tokens)[2, :12])


@torch.no_grad()
def test_a_window_that_is_ignored_at_one_token_would_be_seen(model, tokens, monkeypatch):
    """nanochat 452."""
    right = model_file._mask
    monkeypatch.setattr(model_file, "_mask", lambda positions, held, n_new, size, window: right(
        positions, held, n_new, size, None if positions.shape[1] == 1 else window))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_near(read(model, tokens, ContiguousKVCache(model.cfg, 3), [1] * 40), model(tokens))


@torch.no_grad()
def test_what_an_interrupted_call_has_overwritten_is_not_looked_back_at(model, tokens):
    cache = WindowKVCache(model.cfg, 3)
    model(tokens[:, :12], cache)
    interrupted(model, tokens[:, 12:17], cache)
    assert cache.lengths.tolist() == [12] * 3
    with pytest.raises(BadInputError, match="was interrupted has overwritten what the next token looks back at; free"):
        model(tokens[:, 12:17], cache)
    cache.free()
    assert_near(model(tokens, cache), model(tokens))
    cache.free()
    model(tokens[:, :12], cache)
    interrupted(model, tokens[:, 12:13], cache)
    with pytest.raises(BadInputError, match="cannot go back to 11"):
        cache.truncate(torch.full((3,), 11))
    assert_near(model(tokens[:, 12:13], cache), model(tokens)[:, 12:13])  # one token more is the same one token more


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: WindowKVCache(replace(EVERY, sliding_window=None), 1), "Take ContiguousKVCache", id="none"),
    pytest.param(lambda: WindowKVCache(EVERY, 0), "batch is 0", id="no-batch"),
    pytest.param(lambda: WindowKVCache(EVERY, 1, 65), "capacity is 65", id="capacity"),
    pytest.param(lambda: WindowKVCache(EVERY, 1).fork([1]), r"rows \[1\] must name", id="fork"),
    pytest.param(lambda: WindowKVCache(EVERY, 1).truncate(torch.tensor([1])), "between 0 and what is held", id="long"),
    pytest.param(lambda: WindowKVCache(EVERY, 1).truncate(torch.tensor([-1])), "between 0 and what", id="negative"),
    pytest.param(lambda: WindowKVCache(EVERY, 1, 4).reserve(torch.tensor([5])), "5 more do not fit into 4", id="full"),
])
def test_bad_input_is_refused(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


@torch.no_grad()
def test_a_refused_call_leaves_the_cache_as_it_was(model, tokens):
    cache = WindowKVCache(model.cfg, 3, 14)
    model(tokens[:, :12], cache)
    store, rings = cache._store.clone(), cache._rings.clone()
    with pytest.raises(BadInputError, match="holds 12 tokens and 3 more do not fit into 14"):
        model(tokens[:, :3], cache)
    assert torch.equal(cache._store, store) and torch.equal(cache._rings, rings)
    assert_near(model(tokens[:, 12:14], cache), model(tokens)[:, 12:14])


def test_a_ring_hands_out_nothing(model):
    cache = WindowKVCache(model.cfg, 1)
    cache.reserve(torch.tensor([1]))
    keys = torch.zeros(1, 2, 1, 12)
    for layer in range(model.cfg.n_layers):
        with pytest.raises(BadInputError, match="let `attend` look"):
            cache.append(layer, keys, keys)
    assert not cache._store.any() and not cache._rings.any()
