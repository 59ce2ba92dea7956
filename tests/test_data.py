"""Laws of the facts in `lib/llmflation/data`: units, dates, sources, keys, and the slips that tables invite."""

import csv
import datetime as dt
import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from llmflation import facts

ROOT = Path(__file__).parents[1]
TABLES = {name: facts.read(name) for name in facts.SCHEMAS}
ROWS = [pytest.param(name, id=name) for name in TABLES]
SOURCED = [pytest.param(name, id=name) for name in TABLES if name != "peer_cost_predictions"]

# What a cell may hold at most. A price per thousand tokens, a bandwidth in GB/s or a percentage falls outside.
RANGES = {
    "accelerators": {"process_nm": (2, 28), "fp32_tflops": (5, 250), "tf32_tflops": (30, 3000),
                     "bf16_tflops": (15, 6000), "fp8_tflops": (200, 12000), "int8_tops": (100, 12000),
                     "fp4_tflops": (1000, 40000), "hbm_gb": (8, 600), "hbm_tb_s": (0.1, 30), "tdp_w": (50, 3000),
                     "interconnect_gb_s": (16, 5000), "msrp_or_estimate_usd": (500, 100_000)},
    "electricity": {"value": (0.02, 3)},
    "gpu_rental_prices": {"usd_per_gpu_hour": (0.2, 40), "gpus_per_instance": (1, 16),
                          "usd_per_instance_hour": (0.2, 400)},
    "model_size_estimates": {"active_params_b": (1, 3000), "total_params_b": (1, 3000)},
    "models": {"layers": (2, 200), "hidden": (128, 32768), "head_dim": (32, 512), "vocab": (10_000, 500_000),
               "total_params_b": (0.05, 3000), "active_params_b": (0.05, 1000), "mmlu": (20, 100),
               "context": (1024, 2e7)},
    "peer_cost_predictions": {"latency_ms": (0.5, 1e5), "peak_tflops_assumed": (100, 3000),
                              "bw_gb_s_assumed": (500, 10_000), "weights_gb": (1, 2000)},
    "quality_price_epoch": {"usd_per_mtok_blended_3to1": (0.005, 200), "mmlu": (10, 100)},
    "request_lengths": {"prompt_tokens": (1, 200_000), "output_tokens": (1, 20_000)},
    "serving_benchmarks": {"accelerator_count": (1, 2048), "value": (0.1, 100_000)},
    "token_prices": {"input_usd_per_mtok": (0.004, 200), "output_usd_per_mtok": (0.004, 1000),
                     "cached_input_usd_per_mtok": (0.001, 100), "mmlu": (20, 100), "active_params_b": (0.1, 2000),
                     "total_params_b": (0.1, 5000)},
}
RANGES_BY_UNIT = {
    "energy": {"J/token": (0.01, 20), "Wh/query": (0.02, 60), "J/response": (1, 20_000)},
    "technique_effects": {"x": (0.02, 2000)},
    "published_trends": {"x per year": (1, 1000), "% per year": (1, 100), "months": (1, 60),
                         "USD per Mtok": (0.001, 100)},
}
EARLIEST = dt.date(2008, 1, 1)  # a PUE of 2008 is the oldest fact that is not history
LATEST = dt.date.today() + dt.timedelta(days=1)  # a day's grace for time zones


def values(name, column):
    return [(row, row[column]) for row in TABLES[name] if row[column] is not None]


def broken(message, rows):
    return f"{message}: " + "; ".join(f"{r.where} ({r.key})" for r in rows)


# ------------------------------------------------------------------------------------------- every table


@pytest.mark.parametrize("name", ROWS)
def test_a_table_reads(name):
    assert len(TABLES[name]) > 5


@pytest.mark.parametrize("name, column", [(n, c) for n, columns in RANGES.items() for c in columns])
def test_units_are_plausible(name, column):
    low, high = RANGES[name][column]
    assert values(name, column), f"{name} has no value in {column}"
    assert not (bad := [r for r, v in values(name, column) if not low <= v <= high]), broken(column, bad)


