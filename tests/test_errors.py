"""Laws of the errors: they are caught by one name, they read as plain text and they name the nearest."""

import copy
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import errors
from llmflation.errors import (
    BadInputError,
    ClaimError,
    DataError,
    LLMflationError,
    MissingFactError,
    UnknownNameError,
    bad_input,
    nearest,
    unknown_name,
)


def test_worked_lines():
    assert doctest.testmod(errors, raise_on_error=True).attempted >= 3


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (BadInputError, ValueError),
        (UnknownNameError, KeyError),
        (DataError, ValueError),
        (MissingFactError, LookupError),
        (ClaimError, AssertionError),
    ],
)
def test_each_error_is_ours_and_a_builtin(ours, builtin):
    error = ours("what happened")
    assert isinstance(error, LLMflationError)
    assert isinstance(error, builtin)
    assert str(error) == "what happened"


def test_a_key_error_reads_as_plain_text():
    error = unknown_name("model", "Lama", ["Llama", "Qwen"])
    assert str(error).startswith("unknown model 'Lama'; nearest: 'Llama'")
    assert "\\" not in str(error)


def test_unknown_name_without_a_near_one_says_what_there_is():
    assert "'T4'" in str(unknown_name("accelerator", "zzzz", ["T4"]))
    assert "none" in str(unknown_name("accelerator", "zzzz", []))


def test_bad_input_names_value_allowed_and_remedy():
    message = str(bad_input("repeat", -1, "1 or more", "Leave it out."))
    assert all(part in message for part in ("repeat", "-1", "1 or more", "Leave it out."))


def test_a_huge_value_is_shortened():
    assert len(str(bad_input("x", "y" * 10_000, "less"))) < 200
    assert len(str(unknown_name("x", "y" * 10_000, ["y"]))) < 300


def test_data_error_names_the_place():
    error = DataError("found '$3'", file="prices.csv", line=14, column="usd")
    assert str(error) == "prices.csv line 14, column 'usd': found '$3'"
    assert (error.file, error.line, error.column) == ("prices.csv", 14, "usd")
    assert str(DataError("empty")) == "empty"


def test_errors_survive_being_copied():
    # By the same way, test runners and executors carry errors from one process to another.
    error = copy.copy(DataError("x", file="a.csv", line=2))
    assert str(error) == "a.csv line 2: x"
    assert error.line == 2


@pytest.mark.parametrize(
    ("name", "known", "first"),
    [
        ("H10O", ["T4", "H100 SXM5 80GB", "L4"], "H100 SXM5 80GB"),
        ("h100", ["A100", "H100 PCIe 80GB"], "H100 PCIe 80GB"),
        ("llama-3.1-8b", ["Llama-3-8B", "Llama-3.1-8B"], "Llama-3.1-8B"),
        ("Mixtral", ["Mistral-7B", "Mixtral-8x7B"], "Mixtral-8x7B"),
    ],
)
def test_nearest_name_comes_first(name, known, first):
    assert nearest(name, known)[0] == first


@given(st.text() | st.none() | st.integers(), st.lists(st.text(), max_size=8))
def test_nearest_never_fails_and_invents_nothing(name, known):
    assert set(nearest(name, known)) <= set(known)
    assert str(unknown_name("thing", name, known))
