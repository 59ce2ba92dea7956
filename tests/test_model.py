"""The model, its cache and its sampler: laws that hold for any weights, and every refusal."""

import math

import pytest
import torch

from llmflation.config import ModelConfig, model_config
from llmflation.errors import BadInputError
from llmflation.kvcache import ContiguousKVCache
from llmflation.layers import FUSED_NORMS, RMSNorm, attend
from llmflation.model import Transformer, generate, stream
from llmflation.sampling import Sampler

CFG = ModelConfig(2, 48, 4, 2, 96, 61, context=64)
PROMPTS = [[5, 1, 2], [7], list(range(20)), [60, 0, 60, 0, 60]]


@pytest.fixture(scope="module")
def model():
    return Transformer(CFG, seed=3).eval()


def cache(batch=1, capacity=None):
    return ContiguousKVCache(CFG, batch, capacity)


@torch.no_grad()
def test_each_row_of_a_padded_batch_is_as_it_would_be_alone(model):
    n_new = torch.tensor([len(p) for p in PROMPTS])
    tokens = torch.full((len(PROMPTS), 20), 33)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    together = model(tokens, cache(4), n_new)
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([prompt]))[0]
        torch.testing.assert_close(together[row, : len(prompt)], alone, rtol=0, atol=1e-5)


def test_a_batch_of_different_lengths_writes_what_each_would_write_alone(model):
    together = generate(model, PROMPTS, 30, cache(4))
    assert together == [generate(model, [p], 30, cache())[0] for p in PROMPTS]


@pytest.mark.parametrize("stop", [None, 17])
def test_without_a_cache_the_same_is_written(model, stop):
    assert generate(model, PROMPTS, 30, stop=stop) == generate(model, PROMPTS, 30, cache(4), stop=stop)


def test_a_cache_really_spares_the_reading(model, monkeypatch):
    read, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, *rest, **named: read.append(tokens.numel())
                        or forward(tokens, *rest, **named))
    generate(model, [[1, 2, 3]], 10, cache())
    assert sum(read) == 3 + 9
    read.clear()
    generate(model, [[1, 2, 3]], 10)
    assert sum(read) == sum(range(3, 13))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[20, 20, 20, 20], [3, 1, 20, 5], [0, 2, 0, 1]])
def test_the_last_scores_alone_are_the_last_of_all(model, lengths):
    tokens = torch.randint(0, 61, (4, 20), generator=torch.Generator().manual_seed(1))
    n_new = torch.tensor(lengths)
    every, last = model(tokens, cache(4), n_new), model(tokens, cache(4), n_new, last_only=True)
    assert last.shape == (4, 1, 61)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(last[row, 0], every[row, max(n - 1, 0)], rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_the_same_length_are_stored_as_rows_of_any_length_are(model):
    """Rows that are all alike take a shorter way into the cache, and out of it."""
    tokens = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(1))
    alike, mixed, counts = cache(3), cache(3), torch.tensor([8, 8, 3])
    model(tokens[:, :8], alike)
    model(tokens[:, :8], mixed, counts)
    after_alike = model(tokens[:, 8:], alike)
    after_mixed = model(tokens[:, 8:], mixed, torch.tensor([4, 4, 2]))
    assert alike.lengths.tolist() == [12, 12, 12] and mixed.lengths.tolist() == [12, 12, 5]
    torch.testing.assert_close(after_mixed[:2], after_alike[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed._store[:, :, :2], alike._store[:, :, :2], rtol=0, atol=1e-5)
    alone = cache()
    model(tokens[2:, :3], alone)
    model(tokens[2:, 8:10], alone)
    torch.testing.assert_close(mixed._store[:, :, 2, :, :5], alone._store[:, :, 0, :, :5], rtol=0, atol=1e-5)
    assert not mixed._store[:, :, 2, :, 5:].any()  # padding is not stored


@torch.no_grad()
def test_one_token_attends_as_the_last_of_many():
    """A single query takes its group along in one product; many queries do not."""
    q, k, v = (torch.randn(2, heads, 9, 8, generator=torch.Generator().manual_seed(heads)) for heads in (6, 2, 2))
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., :4] = False
    wanted = attend(q, k, v, None)[:, :, -1:]
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, None), wanted)
    masked = attend(q[:, :, -1:], k, v, mask)
    torch.testing.assert_close(masked[:1], wanted[:1])
    torch.testing.assert_close(masked[1:], attend(q[1:, :, -1:], k[1:, :, 4:], v[1:, :, 4:], None))


