"""What each number format costs in quality: the stored scores of the toy and of SmolLM2, as tables.

`tools/quantized_scores.py` measures them, by the whole of the course's problems, and leaves them beside the toy.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

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

    def table(self, model: str, tokens_per_s: Mapping[str, float] | None = None,
              schemes: Iterable[str] | None = None) -> "Table":
        """A row for each scheme: bits held for a weight, quality with 95% intervals, and speeds if they are given.

        "toy": bits per byte, the means of the standard and of the hard split with their change, the standard split by
        domain. "SmolLM2": perplexity and facts right, with their change.
        """
        chosen = self.schemes if schemes is None else list(schemes)
        cells = self._toy_cells if model == "toy" else self._real_cells
        rows = {}
        for name in chosen:
            speed = {} if tokens_per_s is None else {"tokens/s": (_speed(tokens_per_s.get(name)), "")}
            same = "yes" if self.same_quality(model, name) else "no"
            rows[name] = {"bits/w": (f"{self.of(model, name)['bits_per_weight']:.2f}", ""), **speed,
                          **cells(name), "same quality": (same, "")}
        return Table(f"{model} by format; in small print 95% intervals", rows)

    def _toy_cells(self, name: str) -> dict[str, tuple[str, str]]:
        row = self.of("toy", name)
        cells = {"bits/byte": (f"{row['bits_per_byte']:.3f}", _in_percent(self.change("toy", name, "bits")))}
        for split in ("standard", "hard"):
            cells[f"{split}, %"] = (f"{100 * row[split]['mean']:.1f}", repr(self.change("toy", name, split)))
        return cells | {domain: (f"{100 * s.accuracy:.1f}", f"({100 * s.low:.0f} to {100 * s.high:.0f})")
                        for domain, s in self.domains(name).by.items()}

    def _real_cells(self, name: str) -> dict[str, tuple[str, str]]:
        row = self.of("SmolLM2", name)
        perplexity = f"{row['perplexity']:.2f}" if row["perplexity"] < 1e5 else f"{row['perplexity']:.0e}"
        facts = Score(row["cloze"]["right"], row["cloze"]["n"])
        return {"perplexity": (perplexity, _in_percent(self.change("SmolLM2", name, "perplexity"))),
                "facts, %": (f"{100 * facts.accuracy:.1f}", repr(self.change("SmolLM2", name, "cloze")))}


@dataclass(frozen=True, repr=False)
class Table:
    """What a cell shows as a table: a row for each name, of (number, small print) by column; as text, lines of words."""

    caption: str
    rows: Mapping[str, Mapping[str, tuple[str, str]]]

    @property
    def columns(self) -> list[str]:
        return list(next(iter(self.rows.values())))

    def __repr__(self) -> str:
        lines = [["", *self.columns], *([name, *(_plain(*cell) for cell in row.values())]
                                        for name, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(*cell) for cell in row.values())}</tr>'
                       for name, row in self.rows.items())
        return (f'<table class="table formats"><caption>{escape(self.caption)}</caption><thead><tr><td></td>{head}</tr>'
                f"</thead><tbody>{body}</tbody></table>")


def _in_percent(change: Change) -> str:
    return repr(change).replace(" (", "% (")


def _plain(number: str, small: str) -> str:
    return f"{number} {small}".rstrip()


def _cell(number: str, small: str) -> str:
    return f"<td>{escape(number)}{f'<br><small>{escape(small)}</small>' if small else ''}</td>"


def _speed(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}"
