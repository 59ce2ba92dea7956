"""The record and the price in force: laws on made-up markets, and the real one."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation.cost.prices import Offer, load_epoch_prices, load_prices
from llmflation.cost.series import eligible, in_force, price_rises, record
from llmflation.errors import BadInputError

DAY = dt.date(2023, 1, 15)


def offer(days, usd, model="m", seller="s", score=50.0, **more):
    return Offer(model, seller, DAY + dt.timedelta(days), input=usd, output=usd, score=score, **more)


markets = st.lists(st.builds(offer, st.integers(0, 1500), st.floats(0.001, 100), st.sampled_from("abc"),
                             st.sampled_from("xy"), st.sampled_from([40.0, 60.0])), min_size=1, max_size=25,
                   unique_by=lambda o: (o.model, o.seller, o.date))


@given(markets)
def test_a_record_only_falls_and_is_what_was_ever_cheapest(market):
    points = record(30, prices=market).points
    assert all(a.usd > b.usd and a.date <= b.date for a, b in zip(points, points[1:]))
    assert points[-1].usd == min(o.usd() for o in market)
    assert points[0].date == min(o.date for o in market)


@given(markets)
def test_the_price_in_force_never_undercuts_the_record(market):
    last = max(o.date for o in market)
    records = record(30, prices=market).points
    for point in in_force(30, until=last, prices=market).points:
        assert point.usd >= min(r.usd for r in records if r.date <= point.date)


@given(markets)
def test_a_higher_level_is_never_cheaper(market):
    if not any(o.score >= 50 for o in market):
        return
    low, high = record(30, prices=market), record(50, prices=market)
    assert high.points[-1].usd >= low.points[-1].usd


def test_a_replaced_offer_is_no_longer_in_force():
    market = [offer(0, 1.0), offer(100, 3.0), offer(0, 2.0, model="other")]
    after = [p.usd for p in in_force(50, until=DAY + dt.timedelta(200), prices=market).points
             if p.date > DAY + dt.timedelta(100)]
    assert set(after) == {2.0}, "the cheap offer was replaced by a dearer one: the other model is now the least"


def test_a_rise_is_seen_in_force_and_hidden_in_the_record():
    market = [offer(0, 1.0), offer(100, 4.0)]
    until = DAY + dt.timedelta(200)
    (before, after), = in_force(50, until=until, prices=market).rises
    assert (before.usd, after.usd) == (1.0, 4.0)
    assert [p.usd for p in record(50, prices=market).points] == [1.0]


def test_an_offer_holds_for_a_year_and_no_longer():
    market = [offer(0, 1.0)]
    dates = [p.date for p in in_force(50, until=DAY + dt.timedelta(900), prices=market).points]
    assert dates[-1] == dt.date(2024, 1, 1), "renewed by nobody, the offer of 15 January 2023 ends a year later"


def test_a_withdrawn_offer_ends_on_its_day():
    gone = Offer("m", "s", DAY + dt.timedelta(100), input=1.0, output=1.0, score=50.0, kind="withdrawn")
    market = [offer(0, 1.0), gone]
    dates = [p.date for p in in_force(50, until=DAY + dt.timedelta(300), prices=market).points]
    assert dates[-1] == dt.date(2023, 4, 1)
    assert len(record(50, prices=market).points) == 1


def test_months_without_an_offer_have_no_point():
    market = [offer(0, 1.0), offer(800, 2.0, model="later")]
    second = DAY + dt.timedelta(800)
    dates = [p.date for p in in_force(50, until=DAY + dt.timedelta(850), prices=market).points]
    assert not any(dt.date(2024, 2, 1) <= date < second for date in dates)
    assert dates[-1] > second


def test_only_a_sellers_own_metered_price_counts():
    market = [offer(0, 2.0), offer(1, 1.0, kind="plan"), offer(2, 0.5, seller="OpenRouter (cheapest listed host)")]
    assert record(50, prices=market).points[-1].usd == 2.0
    assert record(50, prices=market, offers="wider").points[-1].usd == 0.5


def test_a_model_without_a_score_reaches_nothing():
    market = [offer(0, 2.0), offer(1, 1.0, score=None)]
    assert record(0, prices=market).points[-1].usd == 2.0


def test_of_two_offers_on_one_day_only_the_cheaper_is_a_record():
    market = [offer(0, 2.0, model="a"), offer(0, 1.0, model="b")]
    assert [p.usd for p in record(50, prices=market).points] == [1.0]


def test_rises_are_by_one_seller_for_one_model():
    market = [offer(0, 1.0), offer(10, 3.0, seller="t"), offer(20, 2.0), offer(30, 1.5)]
    (before, after), = price_rises(prices=market)
    assert (before.usd(), after.usd()) == (1.0, 2.0)


@pytest.mark.parametrize("threshold, says", [
    pytest.param(99.5, r"no model reaches MMLU 99.5; the highest score here is \d", id="too-high"),
    pytest.param("64.8", "'64.8' is not a score", id="text"),
    pytest.param(float("nan"), "nan is not a score", id="nan"),
    pytest.param(True, "True is not a score", id="bool"),
])
def test_a_level_that_is_none(threshold, says):
    with pytest.raises(BadInputError, match=says):
        eligible(threshold)


def test_an_unknown_set_of_offers():
    with pytest.raises(BadInputError, match="'everything' is no set of offers; choose from own lists, wider"):
        record(50, offers="everything")


def test_a_shorter_list_of_models_is_redrawn_as_if_the_others_had_never_been():
    market = [offer(0, 9.0), offer(50, 1.0, model="cheap"), offer(100, 5.0)]
    for make in (record, lambda *a, **k: in_force(*a, until=DAY + dt.timedelta(200), **k)):
        whole, without = make(50, prices=market), make(50, prices=[o for o in market if o.model == "m"])
        assert whole.redraw({"m"}) == without.points != whole.points
        late = whole.window(since=DAY + dt.timedelta(60))
        assert late.redraw({"m"}) == without.window(since=DAY + dt.timedelta(60)).points


def test_carried_to_a_day_a_standstill_counts():
    series = record(50, prices=[offer(0, 9.0), offer(50, 1.0)])
    longer = series.carried_to("2025-01-01")
    assert longer.points[:-1] == series.points
    assert (longer.points[-1].date, longer.points[-1].usd) == (dt.date(2025, 1, 1), 1.0)
    assert longer.carried_to("2024-01-01") == longer, "an earlier day adds nothing"


def test_a_row_that_was_only_partly_checked_is_marked():
    first, second = record(50, prices=[offer(0, 9.0), offer(50, 1.0, checked=False)]).table().splitlines()
    assert second.endswith(" ?") and not first.endswith(" ?")


def test_a_series_names_its_own_exam():
    assert "GPQA 33+" in repr(record(33, prices=load_epoch_prices("gpqa_diamond")))
    with pytest.raises(BadInputError, match="no model reaches GPQA 99"):
        record(99, prices=load_epoch_prices("gpqa_diamond"))


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: in_force(42, until="2020-01-01"), "until 2020-01-01 lies before the first offer", id="early"),
    pytest.param(lambda: in_force(42, until="soon"), "'soon'", id="until"),
    pytest.param(lambda: record(42).window(since="1.1.2024"), "1.1.2024", id="window"),
    pytest.param(lambda: record(42, prices=[offer(0, 1.0, score=None)]), "none of these offers has a score", id="none"),
])
def test_other_bad_input(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


def test_nothing_is_dropped_from_the_real_list():
    """Prices that rose stay in: the series of the lowest level sees rises, and every scored offer is eligible."""
    prices = load_prices()
    assert len(eligible(0, offers="wider")) == sum(p.score is not None and p.kind != "withdrawn" for p in prices)
    assert in_force(64.8).rises and price_rises()
