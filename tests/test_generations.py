"""Laws of the generations of chips: parts that multiply to the whole, and fits that find a known rate."""

import doctest
import math
from dataclasses import replace
from datetime import date

import pytest

from llmflation.cost import generations as module
from llmflation.cost.generations import LINE, MEASURES, Generation, generations, growth, moore, split_peak
from llmflation.errors import BadInputError, MissingFactError, UnknownNameError
from llmflation.hardware import accelerator

BY = {g.name: g for g in generations()}


def test_worked_lines():
    assert doctest.testmod(module, raise_on_error=True).attempted >= 4


def test_generations_stand_in_order_and_say_what_they_lack():
    line = generations()
    assert [g.chip.name for g in line] == list(LINE)
    assert [g.date for g in line] == sorted(g.date for g in line)
    assert BY["K80"].rate(16) is None and BY["H100"].rate(4) is None and BY["B300"].rate(4) == BY["B300"].best_rate
    assert repr(BY["B200"]).endswith("-") and repr(BY["K80"]).count(" -") == 3
    with pytest.raises(MissingFactError, match="no purchase price is known for B200"):
        BY["B200"].require("purchase price")


def chip(year, rate, transistors=None, **peaks):
    """A made-up generation: its name, launch and bandwidth do not matter."""
    made = replace(accelerator("K80"), name=f"X{year}", launch_date=date(year, 1, 1), mem_bytes_per_s=rate,
                   peak_flops={"fp32": rate, **peaks})
    return Generation(made, 10.0, transistors)


@pytest.mark.parametrize("factor", [0.8, 1.3, 2.0])
def test_growth_finds_a_rate_without_scatter_exactly(factor):
    found = growth(tuple(chip(2000 + n, factor**n) for n in (0, 2, 5, 7, 11)), "memory bandwidth")
    assert found.factor_per_year == pytest.approx(factor, rel=1e-3)
    assert found.high / found.low < 1.002 and found.n == 5
    assert found.doubling_years == pytest.approx(math.log(2) / math.log(factor), rel=1e-2)


def test_scatter_widens_the_interval_and_its_middle_is_the_rate():
    calm, wild = (growth(tuple(chip(2000 + n, 1.3**n * (1 + s * (-1) ** n)) for n in range(8)), "memory bandwidth")
                  for s in (0.02, 0.3))
    assert wild.high / wild.low > calm.high / calm.low > 1
    for found in (calm, wild):
        assert found.factor_per_year == pytest.approx(math.sqrt(found.low * found.high))


def test_the_interval_is_that_of_a_regression():
    """Of 2, 3, 5, 9 in four years: by hand, the slope of the logarithms is 0.5023, its standard error 0.0289."""
    found = growth(tuple(chip(year, v) for year, v in ((2001, 2), (2002, 3), (2003, 5), (2004, 9))), "memory bandwidth")
    assert math.log(found.factor_per_year) == pytest.approx(0.5023, rel=0.003)
    assert math.log(found.high / found.low) / 2 == pytest.approx(2.920 * 0.0289, rel=0.01)


def test_growth_refuses_what_is_no_trend():
    with pytest.raises(BadInputError, match="is known of 3 of these 3 chips"):
        growth(generations(LINE[:3]), "transistors")
    with pytest.raises(BadInputError, match="one day"):
        growth((chip(2000, 1.0),) * 4, "memory bandwidth")
    with pytest.raises(UnknownNameError, match="transistors"):
        growth(generations(), "transistor")


def test_moore_doubles_in_two_years():
    assert moore(0) == 1 and moore(2) == 2 and moore(10) == 32


@pytest.mark.parametrize("old, new", [("K80", "H100"), ("K80", "B300"), ("A100", "H100"), ("H100", "B200")])
def test_the_parts_of_a_peak_multiply_to_the_whole(old, new):
    split = split_peak(BY[old], BY[new])
    product = split.transistors * split.per_transistor * split.tensor_cores * split.fewer_bits
    assert product == pytest.approx(split.total) == BY[new].best_rate / BY[old].best_rate


def test_a_chip_without_narrow_formats_has_no_tensor_cores():
    plain = split_peak(chip(2000, 1e12, 1e9), chip(2010, 8e12, 4e9))
    assert (plain.transistors, plain.per_transistor, plain.tensor_cores, plain.fewer_bits) == (4, 2, 1, 1)
    with pytest.raises(MissingFactError, match="tf32"):
        split_peak(BY["K80"], BY["V100"])  # its row has no rate for matrices stored in 32 bits
    with pytest.raises(MissingFactError, match="transistors"):
        split_peak(chip(2000, 1e12), BY["H100"])


def test_every_measure_is_known_of_some_chip():
    assert all(any(measure(g) for g in generations()) for measure in MEASURES.values())
