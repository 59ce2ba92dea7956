"""Accelerators in SI units, and what renting one costs. Facts from `data/`; what they lack stays missing.

Convention: a data sheet's GB of memory is read as 10^9 bytes. Many chips hold 7% more (memory is built in
GiB), of which the driver keeps a part; the smaller number promises nothing that the chip cannot hold. Rates
are decimal. Peaks are dense: data sheets often print the doubled figure for structured sparsity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from statistics import median
from types import MappingProxyType

from llmflation import facts
from llmflation.errors import MissingFactError, bad_input, unknown_name
from llmflation.units import GB, TB, add_months, as_date

TERA = 1e12
_PEAK_COLUMNS = {
    "fp32": "fp32_tflops",
    "tf32": "tf32_tflops",
    "bf16": "bf16_tflops",
    "fp16": "bf16_tflops",
    "fp8": "fp8_tflops",
    "int8": "int8_tops",
    "fp4": "fp4_tflops",
}
DTYPES = tuple(_PEAK_COLUMNS)
_CELLS = {
    "interconnect_bytes_per_s": "interconnect_gb_s",
    "price_usd": "msrp_or_estimate_usd",
    **_PEAK_COLUMNS,
}


@dataclass(frozen=True, repr=False)
class Accelerator:
    """A chip that runs models: peak rates by format (FLOP/s, for int8 OP/s), bytes, bytes/s, watts, USD.

    None stands for what is not known; `peak` and `require` raise MissingFactError instead.
    `interconnect_bytes_per_s` adds both directions up. `price_kind` says what sort of price `price_usd` is: a
    list price, a street price, an analyst's estimate.

    >>> accelerator("H100 SXM5 80GB").peak("bf16") / 1e12
    989.4
    """

    name: str
    mem_bytes: float
    mem_bytes_per_s: float
    peak_flops: Mapping[str, float]
    watts: float | None = None
    interconnect_bytes_per_s: float | None = None
    interconnect: str | None = None
    price_usd: float | None = None
    price_kind: str | None = None
    vendor: str | None = None
    launch_date: date | None = None
    source: str = ""
    source_date: date | None = None
    verified: str = "no"
    note: str | None = None
    where: str = field(default="", compare=False)  # file and line

    def __post_init__(self):
        for name in ("mem_bytes", "mem_bytes_per_s", "watts", "interconnect_bytes_per_s", "price_usd"):
            _check_positive(name, getattr(self, name), optional=name not in ("mem_bytes", "mem_bytes_per_s"))
        for dtype, rate in self.peak_flops.items():
            if dtype not in DTYPES:
                raise unknown_name("number format", dtype, DTYPES)
            _check_positive(f"peak_flops[{dtype!r}]", rate)
        object.__setattr__(self, "peak_flops", MappingProxyType(dict(self.peak_flops)))

    def peak(self, dtype: str) -> float:
        """Peak dense FLOP/s in a number format; MissingFactError if the chip has none or none is known."""
        if dtype not in DTYPES:
            raise unknown_name("number format", dtype, DTYPES)
        if dtype in self.peak_flops:
            return self.peak_flops[dtype]
        raise MissingFactError(
            f"{self._cell(dtype)}: {self.name} does not compute in {dtype}, or its source gives no "
            f"rate. It has rates for {', '.join(self.peak_flops) or 'no format'}; choose one of them."
        )

    def require(self, fact: str) -> float:
        """The value of a field that may be empty, such as "price_usd"; MissingFactError if it is."""
        if fact not in self.__dataclass_fields__:
            raise unknown_name("fact about an accelerator", fact, self.__dataclass_fields__)
        value = getattr(self, fact)
        if value is None:
            raise MissingFactError(
                f"{self._cell(fact)}: no {fact} is known for {self.name}. Choose another chip, "
                f"or make one with dataclasses.replace(chip, {fact}=...) and say where it is from."
            )
        return value

    def _cell(self, fact: str) -> str:
        return f"{self.where}, column {_CELLS.get(fact, fact)!r}" if self.where else "this accelerator"

    def __repr__(self) -> str:
        best = next((d for d in ("bf16", "fp16", "fp32") if d in self.peak_flops), None)
        rate = f"{self.peak_flops[best] / TERA:,.5g} TFLOP/s in {best}" if best else "no known peak"
        watts = f", {self.watts:g} W" if self.watts else ""
        return f"{self.name}: {rate}, {self.mem_bytes / GB:g} GB at {self.mem_bytes_per_s / TB:g} TB/s{watts}."


def load_hardware() -> facts.Catalogue:
    """The accelerators of `data/accelerators.csv` by name.

    >>> load_hardware()["T4"].watts
    70.0
    """
    return facts.Catalogue("accelerator", {row["name"]: _from_row(row) for row in facts.read("accelerators")})


def accelerator(name: str) -> Accelerator:
    """One accelerator. A short name will do where only one fits: "B200", but not "H100" (SXM5 or PCIe?)."""
    chips = load_hardware()
    return chips[chips.full_name(name)]


# What the words of column `commitment` mean here. Only like is compared with like.
TIERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "on-demand": (
            "on-demand",
            "on-demand (secure cloud)",
        ),  # a provider's own machines, by the hour, no promise
        "community": (
            "on-demand (community cloud)",
            "on-demand (marketplace median)",
        ),  # other people's machines
        "serverless": ("serverless, per second",),
        "spot": ("spot",),  # can be taken away at any time
        "reserved": ("reserved 1 year", "capacity block"),  # paid ahead, for days or a year
        "market": (
            "initial market price",
            "shortage peak",
            "market price",
            "market price, resold reservations",
        ),
    }
)
_NO_OFFERS = ("used in a published estimate", "assumed leasing cost")  # someone's assumption, not an offer

HOLDS_MONTHS = 12


@dataclass(frozen=True, repr=False)
class RentalPrice:
    """The median of the offers in force on a day, USD for one accelerator and one hour, as their sellers
    quote."""

    chip: str
    date: date
    tier: str
    usd_per_hour: float
    low: float
    high: float
    n: int
    rows: tuple[facts.Row, ...]
    kind: str = "quoted"

    def __repr__(self) -> str:
        sellers = ", ".join(r["provider"] for r in self.rows)
        return (
            f"{self.chip}, {self.tier}, {self.date}: ${self.usd_per_hour:.2f} per hour, the median of "
            f"{self.n} offer{'s' * (self.n != 1)} from ${self.low:.2f} to ${self.high:.2f} ({sellers})."
        )


def rental_price(chip, date, tier: str = "on-demand") -> RentalPrice:
    """What renting one `chip` cost on a day, by the list prices that then were in force.

    An offer holds until the same provider's next row for that chip and tier, at most 12 months. One provider
    has one offer: of several rows of one day the cheapest counts. `tier` is one of TIERS. Errors:
    UnknownNameError (chip, tier), BadInputError (no date, or one outside the table), MissingFactError (no
    offer in force).

    >>> rental_price("T4", "2021-01-31")
    T4, on-demand, 2021-01-31: $0.53 per hour, the median of 1 offer from $0.53 to $0.53 (AWS).
    """
    if not isinstance(tier, str) or tier not in TIERS:
        raise unknown_name("tier", tier, TIERS)
    day, table = as_date(date), facts.read("gpu_rental_prices")
    first, last = min(r["date"] for r in table), add_months(max(r["date"] for r in table), HOLDS_MONTHS)
    if not first <= day < last:
        raise bad_input("date", str(day), f"from {first} to before {last}, for which gpu_rental_prices.csv has rows")
    names = facts.Catalogue("accelerator", dict.fromkeys([*load_hardware(), *(r["accelerator"] for r in table)]))
    name = names.full_name(chip.name if isinstance(chip, Accelerator) else chip)
    of_chip = [r for r in table if r["accelerator"] == name]
    offers = _in_force([r for r in of_chip if r["commitment"] in TIERS[tier]], day)
    if not offers:
        raise MissingFactError(
            f"gpu_rental_prices.csv has no {tier} offer for {name} in force on {day}. " + _nearest_offers(of_chip, day)
        )
    prices = [r["usd_per_gpu_hour"] for r in offers]
    return RentalPrice(name, day, tier, median(prices), min(prices), max(prices), len(offers), offers)


def _in_force(rows: list[facts.Row], day: date) -> tuple[facts.Row, ...]:
    offers = {}
    for row in sorted(rows, key=lambda r: (r["date"], r["provider"], -r["usd_per_gpu_hour"])):
        if row["date"] <= day:
            offers[row["provider"]] = row  # a later row ends the earlier one; of one day the cheapest comes last
    return tuple(r for r in offers.values() if day < add_months(r["date"], HOLDS_MONTHS))


def _nearest_offers(rows: list[facts.Row], day: date) -> str:
    tier_of = {word: tier for tier, words in TIERS.items() for word in words}
    near = sorted((r for r in rows if r["commitment"] in tier_of), key=lambda r: abs((r["date"] - day).days))[:3]
    if not near:
        return "It has none at any date: choose another chip, or add a row with its source."
    listed = "; ".join(
        f"{r['date']} {tier_of[r['commitment']]}, {r['provider']}, ${r['usd_per_gpu_hour']:g}" for r in near
    )
    return f"An offer holds {HOLDS_MONTHS} months. Nearest dated offers: {listed}."


def _from_row(row: facts.Row) -> Accelerator:
    peaks = {d: row[c] * TERA for d, c in _PEAK_COLUMNS.items() if row[c] is not None}
    if row["has_bf16"] is False:  # the column holds the chip's FP16 rate then
        peaks.pop("bf16", None)
    interconnect, title = row["interconnect_gb_s"], row["source_title"] or "no source"
    return Accelerator(
        name=row["name"],
        mem_bytes=row["hbm_gb"] * GB,
        mem_bytes_per_s=row["hbm_tb_s"] * TB,
        peak_flops=peaks,
        watts=row["tdp_w"],
        interconnect_bytes_per_s=None if interconnect is None else interconnect * GB,
        interconnect=row["interconnect"],
        price_usd=row["msrp_or_estimate_usd"],
        price_kind=row["price_kind"],
        vendor=row["vendor"],
        launch_date=row["launch_date"],
        source=f"{title} ({row['source_url'] or 'no address'})",
        source_date=row["source_date"],
        verified=row["verified"],
        note=row["note"],
        where=row.where,
    )


def _check_positive(name: str, value, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise bad_input(name, value, "a number above 0" + (", or None if it is not known" if optional else ""))
