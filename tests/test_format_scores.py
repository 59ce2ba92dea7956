"""Stored scores of the number formats: all are there, they belong to the code as it is, tables say what they hold."""

from xml.etree import ElementTree

import pytest

from llmflation.errors import UnknownNameError
from llmflation.evaluate import DISTANCES, PROBLEMS
from llmflation.format_scores import Change, FormatScores, Table
from llmflation.pretrained import CHECKPOINTS, load_toy
from llmflation.quant.model import SCHEMES, bits_per_weight, model_bytes, quantize_model

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
                "perplexity_change": change(x), "cloze_change": change(0.0)}

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
    assert "tokens/s" not in scores.table("SmolLM2").columns
    assert list(scores.table("toy", schemes=["int8"]).rows) == ["int8"]
    assert scores.table("SmolLM2").rows["int8"]["perplexity"] == ("104.00", "more than 5 times")
    assert made(perplexity=0.5).table("SmolLM2").rows["int8"]["perplexity"][1] == "+50.0% (+49.0 to +51.0)"


def test_a_table_says_the_same_in_words_and_in_html():
    table = made(difference=-0.02).table("toy", {"int8": 1234.5})
    head, *lines = repr(table).splitlines()
    assert [line.split()[0] for line in lines] == list(table.rows) and len({len(line) for line in [head, *lines]}) == 1
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
        found, text = SCORES.cache_change(name, 6), SCORES.cache_change(name)
        assert found.low <= found.difference <= found.high
        assert SCORES.cache_change(name, quarter=3) == Change(**row["quarters"][3])
        assert row["perplexity"] / caches["fp32"]["perplexity"] - 1 == pytest.approx(text.difference)
    assert list(SCORES.cache_table().rows) == list(caches)
    table = SCORES.cache_table().rows
    assert table["fp32"]["bits"] == ("32.00", "") and not any(small for _, small in table["fp32"].values())
    assert all(table[name]["6 back"][1].endswith(")") for name in list(table)[1:])


@pytest.mark.parametrize("asked, says", [(("9 bits",), "unknown cache '9 bits'"),
                                         (("fp32", 7), "unknown distance '7'")])
def test_a_cache_that_was_not_judged_is_refused(asked, says):
    with pytest.raises(UnknownNameError, match=says):
        SCORES.cache_change(*asked)


@pytest.mark.parametrize("model, scheme, says", [("Toy", "int8", "unknown model 'Toy'"),
                                                 ("toy", "int9", "unknown scheme 'int9'")])
def test_what_was_not_judged_is_refused(model, scheme, says):
    with pytest.raises(UnknownNameError, match=says):
        SCORES.of(model, scheme)
