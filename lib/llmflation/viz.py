"""The figures of the course. Each function returns a `Picture`: an SVG with its text alternative.

Colours and marks mean the same everywhere (pages/notation.md): green is money; a filled black dot is measured,
a hollow marker is quoted, a line is modelled, a dashed line is an assumption.
"""

from __future__ import annotations

import datetime as dt
import io
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.style
from matplotlib.dates import DateFormatter, YearLocator
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .cost.economics import usd_per_million_tokens
from .cost.generations import moore
from .cost.ledger import Ledger
from .cost.series import Series
from .cost.trends import Trend
from .errors import BadInputError
from .units import duration, in_words, percent, usd, years_between

if TYPE_CHECKING:  # these bring PyTorch along, which the first chapters do without
    from collections.abc import Callable, Sequence

    from .cost.counts import ParamCount, Work
    from .cost.generations import Generation, Growth
    from .cost.published import Case
    from .cost.rents import Rent, TokenRent
    from .cost.serving import Throughput
    from .evaluate import Scores
    from .format_scores import FormatScores
    from .hardware import Accelerator
    from .probe import StepParts

matplotlib.style.use("llmflation.book")  # the course's style; every figure here is made under it

BLUE, VERMILLION, GREEN, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#00805E", "#AA5A8A", "#000000", "#767676"
QUOTED = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.6, "markersize": 6}
WORDS = 10  # points, of words among the lines: on a phone a point is a pixel
LOSSES = {("toy", "standard"): "toy\n(points)", ("toy", "hard"): "toy, hard\n(points)",
          ("toy", "bits"): "toy, text\n(%)", ("SmolLM2", "perplexity"): "SmolLM2,\ntext (%)",
          ("SmolLM2", "cloze"): "SmolLM2,\nfacts (points)"}
CARD = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # under a word that a line would cross


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


