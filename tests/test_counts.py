"""What is counted from the architecture: against makers' numbers, and against models that are built."""

import doctest
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import facts
from llmflation.config import ModelConfig, load_models, model_config
from llmflation.cost import counts
from llmflation.cost.counts import (
    Work,
    count_params,
    decode_flops,
    decode_work,
    kv_bytes,
    kv_bytes_per_token,
    prefill_flops,
    prefill_work,
    weight_bytes,
)
from llmflation.cost.formulas import bits_per_value, experts_touched
from llmflation.errors import BadInputError

TOY = ModelConfig(4, 512, 8, 2, 1536, 320, tied_embeddings=True)
MODELS = load_models()
WITH_EYES = {"Gemma-3-4b", "Gemma-3-12b", "Gemma-3-27b"}  # the maker counts the part that sees images


def test_worked_lines():
    assert doctest.testmod(counts, raise_on_error=True).attempted


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_as_many_parameters_as_its_makers_say(name):
    published = MODELS[name].published
    wide = 0.11 if name in WITH_EYES else 0.02
    assert count_params(MODELS[name]).total == pytest.approx(published.total_params, rel=wide)
    if MODELS[name].is_moe:  # makers differ in whether the embedding is active: ours may exceed by it
        count, table = count_params(MODELS[name], active=True), MODELS[name].vocab_size * MODELS[name].d_model
        assert 0.95 * published.active_params < count.total < 1.05 * (published.active_params + 2 * table)


@pytest.mark.parametrize("cfg", [TOY, replace(TOY, tied_embeddings=False, n_kv_heads=8),
                                 ModelConfig(3, 96, 6, 1, 200, 77, head_dim=32)])
def test_the_count_is_that_of_the_model_that_is_built(cfg):
    from llmflation.model import Transformer

    built = sum(p.numel() for p in Transformer(cfg, seed=None).parameters())
    assert count_params(cfg).total == built


def test_of_experts_a_token_visits_few():
    mixtral = model_config("Mixtral-8x7B")
    all_of_them, visited = count_params(mixtral), count_params(mixtral, active=True)
    expert = 3 * mixtral.d_model * mixtral.d_expert
    assert all_of_them.feed_forward - visited.feed_forward == 32 * 6 * expert
    assert all_of_them.attention == visited.attention
    assert "active" in repr(visited) and "active" not in repr(all_of_them)


def test_a_dense_model_is_active_as_a_whole():
    assert count_params(TOY, active=True).total == count_params(TOY).total


def test_what_is_no_configuration_is_refused():
    with pytest.raises(BadInputError, match="model_config"):
        count_params("Llama-3.1-8B")


# Against makers and tables.

OFF = {  # published total over counted weights, where they differ by more than 1%, and why
    "Gemma-3-4b": 1.108,  # the vision tower is in the published total
    "Gemma-3-12b": 1.037,  # the same
    "Gemma-3-27b": 1.015,  # the same
    "Llama-4-Scout": 1.011,  # the same
    "Qwen3-1.7B": 0.988,  # 1.72 is published as 1.7
}


def test_nearly_every_model_is_within_a_percent_of_its_published_total():
    ratio = {name: c.published.total_params / count_params(c).total for name, c in MODELS.items()}
    off = {name: r for name, r in ratio.items() if abs(r - 1) > 0.01}
    assert off == pytest.approx(OFF, abs=0.001)
    assert len(MODELS) - len(off) >= 25


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [("Llama-3.1-8B", 131_072), ("Llama-3.1-70B", 327_680), ("DeepSeek-V3", 70_272), ("Llama-2-7B", 524_288)],
)
def test_bytes_that_a_token_adds_to_the_cache(name, n_bytes):
    assert kv_bytes_per_token(MODELS[name]) == n_bytes
    assert kv_bytes_per_token(MODELS[name], kv_bits=8) == n_bytes / 2


@pytest.mark.parametrize("row", facts.read("models"), ids=lambda row: row["name"])
def test_the_cache_holds_as_many_numbers_as_the_table_says(row):
    assert kv_bytes_per_token(MODELS[row["name"]], kv_bits=8) == row["kv_values_per_token"]


# Against buffers that are there.


def test_weights_and_cache_weigh_what_the_toys_buffers_do():
    from llmflation.kvcache import ContiguousKVCache
    from llmflation.model import Transformer

    cfg = ModelConfig(2, 64, 4, 2, 128, 320)
    assert sum(p.nbytes for p in Transformer(cfg, seed=None).parameters()) == weight_bytes(cfg, weight_bits=32)
    assert ContiguousKVCache(cfg, batch=3, capacity=50).nbytes == 3 * kv_bytes(cfg, context=50, kv_bits=32)


