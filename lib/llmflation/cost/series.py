"""The price of a level of quality over time: the record and the price in force.

The **record** at a level is the running minimum: the least that was ever asked for a model that reaches it.
It can only fall. The price **in force** is the least that is asked at each month's start, so it can also rise.
"""

import datetime as dt
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from ..errors import BadInputError
from ..units import add_months
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
    """The prices at one level of quality: `kind` is 'record' or 'in force'."""

    kind: str
    threshold: float
    blend: Blend
    points: tuple[Point, ...]

    @property
    def changes(self) -> tuple[Point, ...]:
        """The points at which the price changed, the first included."""
        return tuple(p for i, p in enumerate(self.points) if i == 0 or p.usd != self.points[i - 1].usd)

    @property
    def rises(self) -> tuple[tuple[Point, Point], ...]:
        """Each pair of neighbouring points between which the price went up."""
        return tuple((a, b) for a, b in zip(self.points, self.points[1:]) if b.usd > a.usd)

    @property
    def fall(self) -> float:
        """How many times the last price goes into the first."""
        return self.points[0].usd / self.points[-1].usd

    def window(self, since: dt.date | None = None, until: dt.date | None = None) -> "Series":
        """The points from `since` to `until`, both included."""
        kept = [p for p in self.points if (not since or p.date >= since) and (not until or p.date <= until)]
        return replace(self, points=tuple(kept))

    def table(self) -> str:
        """The changes, a line each: date, price, offer."""
        return "\n".join(f"{p.date}  {'$' + format(p.usd, '.4g'):<9} {p.offer}" for p in self.changes)

    def __repr__(self) -> str:
        head = f"{self.kind} price at MMLU >= {self.threshold:g} ({self.blend}): {len(self.points)} points"
        if not self.points:
            return head
        a, b = self.points[0], self.points[-1]
        return f"{head}, ${a.usd:.4g} on {a.date} ({a.offer}) to ${b.usd:.4g} on {b.date} ({b.offer})"


def eligible(threshold: float, *, offers: str = "own lists", prices=None) -> list[Offer]:
    """The offers of models whose MMLU reaches `threshold`, oldest first.

    `offers='own lists'` keeps to metered prices from a seller's own list; 'wider' adds monthly plans and the
    router's minimum over many hosts. A model without a known score reaches no threshold.
    """
    if offers not in OFFER_SETS:
        raise BadInputError(f"offers {offers!r} is no set of offers; choose from {', '.join(OFFER_SETS)}.")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold):
        raise BadInputError(f"threshold {threshold!r} is not a score; write an MMLU score like 64.8.")
    prices = load_prices() if prices is None else prices
    scored = [p for p in prices if p.score is not None and not p.withdrawn]
    kept = [p for p in scored if p.score >= threshold and (offers == "wider" or p.on_own_list)]
    if not kept:
        best = max((p.score for p in scored), default=None)
        raise BadInputError(f"no model reaches MMLU {threshold:g}; the highest score in the data is {best}.")
    return sorted(kept, key=attrgetter("date"))


def record(threshold: float, *, blend="3:1", offers: str = "own lists", prices=None) -> Series:
    """The running minimum: each offer that was cheaper than everything before it at this level."""
    blend, points = as_blend(blend), []
    candidates = eligible(threshold, offers=offers, prices=prices)
    for offer in sorted(candidates, key=lambda o: (o.date, o.usd(blend))):
        if not points or offer.usd(blend) < points[-1].usd:
            points.append(Point(offer.date, offer.usd(blend), offer))
    return Series("record", threshold, blend, tuple(points))


def in_force(threshold: float, *, blend="3:1", offers: str = "own lists", until: dt.date | None = None,
             prices=None) -> Series:
    """The least price asked at the start of each month (and on the last day) for a model of this level.

    An offer holds until the same seller's next one for that model or its withdrawal, at most 12 months. Months
    without an offer in force have no point.
    """
    blend = as_blend(blend)
    prices = load_prices() if prices is None else prices
    candidates = eligible(threshold, offers=offers, prices=prices)
    until = until or max(p.date for p in prices)
    spans = _spans([*candidates, *(p for p in prices if p.withdrawn)])
    points = []
    for day in _month_starts(candidates[0].date, until):
        live = [o for o, end in spans if o.date <= day < end]
        if live:
            least = min(live, key=lambda o: o.usd(blend))
            points.append(Point(day, least.usd(blend), least))
    return Series("in force", threshold, blend, tuple(points))


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
