"""The errors of the library. Each message names what was found, what is allowed and what to do about it."""

from difflib import SequenceMatcher
from operator import index
from sys import float_info

MOST_WHOLE = 10**18  # of anything that is counted here


class LLMflationError(Exception):
    """What every error of this library is, so that one `except` catches them all."""


class BadInputError(LLMflationError, ValueError):
    """An argument that makes no sense. Best made by `bad_input`."""


class UnknownNameError(LLMflationError, KeyError):
    """A name that is not in the tables. Made by `unknown_name`, which adds the nearest known ones."""

    def __str__(self) -> str:
        # KeyError would print the message as a quoted repr.
        return str(self.args[0]) if self.args else ""


class DataError(LLMflationError, ValueError):
    """A data file that cannot be trusted; says in which file, line and column, as far as they are known."""

    def __init__(self, problem: str, *, file: str = "", line: int | None = None, column: str | None = None):
        place = " ".join(p for p in (file, f"line {line}" if line else "") if p)
        place = ", ".join(p for p in (place, f"column {column!r}" if column else "") if p)
        super().__init__(f"{place}: {problem}" if place else problem)
        self.file, self.line, self.column = file, line, column


class MissingFactError(LLMflationError, LookupError):
    """A fact that the tables leave empty. It is never filled by a rule of thumb."""


class ClaimError(LLMflationError, AssertionError):
    """A number that a page claims fell out of the range that it claims."""


class OutOfBlocksError(LLMflationError, MemoryError):
    """A pool of cache blocks has too few free ones: `needed` and `free` say how many. Nothing has changed."""

    def __init__(self, needed: int, free: int, total: int, what: str = ""):
        self.needed, self.free = needed, free
        remedy = "free a sequence and call again" if needed <= total else "make the pool larger or the text shorter"
        needs = f"{what} needs".lstrip()
        super().__init__(f"{needs} {needed} blocks, {free} are free of the pool's {total}; {remedy}.")


def bad_input(what: str, value: object, allowed: str, remedy: str = "") -> BadInputError:
    """The error for one bad argument, to be raised by the caller.

    >>> str(bad_input("repeat", 0, "a whole number of 1 or more", "Leave it out for 20 runs."))
    'repeat is 0; allowed: a whole number of 1 or more. Leave it out for 20 runs.'
    """
    return BadInputError(f"{what} is {_short(value)}; allowed: {allowed}." + (f" {remedy}" if remedy else ""))


def check_whole(what: str, value, least: int = 1) -> int:
    """The value, if it is a whole number of `least` or more; else BadInputError.

    >>> check_whole("batch", 8)
    8
    """
    try:
        whole = -1 if isinstance(value, bool) else index(value)  # NumPy's whole numbers are numbers, too
    except TypeError:
        whole = -1
    if not least <= whole <= MOST_WHOLE:
        up_to = " up to 10**18" if whole > MOST_WHOLE else ""
        raise bad_input(what, value, f"a whole number of {least} or more{up_to}")
    return whole


def is_number(value) -> bool:
    """Whether it is a finite number that a float can hold: no truth value, no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= float_info.max


def check_above(what: str, value, remedy: str = "") -> float:
    """The value, if it is a number above 0; else BadInputError."""
    if not is_number(value) or value <= 0:
        raise bad_input(what, value, "a number above 0", remedy)
    return value


def check_share(what: str, value, zero: bool = False) -> float:
    """The value, if it is a share: above 0 (with `zero`: or 0) and up to 1. A percentage gets the share it may mean.

    >>> check_share("utilization", 0.75)
    0.75
    """
    if not is_number(value) or not (0 <= value <= 1 if zero else 0 < value <= 1):
        hint = f"Did you mean {value / 100:g}?" if is_number(value) and 2 <= value <= 100 else ""
        raise bad_input(what, value, "a share from 0 to 1" if zero else "a share, above 0 and up to 1", hint)
    return value


def unknown_name(kind: str, name: object, known) -> UnknownNameError:
    """The error for a name that is not among `known`, with the nearest ones; to be raised by the caller.

    >>> str(unknown_name("accelerator", "H10O", ["H100 SXM5 80GB", "T4"]))
    "unknown accelerator 'H10O'; nearest: 'H100 SXM5 80GB'; there are 2 names in all."
    """
    known = [str(k) for k in known]
    near = nearest(name, known)
    shown = near or sorted(known)[:5]
    listed = ", ".join(repr(k) for k in shown) or "none"
    label = "nearest" if near else "known, among others" if len(known) > len(shown) else "known"
    count = "; there is 1 name in all." if len(known) == 1 else f"; there are {len(known)} names in all."
    return UnknownNameError(f"unknown {kind} {_short(name)}; {label}: {listed}{count}")


def nearest(name: object, known, count: int = 4) -> list[str]:
    """Up to `count` names of `known` that look most like `name`, best first; a matching beginning counts.

    >>> nearest("h100", ["A100 SXM4 80GB", "H100 PCIe 80GB", "T4"], count=1)
    ['H100 PCIe 80GB']
    """
    text = str(name)[:200].casefold().strip()

    def likeness(candidate: str) -> float:
        whole = candidate.casefold()
        if text and text in whole:
            return 1.0 + (whole == text) + whole.startswith(text)
        # "H10O" should find "H100 SXM5 80GB", which is far longer: compare the beginnings as well.
        return max(SequenceMatcher(None, text, part).ratio() for part in (whole, whole[: len(text)]))

    scored = sorted(((likeness(k), k) for k in map(str, known)), key=lambda pair: (-pair[0], pair[1]))
    return [k for score, k in scored[:count] if text and score >= 0.6]


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
