"""Laws of rents: a board is a board, an offer ends, and a token costs its share of the hour."""

import doctest
from datetime import date

import pytest

from llmflation.config import model_config
from llmflation.cost import rents as module
from llmflation.cost.rents import (
    SERVING_LINE,
    cheapest,
    cheapest_over_time,
    hardware_readings,
    rent,
    rents,
    serve,
    token_rents,
)
from llmflation.cost.roofline import IDEAL
from llmflation.cost.serving import throughput
from llmflation.errors import BadInputError, MissingFactError, UnknownNameError
from llmflation.hardware import accelerator, rental_price

LLAMA = model_config("Llama-3.1-8B")


def test_worked_lines():
    assert doctest.testmod(module, raise_on_error=True).attempted >= 2


def test_a_k80_rents_as_a_board():
    assert {usd for _, usd in rent("K80", "AWS").points} == {2 * rental_price("K80", "2018-01-01").usd_per_hour}


def test_rents_know_their_rises_and_leave_spot_prices_out():
    a100 = rent("A100 SXM4 40GB", "Lambda")
    assert [b > a for (_, a), (_, b) in a100.rises] == [True] * 2 and len(a100.points) == 3
    assert not rent("V100 SXM2 16GB", "AWS").rises
    assert "spot" not in {r.tier for r in rents()}
    assert all(r.points == tuple(sorted(r.points)) for r in rents())
    with pytest.raises(MissingFactError, match="no on-demand price of Lambda for K80"):
        rent("K80", "Lambda")


def test_a_model_takes_as_few_chips_as_hold_it():
    assert [serve(LLAMA, accelerator(name)).chips for name in SERVING_LINE] == [2, 1, 1, 1, 1, 1, 1]
    assert serve(LLAMA, accelerator("V100 SXM2 16GB"), batch=1).chips == 2  # a small batch does not shrink the weights
    with pytest.raises(BadInputError, match="does not fit"):
        serve(LLAMA, accelerator("V100 SXM2 16GB"), most_chips=1)
    with pytest.raises(BadInputError, match="128 requests do not fit on 2 x V100"):
        serve(LLAMA, accelerator("V100 SXM2 16GB"), batch=128)
    with pytest.raises(MissingFactError, match="K80 does not compute in fp16"):
        serve(LLAMA, accelerator("K80"))


def test_tokens_read_count_like_tokens_written():
    h100 = accelerator("H100 SXM5")
    made = throughput(LLAMA, h100, 900, 300, efficiency=IDEAL)
    served = serve(LLAMA, h100, efficiency=IDEAL)
    assert served.tokens_per_s == pytest.approx(4 * made.output_tokens_per_s)
    assert served.joules_per_token == pytest.approx(h100.watts / served.tokens_per_s)
    assert served.usd_per_mtok(3.6) == pytest.approx(1000 / served.tokens_per_s)


def test_the_cheapest_offer_is_one_in_force():
    offers = token_rents(LLAMA)
    found = cheapest(offers, "AWS", "2022-10-02")
    assert (found.served.hw.name, found.date, found.tier) == ("A100 SXM4 40GB", date(2022, 10, 2), "on-demand")
    assert found.usd == found.served.usd_per_mtok(found.usd_per_hour)
    assert cheapest(offers, "AWS", "2023-08-05").date == date(2022, 10, 2)
    with pytest.raises(MissingFactError, match="no on-demand offer of AWS for these chips on 2024-10-03"):
        cheapest(offers, "AWS", "2024-10-03")  # the rows of August 2023 have run out
    with pytest.raises(UnknownNameError, match="AWS, on-demand"):
        cheapest(offers, "AWs", "2023-08-05")
    path = cheapest_over_time(offers, "Lambda")
    assert [o.date for o in path] == sorted({o.date for o in offers if (o.seller, o.tier) == ("Lambda", "on-demand")})


def test_chips_that_hold_no_model_are_left_out_and_all_of_them_is_an_error():
    large = model_config("Llama-3.1-70B")
    assert {o.served.hw.name for o in token_rents(large)} == {"A100 SXM4 80GB", "H100 SXM5 80GB", "H200 SXM",
                                                              "B200 SXM 180GB", "B300 SXM"}
    with pytest.raises(BadInputError, match="does not fit"):
        token_rents(large, names=("RTX 4090",))


def test_hardware_gave_little_in_dollars_and_nothing_to_one_reader():
    full, alone = hardware_readings(LLAMA), hardware_readings(LLAMA, batch=1)
    assert all(0.95 < x < 1.9 for x in full.values()) and max(full.values()) > 1.4
    assert all(0.75 < x < 1.15 for x in alone.values())


def test_a_reading_does_not_hang_on_what_engines_lose():
    """Efficiency divides out of a ratio of two chips, nearly."""
    ideal, real = hardware_readings(LLAMA, efficiency=IDEAL), hardware_readings(LLAMA)
    assert ideal == pytest.approx(real, rel=0.1)


def test_an_offer_is_two_lines_that_fit_a_page():
    offers = token_rents(LLAMA) + token_rents(LLAMA, names=("T4", "L4", "L40S", "RTX 4090"))
    for offer in offers:
        price, hour = repr(offer).splitlines()
        assert len(price) <= 75 and offer.served.hw.name in price and offer.seller in price
        assert len(hour) <= 75 and offer.tier in hour and str(offer.date) in hour and "an hour each" in hour
    assert all(len(repr(offer.served)) <= 75 for offer in offers)


@pytest.mark.parametrize("change", [{"batch": 0}, {"input_len": 900.0}, {"output_len": 0}])
def test_serving_nobody_or_nothing_is_refused(change):
    with pytest.raises(BadInputError, match=f"{next(iter(change))} is .*; allowed: a whole number of 1 or more"):
        serve(model_config("Llama-3.1-8B"), accelerator("H100 SXM5"), **change)
