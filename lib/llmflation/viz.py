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

    def save(self, path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def picture(figure: Figure, alt: str) -> Picture:
    """The figure as SVG, the same bytes each time; `alt` must say something."""
    if len(alt.split()) < 8:
        raise BadInputError(f"alt {alt!r} is too short; say chart, axes, trend and one number.")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "llmflation"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(out.getvalue(), alt)


def _axes(width=7.0, height=4.0, panels=1, **kwargs):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, **kwargs)[0]
    return figure, axes if panels > 1 else axes[0]


def dollars(value: float, _=None) -> str:
    """A price for an axis or a label, cents at least and three digits at most.

    >>> dollars(20.0), dollars(37.5), dollars(0.7), dollars(0.0125)
    ('$20', '$37.50', '$0.70', '$0.0125')
    """
    if value >= 1:
        return f"${value:,.0f}" if value == round(value) else f"${value:,.2f}"
    decimals = max(2, 2 - math.floor(math.log10(value))) if value > 0 else 2
    whole, digits = f"{value:.{decimals}f}".split(".")
    return f"${whole}.{digits.rstrip('0').ljust(2, '0')}"


def _money_axis(ax) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(10))
    ax.yaxis.set_major_formatter(FuncFormatter(dollars))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("price (USD per million tokens)")


def _steps(ax, series: Series, **style) -> None:
    ax.step([p.date for p in series.points], [p.usd for p in series.points], where="post", **style)


# --- chapter 01 and the front page ----------------------------------------------------------------------------

def price_in_force(series: Series, record: Series, names: int = 6) -> Picture:
    """One level of quality over the years: the price in force as a line, records as hollow points, rises in red."""
    figure, ax = _axes()
    _money_axis(ax)
    _steps(ax, series, color=GREEN)
    for before, after in series.rises:
        ax.plot([after.date] * 2, [before.usd, after.usd], color=VERMILLION, linewidth=3.5, solid_capstyle="butt")
    ax.plot([p.date for p in record.points], [p.usd for p in record.points], color=GREEN, **QUOTED)
    labelled = sorted(range(1, len(record.points)), key=lambda i: record.points[i].usd / record.points[i - 1].usd)
    for i in sorted({0, *labelled[:names - 1]}):
        point = record.points[i]
        low = point.usd < 2 * record.points[-1].usd  # beside the axis there is room only below the point
        ax.annotate(f"{point.offer.model} {dollars(point.usd)}", (point.date, point.usd), textcoords="offset points",
                    xytext=(-6, -14) if low else (7, 5), ha="right" if low else "left", fontsize=8.5, color=BLACK)
    last = series.points[-1]
    ax.annotate(f"in force\n{dollars(last.usd)}", (last.date, last.usd), xytext=(6, 0), textcoords="offset points",
                fontsize=9, color=GREEN, va="center")
    if series.rises:
        before, after = max(series.rises, key=lambda pair: pair[1].usd / pair[0].usd)
        ax.annotate("rose", (after.date, math.sqrt(before.usd * after.usd)), xytext=(7, -8),
                    textcoords="offset points", fontsize=9, color=VERMILLION)
    ax.set_xlim(record.points[0].date - dt.timedelta(60), last.date + dt.timedelta(190))
    ax.set_ylim(bottom=record.points[-1].usd / 2)
    ax.xaxis.set_major_locator(YearLocator())
    ax.xaxis.set_major_formatter(DateFormatter("%Y"))
    first = record.points[0]
    return picture(figure, (
        f"Step line of the lowest price in force for a model that scores at least {series.threshold:g} on MMLU, "
        f"log axis in USD per million tokens: from {dollars(first.usd)} in {first.date:%B %Y} to {dollars(last.usd)} "
        f"in {last.date:%B %Y}, in {len(series.changes) - 1} steps, of which {len(series.rises)} go up."))