def _log_ticks(axis, say: Callable[[float], str] = "{:g}".format, least: int = 4) -> None:
    """As few round numbers as label a log axis at least `least` times, however short it is."""
    low, high = axis.get_view_interval()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6)):
        ticks = [step * 10.0**decade for decade in decades for step in steps] + [10.0 ** decades.stop]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= least:
            break
    axis.set_ticks(ticks, [say(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


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


def _rows(height: float, labels: list[str], above: float = 5, size: float = 8.5):
    """An axis with a row for each label, which stands `above` points over its row, so that it needs no margin."""
    figure, ax = _axes(0.8 + height * len(labels))
    for y, label in enumerate(labels):
        ax.annotate(label, (0, y), xycoords=("axes fraction", "data"), xytext=(0, above), textcoords="offset points",
                    fontsize=size, va="bottom")
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
    _log_ticks(ax.xaxis, usd, least=3)
    ax.set_xlabel("price before and after (USD per million tokens)")
    a, b = shown[0]
    return picture(figure, (
        f"Arrows on a log axis: the {len(shown)} steepest of {len(pairs)} list prices in USD per million tokens that "
        f"their own seller raised; {b.model} at {b.seller} rose {b.usd(blend) / a.usd(blend):.1f} times between "
        f"{a.date} and {b.date}."))


# --- chapter 02 -----------------------------------------------------------------------------------------------

BANDS = {"feed_forward": "#C6DBEF", "attention": "#6BAED6", "embedding": "#2171B5", "head": "#2171B5"}


def to_scale(counts: dict[str, ParamCount]) -> Picture:
    """Models as squares whose areas are their parameters, cut into bands for their parts; give the largest first."""
    largest = max(count.total for count in counts.values())
    widest = math.sqrt(largest)
    figure, ax = _axes(4.1)
    left = 0.0
    for name, count in counts.items():
        side, bottom = math.sqrt(count.total), 0.0
        for band, colour in BANDS.items():
            height = getattr(count, band) / side
            ax.add_patch(Rectangle((left, bottom), side, height, facecolor=colour, edgecolor="white", linewidth=0.4))
            if side == widest and height > 0.03 * widest:
                ax.annotate(f"{band.replace('_', '-')} {percent(height / side, 2)}",
                            (left + side / 2, bottom + height / 2), ha="center", va="center", fontsize=8.5,
                            color="white" if colour == BANDS["head"] else BLACK)
            bottom += height
        large = side > widest / 2
        ax.annotate(f"{name}, {in_words(count.total)}", (left if large else left + side / 2, side), xytext=(0, 4),
                    textcoords="offset points", fontsize=9, va="bottom", ha="left" if large else "center",
                    rotation=0 if large else 90)
        left += side + 0.09 * widest
    ax.set(xlim=(0, left), ylim=(0, 1.08 * widest), aspect="equal")
    ax.set_axis_off()
    sizes = ", ".join(f"{name} with {in_words(count.total)} parameters" for name, count in counts.items())
    smallest = min(count.total for count in counts.values())
    return picture(figure, f"A chart of squares drawn to scale, area for parameters: {sizes}. The largest has "
                           f"{largest / smallest:.0f} times the area of the smallest, and in each the feed-forward "
                           "part fills the most.")


def step_parts(steps: dict[str, StepParts]) -> Picture:
    """Where a decode step's time goes, one bar for each model; a black tick where reading alone would end."""
    figure, ax = _rows(0.62, [f"{name}: {duration(step.step_s, 2)} a step" for name, step in steps.items()],
                       above=12)
    ax.set_xscale("linear")
    said = []
    for y, (name, step) in enumerate(steps.items()):
        left = 0.0
        for part, time_s, colour in (("matrices", step.matrices_s, BLUE), ("attention", step.attention_s, PURPLE),
                                     ("the rest", step.rest_s, GREY)):
            share = 100 * time_s / step.step_s
            ax.barh(y, share, 0.42, left, color=colour)
            if share > 14:
                ax.annotate(f"{part} {share:.0f}%", (left + share / 2, y), ha="center", va="center", fontsize=8.5,
                            color="white")
            left += share
        ax.plot([100 * step.reading_s / step.step_s] * 2, [y - 0.2, y + 0.3], color=BLACK, linewidth=2)
        said.append(f"{name} {step.matrices_s / step.step_s:.0%} in its matrix products")
    ax.annotate("reading alone", (100 * step.reading_s / step.step_s, y + 0.3), xytext=(0, -2), ha="center", va="top",
                textcoords="offset points", fontsize=8.5)
    ax.set(xlim=(0, max(101, *(105 * s.reading_s / s.step_s for s in steps.values()))), ylim=(len(steps) - 0.4, -0.75))
    ax.set_xlabel("share of a decode step (%)")
    return picture(figure, f"Bar chart of where one decode step's time goes, in percent: {'; '.join(said)}. "
                           "A tick marks how long reading the weights at memory speed would take.")


def domains(standard: Scores, hard: Scores) -> Picture:
    """Exact answers by domain with 95% intervals: the standard split as black dots, the hard one as grey squares."""
    figure, ax = _rows(0.42, list(standard.by))
    ax.set_xscale("linear")
    for scores, colour, marker, shift in ((standard, BLACK, "o", -0.1), (hard, GREY, "s", 0.16)):
        for y, score in enumerate(scores.by.values()):
            ax.plot([100 * score.low, 100 * score.high], [y + shift] * 2, color=colour, linewidth=1.4)
            ax.plot(100 * score.accuracy, y + shift, color=colour, marker=marker, markersize=5.5)
    for scores, colour, name, end in ((standard, BLACK, "standard", 0.55), (hard, GREY, "hard", 0.95)):
        end += len(standard.by) - 1
        ax.plot([100 * scores.mean] * 2, [-0.45, end], color=colour, linewidth=1, linestyle=":", zorder=0)
        ax.annotate(f"{name}, mean {scores.mean:.0%}", (100 * scores.mean, end), xytext=(-3, 0), va="center",
                    textcoords="offset points", ha="right", fontsize=8.5, color=colour)
    ax.set(xlim=(-2, 102), ylim=(len(standard.by) + 0.25, -0.9))
    ax.set_xlabel("exact answers (%)")
    worst = min(standard.by, key=lambda name: standard[name].accuracy)
    return picture(figure, f"Dot chart of exact answers in percent for {len(standard.by)} domains with intervals: the "
                           f"mean of the standard split is {standard.mean:.0%}, its least {worst} at "
                           f"{standard[worst].accuracy:.0%}; the mean of the hard split is {hard.mean:.0%}.")


def by_distance(scores: Scores) -> Picture:
    """Look-up accuracy against the distance of the pair that is asked for, with 95% intervals."""
    figure, ax = _axes(2.6)
    at = list(scores.by)
    share = [100 * score.accuracy for score in scores.by.values()]
    ax.vlines(at, [100 * s.low for s in scores.by.values()], [100 * s.high for s in scores.by.values()], color=BLACK,
              linewidth=1.4)
    ax.plot(at, share, color=BLACK, marker="o", markersize=5.5, linewidth=1)
    ax.set(xlabel="distance of the asked pair (tokens)", ylabel="exact answers (%)", ylim=(0, 104), xlim=(0, None))
    return picture(figure, f"Line chart of look-up answers that are right, in percent, against the distance of the "
                           f"asked pair: {share[0]:.0f} at {at[0]} tokens, {share[-1]:.0f} at {at[-1]}, the least "
                           f"{min(share):.0f}.")


def rooflines(chips: list[Accelerator], work: dict[str, Work], dtype: str | None = None) -> Picture:
    """What each chip can do at most for a FLOP-per-byte of the work, and where calls of a model lie (dotted).

    A roof is blue where memory sets it and vermillion where arithmetic does; its bend is a filled dot where measured.
    """
    figure, ax = _axes(4.4)
    lowest, highest = min(w.intensity for w in work.values()) / 2, 1.5 * max(w.intensity for w in work.values())
    for name, w in work.items():
        ax.axvline(w.intensity, color=GREY, linewidth=1, linestyle=":", zorder=0)
        ax.annotate(textwrap.fill(name, 10), (w.intensity, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                    textcoords="offset points", fontsize=WORDS, ha="center", va="bottom")
    roofs = [(chip, chip.peak(dtype or ("bf16" if "bf16" in chip.peak_flops else "fp32"))) for chip in chips]
    ridges = [peak / chip.mem_bytes_per_s for chip, peak in roofs]
    end = max(highest, 2 * max(ridges))
    for (chip, peak), ridge in zip(roofs, ridges, strict=True):
        ax.plot([lowest, ridge], [lowest * chip.mem_bytes_per_s, peak], color=BLUE)
        ax.plot([ridge, end], [peak, peak], color=VERMILLION)
        filled = {"markerfacecolor": BLACK} if chip.source.startswith("measured") else {}
        ax.plot(ridge, peak, color=BLACK, **QUOTED | filled)
        _at_end(ax, end, peak, chip.name.split(" SXM")[0].replace(" ", "\n"))
    chip, peak = min(roofs, key=lambda roof: roof[1])
    for text, colour, x in (("memory", BLUE, math.sqrt(lowest * peak / chip.mem_bytes_per_s)),
                            ("arithmetic", VERMILLION, 2 * peak / chip.mem_bytes_per_s)):
        ax.annotate(text, (x, min(peak, x * chip.mem_bytes_per_s)), xytext=(7, -5), textcoords="offset points",
                    fontsize=WORDS, va="top", color=colour, bbox=CARD)
    ax.set(xscale="log", yscale="log", xlim=(lowest, end), xlabel="work for each byte moved (FLOP/byte)",
           ylabel="rate at most (FLOP/s)")
    said = ", ".join(f"{chip.name} bends at {ridge:.0f}" for chip, ridge in zip(chips, ridges, strict=True))
    return picture(figure, f"Chart of two-piece roofs on logarithmic axes, FLOP per second against FLOP per byte: "
                           f"{said} FLOP per byte; dotted lines mark {', '.join(work)}.")


def by_batch(measured: dict[int, float], predicted: dict[int, float], name: str) -> Picture:
    """A decode step's time against the batch, measured (dots) and by the model (line), in milliseconds."""
    figure, ax = _axes(3.3)
    ax.plot(list(predicted), [1000 * t for t in predicted.values()], color=GREY, linewidth=1.6)
    ax.plot(list(measured), [1000 * t for t in measured.values()], color=BLACK, marker="o", linestyle="none",
            markersize=5.5)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _log_ticks(ax.yaxis)
    ax.set_xticks(list(measured), [str(batch) for batch in measured])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="batch (sequences)", ylabel=f"a step of {name} (ms)")
    first, last = min(measured), max(measured)
    return picture(figure, f"Line chart of the time of a decode step of {name} against the batch, on logarithmic axes: "
                           f"{1000 * measured[first]:.3g} ms at {first}, {1000 * measured[last]:.3g} ms at {last}; the "
                           "line of the cost model runs through the measured dots.")


def speed_and_price(curve: list[Throughput], usd_per_hour: float) -> Picture:
    """What a million output tokens cost against how fast each reader gets them, for batches of different sizes."""
    figure, ax = _axes(3.7)
    speeds = [1 / t.tpot_s for t in curve]
    prices = [usd_per_million_tokens(usd_per_hour * t.chips, t.output_tokens_per_s) for t in curve]
    ax.plot(speeds, prices, color=GREEN, marker=".", linewidth=1.6)
    for t, x, y in zip(curve, speeds, prices):
        if t.batch in (1, 4, 16, 64, curve[-1].batch):
            at, side = ((-7, 2), "right") if t is not curve[-1] else ((-8, -16), "left")  # the last is near the axis
            ax.annotate(f"{t.batch} at once" if t.batch > 1 else "1 alone", (x, y), xytext=at, ha=side,
                        textcoords="offset points", fontsize=WORDS)
    _money_axis(ax)
    ax.set(xlim=(0, 1.05 * max(speeds)), ylim=(min(prices) / 1.8, 1.3 * max(prices)),
           xlabel="speed for each reader (tokens/s)")
    _log_ticks(ax.yaxis, usd)
    return picture(figure, f"Line chart of USD per million output tokens on a logarithmic axis against tokens a second "
                           f"for each reader: {usd(prices[0])} at {speeds[0]:.0f} tokens a second alone, "
                           f"{usd(prices[-1])} at {speeds[-1]:.0f} with {curve[-1].batch} at once.")


def predicted_published(cases: list[Case], predict: Callable[[Case], float]) -> Picture:
    """What the cost model predicts for published throughputs against what was measured, by kind of model."""
    figure, ax = _axes(4.2)
    ends = [min(c.value for c in cases) / 1.6, 1.6 * max(c.value for c in cases)]
    for times, width in ((1, 1.2), (2, 0.8), (0.5, 0.8)):
        ax.plot(ends, [times * x for x in ends], color=GREY, linewidth=width, linestyle="-" if times == 1 else ":")
    for moe, colour, marker, name in ((False, GREY, "o", "dense"), (True, BLACK, "^", "mixture of experts")):
        some = [c for c in cases if c.cfg.is_moe == moe]
        ax.plot([c.value for c in some], [predict(c) for c in some], color=colour, label=f"{name}, {len(some)} rows",
                **QUOTED | {"marker": marker, "markersize": 5, "markeredgewidth": 1.2})
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="published (tokens/s for each chip)",
           ylabel="predicted (tokens/s for each chip)")
    ax.legend(loc="upper left", frameon=False, fontsize=WORDS, borderaxespad=0, handletextpad=0.2)
    within = sum(0.5 <= predict(c) / c.value <= 2 for c in cases)
    return picture(figure, f"Scatter chart on logarithmic axes of predicted against published tokens per second for "
                           f"each chip, {len(cases)} rows: {within} lie within a factor of two of the diagonal.")


def waterfall(ledger: Ledger) -> Picture:
    """The factors of a ledger as steps down from 1, on a logarithmic axis; marks tell their kinds."""
    names = [f"{f.name}: {f.value:.3g}" for f in ledger.factors]
    figure, ax = _rows(0.6, [*names, "all together"], 12, WORDS)
    colours = dict(zip(("measured", "quoted", "modelled", "assumed"), (BLACK, "white", BLUE, GREY)))
    left = 1.0
    for y, f in enumerate(ledger.factors):
        ax.barh(y, left - left / f.value, 0.4, left / f.value, color=colours[f.kind], edgecolor=BLACK, linewidth=0.8)
        ax.plot([left / f.high, left / f.low], [y, y], color=GREY, linewidth=2.5)
        left /= f.value
    ax.barh(len(names), 1 - left, 0.4, left, color=GREEN)
    _log_ticks(ax.xaxis, least=3)
    ax.set_xlabel("price (share of the first)")
    return picture(figure, f"Waterfall chart of a price that falls factor by factor on a logarithmic axis: "
                           f"{'; '.join(names)}; all together to {left:.3g} of the first price.")


# --- chapter 04 -----------------------------------------------------------------------------------------------

def _years_axis(ax, first: dt.date, last: dt.date, margin: int) -> None:
    """Every second year from `first` to `last`, with so many days more on the right for labels."""
    ax.set_xlim(first - dt.timedelta(300), last + dt.timedelta(margin))
    years = [dt.date(year, 1, 1) for year in range(first.year + 1, last.year + 1) if year % 2 == 0]
    ax.set_xticks(years, [str(day.year) for day in years])


def _at_end(ax, day, value, text, colour=BLACK, shift=0.0) -> None:
    """A label to the right of a line's last point, in the line's colour."""
    ax.annotate(text, (day, value), xytext=(6, shift), textcoords="offset points", va="center", fontsize=WORDS,
                color=colour, annotation_clip=False)


def peaks_by_format(line: tuple[Generation, ...]) -> Picture:
    """Peak rates of chips by number format over their launch dates, and what Moore's law makes of the first one."""
    figure, ax = _axes(4.2)
    first, last = line[0], line[-1]
    for bits, dash in ((32, "-"), (16, "--"), (8, "-."), (4, ":")):
        known = [(g.date, g.rate(bits) / 1e12) for g in line if g.rate(bits)]
        ax.plot(*zip(*known, strict=True), color=VERMILLION, linestyle=dash, linewidth=1.4)
        ax.plot(*zip(*known, strict=True), color=VERMILLION, **QUOTED)
        _at_end(ax, *known[-1], f"{bits} bits", VERMILLION)
    grown = moore(years_between(first.date, last.date)) * first.rate(32) / 1e12
    ax.plot([first.date, last.date], [first.rate(32) / 1e12, grown], color=GREY, linewidth=1.2, linestyle=(0, (5, 2)))
    _at_end(ax, last.date, grown, "Moore's law", GREY)
    for g in line[:-1]:
        ax.annotate(g.name, (g.date, g.rate(32) / 1e12), xytext=(4, -9), textcoords="offset points", ha="center",
                    va="top", fontsize=WORDS)
    ax.annotate(last.name, (last.date, last.rate(32) / 1e12), xytext=(9, -9), textcoords="offset points", va="top",
                fontsize=WORDS)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(ylabel="peak (10¹² operations/s)", ylim=(4, None))
    _years_axis(ax, first.date, last.date, margin=1300)
    plain, best = last.rate(32) / first.rate(32), last.best_rate / first.best_rate
    return picture(figure, f"Line chart on a log axis of the peak rates of {len(line)} chips from {first.date.year} to "
                           f"{last.date.year}, one line for each number format: plain 32-bit arithmetic rises "
                           f"{plain:.0f} times, the best format {best:,.0f} times, by stepping to lines of fewer bits; "
                           f"Moore's law would give {grown * 1e12 / first.rate(32):.0f}.")


def growth_rates(rates: list[Growth], law: float) -> Picture:
    """Yearly growth of what chips have, as points with 90% intervals; a line marks Moore's law."""
    figure, ax = _rows(0.5, [f"{rate.measure}: {rate.factor_per_year:.2f}" for rate in rates], 7, WORDS)
    ax.set_xscale("linear")
    for y, rate in enumerate(rates):
        colour = (VERMILLION if "peak" in rate.measure else BLUE if "memory" in rate.measure
                  else GREEN if "price" in rate.measure else BLACK)
        ax.plot([rate.low, rate.high], [y, y], color=colour, linewidth=1.6)
        ax.plot(rate.factor_per_year, y, color=colour, **QUOTED)
    ax.axvline(law, color=GREY, linewidth=1.2, linestyle=(0, (5, 2)), zorder=0)
    ax.annotate("Moore's law", (law, len(rates) - 0.2), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=WORDS, color=GREY)
    ax.set(xlim=(0.8, max(rate.high for rate in rates) + 0.05), ylim=(len(rates) + 0.1, -0.9),
           xlabel="growth (times per year)")
    outrun = ", ".join(rate.measure for rate in rates if rate.factor_per_year > law)
    said = "; ".join(f"{rate.measure} {rate.factor_per_year:.2f}" for rate in rates)
    return picture(figure, f"Dot chart of growth in times per year, with intervals, for {len(rates)} properties of "
                           f"chips: {said}. What outruns the {law:.2f} of Moore's law: {outrun or 'nothing'}.")


def rents(panels: dict[str, dict[str, Rent]]) -> Picture:
    """USD per board and hour over the years, a panel for each kind of seller, each line by its label; rises in red."""
    figure, axes = _axes(0.6 + 3.1 * len(panels), rows=len(panels), sharex=True)
    rises, every = [], [day for panel in panels.values() for rent in panel.values() for day, _ in rent.points]
    end = max(every)
    for ax, (kind, panel) in zip(axes, panels.items(), strict=True):
        for label, rent in panel.items():
            days, prices = zip(*rent.points, strict=True)
            ax.step(days, prices, where="post", color=GREEN, linewidth=1.2)
            ax.plot(days, prices, color=GREEN, **{**QUOTED, "markersize": 4.5})
            for (_, low), (day, high) in rent.rises:
                ax.plot([day, day], [low, high], color=VERMILLION, linewidth=3.5, solid_capstyle="butt")
                rises.append((high / low, label))
            if (end - days[-1]).days < 365:
                _at_end(ax, end, prices[-1], label)
            else:  # a line that ends among others is labelled where it was highest first
                ax.annotate(label, (days[prices.index(max(prices))], max(prices)), xytext=(-3, 6), fontsize=WORDS,
                            textcoords="offset points")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda price, _: usd(price)))
        ax.text(0.01, 0.97, kind, transform=ax.transAxes, va="top", fontsize=WORDS)
        ax.margins(y=0.14)
        ax.label_outer()
    _years_axis(axes[-1], min(every), end, margin=150)
    figure.supylabel("rent (USD per board and hour)", fontsize=10)
    steepest, label = max(rises)
    shown = sum(map(len, panels.values()))
    return picture(figure, f"Step line charts on log axes of {shown} rents in USD per board and hour, in {len(panels)} "
                           f"panels: {', '.join(panels)}. Most lines are flat or fall; "
                           f"{len(rises)} steps go up, the steepest {steepest:.1f} times, {label}.")


