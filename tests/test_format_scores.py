"""Stored scores of the number formats: all are there, they belong to the code as it is, tables say what they hold."""

from functools import partial
from xml.etree import ElementTree

import pytest

from llmflation import viz
from llmflation.corpus import look_up_at
from llmflation.errors import BadInputError, MissingFactError, UnknownNameError
from llmflation.evaluate import DISTANCES, PROBLEMS, ROOM, right
from llmflation.format_scores import Change, FormatScores, Table
from llmflation.pretrained import CHECKPOINTS, load_toy
from llmflation.quant.model import SCHEMES, bits_per_weight, model_bytes, quantize_model
from llmflation.quantized_cache import QuantizedKVCache

SCORES = FormatScores()


def test_every_scheme_was_judged_on_both_models():
    assert set(SCORES.stored["toy"]) == set(SCORES.stored["SmolLM2"]) == {"fp32", *SCHEMES}
    for scheme in SCORES.schemes:
        for split in ("standard", "hard"):
            assert {s.n for s in SCORES.domains(scheme, split).by.values()} == {PROBLEMS}


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if not scheme.calibrated])
def test_the_stored_bytes_are_those_that_a_model_holds(scheme):
    model, stored = quantize_model(load_toy(), scheme), SCORES.of("toy", scheme)
    assert bits_per_weight(model) == pytest.approx(stored["bits_per_weight"], rel=0.02)  # a kernel may hold a bit more
    assert model_bytes(model) == pytest.approx(stored["nbytes"], rel=0.02)


def test_the_scores_are_those_of_the_toy_that_ships():
    assert SCORES.stored["checkpoint"] == (CHECKPOINTS / "dense" / "SHA256SUMS").read_text("utf-8").split()[0]


def test_the_mean_is_that_of_the_domains():
    for scheme in SCORES.schemes:
        assert SCORES.domains(scheme).mean == pytest.approx(SCORES.of("toy", scheme)["standard"]["mean"])


def made(difference=0.0, bits=0.0, perplexity=0.0):
    """Scores of two formats, of which the second differs by so much."""
    def change(x):
        return {"difference": x, "low": x - 0.01, "high": x + 0.01}

    def toy(x, b):
        split = {"mean": 0.9 + x, "domains": {"sums": {"right": 9, "n": 10}}, "change": change(x)}
        return {"bits_per_weight": 8.0, "standard": split, "hard": split, "bits_per_byte": 1.2,
                "bits_change": change(b)}

    def real(x):
        return {"bits_per_weight": 8.0, "perplexity": 13 * (1 + x), "cloze": {"right": 3, "n": 4},
                "perplexity_change": change(x), "cloze_change": change(0.0),
                "head_kept": {"perplexity": 13 * (1 + x / 2), "perplexity_change": change(x / 2)}}

    return FormatScores({"toy": {"fp32": toy(0, 0), "int8": toy(difference, bits)},
                         "SmolLM2": {"fp32": real(0), "int8": real(perplexity)}})


@pytest.mark.parametrize("model, by, same", [
    ("toy", {}, True), ("toy", {"difference": -0.011}, False), ("toy", {"difference": -0.009}, True),
    ("toy", {"bits": 0.021}, False), ("toy", {"bits": 0.019}, True),
    ("SmolLM2", {"perplexity": 0.021}, False), ("SmolLM2", {"perplexity": 0.019}, True)])
def test_the_same_quality_is_what_the_course_says(model, by, same):
    assert made(**by).same_quality(model, "int8") == same


def test_tables_have_a_row_for_each_and_speeds_where_they_are_given():
    scores = made(difference=-0.02, perplexity=7.0)
    table = scores.table("toy", {"int8": 1234.5})
    assert {name: row["tokens/s"] for name, row in table.rows.items()} == {"int8": ("1,234", ""), "fp32": ("-", "")}
    assert table.rows["int8"]["standard, %"] == ("88.0", "-2.0 (-3.0 to -1.0)")
    assert scores.by_domain().rows["int8"] == {"sums": ("90.0", "(60 to 98)")}  # Wilson's interval of 9 in 10
    assert [row["same"][0] for row in table.rows.values()] == ["yes", "no"]
    assert not any(small for _, small in table.rows["fp32"].values())
    assert "tokens/s" not in scores.table("SmolLM2").columns
    assert list(scores.table("toy", schemes=["int8"]).rows) == ["int8"]
    assert scores.table("SmolLM2").rows["int8"]["perplexity"] == ("104.00", "8.0 times (8.0 to 8.0)")
    assert scores.table("SmolLM2").rows["int8"]["head kept"] == ("58.50", "+350% (+349 to +351)")
    assert made(perplexity=0.5).table("SmolLM2").rows["int8"]["perplexity"][1] == "+50.0% (+49.0 to +51.0)"


def test_a_table_says_the_same_in_words_and_in_html():
    table = made(difference=-0.02).table("toy", {"int8": 1234.5})
    caption, head, *lines = repr(table).splitlines()
    assert caption == table.caption and [line.split()[0] for line in lines] == list(table.rows)
    assert len({len(line) for line in (head, *lines)}) == 1
    html = table._repr_html_()
    parsed = ElementTree.fromstring(html.replace("<br>", ""))
    assert parsed.find("caption").text == table.caption
    assert [th.text for th in parsed.iter("th")] == [*table.columns, *table.rows]
    for tr, row in zip(parsed.findall("tbody/tr"), table.rows.values(), strict=True):
        found = [(td.text, small.text if (small := td.find("small")) is not None else "") for td in tr.findall("td")]
        assert found == list(row.values())
    escaped = Table("a & b", {"<x>": {"n": ("1", "")}})._repr_html_()
    assert "a &amp; b" in escaped and "&lt;x&gt;" in escaped