def test_the_future_is_not_seen(model):
    tokens = torch.randint(0, 61, (1, 30), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.allclose(before[:, 20:], after[:, 20:])


@torch.no_grad()
def test_truncate_forgets_and_fork_is_a_copy(model):
    a, text = cache(), torch.tensor([PROMPTS[2]])
    whole = model(text, a)
    a.truncate(torch.tensor([12]))
    again = model(text[:, 12:], a)
    torch.testing.assert_close(again, whole[:, 12:], rtol=0, atol=1e-5)
    twins = a.fork([0, 0])
    assert twins.lengths.tolist() == [20, 20]
    model(torch.tensor([[1], [2]]), twins)
    model(torch.tensor([[3]]), a)
    torch.testing.assert_close(a._store[:, :, 0, :, :20], twins._store[:, :, 0, :, :20])
    assert not torch.allclose(twins._store[:, :, 0, :, 20], twins._store[:, :, 1, :, 20])
    a.free()
    torch.testing.assert_close(model(text, a), whole, rtol=0, atol=1e-5)


def test_a_cache_goes_in_and_out_of_inference_mode(model):
    held = cache()
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]), held)
        held.truncate(torch.tensor([2]))
    with torch.no_grad():
        again = model(torch.tensor([[3]]), held)
        torch.testing.assert_close(again[:, -1], model(torch.tensor([[1, 2, 3]]))[:, -1], rtol=0, atol=1e-5)


def test_a_fork_made_in_inference_mode_goes_out_of_it(model):
    held = cache()
    with torch.inference_mode():
        model(torch.tensor([[1, 2]]), held)
        twin, made = held.fork([0]), cache()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[3]]), twin), model(torch.tensor([[3]]), held), rtol=0, atol=0)
        model(torch.tensor([[3]]), made)


def test_a_cache_keeps_no_gradients(model):
    held = cache()
    assert model(torch.tensor([[1, 2]]), held).requires_grad and not held._store.requires_grad


def test_the_caches_bytes_are_counted_by_hand():
    assert cache(3, 10).nbytes == 2 * 2 * 3 * 2 * 10 * 12 * 4  # layers, k and v, batch, heads, tokens, width, float32


def test_generation_stops_at_the_stop_token_and_goes_on_for_the_others(model):
    free = generate(model, PROMPTS, 12, cache(4))
    for stop in {token for row in free for token in row}:
        stopped = generate(model, PROMPTS, 12, cache(4), stop=stop)
        for without, with_it in zip(free, stopped, strict=True):
            assert with_it == (without[: without.index(stop)] if stop in without else without)


def test_a_stream_can_be_left_at_any_token(model):
    steps = []
    for step in stream(model, [[1, 2]], 20, cache()):
        steps.append(step[0])
        if len(steps) == 7:
            break
    assert steps == generate(model, [[1, 2]], 20, cache())[0][:7]


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    a, b, c = (Transformer(CFG, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["head.weight"], c["head.weight"])


def test_the_table_of_tensors_adds_up(model):
    table = model.describe().splitlines()
    assert int(table[-1].split()[-1].replace(",", "")) == sum(p.numel() for p in model.parameters())
    for line, (name, p) in zip(table, model.named_parameters(), strict=False):
        assert line.split()[0] == name and " x ".join(map(str, p.shape)) in line


# --- sampling ------------------------------------------------------------------------------------------------


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    for sampler in (Sampler(1.0), Sampler(0.7, top_k=3), Sampler(1.0, top_p=0.8)):
        p = sampler.probabilities(logits[:1])[0]
        drawn = torch.bincount(sampler(logits, torch.Generator().manual_seed(0)), minlength=4) / 20_000
        assert torch.allclose(drawn, p, atol=4 * (0.25 / 20_000) ** 0.5)


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert Sampler(1.0, top_k=2).probabilities(logits)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampler(1.0, top_p=0.75).probabilities(logits)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampler(1.0, top_p=0.1).probabilities(logits)[0].tolist() == [1, 0, 0, 0]
    assert Sampler(1.0, top_k=99).probabilities(logits)[0].tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05])


def test_of_equal_scores_no_more_than_k_are_kept():
    assert (Sampler(1.0, top_k=2).probabilities(torch.tensor([[3.0, 3.0, 3.0, 1.0]])) > 0).sum() == 2


def test_a_tiny_temperature_is_greedy_and_half_precision_loses_nothing():
    scores = torch.tensor([[1.0, 5.0, 2.0]])
    assert Sampler(1e-38).probabilities(scores)[0].tolist() == [0, 1, 0]
    many = torch.zeros(1, 50_000, dtype=torch.bfloat16)
    kept = (Sampler(1.0, top_p=0.5).probabilities(many) > 0).sum()
    assert abs(int(kept) - 25_000) < 100