def price_and_rent(price: Series, rent: dict[str, list[TokenRent]]) -> Picture:
    """The price in force of a level of quality, and over the same years the rent of the chips that make its tokens."""
    figure, ax = _axes(4.5)
    _money_axis(ax)
    _steps(ax, price, color=GREEN)
    first, last = price.points[0], price.points[-1]
    ax.annotate(f"price in force,\n{price.exam} {price.threshold:g}", (first.date, first.usd), xytext=(30, -2),
                textcoords="offset points", va="top", fontsize=WORDS, color=GREEN)
    _at_end(ax, last.date, last.usd, usd(last.usd, 2), GREEN, shift=-3)
    said = []
    for (seller, offers), marker, side in zip(rent.items(), "os", ("left", "right"), strict=False):
        days, costs = [o.date for o in offers], [o.usd for o in offers]
        ax.step(days, costs, where="post", color=GREEN, linewidth=1.2)
        ax.plot(days, costs, color=GREEN, **{**QUOTED, "marker": marker, "markersize": 4.5})
        ax.annotate(f"rent, {seller}", (days[0], costs[0]), xytext=(-4, 7) if side == "left" else (-8, -4), ha=side,
                    textcoords="offset points", fontsize=WORDS)
        _at_end(ax, last.date, costs[-1], usd(costs[-1], 2))
        said.append(f"at {seller} from {usd(costs[0])} to {usd(costs[-1])}")
    ax.set_ylabel("price or rent (USD per million tokens)")
    _years_axis(ax, min(o.date for offers in rent.values() for o in offers), last.date, margin=60)
    ax.set_ylim(bottom=min(ax.get_ylim()[0], 0.01))
    _log_ticks(ax.yaxis, usd, least=5)
    return picture(figure, f"Step line chart on a log axis in USD per million tokens: the price in force falls from "
                           f"{usd(first.usd)} in {first.date:%B %Y} to {usd(last.usd)} in {last.date:%B %Y}, while "
                           f"the rent of the chips that make such tokens hardly moves: {'; '.join(said)}.")