@pytest.mark.parametrize("name, unit", [(n, u) for n, units in RANGES_BY_UNIT.items() for u in units])
def test_values_fit_their_unit(name, unit):
    low, high = RANGES_BY_UNIT[name][unit]
    rows = [r for r in TABLES[name] if r["unit"] == unit]
    assert rows, f"no row of {name} is in {unit}"
    bad = [r for r in rows for c in ("value", "low", "high") if r[c] is not None and not low <= r[c] <= high]
    assert not bad, broken(unit, bad)


@pytest.mark.parametrize("name", ROWS)
def test_dates_are_past_and_recent(name):
    for column, cell in facts.SCHEMAS[name].columns.items():
        if cell.kind == "date":
            bad = [r for r, v in values(name, column) if not EARLIEST <= v <= LATEST]
            assert not bad, broken(f"{column} before {EARLIEST} or in the future", bad)


@pytest.mark.parametrize("name", ["accelerators", "models", "token_prices", "gpu_rental_prices", "quality_price_epoch"])
def test_what_the_course_is_about_began_in_2012(name):
    column = {"accelerators": "launch_date", "models": "release_date"}.get(name, "date")
    assert not (bad := [r for r, v in values(name, column) if v < dt.date(2012, 1, 1)]), broken(column, bad)


@pytest.mark.parametrize("name", ["energy", "published_trends", "technique_effects"])
def test_a_value_lies_in_its_range(name):
    for row in TABLES[name]:
        known = [row[c] for c in ("low", "value", "high") if row[c] is not None]
        assert known == sorted(known), f"{row.where}: low <= value <= high does not hold"
        assert (row["low"] is None) == (row["high"] is None), f"{row.where}: a range has two ends"


@pytest.mark.parametrize("name", ["electricity", "energy", "request_lengths", "serving_benchmarks",
                                  "technique_effects"])
def test_ids_are_unique_and_of_one_form(name):
    ids = [row["row_id"] for row in TABLES[name]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]\d{3}", i) for i in ids) and len({i[0] for i in ids}) == 1


# ----------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("name", SOURCED)
def test_each_fact_has_a_source(name, bibliography):
    for row in TABLES[name]:
        if row["verified"] == "no" and row.get("kind") == "unknown":
            continue  # says that nothing was found
        if name == "cloze" and row["source_title"] == "common knowledge":
            continue  # what every reader knows needs no address (tests/test_cloze.py)
        assert row["source_title"], f"{row.where} names no source"
        url = row["source_url"] or ""
        assert re.fullmatch(r"https?://[\w.-]+\.[a-z]+(/\S*)?", url) or row["source_title"] in bibliography, (
            f"{row.where}: neither a URL nor a key of references.bib")


@pytest.mark.parametrize("name", SOURCED)
def test_no_source_known_to_print_altered_numbers(name):
    for row in TABLES[name]:
        assert not re.search(r"fate-oracle\.com|brick-house\.org", row["source_url"] or ""), row.where


@pytest.mark.parametrize("name", SOURCED)
def test_memory_is_not_called_verified(name):
    bad = [r for r in TABLES[name] if r["verified"] == "yes"
           and re.match(r"(all )?(figures )?from memory", r["note"] or "")]
    assert not bad, broken("called verified, and from memory", bad)


@pytest.fixture(scope="session")
def bibliography():
    """references.bib as pybtex reads it. A doubled key is an error already."""
    pybtex = pytest.importorskip("pybtex.database")
    return pybtex.parse_file(ROOT / "references.bib").entries


def test_the_bibliography_has_no_doubles(bibliography):
    assert len(bibliography) > 100
    for field in ("eprint", "doi", "url", "title"):
        seen = Counter(e.fields[field].lower().strip("{}") for e in bibliography.values() if field in e.fields)
        assert not (twice := [v for v, n in seen.items() if n > 1]), f"{field} stands twice: {twice}"


def test_each_reference_can_be_found(bibliography):
    for key, entry in bibliography.items():
        assert re.fullmatch(r"[a-z-]+\d{4}[a-z0-9]*", key), f"{key} is not author, year, word"
        assert entry.fields.get("title") and re.fullmatch(r"\d{4}", entry.fields["year"]), key
        assert entry.persons.get("author"), f"{key} has no author"
        if "arxiv.org" in entry.fields.get("url", ""):
            assert entry.fields["url"].endswith(entry.fields["eprint"]), f"{key}: the address is another paper's"
        older = entry.type == "book" or int(entry.fields["year"]) < 1980
        assert older or "url" in entry.fields or "doi" in entry.fields, f"{key} has no address"


