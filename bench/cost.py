"""`python -m bench cost`: published measurements of serving beside what the cost model and its peers predict.

A quarter of the rows, chosen by a checksum of their ids, calibrate `TYPICAL`; the others are scored. Agreement is the
smaller of prediction and measurement over the larger.
"""

import argparse
import csv
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import median

from llmflation.cost.published import NEEDED, Case, agreement, plain_number, predicted, published_cases
from llmflation.cost.roofline import Efficiency
from llmflation.errors import BadInputError

from .rows import Row, share

PEERS = Path(__file__).parent / "peers"
WIDTH = 120  # of a line that is printed
# Why rows of the project's table are off by more than twice, or all but: from what the row says, or marked as a guess.
UNTUNED = ("the row's note calls the runs untuned, launch-bound and noisy, and their folder experimental and likely to "
           "contain errors.")
WHY = dict.fromkeys(("b341", "b345", "b346", "b347", "b349", "b350", "b351"), UNTUNED) | {
    "b064": "its time per token was limited, and the row says no batch but a cap: we fill the memory, with so many "
            "requests that each would wait longer for a token than the row allows.",
    "b338": "the row says no batch, so we fill the memory; our guess is that fewer were at once. The model's sparse "
            "attention, too, is counted as the dense one of DeepSeek-V3.",
}


def fit(cases: Sequence[Case]) -> Efficiency:
    """The efficiency that predicts the calibration rows best, by the mean log error, where a row wrong by more than
    half counts as half. They tell fixed costs badly from shares: of all fits within 8% the least fixed one is taken,
    and of shares that fit it as well within 1% the largest."""
    def loss(e: Efficiency) -> float:
        return sum(min(math.log(1.5), -math.log(agreement(predicted(c, e), c.value))) for c in cases) / len(cases)

    found = []
    for layer_s, all_reduce_s in product((2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5), (2e-6, 4e-6, 6e-6, 8e-6, 1.2e-5)):
        best = Efficiency(0.7, 0.8, 0.4, layer_s=layer_s, all_reduce_s=all_reduce_s)
        for _ in range(2):
            for name, values in GRID.items():
                best = min((replace(best, **{name: v}) for v in values), key=loss)
        found.append((layer_s + 2 * all_reduce_s, loss(best), best))
    least = min(value for _, value, _ in found)
    _, lost, best = min((f for f in found if f[1] <= 1.08 * least), key=lambda f: f[:2])
    for name, values in GRID.items():
        best = replace(best, **{name: max(v for v in values if loss(replace(best, **{name: v})) <= 1.01 * lost)})
    return best


GRID = {"compute": (0.66, 0.69, 0.72, 0.75, 0.78), "memory": (0.7, 0.74, 0.78, 0.82, 0.86, 0.9),
        "link": (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)}


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """The bench's rows and notes. `quick` changes nothing: all of it takes seconds."""
    parser = argparse.ArgumentParser(prog="python -m bench cost")
    parser.add_argument("--rows", type=Path, help="another CSV with the columns of serving_benchmarks.csv")
    parser.add_argument("--fit", action="store_true", help="print what the calibration rows say TYPICAL should be")
    chosen = parser.parse_args(list(arguments))
    own = chosen.rows is None
    every, left_out = published_cases(None if own else list(_table(chosen.rows)))
    scored = [c for c in every if not (own and c.calibrates)]
    if not scored:
        raise BadInputError(f"{chosen.rows}: no row can be predicted. {_counted(left_out)}")
    pairs = [(c, predicted(c)) for c in scored]
    notes = [_table_of(pairs), "", *off_by_twice([(c, predicted(c)) for c in every], WHY if own else None), "",
             f"{len(every)} rows can be predicted, {len(scored)} of them are scored.",
             f"{sum(c.fills for c in scored)} of these state no number of requests at once: as many as fit are taken."]
    notes += [_wrapped(f"left out, {count}: {reason}") for reason, count in left_out.most_common()]
    if chosen.fit:
        notes.append(f"The calibration rows say {fit([c for c in every if c.calibrates])}.")
    agreed = [agreement(p, c.value) for c, p in pairs]
    result = [share("median-agreement", agreed, 0.5, 0.80), share("p90-agreement", agreed, 0.1, 0.50)]
    for name in ALSO if own else ():
        row, note = beside(name, every)
        result.append(row)
        notes.append(note)
    return result, notes


ALSO = {"genz": "GenZ", "llm_viewer": "LLM-Viewer", "llm_analysis": "llm-analysis", "mlsysim": "mlsysim"}


