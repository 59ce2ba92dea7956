"""Laws of money and energy: every hour is paid by its tokens, and nothing that costs more makes them cheaper."""

import doctest
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation.config import load_models, model_config
from llmflation.cost import economics
from llmflation.cost.economics import (
    Cost,
    TokenCosts,
    joules_per_token,
    ownership_usd_per_hour,
    token_costs,
    usd_per_million_tokens,
)
from llmflation.cost.roofline import TYPICAL
from llmflation.cost.serving import prefill_step, throughput
from llmflation.errors import BadInputError, MissingFactError
from llmflation.hardware import accelerator, load_hardware

MODELS, MACHINES = load_models(), load_hardware()
LLAMA, MIXTRAL = MODELS["Llama-3.1-8B"], MODELS["Mixtral-8x7B-v0.1"]
H100, A100 = MACHINES["H100 SXM5 80GB"], MACHINES["A100 SXM4 80GB"]
USD, RATES, SHARES = st.floats(1e-3, 1e4), st.floats(1e-2, 1e7), st.floats(0.01, 1.0)
LENGTHS = st.integers(1, 4000)
LAWFUL = settings(deadline=None, max_examples=30)


def test_worked_lines():
    assert doctest.testmod(economics, raise_on_error=True).attempted


# A million tokens.


@given(usd=USD, rate=RATES, share=SHARES)
def test_the_tokens_of_an_hour_pay_for_the_hour(usd, rate, share):
    each = usd_per_million_tokens(usd, rate, share)
    assert each * rate * share * 3600 / 1e6 == pytest.approx(usd)


@given(usd=USD, rate=RATES, share=SHARES, times=st.floats(1, 100))
def test_the_price_is_linear_in_the_hour_and_falls_with_tokens_and_use(usd, rate, share, times):
    price = usd_per_million_tokens(usd, rate, share)
    assert usd_per_million_tokens(usd * times, rate, share) == pytest.approx(price * times)
    assert usd_per_million_tokens(usd, rate * times, share) == pytest.approx(price / times)
    assert usd_per_million_tokens(usd, rate, share / times) == pytest.approx(price * times)


# What tokens of each kind cost.


@LAWFUL
@given(usd=USD, n_in=LENGTHS, n_out=LENGTHS, batch=st.integers(1, 64), share=SHARES, chips=st.sampled_from([1, 2, 8]))
def test_input_and_output_together_pay_for_the_machine(usd, n_in, n_out, batch, share, chips):
    """A request's tokens cost as much as the machine does in the time that throughput gives to a request."""
    costs = token_costs(LLAMA, H100, usd, n_in, n_out, batch=batch, utilization=share, chips=chips)
    made = throughput(LLAMA, H100, n_in, n_out, batch, chips=chips)
    of_request = usd_per_million_tokens(usd * chips, made.output_tokens_per_s, share) * n_out
    assert n_in * costs.input.allocation + n_out * costs.output.allocation == pytest.approx(of_request)
    assert costs.blended(n_in / n_out) * (n_in + n_out) == pytest.approx(of_request)


@LAWFUL
@given(usd=USD, times=st.floats(0.1, 10), share=SHARES)
def test_every_cost_is_linear_in_the_hour_and_idle_time_is_paid_by_allocation_alone(usd, times, share):
    def ask(price, used):
        return token_costs(MIXTRAL, H100, price, 1000, 200, chips=2, utilization=used, cached=500)

    once, more = ask(usd, 1.0), ask(usd * times, share)
    for kind in ("input", "cached_input", "output"):
        one, other = getattr(once, kind), getattr(more, kind)
        assert one.usage == one.allocation
        assert other.usage == pytest.approx(times * one.usage)
        assert other.allocation * share == pytest.approx(other.usage)


@LAWFUL
@given(batch=st.integers(1, 50), n_out=LENGTHS)
def test_output_gets_cheaper_with_the_batch_and_dearer_with_the_text(batch, n_out):
    cost = token_costs(LLAMA, H100, 2.0, 1000, n_out, batch=batch).output.usage
    assert token_costs(LLAMA, H100, 2.0, 1000, n_out, batch=batch + 1).output.usage <= cost * (1 + 1e-9)
    assert token_costs(LLAMA, H100, 2.0, 2000, n_out, batch=batch).output.usage >= cost


@LAWFUL
@given(cached=st.integers(1, 100_000), n_in=LENGTHS)
def test_a_cached_token_costs_what_the_others_look_back_at_it_takes(cached, n_in):
    costs = token_costs(LLAMA, H100, 3.6, n_in, 100, batch=1, cached=cached)
    longer = prefill_step(LLAMA, H100, 1, n_in, held=cached).time_s - prefill_step(LLAMA, H100, 1, n_in).time_s
    assert costs.cached_input.usage == pytest.approx(longer / cached * 1000)  # 3.6 USD an hour: 0.001 a second
    assert costs.cached_input.usage > 0


def test_a_cached_token_is_far_cheaper_than_one_that_is_read():
    costs = token_costs(LLAMA, H100, 2.0, 1000, 100, cached=4000)
    assert 10 < costs.input.usage / costs.cached_input.usage < 100


