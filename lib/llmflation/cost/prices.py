"""What was asked for a token: offers by date, and blends of their input, cached-input and output prices.

An offer is what one seller asked for one model from one day on, in USD per million tokens. Input, cached
input and output have their own prices; a single number needs a blend, and the blend is always named.
"""

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from .. import facts
from ..errors import BadInputError, DataError, MissingFactError, unknown_name
from ..units import add_months, as_date

ROUTER_MINIMUM = "cheapest listed host"  # a router's least price over many sellers, not one seller's list
NO_OFFERS = ("index_point", "announced")
EPOCH_BENCHMARKS = {"mmlu": "MMLU", "gpqa_diamond": "GPQA", "humaneval": "HumanEval", "math500": "MATH-500"}


@dataclass(frozen=True)
class Blend:
    """What share of the tokens is input, output and input read from a cache; the shares add up to 1."""

    input: float
    output: float
    cached: float = 0.0

    def __post_init__(self):
        shares = (self.input, self.output, self.cached)
        if any(not isinstance(s, int | float) or not 0 <= s <= 1 for s in shares):
            raise BadInputError(f"blend {shares} has a share outside 0 to 1; write shares like 0.75, 0.25.")
        if not math.isclose(sum(shares), 1, abs_tol=1e-9):
            raise BadInputError(f"blend {shares} adds up to {sum(shares):g}, not to 1; divide each share by the sum.")

    def __str__(self) -> str:
        parts = {"input": self.input, "cached input": self.cached, "output": self.output}
        return ", ".join(f"{share:.0%} {what}" for what, share in parts.items() if share)


BLENDS = {"3:1": Blend(0.75, 0.25), "mean": Blend(0.5, 0.5), "output": Blend(0, 1), "input": Blend(1, 0)}


def as_blend(blend: "str | Mapping | Blend") -> Blend:
    """A blend by name ('3:1', 'mean', 'output', 'input') or by shares, {'input': 0.7, 'output': 0.2, 'cached': 0.1}."""
    if isinstance(blend, Blend):
        return blend
    try:
        return Blend(**blend) if isinstance(blend, Mapping) else BLENDS[blend]
    except (KeyError, TypeError):
        raise BadInputError(
            f"blend {blend!r} is not known; choose from {', '.join(BLENDS)} or give the shares, "
            "like {'input': 0.7, 'output': 0.2, 'cached': 0.1}."
        ) from None


@dataclass(frozen=True)
class Offer:
    """What one seller asked for one model from `date` on, in USD per million tokens.

    `score` is the model's score on `exam`, None when not known; `checked` says whether the whole row was read in
    its source.
    """

    model: str
    seller: str
    date: dt.date
    input: float
    output: float
    cached: float | None = None
    score: float | None = None
    kind: str = "launch"
    open_weights: bool | None = None
    active_params_b: float | None = None
    exam: str = "MMLU"
    checked: bool = True
    where: str = ""

    def usd(self, blend="3:1") -> float:
        """The blended price, USD per million tokens; MissingFactError when the blend needs an unknown price.

        >>> Offer("gpt-4", "OpenAI", dt.date(2023, 3, 14), input=30, output=60).usd("3:1")
        37.5
        """
        blend = as_blend(blend)
        if blend.cached and self.cached is None:
            raise MissingFactError(
                f"{self.model} ({self.seller}, {self.date}) has no cached-input price"
                + (f": {self.where}, column cached_input_usd_per_mtok is empty." if self.where else ".")
                + " Use a blend without cached input."
            )
        return blend.input * self.input + blend.output * self.output + blend.cached * (self.cached or 0)

    @property
    def on_own_list(self) -> bool:
        """Whether this is the seller's own metered price (no monthly plan, no minimum over many sellers)."""
        return self.kind != "plan" and ROUTER_MINIMUM not in self.seller

    @property
    def withdrawn(self) -> bool:
        """Whether this row is the end of an offer: from its date on the seller no longer lists the model."""
        return self.kind == "withdrawn"

    def __str__(self) -> str:
        return f"{self.model} ({self.seller})"


def load_prices(path=None) -> tuple[Offer, ...]:
    """All offers of data/token_prices.csv, oldest first (`path`: another file with the same columns).

    Points of somebody's index and prices that were announced but never asked are no offers: left out.
    """
    rows = facts.read("token_prices", path=path)
    offers = [_offer(row) for row in rows if row["date_kind"] not in NO_OFFERS]
    return tuple(sorted(offers, key=attrgetter("date", "seller", "model")))


def _offer(row) -> Offer:
    cached, read = row["cached_input_usd_per_mtok"], row["input_usd_per_mtok"]
    if cached is not None and cached > read:
        raise DataError(f"{row.where}: cached input at {cached:g} is dearer than input at {read:g}; mend one of them.")
    if row["source_date"] and row["date"] > add_months(row["source_date"], 12):
        raise DataError(f"{row.where}: the price is of {row['date']}, its source of {row['source_date']}; correct one.")
    return Offer(
        model=row["model"], seller=row["provider"], date=row["date"], kind=row["date_kind"],
        input=read, output=row["output_usd_per_mtok"],
        cached=cached, score=row["mmlu"], open_weights=row["open_weights"],
        active_params_b=row["active_params_b"], checked=row["verified"] == "yes", where=row.where,
    )


def load_epoch_prices(benchmark: str = "mmlu") -> tuple[Offer, ...]:
    """The rows behind Epoch AI's published fits, by score on `benchmark` (mmlu, gpqa_diamond, humaneval, math500).

    These carry one price each, already blended 3:1, so every blend gives the same; and rows that come from
    Artificial Analysis carry the price of early 2025 at the model's release date (data/README.md, 'Traps').
    """
    rows = facts.read("quality_price_epoch")
    if benchmark not in EPOCH_BENCHMARKS:
        raise unknown_name("benchmark", benchmark, EPOCH_BENCHMARKS)
    price = "usd_per_mtok_blended_3to1"
    offers = [Offer(r["model"], "as listed by Epoch AI", r["date"], r.require(price), r.require(price),
                    score=r[benchmark], exam=EPOCH_BENCHMARKS[benchmark], where=r.where) for r in rows]
    return tuple(sorted(offers, key=attrgetter("date", "model")))


def find_offer(model: str, seller: str | None = None, on=None, *, prices=None) -> Offer:
    """The offer of a model in force at a date (the newest one without a date), by its seller if named.

    `on` is a date, or text like '2024-07-01'. An unknown model or seller is refused with the nearest names.
    """
    prices = load_prices() if prices is None else prices
    on = as_date(on) if on is not None else max(p.date for p in prices)
    if model not in {p.model for p in prices}:
        raise unknown_name("model", model, {p.model for p in prices})
    asked = [p for p in prices if p.model == model and not p.withdrawn]
    if seller is not None and seller not in {p.seller for p in asked}:
        raise unknown_name(f"seller of {model}", seller, {p.seller for p in asked})
    fit = [p for p in asked if seller in (None, p.seller) and p.date <= on]
    if not fit:
        first = min(p.date for p in asked if seller in (None, p.seller))
        raise BadInputError(f"nobody asked a price for {model} by {on}; the first row is of {first}.")
    return max(fit, key=attrgetter("date"))
