"""The course's running account: one factor for each cause of the fall, and what they come to together.

A factor says how many times cheaper, under which conditions, and when it loses. Numbers of different kinds (measured,
quoted, modelled, assumed) are multiplied only by those who say so: the product is worth no more than its weakest part.
"""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from llmflation.errors import BadInputError, bad_input, check_above

KINDS = ("measured", "quoted", "modelled", "assumed")  # strongest first
WIDTH = 75  # characters that a page shows


@dataclass(frozen=True, repr=False)
class Factor:
    """How many times cheaper one cause makes a token: `value`, with the range `low` to `high` that it may lie in."""

    name: str
    kind: str
    value: float
    low: float
    high: float
    conditions: str
    loses_when: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise bad_input(f"the kind of {self.name!r}", self.kind, ", ".join(KINDS))
        for name in ("value", "low", "high"):
            check_above(f"{name} of {self.name!r}", getattr(self, name),
                        "A factor is how many times cheaper; 1 is no change.")
        if not self.low <= self.value <= self.high:
            raise BadInputError(f"{self.name!r} is {self.value:g}, outside its own range {self.low:g} to "
                                f"{self.high:g}.")
        for name in ("name", "conditions", "loses_when"):
            if not getattr(self, name):
                raise bad_input(f"{name} of {self.name!r}", getattr(self, name), "a phrase")

    def __repr__(self) -> str:
        said = (f"{self.name}: {self.value:.3g} times cheaper ({self.low:.3g} to {self.high:.3g}), {self.kind}",
                f"  under: {self.conditions}", f"  loses when {self.loses_when}")
        return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="    ") for line in said)


@dataclass(frozen=True, repr=False)
class Ledger:
    """Factors in the order in which they were found, that act one on top of the other."""

    factors: tuple[Factor, ...] = ()

    def __post_init__(self):
        if not isinstance(self.factors, Iterable):
            raise bad_input("factors", self.factors, "a list of Factor")
        object.__setattr__(self, "factors", tuple(self.factors))
        if strange := [f for f in self.factors if not isinstance(f, Factor)]:
            raise bad_input("a factor of the ledger", strange[0], "a Factor")
        names = [f.name for f in self.factors]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInputError(f"the ledger has {sorted(twice)[0]!r} twice; each cause counts once.")

    def __add__(self, factor: Factor) -> "Ledger":
        return Ledger((*self.factors, factor))

    def of(self, kind: str) -> "Ledger":
        """Only the factors of one kind."""
        if kind not in KINDS:
            raise bad_input("kind", kind, ", ".join(KINDS))
        return Ledger(tuple(f for f in self.factors if f.kind == kind))

    def product(self, mix_kinds: bool = False) -> Factor:
        """All of them together. Their ranges are taken as independent: what is 95% of each is about 95% of the product.

        BadInputError for an empty ledger, and for different kinds unless `mix_kinds` says that they may be multiplied;
        the product is then of the weakest kind.

        >>> half = Factor("8 bits", "measured", 2.0, 1.9, 2.1, "batch 1", "the batch is large")
        >>> Ledger([half]).product().value
        2.0
        """
        if not self.factors:
            raise BadInputError("the ledger is empty: there is nothing to multiply.")
        kinds = {f.kind for f in self.factors}
        if len(kinds) > 1 and not mix_kinds:
            raise BadInputError(f"the ledger holds {' and '.join(sorted(kinds))} factors; take one kind with "
                                "of(kind), or say mix_kinds=True.")
        value = math.prod(f.value for f in self.factors)
        below = math.sqrt(sum(math.log(f.value / f.low) ** 2 for f in self.factors))
        above = math.sqrt(sum(math.log(f.high / f.value) ** 2 for f in self.factors))
        return Factor("all together", max(kinds, key=KINDS.index), value, value * math.exp(-below),
                      value * math.exp(above), " ".join(f"{f.name}," for f in self.factors).rstrip(","),
                      "one of them does")

    def __repr__(self) -> str:
        lines = [f"{'':<28} {'times':>7}  {'range':<16} kind"]
        for f in self.factors:
            lines.append(f"{f.name:<28} {f.value:>7.3g}  {f'{f.low:.3g} to {f.high:.3g}':<16} {f.kind}")
        return "\n".join(lines)
