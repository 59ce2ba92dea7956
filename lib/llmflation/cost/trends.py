"""How fast a price falls: fits with intervals, what other choices would have given, and a first split of a fall.

A fit is a straight line through the logarithm of a price over time; its slope is a factor per year.
"""

import datetime as dt
import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass
from numbers import Real

from .. import facts
from ..errors import BadInputError, MissingFactError
from ..units import quantile, years_between
from .prices import Blend, Offer, as_blend, load_prices
from .series import Series, in_force, record

TURN = dt.date(2025, 1, 1)  # the window of the first two years ends here


@dataclass(frozen=True)
class Trend:
    """A fitted rate: the price is divided by `factor_per_year` each year, `low` to `high` at `level`.

    `low` and `high` are None when other draws of models give no series to fit: no interval can be had then.
    """

    series: Series
    method: str
    factor_per_year: float
    low: float | None
    high: float | None
    level: float
    usd_at_start: float

    @property
    def halving_months(self) -> float | None:
        """Months in which the price halves; None when it does not fall."""
        return 12 * math.log(2) / math.log(self.factor_per_year) if self.factor_per_year > 1 else None

    def usd(self, date: dt.date) -> float:
        """The line's price at a date, USD per million tokens."""
        return self.usd_at_start / self.factor_per_year ** years_between(self.series.points[0].date, date)

    def __repr__(self) -> str:
        s = self.series
        interval = "no interval" if self.low is None else f"{self.level:.0%}: {self.low:.3g} to {self.high:.3g}"
        return (f"{s.kind}, {s.exam} {s.threshold:g}+: {self.factor_per_year:.3g}x a year ({interval}), "
                f"{len(s.points)} points, {self.method}")


def fit_price_trend(series: Series, method: str = "least squares", *, level: float = 0.9, n_boot: int = 400,
                    seed: int = 0) -> Trend:
    """Fit a straight line to log price over time.

    `method` is 'least squares' or 'theil-sen' (the median of all pairwise slopes, which a few odd points cannot
    move). The interval is a percentile bootstrap that draws whole models from the list, with replacement, makes
    the series anew from the models drawn, and fits that: so it measures how much the answer hangs on which models
    happen to be on the list. BadInputError below three points.

    >>> round(fit_price_trend(record(42)).factor_per_year)  # doctest: +SKIP
    13
    """
    slope_of = _METHODS.get(method)
    if slope_of is None:
        raise BadInputError(f"method {method!r} is not known; choose from {', '.join(_METHODS)}.")
    if not isinstance(level, float) or not 0 < level < 1:
        raise BadInputError(f"level {level!r} must lie between 0 and 1, like 0.9.")
    if len(series.points) < 3:
        raise BadInputError(
            f"a trend needs at least 3 points, this window has {len(series.points)} "
            f"({series.kind}, {series.exam} {series.threshold:g}+); widen it or lower the threshold."
        )
    if isinstance(n_boot, bool) or not isinstance(n_boot, int) or n_boot < 1:
        raise BadInputError(f"n_boot is {n_boot!r}; allowed: a whole number of 1 or more, like 400.")
    xy = _log_prices(series.points)
    if xy[0][0] == xy[-1][0]:
        raise BadInputError(f"all {len(xy)} points lie on {series.points[0].date}: a trend needs two dates.")
    slope = slope_of(xy)
    low, high = _interval(series, slope_of, level, n_boot, seed)
    middle = statistics.median if method == "theil-sen" else statistics.fmean
    return Trend(series, method, math.exp(-slope), low, high, level, math.exp(middle(y - slope * x for x, y in xy)))


def least_squares_slope(xy: list[tuple[float, float]]) -> float:
    """The slope of the line with the least squared error."""
    mean_x, mean_y = statistics.fmean(x for x, _ in xy), statistics.fmean(y for _, y in xy)
    return sum((x - mean_x) * (y - mean_y) for x, y in xy) / sum((x - mean_x) ** 2 for x, _ in xy)


