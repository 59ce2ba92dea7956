"""Guesses: kept before, compared after, exported for a class, never lost."""

import csv
import json
import math
import os

import pytest

from llmflation import predictions
from llmflation.errors import BadInputError
from llmflation.predictions import compare_prediction, export_predictions, predict


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictions, "_memory", {})
    return tmp_path


def test_a_guess_is_kept_and_compared(capsys):
    predict("01-factor", 20, "times per year")
    assert "Noted: 20 times per year" in capsys.readouterr().out
    made = compare_prediction("01-factor", 5, "times per year")
    assert made.factor == 4
    assert repr(made) == "The answer is 5 times per year, you guessed 20 times per year: 4 times too high."


@pytest.mark.parametrize("guess, says", [(4.9, "very close"), (1, "5 times too low"), (-3, "you guessed -3 x.")])
def test_the_verdict(guess, says):
    predict("q", guess, "x")
    assert says in repr(compare_prediction("q", 5, "x"))


def test_none_says_how_and_keeps_an_older_guess(capsys):
    predict("q", 7)
    predict("q", None)
    assert "write a number in place of None" in capsys.readouterr().out
    assert compare_prediction("q", 7).guess == 7


def test_without_a_guess_nothing_is_written(here):
    predict("q")
    assert "No guess was noted" in repr(compare_prediction("q", 7))
    assert not list(here.iterdir())


@pytest.mark.parametrize("guess", ["10", "ten", True, math.nan, math.inf, [10], 3 + 1j])
def test_a_guess_that_is_no_number(guess, here):
    predict("other", 1)
    with pytest.raises(BadInputError, match="is not a number; write it plainly"):
        predict("q", guess)
    assert set(json.loads((here / predictions.FILE).read_text())) == {"other"}, "the kept guesses are untouched"


def test_export_is_a_table_for_a_teacher(here):
    predict("b", 2, "x")
    predict("a", 10, "x")
    compare_prediction("a", 5)
    path = export_predictions("out.csv", reader="=cmd()")
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert [r["id"] for r in rows] == ["a", "b"]
    assert rows[0]["guess"] == "10.0" and rows[0]["result"] == "5.0" and rows[0]["factor"] == "2.0"
    assert rows[1]["result"] == ""
    assert rows[0]["reader"] == "'=cmd()", "no spreadsheet may run it"


def test_nothing_to_export_is_said():
    with pytest.raises(BadInputError, match="no guesses are kept"):
        export_predictions()


def test_a_table_that_cannot_be_written_is_said(here):
    predict("q", 1)
    with pytest.raises(BadInputError, match="cannot write .*name a file in a folder of yours"):
        export_predictions(here / "no such folder" / "out.csv")


def test_a_broken_file_is_put_aside_not_lost(here, capsys):
    (here / predictions.FILE).write_text('{"q": {"guess": 3', encoding="utf-8")
    predict("r", 1)
    assert "now lies in" in capsys.readouterr().out
    assert (here / (predictions.FILE + ".unreadable")).read_text() == '{"q": {"guess": 3'
    assert compare_prediction("r", 1).guess == 1


def test_a_folder_that_cannot_be_written_keeps_guesses_in_memory(here, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError("read-only")
    monkeypatch.setattr(os, "replace", refuse)
    predict("q", 4)
    predict("r", 5)
    assert capsys.readouterr().out.count("cannot be written") == 1
    assert compare_prediction("q", 4).guess == 4 and compare_prediction("r", 5).guess == 5


def test_an_interrupted_write_leaves_the_old_guesses(here, monkeypatch):
    predict("q", 4)
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict("q", 9)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert compare_prediction("q", 4).guess == 4
