"""What an hour of a chip costs, and a token of one model on it: the rows of rent beside the serving model."""

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass

from llmflation import facts
from llmflation.config import ModelConfig
from llmflation.cost import formulas
from llmflation.cost.generations import LINE
from llmflation.cost.roofline import TYPICAL, Efficiency
from llmflation.cost.serving import max_batch, throughput
from llmflation.errors import BadInputError, MissingFactError, check_whole, unknown_name
from llmflation.hardware import HOLDS_MONTHS, TIERS, Accelerator, accelerator
from llmflation.units import add_months, as_date

# The line of generations where it can serve a model of 8B, with the chips that came later with more memory.
SERVING_LINE = (*LINE[2:4], "A100 SXM4 80GB", LINE[4], "H200 SXM", *LINE[5:])
GPUS_ON_BOARD = {"K80": 2}  # where a rented GPU is half a board


@dataclass(frozen=True)
class Rent:
    """What one seller asked for a whole board over the years, in one tier: days and USD per hour, oldest first."""

    chip: str
    seller: str
    tier: str
    points: tuple[tuple[dt.date, float], ...]

    @property
    def rises(self) -> tuple[tuple[tuple[dt.date, float], tuple[dt.date, float]], ...]:
        """The pairs of neighbours of which the later is dearer."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return tuple((a, b) for a, b in pairs if b[1] > a[1])


def rents(names=None) -> tuple[Rent, ...]:
    """The rents of these chips (all, if left out) by chip, seller and tier.

    Spot prices and assumptions are left out; of several rows of one day the cheapest counts.
    """
    days: dict[tuple[str, str, str], dict[dt.date, float]] = defaultdict(dict)
    tier_of = {word: tier for tier, words in TIERS.items() for word in words if tier != "spot"}
    for row in facts.read("gpu_rental_prices"):
        chip, tier = row["accelerator"], tier_of.get(row["commitment"])
        if tier and (names is None or chip in names):
            usd = row["usd_per_gpu_hour"] * GPUS_ON_BOARD.get(chip, 1)
            seen = days[chip, row["provider"], tier]
            seen[row["date"]] = min(usd, seen.get(row["date"], usd))
    return tuple(Rent(*key, tuple(sorted(points.items()))) for key, points in sorted(days.items()))


def rent(chip: str, seller: str, tier: str = "on-demand") -> Rent:
    """The rent of one chip at one seller over the years. MissingFactError where there is none."""
    for found in rents((accelerator(chip).name,)):
        if (found.seller, found.tier) == (seller, tier):
            return found
    raise MissingFactError(f"gpu_rental_prices.csv has no {tier} price of {seller} for {accelerator(chip).name}.")


# One model on each generation


@dataclass(frozen=True, repr=False)
class Served:
    """A model on as few chips as hold it, with a batch always full; tokens read and tokens written count alike."""

    hw: Accelerator
    chips: int
    batch: int
    tokens_per_s: float  # of all its chips together

    @property
    def joules_per_token(self) -> float:
        """At the chips' full rated power."""
        return formulas.joules_per_token(self.hw.require("watts") * self.chips, self.tokens_per_s)

    def usd_per_mtok(self, usd_per_hour: float) -> float:
        """USD for a million tokens where one chip rents for `usd_per_hour`."""
        return formulas.usd_per_million_tokens(usd_per_hour * self.chips, self.tokens_per_s)

    def __repr__(self) -> str:
        return (f"{self.chips} x {self.hw.name:<16}{self.batch:>6} at once {self.tokens_per_s:>8,.0f} tokens/s "
                f"{1000 * self.joules_per_token:>6.0f} mJ a token")


def serve(cfg: ModelConfig, hw: Accelerator, input_len: int = 900, output_len: int = 300, *, batch: int | None = None,
          efficiency: Efficiency = TYPICAL, most_chips: int = 2) -> Served:
    """`cfg` in 16 bits on as few chips as hold it: three tokens read for each one written, unless you say otherwise.

    `batch` requests at once, as many as fit if left out. MissingFactError for a chip without a known 16-bit rate,
    BadInputError where `most_chips` do not hold the model and the batch.

    >>> from llmflation.config import model_config
    >>> serve(model_config("Llama-3.1-8B"), accelerator("V100 SXM2 16GB")).chips
    2
    """
    check_whole("most_chips", most_chips)
    hw.peak("fp16")
    wanted = 1 if batch is None else check_whole("batch", batch)
    context = check_whole("input_len", input_len) + check_whole("output_len", output_len)
    chips = next((n for n in range(1, most_chips) if wanted <= _fits(cfg, hw, context, n)), most_chips)
    most = max_batch(cfg, hw, context, chips=chips)
    if wanted > most:
        raise BadInputError(f"{batch} requests do not fit on {chips} x {hw.name}, at most {most} do. Take fewer of "
                            "them, or more chips.")
    made = throughput(cfg, hw, input_len, output_len, most if batch is None else batch, chips=chips,
                      efficiency=efficiency)
    return Served(hw, chips, made.batch, made.output_tokens_per_s * (input_len + output_len) / output_len)