# Weights.


@given(name=st.sampled_from(list(MODELS)), bits=st.floats(1, 32), wide=st.floats(1, 32))
def test_weights_take_their_bits_and_tables_their_own(name, bits, wide):
    cfg, params = MODELS[name], count_params(MODELS[name])
    assert weight_bytes(cfg, bits) == pytest.approx(params.total * bits / 8)
    tables = params.embedding + params.head
    assert weight_bytes(cfg, bits, head_bits=wide) - weight_bytes(cfg, bits) == pytest.approx(
        tables * (wide - bits) / 8, abs=1)


def test_scales_of_groups_weigh_too():
    assert weight_bytes(TOY, bits_per_value(4, group_size=32)) == weight_bytes(TOY, 4) * 9 / 8


def test_a_count_shows_its_parts_and_their_sum():
    shown = repr(count_params(TOY))
    assert "12,227,072 parameters" in shown
    assert "head" not in shown  # it is the embedding again


# The cache.


@given(name=st.sampled_from(list(MODELS)), context=st.integers(1, 200_000), bits=st.sampled_from([4, 8, 16]))
def test_a_cache_grows_with_every_token_but_not_behind_a_window(name, context, bits):
    cfg = MODELS[name]
    grown = kv_bytes(cfg, context + 1, bits) - kv_bytes(cfg, context, bits)
    growing = cfg.n_layers if cfg.sliding_window is None or context < cfg.sliding_window else cfg.n_global_layers
    assert grown == pytest.approx(kv_bytes_per_token(cfg, bits) * growing / cfg.n_layers)
    assert kv_bytes(cfg, 0, bits) == 0


def test_a_sequence_may_fill_the_context_and_not_a_token_more():
    full = TOY.context
    assert prefill_work(TOY, 1, full) and prefill_work(TOY, 1, 1, held=full - 1) and decode_work(TOY, 1, full - 1)
    for call in (lambda: prefill_work(TOY, 1, full + 1), lambda: prefill_work(TOY, 1, 1, held=full),
                 lambda: decode_work(TOY, 1, full)):
        with pytest.raises(BadInputError, match="2,049 tokens"):
            call()


def test_a_model_that_sees_only_a_window_holds_no_more_than_it():
    mistral = MODELS["Mistral-7B-v0.1"]
    assert kv_bytes(mistral, 100_000) == kv_bytes(mistral, 4096) == 4096 * 131_072


# Work.

SOME = ["Llama-3.1-8B", "Mistral-7B-v0.1", "gpt-oss-20b", "Gemma-3-4b", "Mixtral-8x7B-v0.1", "GPT-3 175B"]
SIZES = st.integers(1, 5000)
LONG = {name: replace(cfg, context=10**6) for name, cfg in MODELS.items()}


@given(name=st.sampled_from(list(MODELS)), batch=st.integers(1, 300), context=st.integers(1, 100_000))
def test_reading_one_token_is_a_decode_step(name, batch, context):
    assert prefill_work(LONG[name], batch, 1, held=context) == decode_work(LONG[name], batch, context)


@given(name=st.sampled_from(SOME), first=SIZES, second=SIZES, held=st.integers(0, 5000))
def test_a_prompt_in_two_pieces_takes_the_arithmetic_of_the_whole(name, first, second, held):
    """But for the head, that each call takes once."""
    cfg = LONG[name]
    whole = prefill_work(cfg, 1, first + second, held=held)
    one, two = prefill_work(cfg, 1, first, held=held), prefill_work(cfg, 1, second, held=held + first)
    for part in whole:
        if part != "head":
            assert one[part].flops + two[part].flops == pytest.approx(whole[part].flops)
    assert one["head"].flops == whole["head"].flops


@given(name=st.sampled_from(list(MODELS)), batch=st.integers(1, 300), context=st.integers(1, 100_000))
def test_a_batch_shares_weights_and_nothing_else(name, batch, context):
    one, many = decode_work(LONG[name], 1, context), decode_work(LONG[name], batch, context)
    for part in one:
        assert many[part].flops == pytest.approx(batch * one[part].flops)
        assert one[part].bytes <= many[part].bytes * (1 + 1e-9) <= batch * one[part].bytes * (1 + 2e-9)
    assert many["attention"].bytes == pytest.approx(batch * one["attention"].bytes)


@given(name=st.sampled_from(list(MODELS)), batch=st.integers(1, 300))
def test_a_decode_step_takes_two_flop_for_each_active_weight_and_token(name, batch):
    """All but the embedding, which is looked up, and the norms. Behind one token attention adds next to nothing."""
    cfg, params = MODELS[name], count_params(MODELS[name], active=True)
    multiplied = params.total - params.norms - params.embedding + (params.embedding if cfg.tied_embeddings else 0)
    assert decode_flops(cfg, batch, 1) == pytest.approx(2 * batch * multiplied, rel=0.01)