def beside(name: str, cases: Sequence[Case]) -> tuple[Row, str]:
    """How many times as far off as ours a peer is, in the median of the log errors on the rows that it can do.

    As it is shipped; the note adds how far off it is when one factor for all its times, like ours from the calibration
    rows alone, has set it right on average.
    """
    with (PEERS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        said = {row["row_id"]: row for row in csv.DictReader(file) if row["decode_step_ms"]}
    theirs = {c.id: c.in_its_unit(float(said[c.id]["prompts_ms"]) / 1000, float(said[c.id]["decode_step_ms"]) / 1000)
              for c in cases if c.id in said}
    slower = median(_slower(c, theirs[c.id]) for c in cases if c.id in said and c.calibrates)
    scored = [c for c in cases if c.id in said and not c.calibrates]
    errors = [(_error(theirs[c.id], c), _error(_times(c, theirs[c.id], slower), c), _error(predicted(c), c))
              for c in scored]
    shipped, fitted, ours = (median(column) for column in zip(*errors, strict=True))
    rng = Random(0)
    drawn = sorted(median(e[0] for e in sample) / median(e[2] for e in sample)
                   for sample in (rng.choices(errors, k=len(errors)) for _ in range(1000)))
    row = Row(f"cost-vs-{name.replace('_', '-')}", shipped / ours, min(shipped / ours, drawn[25]),
              max(shipped / ours, drawn[974]), 1.5)
    return row, (f"{ALSO[name]}, {len(scored)} rows: its median error is {math.expm1(shipped):.0%}, ours on the same "
                 f"rows {math.expm1(ours):.0%}; with its times multiplied by {slower:.2f}, {math.expm1(fitted):.0%}.")


def _error(said: float, c: Case) -> float:
    return abs(math.log(said / c.value))


def _slower(c: Case, said: float) -> float:
    """By what a peer's times must be multiplied so that it says what was published."""
    return c.value / said if c.is_time else said / c.value


def _times(c: Case, said: float, slower: float) -> float:
    return said * slower if c.is_time else said / slower


def off_by_twice(pairs: Sequence[tuple[Case, float]], why: Mapping[str, str] | None) -> list[str]:
    """Lines that list the rows whose prediction is off by more than twice, those of one reason together.

    The reason is the row's in `why`; without `why`, for rows that are not ours, it is the row's own engine and note.
    """
    found: dict[str, list[str]] = {}
    for c, p in pairs:
        if agreement(p, c.value) < 0.5:
            own = f"engine {c.engine or 'not named'}; note: {c.note or 'none'}"
            reason = own if why is None else why.get(c.id, "no reason is known.")
            found.setdefault(reason, []).append(c.id + (" (calibrates)" if why and c.calibrates else ""))
    if not found:
        return ["No row is wrong by more than 2x."]
    return ["Wrong by more than 2x:", *(_wrapped(f"  {', '.join(ids)}: {reason}") for reason, ids in found.items())]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, subsequent_indent="    ")


def _counted(left_out: Counter) -> str:
    """The reasons in one line, the most frequent ones first."""
    first = "; ".join(f"Left out, {count}: {reason}" for reason, count in left_out.most_common(5))
    return (first or "It has no rows") + (f"; and {len(left_out) - 5} more reasons." if len(left_out) > 5 else ".")


def _table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file; BadInputError, with its place, for what cannot be read as the table that it should be."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, reader.fieldnames or [])
            for row in reader:
                yield _checked(row, f"{path} line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path} cannot be read ({error}); give a CSV file.") from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    if lacking := {*NEEDED, "row_id"} - set(header):
        raise BadInputError(f"{path} lacks the columns {', '.join(sorted(lacking))}; it needs those of "
                            "serving_benchmarks.csv.")
    if double := [name for name, count in Counter(header).items() if count > 1]:
        raise BadInputError(f"{path} has the column {double[0]!r} {header.count(double[0])} times. Keep one of them.")


def _checked(row: dict, where: str) -> dict[str, str]:
    """The row, if it has as many cells as the header and numbers where the table has nothing else."""
    if None in row or None in row.values():
        raise BadInputError(f"{where} has {'more' if None in row else 'fewer'} cells than the header. An empty cell "
                            "needs its comma, a cell with a comma in it double quotes.")
    for column in ("value", "output_len", "accelerator_count"):
        cell = row.get(column, "").strip()
        if cell and plain_number(cell) is None:
            raise BadInputError(f"{where}, column {column!r}: found {cell[:60]!r}. Write a plain number such as 2674.9 "
                                "without unit, word or thousands separator; leave the cell empty if it is not known.")
    return {column: cell.strip() for column, cell in row.items()}


def _table_of(pairs: Sequence[tuple[Case, float]]) -> str:
    wide = min(16, max(5, *(len(c.id) for c, _ in pairs)))
    lines = [f"{'row':<{wide}} {'model':<24} {'chips':<20} {'in/out':>11} {'at once':>7} {'published':>10} "
             f"{'predicted':>10} ratio"]
    for c, p in sorted(pairs, key=lambda pair: agreement(pair[1], pair[0].value)):
        wrong = "  over 2x" if agreement(p, c.value) < 0.5 else ""
        lengths, chips = f"{c.n_in}/{c.n_out}", f"{c.chips} x {c.hw.name}"
        lines.append(f"{c.id[:wide]:<{wide}} {c.cfg.name[:24]:<24} {chips[:20]:<20} {lengths:>11} "
                     f"{c.batch:>7,} {c.value:>10,.5g} {p:>10,.5g} {p / c.value:>5.2f}{wrong}")
    return "\n".join(lines)