def test_no_double_key_is_overlooked(tmp_path):
    """The parser itself refuses what the test above counts on."""
    pybtex = pytest.importorskip("pybtex.database")
    (tmp_path / "a.bib").write_text("@misc{a2020b, title={A}}\n@misc{a2020b, title={B}}", encoding="utf-8")
    with pytest.raises(pybtex.BibliographyDataError):
        pybtex.parse_file(tmp_path / "a.bib")


# ------------------------------------------------------------------------------------------------ keys

RENTED_WITHOUT_DATA_SHEET = {"Inferentia2", "Trainium1"}


@pytest.mark.parametrize("name, column, table", [
    ("energy", "model_key", "models"), ("energy", "accelerator_key", "accelerators"),
    ("serving_benchmarks", "model_key", "models"), ("serving_benchmarks", "accelerator_key", "accelerators"),
    ("gpu_rental_prices", "accelerator", "accelerators"),
])
def test_keys_are_found(name, column, table):
    known = {row["name"] for row in TABLES[table]}
    if name == "gpu_rental_prices":
        assert not RENTED_WITHOUT_DATA_SHEET & known, "take it off the list of exceptions"
        known |= RENTED_WITHOUT_DATA_SHEET
    assert not (bad := [r for r, v in values(name, column) if v not in known]), broken(f"not in {table}", bad)


# ---------------------------------------------------------------------------------------------- prices


def by_offer():
    offers = defaultdict(list)
    for row in TABLES["token_prices"]:
        offers[row["model"], row["provider"]].append(row)
    return offers


def test_prices_stand_in_order():
    places = [(r["date"], r["provider"].lower(), r["model"].lower()) for r in TABLES["token_prices"]]
    for (before, after), row in zip(pairwise(places), TABLES["token_prices"][1:], strict=True):
        assert before <= after, f"{row.where} is out of order: sort by date, provider, model"


def test_output_costs_no_less_than_input_and_a_cached_token_no_more():
    for row in TABLES["token_prices"]:
        assert row["output_usd_per_mtok"] >= row["input_usd_per_mtok"], row.where
        assert (row["cached_input_usd_per_mtok"] or 0) <= row["input_usd_per_mtok"], row.where


def test_no_price_jumps_by_a_factor_of_eight():
    """A slip of the decimal point does; no seller has changed the price of one model so much at once."""
    for rows in by_offer().values():
        for before, after in pairwise(rows):
            for column in ("input_usd_per_mtok", "output_usd_per_mtok"):
                assert 1 / 8 < after[column] / before[column] < 8, f"{after.where}, {column}: after {before.where}"


def test_sellers_of_a_model_do_not_differ_thirtyfold_within_half_a_year():
    """They do differ 23-fold (Llama-3.3-70B in 2025). A price per thousand tokens, or in cents, would stand out."""
    for row in TABLES["token_prices"]:
        near = [r["input_usd_per_mtok"] for r in TABLES["token_prices"] if r["model"] == row["model"]
                and abs((r["date"] - row["date"]).days) <= 183]
        assert max(near) / min(near) < 30, f"{row.where}: {min(near)} to {max(near)}"


def test_a_model_has_one_score_and_one_size():
    for column in ("mmlu", "mmlu_source", "active_params_b", "total_params_b", "open_weights"):
        known = defaultdict(set)
        for row in TABLES["token_prices"]:
            known[row["model"]].add(row[column])
        assert not (split := {m: v for m, v in known.items() if len(v) > 1}), f"{column}: {split}"


def test_a_score_names_its_source():
    for row in TABLES["token_prices"]:
        assert (row["mmlu"] is None) == (row["mmlu_source"] is None), row.where


def test_a_price_seen_on_a_day_was_read_then_or_later():
    for row in TABLES["token_prices"]:
        if row["date_kind"] == "as_of":
            assert row["date"] <= row["source_date"], f"{row.where}: read {row['source_date']}"


