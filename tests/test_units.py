"""Laws of units and of numbers written for people."""

import doctest
import math
from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import units
from llmflation.errors import BadInputError

DAYS = st.dates(date(1990, 1, 1), date(2090, 1, 1))
NUMBERS = st.floats(min_value=1e-12, max_value=1e15)


def test_worked_lines():
    assert doctest.testmod(units, raise_on_error=True).attempted >= 12


def test_gib_is_seven_percent_more_than_gb():
    assert pytest.approx(1.0737, abs=1e-4) == units.GIB / units.GB
    assert units.nbytes(80 * units.GIB) == "85.9 GB"
    assert units.nbytes(80 * units.GIB, binary=True) == "80 GiB"


def test_four_years_with_their_leap_day_are_four_years():
    assert units.years_between("2021-03-01", "2025-03-01") == 4
    assert units.months_between("2021-03-01", "2025-03-01") == 48


@given(DAYS, DAYS, DAYS)
def test_years_add_up(a, b, c):
    assert units.years_between(a, b) + units.years_between(b, c) == pytest.approx(units.years_between(a, c))
    assert units.months_between(a, b) == pytest.approx(12 * units.years_between(a, b))


@given(DAYS, st.integers(0, 60))
def test_add_months_moves_the_month_and_keeps_the_day_if_it_can(day, months):
    moved = units.add_months(day, months)
    assert (moved.year * 12 + moved.month) - (day.year * 12 + day.month) == months
    assert moved.day == day.day or (moved.day < day.day and (moved + timedelta(1)).day == 1)


def test_a_date_comes_as_date_datetime_or_text():
    day = date(2024, 2, 29)
    assert units.as_date(day) == units.as_date(datetime(2024, 2, 29, 12)) == units.as_date("2024-02-29") == day
    assert type(units.as_date(datetime(2024, 2, 29))) is date


@pytest.mark.parametrize("bad", ["2024-02-30", "2024-2-3", "20240203", "2024-W09-4", "yesterday", "", None, 2024, 1.5])
def test_what_is_no_date_is_refused(bad):
    with pytest.raises(BadInputError, match="YYYY-MM-DD"):
        units.as_date(bad)


@given(NUMBERS, st.integers(1, 8))
def test_significant_digits_keep_the_value(x, digits):
    text = units.significant(x, digits)
    assert "e" not in text.lower()
    assert float(text.replace(",", "")) == pytest.approx(x, rel=0.51 * 10 ** (1 - digits))
    assert units.significant(-x, digits) == "-" + text


@given(NUMBERS)
def test_a_price_is_written_within_a_cent_or_half_a_percent(x):
    text = units.usd(x)
    assert text.startswith("$")
    assert math.isclose(float(text[1:].replace(",", "")), x, rel_tol=0.0051, abs_tol=0)
    assert "." not in text or len(text.split(".")[1]) >= 2


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "$0"),
        (60, "$60"),
        (0.07, "$0.07"),
        (0.1, "$0.10"),
        (-3.5, "-$3.50"),
        (0.9999, "$1"),
        (0.525, "$0.525"),
    ],
)
def test_prices_as_written(x, text):
    assert units.usd(x) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1.5e-9, "1.5 ns"), (2e-5, "20 µs"), (59, "59 s"), (90, "1.5 min"), (1e-12, "0.001 ns")],
)
def test_durations_as_written(seconds, text):
    assert units.duration(seconds) == text


def test_bytes_of_nothing():
    assert units.nbytes(0) == "0 B"
    assert units.nbytes(999) == "999 B"


@pytest.mark.parametrize(
    "write", [units.significant, units.usd, units.times, units.percent, units.nbytes, units.in_words, units.duration]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, "3", None, True])
def test_what_is_no_number_is_not_written(write, bad):
    with pytest.raises(BadInputError, match="finite number"):
        write(bad)


def test_no_digits_are_refused():
    with pytest.raises(BadInputError, match="1 or more"):
        units.significant(3.0, 0)