def test_a_loss_is_above_zero_where_it_is_worse():
    value, low, high = made(difference=-0.02).lost("toy", "int8", "standard")
    assert value == 2.0 and low < value < high
    assert made(perplexity=0.5).lost("SmolLM2", "int8", "perplexity")[0] == 50
    assert made(bits=-0.1).lost("toy", "int8", "bits")[0] == -10


def test_caches_were_judged_from_the_nearest_pair_to_the_farthest():
    caches = SCORES.stored["caches"]
    assert next(iter(caches)) == "fp32" and SCORES.cache_change("fp32").difference == 0
    for name, row in caches.items():
        assert [int(at) for at in row["distances"]] == list(DISTANCES)
        assert all(0 <= s["right"] <= s["n"] for s in row["distances"].values()) and len(row["quarters"]) == 4
        text = SCORES.cache_change(name)
        assert SCORES.cache_change(name, quarter=3) == Change(**row["quarters"][3])
        assert row["perplexity"] / caches["fp32"]["perplexity"] - 1 == pytest.approx(text.difference)
    assert list(SCORES.cache_table().rows) == list(caches)
    table = SCORES.cache_table().rows
    assert table["fp32"]["bits"] == ("32.00", "") and not any(small for _, small in table["fp32"].values())
    assert all(table[name]["6 back"][1].endswith(")") for name in list(table)[1:])


@pytest.mark.parametrize("name, bits, group", [("8 bits by 32", 8, 32), ("4 bits by 16", 4, 16),
                                               ("4 bits by 32", 4, 32), ("4 bits by head", 4, None)])
def test_the_stored_bits_of_a_cache_are_those_that_it_holds(name, bits, group):
    cache = QuantizedKVCache(load_toy().cfg, 1, 8, bits, group)
    assert SCORES.caches[name]["bits_per_value"] == cache.bits_per_value


@pytest.mark.parametrize("name, cache", [("fp32", None), ("8 bits by 32", partial(QuantizedKVCache, bits=8))])
def test_the_stored_look_ups_are_what_the_toy_answers(name, cache):
    asked = [p for at in DISTANCES for p in look_up_at(at, 2, 0, ROOM)]
    answers = right(load_toy(), asked, cache)
    stored = [SCORES.caches[name]["lists"][i][at] == "1" for at in range(len(DISTANCES)) for i in range(2)]
    assert sum(a == b for a, b in zip(answers, stored, strict=True)) >= len(stored) - 1  # rounding may decide one


def test_the_stored_answers_add_up():
    for name, row in SCORES.caches.items():
        for i, s in enumerate(row["distances"].values()):
            assert s["right"] == sum(answers[i] == "1" for answers in row["lists"]) and s["n"] == len(row["lists"])
        lost = sum(SCORES.cache_change(name, at).difference for at in DISTANCES) / len(DISTANCES)
        assert SCORES.cache_look_ups(name).difference == pytest.approx(lost, abs=1e-12)


def test_a_verdict_is_unsure_where_an_interval_is():
    assert [made().verdict(model, "int8") for model in ("toy", "SmolLM2")] == ["yes", "yes"]
    assert made(difference=-0.009).verdict("toy", "int8") == "unsure"
    assert made(difference=-0.011).verdict("toy", "int8") == "no"


@pytest.mark.parametrize("ask, says", [
    (lambda s: s.cache_change("9 bits"), "unknown cache '9 bits'"),
    (lambda s: s.cache_change("fp32", 7), "unknown distance '7'"),
    (lambda s: s.cache_change("fp32", quarter=-1), "unknown quarter '-1'"),
    (lambda s: s.cache_change("fp32", 6, 3), "distance 6 and quarter 3 were given"),
    (lambda s: s.cache_look_ups("9 bits"), "unknown cache '9 bits'"),
    (lambda s: s.domains("int8", "easy"), "unknown split 'easy'"),
    (lambda s: s.by_domain("easy"), "unknown split 'easy'"),
    (lambda s: s.change("toy", "int8", "perplexity"), "unknown measure 'perplexity'"),
    (lambda s: s.lost("SmolLM2", "int8", "bits"), "unknown measure 'bits'"),
    (lambda s: s.same_quality("Toy", "int8"), "unknown model 'Toy'"),
    (lambda s: s.table("toy", schemes=[]), "allowed: one name at least"),
    (lambda s: s.table("toy", schemes="int8"), "allowed: one name at least"),
    (lambda s: viz.frontier(s, []), "allowed: one name at least"),
    (lambda s: FormatScores({}).cache_table(), "no cache was judged yet")])
def test_what_was_not_judged_is_refused_in_words(ask, says):
    with pytest.raises((UnknownNameError, BadInputError, MissingFactError), match=says):
        ask(SCORES)


def test_the_figure_shows_every_measure_of_the_same_quality(monkeypatch):
    drawn = []
    monkeypatch.setattr(viz, "_losses", lambda ax, lost, limit: drawn.append((lost, limit)))
    viz.frontier(SCORES, ("int3", "int8"))
    limits = [100 * most for limits in SCORES.limits.values() for most in limits.values()]
    assert [limit for _, limit in drawn] == limits
    assert drawn[0][0] == [SCORES.lost("toy", name, "standard") for name in ("int8", "int3")]  # most bits first
    assert drawn[-1][0] == [SCORES.lost("SmolLM2", name, "cloze") for name in ("int8", "int3")]


@pytest.mark.parametrize("model, scheme, says", [("Toy", "int8", "unknown model 'Toy'"),
                                                 ("toy", "int9", "unknown scheme 'int9'")])
def test_what_was_not_judged_is_refused(model, scheme, says):
    with pytest.raises(UnknownNameError, match=says):
        SCORES.of(model, scheme)
