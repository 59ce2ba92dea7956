"""Prompts that begin alike: what is found, for whom, what is given up, and that nothing is lost."""

import random

import pytest
import torch

from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, OutOfBlocksError
from llmflation.model import Transformer, generate
from llmflation.prefix import PrefixCache

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


@pytest.mark.parametrize("size", [1, 4, 8, 16, 31, 32, 33, 64])
def test_a_prompt_that_is_known_whole_is_read_from_its_last_block_on(size):
    """A known prompt has no scores of its own: one token at least goes through the model."""
    prefixes = PrefixCache(CFG, 2 * 36 // size + 2, block_size=size)
    cold = ask(prefixes, TEXT)
    for _ in range(3):
        held, read, words = ask(prefixes, TEXT)
        assert held == 31 // size * size and read == 32 - held + 2 and words == cold[2]


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


def test_equal_hashes_are_no_hit(monkeypatch):
    monkeypatch.setattr("llmflation.prefix.index", Colliding)
    prefixes = PrefixCache(CFG, 32, block_size=4)
    ask(prefixes, TEXT)
    other = TEXT[::-1]
    assert hash(Colliding(3)) == hash(Colliding(4))
    assert ask(prefixes, other) == (0, 34, generate(MODEL, [other], 3)[0])
    assert ask(prefixes, TEXT)[0] == 28


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


def test_what_was_not_used_for_longest_goes_first_and_what_is_in_use_never():
    prefixes = PrefixCache(CFG, 12, block_size=4)
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
