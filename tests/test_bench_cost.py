"""The bench of the cost model: its targets hold, its rows come from the data, any file with the columns will do."""

import csv
import math

import pytest
from bench import cost

from llmflation import facts
from llmflation.cost.published import agreement, predicted, published_cases
from llmflation.cost.roofline import IDEAL, TYPICAL
from llmflation.errors import BadInputError


@pytest.fixture(scope="module")
def cases():
    return published_cases()[0]


def test_every_target_is_met():
    """Nothing here is timed: the same numbers come out on every machine."""
    rows, notes = cost.rows(quick=True)
    assert {row.name: row.met for row in rows} == dict.fromkeys(
        ["median-agreement", "p90-agreement", "cost-vs-genz", "cost-vs-llm-viewer", "cost-vs-llm-analysis",
         "cost-vs-mlsysim"], True)
    assert "wrong by more than 2" in notes[0] and any(note.startswith("left out, ") for note in notes)


def test_every_row_is_predicted_or_counted_with_a_reason():
    found, why = published_cases()
    assert len(found) + why.total() == len(facts.read("serving_benchmarks"))
    complete = [row for row in facts.read("serving_benchmarks")
                if all(row[column] is not None for column in ("model_key", "accelerator_key", "precision", "input_len",
                                                              "output_len"))]
    assert [c.id for c in found] == [row["row_id"] for row in complete]


def test_the_constants_are_what_the_calibration_rows_say(cases):
    assert cost.fit([c for c in cases if c.calibrates]) == TYPICAL
    assert 0.2 < sum(c.calibrates for c in cases) / len(cases) < 0.3


def test_no_published_row_beats_the_bound(cases):
    """But for one with a draft model, whose steps write several tokens, and one that all but fills its chip: its batch
    is the larger the more bytes the chip holds above the data sheet's."""
    assert {c.id for c in cases if (predicted(c, IDEAL) > c.value) == c.is_time} == {"b168", "b308"}


def test_another_file_with_the_columns_is_scored_whole(tmp_path):
    rows = [row for row in facts.read("serving_benchmarks") if row["row_id"] in ("b137", "b139", "b280")]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({k: "" if row[k] is None else row[k] for k in row} for row in rows)
    found, notes = cost.rows(False, ["--rows", str(path)])
    assert [row.name for row in found] == ["median-agreement", "p90-agreement"]
    assert "3 rows can be predicted, 3 of them are scored." in notes


@pytest.mark.parametrize(("text", "says"), [
    ("", "lacks the columns"),
    ("row_id,model_key\nx,y\n", "lacks the columns accelerator_key"),
    ("row_id,model_key,accelerator_key,precision,input_len,output_len,metric,value\n"
     "x,No-Such-Model,H100 SXM5 80GB,fp8,128,128,output throughput per accelerator,5\n", "no row can be predicted"),
])
def test_a_file_that_cannot_be_scored_is_one_error(tmp_path, text, says):
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInputError, match=says):
        cost.rows(False, ["--rows", str(path)])


def test_a_file_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        cost.rows(False, ["--rows", str(tmp_path / "none.csv")])


def test_agreement_is_one_for_equals_and_symmetric():
    assert agreement(3.0, 3.0) == 1 and agreement(2.0, 5.0) == agreement(5.0, 2.0) == pytest.approx(0.4)


def test_one_factor_sets_a_peer_right_without_touching_ours():
    row, note = cost.beside("genz", published_cases()[0])
    assert row.ratio > 1.5 and math.isfinite(row.high) and "multiplied by" in note


def test_the_peers_were_asked_about_the_cases_that_we_predict(cases):
    """cases.csv holds the numbers of today's library; make_cases.py writes it anew."""
    from bench.peers import make_cases
    from bench.peers.rows import CASES

    rows = {row["row_id"]: row for row in facts.read("serving_benchmarks")}
    with CASES.open(newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    fresh = [{k: "" if v is None else str(make_cases._short(v)) for k, v in make_cases.described(c, rows[c.id]).items()}
             for c in cases]
    assert stored == fresh