@pytest.mark.parametrize("model, provider, date, prices", [
    ("GPT-3 davinci (175B)", "OpenAI", "2021-11-20", (60, 60)),
    ("GPT-3 davinci (175B)", "OpenAI", "2022-09-01", (20, 20)),
    ("text-davinci-003 (GPT-3.5)", "OpenAI", "2022-11-30", (20, 20)),
    ("gpt-3.5-turbo", "OpenAI", "2023-03-01", (2, 2)),
    ("gpt-4", "OpenAI", "2023-03-14", (30, 60)),
    ("gemini-1.5-flash-8b", "Google", "2024-10-03", (0.0375, 0.15)),
    ("Llama-3.2-3B-Instruct", "Together", "2024-11-12", (0.06, 0.06)),
])
def test_the_prices_of_the_claims_stand(model, provider, date, prices):
    (row,) = [r for r in by_offer()[model, provider] if r["date"] == dt.date.fromisoformat(date)]
    assert (row["input_usd_per_mtok"], row["output_usd_per_mtok"]) == prices and row["verified"] == "yes"


def test_a_rental_price_times_its_chips_is_the_instance_price():
    for row in TABLES["gpu_rental_prices"]:
        product = row["usd_per_gpu_hour"] * row["gpus_per_instance"]
        assert product == pytest.approx(row["usd_per_instance_hour"], rel=0.005), row.where


# ------------------------------------------------------------------------------------------------ chips

CHIPS = {row["name"]: row for row in TABLES["accelerators"]}
# Dense tensor rates in 16 bits, TB/s, W, as the makers' tables print them; rates with sparsity are twice these.
SHEETS = {
    "V100 SXM2 16GB": (125, 0.9, 300), "T4": (65, 0.32, 70), "A100 SXM4 40GB": (312, 1.555, 400),
    "A100 SXM4 80GB": (312, 2.039, 400), "A100 PCIe 80GB": (312, 1.935, 300), "H100 SXM5 80GB": (989, 3.35, 700),
    "H100 PCIe 80GB": (756, 2.0, 350), "H200 SXM": (989, 4.8, 700), "L4": (121, 0.3, 72), "L40S": (362, 0.864, 350),
    "B200 SXM 180GB": (2250, 7.7, 1000), "GB200 (per GPU)": (2500, 8, 1200), "MI300X": (1307, 5.3, 750),
    "TPU v5e": (197, 0.819, 225), "TPU v5p": (459, 2.765, 540),
}


@pytest.mark.parametrize("name", SHEETS)
def test_a_chip_agrees_with_its_data_sheet(name):
    tflops, tb_s, watts = SHEETS[name]
    assert CHIPS[name]["bf16_tflops"] == pytest.approx(tflops, rel=0.01), "dense, not sparse"
    assert CHIPS[name]["hbm_tb_s"] == pytest.approx(tb_s, rel=0.025)
    assert CHIPS[name]["tdp_w"] == watts


@pytest.mark.parametrize("wide, narrow", [("tf32_tflops", "bf16_tflops"), ("bf16_tflops", "fp8_tflops")])
def test_half_the_bits_are_about_twice_the_rate(wide, narrow):
    """A dense rate beside a sparse one would stand at four to one."""
    for row in CHIPS.values():
        if row["vendor"] == "NVIDIA" and row[wide] and row[narrow]:
            assert row[narrow] / row[wide] == pytest.approx(2, rel=0.03), f"{row.where}: {wide}, {narrow}"


def test_memory_is_the_number_on_the_label():
    """'80GB' is 80, neither the 85.9 of 80 GiB in GB nor the 74.5 of 80 GB in GiB."""
    labelled = 0
    for name, row in CHIPS.items():
        if label := re.search(r"(\d+)GB", name):
            labelled += 1
            assert row["hbm_gb"] == float(label[1]), row.where
        assert row["hbm_gb"] * 2 % 1 == 0, f"{row.where}: {row['hbm_gb']} looks converted"
    assert labelled > 8


def test_no_chip_reads_its_memory_in_a_blink_or_a_second():
    """10 to 90 ms for every chip of ten years: GB/s as TB/s, or one die of two, falls outside."""
    for row in CHIPS.values():
        assert 10 < row["hbm_gb"] / row["hbm_tb_s"] < 90, row.where


