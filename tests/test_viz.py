"""Figures: labelled, worded, legible, the same bytes each time."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from matplotlib.cbook import pts_to_poststep
from matplotlib.path import Path

from llmflation import viz
from llmflation.config import model_config
from llmflation.corpus import DOMAINS
from llmflation.cost.counts import Work, count_params, decode_work, prefill_work
from llmflation.cost.generations import MEASURES, generations, growth, moore
from llmflation.cost.ledger import Factor, Ledger
from llmflation.cost.published import predicted, published_cases
from llmflation.cost.rents import cheapest_over_time, rent, token_rents
from llmflation.cost.series import in_force, price_rises, record
from llmflation.cost.serving import latency_throughput
from llmflation.cost.trends import fit_price_trend, published_rates, sensitivity
from llmflation.errors import BadInputError
from llmflation.evaluate import Score, Scores
from llmflation.format_scores import FormatScores
from llmflation.hardware import accelerator
from llmflation.probe import StepParts
from llmflation.train import TOY

LEVELS = (42, 64.8, 83)
LLAMA = model_config("Llama-3.1-8B")


def level(threshold):
    force = in_force(threshold)
    halves = force.window(until="2025-01-01"), force.window(since="2025-01-01")
    return record(threshold), force, *(fit_price_trend(half, n_boot=20) for half in halves)


FIGURES = {
    "front": lambda: viz.price_in_force(in_force(64.8), record(64.8)),
    "levels": lambda: viz.price_levels([level(t) for t in LEVELS]),
    "rates": lambda: viz.rates(sensitivity(64.8, n_boot=20), published_rates()),
    "rises": lambda: viz.rises(price_rises()),
    "scale": lambda: viz.to_scale({name: count_params(model_config(name)) for name in ("Llama-3.1-8B", "SmolLM2-135M")}
                                  | {"the toy": count_params(TOY)}),
    "step": lambda: viz.step_parts({"the toy": StepParts(2.6e-3, 1.7e-3, 0.1e-3, 48_000_000, 32e9),
                                    "SmolLM2": StepParts(30e-3, 21e-3, 2e-3, 538_000_000, 32e9)}),
    "domains": lambda: viz.domains(scores(60, 60, 59, 55), scores(40, 3, 60, 20)),
    "all alike": lambda: viz.domains(scores(60, 60, 60, 60), scores(60, 60, 60, 60)),
    "peaks": lambda: viz.peaks_by_format(generations()),
    "growth": lambda: viz.growth_rates([growth(generations(), m) for m in MEASURES], moore(1)),
    "rents": lambda: viz.rents({
        "AWS, its price list": {name.split()[0]: rent(name, "AWS") for name in (
            "K80", "V100 SXM2 16GB", "A100 SXM4 40GB", "H100 SXM5", "H200")},
        "other sellers": {"V100, Lambda": rent("V100 SXM2 16GB", "Lambda"),
                          "A100, Lambda": rent("A100 SXM4 40GB", "Lambda"),
                          "H100, market": rent("H100 SXM5", "market", "market"),
                          "H100, for a year": rent("H100 SXM5", "neocloud index", "reserved")}}),
    "price and rent": lambda: viz.price_and_rent(in_force(64.8), {
        seller: cheapest_over_time(token_rents(model_config("Llama-3.1-8B")), seller) for seller in ("AWS", "Lambda")}),
    "roofs": lambda: viz.rooflines([accelerator(n) for n in ("K80", "A100 SXM4 80GB", "H100 SXM5", "B200 SXM")], {
        name: sum(work.values(), Work(0, 0)) for name, work in (
            ("write, 1 alone", decode_work(LLAMA, 1, 1000)), ("write, 64 at once", decode_work(LLAMA, 64, 1000)),
            ("read 1,000 tokens", prefill_work(LLAMA, 1, 1000)))}),
    "by batch": lambda: viz.by_batch({b: 4e-3 + b * 2e-4 for b in (1, 4, 16, 64)}, {1: 4e-3, 64: 17e-3}, "the toy"),
    "speed and price": lambda: viz.speed_and_price(latency_throughput(LLAMA, accelerator("H100 SXM5"), 1000, 300), 2.5),
    "published": lambda: viz.predicted_published([c for c in published_cases()[0] if c.metric.startswith("output")],
                                                 predicted),
    "waterfall": lambda: viz.waterfall(Ledger([
        Factor("prompts in one call", "measured", 3.7, 1.1, 4.0, "c", "l"),
        Factor("faster chips", "modelled", 1.3, 1.0, 1.7, "c", "l"),
        Factor("8 bits", "quoted", 2, 1.5, 2.1, "c", "l")])),
    "cache use": lambda: viz.cache_use({"room for 4,096 tokens": 0.278, "blocks of 16": 0.993}),
    "cache sizes": lambda: viz.cache_sizes({"GPT-3 175B, 2020, MHA": 4.7e6,
                                            "gpt-oss-120b, 2025, half with windows": 37e3}),
    "window": lambda: viz.within_window(
        Scores("look-up", {at: Score(19, 20) for at in (6, 240, 480)}),
        Scores("look-up", {6: Score(20, 20), 240: Score(18, 20), 480: Score(0, 20)}), 256),
    "speed-ups": lambda: viz.speedups(*({name: {n: times * n for n in (64, 256, 512, 1024, 2048)}
                                         for name, times in (("the toy", a / 14), ("SmolLM2", a / 30))}
                                        for a in (1, 1.1))),
    "held": lambda: viz.held_bytes({"all scores": {n: 64 * n * n for n in (256, 512, 1024, 2048)},
                                    "a block\nat a time": {n: 18_000 * n for n in (256, 512, 1024, 2048)}}),
    "price by context": lambda: viz.price_by_context({
        "without": {n: n / 40 for n in (100, 1000, 10_000, 100_000)},
        "alone": {n: 8 + n / 2e4 for n in (100, 1000, 10_000, 100_000)},
        "full": {n: 0.03 + n / 14_000 for n in (100, 1000, 10_000, 100_000)}}),
    "error by bits": lambda: viz.error_by_bits({name: {b: c / 2 ** b for b in range(2, 9)}
                                               for name, c in (("a row", 1.6), ("32 weights", 1.1))},
                                              {b: 1.5 / 2 ** b for b in range(2, 9)}),
    "gain by tokens": lambda: viz.gain_by_tokens({"8 bits": {1: 2.4, 8: 2.3, 64: 2.0, 512: 2.1},
                                                  "4 bits": {1: 3.3, 8: 1.9, 64: 1.0, 512: 0.9}}),
    "frontier": lambda: viz.frontier(FormatScores(), ("int8", "nf4", "int3")),
    "distance": lambda: viz.by_distance(Scores("look-up", {at: Score(19, 20) for at in (6, 300, 1020, 2040)})),
}


def scores(*right):
    """Of sixty problems each, over eight domains."""
    return Scores("problems", {name: Score(right[i % len(right)], 60) for i, name in enumerate(DOMAINS)})


@pytest.fixture(params=FIGURES)
def drawn(request, monkeypatch):
    """A picture with the matplotlib figure that it was made from."""
    kept, finish = [], viz.picture
    def remember(figure, alt):
        kept.append(figure)
        return finish(figure, alt)
    monkeypatch.setattr(viz, "picture", remember)
    return FIGURES[request.param](), kept[0]


@pytest.fixture
def drawn_roofs(monkeypatch):
    """The roofs of a measured machine and of a data sheet's."""
    kept = []
    monkeypatch.setattr(viz, "picture", lambda figure, alt: kept.append(figure))
    sheet = accelerator("H100 SXM5")
    viz.rooflines([replace(sheet, name="this machine", source="measured here"), sheet], {"write": Work(2e9, 1e9)})
    return kept[0]


