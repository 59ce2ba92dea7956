"""The price of a level of quality over time: the record and the price in force.

The **record** at a level is the running minimum: the least that was ever asked for a model that reaches it.
It can only fall. The price **in force** is the least that is asked at each month's start, so it can also rise.
"""

import datetime as dt
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from ..errors import BadInputError
from ..units import add_months, as_date
from .prices import Blend, Offer, as_blend, load_prices

OFFER_SETS = ("own lists", "wider")


@dataclass(frozen=True)
class Point:
    """A price (USD per million tokens, blended) that a series holds at a date, and the offer behind it."""

    date: dt.date
    usd: float
    offer: Offer


@dataclass(frozen=True)
class Series:
    """The prices at one level of quality: `kind` is 'record' or 'in force', `models` are all that reach the level.

    `redraw(models)` gives the points that a list with only these models would have given.
    """

    kind: str
    exam: str
    threshold: float
    blend: Blend
    points: tuple[Point, ...]
    models: tuple[str, ...] = field(repr=False)
    redraw: Callable[[Collection[str]], tuple[Point, ...]] = field(repr=False, compare=False)

    @property
    def changes(self) -> tuple[Point, ...]:
        """The points at which the price changed, the first included."""
        return tuple(p for i, p in enumerate(self.points) if i == 0 or p.usd != self.points[i - 1].usd)

    @property
    def rises(self) -> tuple[tuple[Point, Point], ...]:
        """Each pair of neighbouring points between which the price went up."""
        return tuple((a, b) for a, b in zip(self.points, self.points[1:], strict=False) if b.usd > a.usd)

    @property
    def fall(self) -> float:
        """How many times the last price goes into the first."""
        return self.points[0].usd / self.points[-1].usd

    def window(self, since=None, until=None) -> "Series":
        """The points from `since` to `until` (dates, or text like '2025-01-01'), both included."""
        since, until = since and as_date(since), until and as_date(until)

        def cut(points):
            return tuple(p for p in points if (not since or p.date >= since) and (not until or p.date <= until))

        return replace(self, points=cut(self.points), redraw=lambda models: cut(self.redraw(models)))

    def carried_to(self, date) -> "Series":
        """The same with one more point, the last price at `date`: so that a standstill counts in a fit."""
        date = as_date(date)

        def carry(points):
            return (*points, replace(points[-1], date=date)) if points and points[-1].date < date else points

        return replace(self, points=carry(self.points), redraw=lambda models: carry(self.redraw(models)))

    def table(self) -> str:
        """The changes, a line each: date, price, offer; a question mark where the row was only partly checked."""
        lines = (f"{p.date}  {'$' + format(p.usd, '.4g'):<9} {p.offer}{'' if p.offer.checked else ' ?'}"
                 for p in self.changes)
        return "\n".join(lines)

    def __repr__(self) -> str:
        head = f"{self.kind}, {self.exam} {self.threshold:g}+, {self.blend}: {len(self.points)} points"
        if not self.points:
            return head
        a, b = self.points[0], self.points[-1]
        return f"{head}, ${a.usd:.4g} on {a.date} ({a.offer}) to ${b.usd:.4g} on {b.date} ({b.offer})"


def eligible(threshold: float, *, offers: str = "own lists", prices=None) -> list[Offer]:
    """The offers of models whose score reaches `threshold`, oldest first; the exam is that of `prices`.

    `offers='own lists'` keeps to metered prices from a seller's own list; 'wider' adds monthly plans and the
    router's minimum over many hosts. A model without a known score reaches no threshold.
    """
    if offers not in OFFER_SETS:
        raise BadInputError(f"offers {offers!r} is no set of offers; choose from {', '.join(OFFER_SETS)}.")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold):
        raise BadInputError(f"threshold {threshold!r} is not a score; write an MMLU score like 64.8.")
    prices = load_prices() if prices is None else prices
    scored = [p for p in prices if p.score is not None and not p.withdrawn]
    if not scored:
        raise BadInputError("none of these offers has a score; load_prices() has some with one.")
    kept = [p for p in scored if p.score >= threshold and (offers == "wider" or p.on_own_list)]
    if not kept:
        best = max(p.score for p in scored)
        raise BadInputError(f"no model reaches {scored[0].exam} {threshold:g}; the highest score here is {best}.")
    return sorted(kept, key=attrgetter("date"))


