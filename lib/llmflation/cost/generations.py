"""What one generation of chips after the other brought: peaks by number format, and how fast each property grew.

Everything comes from the rows of `accelerators.csv`. A fact that a row lacks leaves its chip out of the one question
that needs it.
"""

import datetime as dt
import math
from dataclasses import dataclass

from llmflation import facts
from llmflation.errors import BadInputError, MissingFactError, unknown_name
from llmflation.hardware import TERA, Accelerator, accelerator
from llmflation.units import GB, TB, years_between

# NVIDIA's largest board of each generation, as it first came.
LINE = ("K80", "P100 SXM2 16GB", "V100 SXM2 16GB", "A100 SXM4 40GB", "H100 SXM5 80GB", "B200 SXM 180GB", "B300 SXM")

FORMATS = {32: ("fp32",), 16: ("bf16", "fp16"), 8: ("fp8", "int8"), 4: ("fp4",)}  # by bits; 32 without tensor cores


@dataclass(frozen=True, repr=False)
class Generation:
    """A chip, and what of it is no matter of serving: the process that it is made in, and its transistors."""

    chip: Accelerator
    process_nm: float | None
    transistors: float | None

    @property
    def name(self) -> str:
        """The generation's name without the board's: "A100" of "A100 SXM4 40GB"."""
        return self.chip.name.split(" ")[0]

    @property
    def date(self) -> dt.date:
        return self.chip.launch_date

    def rate(self, bits: int) -> float | None:
        """Peak operations per second on numbers of so many bits; None where the chip has no such format."""
        return max((self.chip.peak_flops[f] for f in FORMATS[bits] if f in self.chip.peak_flops), default=None)

    @property
    def best_rate(self) -> float:
        """The highest peak of all formats."""
        return max(self.chip.peak_flops.values())

    def require(self, fact: str) -> float:
        """The value of one of MEASURES; MissingFactError where the chip lacks it."""
        value = MEASURES[fact](self)
        if value is None:
            raise MissingFactError(f"{self.chip.where}: no {fact} is known for {self.chip.name}.")
        return value

    def __repr__(self) -> str:
        chip, peaks = self.chip, [self.rate(bits) and self.rate(bits) / TERA for bits in FORMATS]
        cells = [*peaks, chip.mem_bytes_per_s / TB, chip.mem_bytes / GB, chip.watts, chip.price_usd]
        written = ("-" if x is None else f"{x:,.4g}" if x < 1e4 else f"{x:,.0f}" for x in cells)
        widths = (6, 7, 7, 7, 6, 5, 6, 8)
        return f"{self.date.year} {self.name:<5}" + "".join(f"{x:>{w}}" for x, w in zip(written, widths, strict=True))


HEADER = "           32 b   16 b    8 b    4 b  TB/s   GB     W     USD"  # of a table of generations, peaks in TFLOP/s

# What a generation brought, by the name that figures show.
MEASURES = {
    "peak, best format": lambda g: g.best_rate,
    "peak, 16 bits": lambda g: g.rate(16),
    "peak, 32 bits": lambda g: g.rate(32),
    "transistors": lambda g: g.transistors,
    "memory bandwidth": lambda g: g.chip.mem_bytes_per_s,
    "memory capacity": lambda g: g.chip.mem_bytes,
    "power": lambda g: g.chip.watts,
    "purchase price": lambda g: g.chip.price_usd,
}


def generations(names=LINE) -> tuple[Generation, ...]:
    """The chips of these names, oldest first.

    >>> [g.name for g in generations()]
    ['K80', 'P100', 'V100', 'A100', 'H100', 'B200', 'B300']
    """
    rows = {row["name"]: row for row in facts.read("accelerators")}
    found = []
    for name in names:
        chip = accelerator(name)
        billions = rows[chip.name]["transistors_b"]
        found.append(Generation(chip, rows[chip.name]["process_nm"], None if billions is None else billions * 1e9))
    return tuple(sorted(found, key=lambda g: g.date))


# Growth


