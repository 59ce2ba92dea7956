"""Offers and blends: the arithmetic, what is refused, and an outside list of prices."""

import csv
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import facts
from llmflation.cost.prices import BLENDS, Blend, Offer, as_blend, find_offer, load_epoch_prices, load_prices
from llmflation.errors import BadInputError, DataError, MissingFactError, UnknownNameError

GPT4 = Offer("gpt-4", "OpenAI", dt.date(2023, 3, 14), input=30, output=60)


def test_a_published_blend():
    """GPT-4 at $30 and $60 is listed by Epoch AI at $37.50."""
    assert GPT4.usd("3:1") == 37.5
    assert GPT4.usd("mean") == 45 and GPT4.usd("output") == 60 and GPT4.usd("input") == 30


@given(st.floats(0, 1), st.floats(0.001, 100), st.floats(0.001, 100))
def test_a_blend_lies_between_its_prices_and_is_linear(share, a, b):
    offer = Offer("m", "s", dt.date(2024, 1, 1), input=a, output=b)
    blended = offer.usd(Blend(share, 1 - share))
    assert min(a, b) * (1 - 1e-9) <= blended <= max(a, b) * (1 + 1e-9)
    doubled = Offer("m", "s", dt.date(2024, 1, 1), input=2 * a, output=2 * b)
    assert doubled.usd(Blend(share, 1 - share)) == pytest.approx(2 * blended)


def test_cached_input_has_its_own_price():
    offer = Offer("m", "s", dt.date(2024, 1, 1), input=2.5, output=10, cached=0.25)
    assert offer.usd({"input": 0.1, "cached": 0.8, "output": 0.1}) == pytest.approx(0.25 + 0.2 + 1.0)


def test_a_missing_cached_price_is_not_zero():
    with pytest.raises(MissingFactError, match="gpt-4 .*no cached-input price"):
        GPT4.usd({"input": 0.5, "cached": 0.25, "output": 0.25})
    from_the_data = find_offer("gpt-4")
    with pytest.raises(MissingFactError, match=r"token_prices.csv line \d+, column cached_input_usd_per_mtok"):
        from_the_data.usd({"cached": 0.5, "input": 0.5, "output": 0.0})


@pytest.mark.parametrize("blend, says", [
    pytest.param({"input": 0.7, "output": 0.2}, "adds up to 0.9", id="too-little"),
    pytest.param({"input": 3, "output": 1}, "outside 0 to 1", id="parts-not-shares"),
    pytest.param({"input": 1.5, "output": -0.5}, "outside 0 to 1", id="negative"),
    pytest.param({"input": float("nan"), "output": 1.0}, "outside 0 to 1", id="nan"),
    pytest.param("4:1", "'4:1' is not known; choose from 3:1", id="unknown-name"),
    pytest.param({"in": 1.0}, "is not known", id="unknown-part"),
    pytest.param(3, "is not known", id="a-number"),
])
def test_a_blend_that_is_none(blend, says):
    with pytest.raises(BadInputError, match=says):
        as_blend(blend)


def test_every_named_blend_says_what_it_is():
    assert [str(b) for b in BLENDS.values()] == ["75% input, 25% output", "50% input, 50% output", "100% output",
                                                 "100% input"]


def test_offers_come_oldest_first_and_all_of_them_were_asked():
    prices = load_prices()
    assert [p.date for p in prices] == sorted(p.date for p in prices)
    left_out = [r["date_kind"] for r in facts.read("token_prices") if r["date_kind"] in ("index_point", "announced")]
    assert len(prices) == len(facts.read("token_prices")) - len(left_out)
    assert {p.kind for p in prices}.isdisjoint(left_out)


def test_find_offer_takes_the_newest_up_to_a_date():
    assert find_offer("gpt-3.5-turbo", on=dt.date(2023, 4, 1)).usd() == 2
    assert find_offer("gpt-3.5-turbo", on=dt.date(2023, 12, 1)).date == dt.date(2023, 11, 6)


def test_find_offer_names_the_nearest_model_and_the_known_sellers():
    with pytest.raises(UnknownNameError, match="gpt-4o"):
        find_offer("gpt4o")
    with pytest.raises(UnknownNameError, match="seller of gpt-4 'OpenAl'; nearest: 'OpenAI'"):
        find_offer("gpt-4", "OpenAl")
    with pytest.raises(BadInputError, match="by 2020-01-01; the first row is of 2023-03-14"):
        find_offer("gpt-4", on="2020-01-01")
    with pytest.raises(BadInputError, match="'last year'"):
        find_offer("gpt-4", on="last year")


def changed(tmp_path, column, value):
    """The shipped prices with one cell of the first offer with a cached price changed."""
    rows = facts.read("token_prices")
    lines = list(csv.DictReader(facts.DATA_DIR.joinpath("token_prices.csv").read_text("utf-8").splitlines()))
    at = next(i for i, r in enumerate(rows) if r["cached_input_usd_per_mtok"])
    lines[at][column] = value
    path = tmp_path / "prices.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return path


@pytest.mark.parametrize("column, value, says", [
    ("cached_input_usd_per_mtok", "900", "cached input at 900 is dearer than input"),
    ("date", "2099-02-20", "the price is of 2099-02-20, its source of"),
])
def test_a_slip_that_no_single_cell_shows(tmp_path, column, value, says):
    with pytest.raises(DataError, match=rf"prices.csv line \d+: .*{says}|{says}"):
        load_prices(changed(tmp_path, column, value))


def test_epoch_rows_by_benchmark():
    gpqa = load_epoch_prices("gpqa_diamond")
    assert any(o.score == 33 and o.model == "GPT-4-0314" for o in gpqa)
    assert all(o.usd("3:1") == o.usd("output") for o in gpqa)  # already blended: no blend can change it
    with pytest.raises(UnknownNameError, match="mmlu"):
        load_epoch_prices("mmlu_pro")
