"""Laws of the reader: it takes exactly what the file says, and refuses what it cannot trust."""

import csv
import doctest
import io
import math
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmflation import facts
from llmflation.errors import DataError, MissingFactError, UnknownNameError

COLUMNS = list(facts.SCHEMAS["token_prices"].columns)
GOOD = {
    "model": "GPT-Z",
    "provider": "Acme",
    "open_weights": "no",
    "date": "2024-02-29",
    "date_kind": "launch",
    "input_usd_per_mtok": "3.00",
    "output_usd_per_mtok": "15",
    "verified": "yes",
}


def rows(*changes, columns=COLUMNS, end="\n"):
    """A token_prices file: a header and one row for each dict of changes to GOOD."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=end)
    writer.writerow(columns)
    for i, change in enumerate(changes):
        cells = GOOD | {"model": f"GPT-{i}"} | change
        writer.writerow([cells.get(c, "") for c in columns])
    return out.getvalue()


@pytest.fixture
def read(tmp_path):
    def read_text(text, name="token_prices"):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return facts.read(name, path=path)

    return read_text


def test_worked_lines():
    assert doctest.testmod(facts, raise_on_error=True).attempted >= 1


@pytest.mark.parametrize("name", facts.SCHEMAS)
def test_every_shipped_table_reads(name):
    assert facts.read(name)


def test_every_shipped_file_has_a_schema():
    assert {p.stem for p in facts.DATA_DIR.glob("*.csv")} == set(facts.SCHEMAS)


def test_an_unknown_table_gets_the_nearest_names():
    with pytest.raises(UnknownNameError, match="token_prices"):
        facts.read("token_price")
    with pytest.raises(UnknownNameError):
        facts.read(["token_prices"])


def test_values_have_their_kind(read):
    (row,) = read(rows({"mmlu": "64.8"}))
    assert row["date"] == date(2024, 2, 29)
    assert row["input_usd_per_mtok"] == 3.0
    assert row["open_weights"] is False
    assert row["mmlu"] == 64.8
    assert row["cached_input_usd_per_mtok"] is None
    assert list(row) == COLUMNS


def test_a_row_is_read_only_and_knows_its_place(read):
    _, row = read(rows({}, {}))
    assert row.where == "token_prices.csv line 3"
    with pytest.raises(TypeError):
        row["mmlu"] = 3
    with pytest.raises(UnknownNameError, match="mmlu"):
        row["mmul"]
    assert "mmul" not in row
    assert row.get("mmul") is None


def test_a_missing_fact_is_named_not_filled(read):
    (row,) = read(rows({}))
    assert row.require("input_usd_per_mtok") == 3.0
    with pytest.raises(MissingFactError) as error:
        row.require("cached_input_usd_per_mtok")
    for part in ("token_prices.csv line 2", "GPT-0", "cached_input_usd_per_mtok"):
        assert part in str(error.value)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("final", [True, False], ids=["final-newline", "no-final-newline"])
def test_bom_and_line_ends_make_no_difference(read, bom, end, final):
    plain, text = rows({"note": 'a "b", c'}, {}), rows({"note": 'a "b", c'}, {}, end=end)
    assert read(bom + (text if final else text.removesuffix(end)).encode()) == read(plain)


def test_columns_may_stand_in_any_order_and_blank_lines_are_nothing(read):
    assert [dict(r) for r in read(rows({}, columns=COLUMNS[::-1]))] == [dict(r) for r in read(rows({}) + "\n\n")]


def test_a_formula_is_just_text(read):
    (row,) = read(rows({"note": '=cmd("calc")', "model": "@SUM(A1)"}))
    assert (row["model"], row["note"]) == ("@SUM(A1)", '=cmd("calc")')


def test_a_line_number_is_the_physical_line_on_which_the_row_begins(read):
    first, second = read(rows({"note": "two\nlines\r\nand three"}, {}))
    assert (first.line, second.line) == (2, 5)
    with pytest.raises(DataError) as error:
        read(rows({"note": "two\nlines"}, {"mmlu": "x"}))
    assert error.value.line == 4


BAD_CELLS = {
    "dollar-sign": ("input_usd_per_mtok", "$3.00"),
    "thousands-separator": ("input_usd_per_mtok", "1,234"),
    "decimal-comma": ("input_usd_per_mtok", "3,5"),
    "word-for-a-number": ("input_usd_per_mtok", "n/a"),
    "negative-price": ("input_usd_per_mtok", "-3.00"),
    "zero-price": ("input_usd_per_mtok", "0"),
    "empty-price": ("input_usd_per_mtok", ""),
    "nan": ("mmlu", "nan"),
    "infinity": ("mmlu", "inf"),
    "overflow": ("cached_input_usd_per_mtok", "1e999"),
    "underscore": ("input_usd_per_mtok", "1_000"),
    "percent": ("mmlu", "64.8%"),
    "score-above-100": ("mmlu", "648"),
    "unicode-digits": ("mmlu", "٤٢"),
    "blank-before": ("input_usd_per_mtok", " 3"),
    "blank-after-a-name": ("provider", "Acme "),
    "only-blanks": ("mmlu", "  "),
    "impossible-date": ("date", "2024-02-30"),
    "day-zero": ("date", "2024-01-00"),
    "us-date": ("date", "02/29/2024"),
    "date-with-time": ("date", "2024-02-29T00:00"),
    "two-digit-year": ("date", "0024-02-29"),
    "yes-no-word": ("open_weights", "true"),
    "unknown-choice": ("date_kind", "lunch"),
    "unknown-verified": ("verified", "maybe"),
}


@pytest.mark.parametrize(("column", "text"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_bad_cell_is_named_with_file_line_column_and_remedy(read, column, text):
    with pytest.raises(DataError) as error:
        read(rows({}, {column: text}))
    assert (error.value.file, error.value.line, error.value.column) == ("token_prices.csv", 3, column)
    message = str(error.value)
    assert message.startswith(f"token_prices.csv line 3, column {column!r}: ")
    assert repr(text) in message
    assert any(verb in message for verb in ("write", "correct", "remove"))


def whole(text, column=None, line=1):
    return text, column, line


BAD_FILES = {
    "missing-column": whole(rows({}, columns=[c for c in COLUMNS if c != "date"]), "date"),
    "typo-in-a-column": whole(rows({}).replace("mmlu_source", "mmlu_sauce"), "mmlu_source"),
    "extra-column": whole(rows({}, columns=[*COLUMNS, "extra"]), "extra"),
    "duplicated-column": whole(rows({}, columns=[*COLUMNS, "date"]), "date"),
    "duplicated-key": whole(rows({}, {}, {"model": "GPT-0"}), "model", 4),
    "semicolons": whole(rows({}).replace(",", ";"), None),
    "tabs": whole(rows({}).replace(",", "\t"), None),
    "too-few-cells": whole(rows({}) + "GPT-9,Acme,no\n", "date", 3),
    "too-many-cells": whole(rows({}).rstrip("\n") + ",more\n", COLUMNS[-1], 2),
    "unquoted-comma": whole(rows({"provider": "X"}).replace(",X,", ",X, Inc,"), COLUMNS[-1], 2),
    "latin-1": whole(rows({"provider": "Café"}).encode("latin-1"), "provider", 2),
    "latin-1-header": whole(rows({}).replace("note", "noté").encode("latin-1"), None),
    "utf-16": whole(rows({}).encode("utf-16"), None),
    "empty-file": whole("", None),
    "open-quote": whole(rows({}) + 'GPT-9,"Acme,no\n', None, 3),
    "text-after-a-quote": whole(rows({"note": "a,b"}).replace('"a,b"', '"a,b"c'), None, 2),
    "cell-beyond-the-limit": whole(rows({}) + "x" * 200_000, None, 3),
    "nul-bytes": whole(b"\0" * 100, None),
}


@pytest.mark.parametrize(("text", "column", "line"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_with_the_place(read, text, column, line):
    with pytest.raises(DataError) as error:
        read(text)
    assert error.value.file == "token_prices.csv"
    assert error.value.line == line
    if column:
        assert error.value.column == column


def test_a_missing_column_comes_with_those_found(read):
    text = rows({}, columns=["modle" if c == "model" else c for c in COLUMNS])
    with pytest.raises(DataError, match=r"'model' is missing.*found: 'modle', 'provider'.*'modle' is no column"):
        read(text)


def test_an_extra_column_comes_with_its_likely_meaning(read):
    with pytest.raises(DataError, match="did you mean 'mmlu'"):
        read(rows({}, columns=[*COLUMNS, "mmmlu"]))


def test_a_duplicated_key_names_both_lines(read):
    with pytest.raises(DataError, match=r"line 4.*GPT-0.*line 2"):
        read(rows({}, {}, {"model": "GPT-0"}))


@pytest.mark.parametrize("path", ["no-such-file.csv", ".", "a\0b"], ids=["absent", "folder", "nul"])
def test_a_path_that_cannot_be_read(path):
    with pytest.raises(DataError, match="Check the path"):
        facts.read("token_prices", path=path)


# Laws.

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\r\t,";'), min_size=1).filter(
    lambda s: s == s.strip()
)
PRICES = st.floats(min_value=1e-6, max_value=1e9)
RECORDS = st.fixed_dictionaries(
    {
        "model": TEXTS,
        "provider": TEXTS,
        "open_weights": st.none() | st.booleans(),
        "date": st.dates(date(2000, 1, 1), date(2099, 12, 31)),
        "date_kind": st.sampled_from(["plan", "launch", "as_of"]),
        "input_usd_per_mtok": PRICES,
        "output_usd_per_mtok": PRICES,
        "cached_input_usd_per_mtok": st.none() | PRICES,
        "mmlu": st.none() | st.floats(0, 100),
        "mmlu_source": st.none() | TEXTS,
        "active_params_b": st.none() | PRICES,
        "total_params_b": st.none() | PRICES,
        "source_title": st.none() | TEXTS,
        "source_url": st.none() | TEXTS,
        "source_date": st.none() | st.dates(date(2000, 1, 1), date(2099, 12, 31)),
        "verified": st.sampled_from(["yes", "partial", "no"]),
        "note": st.none() | TEXTS,
    }
)
ROUND = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)


@ROUND
@given(
    records=st.lists(RECORDS, max_size=4, unique_by=lambda r: (r["model"], r["provider"], r["date"])),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read(read, records, end):
    out = io.StringIO()
    # Quoting all: left to itself, the writer leaves a lone CR bare, which is then a line's end.
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    writer.writerows([written(r[c]) for c in COLUMNS] for r in records)
    found = read(out.getvalue())
    assert [dict(r) for r in found] == records
    # A physical line ends where a text editor ends it: at LF, CR or CRLF.
    lines = io.StringIO(out.getvalue(), newline=None).read().split("\n")
    for row, record in zip(found, records, strict=True):
        first = io.StringIO(record["model"], newline=None).read().split("\n")[0]
        assert first.replace('"', '""') in lines[row.line - 1]


@ROUND
@given(raw=st.binary(max_size=300))
def test_any_bytes_give_rows_or_our_error(read, raw):
    with pytest.raises(DataError):
        read(raw)


@ROUND
@given(data=st.data())
def test_a_damaged_file_gives_rows_or_our_error(read, data):
    raw = bytearray(rows({"note": 'quoted, "text"'}, {"mmlu": "64.8"}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(raw))
    except DataError:
        return
    for row in found:
        assert row["input_usd_per_mtok"] > 0
        assert row["mmlu"] is None or math.isfinite(row["mmlu"])


# The catalogue of things by name.

CHIPS = facts.Catalogue("chip", {"H100 SXM": 1, "H100 PCIe": 2, "B200 SXM": 3, "GB200": 4, "L4": 5, "L40S": 6})


@pytest.mark.parametrize(
    ("short", "full"),
    [("H100 SXM", "H100 SXM"), ("h100 sxm", "H100 SXM"), ("b200", "B200 SXM"), ("L4", "L4"), ("l4 ", "L4")],
)
def test_a_short_name_will_do_where_it_fits_one(short, full):
    assert CHIPS.full_name(short) == full


@pytest.mark.parametrize("name", ["H10O", "L", "", "   ", "B20", None, 3, ("H100 SXM",)])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown chip"):
        CHIPS.full_name(name)
    with pytest.raises(UnknownNameError):
        CHIPS[name]


def test_an_ambiguous_name_lists_the_candidates():
    with pytest.raises(UnknownNameError, match=r"'H100 SXM', 'H100 PCIe'\. Write the full name"):
        CHIPS.full_name("H100")


def test_a_catalogue_is_a_mapping():
    assert "H100" not in CHIPS
    assert list(CHIPS) == ["H100 SXM", "H100 PCIe", "B200 SXM", "GB200", "L4", "L40S"]
    assert repr(CHIPS).startswith("6 chips: H100 SXM, ")
