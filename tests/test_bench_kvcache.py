"""The bench of the caches: the order of its calls, the arithmetic of its predictions, and a tiny run of each row."""

import re

import pytest
import torch
from bench import __main__ as program
from bench import beside, kvcache, shapes

from llmflation.config import ModelConfig
from llmflation.corpus import VOCAB_SIZE
from llmflation.errors import BadInputError
from llmflation.kvcache import ContiguousKVCache
from llmflation.model import Transformer

CFG = ModelConfig(2, 64, 4, 2, 128, VOCAB_SIZE, context=512, tied_embeddings=True, name="tiny")
SETTINGS = [("sdpa", "dynamic"), ("sdpa", "static"), ("eager", "dynamic"), ("eager", "static")]


@pytest.fixture
def tiny():
    return Transformer(CFG).eval().requires_grad_(False)


def timing(seconds):
    return type("Timing", (), {"median_s": seconds})


def test_the_bench_has_the_rows_that_are_asked_for(monkeypatch, tiny):
    """Each row is made by its own function; here they only say which."""
    names = []

    def said(name):
        return lambda *given, **named: names.append((name, *(g for g in given if isinstance(g, int | str)))) or []

    for name in ("cached_vs_uncached", "paged_vs_contiguous", "roofline_share", "prefix_reuse", "beside"):
        monkeypatch.setattr(kvcache, name, said(name))
    monkeypatch.setattr(shapes, "model", lambda shape: tiny)
    monkeypatch.setattr(kvcache, "quiet_transformers", lambda: True)
    assert program.BENCHES["kvcache"](True) == ([], [])
    assert [name for name, *_ in names] == ["cached_vs_uncached", *3 * ["paged_vs_contiguous"],
                                            *2 * ["roofline_share"], "prefix_reuse", *4 * ["beside"]]
    assert [given[0] for name, *given in names if name == "beside"] == [
        f"decode-{shape}-{number}-vs-transformers" for shape in ("30m", "135m") for number in ("fp32", "bf16")]


# --- the arithmetic ------------------------------------------------------------------------------------------


def test_the_line_goes_through_both_ends():
    assert kvcache.by_ends([2, 4, 10], [1.0, 9.0, 5.0]) == pytest.approx([1, 2, 5])  # what lies between is predicted


def test_of_several_tries_in_turns_the_least_counts(monkeypatch):
    calls, times = [], iter([3.0, 20.0, 1.0, 30.0, 2.0, 10.0])
    monkeypatch.setattr(kvcache, "time_fn", lambda call, **how: (call(), timing(next(times)))[1])
    assert kvcache.in_turns([lambda: calls.append("a"), lambda: calls.append("b")], repeat=3) == [1.0, 10.0]
    assert calls == ["a", "b"] * 3


def test_the_share_of_the_roofline_is_bytes_over_bandwidth_over_time(tiny, monkeypatch):
    """A buffer of 1 MB that is read in 2 s, and steps of 5 s through three models of so many bytes and their caches."""
    monkeypatch.setattr(kvcache, "READ_BYTES", 2**20)
    monkeypatch.setattr(shapes, "COLD_BYTES", 3 * shapes.nbytes(tiny))
    monkeypatch.setattr(kvcache, "in_turns", lambda calls: [2.0, 5.0])
    found = {}

    def side_by_side(name, theirs, ours, target, *, factor, **named):
        found.update(factor=factor, target=target)
        return type("Row", (), {"name": name})
    monkeypatch.setattr(kvcache, "side_by_side", side_by_side)
    kvcache.roofline_share(tiny, "fp32", 6, context=99)
    cache_bytes = 100 * 2 * CFG.n_layers * CFG.n_kv_heads * CFG.head_dim * 4
    assert found == {"factor": 3 * (shapes.nbytes(tiny) + cache_bytes) / 2**20, "target": 0.45}


# --- what is timed -------------------------------------------------------------------------------------------


