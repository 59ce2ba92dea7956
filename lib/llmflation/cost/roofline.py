"""How long work takes a machine: at least as long as its arithmetic, and at least as long as its memory traffic.

With `IDEAL` efficiency every time is a bound for programs that do one part after the other; the larger of a step's
`compute_s` and `memory_s` is the bound for any. `TYPICAL` adds what real ones lose: shares of the peaks, and fixed
times that do not shrink with the work.
"""

import textwrap
from dataclasses import dataclass, replace

from llmflation.cost import formulas
from llmflation.cost.counts import Work
from llmflation.errors import bad_input, check_share, is_number
from llmflation.hardware import Accelerator


@dataclass(frozen=True)
class Efficiency:
    """What of a machine's peaks its programs reach, and what each call costs on top of its work.

    `compute`, `memory` and `link` are shares of the peak rates, `overlap` that share of the shorter of arithmetic and
    memory traffic which hides behind the longer. `cache` is the share of memory's rate at which attention reads keys
    and values, where it is not `memory`. The rest are seconds: for each layer, each step, each all-reduce.
    """

    compute: float = 1.0
    memory: float = 1.0
    link: float = 1.0
    overlap: float = 1.0
    layer_s: float = 0.0
    step_s: float = 0.0
    all_reduce_s: float = 0.0
    cache: float | None = None

    def __post_init__(self):
        for name in ("compute", "memory", "link"):
            check_share(name, getattr(self, name))
        if self.cache is not None:
            check_share("cache", self.cache)
        check_share("overlap", self.overlap, zero=True)
        for name in ("layer_s", "step_s", "all_reduce_s"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise bad_input(name, value, "a number of seconds, 0 or more")

    @property
    def of_attention(self) -> "Efficiency":
        """The same for attention, whose traffic is the cache's."""
        return self if self.cache is None else replace(self, memory=self.cache)


IDEAL = Efficiency()
# What accelerators in data centres reach: fitted by `python -m bench cost --fit` on a quarter of the published rows.
# They are known badly: the rows are as content with a compute share from 0.72 to 0.78, a link share from 0.3 to 0.4,
# and a layer's time from 40 to 70 microseconds. The overlap is not fitted: at 1 the longer of both hides the shorter.
TYPICAL = Efficiency(compute=0.78, memory=0.74, link=0.35, layer_s=4e-5, all_reduce_s=6e-6)


@dataclass(frozen=True, repr=False)
class Part:
    """The time of one part of a step on one chip, in seconds: of its arithmetic, its memory traffic, its links."""

    compute_s: float
    memory_s: float
    time_s: float

    @property
    def binds(self) -> str:
        return "arithmetic" if self.compute_s > self.memory_s else "memory"

    def __repr__(self) -> str:
        return (f"{1000 * self.time_s:.3g} ms, set by {self.binds} ({1000 * self.compute_s:.3g} ms of arithmetic, "
                f"{1000 * self.memory_s:.3g} ms of memory traffic).")


@dataclass(frozen=True, repr=False)
class StepTime:
    """How long a call takes, by part, and how much of it depends on no part (`fixed_s`)."""

    parts: dict[str, Part]
    link_s: float = 0.0
    fixed_s: float = 0.0

    @property
    def time_s(self) -> float:
        return sum(part.time_s for part in self.parts.values()) + self.link_s + self.fixed_s

    @property
    def compute_s(self) -> float:
        return sum(part.compute_s for part in self.parts.values())

    @property
    def memory_s(self) -> float:
        return sum(part.memory_s for part in self.parts.values())

    @property
    def binds(self) -> str:
        """What takes most of the time: memory, arithmetic, links, or what is fixed."""
        share = {"links": self.link_s, "fixed costs": self.fixed_s, "memory": 0.0, "arithmetic": 0.0}
        for part in self.parts.values():
            share[part.binds] += part.time_s
        return max(share, key=share.get)

    def __repr__(self) -> str:
        by = {name: part.time_s for name, part in self.parts.items()} | {"links": self.link_s, "fixed": self.fixed_s}
        shares = ", ".join(f"{name} {t / self.time_s:.0%}" for name, t in by.items() if t > 0.005 * self.time_s)
        lines = textwrap.fill(shares, 75, initial_indent="  ", subsequent_indent="  ")  # what a page shows
        return f"{1000 * self.time_s:.3g} ms, set by {self.binds}:\n{lines}"


def roofline_time(work: Work, hw: Accelerator, dtype: str = "bf16", efficiency: Efficiency = IDEAL) -> Part:
    """How long one piece of work takes `hw`, computing in `dtype`.

    MissingFactError where the chip has no such format.

    >>> from llmflation.hardware import accelerator
    >>> roofline_time(Work(2e12, 1e9), accelerator("H100 SXM5")).binds
    'arithmetic'
    """
    compute = formulas.compute_s(work.flops, hw.peak(dtype) * efficiency.compute)
    memory = formulas.memory_s(work.bytes, hw.mem_bytes_per_s * efficiency.memory)
    return Part(compute, memory, formulas.overlapped_s(compute, memory, efficiency.overlap))
