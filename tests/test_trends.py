"""Fits: parity with scipy, laws on made-up series, Epoch AI's published rates, sensitivity and decomposition."""

import datetime as dt
import math
import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llmflation import facts
from llmflation.cost.prices import Blend, Offer, find_offer, load_epoch_prices
from llmflation.cost.series import Point, Series, in_force, record
from llmflation.cost.trends import (
    classify_steps,
    decompose,
    factor_per_year,
    fit_price_trend,
    least_squares_slope,
    published_rates,
    sensitivity,
    theil_sen_slope,
)
from llmflation.errors import BadInputError, MissingFactError

START = dt.date(2022, 1, 1)


def made(points):
    """A series that holds these points, and of a shorter list of models those of the models on it."""
    def redraw(models):
        return tuple(p for p in points if p.offer.model in models)
    models = tuple({p.offer.model: 0 for p in points})
    return Series("record", "MMLU", 42, Blend(0.75, 0.25), tuple(points), models, redraw)


def series(factor=10.0, n=12, models=4, noise=0.0, seed=0, days=90):
    rng = random.Random(seed)
    points = []
    for i in range(n):
        date = START + dt.timedelta(days * i)
        usd = 60 / factor ** (days * i / 365.25) * math.exp(rng.gauss(0, noise))
        points.append(Point(date, usd, Offer(f"m{i % models}", "s", date, usd, usd, score=50.0)))
    return made(points)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-10, 10)), min_size=3, max_size=25,
                unique_by=lambda p: round(p[0], 3)))
