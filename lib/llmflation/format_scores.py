"""What each number format costs in quality: the stored scores of the toy and of SmolLM2, as tables.

`tools/quantized_scores.py` measures them, by the whole of the course's problems, and leaves them beside the toy.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from .errors import BadInputError, MissingFactError, bad_input, unknown_name
from .evaluate import MOST_POINTS, MOST_RATIO, Score, Scores
from .pretrained import CHECKPOINTS

MOST = 5  # shares more: a change beyond that is told in times
LIMITS = {"toy": {"standard": MOST_POINTS, "hard": MOST_POINTS, "bits": MOST_RATIO},
          "SmolLM2": {"perplexity": MOST_RATIO, "cloze": MOST_POINTS}}  # how much may change in the same quality
BASE = "fp32"  # what all is compared with
STORED = CHECKPOINTS / "dense" / "quantized.json"


@dataclass(frozen=True, repr=False)
class Change:
    """By how much a measure changed against the model as it was, with its 95% interval; shares, not percent."""

    difference: float
    low: float
    high: float

    def __repr__(self) -> str:
        if self.difference > MOST:
            mid, low, high = (f"{1 + x:.1f}" if x < 1000 else f"{1 + x:.0e}" for x in (
                self.difference, self.low, self.high))
            return f"{mid} times ({low} to {high})"
        places = 0 if abs(self.difference) >= 1 else 1
        mid, low, high = (f"{round(100 * x, places) + 0.0:+.{places}f}" for x in (self.difference, self.low, self.high))
        return f"{mid} ({low} to {high})"


class FormatScores:
    """All stored scores, by model ("toy", "SmolLM2") and scheme; "fp32" is the model as it was."""

    def __init__(self, stored: Mapping | None = None):
        self.stored = json.loads(STORED.read_text("utf-8")) if stored is None else stored

    def of(self, model: str, scheme: str) -> Mapping:
        """All that was measured of a model in a format. UnknownNameError for one that was not."""
        models = {name: self.stored[name] for name in LIMITS}
        return _known("scheme", scheme, _known("model", model, models))

    @property
    def limits(self) -> Mapping[str, Mapping[str, float]]:
        """By model: what is judged, and how much of it may change in the same quality."""
        return LIMITS

    @property
    def schemes(self) -> list[str]:
        """The formats that were judged, those that hold the most bits first."""
        toy = self.stored["toy"]
        return sorted(toy, key=lambda name: -toy[name]["bits_per_weight"])

    def domains(self, scheme: str, split: str = "standard") -> Scores:
        """The toy's score in each domain of the "standard" or the "hard" split, with its interval."""
        found = _known("split", split, {name: self.of("toy", scheme)[name] for name in ("standard", "hard")})["domains"]
        return Scores(f"{scheme}, {split} split", {name: Score(s["right"], s["n"]) for name, s in found.items()})

    def change(self, model: str, scheme: str, what: str) -> Change:
        """Against the same model in 32 bits: accuracy on the "standard" or "hard" split and "bits" per byte of the toy;
        "perplexity", the same with the "head kept" in 32 bits, and "cloze" of SmolLM2."""
        found = self.of(model, scheme)
        parts = ({name: found[name]["change"] for name in ("standard", "hard")} | {"bits": found["bits_change"]}
                 if model == "toy" else {name: found[f"{name}_change"] for name in ("perplexity", "cloze")} |
                 {"head kept": found["head_kept"]["perplexity_change"]})
        return Change(**_known("measure", what, parts))

    def lost(self, model: str, scheme: str, what: str) -> tuple[float, float, float]:
        """What is lost against 32 bits and its interval, in points of accuracy, else in percent: more is worse."""
        found = self.change(model, scheme, what)
        sign = -100 if what in ("standard", "hard", "cloze") else 100
        low, high = sorted((sign * found.low, sign * found.high))
        return sign * found.difference, low, high

    def same_quality(self, model: str, scheme: str) -> bool:
        """Whether it is the same quality, as the course understands it (`evaluate.same_quality`)."""
        return self.verdict(model, scheme) != "no"

    def verdict(self, model: str, scheme: str) -> str:
        """"yes" or "no" to the same quality; "unsure" where all changes keep to the limits and not all intervals do."""
        self.of(model, scheme)
        changes = [(self.change(model, scheme, what), most) for what, most in LIMITS[model].items()]
        if any(abs(change.difference) > most for change, most in changes):
            return "no"
        return "yes" if all(-most <= c.low and c.high <= most for c, most in changes) else "unsure"

    def table(self, model: str, tokens_per_s: Mapping[str, float] | None = None,
              schemes: Iterable[str] | None = None) -> "Table":
        """A row for each scheme: bits held for a weight, speed if it is given, what is judged of the model with its
        change, and whether it is the same quality."""
        cells = self._toy_cells if model == "toy" else self._real_cells
        rows = {}
        for name in _several(self.schemes if schemes is None else schemes):
            speed = {} if tokens_per_s is None else {"tokens/s": (_speed(tokens_per_s.get(name)), "")}
            rows[name] = {"bits/w": (f"{self.of(model, name)['bits_per_weight']:.2f}", ""),
                          "same": (self.verdict(model, name), ""), **speed, **cells(name)}
        if BASE in rows:
            rows[BASE] = _alone(rows[BASE])
        return Table(f"{model}, by format. Same: whether it is the same quality. In small print: the change against 32 "
                     "bits and its 95% interval, in points where it is not in percent.", rows)

    def by_domain(self, split: str = "standard") -> "Table":
        """A row for each scheme: what share of each domain the toy answers rightly, with its interval."""
        return Table(f"toy, by format: right of each domain's {split} split (%), and the 95% interval", {
            scheme: {name: (f"{100 * s.accuracy:.1f}", f"({100 * s.low:.0f} to {100 * s.high:.0f})")
                     for name, s in self.domains(scheme, split).by.items()} for scheme in self.schemes})

    def cache_table(self) -> "Table":
        """A row for each cache: bits held for a value, SmolLM2's perplexity, and what the toy looks up rightly at each
        distance."""
        return Table("Caches, by bits and by how many channels share a scale: bits held for a channel, SmolLM2's "
                     "perplexity, and of 100 look-ups at each distance those that the toy answers. In small print the "
                     "change and its 95% interval.",
                     {name: self._cache_cells(name, row) for name, row in self.caches.items()})

    def cache_change(self, cache: str, distance: int | None = None, quarter: int | None = None) -> Change:
        """Against whole keys and values: SmolLM2's perplexity, all of it or of a quarter (0 to 3) of each window, or
        the share of look-ups at a distance that the toy answers rightly.

        UnknownNameError for a cache, a distance or a quarter that was not judged, BadInputError for both of them.
        """
        row = _known("cache", cache, self.caches)
        if distance is not None and quarter is not None:
            raise BadInputError(f"distance {distance} and quarter {quarter} were given; allowed: one of them. The one "
                                "is the toy's, the other SmolLM2's.")
        if distance is not None:
            return Change(**_known("distance", str(distance), row["distances"])["change"])
        if quarter is not None:
            return Change(**_known("quarter", str(quarter), {str(i): part for i, part in enumerate(row["quarters"])}))
        return Change(**row["perplexity_change"])

    def cache_look_ups(self, cache: str) -> Change:
        """By how much the share of all look-ups that the toy answers changes. The interval takes each list as one draw,
        since the questions about it have much in common."""
        return Change(**_known("cache", cache, self.caches)["look_ups"])

    @property
    def caches(self) -> Mapping[str, Mapping]:
        """What was measured of each cache. MissingFactError where none was."""
        if not (found := self.stored.get("caches")):
            raise MissingFactError("no cache was judged yet; run: python tools/quantized_scores.py caches")
        return found

    def _cache_cells(self, name: str, row: Mapping) -> dict[str, tuple[str, str]]:
        cells = {"bits": (f"{row['bits_per_value']:.2f}", ""),
                 "perplexity": (f"{row['perplexity']:.2f}", _in_percent(Change(**row["perplexity_change"])))}
        cells |= {f"{at} back": (f"{s['right']}", _whole(Change(**s["change"]))) for at, s in row["distances"].items()}
        return _alone(cells) if name == BASE else cells

    def _toy_cells(self, name: str) -> dict[str, tuple[str, str]]:
        row = self.of("toy", name)
        cells = {"bits/byte": (f"{row['bits_per_byte']:.3f}", _in_percent(self.change("toy", name, "bits")))}
        return cells | {f"{split}, %": (f"{100 * row[split]['mean']:.1f}", repr(self.change("toy", name, split)))
                        for split in ("standard", "hard")}

    def _real_cells(self, name: str) -> dict[str, tuple[str, str]]:
        row = self.of("SmolLM2", name)
        cells = {what: (_large(value), _in_percent(self.change("SmolLM2", name, what))) for what, value in (
            ("perplexity", row["perplexity"]), ("head kept", row["head_kept"]["perplexity"]))}
        share = row["cloze"]["right"] / row["cloze"]["n"]
        return cells | {"facts, %": (f"{100 * share:.1f}", repr(self.change("SmolLM2", name, "cloze")))}