def test_output_costs_more_than_input():
    for name in ("Llama-3.1-8B", "Llama-3.1-70B", "Mixtral-8x7B-v0.1", "gpt-oss-120b"):
        costs = token_costs(MODELS[name], H100, 2.0, 1000, 1000, chips=4, efficiency=TYPICAL)
        assert costs.output.usage > costs.input.usage


def test_without_a_cache_a_cached_token_has_no_cost():
    assert token_costs(LLAMA, H100, 2.0, 1000, 100).cached_input is None


def test_costs_are_a_table():
    shown = repr(token_costs(LLAMA, H100, 2.0, 1000, 100, utilization=0.5, cached=1000)).splitlines()
    assert shown[0].split() == ["USD", "per", "Mtok", "usage", "allocation"]
    assert [line.split("  ")[0] for line in shown[1:]] == ["input", "cached input", "output"]
    assert len(repr(token_costs(LLAMA, H100, 2.0, 1000, 100)).splitlines()) == 3


PRICES = TokenCosts(Cost(1.0, 2.0), Cost(5.0, 10.0), Cost(0.1, 0.2), batch=8)


def test_blends_as_counted_by_hand():
    assert PRICES.blended() == (3 * 2 + 10) / 4
    assert PRICES.blended(idle=False) == (3 * 1 + 5) / 4
    assert PRICES.blended(1, cached_share=0.5) == (0.5 * 2 + 0.5 * 0.2 + 10) / 2
    assert PRICES.blended(1, cached_share=1) == pytest.approx((0.2 + 10) / 2)


# Owning a chip.


@given(usd_per_kwh=st.floats(0.01, 1), years=st.floats(1, 15), pue=st.floats(1, 2), share=st.floats(0, 1), load=SHARES)
def test_owning_costs_the_purchase_and_the_current(usd_per_kwh, years, pue, share, load):
    hour = ownership_usd_per_hour(H100, usd_per_kwh, lifetime_years=years, pue=pue, host_share=share, load=load)
    bought = H100.price_usd * (1 + share) / (years * 8766)
    drawn = H100.watts / 1000 * (1 + share) * load * pue * usd_per_kwh
    assert hour == pytest.approx(bought + drawn)


def test_whatever_costs_more_makes_the_hour_dearer():
    base = {"usd_per_kwh": 0.08, "lifetime_years": 5.0, "pue": 1.2, "host_share": 0.4, "yearly_return": 0.05,
            "load": 0.5}
    hour = ownership_usd_per_hour(H100, **base)
    for change in ({"usd_per_kwh": 0.16}, {"lifetime_years": 4.0}, {"pue": 1.5}, {"host_share": 0.6},
                   {"yearly_return": 0.1}, {"load": 1.0}):
        assert ownership_usd_per_hour(H100, **base | change) > hour, change
    assert ownership_usd_per_hour(replace(H100, price_usd=2 * H100.price_usd), **base) > hour


def test_a_chip_without_a_price_cannot_be_owned():
    with pytest.raises(MissingFactError, match=r"accelerators\.csv line \d+, column 'msrp_or_estimate_usd'"):
        ownership_usd_per_hour(A100, 0.08)
    assert ownership_usd_per_hour(replace(A100, price_usd=15_000), 0.08) > 0


# Energy.


@given(rate=RATES, chips=st.integers(1, 72), pue=st.floats(1, 2), load=SHARES)
def test_the_tokens_of_a_second_take_the_watts(rate, chips, pue, load):
    each = joules_per_token(H100, rate, chips=chips, pue=pue, load=load)
    assert each * rate == pytest.approx(700 * chips * pue * load)


def test_a_chip_without_watts_has_no_energy():
    with pytest.raises(MissingFactError, match="no watts is known"):
        joules_per_token(replace(H100, watts=None), 1000)


# What is refused.

