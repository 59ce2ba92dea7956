"""Laws of the ledger: factors multiply, kinds do not mix unasked, a range stays a range."""

import dataclasses
import doctest
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation.cost import ledger
from llmflation.cost.ledger import KINDS, WIDTH, Factor, Ledger
from llmflation.errors import BadInputError

GOOD = {"name": "8 bits", "kind": "measured", "value": 2.0, "low": 1.8, "high": 2.1, "conditions": "batch 1",
        "loses_when": "the batch is large"}
EIGHT_BITS = Factor(**GOOD)
CHIP = Factor("a newer chip", "quoted", 3.0, 2.5, 3.5, "list prices", "prices rise")
GUESS = Factor("competition", "assumed", 1.5, 1.0, 2.0, "many sellers", "few sell")


LAWFUL = settings(deadline=None, max_examples=40)
NUMBERS = st.tuples(st.floats(0.01, 100), st.floats(1, 3), st.floats(1, 3))  # a value, and how far below and above


@st.composite
def ledgers(draw, kind=None):
    kinds = st.just(kind) if kind else st.sampled_from(KINDS)
    drawn = draw(st.lists(st.tuples(NUMBERS, kinds), min_size=1, max_size=5))
    return Ledger([Factor(f"cause {i}", k, value, value / below, value * above, "here", "elsewhere")
                   for i, ((value, below, above), k) in enumerate(drawn)])


def test_worked_lines():
    assert doctest.testmod(ledger, raise_on_error=True).attempted


# Products.


@LAWFUL
@given(ledgers("measured"))
def test_the_whole_is_the_product_and_its_range_holds_it(account):
    whole = account.product()
    assert whole.value == pytest.approx(math.prod(f.value for f in account.factors))
    assert whole.low <= whole.value <= whole.high
    assert whole.kind == "measured"


@LAWFUL
@given(ledgers("measured"))
def test_the_range_of_a_product_is_wider_than_any_of_its_parts_and_narrower_than_all(account):
    """As errors of logarithms that know nothing of each other: root of the sum of squares."""
    whole, parts = account.product(), account.factors
    below, above = whole.value / whole.low, whole.high / whole.value
    assert below * (1 + 1e-9) >= max(f.value / f.low for f in parts)
    assert below <= math.prod(f.value / f.low for f in parts) * (1 + 1e-9)
    assert above * (1 + 1e-9) >= max(f.high / f.value for f in parts)
    assert above <= math.prod(f.high / f.value for f in parts) * (1 + 1e-9)


@LAWFUL
@given(account=ledgers("quoted"), data=st.data())
def test_the_order_of_the_factors_is_no_matter(account, data):
    other = Ledger(data.draw(st.permutations(account.factors))).product()
    whole = account.product()
    assert (other.value, other.low, other.high) == pytest.approx((whole.value, whole.low, whole.high))


def test_one_factor_alone_is_the_whole():
    whole = Ledger([EIGHT_BITS]).product()
    assert (whole.value, whole.low, whole.high) == pytest.approx((2.0, 1.8, 2.1))


def test_two_ranges_of_a_tenth_make_one_of_a_seventh():
    parts = [Factor(name, "measured", 2.0, 2 / 1.1, 2 * 1.1, "here", "there") for name in ("one", "two")]
    whole = Ledger(parts).product()
    assert whole.value == 4
    assert (whole.high / whole.value, whole.value / whole.low) == pytest.approx((1.1 ** math.sqrt(2),) * 2)


def test_factors_without_a_range_have_a_product_without_one():
    whole = Ledger([Factor(str(n), "measured", n, n, n, "here", "there") for n in (2, 3, 7)]).product()
    assert whole.low == whole.value == whole.high == 42


# Kinds.


def test_kinds_are_multiplied_only_by_those_who_say_so():
    mixed = Ledger([EIGHT_BITS, CHIP])
    with pytest.raises(BadInputError, match=r"measured and quoted factors; .*mix_kinds=True"):
        mixed.product()
    assert mixed.product(mix_kinds=True).value == 6


@LAWFUL
@given(ledgers())
def test_a_mixed_product_is_of_its_weakest_kind(account):
    weakest = max(KINDS.index(f.kind) for f in account.factors)
    assert account.product(mix_kinds=True).kind == KINDS[weakest]