def record(threshold: float, *, blend="3:1", offers: str = "own lists", prices=None) -> Series:
    """The running minimum: each offer that was cheaper than everything before it at this level."""
    blend = as_blend(blend)
    candidates = eligible(threshold, offers=offers, prices=prices)
    in_turn = sorted(((o.date, o.usd(blend), o) for o in candidates), key=lambda quote: quote[:2])

    def points(models: Collection[str]) -> tuple[Point, ...]:
        lowest: list[Point] = []
        for date, usd, offer in in_turn:
            if offer.model in models and (not lowest or usd < lowest[-1].usd):
                lowest.append(Point(date, usd, offer))
        return tuple(lowest)

    return _series("record", threshold, blend, candidates, points)


def in_force(threshold: float, *, blend="3:1", offers: str = "own lists", until=None, prices=None) -> Series:
    """The least price asked at the start of each month (and on the last day) for a model of this level.

    An offer holds until the same seller's next one for that model or its withdrawal, at most 12 months. Months
    without an offer in force have no point. `until` is the last day, that of the newest offer if left out.
    """
    blend = as_blend(blend)
    prices = load_prices() if prices is None else prices
    candidates = eligible(threshold, offers=offers, prices=prices)
    until = as_date(until) if until else max(p.date for p in prices)
    if until < candidates[0].date:
        raise BadInputError(f"until {until} lies before the first offer at this level, {candidates[0].date}.")
    spans = _spans([*candidates, *(p for p in prices if p.withdrawn)])
    spans.sort(key=lambda span: span[0].usd(blend))
    live = [(day, [o for o, end in spans if o.date <= day < end]) for day in _month_starts(candidates[0].date, until)]

    def points(models: Collection[str]) -> tuple[Point, ...]:
        least = ((day, next((o for o in cheapest_first if o.model in models), None)) for day, cheapest_first in live)
        return tuple(Point(day, offer.usd(blend), offer) for day, offer in least if offer)

    return _series("in force", threshold, blend, candidates, points)


def _series(kind, threshold, blend, candidates, points) -> Series:
    models = tuple(dict.fromkeys(o.model for o in candidates))
    return Series(kind, candidates[0].exam, threshold, blend, points(set(models)), models, points)


def _spans(offers: Iterable[Offer]) -> list[tuple[Offer, dt.date]]:
    """Each offer with the day from which it is no longer in force: its replacement's, or a year on."""
    spans, replaced_on = [], {}
    for offer in sorted(offers, key=attrgetter("date"), reverse=True):
        key = offer.model, offer.seller
        spans.append((offer, min(replaced_on.get(key, dt.date.max), add_months(offer.date, 12))))
        replaced_on[key] = offer.date
    return [(offer, end) for offer, end in spans if not offer.withdrawn]


def _month_starts(first: dt.date, last: dt.date) -> list[dt.date]:
    """`first`, the first of every month after it, and `last`."""
    days, year, month = [first], first.year, first.month
    while True:
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        if (day := dt.date(year, month, 1)) >= last:
            return days + [last] * (last > first)
        days.append(day)


def price_rises(*, blend="3:1", prices=None) -> list[tuple[Offer, Offer]]:
    """Each offer on a seller's own list that it replaced by a dearer one for the same model, steepest rise first."""
    blend = as_blend(blend)
    last: dict[tuple[str, str], Offer] = {}
    rises = []
    for offer in load_prices() if prices is None else prices:
        before = last.get((offer.model, offer.seller))
        if before and not offer.withdrawn and before.on_own_list and offer.usd(blend) > before.usd(blend) * (1 + 1e-9):
            rises.append((before, offer))
        last[offer.model, offer.seller] = offer
    return sorted(rises, key=lambda pair: pair[0].usd(blend) / pair[1].usd(blend))