ASK = {
    usd_per_million_tokens: {"usd_per_hour": 2.0, "tokens_per_s": 1000},
    ownership_usd_per_hour: {"hw": H100, "usd_per_kwh": 0.08},
    joules_per_token: {"hw": H100, "tokens_per_s": 1000},
    token_costs: {"cfg": LLAMA, "hw": H100, "usd_per_hour": 2.0, "input_len": 1000, "output_len": 100},
    PRICES.blended: {},
}
BAD = {
    "price-zero": (usd_per_million_tokens, {"usd_per_hour": 0}, "usd_per_hour is 0; allowed: a number above 0"),
    "price-negative": (usd_per_million_tokens, {"usd_per_hour": -2.0}, "usd_per_hour is -2.0"),
    "price-nan": (usd_per_million_tokens, {"usd_per_hour": float("nan")}, "usd_per_hour is nan"),
    "price-infinite": (usd_per_million_tokens, {"usd_per_hour": float("inf")}, "usd_per_hour is inf"),
    "price-as-text": (usd_per_million_tokens, {"usd_per_hour": "$2"}, "usd_per_hour is '$2'"),
    "price-missing": (usd_per_million_tokens, {"usd_per_hour": None}, "usd_per_hour is None"),
    "no-tokens": (usd_per_million_tokens, {"tokens_per_s": 0}, "A machine that makes no tokens has no price for one"),
    "percentage-of-use": (usd_per_million_tokens, {"utilization": 75}, "Did you mean 0.75?"),
    "never-used": (usd_per_million_tokens, {"utilization": 0}, "utilization is 0; allowed: a share"),
    "used-twice": (usd_per_million_tokens, {"utilization": 1.5}, "utilization is 1.5"),
    "costs-price-zero": (token_costs, {"usd_per_hour": 0}, "usd_per_hour is 0"),
    "costs-price-negative": (token_costs, {"usd_per_hour": -1}, "usd_per_hour is -1"),
    "costs-percentage": (token_costs, {"utilization": 60}, "utilization is 60; allowed: a share, above 0 and up to 1. "
                                                          "Did you mean 0.6?"),
    "costs-half-a-batch": (token_costs, {"batch": 2.5}, "batch is 2.5"),
    "costs-no-batch": (token_costs, {"batch": 0}, "batch is 0"),
    "costs-no-input": (token_costs, {"input_len": 0}, "input_len is 0"),
    "costs-negative-output": (token_costs, {"output_len": -1}, "output_len is -1"),
    "costs-half-a-cached-token": (token_costs, {"cached": 0.5}, "cached is 0.5"),
    "costs-negative-cache": (token_costs, {"cached": -1}, "cached is -1"),
    "current-for-nothing": (ownership_usd_per_hour, {"usd_per_kwh": 0}, "usd_per_kwh is 0"),
    "no-lifetime": (ownership_usd_per_hour, {"lifetime_years": 0}, "lifetime_years is 0"),
    "a-building-that-saves": (ownership_usd_per_hour, {"pue": 0.9}, "pue is 0.9; allowed: 1 or more"),
    "negative-host": (ownership_usd_per_hour, {"host_share": -0.1}, "host_share is -0.1"),
    "negative-return": (ownership_usd_per_hour, {"yearly_return": -0.1}, "yearly_return is -0.1"),
    "load-percentage": (ownership_usd_per_hour, {"load": 70}, "load is 70; allowed: a share, above 0 and up to 1. "
                                                             "Did you mean 0.7?"),
    "joules-of-no-token": (joules_per_token, {"tokens_per_s": 0}, "tokens_per_s is 0"),
    "joules-of-no-chip": (joules_per_token, {"chips": 0}, "chips is 0"),
    "joules-of-half-a-chip": (joules_per_token, {"chips": 0.5}, "chips is 0.5"),
    "joules-pue": (joules_per_token, {"pue": 0.5}, "pue is 0.5; allowed: 1 or more"),
    "joules-load": (joules_per_token, {"load": 0}, "load is 0"),
    "blend-percentage": (PRICES.blended, {"cached_share": 50}, "cached_share is 50; allowed: a share from 0 to 1"),
    "blend-of-no-input": (PRICES.blended, {"inputs_per_output": 0}, "inputs_per_output is 0"),
}


@pytest.mark.parametrize(("ask", "change", "says"), BAD.values(), ids=BAD)
def test_a_bad_question_is_refused(ask, change, says):
    with pytest.raises(BadInputError) as error:
        ask(**ASK[ask] | change)
    assert says in str(error.value)


def test_cached_input_without_a_cost_is_an_error_and_not_zero():
    with pytest.raises(BadInputError, match="no cost of cached input is known"):
        replace(PRICES, cached_input=None).blended(cached_share=0.5)
    assert replace(PRICES, cached_input=None).blended() == PRICES.blended()


def test_a_model_that_does_not_fit_has_no_cost():
    with pytest.raises(BadInputError, match=r"does not fit: .* lacks .* chips would do"):
        token_costs(MODELS["Llama-3.1-70B"], H100, 2.0, 1000, 100)


def test_a_return_of_next_to_nothing_is_none():
    free, tiny = (ownership_usd_per_hour(accelerator("H100 SXM5"), 0.08, yearly_return=r) for r in (0.0, 1e-17))
    assert tiny == pytest.approx(free)


def test_cached_tokens_lie_in_memory_and_are_looked_back_at_by_every_token_written():
    llama, h100 = model_config("Llama-3.1-8B"), accelerator("H100 SXM5")
    without, behind = (token_costs(llama, h100, 2.0, 1000, 200, cached=n) for n in (0, 20_000))
    assert behind.batch < without.batch / 10
    assert behind.output.usage > 3 * without.output.usage
    with pytest.raises(BadInputError, match="lacks"):
        token_costs(replace(llama, context=10**7), h100, 2.0, 1000, 200, cached=10**6)


def test_with_experts_apart_a_cached_token_is_cheaper_than_a_fresh_one_too():
    deepseek, h800 = model_config("DeepSeek-V3"), accelerator("H800 SXM5")
    costs = token_costs(deepseek, h800, 2.0, 1000, 200, chips=144, parallel="expert", weight_bits=8, cached=8000)
    assert costs.cached_input.usage < costs.input.usage / 10
    with pytest.raises(BadInputError, match="held is 5.*`cached` here"):
        token_costs(deepseek, h800, 2.0, 1000, 200, held=5)