@dataclass(frozen=True, repr=False)
class Growth:
    """A rate of growth: `factor_per_year`, with the 90% interval `low` to `high` of a straight line on a log axis."""

    measure: str
    factor_per_year: float
    low: float
    high: float
    n: int

    @property
    def doubling_years(self) -> float:
        return math.log(2) / math.log(self.factor_per_year)

    def __repr__(self) -> str:
        return (f"{self.measure}: {self.factor_per_year:.2f} times a year ({self.low:.2f} to {self.high:.2f}), "
                f"{self.n} chips")


# The 95% quantile of Student's t for 1, 2, ... degrees of freedom: how many standard errors a small fit may err.
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


def growth(line: tuple[Generation, ...], measure: str) -> Growth:
    """Fit a straight line to the logarithm of one of MEASURES over launch dates, by least squares.

    The interval is the one of a regression (Student's t): how far the chips scatter around the line. Chips that lack
    the fact are left out; BadInputError below four.

    >>> growth(generations(), "memory bandwidth")
    memory bandwidth: 1.30 times a year (1.26 to 1.34), 7 chips
    """
    if measure not in MEASURES:
        raise unknown_name("measure of a generation", measure, MEASURES)
    known = [(g.date, MEASURES[measure](g)) for g in line if MEASURES[measure](g) is not None]
    if len(known) < 4:
        raise BadInputError(f"{measure!r} is known of {len(known)} of these {len(line)} chips; a trend needs 4.")
    x = [years_between(known[0][0], day) for day, _ in known]
    y = [math.log(value) for _, value in known]
    mean_x, mean_y, n = math.fsum(x) / len(x), math.fsum(y) / len(y), len(x)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    if spread == 0:
        raise BadInputError("all these chips came on one day: a trend needs two dates.")
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = math.fsum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    t = _T95[n - 3] if n - 3 < len(_T95) else 1.645 + 1.524 / (n - 2) + 1.42 / (n - 2) ** 2
    error = t * math.sqrt(rest / (n - 2) / spread)
    return Growth(measure, math.exp(slope), math.exp(slope - error), math.exp(slope + error), n)


def moore(years: float) -> float:
    """How many times the transistors of a chip should grow in so many years by Moore's forecast of 1975.

    >>> moore(4)
    4.0
    """
    (row,) = [r for r in facts.read("published_trends") if r["author"] == "Gordon Moore"]
    return 2 ** (years / row["value"])


@dataclass(frozen=True, repr=False)
class PeakSplit:
    """The rise of the peak from one chip to another, as factors whose product is the whole.

    `transistors` more of them; `per_transistor` what each does in plain 32-bit arithmetic; `tensor_cores` what units
    for whole matrices add at the same storage width (TF32 over FP32); `fewer_bits` what narrower numbers add on top.
    """

    old: Generation
    new: Generation
    transistors: float
    per_transistor: float
    tensor_cores: float
    fewer_bits: float

    @property
    def total(self) -> float:
        return self.new.best_rate / self.old.best_rate

    def __repr__(self) -> str:
        return (f"{self.old.name} to {self.new.name}: {self.total:,.0f} times the peak\n"
                f"  {self.transistors:>6.1f}  more transistors\n"
                f"  {self.per_transistor:>6.2f}  each in plain 32-bit arithmetic\n"
                f"  {self.tensor_cores:>6.1f}  tensor cores\n"
                f"  {self.fewer_bits:>6.1f}  fewer bits, 32 to {min(b for b in FORMATS if self.new.rate(b))}")


def split_peak(old: Generation, new: Generation) -> PeakSplit:
    """Split the rise of the highest peak between two chips. MissingFactError where a row lacks a rate or a count.

    >>> split_peak(generations()[0], generations()[-1]).fewer_bits > 10
    True
    """
    plain = new.require("peak, 32 bits") / old.require("peak, 32 bits")
    more = new.require("transistors") / old.require("transistors")
    tensor = _tensor_rate(new) / new.rate(32) / (_tensor_rate(old) / old.rate(32))
    bits = new.best_rate / _tensor_rate(new) / (old.best_rate / _tensor_rate(old))
    return PeakSplit(old, new, more, plain / more, tensor, bits)


def _tensor_rate(g: Generation) -> float:
    """The rate of matrices stored in 32 bits; a chip that has nothing but 32 bits has no units for them."""
    return g.rate(32) if g.best_rate == g.rate(32) else g.chip.peak("tf32")