def test_slopes_equal_scipys(xy):
    x, y = zip(*xy)
    assert least_squares_slope(xy) == pytest.approx(scipy.stats.linregress(x, y).slope, rel=1e-6, abs=1e-6)
    assert theil_sen_slope(xy) == pytest.approx(scipy.stats.theilslopes(y, x).slope, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", ["least squares", "theil-sen"])
@pytest.mark.parametrize("factor", [0.5, 1.5, 10, 900])
def test_an_exact_fall_is_found(method, factor):
    trend = fit_price_trend(series(factor), method)
    assert trend.factor_per_year == pytest.approx(factor)
    assert trend.low == pytest.approx(factor) and trend.high == pytest.approx(factor)
    assert trend.usd(START) == pytest.approx(60)


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_the_unit_of_the_price_does_not_matter(scale):
    base = series(noise=0.5)
    scaled = made([Point(p.date, p.usd * scale, p.offer) for p in base.points])
    assert fit_price_trend(scaled).factor_per_year == pytest.approx(fit_price_trend(base).factor_per_year)


def test_halving_time():
    assert fit_price_trend(series(2.0)).halving_months == pytest.approx(12)
    assert fit_price_trend(series(0.5)).halving_months is None


def test_one_wild_point_moves_theil_sen_less():
    base = series(10.0, n=15)
    wild = list(base.points)
    wild[-1] = Point(wild[-1].date, wild[-1].usd * 1000, wild[-1].offer)
    moved = made(wild)
    off = {m: abs(math.log(fit_price_trend(moved, m).factor_per_year / 10)) for m in ("least squares", "theil-sen")}
    assert off["theil-sen"] < 0.1 * off["least squares"]


def test_the_interval_resamples_models_not_points():
    """Ten points of each of six models say no more than one of each: the interval must not shrink with copies."""
    once = series(noise=0.8, n=6, models=6, days=200, seed=3)
    many = made([p for p in once.points for _ in range(10)])
    width = {s: math.log(t.high / t.low) for s, t in (("once", fit_price_trend(once)), ("many", fit_price_trend(many)))}
    assert width["many"] == pytest.approx(width["once"], rel=0.1)


def test_the_interval_makes_the_series_anew():
    """One model undercuts four others that never show: lists without it must be in the interval, and are."""
    rows = [Offer("cheap", "s", START + dt.timedelta(100 * i), 10 / 4**i, 10 / 4**i, score=50.0) for i in range(6)]
    rows += [Offer(f"m{i}", "s", START + dt.timedelta(100 * i), 20 / 1.2**i, 20 / 1.2**i, score=50.0) for i in range(6)]
    market = record(50, prices=rows)
    assert {p.offer.model for p in market.points} == {"cheap"}
    trend = fit_price_trend(market)
    alone = fit_price_trend(record(50, prices=rows[6:])).factor_per_year
    assert trend.low <= alone * 1.01 < trend.factor_per_year / 10


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """90% intervals on 100 noisy markets of ten models; few models make the bootstrap a little too sure."""
    hits = 0
    for seed in range(100):
        trend = fit_price_trend(series(10.0, n=20, models=20, noise=0.7, seed=seed, days=60), n_boot=200)
        hits += trend.low <= 10 <= trend.high
    assert 75 <= hits <= 97


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    base = series(noise=0.5)
    assert fit_price_trend(base, seed=1) == fit_price_trend(base, seed=1)
    assert fit_price_trend(base, seed=1).low != fit_price_trend(base, seed=2).low


def test_no_interval_from_two_models():
    trend = fit_price_trend(series(models=2))
    assert trend.low is None and "no interval" in repr(trend)


@pytest.mark.parametrize("make, says", [
    pytest.param(lambda: fit_price_trend(series(n=2)), "at least 3 points, this window has 2", id="two-points"),
    pytest.param(lambda: fit_price_trend(record(64.8).window(since=dt.date(2030, 1, 1))), "has 0", id="empty-window"),
    pytest.param(lambda: fit_price_trend(series(days=0)), "needs two dates", id="one-day"),
    pytest.param(lambda: fit_price_trend(series(), "ridge"), "'ridge' is not known", id="method"),
    pytest.param(lambda: fit_price_trend(series(), level=90), "level 90 must lie between 0 and 1", id="percent"),
    pytest.param(lambda: fit_price_trend(series(), n_boot=0), "n_boot is 0; allowed", id="no-draws"),
    pytest.param(lambda: factor_per_year("a", 2), "must both be numbers above zero", id="text-ratio"),
    pytest.param(lambda: factor_per_year(-1, 2), "must both be numbers above zero", id="negative-ratio"),
    pytest.param(lambda: factor_per_year(10, 0), "must both be numbers above zero", id="no-time"),
])
def test_bad_input(make, says):
    with pytest.raises(BadInputError, match=says):
        make()


@pytest.mark.parametrize("threshold, quantity", [
    (43.9, "price to reach GPT-3 level on MMLU"), (64.8, "price to reach GPT-3.5 level on MMLU"),
    (68, "price to reach GPT-3.5 Turbo level on MMLU"), (86, "price to reach GPT-4 level on MMLU"),
    (87, "price to reach GPT-4 Turbo level on MMLU")])
def test_epochs_published_rates_come_out_of_epochs_rows(threshold, quantity):
    published, = (r["value"] for r in facts.read("published_trends") if r["quantity"] == quantity)
    trend = fit_price_trend(record(threshold, prices=load_epoch_prices()))
    assert trend.factor_per_year == pytest.approx(published, rel=0.01)


def test_published_rates_reach_from_9_to_900_and_leave_rises_out():
    rates = published_rates()
    assert rates["Epoch AI (Cottier et al.)"] == (9, 900)
    assert max(high for _, high in rates.values()) == 900  # the 'yearly RISE' row is no fall


def test_sensitivity_covers_every_choice():
    choices = sensitivity(64.8, n_boot=20)
    text = " ".join(choices)
    for word in ("headline", "in force", "Theil-Sen", "carried", "blend", "offers", "checked", "window", "without"):
        assert word in text
    assert next(iter(choices.values())).factor_per_year == fit_price_trend(record(64.8)).factor_per_year
    assert len({round(t.factor_per_year, 3) for t in choices.values()}) > 6, "the choices must change the answer"


def test_a_window_without_points_is_left_out_of_sensitivity():
    early = sensitivity(64.8, until=dt.date(2024, 6, 1), n_boot=20)
    assert "window: in force since 2025" not in early


def test_decomposition_multiplies_to_the_whole():
    split = decompose(find_offer("GPT-3 davinci (175B)", on=dt.date(2021, 12, 1)),
                      find_offer("Llama-3.2-3B-Instruct", "Together"))
    assert split.total == pytest.approx(split.smaller_model * split.per_parameter)
    assert split.total == pytest.approx(1000, rel=0.01)
    assert split.smaller_model == pytest.approx(175 / 3.21, rel=0.01)


def test_a_size_that_nobody_published_is_not_guessed():
    with pytest.raises(MissingFactError, match="size of text-davinci-003.*token_prices.csv line"):
        decompose(find_offer("text-davinci-003 (GPT-3.5)"), find_offer("Llama-3.2-3B-Instruct", "Together"))


def test_decompose_refuses_the_wrong_order():
    a, b = find_offer("GPT-3 davinci (175B)", on=dt.date(2021, 12, 1)), find_offer("Llama-3.2-3B-Instruct", "Together")
    with pytest.raises(BadInputError, match="swap them"):
        decompose(b, a)


@pytest.mark.parametrize("level", [42, 64.8, 83])
def test_the_causes_of_a_records_steps_multiply_to_its_fall(level):
    assert math.prod(classify_steps(record(level)).values()) == pytest.approx(record(level).fall)


def test_fits_of_the_real_series_are_stable_under_the_order_of_rows():
    from llmflation.cost.prices import load_prices
    shuffled = list(load_prices())
    random.Random(1).shuffle(shuffled)
    for make in (record, in_force):
        a = fit_price_trend(make(64.8, prices=shuffled)).factor_per_year
        assert a == pytest.approx(fit_price_trend(make(64.8)).factor_per_year)