def test_temperature_zero_takes_the_highest_and_the_first_of_equals():
    assert Sampler()(torch.tensor([[1.0, 5.0, 5.0], [2.0, 1.0, 0.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("bad, says", [
    ({"temperature": -1}, "temperature is -1"), ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"), ({"top_k": -1}, "top_k is -1"), ({"top_k": 2.0}, "top_k is 2.0"),
    ({"top_p": 0}, "top_p is 0"), ({"top_p": 1.5}, "top_p is 1.5"), ({"top_p": math.nan}, "top_p is nan"),
])
def test_a_sampler_that_makes_no_sense(bad, says):
    with pytest.raises(BadInputError, match=says):
        Sampler(**bad)


def test_broken_scores_are_named_and_not_turned_into_a_word():
    with pytest.raises(BadInputError, match="sequence 1 hold NaN"):
        Sampler()(torch.tensor([[0.0, 1.0], [0.0, math.nan]]))


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda m: m(torch.tensor([[1, 61]])), "token 61 at position 1 of sequence 0 is no id", id="too-high"),
    pytest.param(lambda m: m(torch.tensor([[-1, 0]])), "token -1 at position 0", id="negative"),
    pytest.param(lambda m: m(torch.tensor([[1.0]])), "give whole numbers", id="float"),
    pytest.param(lambda m: m(torch.tensor([1])), "give whole numbers", id="one-dimension"),
    pytest.param(lambda m: m([[1]]), "tokens are list", id="list"),
    pytest.param(lambda m: m(torch.zeros(1, 0, dtype=torch.long)), "0 tokens", id="empty"),
    pytest.param(lambda m: m(torch.zeros(1, 65, dtype=torch.long)), "65 tokens.*context is 64", id="too-long"),
    pytest.param(lambda m: generate(m, [], 1, cache()), "0 prompts", id="no-prompt"),
    pytest.param(lambda m: generate(m, [[1], []], 1, cache(2)), "prompt 1 has 0 tokens", id="empty-prompt"),
    pytest.param(lambda m: generate(m, [["a"]], 1, cache()), "holds 'a', which is no token id", id="text"),
    pytest.param(lambda m: generate(m, [[1] * 60], 10, cache()), "are 70, the model's context is 64", id="no-room"),
    pytest.param(lambda m: generate(m, [[1]], -1, cache()), "max_new_tokens is -1", id="negative-count"),
    pytest.param(lambda m: m(torch.tensor([[1, 2]]), cache(1, 1)), "2 more do not fit into 1", id="small-cache"),
    pytest.param(lambda m: m(torch.tensor([[1, 2]]), cache(2)), "n_new is .* for each of 2", id="batch"),
    pytest.param(lambda m: m(torch.tensor([[5]]), cache(3), torch.tensor([1, 1, 1])), "tokens of 1 sequences, and",
                 id="one-text-for-three"),
    pytest.param(lambda m: cache().reserve(torch.tensor([-1])), "n_new is -1", id="negative-new"),
    pytest.param(lambda m: cache().reserve(torch.tensor([1, 1])), "one number for each of 1", id="two-new"),
    pytest.param(lambda m: Transformer(CFG).bfloat16()(torch.tensor([[1]]), cache()), "values are torch.bfloat16",
                 id="dtype"),
    pytest.param(lambda m: cache(0), "batch is 0", id="no-batch"),
    pytest.param(lambda m: cache(1, 65), "capacity is 65; allowed: .*at most the model's context of 64", id="capacity"),
    pytest.param(lambda m: cache().fork([1]), r"rows \[1\] must name", id="fork"),
    pytest.param(lambda m: cache().truncate(torch.tensor([1])), "between 0 and what is held", id="truncate"),
])
def test_bad_input_is_refused_and_the_model_goes_on(model, call, says):
    before = generate(model, [[1, 2]], 2, cache())
    with pytest.raises(BadInputError, match=says):
        call(model)
    assert generate(model, [[1, 2]], 2, cache()) == before


def test_a_refused_call_leaves_the_cache_as_it_was(model):
    held = cache(1, 4)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), held)
        before = held._store.clone()
        for tokens in ([[1, 2]], [[99]]):
            with pytest.raises(BadInputError):
                model(torch.tensor(tokens), held)
    assert held.lengths.tolist() == [3] and torch.equal(held._store, before)


@pytest.mark.parametrize("name, what", [("Mixtral-8x7B-v0.1", "experts"), ("DeepSeek-V2-Lite", "latent attention"),
                                        ("GPT-J-6B", "two feed-forward")])
def test_what_cannot_be_built_is_refused_before_any_memory_is_taken(name, what):
    with pytest.raises(BadInputError, match=what):
        Transformer(model_config(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, FUSED_NORMS, FUSED_NORMS + 1])
def test_a_norm_of_few_vectors_is_that_of_many(dtype, tokens):
    """They go different ways; a channel far above the others, and all below epsilon, are the hard cases."""
    numbers = torch.Generator().manual_seed(0)
    norm = RMSNorm(96, 1e-5).to(dtype).requires_grad_(False)
    norm.weight.data = torch.rand(96, generator=numbers).to(dtype)
    x = torch.randn(3, tokens, 96, generator=numbers).to(dtype)
    x[1, :, 7], x[2] = 3000.0, x[2] * 1e-4
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    for got in (norm(x), torch.cat([norm(row) for row in x[:, None]]).view_as(x)):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=1e-7)


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_the_norm_of_one_vector_can_be_trained(trained):
    norm, x = RMSNorm(96, 1e-5).requires_grad_(trained == "weight"), torch.randn(1, 1, 96)
    x.requires_grad_(trained == "x")
    norm(x).square().sum().backward()
    found = x.grad if trained == "x" else norm.weight.grad
    wide, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    torch.nn.functional.rms_norm(wide, (96,), weight, 1e-5).square().sum().backward()
    wanted = wide.grad if trained == "x" else weight.grad
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