@LAWFUL
@given(ledgers())
def test_each_factor_is_of_one_kind(account):
    assert sum(len(account.of(kind).factors) for kind in KINDS) == len(account.factors)
    for kind in KINDS:
        assert {f.kind for f in account.of(kind).factors} <= {kind}


def test_unknown_kinds_are_refused():
    with pytest.raises(BadInputError, match="kind is 'guessed'; allowed: measured, quoted, modelled, assumed"):
        Ledger().of("guessed")


# Entries.


def test_a_ledger_grows_and_the_old_one_stays():
    one = Ledger() + EIGHT_BITS
    two = one + CHIP
    assert [f.name for f in two.factors] == ["8 bits", "a newer chip"]
    assert len(one.factors) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.factors = ()


def test_a_cause_counts_once():
    with pytest.raises(BadInputError, match="'8 bits' twice"):
        Ledger([EIGHT_BITS, CHIP]) + EIGHT_BITS
    with pytest.raises(BadInputError, match="'8 bits' twice"):
        Ledger([EIGHT_BITS, dataclasses.replace(EIGHT_BITS, value=1.9)])


def test_nothing_has_no_product():
    with pytest.raises(BadInputError, match="the ledger is empty"):
        Ledger().product()
    with pytest.raises(BadInputError, match="the ledger is empty"):
        Ledger([EIGHT_BITS]).of("modelled").product()


def test_a_factor_that_makes_things_dearer_is_a_factor():
    dearer = Factor("thinking", "measured", 0.2, 0.1, 0.4, "long answers", "answers are short")
    assert Ledger([EIGHT_BITS, dearer]).product().value == pytest.approx(0.4)


BAD = {
    "zero": ({"value": 0}, "value of '8 bits' is 0; allowed: a number above 0"),
    "negative": ({"value": -2.0}, "value of '8 bits' is -2.0"),
    "missing": ({"value": None}, "value of '8 bits' is None"),
    "not-a-number": ({"value": float("nan")}, "value of '8 bits' is nan"),
    "infinite": ({"high": float("inf")}, "high of '8 bits' is inf"),
    "text": ({"value": "2x"}, "value of '8 bits' is '2x'"),
    "true": ({"value": True}, "value of '8 bits' is True"),
    "low-zero": ({"low": 0}, "low of '8 bits' is 0"),
    "low-missing": ({"low": None}, "low of '8 bits' is None"),
    "above-its-range": ({"value": 2.2}, "'8 bits' is 2.2, outside its own range 1.8 to 2.1"),
    "below-its-range": ({"value": 1.7}, "outside its own range"),
    "range-upside-down": ({"low": 2.1, "high": 1.8}, "outside its own range"),
    "unknown-kind": ({"kind": "guessed"}, "the kind of '8 bits' is 'guessed'; allowed: measured, quoted"),
    "no-kind": ({"kind": None}, "the kind of '8 bits' is None"),
    "no-conditions": ({"conditions": ""}, "conditions of '8 bits' is ''"),
    "wins-always": ({"loses_when": ""}, "loses_when of '8 bits' is ''"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_a_bad_factor_is_refused(change, says):
    with pytest.raises(BadInputError) as error:
        Factor(**GOOD | change)
    assert says in str(error.value)


# What is said.


def test_a_factor_is_three_lines():
    assert repr(EIGHT_BITS).splitlines() == ["8 bits: 2 times cheaper (1.8 to 2.1), measured", "  under: batch 1",
                                             "  loses when the batch is large"]


def test_no_line_of_a_factor_is_wider_than_a_page():
    chips = Factor("faster chips", "modelled", 1.312, 0.957, 1.713, "Llama-3.1-8B in 16 bits, full batch, late 2022 to "
                   "early 2025", "rents rise as fast as speeds, or one reader is served at a time")
    first, *others = repr(chips).splitlines()
    assert len(f"04-faster-chips: {first}") <= WIDTH and all(len(line) <= WIDTH for line in others)
    assert " ".join(repr(chips).split()).endswith(f"under: {chips.conditions} loses when {chips.loses_when}")


def test_a_ledger_is_a_table_of_one_line_each():
    lines = repr(Ledger([EIGHT_BITS, CHIP, GUESS])).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["a", "newer", "chip", "3", "2.5", "to", "3.5", "quoted"]


@pytest.mark.parametrize("nothing", [None, 2.0])
def test_a_ledger_of_no_list_is_refused(nothing):
    with pytest.raises(BadInputError, match="factors is .*; allowed: a list of Factor"):
        Ledger(nothing)
