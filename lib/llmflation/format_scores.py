"""What each number format costs in quality: the stored scores of the toy and of SmolLM2, as tables.

`tools/quantized_scores.py` measures them, by the whole of the course's problems, and leaves them beside the toy.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import unknown_name
from .evaluate import Score, Scores
from .pretrained import CHECKPOINTS

MOST = 5  # times as much: beyond it digits say nothing
STORED = CHECKPOINTS / "dense" / "quantized.json"


@dataclass(frozen=True, repr=False)
class Change:
    """By how much a measure changed against the model as it was, with its 95% interval; shares, not percent."""

    difference: float
    low: float
    high: float

    def __repr__(self) -> str:
        if self.difference > MOST:
            return f"more than {MOST} times"
        places = 0 if abs(self.difference) >= 1 else 1
        mid, low, high = (f"{100 * x:+.{places}f}" for x in (self.difference, self.low, self.high))
        return f"{mid} ({low} to {high})"


class FormatScores:
    """All stored scores, by model ("toy", "SmolLM2") and scheme; "fp32" is the model as it was."""

    def __init__(self, stored: Mapping | None = None):
        self.stored = json.loads(STORED.read_text("utf-8")) if stored is None else stored

    def of(self, model: str, scheme: str) -> Mapping:
        """All that was measured of a model in a format. UnknownNameError for one that was not."""
        for kind, name, known in (("model", model, ("toy", "SmolLM2")), ("scheme", scheme, self.schemes)):
            if name not in known:
                raise unknown_name(kind, name, known)
        return self.stored[model][scheme]

    @property
    def schemes(self) -> list[str]:
        """The formats that were judged, those that hold the most bits first."""
        toy = self.stored["toy"]
        return sorted(toy, key=lambda name: -toy[name]["bits_per_weight"])

    def domains(self, scheme: str, split: str = "standard") -> Scores:
        """The toy's score in each domain, with its interval."""
        found = self.of("toy", scheme)[split]["domains"]
        return Scores(f"{scheme}, {split} split", {name: Score(s["right"], s["n"]) for name, s in found.items()})

    def change(self, model: str, scheme: str, what: str) -> Change:
        """Against the same model in 32 bits: "standard" or "hard" accuracy and "bits" of the toy, "perplexity" or
        "cloze" of SmolLM2."""
        found = self.of(model, scheme)
        parts = found[what]["change"] if what in ("standard", "hard") else found[f"{what}_change"]
        return Change(**parts)

    def point(self, model: str, scheme: str) -> tuple[float, float, float, float]:
        """For `viz.frontier`: bits held for a weight, and what is lost with its interval, in percent or points."""
        found = self.change(model, scheme, "standard" if model == "toy" else "perplexity")
        sign = -100 if model == "toy" else 100
        low, high = sorted((sign * found.low, sign * found.high))
        return self.of(model, scheme)["bits_per_weight"], sign * found.difference, low, high

    def same_quality(self, model: str, scheme: str) -> bool:
        """Whether it is the same quality, as the course understands it (`evaluate.same_quality`)."""
        limits = ({"standard": 0.01, "hard": 0.01, "bits": 0.02} if model == "toy"
                  else {"perplexity": 0.02, "cloze": 0.01})
        return all(abs(self.change(model, scheme, what).difference) <= limit for what, limit in limits.items())

    def by_domain(self, split: str = "standard") -> "Table":
        """The toy's accuracy in each domain, a line for each scheme; `domains` has the intervals of one."""
        names = list(self.domains("fp32", split).by)
        lines = [f"{scheme:16}" + "".join(f"{100 * self.domains(scheme, split)[name].accuracy:8.1f}" for name in names)
                 for scheme in self.schemes]
        return Table("\n".join([f"{'right, %':16}" + "".join(f"{name[:7]:>8}" for name in names), *lines]))

    def table(self, model: str, tokens_per_s: Mapping[str, float] | None = None,
              schemes: Iterable[str] | None = None) -> "Table":
        """A line for each scheme: bits held for a weight, quality with intervals, and speeds if they are given."""
        chosen = self.schemes if schemes is None else list(schemes)
        line = self._toy_line if model == "toy" else self._real_line
        head = {"toy": f"{'':16} bits/w  right          change, points     b/byte",
                "SmolLM2": f"{'':16} bits/w  perplexity         change, %    cloze"}
        lines = [f"{name:16} {self.of(model, name)['bits_per_weight']:6.2f} {line(name)}" for name in chosen]
        if tokens_per_s is not None:
            head[model] += "  tokens/s"
            lines = [line + _speed(tokens_per_s.get(name)) for line, name in zip(lines, chosen)]
        return Table("\n".join([head[model], *lines]))

    def _toy_line(self, name: str) -> str:
        row, change = self.of("toy", name), self.change("toy", name, "standard")
        return f"{row['standard']['mean']:7.1%} {change!r:>22} {row['bits_per_byte']:10.3f}"

    def _real_line(self, name: str) -> str:
        row, cloze = self.of("SmolLM2", name), self.of("SmolLM2", name)["cloze"]
        perplexity = f"{row['perplexity']:10.2f}" if row["perplexity"] < 1e5 else f"{row['perplexity']:10.0e}"
        return f"{perplexity} {self.change('SmolLM2', name, 'perplexity')!r:>22} {cloze['right'] / cloze['n']:7.1%}"


@dataclass(frozen=True, repr=False)
class Table:
    """Lines of text that a cell shows as they are."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _speed(tokens_per_s: float | None) -> str:
    return f"{'-' if tokens_per_s is None else format(tokens_per_s, ',.0f'):>10}"
