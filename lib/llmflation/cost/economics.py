"""From seconds to dollars and joules: what a machine's hour costs, and what a million tokens on it do.

Every token has two costs. **Usage** is the machine time that it needs itself; **allocation** spreads the hours in which
the machine stands idle over the tokens as well, and is what somebody has to pay in the end.
"""

from dataclasses import dataclass

from llmflation.config import ModelConfig
from llmflation.cost import formulas
from llmflation.cost.serving import throughput
from llmflation.errors import BadInputError, bad_input, check_above, check_share, check_whole, is_number
from llmflation.hardware import Accelerator


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0) -> float:
    """USD for a million tokens on a machine that costs `usd_per_hour` and makes `tokens_per_s` when it works.

    `utilization` is the share of its hours in which it does. BadInputError for what is not above 0, and for a
    utilization above 1.

    >>> round(usd_per_million_tokens(2.0, 2500), 3)
    0.222
    """
    check_above("usd_per_hour", usd_per_hour)
    check_above("tokens_per_s", tokens_per_s, "A machine that makes no tokens has no price for one.")
    return formulas.usd_per_million_tokens(usd_per_hour, tokens_per_s, check_share("utilization", utilization))


def ownership_usd_per_hour(hw: Accelerator, usd_per_kwh: float, *, lifetime_years: float = 5.0, pue: float = 1.2,
                           host_share: float = 0.0, yearly_return: float = 0.0, load: float = 1.0) -> float:
    """USD for an hour of an owned chip: its share of the purchase, and its electricity.

    `host_share` is what the rest of the server adds to price and watts (0 where the chip's price holds its share of a
    server, as the H100's does: see `price_kind`); `load` the share of the rated power that it draws; `yearly_return`
    what the money would earn elsewhere. All are assumptions: change them.
    MissingFactError for a chip without a known price or power.

    >>> from llmflation.hardware import accelerator
    >>> round(ownership_usd_per_hour(accelerator("H100 SXM5"), 0.08), 2)
    0.83
    """
    for name, value in (("usd_per_kwh", usd_per_kwh), ("lifetime_years", lifetime_years)):
        check_above(name, value)
    _check_pue(pue)
    for name, value in (("host_share", host_share), ("yearly_return", yearly_return)):
        check_share(name, value, zero=True)
    price, watts = hw.require("price_usd") * (1 + host_share), hw.require("watts") * (1 + host_share)
    power = formulas.power_usd_per_hour(watts * check_share("load", load), usd_per_kwh, pue)
    return formulas.capital_usd_per_hour(price, lifetime_years, yearly_return) + power


def joules_per_token(hw: Accelerator, tokens_per_s: float, *, chips: int = 1, pue: float = 1.0,
                     load: float = 1.0) -> float:
    """Energy of a token where `chips` chips together make `tokens_per_s` at this share of their rated power."""
    check_above("tokens_per_s", tokens_per_s)
    check_whole("chips", chips)
    watts = hw.require("watts") * chips * check_share("load", load)
    return formulas.joules_per_token(watts, tokens_per_s, _check_pue(pue))


@dataclass(frozen=True)
class Cost:
    """USD for a million tokens: of the time that they need, and with the machine's idle time."""

    usage: float
    allocation: float


@dataclass(frozen=True, repr=False)
class TokenCosts:
    """What a million tokens of each kind cost. `cached_input` is None where no part of the prompts was cached."""

    input: Cost
    output: Cost
    cached_input: Cost | None
    batch: int

    def blended(self, inputs_per_output: float = 3.0, cached_share: float = 0.0, idle: bool = True) -> float:
        """USD for a million tokens of which so many are input for each one of output; `cached_share` of the input
        comes from a cache. With `idle` the machine's idle hours are paid too."""
        kind = "allocation" if idle else "usage"
        check_share("cached_share", cached_share, zero=True)
        if cached_share and self.cached_input is None:
            raise BadInputError("cached_share is above 0, but no cost of cached input is known; give `cached` tokens "
                                "to token_costs.")
        check_above("inputs_per_output", inputs_per_output)
        cheap = getattr(self.cached_input, kind) if cached_share else 0.0
        into = (1 - cached_share) * getattr(self.input, kind) + cached_share * cheap
        return formulas.blend(into, getattr(self.output, kind), inputs_per_output)

    def __repr__(self) -> str:
        rows = [("input", self.input), ("cached input", self.cached_input), ("output", self.output)]
        lines = [f"{name:<13} {c.usage:>8.4g} {c.allocation:>11.4g}" for name, c in rows if c]
        return "\n".join([f"{'USD per Mtok':<13} {'usage':>8} {'allocation':>11}", *lines])


def token_costs(cfg: ModelConfig, hw: Accelerator, usd_per_hour: float, input_len: int, output_len: int, *,
                batch: int | None = None, utilization: float = 1.0, cached: int = 0, chips: int = 1,
                **options) -> TokenCosts:
    """What tokens cost on `chips` chips at `usd_per_hour` each: input by the time of a prefill, output by the time of a
    decode step shared by the batch.

    A cached input token costs what the others' looking back at it takes: `cached` tokens are in the cache already,
    `input_len` are read and the output is written behind them. What keeping them takes shows in the batch that still
    fits. Options are those of `throughput`.
    """
    check_above("usd_per_hour", usd_per_hour)
    cached = check_whole("cached", cached, least=0)
    if "held" in options:
        raise bad_input("held", options["held"], "nothing", "What the cache holds is called `cached` here.")
    share = check_share("utilization", utilization)
    made = throughput(cfg, hw, input_len, output_len, batch, chips=chips, held=cached, **options)
    alone = throughput(cfg, hw, input_len, output_len, made.batch, chips=chips, **options) if cached else made

    def cost(seconds_per_token: float) -> Cost:
        usd = usd_per_hour * chips / formulas.SECONDS_PER_HOUR * seconds_per_token * 1e6
        return Cost(usd, usd / share)

    behind = cost((made.prefill_s - alone.prefill_s) / cached) if cached else None
    return TokenCosts(cost(alone.prefill_s / input_len), cost(made.step_s / made.batch), behind, made.batch)


def _check_pue(value) -> float:
    if not is_number(value) or value < 1:
        raise bad_input("pue", value, "1 or more", "A building uses at least what its machines use.")
    return value