def test_every_axis_says_its_quantity_and_unit(drawn):
    _, figure = drawn
    figure.canvas.draw()
    for ax in (ax for ax in figure.axes if ax.axison):
        for axis in (ax.xaxis, ax.yaxis):
            label = axis.get_label_text()
            ticks = [t.get_text() for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            years = all(re.fullmatch(r"20\d\d", t) for t in ticks)
            shared = axis is ax.yaxis and figure.get_supylabel()
            assert "(" in label or years or "(" in (shared or ""), f"axis {label!r} {ticks[:3]}"


def test_no_text_is_small_or_cut(drawn):
    _, figure = drawn
    figure.canvas.draw()
    box = figure.bbox.padded(1)
    for ax in figure.axes:
        for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
            assert text.get_fontsize() >= 8, text
        for text in ax.texts:
            extent = text.get_window_extent()
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1, f"{text.get_text()!r} leaves the figure"


def test_labels_do_not_lie_on_each_other(drawn):
    _, figure = drawn
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = [(t.get_text(), t.get_window_extent()) for t in ax.texts if t.get_visible() and t.get_text()]
        for i, (a, box) in enumerate(boxes):
            for b, other in boxes[:i]:
                assert not box.padded(-1).overlaps(other.padded(-1)), f"{a!r} lies on {b!r}"


DENSE = ("roofs", "by batch", "speed and price", "published", "peaks", "growth", "rents", "price and rent",
         "cache use", "cache sizes", "window", "speed-ups", "held", "price by context")


@pytest.mark.parametrize("drawn", DENSE, indirect=True)
def test_a_dense_figure_can_be_read_on_a_phone(drawn):
    _, figure = drawn
    assert figure.get_figwidth() <= 4.2  # so that a point is a pixel there
    assert min(text.get_fontsize() for ax in figure.axes for text in ax.texts or [ax.xaxis.label]) >= 10


@pytest.mark.parametrize("drawn", DENSE, indirect=True)
def test_no_line_runs_through_a_word(drawn):
    _, figure = drawn
    figure.canvas.draw()
    for ax in figure.axes:
        lines = [ax.transData.transform(points) for points in map(corners, ax.lines) if len(points) > 1]
        for text in (t for t in ax.texts if not t.get_bbox_patch()):  # a word on a white card may lie on a line
            box = text.get_window_extent().padded(-1)
            assert not any(Path(line).intersects_bbox(box, filled=False) for line in lines), text.get_text()


def corners(line):
    """The points of a line as it is drawn: a step line turns a corner between two of its points."""
    x, y = line.get_xdata(orig=False), line.get_ydata(orig=False)
    if line.get_linestyle() == "None" or not line.get_transform().contains_branch(line.axes.transData):
        return []
    if line.get_drawstyle() == "steps-post":
        x, y = pts_to_poststep(x, y)
    if line.get_transform() != line.axes.transData:  # a line across the whole axis: its ends are shares of the axis
        x, y = line.axes.transData.inverted().transform(line.get_transform().transform(list(zip(x, y, strict=True)))).T
    return list(zip(x, y, strict=True))


def test_a_log_axis_names_at_least_three_numbers(drawn):
    _, figure = drawn
    figure.canvas.draw()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"):
        low, high = axis.get_view_interval()
        named = [t for t in axis.get_major_ticks() if t.label1.get_text() and low <= t.get_loc() <= high]
        assert len(named) >= 3


@pytest.mark.parametrize("span", [(3.8, 19.9), (0.18, 8.6), (28, 140), (0.01, 25), (9.9, 10.1e6)])
def test_log_ticks_are_round_numbers_inside_the_axis(span):
    _, ax = viz._axes(3)
    ax.set(yscale="log", ylim=span)
    viz._log_ticks(ax.yaxis)
    ticks = ax.get_yticks()
    assert 4 <= len(ticks) <= 8 and span[0] <= min(ticks) and max(ticks) <= span[1]
    assert all(float(t.get_text()) == pytest.approx(tick) for t, tick in zip(ax.get_yticklabels(), ticks, strict=True))


@pytest.mark.parametrize("drawn", ["speed and price"], indirect=True)
def test_no_speed_is_negative(drawn):
    assert drawn[1].axes[0].get_xlim()[0] == 0


@pytest.mark.parametrize("drawn", ["roofs"], indirect=True)
def test_a_roof_is_blue_where_memory_sets_it_and_vermillion_where_arithmetic_does(drawn):
    roofs = [line for line in drawn[1].axes[0].lines if line.get_linestyle() == "-"]
    assert len(roofs) == 2 * 4
    for line in roofs:
        low, high = line.get_ydata()
        assert line.get_color() == (viz.VERMILLION if low == high else viz.BLUE)


def test_the_bend_of_a_measured_machine_is_a_filled_dot(drawn_roofs):
    mine, theirs = (line.get_markerfacecolor() for line in drawn_roofs.axes[0].lines if line.get_marker() == "o")
    assert (mine, theirs) == (viz.BLACK, "white")


def test_the_svg_parses_and_the_words_name_chart_trend_and_number(drawn):
    picture, _ = drawn
    assert ET.fromstring(picture.svg).tag.endswith("svg")
    assert re.search(r"\d", picture.alt) and len(picture.alt.split()) >= 12
    assert re.search("line|chart|Arrows", picture.alt)


def test_the_same_figure_gives_the_same_bytes():
    assert FIGURES["front"]().svg == FIGURES["front"]().svg


def test_a_notebook_gets_the_svg_and_the_words():
    picture = FIGURES["front"]()
    data, metadata = picture._repr_mimebundle_()
    assert data["image/svg+xml"] == picture.svg and metadata["llmflation"]["alt"] == picture.alt


def test_words_are_required():
    with pytest.raises(BadInputError, match="too short"):
        viz.picture(viz.Figure(), "a plot")
