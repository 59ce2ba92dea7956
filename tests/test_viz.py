"""Figures: labelled, worded, legible, the same bytes each time."""

import re
import xml.etree.ElementTree as ET

import pytest

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
        "AWS": {"H100": rent("H100 SXM5", "AWS"), "V100": rent("V100 SXM2 16GB", "AWS")},
        "other sellers": {"A100, Lambda": rent("A100 SXM4 40GB", "Lambda"),
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
