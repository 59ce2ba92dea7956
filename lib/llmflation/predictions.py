"""The reader's guesses, written down before the run and shown beside the result after it.

A guess lies in `.predictions.json` beside the notebook, or in memory where nothing can be written.
"""

import csv
import datetime as dt
import json
import math
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from .errors import BadInputError

FILE = ".predictions.json"
_memory: dict[str, dict] = {}  # per file, what could not be written into it


@dataclass(frozen=True)
class Comparison:
    """A guess beside the result: `factor` is how many times too high (above 1) or too low (below 1) it was."""

    id: str
    guess: float | None
    result: float
    unit: str = ""

    @property
    def factor(self) -> float | None:
        same_sign = self.guess is not None and self.guess * self.result > 0
        return self.guess / self.result if same_sign else None

    def __repr__(self) -> str:
        answer, guess = f"The answer is {_show(self.result, self.unit)}", _show(self.guess, self.unit)
        if self.guess is None:
            return f"{answer}. (No guess was noted before.)"
        if self.factor is None:
            return f"{answer}, you guessed {guess}."
        off = max(self.factor, 1 / self.factor)
        way = "high" if self.factor > 1 else "low"
        verdict = "very close" if off < 1.1 else f"{off:.2g} times too {way}"
        return f"{answer}, you guessed {guess}: {verdict}."


def predict(id: str, guess: float | None = None, unit: str = "", *, path: str | Path = FILE) -> None:
    """Keep a guess for question `id` and say so; `None` says how to make one and keeps what was there.

    Raises BadInputError when the guess is not a finite number.
    """
    if guess is None:
        print("No guess yet: write a number in place of None, then run this cell again.")
        return
    guess = _finite(guess, "guess")
    _save({id: {"guess": guess, "unit": unit, "date": dt.date.today().isoformat()}}, Path(path))
    print(f"Noted: {_show(guess, unit)}. Now run on, and compare.")


def compare_prediction(id: str, result: float, unit: str = "", *, path: str | Path = FILE) -> Comparison:
    """The result beside the guess that `predict` kept (the result is kept too, for `export_predictions`)."""
    result = _finite(result, "result")
    kept = _load(Path(path)).get(id)
    if kept is None:
        return Comparison(id, None, result, unit)
    _save({id: {**kept, "result": result}}, Path(path))
    return Comparison(id, kept["guess"], result, unit)


def export_predictions(to: str | Path = "predictions.csv", *, reader: str = "", path: str | Path = FILE) -> Path:
    """Write all kept guesses as CSV for a teacher: reader, id, guess, result, factor, unit, date."""
    kept = _load(Path(path))
    if not kept:
        raise BadInputError(f"no guesses are kept in {path}: run a cell with predict(id, number) first.")
    to = Path(to)
    try:
        file = to.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"cannot write {str(to)!r} ({error.strerror}); name a file in a folder of yours.") from None
    with file:
        out = csv.writer(file)
        out.writerow(["reader", "id", "guess", "result", "factor", "unit", "date"])
        for id, entry in sorted(kept.items()):
            result = entry.get("result")
            factor = None if result is None else Comparison(id, entry["guess"], result).factor
            row = [reader, id, entry["guess"], result, factor, entry["unit"], entry["date"]]
            out.writerow([_inert(cell) for cell in row])
    return to


def _finite(value, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise BadInputError(f"{what} {value!r} is not a number; write it plainly, like 10 or 0.5, without quotes.")
    return float(value)


def _show(value: float | None, unit: str) -> str:
    return "nothing" if value is None else f"{value:.3g} {unit}".strip()


def _inert(cell):
    """A text that a spreadsheet program would run as a formula, made plain text."""
    return "'" + cell if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def _load(path: Path) -> dict[str, dict]:
    try:
        kept = json.loads(path.read_text("utf-8"))
        if not isinstance(kept, dict) or not all(isinstance(e, dict) and "guess" in e for e in kept.values()):
            raise ValueError
    except OSError:
        kept = {}
    except ValueError:  # unreadable: put it aside, so that nothing is lost, and go on
        aside = path.with_name(path.name + ".unreadable")
        try:
            os.replace(path, aside)
            print(f"{path} could not be read; it now lies in {aside.name}.")
        except OSError:
            pass
        kept = {}
    here = str(path.absolute())
    return {**kept, **_memory.get(here, {})}


def _save(entries: dict[str, dict], path: Path) -> None:
    """Add entries to the file in one step, so that an interruption leaves the old file whole."""
    kept = {**_load(path), **entries}
    try:
        fresh = path.with_name(path.name + f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False), "utf-8")
        os.replace(fresh, path)
    except OSError:
        if str(path.absolute()) not in _memory:
            print("(This folder cannot be written: your guesses last until the notebook is closed.)")
        _memory.setdefault(str(path.absolute()), {}).update(entries)
