"""Timing honestly: warm up, wait for the device, repeat, give median and spread, and compare side by side."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from statistics import median

from llmflation.errors import BadInputError, bad_input
from llmflation.units import duration, quantile

CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class Timing:
    """The median time of one call, in seconds; `spread_s` is the interquartile range of the `n` runs."""

    median_s: float
    spread_s: float
    n: int

    def __repr__(self) -> str:
        middle = f"the middle half spans {duration(self.spread_s)}"
        return f"{duration(self.median_s)} a call (median of {self.n}; {middle})."


@dataclass(frozen=True, repr=False)
class Comparison:
    """How many times as fast the second is as the first: the median of `n` rounds and its 95% interval."""

    ratio: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return (
            f"The second is {self.ratio:.3g} times as fast as the first (95%: {self.low:.3g} to {self.high:.3g})."
        )


def time_fn(
    fn: Callable[[], object],
    *,
    repeat: int = 20,
    warmup: int = 3,
    calls: int = 1,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `fn()`: `warmup` runs that do not count, then `repeat` runs of `calls` calls each.

    `synchronize` waits for a device that works by itself (`torch.cuda.synchronize`); `clock` returns seconds.
    Raise `calls` for a function that is over before the clock ticks.

    >>> ticks = iter([0.0, 2.0, 10.0, 14.0, 20.0, 26.0])
    >>> time_fn(lambda: None, repeat=3, warmup=0, clock=lambda: next(ticks))
    4 s a call (median of 3; the middle half spans 2 s).
    """
    _check(repeat, 1, warmup, calls, fn=fn, clock=clock, synchronize=synchronize)
    _warm_up((fn,), warmup, synchronize)
    times = [_once(fn, calls, synchronize, clock) for _ in range(repeat)]
    return Timing(median(times), quantile(times, 0.75) - quantile(times, 0.25), repeat)


def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    repeat: int = 20,
    warmup: int = 3,
    calls: int = 1,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """How many times as fast `b()` is as `a()`, timed in turns.

    Each round runs a, b, b, a, so that a machine that slowly warms up or slows down favours neither. The
    ratio is the median over rounds; its interval lies between two order statistics of the rounds and covers
    the true median in at least 95% of cases, whatever the distribution. It says nothing about other machines.
    """
    _check(repeat, _fewest_rounds(), warmup, calls, a=a, b=b, clock=clock, synchronize=synchronize)
    _warm_up((a, b), warmup, synchronize)
    ratios = sorted(_round(a, b, calls, synchronize, clock) for _ in range(repeat))
    rank = _interval_rank(repeat)
    return Comparison(median(ratios), ratios[rank], ratios[-1 - rank], repeat)


def _round(a, b, calls, synchronize, clock) -> float:
    first, second, third, fourth = (_once(fn, calls, synchronize, clock) for fn in (a, b, b, a))
    if first + fourth <= 0 or second + third <= 0:
        raise BadInputError(
            f"{calls} call{'s' * (calls != 1)} took no time on this clock; allowed: runs that last "
            f"longer than its tick. Pass calls={calls * 1000} or so."
        )
    return (first + fourth) / (second + third)


def _once(fn, calls, synchronize, clock) -> float:
    if synchronize:
        synchronize()
    start = clock()
    for _ in range(calls):
        fn()
    if synchronize:
        synchronize()
    return (clock() - start) / calls


def _warm_up(fns, warmup, synchronize) -> None:
    for _ in range(warmup):
        for fn in fns:
            fn()
    if synchronize:
        synchronize()


def _interval_rank(n: int) -> int:
    """How many of n sorted values to cut at each end so that the rest covers the median; -1: n is too small.

    The number of values below the true median is binomial (n, 1/2).
    """
    rank, tail = -1, 0.0
    while True:
        tail += comb(n, rank + 1) / 2**n
        if 1 - 2 * tail < CONFIDENCE:
            return rank
        rank += 1


def _fewest_rounds() -> int:
    return next(n for n in range(1, 100) if _interval_rank(n) >= 0)


def _check(repeat, fewest, warmup, calls, **callables) -> None:
    for name, value, least in (("repeat", repeat, fewest), ("warmup", warmup, 0), ("calls", calls, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            why = "Fewer rounds cannot give a 95% interval." if name == "repeat" and least > 1 else ""
            raise bad_input(name, value, f"a whole number of {least} or more", why)
    for name, value in callables.items():
        if not callable(value) and not (name == "synchronize" and value is None):
            raise bad_input(
                name,
                value,
                "a function that takes no argument",
                "Pass the function itself, without calling it: time_fn(step), or time_fn(lambda: step(x)).",
            )
