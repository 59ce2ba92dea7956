"""Laws of accelerators and of their rental prices: SI inside, nothing invented, the rows decide."""

import dataclasses
import doctest
from datetime import date, datetime
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation import facts, hardware
from llmflation.errors import BadInputError, MissingFactError, UnknownNameError
from llmflation.hardware import TIERS, Accelerator, accelerator, load_hardware, rental_price
from llmflation.units import add_months

CHIPS = load_hardware()
RENTALS = facts.read("gpu_rental_prices")
BARE = {"name": "a chip", "mem_bytes": 1e9, "mem_bytes_per_s": 1e10, "peak_flops": {"fp32": 1e12}}


def test_worked_lines():
    assert doctest.testmod(hardware, raise_on_error=True).attempted >= 3


# Accelerators.


def test_every_row_is_an_accelerator():
    assert list(CHIPS) == [row["name"] for row in facts.read("accelerators")]


@pytest.mark.parametrize(
    ("name", "dtype", "flops", "mem_bytes", "bytes_per_s", "watts"),
    [
        # The makers' data sheets, dense.
        ("A100 SXM4 80GB", "bf16", 312e12, 80e9, 2.039e12, 400),
        ("H100 SXM5 80GB", "fp8", 1979e12, 80e9, 3.35e12, 700),
        ("T4", "int8", 130e12, 16e9, 0.32e12, 70),
    ],
)
def test_known_chips_in_si_units(name, dtype, flops, mem_bytes, bytes_per_s, watts):
    chip = accelerator(name)
    assert chip.peak(dtype) == pytest.approx(flops, rel=0.001)
    assert (chip.mem_bytes, chip.watts) == (mem_bytes, watts)
    assert chip.mem_bytes_per_s == pytest.approx(bytes_per_s)
    assert "accelerators.csv line" in chip.where


def test_peaks_grow_as_formats_narrow():
    # On a tensor core half the width never halves the rate. (INT8 is left out: the B300 nearly dropped it.)
    for chip in CHIPS.values():
        rates = [chip.peak_flops[d] for d in ("tf32", "bf16", "fp8", "fp4") if d in chip.peak_flops]
        assert rates == sorted(rates), chip.name


def test_chips_before_ampere_have_fp16_but_no_bf16():
    without = {name for name, chip in CHIPS.items() if "fp16" in chip.peak_flops and "bf16" not in chip.peak_flops}
    old = {n for n, c in CHIPS.items() if c.vendor == "NVIDIA" and c.launch_date < date(2020, 5, 14)}
    assert without == {name for name in old if "fp16" in CHIPS[name].peak_flops}
    assert "V100 SXM2 16GB" in without


@pytest.mark.parametrize(
    ("chip", "dtype", "column"),
    [
        ("A100 SXM4 80GB", "fp8", "fp8_tflops"),
        ("V100 SXM2 16GB", "bf16", "bf16_tflops"),
        ("A10G", "fp16", "bf16_tflops"),
    ],
)
def test_a_rate_that_is_not_there_is_not_invented(chip, dtype, column):
    with pytest.raises(MissingFactError) as error:
        accelerator(chip).peak(dtype)
    line = next(r.line for r in facts.read("accelerators") if r["name"] == chip)
    assert f"accelerators.csv line {line}, column '{column}'" in str(error.value)
    assert chip in str(error.value)


def test_a_missing_fact_names_its_cell():
    chip = accelerator("A100 SXM4 80GB")
    assert chip.price_usd is None
    with pytest.raises(MissingFactError, match=r"accelerators\.csv line \d+, column 'msrp_or_estimate_usd'"):
        chip.require("price_usd")
    assert chip.require("watts") == 400
    with pytest.raises(MissingFactError, match="no watts is known for a chip"):
        Accelerator(**BARE).require("watts")


def test_unknown_format_and_unknown_fact():
    with pytest.raises(UnknownNameError, match=r"unknown number format 'bf61'; nearest: 'bf16'"):
        accelerator("T4").peak("bf61")
    with pytest.raises(UnknownNameError, match="nearest: 'watts'"):
        accelerator("T4").require("wats")


@pytest.mark.parametrize("name", ["H10O", "h10o sxm5", "GTX 480", "", None])
def test_an_unknown_chip_gets_the_nearest_names(name):
    with pytest.raises(UnknownNameError, match="unknown accelerator"):
        accelerator(name)


