"""Names for units, and numbers written for people. Inside the library all is SI; formats live at its edge.

GB is 10^9 bytes, as sellers and bandwidths count; GiB is 2^30 bytes, as memory chips are built: 7.4% more.
"""

import calendar
import math
import re
from datetime import date
from decimal import Decimal

from llmflation.errors import bad_input

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40
BITS_PER_BYTE = 8
TOKENS_PER_MTOK = 1e6
SECONDS_PER_HOUR = 3600.0
DAYS_PER_YEAR = 365.25
MONTHS_PER_YEAR = 12


def bytes_from_bits(bits: float) -> float:
    """Bytes that `bits` fill.

    >>> bytes_from_bits(4)
    0.5
    """
    return bits / BITS_PER_BYTE


def usd_per_mtok(usd_per_token: float) -> float:
    """USD per million tokens, as prices are listed.

    >>> usd_per_mtok(2e-5)
    20.0
    """
    return usd_per_token * TOKENS_PER_MTOK


def as_date(value) -> date:
    """A calendar day from a `date`, a `datetime` or text such as "2024-10-03"; else BadInputError.

    >>> as_date("2024-02-29")
    datetime.date(2024, 2, 29)
    """
    try:
        if isinstance(value, date):
            return date(value.year, value.month, value.day)
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise bad_input("date", value, "a day of the calendar", 'Write it as "YYYY-MM-DD", or pass a datetime.date.')


def years_between(start, end) -> float:
    """Years of 365.25 days from `start` to `end`; negative if `end` comes first.

    >>> round(years_between("2022-11-28", "2024-10-03"), 2)
    1.85
    """
    return (as_date(end) - as_date(start)).days / DAYS_PER_YEAR


def months_between(start, end) -> float:
    """Months of a twelfth of a year (30.4375 days) from `start` to `end`.

    >>> round(months_between("2022-11-28", "2024-10-03"), 1)
    22.2
    """
    return MONTHS_PER_YEAR * years_between(start, end)


def add_months(day, months: int) -> date:
    """The same day of the month, `months` later; the month's last day where that day does not exist.

    >>> add_months("2024-02-29", 12)
    datetime.date(2025, 2, 28)
    """
    day = as_date(day)
    index = day.year * MONTHS_PER_YEAR + day.month - 1 + months
    year, month = index // MONTHS_PER_YEAR, index % MONTHS_PER_YEAR + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def significant(x: float, digits: int = 3) -> str:
    """`x` to so many significant digits, never with an exponent, without trailing zeros.

    >>> significant(0.012345), significant(1234567), significant(10.0)
    ('0.0123', '1,230,000', '10')
    """
    if digits < 1:
        raise bad_input("digits", digits, "1 or more")
    text = f"{Decimal(f'{_finite(x):.{digits - 1}e}'):,f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def quantile(values, share: float) -> float:
    """The value below which `share` of the values lie, linear between the two nearest ones.

    >>> quantile([4, 1, 2, 3], 0.5)
    2.5
    """
    ordered, place = sorted(values), share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def usd(x: float, digits: int = 3) -> str:
    """US dollars: cents where there are cents, and more places where a small price needs them.

    >>> usd(20), usd(3.5), usd(0.0123), usd(1234.5)
    ('$20', '$3.50', '$0.0123', '$1,234.50')
    """
    size = abs(_finite(x))
    text = significant(size, digits) if size < 1 else f"{size:,.2f}".removesuffix(".00")
    whole, _, cents = text.partition(".")
    text = f"{whole}.{cents:0<2}" if cents else whole
    return ("-$" if x < 0 and text != "0" else "$") + text


def times(x: float, digits: int = 3) -> str:
    """A ratio.

    >>> times(286.3), times(1.504)
    ('286x', '1.5x')
    """
    return significant(x, digits) + "x"


def percent(x: float, digits: int = 3) -> str:
    """A share of one as a percentage.

    >>> percent(0.0312)
    '3.12%'
    """
    return significant(100 * _finite(x), digits) + "%"


def nbytes(x: float, digits: int = 3, binary: bool = False) -> str:
    """Bytes in decimal units, or in binary ones.

    >>> nbytes(16.06e9), nbytes(2**34, binary=True)
    ('16.1 GB', '16 GiB')
    """
    scale = (
        [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
        if binary
        else [(TB, "TB"), (GB, "GB"), (MB, "MB"), (KB, "kB")]
    )
    return _scaled(x, [*scale, (1.0, "B")], digits)


def in_words(x: float, digits: int = 3) -> str:
    """A large number by its name.

    >>> in_words(12_227_072), in_words(8.03e9)
    ('12.2 million', '8.03 billion')
    """
    names = [(1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1.0, "")]
    return _scaled(x, names, digits).strip()


def duration(x_s: float, digits: int = 3) -> str:
    """Seconds in the unit that reads best.

    >>> duration(0.00479), duration(7200)
    ('4.79 ms', '2 h')
    """
    return _scaled(
        x_s,
        [(SECONDS_PER_HOUR, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
        digits,
    )


def _scaled(x: float, scale: list[tuple[float, str]], digits: int) -> str:
    size = abs(_finite(x))
    unit, name = next(((u, n) for u, n in scale if size >= u), scale[-1] if size else (1.0, _base(scale)))
    return f"{significant(x / unit, digits)} {name}"


def _base(scale: list[tuple[float, str]]) -> str:
    return next(name for unit, name in scale if unit == 1.0)


def _finite(x: float) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
        raise bad_input("the number to write", x, "a finite number")
    return x