def _fits(cfg: ModelConfig, hw: Accelerator, context: int, chips: int) -> int:
    """How many sequences fit, 0 where not even the model does."""
    try:
        return max_batch(cfg, hw, context, chips=chips)
    except BadInputError:
        return 0


@dataclass(frozen=True, repr=False)
class TokenRent:
    """The rent of a million tokens of one model, on one chip of one seller, on the day of its price."""

    served: Served
    seller: str
    tier: str
    date: dt.date
    usd_per_hour: float

    @property
    def usd(self) -> float:
        """USD per million tokens."""
        return self.served.usd_per_mtok(self.usd_per_hour)

    def __repr__(self) -> str:
        return (f"${self.usd:.4f} per million tokens: {self.served.chips} x {self.served.hw.name} at {self.seller},\n"
                f"  ${self.usd_per_hour:.2f} an hour each ({self.tier}, {self.date})")


def token_rents(cfg: ModelConfig, names=SERVING_LINE, **options) -> tuple[TokenRent, ...]:
    """What a million tokens of `cfg` cost in rent by every dated price of these chips, oldest first.

    Chips that cannot hold it are left out; BadInputError where none can. Options are those of `serve`.
    """
    served, refusal = {}, None
    for name in names:
        try:
            served[name] = serve(cfg, accelerator(name), **options)
        except BadInputError as error:
            refusal = error
    if refusal and not served:
        raise refusal
    found = [TokenRent(served[r.chip], r.seller, r.tier, day, usd) for r in rents(served) for day, usd in r.points]
    return tuple(sorted(found, key=lambda t: (t.date, t.seller, t.usd)))


def cheapest(offers: tuple[TokenRent, ...], seller: str, day, tier: str = "on-demand") -> TokenRent:
    """The offer of `seller` in force on a day that makes tokens cheapest. MissingFactError where it has none.

    An offer is in force until the seller's next price of that chip, at most 12 months.
    """
    day, last = as_date(day), {}
    known = {(offer.seller, offer.tier) for offer in offers}
    if (seller, tier) not in known:
        raise unknown_name("seller and tier", f"{seller}, {tier}", {", ".join(pair) for pair in known})
    for offer in sorted(offers, key=lambda o: o.date):
        if (offer.seller, offer.tier) == (seller, tier) and offer.date <= day:
            last[offer.served.hw.name] = offer
    alive = [offer for offer in last.values() if day < add_months(offer.date, HOLDS_MONTHS)]
    if not alive:
        raise MissingFactError(f"gpu_rental_prices.csv has no {tier} offer of {seller} for these chips on {day}.")
    return min(alive, key=lambda offer: offer.usd)


def cheapest_over_time(offers: tuple[TokenRent, ...], seller: str, tier: str = "on-demand") -> list[TokenRent]:
    """The cheapest offer on each day on which the seller's prices are known."""
    days = sorted({offer.date for offer in offers if (offer.seller, offer.tier) == (seller, tier)})
    return [cheapest(offers, seller, day, tier) for day in days]


def hardware_readings(cfg: ModelConfig, **options) -> dict[str, float]:
    """How many times cheaper faster chips made a token of `cfg` between late 2022 and early 2025, read in four ways.

    AWS's list on the day when the H100 joined it, and when the H200 had; the smaller clouds, from an A100 at Lambda to
    resold H100s; and purchase prices, A100 to H100. Options are those of `serve`.
    """
    offers = token_rents(cfg, **options)
    aws = cheapest(offers, "AWS", "2022-10-02").usd
    small = cheapest(offers, "Lambda", "2022-12-01").usd
    a100, h100 = (serve(cfg, accelerator(name), **options) for name in LINE[3:5])
    return {
        "AWS, to August 2023": aws / cheapest(offers, "AWS", "2023-08-06").usd,
        "AWS, to March 2025": aws / cheapest(offers, "AWS", "2025-03-02").usd,
        "small clouds, to October 2024": small / cheapest(offers, "market", "2024-10-11", "market").usd,
        "purchase, A100 to H100": (a100.usd_per_mtok(a100.hw.require("price_usd"))
                                   / h100.usd_per_mtok(h100.hw.require("price_usd"))),
    }
