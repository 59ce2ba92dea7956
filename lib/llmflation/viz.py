"""The figures of the course. Each function returns a `Picture`: an SVG with its text alternative.

Colours and marks mean the same everywhere (pages/notation.md): green is money; a filled black dot is measured,
a hollow marker is quoted, a line is modelled, a dashed line is an assumption.
"""

import datetime as dt
import io
import math
from dataclasses import dataclass

import matplotlib.style
from matplotlib.dates import DateFormatter, YearLocator
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .cost.series import Series
from .cost.trends import Trend
from .errors import BadInputError
from .units import usd

matplotlib.style.use("llmflation.book")  # the course's style; every figure here is made under it

BLUE, VERMILLION, GREEN, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#00805E", "#AA5A8A", "#000000", "#767676"
QUOTED = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.6, "markersize": 6}


@dataclass(frozen=True)
class Picture:
    """A finished figure: `svg` and what it shows in words, `alt`. A notebook displays it as it is."""

    svg: str
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/svg+xml": self.svg, "text/plain": self.alt}, {"llmflation": {"alt": self.alt}}


def picture(figure: Figure, alt: str) -> Picture:
    """The figure as SVG, the same bytes each time; `alt` must say something."""
    if len(alt.split()) < 8:
        raise BadInputError(f"alt {alt!r} is too short; say chart, axes, trend and one number.")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "llmflation"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(out.getvalue(), alt)


def _axes(height, rows=1, **kwargs):
    """A figure of one column, narrow enough to stand whole on a phone, where a point is a pixel."""
    figure = Figure(figsize=(4.2, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, **kwargs)[:, 0]
    return figure, axes if rows > 1 else axes[0]


def _money_axis(ax) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(10))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda price, _: usd(price)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("price (USD per million tokens)")


def _steps(ax, series: Series, **style) -> None:
    ax.step([p.date for p in series.points], [p.usd for p in series.points], where="post", **style)


# --- chapter 01 and the front page ----------------------------------------------------------------------------

def price_in_force(series: Series, record: Series, names: int = 6) -> Picture:
    """One level of quality over the years: the price in force as a line, records as hollow points, rises in red."""
    figure, ax = _axes(3.7)
    _money_axis(ax)
    _steps(ax, series, color=GREEN)
    _mark_rises(ax, series)
    ax.plot([p.date for p in record.points], [p.usd for p in record.points], color=GREEN, **QUOTED)
    labelled = sorted(range(1, len(record.points)), key=lambda i: record.points[i].usd / record.points[i - 1].usd)
    for i in sorted({0, *labelled[:names - 1]}):
        point = record.points[i]
        low = point.usd < 2 * record.points[-1].usd  # beside the axis there is room only below the point
        ax.annotate(f"{point.offer.model} {usd(point.usd)}", (point.date, point.usd), textcoords="offset points",
                    xytext=(-6, -14) if low else (7, 5), ha="right" if low else "left", fontsize=8.5, color=BLACK)
    last = series.points[-1]
    ax.annotate(f"in force\n{usd(last.usd)}", (last.date, last.usd), xytext=(0, 6), textcoords="offset points",
                fontsize=9, color=GREEN, ha="right")
    if series.rises:
        before, after = max(series.rises, key=lambda pair: pair[1].usd / pair[0].usd)
        ax.annotate("rose", (after.date, math.sqrt(before.usd * after.usd)), xytext=(7, -8),
                    textcoords="offset points", fontsize=9, color=VERMILLION)
    ax.set_xlim(record.points[0].date - dt.timedelta(60), last.date + dt.timedelta(40))
    ax.set_ylim(bottom=record.points[-1].usd / 2)
    ax.xaxis.set_major_locator(YearLocator())
    ax.xaxis.set_major_formatter(DateFormatter("%Y"))
    first = record.points[0]
    return picture(figure, (
        f"Step line of the lowest price in force for a model that scores at least {series.threshold:g} on MMLU, "
        f"log axis in USD per million tokens: from {usd(first.usd)} in {first.date:%B %Y} to {usd(last.usd)} "
        f"in {last.date:%B %Y}, in {len(series.changes) - 1} steps; steps that go up: {len(series.rises)}."))


