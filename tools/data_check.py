"""Which facts of `lib/llmflation/data` want a second look: the old, the unverified, those without an address.

    python tools/data_check.py --months 12

Exits with 0 whatever it lists, with 1 if a table has a broken row, with 2 if it is called wrongly.
"""

import argparse
import datetime as dt
import sys
from collections import Counter
from collections.abc import Iterable

from llmflation import facts
from llmflation.errors import BadInputError, LLMflationError, bad_input
from llmflation.units import add_months

LONGEST = 600  # months
# An old row of a price history is history. What ages is the newest price known of one seller for one thing.
OFFERS = {"token_prices": ("model", "provider"), "gpu_rental_prices": ("accelerator", "provider", "commitment")}


def age_date(row: facts.Row) -> dt.date | None:
    """The day on which a fact was last seen to hold: that of its source, else its own; None if it has neither."""
    return row.get("source_date") or row.get("date")


def newest_offers(name: str, rows: Iterable[facts.Row]) -> list[facts.Row]:
    """Of a price history the newest row of each offer; of any other table every row."""
    if name not in OFFERS:
        return list(rows)
    newest = {}
    for row in rows:
        offer = tuple(row[c] for c in OFFERS[name])
        if offer not in newest or row["date"] >= newest[offer]["date"]:
            newest[offer] = row
    return list(newest.values())


def old(name: str, rows: Iterable[facts.Row], limit: dt.date) -> list[facts.Row]:
    """The facts last seen before `limit`, oldest first."""
    dated = [(age_date(row), i, row) for i, row in enumerate(newest_offers(name, rows)) if age_date(row)]
    return [row for day, _, row in sorted(dated, key=lambda t: t[:2]) if day < limit]


def unverified(rows: Iterable[facts.Row]) -> list[facts.Row]:
    """The rows whose source was not read in full: those from memory before those read in part."""
    return sorted((r for r in rows if r.get("verified", "yes") != "yes"), key=lambda r: r["verified"])


def without_url(rows: Iterable[facts.Row]) -> list[facts.Row]:
    """The rows whose source has no address, in tables that have a column for it."""
    return [row for row in rows if "source_url" in row and not row["source_url"]]


def report(months: int, today: dt.date, show: int = 8) -> str:
    """The whole list as text: one table of counts, then the rows, prices first, at most `show` a table."""
    limit = add_months(today, -months)
    tables = {name: facts.read(name) for name in sorted(facts.SCHEMAS, key=lambda n: (n not in OFFERS, n))}
    found = {name: (old(name, rows, limit), unverified(rows), without_url(rows)) for name, rows in tables.items()}
    lines = [f"Facts on {today}; old means last seen before {limit} ({months} months). In the price histories only",
             "the newest row of each offer is judged: the others are history.", "",
             f"{'table':<22}{'rows':>6}{'judged':>8}{'old':>6}{'partial':>9}{'no':>4}{'no URL':>8}"]
    for name, rows in tables.items():
        words = Counter(row.get("verified") for row in rows)
        counts = len(newest_offers(name, rows)), len(found[name][0]), words["partial"], words["no"]
        lines.append("{:<22}{:>6}{:>8}{:>6}{:>9}{:>4}{:>8}".format(name, len(rows), *counts, len(found[name][2])))
    for title, part in (("Old, oldest first", 0), ("Not verified, from memory first", 1), ("Without a URL", 2)):
        lines += ["", title]
        lines += [text for name in tables for text in _listed(name, found[name][part], show)] or ["  none"]
    return "\n".join(lines)


def _listed(name: str, rows: list[facts.Row], show: int) -> list[str]:
    if not rows:
        return []
    key = [c for c in facts.SCHEMAS[name].key if c != "date"]
    listed = [
        f"    line {row.line:<4} {age_date(row) or 'no date   '}  {', '.join(str(row[c]) for c in key if row[c])}"
        for row in rows[:show]
    ]
    more = [f"    ... and {len(rows) - show} more"] if len(rows) > show else []
    return [f"  {name} ({len(rows)})", *listed, *more]


def whole_number(text: str) -> int:
    """The argument of an option; an error that says what is allowed, for argparse to show."""
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= value <= LONGEST:
        raise argparse.ArgumentTypeError(str(bad_input("the value", text, f"a whole number from 1 to {LONGEST}",
                                                       "Leave the option out for the default.")))
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="List the facts that are old, not verified or without an address.")
    parser.add_argument("--months", type=whole_number, default=12, help="how old is old (default: 12)")
    parser.add_argument("--show", type=whole_number, default=8, help="rows shown of each table (default: 8)")
    options = parser.parse_args(arguments)
    try:
        print(report(options.months, dt.date.today(), options.show))
    except BadInputError as e:
        parser.error(str(e))
    except LLMflationError as e:
        print(f"A table is broken. {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
