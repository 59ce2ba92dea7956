"""`python -m bench roofline`: a decode step of the toy's architecture on this machine, predicted and measured.

Three constants and the overlap are fitted on the corners of the grid, which are not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import torch

from llmflation.calibrate import Step, fit, predicted_s, time_step
from llmflation.cost.published import agreement
from llmflation.model import Transformer
from llmflation.probe import this_machine
from llmflation.train import TOY

from .rows import Row, refuse, share

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (64, 256, 1024, 2048)
NARROW = replace(TOY, context=4096)
WIDE = replace(NARROW, d_model=1024, n_heads=16, n_kv_heads=4, d_ff=3072, name="wide")
SIZES = (2**22, 2**24, 2**26, 2**28, 2**30)  # bytes of the buffers whose reading is timed
MOST_SPREAD, TRIES = 0.20, 4


@dataclass(frozen=True)
class Point:
    """A point of the grid: its step, and how often it was timed until its runs agreed."""

    step: Step
    tries: int

    @property
    def corner(self) -> bool:
        return self.step.batch in (BATCHES[0], BATCHES[-1]) and self.step.context in (CONTEXTS[0], CONTEXTS[-1])


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """Both rows of this bench, and the table of all points."""
    refuse(arguments)
    machine = this_machine(SIZES)
    points = measured(5, passes=2 if quick else 3)
    fitted = fit(machine, [p.step for p in points if p.corner])
    pairs = [(p, predicted_s(machine, p.step, fitted)) for p in points]
    agreed = [agreement(t, p.step.time_s) for p, t in pairs if not p.corner]
    notes = [repr(machine), f"Fitted on the {sum(p.corner for p in points)} corners: {fitted}", _table_of(pairs)]
    return [share("median-agreement", agreed, 0.5, 0.90), share("p90-agreement", agreed, 0.1, 0.75)], notes


def measured(repeat: int, passes: int) -> list[Point]:
    """The whole grid, in passes some time apart, of which each point's fastest counts: other programs slow a machine
    down for seconds at a time, and not every point alike. In a pass a point whose times scatter is timed again."""
    found: dict[tuple, list[Point]] = {}
    for cfg in (NARROW, WIDE) * passes:
        model = Transformer(cfg, seed=0).eval().requires_grad_(False)
        for context, batch in product(CONTEXTS, BATCHES):
            tries: list[Step] = []
            with torch.random.fork_rng():
                while len(tries) < TRIES and (not tries or min(t.spread for t in tries) > MOST_SPREAD):
                    tries.append(time_step(model, batch, context, repeat))
            point = Point(min(tries, key=lambda t: t.spread), len(tries))
            found.setdefault((cfg, context, batch), []).append(point)
    return [min(points, key=lambda p: p.step.time_s) for points in found.values()]


def _table_of(pairs: Sequence[tuple[Point, float]]) -> str:
    lines = [f"{'width':>5} {'batch':>5} {'context':>7} {'measured':>9} {'predicted':>9} ratio  spread"]
    for p, t in pairs:
        s = p.step
        lines.append(f"{s.cfg.d_model:>5} {s.batch:>5} {s.context:>7} {1000 * s.time_s:>6.2f} ms {1000 * t:>6.2f} ms "
                     f"{t / s.time_s:>5.2f}  {s.spread:>5.0%}{' (corner)' * p.corner}"
                     f"{f' after {p.tries} tries' * (p.tries > 1)}")
    return "\n".join([*lines, f"The median spread of a point is {median(p.step.spread for p, _ in pairs):.0%}."])