def price_levels(pairs: list[tuple[Trend, Trend]]) -> Picture:
    """Panels side by side, one per level: record and price in force, each with its fitted line."""
    figure, axes = _axes(9.0, 4.2, panels=len(pairs), sharey=True)
    parts = []
    for ax, (of_record, of_force) in zip(axes, pairs):
        _money_axis(ax)
        level = of_record.series.threshold
        _steps(ax, of_force.series, color=GREY, linewidth=1.2)
        for before, after in of_force.series.rises:
            ax.plot([after.date] * 2, [before.usd, after.usd], color=VERMILLION, linewidth=3, solid_capstyle="butt")
        points = of_record.series.points
        ax.plot([p.date for p in points], [p.usd for p in points], color=GREEN, **QUOTED)
        for trend, color in ((of_record, GREEN), (of_force, GREY)):
            ends = trend.series.points[0].date, trend.series.points[-1].date
            ax.plot(ends, [trend.usd(d) for d in ends], color=color, linewidth=1.6)
        lines = ((f"MMLU {level:g} and more", BLACK), (f"record: {of_record.factor_per_year:.1f}x a year", GREEN),
                 (f"in force: {of_force.factor_per_year:.1f}x a year", "#595959"))
        for row, (text, color) in enumerate(lines):  # the lower left corner is free: prices start high
            ax.text(0.03, 0.17 - 0.07 * row, text, transform=ax.transAxes, color=color)
        ax.set_ylim(bottom=0.0002)  # room for them
        _years(ax)
        ax.label_outer()
        parts.append(f"at {level:g} the record falls {of_record.factor_per_year:.1f} times a year and the price in "
                     f"force {of_force.factor_per_year:.1f} times")
    return picture(figure, f"{len(pairs)} log charts of price in USD per million tokens over time, one per MMLU level, "
                           f"with fitted lines: {'; '.join(parts)}.")


def _years(ax) -> None:
    ax.xaxis.set_major_locator(YearLocator())
    ax.xaxis.set_major_formatter(DateFormatter("%Y"))
    ax.tick_params(axis="x", rotation=45)


def rates(trends: dict[str, Trend], published: dict[str, tuple[float, float]] | None = None) -> Picture:
    """Yearly factors as dots with intervals on a log axis; published ones as hollow markers below ours."""
    published = published or {}
    rows = len(trends) + len(published)
    figure, ax = _axes(7.5, 0.9 + 0.3 * rows)
    for y, trend in enumerate(trends.values()):
        if trend.low is not None:
            ax.plot([trend.low, trend.high], [y, y], color=GREEN, linewidth=1.6)
        ax.plot(trend.factor_per_year, y, color=GREEN, **QUOTED)
    for y, (low, high) in enumerate(published.values(), len(trends)):
        ax.plot([low, high], [y, y], color=GREY, linewidth=1.6)
        ax.plot([low, high], [y, y], color=BLACK, **{**QUOTED, "marker": "s"})
    ax.axvline(10, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(10, -1.05, "the claim: 10x", ha="center", fontsize=9, color="#595959")
    ax.set_xscale("log")
    ax.set_xlim(0.5, 1500)
    ax.set_xticks([1, 10, 100, 1000], ["1x", "10x", "100x", "1,000x"])
    ax.set_xlabel("fall of the price (times per year)")
    ax.set_yticks(range(rows), [*trends, *(f"published: {who}" for who in published)])
    ax.set_ylim(rows - 0.4, -1.4)
    ax.grid(False, axis="y")
    values = [t.factor_per_year for t in trends.values()]
    alt = (f"Dot chart, log axis, of {len(values)} fitted yearly factors for one level under different choices, with "
           f"intervals, from {min(values):.2g} to {max(values):.3g} times a year; a dashed line marks the claim of 10")
    if published:
        lows, highs = zip(*published.values(), strict=True)
        alt += f"; {len(published)} published rates below them reach from {min(lows):.2g} to {max(highs):.3g}"
    return picture(figure, alt + ".")


def rises(pairs, blend="3:1", most: int = 10) -> Picture:
    """Prices that their own seller raised: before and after, joined, on a log axis."""
    pairs = pairs[:most]
    figure, ax = _axes(7.5, 0.9 + 0.33 * len(pairs))
    for y, (before, after) in enumerate(pairs):
        a, b = before.usd(blend), after.usd(blend)
        ax.plot([a, b], [y, y], color=VERMILLION, linewidth=1.6)
        ax.plot(a, y, color=GREEN, **QUOTED)
        ax.plot(b, y, color=VERMILLION, **{**QUOTED, "marker": ">"})
        ax.annotate(f"{b / a:.1f}x", (b, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(dollars))
    ax.set_xlabel("price before and after (USD per million tokens, 3:1 blend)")
    ax.set_yticks(range(len(pairs)), [f"{b.model}, {a.date:%b %y} to {b.date:%b %y}" for a, b in pairs])
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.grid(False, axis="y")
    a, b = pairs[0]
    return picture(figure, (
        f"Arrows on a log axis: {len(pairs)} list prices in USD per million tokens that their own seller raised; "
        f"the steepest, {b.model} at {b.seller}, rose {b.usd(blend) / a.usd(blend):.1f} times "
        f"between {a.date} and {b.date}."))
