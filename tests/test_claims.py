"""Claims and glued numbers: guards that bite, outputs that the book can collect, and life without a notebook."""

import datetime as dt
import json
import math
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from llmflation.claims import KINDS, PREFIX, claim, factor, glue
from llmflation.cost.ledger import Factor
from llmflation.errors import BadInputError, ClaimError


@pytest.fixture(scope="module")
def outputs():
    """What a notebook's cell with one glued number and two claims puts out."""
    cell = nbformat.v4.new_code_cell(
        "from llmflation import claim, glue\n"
        "glue('n-quoted', 0.0656, 'quoted', '${:.3f}')\n"
        "glue('n-measured', 3.14, 'measured')\n"
        "claim('c-one', 'It fell.', 285.7, (280, 290), fmt='{:.0f}')\n"
        "claim('c-two', 'It is faster.', 9.0, (1.5, float('inf')), kind='measured')")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    nbformat.validate(notebook)
    json.loads(nbformat.writes(notebook), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    return cell.outputs


def records(outputs, kind):
    return {r["id"]: r for o in outputs if (r := o.get("metadata", {}).get("llmflation", {}).get(kind))}


def test_a_glued_number_carries_its_text_its_kind_and_its_mark(outputs):
    number = records(outputs, "number")["n-quoted"]
    assert number == {"id": "n-quoted", "value": 0.0656, "text": "$0.066", "kind": "quoted"}
    output = next(o for o in outputs if o.get("metadata", {}).get("scrapbook", {}).get("name") == "n-quoted")
    assert output.metadata.scrapbook.mime_prefix == PREFIX
    assert output.data[PREFIX + "text/html"] == '<span class="num quoted" title="quoted">$0.066</span>'


def test_a_claim_is_recorded_whole(outputs):
    claims = records(outputs, "claim")
    assert set(claims) == {"c-one", "c-two"}
    assert {"id", "statement", "value", "text", "low", "high", "kind", "machine", "date"} == set(claims["c-one"])
    assert claims["c-one"]["low"] == 280 and claims["c-one"]["date"] == dt.date.today().isoformat()
    assert claims["c-two"]["high"] is None, "an open bound is null: infinity is no JSON"


def test_what_a_plain_notebook_shows(outputs):
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "n-measured: 3.14 ● measured" in printed
    assert "c-one: It fell. 286 ○ quoted, guarded from 280 to 290" in printed
    assert "n-quoted" not in printed, "a quoted number stands in the prose already"


def test_without_a_notebook_a_claim_prints_its_sentence():
    code = "from llmflation import claim; claim('x', 'It holds.', 10, (9, 11))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8",
                          env={**__import__("os").environ, "PYTHONUTF8": "1"})
    assert done.stdout == "x: It holds. 10 ○ quoted, guarded from 9 to 11\n"


@pytest.mark.parametrize("value", [279.9, 290.1, math.nan])
def test_a_claim_out_of_its_range_stops(value):
    with pytest.raises((ClaimError, BadInputError)):
        claim("c", "It fell.", value, (280, 290))
    with pytest.raises(ClaimError, match="claim c no longer holds: 'It fell.' allows 280 to 290, the number is 12"):
        claim("c", "It fell.", 12, (280, 290))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "measured"])
def test_a_guard_may_not_be_wider_than_a_quarter(kind):
    with pytest.raises(BadInputError, match="reaches more than 25%"):
        claim("c", "It fell.", 100, (70, 110), kind=kind)
    claim("c", "It fell.", 100, (75, 125), kind=kind)


@pytest.mark.parametrize("between", [(-math.inf, math.inf), (0.5, math.inf), (0.2, 1)])
def test_a_measured_ratio_must_exclude_no_effect(between):
    with pytest.raises(BadInputError, match="contains 1"):
        claim("c", "It is faster.", 0.9, between, kind="measured")
    claim("c", "It is slower.", 0.9, (0, 0.95), kind="measured")


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: claim("c", "s", 1, (2, 1)), r"must be \(low, high\)", id="reversed"),
    pytest.param(lambda: claim("c", "s", 1, 5), "is not a pair", id="one-number"),
    pytest.param(lambda: claim("c", "s", 1, (math.nan, 2)), r"must be \(low, high\)", id="nan-bound"),
    pytest.param(lambda: claim("c", "s", "1", (0.9, 1.1)), "'1' is not a number", id="text-value"),
    pytest.param(lambda: claim("c", "s", 1, (0.9, 1.1), kind="guessed"), "'guessed' is none of measured", id="kind"),
    pytest.param(lambda: glue("", 1), "'' is not a name", id="no-id"),
    pytest.param(lambda: glue("x", math.inf), "the value is inf", id="infinite"),
])
def test_bad_input(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


def test_a_factor_is_printed_with_its_conditions_and_refused_if_it_is_none(capsys):
    factor("x", Factor("8 bits", "measured", 2.0, 1.9, 2.1, "batch 1", "the batch is large"))
    assert "8 bits: 2 times cheaper (1.9 to 2.1), measured\n  under: batch 1\n  loses when" in capsys.readouterr().out
    with pytest.raises(BadInputError, match="is no Factor"):
        factor("x", 2.0)
