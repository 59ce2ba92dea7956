"""Stored scores of the number formats: all are there, they belong to the code as it is, tables say what they hold."""

import pytest

from llmflation.errors import UnknownNameError
from llmflation.evaluate import PROBLEMS
from llmflation.format_scores import FormatScores
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


def test_tables_have_a_line_for_each_and_speeds_where_they_are_given():
    scores = made(difference=-0.02, perplexity=7.0)
    lines = repr(scores.table("toy", {"int8": 1234.5})).splitlines()
    assert len(lines) == 3 and lines[0].endswith("tokens/s")
    assert {line.split()[0]: line.split()[-1] for line in lines[1:]} == {"int8": "1,234", "fp32": "-"}
    assert "-2.0 (-3.0 to -1.0)" in repr(scores.table("toy", schemes=["int8"]))
    assert "tokens/s" not in repr(scores.table("SmolLM2"))
    assert "more than 5 times" in repr(scores.table("SmolLM2", schemes=["int8"]))
    assert repr(scores.by_domain()).splitlines()[1].split()[-1] == "90.0"


def test_a_point_of_the_frontier_is_a_loss_with_its_interval():
    bits, value, low, high = made(difference=-0.02).point("toy", "int8")
    assert (bits, value) == (8.0, 2.0) and low < value < high
    assert made(perplexity=0.5).point("SmolLM2", "int8")[1] == 50


@pytest.mark.parametrize("model, scheme, says", [("Toy", "int8", "unknown model 'Toy'"),
                                                 ("toy", "int9", "unknown scheme 'int9'")])
def test_what_was_not_judged_is_refused(model, scheme, says):
    with pytest.raises(UnknownNameError, match=says):
        SCORES.of(model, scheme)
