"""One comparison as a row, and a bench's rows as a table for people and as one line of JSON for programs."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import median

from llmflation.errors import BadInputError
from llmflation.timing import compare


@dataclass(frozen=True)
class Row:
    """One result: `ratio` with its 95% interval, the least that it must reach, and its unit ("x" times, or "share").

    >>> Row("ours-vs-theirs", 2.0, 1.9, 2.1, 1.3).met
    True
    """

    name: str
    ratio: float
    low: float
    high: float
    target: float
    unit: str = "x"

    def __post_init__(self):
        numbers = (self.ratio, self.low, self.high, self.target)
        if not all(math.isfinite(n) and n > 0 for n in numbers) or not self.low <= self.ratio <= self.high:
            raise BadInputError(f"row {self.name!r} says {self.ratio:g} between {self.low:g} and {self.high:g}, target "
                                f"{self.target:g}; allowed: finite numbers above 0, the ratio inside its interval.")

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its target."""
        return self.ratio >= self.target


@dataclass(frozen=True)
class Report:
    """The rows of a bench, the machine that they hold for, and a sentence for each thing a reader has to know."""

    bench: str
    machine: dict
    rows: list[Row]
    notes: list[str]

    def __str__(self) -> str:
        """A table, the notes, and the same rows as JSON in the last line."""
        lines = [f"{'row':<30} {'ratio':>7}   {'95% interval':^15}  {'target':>10}"]
        for row in self.rows:
            interval = f"{row.low:.3g} to {row.high:.3g}"
            target = f"{row.target:g} {row.unit}"
            lines.append(f"{row.name:<30} {row.ratio:>7.3g}   {interval:^15}  {target:>10}  "
                         f"{'met' if row.met else 'MISSED'}")
        rows = [asdict(row) for row in self.rows]
        line = json.dumps({"bench": self.bench, "machine": self.machine, "rows": rows}, allow_nan=False)
        return "\n".join([*lines, "", *self.notes, line])


def share(name: str, values: Sequence[float], at: float, target: float) -> Row:
    """A quantile of the agreements, with the interval in which it lies when the rows are drawn anew."""
    def quantile(sample):
        return sorted(sample)[int(at * len(sample))] if at != 0.5 else median(sample)

    rng = Random(0)
    drawn = sorted(quantile(rng.choices(values, k=len(values))) for _ in range(1000))
    value = quantile(values)
    return Row(name, value, min(value, drawn[25]), max(value, drawn[974]), target, "share")


def refuse(arguments: Sequence[str]) -> None:
    """For a bench that takes no arguments of its own."""
    if arguments:
        raise BadInputError(f"this bench knows no {arguments[0]!r}; it takes --quick alone.")


def side_by_side(name: str, theirs: Callable[[], object], ours: Callable[[], object], target: float, *,
                 rounds: int, factor: float = 1.0, unit: str = "x") -> Row:
    """Time both in turns, in this process; the row says how many times as fast ours is.

    `factor` multiplies it where a call of ours does not do the same amount of work as one of theirs.
    """
    found = compare(theirs, ours, repeat=rounds, warmup=1)
    return Row(name, factor * found.ratio, factor * found.low, factor * found.high, target, unit)