def theil_sen_slope(xy: list[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points with different x."""
    return statistics.median((y2 - y1) / (x2 - x1) for i, (x2, y2) in enumerate(xy) for x1, y1 in xy[:i] if x1 != x2)


_METHODS = {"least squares": least_squares_slope, "theil-sen": theil_sen_slope}


def _log_prices(points) -> list[tuple[float, float]]:
    """Years since the first point, and the logarithm of each price."""
    return [(years_between(points[0].date, p.date), math.log(p.usd)) for p in points]


def _interval(series, slope_of, level, n_boot, seed) -> tuple[float | None, float | None]:
    """Percentiles of the yearly factor over lists of models drawn anew; a model drawn twice counts twice.

    A draw whose series is too short to fit is no answer; when more than half are, there is no interval.
    """
    rng, factors = random.Random(seed), []
    for _ in range(n_boot):
        times = Counter(rng.choices(series.models, k=len(series.models)))
        points = series.redraw(times)
        if len(points) >= 3 and points[0].date < points[-1].date:
            xy = zip(_log_prices(points), points, strict=True)
            factors.append(math.exp(-slope_of([pair for pair, p in xy for _ in range(times[p.offer.model])])))
    if len(factors) <= n_boot / 2 or len(series.models) < 3:
        return None, None
    tail = (1 - level) / 2
    return quantile(factors, tail), quantile(factors, 1 - tail)


def factor_per_year(ratio: float, years: float) -> float:
    """The yearly factor of a total fall by `ratio` over `years`.

    >>> round(factor_per_year(1000, 3), 2)
    10.0
    """
    if not all(isinstance(x, Real) and x > 0 for x in (ratio, years)):
        raise BadInputError(f"ratio {ratio!r} and years {years!r} must both be numbers above zero.")
    return ratio ** (1 / years)


def sensitivity(threshold: float, *, since=None, until=None, prices=None, n_boot: int = 400) -> dict[str, Trend]:
    """The same question under other choices: one trend for each, the headline choice first.

    Choices: series, fit, blend, set of offers, window (to the end of 2024, and since), and each model of the
    record left out in turn (of which the two extremes are kept). A window with too few points is absent.
    """
    prices = load_prices() if prices is None else prices
    last = max(p.date for p in prices)

    def trend(make=record, method="least squares", keep=lambda offer: True, finish=lambda series: series,
              since=since, until=until, **choice):
        series = make(threshold, prices=[p for p in prices if keep(p)], **choice)
        return fit_price_trend(finish(series.window(since, until)), method, n_boot=n_boot)

    choices = {
        "headline: record, 3:1, least squares": {},
        "Theil-Sen": {"method": "theil-sen"},
        "record, carried to the last day": {"finish": lambda series: series.carried_to(until or last)},
        "price in force": {"make": in_force},
        "price in force, Theil-Sen": {"make": in_force, "method": "theil-sen"},
        "blend: mean of input and output": {"blend": "mean"},
        "blend: output only": {"blend": "output"},
        "offers: with plans and router minimum": {"offers": "wider"},
        "offers: fully checked rows only": {"keep": lambda offer: offer.checked},
        "window: record to the end of 2024": {"until": TURN},
        "window: in force to the end of 2024": {"make": in_force, "until": TURN},
        "window: in force since 2025": {"make": in_force, "since": TURN},
    }
    trends = {}
    for label, choice in choices.items():
        try:
            trends[label] = trend(**choice)
        except BadInputError:
            continue  # too few points for this choice
    holders = sorted({p.offer.model for p in record(threshold, prices=prices).window(since, until).points})
    without = {f"without {m}": trend(keep=lambda offer, m=m: offer.model != m) for m in holders}
    extremes = sorted(without, key=lambda label: without[label].factor_per_year)
    return trends | {label: without[label] for label in (extremes[0], extremes[-1])}


def published_rates() -> dict[str, tuple[float, float]]:
    """Published yearly falls of the price of a fixed quality, from data/published_trends.csv: (low, high) by author."""
    rates: dict[str, tuple[float, float]] = {}
    for row in facts.read("published_trends"):
        falls = row["quantity"].startswith(("price", "cost")) and "RISE" not in row["quantity"]
        if falls and row["unit"] == "x per year":
            ends = [row[c] for c in ("value", "low", "high") if row[c] is not None]
            ends += rates.get(row["author"], ())
            rates[row["author"]] = min(ends), max(ends)
    return rates


@dataclass(frozen=True)
class Decomposition:
    """A fall between two offers, as factors whose product is the whole: `total == smaller_model * per_parameter`.

    `input`, `output` and the blended `total` are prices before over prices after.
    """

    before: Offer
    after: Offer
    blend: Blend
    input: float
    output: float
    total: float
    smaller_model: float
    per_parameter: float

    @property
    def years(self) -> float:
        return years_between(self.before.date, self.after.date)

    def __repr__(self) -> str:
        return (f"{self.before} to {self.after}\n{self.total:.4g}x in {self.years:.2f} years: "
                f"{self.smaller_model:.3g}x fewer active parameters times {self.per_parameter:.3g}x cheaper each")


def decompose(before: Offer, after: Offer, *, blend="3:1") -> Decomposition:
    """Split the fall of a price into a smaller model and a cheaper parameter.

    A parameter's price is the price of a token over the parameters that a token uses. It falls with hardware,
    software and competition together, so this is the first cut, not the last. MissingFactError when the size
    of either model is not known: a closed model's size is not guessed here.
    """
    blend = as_blend(blend)
    for offer in (before, after):
        if offer.active_params_b is None:
            cell = f" ({offer.where}, column active_params_b)" if offer.where else ""
            raise MissingFactError(f"the size of {offer} is not known{cell}: choose a model whose size is published.")
    if not after.date > before.date:
        raise BadInputError(f"'after' ({after.date}) must be later than 'before' ({before.date}); swap them.")
    total = before.usd(blend) / after.usd(blend)
    size = before.active_params_b / after.active_params_b
    return Decomposition(before, after, blend, before.input / after.input, before.output / after.output, total, size,
                         total / size)


def classify_steps(series: Series) -> dict[str, float]:
    """What moved a record: the product of its steps by cause, each a factor; the causes multiply to `series.fall`.

    A step comes from the same or another model, at the same or another seller: four causes.
    """
    product = {f"{m} model, {s} seller": 1.0 for m in ("same", "other") for s in ("same", "other")}
    for a, b in zip(series.points, series.points[1:], strict=False):
        model = "same" if a.offer.model == b.offer.model else "other"
        seller = "same" if a.offer.seller == b.offer.seller else "other"
        product[f"{model} model, {seller} seller"] *= a.usd / b.usd
    return product