# --- chapter 06 -----------------------------------------------------------------------------------------------

def cache_use(shares: dict[str, float]) -> Picture:
    """The share of a cache's memory that holds tokens, one bar for each way to hand it out."""
    figure, ax = _rows(0.5, [f"{name}: {100 * share:.3g}%" for name, share in shares.items()], 9, WORDS)
    ax.set_xscale("linear")
    for y, share in enumerate(shares.values()):
        ax.barh(y, 100, 0.3, color="white", edgecolor=GREY, linewidth=0.8)
        ax.barh(y, 100 * share, 0.3, color=PURPLE)
    ax.set(xlim=(0, 101), xlabel="memory that holds tokens (%)")
    said = "; ".join(f"{name} {100 * share:.3g}" for name, share in shares.items())
    return picture(figure, f"Bar chart of the share of a cache's memory that holds tokens, in percent: {said}.")


def cache_sizes(sizes: dict[str, float]) -> Picture:
    """Bytes that each model's cache takes for a token, as hollow points on a log axis."""
    figure, ax = _rows(0.46, [f"{name}: {size / 1000:,.0f} kB" for name, size in sizes.items()], 7, WORDS)
    for y, size in enumerate(sizes.values()):
        ax.plot(size / 1000, y, color=PURPLE, **QUOTED)
    ax.set_xlim(min(sizes.values()) / 2000, max(sizes.values()) / 500)
    ax.set_xticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1,000", "3,000"])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("cache of a token (kB, 16 bits a value)")
    least, most = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    return picture(figure, f"Dot chart on a log axis of the cache that a token takes in {len(sizes)} models, in kB: "
                           f"the most is {most} with {sizes[most] / 1000:,.0f}, the least {least} with "
                           f"{sizes[least] / 1000:,.0f}.")