def test_models_weigh_what_their_parts_weigh():
    for row in TABLES["models"]:
        published = row["active_params_b"] if row["name"].startswith("Gemma-3") else row["total_params_b"]
        assert row["params_computed_b"] == pytest.approx(published, rel=0.04, abs=0.06), row.where
        assert row["active_params_b"] <= row["total_params_b"], row.where


# ----------------------------------------------------------------------------------------------- README


def readme_sections():
    """The columns that data/README.md describes, by file, and those that it describes once for all."""
    text = (facts.DATA_DIR / "README.md").read_text(encoding="utf-8")
    described = {}
    for title, body in re.findall(r"^### `?([\w ]+(?:\.csv)?)`?$(.*?)(?=^##|\Z)", text, re.M | re.S):
        cells = re.findall(r"^\| (`.*?`) \|", body, re.M)
        described[title] = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    return described


def test_the_readme_describes_every_file_and_column_and_no_other():
    described = readme_sections()
    common = described.pop("Source columns")
    assert set(described) == {p.name for p in facts.DATA_DIR.glob("*.csv")}
    for file, columns in described.items():
        with open(facts.DATA_DIR / file, encoding="utf-8", newline="") as f:
            header = set(next(csv.reader(f)))
        assert columns | (common & header) == header, f"{file}: {columns ^ (header - common)}"


def test_the_changelog_is_dated_and_newest_first():
    text = (facts.DATA_DIR / "CHANGELOG.md").read_text(encoding="utf-8")
    days = [dt.date.fromisoformat(d) for d in re.findall(r"^## (\d{4}-\d\d-\d\d)", text, re.M)]
    assert days and days == sorted(days, reverse=True)


# ------------------------------------------------------------------------------------------- data-check


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.delitem(sys.modules, "data_check", raising=False)
    import data_check

    return data_check


def test_data_check_lists_and_ends_well(check, capsys):
    assert check.main(["--months", "12", "--show", "2"]) == 0
    out = capsys.readouterr().out
    for name, rows in TABLES.items():
        (line,) = re.findall(rf"^{name} +\d.*$", out, re.M)
        assert line.split()[1] == str(len(rows))
    assert out.index("gpu_rental_prices") < out.index("token_prices") < out.index("accelerators"), "prices first"
    assert re.search(r"model_size_estimates \(1\)\n +line \d+ +no date +claude-3-haiku", out)


def test_data_check_counts_every_row_that_is_not_verified(check):
    for rows in TABLES.values():
        expected = sum(r["verified"] != "yes" for r in rows if "verified" in r)
        assert len(check.unverified(rows)) == expected


def test_data_check_judges_the_newest_row_of_an_offer(check):
    rows = check.newest_offers("token_prices", TABLES["token_prices"])
    assert {(r["model"], r["provider"], r["date"]) for r in rows} == {
        (*offer, max(r["date"] for r in offered)) for offer, offered in by_offer().items()}
    assert check.newest_offers("models", TABLES["models"]) == list(TABLES["models"])
    limit = dt.date(2025, 1, 1)
    aged = check.old("token_prices", TABLES["token_prices"], limit)
    assert aged and all(check.age_date(r) < limit for r in aged)
    assert [check.age_date(r) for r in aged] == sorted(check.age_date(r) for r in aged)


@pytest.mark.parametrize("months", ["0", "-3", "x", "1.5", "1e9", "", "999999999999"])
def test_data_check_refuses_months_that_are_none(check, capsys, months):
    with pytest.raises(SystemExit) as stop:
        check.main(["--months", months])
    assert stop.value.code == 2
    assert re.search(rf"--months: the value is '{re.escape(months)}'; allowed: a whole number", capsys.readouterr().err)


def test_data_check_names_a_broken_row(check, capsys, monkeypatch, tmp_path):
    for path in facts.DATA_DIR.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = tmp_path / "electricity.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("0.0832", "$0.0832", 1), encoding="utf-8")
    monkeypatch.setattr(facts, "DATA_DIR", tmp_path)
    assert check.main([]) == 1
    assert "electricity.csv line 2, column 'value'" in capsys.readouterr().err