def price_levels(levels: list[tuple[Series, Series, Trend, Trend]]) -> Picture:
    """One panel per level: records, the price in force, and the fits of the latter before and after a turn."""
    figure, axes = _axes(1.5 + 1.9 * len(levels), rows=len(levels), sharex=True, sharey=True)
    parts = []
    for ax, (records, force, early, late) in zip(axes, levels, strict=True):
        _money_axis(ax)
        _steps(ax, force, color=GREY, linewidth=1.2)
        _mark_rises(ax, force)
        ax.plot([p.date for p in records.points], [p.usd for p in records.points], color=GREEN, **QUOTED)
        for trend, side, offset in ((early, "right", (-8, -6)), (late, "center", (0, 8))):
            first, last = trend.series.points[0].date, trend.series.points[-1].date
            ax.plot([first, last], [trend.usd(first), trend.usd(last)], color=BLACK, linewidth=1.4)
            middle = first + (last - first) / 2
            ax.annotate(f"{trend.factor_per_year:.2g}x a year", (middle, trend.usd(middle)), fontsize=9,
                        textcoords="offset points", xytext=offset, ha=side)
        ax.text(0.98, 0.9, f"{force.exam} {force.threshold:g} and more", transform=ax.transAxes, ha="right", va="top")
        rates = f"{early.factor_per_year:.0f} times a year, then {late.factor_per_year:.1f}"
        parts.append(f"at {force.threshold:g} {rates}")
    axes[-1].xaxis.set_major_locator(YearLocator())
    axes[-1].xaxis.set_major_formatter(DateFormatter("%Y"))
    for ax in axes:
        ax.label_outer()
        ax.set_ylabel("")
    figure.supylabel("price (USD per million tokens)", fontsize=10)
    turn = f"{late.series.points[0].date:%B %Y}"
    return picture(figure, f"{len(levels)} log charts, one per level, of the price in force in USD per million tokens "
                           f"with lines fitted before and after {turn}: {'; '.join(parts)}.")


def _mark_rises(ax, series: Series) -> None:
    for before, after in series.rises:
        ax.plot([after.date] * 2, [before.usd, after.usd], color=VERMILLION, linewidth=3.5, solid_capstyle="butt")


def _rows(height: float, labels: list[str]):
    """An axis with a row for each label, the label above its row so that the chart needs no margin for it."""
    figure, ax = _axes(0.8 + height * len(labels))
    for y, label in enumerate(labels):
        ax.annotate(label, (0, y), xycoords=("axes fraction", "data"), xytext=(0, 5), textcoords="offset points",
                    fontsize=8.5, va="bottom")
    ax.set_xscale("log")
    ax.set_yticks([])
    ax.set_ylim(len(labels) - 0.5, -0.9)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    return figure, ax


def rates(trends: dict[str, Trend], published: dict[str, tuple[float, float]] | None = None) -> Picture:
    """Yearly factors as dots with intervals on a log axis; published ones as hollow squares below ours."""
    published = published or {}
    figure, ax = _rows(0.36, [*trends, *(f"published: {who}" for who in published)])
    ax.axvline(10, color=GREY, linewidth=1, zorder=0)
    for y, trend in enumerate(trends.values()):
        if trend.low is not None:
            ax.plot([trend.low, trend.high], [y, y], color=GREEN, linewidth=1.6)
        ax.plot(trend.factor_per_year, y, color=GREEN, **QUOTED)
    for y, (low, high) in enumerate(published.values(), len(trends)):
        ax.plot([low, high], [y, y], color=GREY, linewidth=1.6)
        ax.plot([low, high], [y, y], color=BLACK, **{**QUOTED, "marker": "s"})
    ax.set_xlim(0.4, 1500)
    ax.set_xticks([1, 10, 100, 1000], ["1x", "10x", "100x", "1,000x"])
    ax.set_xlabel("fall of the price (times per year)")
    values = [t.factor_per_year for t in trends.values()]
    alt = (f"Dot chart, log axis, of {len(values)} fitted yearly factors for one level under different choices, with "
           f"intervals, from {min(values):.2g} to {max(values):.3g} times a year; a line marks 10")
    if published:
        lows, highs = zip(*published.values(), strict=True)
        alt += f"; {len(published)} published rates below them reach from {min(lows):.2g} to {max(highs):.3g}"
    return picture(figure, alt + ".")


def rises(pairs, blend="3:1", most: int = 10) -> Picture:
    """The steepest of the prices that their own seller raised: before and after, joined, on a log axis."""
    shown = pairs[:most]
    figure, ax = _rows(0.36, [f"{b.model}, {a.date:%b %Y} to {b.date:%b %Y}" for a, b in shown])
    for y, (before, after) in enumerate(shown):
        a, b = before.usd(blend), after.usd(blend)
        ax.plot([a, b], [y, y], color=VERMILLION, linewidth=1.6)
        ax.plot(a, y, color=GREEN, **QUOTED)
        ax.plot(b, y, color=VERMILLION, **{**QUOTED, "marker": ">"})
        ax.annotate(f"{b / a:.1f}x", (b, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    highest = max(after.usd(blend) for _, after in shown)
    ax.set_xlim(right=highest * 3)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda price, _: usd(price)))
    ax.set_xlabel("price before and after (USD per million tokens)")
    a, b = shown[0]
    return picture(figure, (
        f"Arrows on a log axis: the {len(shown)} steepest of {len(pairs)} list prices in USD per million tokens that "
        f"their own seller raised; {b.model} at {b.seller} rose {b.usd(blend) / a.usd(blend):.1f} times between "
        f"{a.date} and {b.date}."))