def read(cfg, batch) -> float:
    """Weights that a decode step reads."""
    parts = decode_work(cfg, batch, 1, weight_bits=8)
    return sum(w.bytes for name, w in parts.items() if name not in ("attention", "residual", "inner"))


def test_alone_a_token_reads_the_experts_that_it_visits_and_a_crowd_reads_all():
    for name in ("Mixtral-8x7B-v0.1", "DeepSeek-V3", "Qwen3-30B-A3B", "Llama-4-Maverick"):
        cfg = MODELS[name]
        for batch, active in ((1, True), (100_000, False)):
            params = count_params(cfg, active=active)
            rows = min(batch, cfg.vocab_size) * cfg.d_model
            assert read(cfg, batch) == pytest.approx(params.total - params.norms - params.embedding + rows)


@given(batch=st.integers(1, 2000))
def test_between_them_a_batch_reads_the_experts_that_it_touches(batch):
    cfg = MODELS["Mixtral-8x7B-v0.1"]
    more = read(cfg, batch) - read(cfg, 1) - (batch - 1) * cfg.d_model
    expert = 3 * 4096 * 14336
    assert more == pytest.approx(32 * (experts_touched(8, 2, batch) - 2) * expert, abs=1e3)


def test_the_latent_is_compared_only_where_one_token_looks():
    """Many new tokens take their keys out of the latent: 192 and 128 wide; one looks at the latent: 576 and 512."""
    deepseek = MODELS["DeepSeek-V3"]
    one = decode_work(deepseek, 1, 1000)["attention"].flops
    two = prefill_work(deepseek, 1, 2, held=1000)["attention"].flops
    assert one / 1001 == pytest.approx(2 * 61 * 128 * (576 + 512))
    assert two / (1001 + 1002) == pytest.approx(2 * 61 * 128 * (192 + 128))


def test_flops_are_the_sums_of_their_parts():
    assert prefill_flops(TOY, 2, 100) == sum(w.flops for w in prefill_work(TOY, 2, 100).values())
    assert decode_flops(TOY, 2, 100) == sum(w.flops for w in decode_work(TOY, 2, 100).values())


def test_work_adds_up_and_says_its_intensity():
    both = Work(6, 2) + Work(4, 3)
    assert both == Work(10, 5)
    assert both.intensity == 2
    assert repr(both) == "10 FLOP over 5 bytes: 2 FLOP a byte."


BAD = {
    "batch-zero": (decode_work, {"batch": 0}, "batch is 0"),
    "batch-negative": (decode_work, {"batch": -1}, "batch is -1"),
    "batch-fraction": (decode_work, {"batch": 2.5}, "batch is 2.5"),
    "batch-true": (decode_work, {"batch": True}, "batch is True"),
    "context-negative": (decode_work, {"context": -1}, "context is -1"),
    "context-fraction": (decode_work, {"context": 0.5}, "context is 0.5"),
    "context-text": (kv_bytes, {"context": "2048"}, "context is '2048'"),
    "no-weight-bits": (decode_work, {"weight_bits": 0}, "weight_bits is 0"),
    "bits-of-a-format": (decode_work, {"weight_bits": "fp8"}, "weight_bits is 'fp8'"),
    "bits-for-bytes": (kv_bytes, {"kv_bits": 128}, "kv_bits is 128; allowed: a number of bits from 0.1 to 64"),
    "head-bits-negative": (weight_bytes, {"head_bits": -4}, "head_bits is -4"),
    "weights-in-no-bits": (weight_bytes, {"weight_bits": 0}, "weight_bits is 0"),
    "no-tokens": (prefill_work, {"tokens": 0}, "tokens is 0"),
    "no-context": (decode_work, {"context": 0}, "context is 0"),
    "beyond-the-context": (decode_work, {"context": 10**7}, "10,000,001 tokens, and this model was made for 2,048"),
    "held-negative": (prefill_work, {"held": -1}, "held is -1"),
    "a-name-for-a-model": (kv_bytes, {"cfg": "Llama-3.1-8B"}, "model_config('Llama-3.1-8B')"),
}
GOOD = {decode_work: {"batch": 1, "context": 10}, prefill_work: {"batch": 1, "tokens": 10}, kv_bytes: {"context": 10},
        weight_bytes: {}}


@pytest.mark.parametrize(("count", "change", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_counted_is_refused(count, change, says):
    with pytest.raises(BadInputError) as error:
        count(**{"cfg": TOY} | GOOD[count] | change)
    assert says in str(error.value)