def within_window(whole: Scores, windowed: Scores, window: int) -> Picture:
    """Look-up accuracy against distance, of a model that sees all and of one that sees only `window` tokens back."""
    figure, ax = _axes(3.0)
    ax.axvline(window, color=GREY, linewidth=1.2, linestyle=":", zorder=0)
    ax.annotate("window", (window, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
                ha="center", va="bottom", fontsize=WORDS, color=GREY)
    for scores, marker, dash in ((whole, "o", "-"), (windowed, "s", "--")):
        at, share = list(scores.by), [100 * score.accuracy for score in scores.by.values()]
        ax.plot(at, share, color=BLACK, marker=marker, linestyle=dash, markersize=5.5, linewidth=1.2)
        _at_end(ax, at[-1], share[-1], "sees\nall" if scores is whole else "window\nonly")
    ax.set(xlabel="distance of the asked pair (tokens)", ylabel="exact answers (%)", ylim=(-9, 104), xlim=(0, None))
    far = max(whole.by)
    return picture(figure, f"Line chart of look-up answers that are right, in percent, against the distance of the "
                           f"asked pair: at {far} tokens {100 * whole[far].accuracy:.0f} for the model that sees all "
                           f"and {100 * windowed[far].accuracy:.0f} for the one with a window of {window}.")


# --- chapter 05 -----------------------------------------------------------------------------------------------

def speedups(measured: dict[str, dict[int, float]], predicted: dict[str, dict[int, float]]) -> Picture:
    """How many times as fast texts of so many tokens are written with a cache: measured dots, predicted lines."""
    figure, ax = _axes(3.8)
    for (name, dots), marker in zip(measured.items(), "os", strict=False):
        line = predicted[name]
        ax.plot(list(line), list(line.values()), color=GREY, linewidth=1.6)
        ax.plot(list(dots), list(dots.values()), color=BLACK, marker=marker, linestyle="none", markersize=5.5,
                label=name)
    ax.legend(loc="upper left", fontsize=WORDS, handletextpad=0.2)  # lines that may lie near each other
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    lengths = sorted({n for dots in measured.values() for n in dots})
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    _log_ticks(ax.yaxis)
    ax.set(xlabel="text written (tokens)", ylabel="speed-up by the cache (times)")
    said = "; ".join(f"{name} {dots[min(dots)]:.2g} times at {min(dots)} tokens and {dots[max(dots)]:.2g} at "
                     f"{max(dots):,}" for name, dots in measured.items())
    return picture(figure, f"Line chart on logarithmic axes of how many times as fast a text is written with a "
                           f"cache, against its length: {said}; predicted lines run near the measured dots.")


def held_bytes(ways: dict[str, dict[int, float]]) -> Picture:
    """The most bytes that ways of attention hold for texts of so many tokens, all measured."""
    figure, ax = _axes(3.3)
    for (name, held), marker in zip(ways.items(), "os", strict=False):
        ax.plot(list(held), [n / 1e6 for n in held.values()], color=BLACK, marker=marker, markersize=5.5, linewidth=1)
        _at_end(ax, max(held), held[max(held)] / 1e6, name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    lengths = list(next(iter(ways.values())))
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    _log_ticks(ax.yaxis)
    ax.set(xlabel="text (tokens)", ylabel="held at most (MB)")
    said = "; ".join(f"{name.replace(chr(10), ' ')} from {held[min(held)] / 1e6:.2g} to {held[max(held)] / 1e6:.3g} MB"
                     for name, held in ways.items())
    return picture(figure, f"Line chart on logarithmic axes of the most memory that attention holds, for "
                           f"{min(lengths)} to {max(lengths):,} tokens: {said}.")


def price_by_context(lines: dict[str, dict[int, float]]) -> Picture:
    """What a million written tokens cost against the context before them, a line for each way to serve."""
    figure, ax = _axes(3.9)
    for (name, usds), dash, shift in zip(lines.items(), ("-", "--", "-."), (0, 5, -5), strict=False):
        ax.plot(list(usds), list(usds.values()), color=GREEN, linewidth=1.6, linestyle=dash)
        _at_end(ax, max(usds), usds[max(usds)], name, GREEN, shift)
    _money_axis(ax)
    ax.set_xscale("log")
    _log_ticks(ax.xaxis, lambda n: f"{n:,.0f}", least=3)
    _log_ticks(ax.yaxis, usd, least=4)
    ax.set(xlabel="context (tokens)")
    said = "; ".join(f"{name.replace(chr(10), ' ')} from {usd(usds[min(usds)])} to {usd(usds[max(usds)])}"
                     for name, usds in lines.items())
    span = next(iter(lines.values()))
    return picture(figure, f"Line chart on logarithmic axes of USD per million written tokens against the context, "
                           f"{min(span):,} to {max(span):,} tokens: {said}.")


# --- chapters 07 and 08 ---------------------------------------------------------------------------------------

def error_by_bits(ways: dict[str, dict[int, float]], rule: dict[int, float]) -> Picture:
    """How far rounded weights are off, as a share of their size, against the bits of each; `rule` is the formula."""
    figure, ax = _axes(3.4)
    ax.plot(list(rule), [100 * error for error in rule.values()], color=GREY, linewidth=1.6)
    for (name, errors), marker in zip(ways.items(), "os^", strict=False):
        ax.plot(list(errors), [100 * error for error in errors.values()], color=BLACK, marker=marker,
                linestyle="none", markersize=5.5, label=name)
    ax.legend(loc="upper right", fontsize=WORDS, handletextpad=0.2)
    ax.set_yscale("log")
    _log_ticks(ax.yaxis)
    ax.set(xlabel="width of a weight (bits)", ylabel="error (% of the weights)")
    first = next(iter(ways.values()))
    low, high = min(first), max(first)
    return picture(figure, f"Line chart of the error of rounded weights, in percent on a logarithmic axis, against "
                           f"their bits: {100 * first[high]:.2g} at {high} bits and {100 * first[low]:.2g} at {low} "
                           f"for {next(iter(ways))}; the line of the formula runs through the dots.")


def gain_by_tokens(ways: dict[str, dict[int, float]]) -> Picture:
    """How many times as fast as with floats a call is in fewer bits, against the tokens that it reads at once."""
    figure, ax = _axes(3.4)
    ax.axhline(1, color=GREY, linewidth=1.2, linestyle=":", zorder=0)
    for (name, gains), marker in zip(ways.items(), "os^", strict=False):
        ax.plot(list(gains), list(gains.values()), color=BLACK, marker=marker, markersize=5.5, linewidth=1)
        _at_end(ax, max(gains), gains[max(gains)], name)
    ax.set_xscale("log", base=2)
    tokens = list(next(iter(ways.values())))
    ax.set_xticks(tokens, [f"{n:,}" for n in tokens])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="call (tokens at once)", ylabel="speed over floats (times)", ylim=(0, None))
    said = "; ".join(f"{name.replace(chr(10), ' ')} {gains[min(gains)]:.2g} times for {min(gains)} token and "
                     f"{gains[max(gains)]:.2g} for {max(gains):,}" for name, gains in ways.items())
    return picture(figure, f"Line chart of how many times as fast a call is as with floats, against the "
                           f"tokens that it reads, on a logarithmic axis: {said}.")


def frontier(scores: FormatScores, schemes: Sequence[str]) -> Picture:
    """What each format loses on both models, with its 95% interval, those that hold the most bits first. Dotted, what
    the same quality may lose by each measure; crosses, with embedding and head left in 32 bits."""
    panels = [(model, what, most) for model, limits in scores.limits.items() for what, most in limits.items()]
    names = sorted(schemes, key=lambda name: -scores.of("toy", name)["bits_per_weight"])
    if not names:
        raise BadInputError("schemes is []; allowed: one name at least.")
    figure, axes = _axes(8.6, len(panels), sharex=True)
    for ax, (model, what, most) in zip(axes, panels):
        _losses(ax, [scores.lost(model, name, what) for name in names], 100 * most)
        if what == "perplexity":
            kept = [scores.lost(model, name, "head kept")[0] for name in names]
            ax.plot(kept, color=BLACK, marker="x", linestyle="none")
        ax.set_ylabel(LOSSES[model, what], fontsize=WORDS)
    figure.align_ylabels()
    held = [f"{name} {scores.of('toy', name)['bits_per_weight']:.1f}" for name in names]
    axes[-1].set_xticks(range(len(names)), held, rotation=90, fontsize=WORDS)
    axes[-1].set_xlabel("format (bits held for a weight of the toy)")
    most = scores.lost("toy", names[-1], "standard")[0]
    return picture(figure, f"{len(panels)} dot charts, one below the other, of what the toy and SmolLM2 lose in each "
                           "number format, those of most bits first, with intervals and the limit of the same quality. "
                           f"The losses grow to the right, to {most:.1f} points of the toy's answers in {names[-1]}.")


def _losses(ax, lost: Sequence[tuple[float, float, float]], limit: float) -> None:
    """A dot with its interval for each (value, low, high), and the limit as a dotted line."""
    for x, (value, low, high) in enumerate(lost):
        ax.errorbar(x, value, yerr=[[max(value - low, 0)], [max(high - value, 0)]], color=BLACK, marker="o",
                    markersize=5, linewidth=1, capsize=2)
    ax.axhline(limit, color=GREY, linewidth=1, linestyle=":")
    if max(value for value, _, _ in lost) > 200:  # beyond that a line of equal steps shows nothing near the limit
        ax.set_yscale("symlog", linthresh=10)
        ax.set_ylim(-5, 2 * max(high for _, _, high in lost))
        ax.set_yticks([0, 10, 100, 1000], ["0", "10", "100", "1,000"])
        ax.yaxis.set_minor_locator(NullLocator())
