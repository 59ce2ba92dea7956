"""Laws of timing, on a clock of our own: nothing here depends on how fast the machine is."""

import doctest
import itertools
from math import comb
from statistics import median, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import timing
from llmflation.errors import BadInputError
from llmflation.timing import compare, time_fn


class Machine:
    """A clock that stands still except while one of its functions runs."""

    def __init__(self):
        self.now_s, self.log = 100.0, []

    def clock(self):
        return self.now_s

    def takes(self, name, *durations_s):
        lasting = itertools.cycle(durations_s)

        def fn():
            self.log.append(name)
            self.now_s += next(lasting)

        return fn


@pytest.fixture
def machine():
    return Machine()


def test_worked_lines():
    assert doctest.testmod(timing, raise_on_error=True).attempted >= 2


@given(st.lists(st.floats(1e-6, 10), min_size=2, max_size=30))
def test_median_and_interquartile_range(durations):
    machine = Machine()
    machine.now_s = 0.0
    found = time_fn(machine.takes("f", *durations), repeat=len(durations), warmup=0, clock=machine.clock)
    low, _, high = quantiles(durations, n=4, method="inclusive")
    assert found.median_s == pytest.approx(median(durations), abs=1e-9)
    assert found.spread_s == pytest.approx(high - low, abs=1e-9)
    assert found.n == len(durations)


def test_warm_up_runs_do_not_count(machine):
    found = time_fn(machine.takes("f", 50, 50, 1, 1, 1), repeat=3, warmup=2, clock=machine.clock)
    assert (found.median_s, found.spread_s, len(machine.log)) == (1, 0, 5)


def test_one_run_has_no_spread(machine):
    assert time_fn(machine.takes("f", 2), repeat=1, clock=machine.clock).spread_s == 0


def test_calls_are_averaged(machine):
    found = time_fn(machine.takes("f", 1, 3), repeat=4, warmup=0, calls=2, clock=machine.clock)
    assert (found.median_s, len(machine.log)) == (2, 8)


def test_a_device_is_waited_for_inside_the_timed_span(machine):
    # Work that is only queued by the call, and done when somebody waits for it.
    queued = []

    def wait():
        machine.now_s += 5 * len(queued)
        queued.clear()

    found = time_fn(lambda: queued.append(1), repeat=3, warmup=4, synchronize=wait, clock=machine.clock)
    assert (found.median_s, found.spread_s) == (5, 0)


def test_rounds_go_a_b_b_a(machine):
    compare(machine.takes("a", 2), machine.takes("b", 1), repeat=6, warmup=1, clock=machine.clock)
    assert "".join(machine.log) == "ab" + 6 * "abba"


def test_the_ratio_is_how_many_times_as_fast_the_second_is(machine):
    found = compare(machine.takes("a", 3), machine.takes("b", 1), repeat=6, clock=machine.clock)
    assert (found.ratio, found.low, found.high, found.n) == (3, 3, 3, 6)
    assert repr(found) == "The second is 3 times as fast as the first (95%: 3 to 3)."


@given(st.floats(-0.01, 0.05))
def test_a_steady_drift_favours_neither(drift):
    # The machine slows down by the same amount after each call: a b b a cancels it.
    machine, slow = Machine(), itertools.count()

    def takes(base):
        def fn():
            machine.now_s += base + drift * next(slow)

        return fn

    found = compare(takes(10), takes(10), repeat=8, warmup=0, clock=machine.clock)
    assert found.ratio == pytest.approx(1, abs=1e-6)
    assert found.low <= found.ratio <= found.high


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=40), st.floats(0.1, 10))
def test_the_interval_holds_the_ratio_and_lies_within_the_rounds(times, other):
    machine = Machine()
    a = machine.takes("a", *(t for t in times for _ in range(2)))
    found = compare(a, machine.takes("b", other), repeat=len(times), warmup=0, clock=machine.clock)
    rounds = [t / other for t in times]
    assert min(rounds) - 1e-6 <= found.low <= found.ratio <= found.high <= max(rounds) + 1e-6
    assert found.ratio == pytest.approx(median(rounds))


def test_the_interval_of_twenty_rounds_runs_from_the_6th_to_the_15th(machine):
    a = machine.takes("a", *(t for t in range(1, 21) for _ in range(2)))
    found = compare(a, machine.takes("b", 1), repeat=20, warmup=0, clock=machine.clock)
    assert (found.low, found.ratio, found.high) == (6, 10.5, 15)


@pytest.mark.parametrize("n", range(6, 60))
def test_the_interval_covers_95_percent_and_no_narrower_one_does(n):
    rank = timing._interval_rank(n)

    def coverage(cut):
        return 1 - 2 * sum(comb(n, i) for i in range(cut + 1)) / 2**n

    assert coverage(rank) >= 0.95 > coverage(rank + 1)


BAD = {
    "repeat-0": {"repeat": 0},
    "repeat-negative": {"repeat": -3},
    "repeat-half": {"repeat": 2.5},
    "repeat-true": {"repeat": True},
    "warmup-negative": {"warmup": -1},
    "calls-0": {"calls": 0},
    "clock-no-function": {"clock": 3.0},
    "synchronize-no-function": {"synchronize": "cuda"},
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
@pytest.mark.parametrize("time", [time_fn, lambda f, **kw: compare(f, f, **kw)], ids=["time_fn", "compare"])
def test_bad_arguments_are_named(time, arguments):
    (name,) = arguments
    with pytest.raises(BadInputError, match=f"{name} is .*; allowed: "):
        time(lambda: None, **arguments)


@pytest.mark.parametrize("bad", [None, 3, "f", [print]])
def test_what_cannot_be_called_is_refused_before_anything_runs(bad):
    with pytest.raises(BadInputError, match="Pass the function itself"):
        time_fn(bad)
    with pytest.raises(BadInputError, match="b is"):
        compare(lambda: pytest.fail("ran"), bad)


def test_too_few_rounds_for_an_interval_are_refused():
    with pytest.raises(BadInputError, match="6 or more"):
        compare(lambda: None, lambda: None, repeat=5)


def test_a_clock_too_coarse_is_named():
    with pytest.raises(BadInputError, match="calls=1000"):
        compare(lambda: None, lambda: None, clock=lambda: 7.0)


def test_an_error_of_the_function_comes_through():
    with pytest.raises(ZeroDivisionError):
        time_fn(lambda: 1 / 0)
