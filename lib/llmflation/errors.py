"""The errors of the library. Each message names what was found, what is allowed and what to do about it."""

from difflib import SequenceMatcher


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


def bad_input(what: str, value: object, allowed: str, remedy: str = "") -> BadInputError:
    """The error for one bad argument, to be raised by the caller.

    >>> str(bad_input("repeat", 0, "a whole number of 1 or more", "Leave it out for 20 runs."))
    'repeat is 0; allowed: a whole number of 1 or more. Leave it out for 20 runs.'
    """
    return BadInputError(f"{what} is {_short(value)}; allowed: {allowed}." + (f" {remedy}" if remedy else ""))


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