@dataclass(frozen=True, repr=False)
class Table:
    """What a cell shows as a table: a row for each name, of (number, small print) by column; as text, aligned lines."""

    caption: str
    rows: Mapping[str, Mapping[str, tuple[str, str]]]

    @property
    def columns(self) -> list[str]:
        return list(next(iter(self.rows.values()), ()))

    def __repr__(self) -> str:
        lines = [["", *self.columns], *([name, *(_plain(*cell) for cell in row.values())]
                                        for name, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join([self.caption, *("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
                                          for line in lines)])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(*cell) for cell in row.values())}</tr>'
                       for name, row in self.rows.items())
        return (f'<table class="table formats"><caption>{escape(self.caption)}</caption><thead><tr><td></td>{head}</tr>'
                f"</thead><tbody>{body}</tbody></table>")


def _several(schemes: Iterable[str]) -> list[str]:
    if isinstance(schemes, str) or not (names := list(schemes)):
        raise bad_input("schemes", schemes, "one name at least, in a list", "Leave it out for all.")
    return names


def _known(kind: str, name: str, known: Mapping) -> Mapping:
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]


def _alone(cells: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Without small print: what everything is compared with has not changed."""
    return {column: (number, "") for column, (number, _) in cells.items()}


def _large(value: float) -> str:
    return f"{value:.2f}" if value < 1e5 else f"{value:.0e}"


def _whole(change: Change) -> str:
    """In whole points: a hundred problems know no others."""
    return f"{100 * change.difference:+.0f} ({100 * change.low:+.0f} to {100 * change.high:+.0f})"


def _in_percent(change: Change) -> str:
    return f"{change}" if change.difference > MOST else f"{change}".replace(" (", "% (")


def _plain(number: str, small: str) -> str:
    return f"{number} {small}".rstrip()


def _cell(number: str, small: str) -> str:
    return f"<td>{escape(number)}{f'<br><small>{escape(small)}</small>' if small else ''}</td>"


def _speed(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}"
