"""Numbers and claims that a chapter states: computed once, put into the prose, guarded and recorded.

`glue` hands a number to the text around it, marked with its kind; `claim` does the same for a sentence that
the chapter stands for, and stops the notebook when the number leaves the range that the sentence allows.
Both only emit an output into the notebook: the book's build collects those outputs (tools/book.py), and in
Colab or a plain kernel the same calls work without it.
"""

import datetime as dt
import functools
import html
import math
import platform
from dataclasses import asdict
from numbers import Real

from .cost.ledger import Factor
from .errors import BadInputError, ClaimError

KINDS = {"measured": "●", "quoted": "○", "modelled": "▬", "assumed": "┄"}  # strongest first; each with its mark
PREFIX = "application/papermill.record/"  # a notebook front end shows nothing for this type
WIDEST = 0.25  # the guard of a claim that no machine changes reaches at most this far from its number


def glue(id: str, value, kind: str = "quoted", fmt: str = "{:.3g}") -> None:
    """Give the prose a number: `` {glue:}`id` `` prints `fmt.format(value)` with the mark of its kind.

    `kind` is that of the number's weakest input: measured, quoted, modelled or assumed.
    `value` may be a number, a date or a text.

    >>> glue("01-span-months", 22.08, "quoted", "{:.1f} months")
    """
    number = _number(id, value, kind, fmt)
    if kind == "measured":  # the text of a notebook that is opened elsewhere cannot know it
        print(f"{id}: {number['text']} {KINDS[kind]} {kind}")
    _display(number, {})


def claim(id: str, statement: str, value: float, between: tuple[float, float], kind: str = "quoted",
          fmt: str = "{:.3g}") -> None:
    """State a number, print it, and stop with a sentence when it is not `between` (low, high).

    The range of a quoted or modelled claim reaches at most 25% either way of the value; that of a measured
    one is a bound that excludes 'no effect', so that it holds on other machines (`math.inf` is allowed).
    Raises ClaimError when the value is outside, BadInputError when the range is no guard.

    >>> claim("x-ratio", "The price fell this many times.", 285.7, between=(280, 290))
    x-ratio: The price fell this many times. 286 ○ quoted, guarded from 280 to 290
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadInputError(f"claim {id}: the value {value!r} is not a number.")
    number = _number(id, value, kind, fmt)
    low, high = _range(id, between)
    if not low <= value <= high:
        raise ClaimError(
            f"claim {id} no longer holds: {statement!r} allows {low:g} to {high:g}, the number is {value:g}. "
            f"Either the data or the code changed for the worse, or the sentence must change with them."
        )
    if kind != "measured" and (low < value - abs(value) * WIDEST or high > value + abs(value) * WIDEST):
        raise BadInputError(
            f"claim {id}: the range {low:g} to {high:g} reaches more than {WIDEST:.0%} from {value:g}, "
            f"so it guards too little. Narrow `between`."
        )
    if kind == "measured" and low <= 1 <= high:
        raise BadInputError(
            f"claim {id}: the range {low:g} to {high:g} contains 1, a ratio without effect, so it guards nothing. "
            f"Let `between` begin above 1 or end below it."
        )
    record = {"id": id, "statement": statement, "value": float(value), "text": number["text"], "kind": kind,
              "low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None,
              "machine": machine(), "date": dt.date.today().isoformat()}
    print(f"{id}: {statement} {number['text']} {KINDS[kind]} {kind}, guarded from {low:g} to {high:g}")
    _display(number, {"claim": record})


def factor(id: str, found: Factor) -> None:
    """Enter a factor into the course's ledger: print it, and record it when the book is built.

    Raises BadInputError for what is no Factor, and for an id that is no name.
    """
    if not isinstance(found, Factor):
        raise BadInputError(f"factor {id}: {found!r} is no Factor; make one with Factor(name, kind, value, ...).")
    number = _number(id, found.value, found.kind, "{:.3g}")
    record = {"id": id, **asdict(found), "machine": machine(), "date": dt.date.today().isoformat()}
    print(f"{id}\n{found}")  # apart, so that no line is wider than a page shows
    _display(number, {"factor": record})


@functools.cache
def machine() -> str:
    """The machine in a few words: system, processor family, Python."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _range(id, between) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in between)
    except (TypeError, ValueError):
        raise BadInputError(f"claim {id}: between={between!r} is not a pair of numbers; write (low, high).") from None
    if not low < high:  # also refuses NaN
        raise BadInputError(f"claim {id}: between={between!r} must be (low, high) with low below high.")
    return low, high


def _number(id: str, value, kind: str, fmt: str) -> dict:
    if not isinstance(id, str) or not id:
        raise BadInputError(f"id {id!r} is not a name; use one like '01-280x-rows'.")
    if kind not in KINDS:
        raise BadInputError(f"{id}: kind {kind!r} is none of {', '.join(KINDS)}.")
    if isinstance(value, Real) and not math.isfinite(value):
        raise BadInputError(f"{id}: the value is {value}, which no text can state; look at how it was computed.")
    plain = value.isoformat() if isinstance(value, dt.date) else value
    return {"id": id, "value": plain, "text": fmt.format(value), "kind": kind}


def _display(number: dict, extra: dict) -> None:
    """Emit the number as a notebook output that carries the record as metadata; do nothing outside a notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    text, kind = html.escape(number["text"]), number["kind"]
    data = {"text/plain": number["text"], "text/html": f'<span class="num {kind}" title="{kind}">{text}</span>'}
    display({PREFIX + mime: content for mime, content in data.items()}, raw=True, metadata={
        "scrapbook": {"name": number["id"], "mime_prefix": PREFIX}, "llmflation": {"number": number, **extra}})