def test_every_call_of_a_step_reads_the_same_context(tiny, monkeypatch):
    cache, held, forward = ContiguousKVCache(CFG, 3, 41), [], tiny.forward
    step = kvcache.step_of(tiny, 3, 40, cache)
    monkeypatch.setattr(tiny, "forward", lambda tokens, *rest: held.append(cache.lengths.tolist())
                        or forward(tokens, *rest))
    step()
    step()
    assert held == [[40, 40, 40]] * 2 and cache.lengths.tolist() == [40] * 3


def test_a_shuffled_cache_takes_its_blocks_in_no_order_and_scores_the_same(tiny):
    paged = kvcache.shuffled(tiny, 2, 200)
    contiguous = ContiguousKVCache(CFG, 2, 200)
    tokens = torch.arange(2 * 190).view(2, 190) % VOCAB_SIZE
    with torch.inference_mode():
        torch.testing.assert_close(tiny(tokens, paged), tiny(tokens, contiguous))
    for table in paged.tables:
        assert table.blocks != sorted(table.blocks) and table.blocks != sorted(table.blocks, reverse=True)


def test_reading_all_reads_all_and_scores_one(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(tiny, "forward", lambda tokens, cache=None, **how: seen.append((tokens.shape, cache, how)))
    kvcache.reading_all(tiny, 77)()
    assert seen == [((1, 77), None, {"last_only": True})]


# --- tiny runs -----------------------------------------------------------------------------------------------


def test_the_speed_up_stands_beside_its_prediction_at_every_length(tiny):
    row, predicted, note = kvcache.cached_vs_uncached(tiny, 6, (16, 100, 200))
    assert row.name == "cached-vs-uncached-1024" and row.target == 10
    pairs = re.findall(r"(\d+): ([\d.]+) \(([\d.]+)\)", note)
    assert [int(n) for n, *_ in pairs] == [16, 100, 200]
    assert pairs[0][1] == pairs[0][2] and pairs[-1][1] == pairs[-1][2]  # the ends are measured
    worst = max(max(float(a) / float(b), float(b) / float(a)) for _, a, b in pairs)
    printed = max(0.051 / float(a) + 0.051 / float(b) for _, a, b in pairs)  # one digit behind the point
    assert predicted.target == 0.8 and predicted.ratio == pytest.approx(1 / worst, rel=printed)


@pytest.mark.parametrize(("batch", "target"), kvcache.BATCHES.items())
def test_paged_beside_contiguous(tiny, batch, target):
    row, note = kvcache.paged_vs_contiguous(tiny, batch, target, 6, contexts=(32, 50))
    assert row.name == f"paged-vs-contiguous-b{batch}" and row.target == target
    assert "32, 50" in note and "MiB of keys and values" in note


def test_a_prefix_is_found_and_the_same_is_written(tiny):
    row, note = kvcache.prefix_reuse(tiny, 6, length=64, shared=48)
    assert row.name == "prefix-reuse" and row.target == 6
    assert "48 of the prompt's 64 tokens" in note and "are the same" in note


def test_a_prefix_that_changes_the_words_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(kvcache, "generate", lambda model, prompts, new, cache: [[new, type(cache).__name__]])
    with pytest.raises(BadInputError, match="goes on with other words"):
        kvcache.prefix_reuse(tiny, 6, length=64, shared=48)


@pytest.mark.parametrize("fastest", SETTINGS)
def test_each_of_their_settings_is_really_taken_and_writes_what_ours_writes(tiny, monkeypatch, fastest):
    from transformers.models.llama import modeling_llama

    prompt, used = torch.tensor([[3, 1, 4, 1, 5]]), []
    order = iter(2 * SETTINGS)
    monkeypatch.setattr(beside, "time_fn", lambda write, **how: timing(float(next(order) != fastest)))
    forward = modeling_llama.LlamaModel.forward
    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", lambda self, *rest, **named: used.append(
        (self.config._attn_implementation, type(named["past_key_values"]).__name__)) or forward(self, *rest, **named))
    best, write = beside.hugging_face(tiny, prompt, 6)
    used.clear()
    written = write()
    assert best == fastest
    assert {attention for attention, _ in used} == {fastest[0]}
    assert all(name.lower().startswith(fastest[1]) for _, name in used)
    assert written == beside.generate(tiny, prompt.tolist(), 6)[0]