def test_a_typo_names_what_was_meant():
    with pytest.raises(UnknownNameError, match="'H100 SXM5 80GB'"):
        accelerator("H10O")
    with pytest.raises(UnknownNameError, match="'H100 SXM5 80GB'"):
        load_hardware()["H10O"]


def test_a_short_name_fits_one_chip_or_is_refused():
    assert accelerator("b200").name == "B200 SXM 180GB"
    with pytest.raises(UnknownNameError, match=r"could be any of 'H100 SXM5 80GB', 'H100 PCIe 80GB'"):
        accelerator("H100")


def test_an_accelerator_is_frozen_to_its_depth():
    chip = Accelerator(**BARE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.watts = 1
    with pytest.raises(TypeError):
        chip.peak_flops["fp8"] = 1e15
    assert dataclasses.replace(chip, watts=5.0).require("watts") == 5.0


@pytest.mark.parametrize(
    "change",
    [
        {"mem_bytes": 0},
        {"mem_bytes": None},
        {"mem_bytes_per_s": -1.0},
        {"mem_bytes_per_s": "3.35e12"},
        {"watts": float("nan")},
        {"price_usd": float("inf")},
        {"peak_flops": {"fp32": 0.0}},
    ],
)
def test_numbers_must_be_above_zero(change):
    with pytest.raises(BadInputError, match="allowed: a number above 0"):
        Accelerator(**BARE | change)


def test_an_unknown_format_in_a_new_chip():
    with pytest.raises(UnknownNameError, match="nearest"):
        Accelerator(**BARE | {"peak_flops": {"fp33": 1e12}})


def test_reprs_are_sentences():
    assert repr(accelerator("H100 SXM5 80GB")) == ("H100 SXM5 80GB: 989.4 TFLOP/s in bf16, 80 GB at 3.35 TB/s, 700 W.")
    assert repr(Accelerator(**BARE)) == "a chip: 1 TFLOP/s in fp32, 1 GB at 0.01 TB/s."
    assert repr(Accelerator(**BARE | {"peak_flops": {}})) == "a chip: no known peak, 1 GB at 0.01 TB/s."


# Rental prices.


def test_every_commitment_is_in_one_tier_or_is_no_offer():
    words = [w for tier in TIERS.values() for w in tier] + list(hardware._NO_OFFERS)
    assert len(words) == len(set(words))
    assert {r["commitment"] for r in RENTALS} == set(words)


def table(tmp_path, monkeypatch, *offers):
    """A rental table of T4 rows (provider, date, price, commitment) in place of the shipped one."""
    columns = facts.SCHEMAS["gpu_rental_prices"].columns
    lines = [",".join(columns)]
    for i, (provider, day, price, commitment) in enumerate(offers):
        cells = {
            "accelerator": "T4",
            "provider": provider,
            "date": day,
            "usd_per_gpu_hour": price,
            "commitment": commitment,
            "instance": i,
            "gpus_per_instance": 1,
            "usd_per_instance_hour": price,
            "verified": "yes",
        }
        lines.append(",".join(str(cells.get(c, "")) for c in columns))
    rows = tmp_path / "gpu_rental_prices.csv"
    rows.write_text("\n".join(lines), encoding="utf-8")
    read = facts.read
    monkeypatch.setattr(facts, "read", lambda name: read(name, path=rows if name == "gpu_rental_prices" else None))


def test_an_offer_holds_until_the_next_at_most_a_year(tmp_path, monkeypatch):
    table(
        tmp_path,
        monkeypatch,
        ("A", "2024-01-15", 3, "on-demand"),
        ("A", "2024-03-01", 2, "on-demand"),
        ("B", "2020-01-01", 9, "on-demand"),
        ("B", "2026-01-01", 9, "on-demand"),
    )
    price = {
        day: rental_price("T4", day).usd_per_hour for day in ("2024-01-15", "2024-02-29", "2024-03-01", "2025-02-28")
    }
    assert list(price.values()) == [3, 3, 2, 2]
    for day in ("2024-01-14", "2025-03-01"):
        with pytest.raises(MissingFactError, match="Nearest dated offers: 202"):
            rental_price("T4", day)


def test_the_median_counts_each_provider_once(tmp_path, monkeypatch):
    table(
        tmp_path,
        monkeypatch,
        ("A", "2024-01-01", 5, "on-demand"),
        ("A", "2024-01-01", 4, "on-demand"),
        ("B", "2024-02-01", 1, "on-demand"),
        ("C", "2024-02-01", 2, "on-demand"),
    )
    found = rental_price("T4", "2024-06-01")
    assert (found.usd_per_hour, found.low, found.high, found.n, found.kind) == (2, 1, 4, 3, "quoted")
    assert [r["provider"] for r in found.rows] == ["A", "B", "C"]
    assert found.rows[0].where == "gpu_rental_prices.csv line 3"


def test_tiers_do_not_mix(tmp_path, monkeypatch):
    table(
        tmp_path,
        monkeypatch,
        ("A", "2024-01-01", 4, "on-demand"),
        ("A", "2024-02-01", 1, "spot"),
        ("A", "2024-03-01", 3, "on-demand (secure cloud)"),
        ("A", "2024-03-01", 2, "on-demand (community cloud)"),
        ("B", "2024-03-01", 0.5, "assumed leasing cost"),
    )
    assert {t: rental_price("T4", "2024-06-01", t).usd_per_hour for t in ("on-demand", "spot", "community")} == {
        "on-demand": 3,
        "spot": 1,
        "community": 2,
    }
    with pytest.raises(MissingFactError, match=r"no market offer for T4.*2024-03-01 on-demand"):
        rental_price("T4", "2024-06-01", "market")


def test_a_chip_comes_by_name_by_short_name_or_itself():
    day = datetime(2026, 9, 20, 13)
    assert (
        rental_price("B200 SXM 180GB", day)
        == rental_price("b200", "2026-09-20")
        == rental_price(accelerator("b200"), date(2026, 9, 20))
    )


@settings(deadline=None)
@given(row=st.sampled_from(RENTALS), later=st.integers(0, 500), tier=st.sampled_from(sorted(TIERS)))
def test_a_price_is_the_median_of_rows_in_force_or_an_error(row, later, tier):
    day = date.fromordinal(row["date"].toordinal() + later)
    try:
        found = rental_price(row["accelerator"], day, tier)
    except MissingFactError:
        return
    except BadInputError:
        assert day >= add_months(max(r["date"] for r in RENTALS), 12)
        return
    prices = [r["usd_per_gpu_hour"] for r in found.rows]
    assert found.usd_per_hour == median(prices)
    assert (found.low, found.high, found.n) == (min(prices), max(prices), len(prices))
    assert all(r["date"] <= day < add_months(r["date"], 12) for r in found.rows)
    assert len({r["provider"] for r in found.rows}) == found.n


BAD = {
    "unknown-chip": (("H10O", "2026-09-20"), UnknownNameError, "'H100 SXM5 80GB'"),
    "ambiguous-chip": (("A100", "2026-09-20"), UnknownNameError, "Write the full name"),
    "unknown-tier": (("T4", "2026-09-20", "ondemand"), UnknownNameError, "nearest: 'on-demand'"),
    "no-tier": (("T4", "2026-09-20", None), UnknownNameError, "unknown tier None"),
    "impossible-date": (("T4", "2026-09-31"), BadInputError, "a day of the calendar"),
    "year-for-a-date": (("T4", 2026), BadInputError, "YYYY-MM-DD"),
    "before-the-table": (("T4", "2001-01-01"), BadInputError, "from 2017-05-09"),
    "after-the-table": (("T4", "2099-01-01"), BadInputError, "gpu_rental_prices.csv"),
    "before-the-chip": (("H100 SXM5 80GB", "2021-11-07"), MissingFactError, "Nearest dated offers: 2023-"),
    "never-offered": (("GTX 1080", "2026-09-20"), UnknownNameError, "unknown accelerator"),
    "no-row-at-all": (("Gaudi 3", "2026-09-20"), MissingFactError, "none at any date"),
}


@pytest.mark.parametrize(("arguments", "error", "says"), BAD.values(), ids=BAD)
def test_bad_rental_questions(arguments, error, says):
    with pytest.raises(error) as raised:
        rental_price(*arguments)
    assert says in str(raised.value)
