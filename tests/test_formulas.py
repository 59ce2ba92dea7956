"""Laws of the plain formulas, and of the file that holds them: it must run where there is little more than a core."""

import ast
import builtins
import doctest
import math
from pathlib import Path
from random import Random
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation.cost import formulas as f

SOURCE = Path(f.__file__).read_text(encoding="utf-8")
COUNTS = st.integers(1, 60)
NUMBERS = st.floats(1e-6, 1e12)
SHARES = st.floats(0.01, 1.0)


def test_worked_lines():
    assert doctest.testmod(f, raise_on_error=True).attempted >= 17


# The file itself.

TOO_MUCH = {
    ast.ClassDef: "a class",
    ast.AsyncFunctionDef: "async",
    ast.ImportFrom: "an import from",
    ast.Try: "try",
    ast.TryStar: "try",
    ast.NamedExpr: "a walrus",
    ast.Match: "match",
    ast.With: "with",
}


def too_much(source: str) -> list[str]:
    """What `source` uses that a minimal Python lacks, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        words = [TOO_MUCH.get(type(node), "")]
        if isinstance(node, ast.Import):
            words += [f"import {alias.name}" for alias in node.names if alias.name != "math"]
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            words += ["keyword-only arguments"] * bool(node.args.kwonlyargs)
            words += ["positional-only arguments"] * bool(node.args.posonlyargs)
            words += ["a decorator"] * bool(getattr(node, "decorator_list", []))
        if isinstance(node, ast.FormattedValue) and (node.format_spec or node.conversion != -1):
            words.append("a format in an f-string")
        found += [f"line {getattr(node, 'lineno', 0)}: {word}" for word in words if word]
    return found


def test_the_file_runs_on_a_minimal_python():
    assert too_much(SOURCE) == []


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import dataclasses", "import dataclasses"),
        ("import math, typing", "import typing"),
        ("from math import exp", "an import from"),
        ("class A: pass", "a class"),
        ("@cache\ndef g(): pass", "a decorator"),
        ("def g(a, *, b): pass", "keyword-only arguments"),
        ("def g(a, /): pass", "positional-only arguments"),
        ("g = lambda *, b: b", "keyword-only arguments"),
        ("x = f'{1.5:.1f}'", "a format in an f-string"),
        ("x = f'{1!r}'", "a format in an f-string"),
        ("try:\n    x = 1\nexcept ValueError:\n    x = 2", "try"),
        ("if (x := 3): pass", "a walrus"),
        ("match 1:\n    case 1: pass", "match"),
        ("async def g(): pass", "async"),
        ("with open('a'): pass", "with"),
    ],
)
def test_what_a_minimal_python_lacks_is_found(code, word):
    assert word in too_much(code)[0]


def test_the_file_runs_with_nothing_but_a_core_and_math():
    core = {name: getattr(builtins, name) for name in ("__import__", "max", "min", "round", "sum", "range")}
    space = {"__builtins__": core}
    exec(compile(SOURCE, "formulas.py", "exec"), space)  # noqa: S102
    assert space["experts_touched"](8, 2, 8) == f.experts_touched(8, 2, 8)


# What a token's context holds and costs.


@given(new=st.integers(0, 40), held=st.integers(0, 40), window=st.none() | st.integers(1, 50))
def test_pairs_are_those_that_one_can_count(new, held, window):
    seen = [min(held + i + 1, window or math.inf) for i in range(new)]
    assert f.pairs_seen(new, held, window) == sum(seen)


@given(COUNTS, COUNTS)
def test_a_wide_window_is_none(new, held):
    assert f.pairs_seen(new, held, window=new + held) == f.pairs_seen(new, held)


@given(bits=st.integers(1, 16), group=st.integers(1, 512))
def test_a_scale_costs_less_the_more_share_it(bits, group):
    assert bits < f.bits_per_value(bits, 2 * group) < f.bits_per_value(bits, group)
    assert f.bits_per_value(bits) == bits
    assert f.bits_per_value(bits, group, 16, 16) - bits == pytest.approx(2 * (f.bits_per_value(bits, group) - bits))


@given(n=st.integers(1, 256), k=st.integers(1, 256), tokens=st.integers(1, 4096))
def test_a_batch_touches_from_top_k_to_all_experts_and_more_the_larger_it_is(n, k, tokens):
    k = min(k, n)
    touched = f.experts_touched(n, k, tokens)
    assert k * (1 - 1e-9) <= touched <= n
    assert touched <= f.experts_touched(n, k, tokens + 1)
    assert f.experts_touched(n, k, 1) == pytest.approx(k)


def test_a_model_without_experts_touches_none():
    assert f.experts_touched(0, 0, 8) == 0


@pytest.mark.parametrize(("n", "k", "tokens"), [(8, 2, 8), (256, 8, 32), (64, 6, 3), (16, 1, 40)])
def test_the_experts_touched_are_the_mean_of_many_draws(n, k, tokens):
    rng = Random(n + tokens)
    drawn = [len({e for _ in range(tokens) for e in rng.sample(range(n), k)}) for _ in range(500)]
    assert abs(mean(drawn) - f.experts_touched(n, k, tokens)) < 4 * stdev(drawn) / len(drawn) ** 0.5


# Time.


@given(a=NUMBERS, b=NUMBERS, overlap=st.floats(0, 1))
def test_overlap_lies_between_the_longer_and_the_sum(a, b, overlap):
    both = f.overlapped_s(a, b, overlap)
    assert max(a, b) <= both <= (a + b) * (1 + 1e-12)
    assert f.overlapped_s(a, b) == max(a, b)
    assert f.overlapped_s(a, b, 0.0) == pytest.approx(a + b)


@given(peak=st.floats(1e9, 1e16), rate=st.floats(1e9, 1e14), bits=st.sampled_from([4, 8, 16, 32]), weights=NUMBERS)
def test_at_the_critical_batch_weights_take_as_long_to_read_as_to_use(peak, rate, bits, weights):
    batch = f.critical_batch(peak, rate, bits)
    read = f.memory_s(weights * bits / 8, rate)
    assert f.compute_s(f.linear_flops(batch, weights), peak) == pytest.approx(read)


@given(n_bytes=NUMBERS, chips=st.integers(1, 1000))
def test_a_ring_sends_nothing_alone_and_never_twice_the_whole(n_bytes, chips):
    assert f.all_reduce_bytes(n_bytes, 1) == 0
    assert f.all_reduce_bytes(n_bytes, chips) < f.all_reduce_bytes(n_bytes, chips + 1) < 2 * n_bytes


@given(batch=COUNTS, out=COUNTS, prefill=st.floats(0, 10), step=st.floats(1e-4, 10))
def test_a_batch_that_moves_on_together_makes_as_much_where_prompts_take_as_long(batch, out, prefill, step):
    flowing = f.tokens_per_s(batch, out, prefill, step)
    assert f.fixed_batch_tokens_per_s(batch, out, batch * prefill, step) == pytest.approx(flowing)
    assert flowing <= batch / step


@given(batch=COUNTS, out=COUNTS, prefill=st.floats(1e-4, 10), step=st.floats(1e-4, 10))
def test_the_time_of_all_requests_is_the_time_of_the_machine(batch, out, prefill, step):
    requests_per_s = f.tokens_per_s(batch, out, prefill, step) / out
    assert requests_per_s * (prefill + out * step / batch) == pytest.approx(1)


# Money and energy.


@given(usd=NUMBERS, tokens_per_s=NUMBERS, utilization=SHARES)
def test_what_the_tokens_of_an_hour_cost_is_what_the_hour_costs(usd, tokens_per_s, utilization):
    each = f.usd_per_million_tokens(usd, tokens_per_s, utilization)
    assert each * tokens_per_s * utilization * 3600 / 1e6 == pytest.approx(usd)


@given(into=NUMBERS, out=NUMBERS, ratio=st.floats(0.01, 100))
def test_a_blend_lies_between_its_prices(into, out, ratio):
    mixed = f.blend(into, out, ratio)
    assert min(into, out) * (1 - 1e-9) <= mixed <= max(into, out) * (1 + 1e-9)
    assert f.blend(into, out, 1) == pytest.approx((into + out) / 2)


@given(price=NUMBERS, years=st.integers(1, 30), interest=st.floats(0.001, 1.0))
def test_the_instalments_are_worth_the_price(price, years, interest):
    yearly = f.capital_usd_per_hour(price, years, interest) * f.HOURS_PER_YEAR
    assert sum(yearly / (1 + interest) ** k for k in range(1, years + 1)) == pytest.approx(price)
    assert yearly > f.capital_usd_per_hour(price, years) * f.HOURS_PER_YEAR


@given(price=NUMBERS, years=st.floats(0.5, 30))
def test_without_interest_the_instalments_add_up_to_the_price(price, years):
    assert f.capital_usd_per_hour(price, years) * f.HOURS_PER_YEAR * years == pytest.approx(price)
    assert f.capital_usd_per_hour(price, years, 1e-6) == pytest.approx(f.capital_usd_per_hour(price, years), rel=1e-4)


@given(watts=NUMBERS, usd_per_kwh=st.floats(0.01, 1), pue=st.floats(1, 3), tokens_per_s=st.floats(0.1, 1e6))
def test_an_hour_of_joules_is_an_hour_of_electricity(watts, usd_per_kwh, pue, tokens_per_s):
    joules = f.joules_per_token(watts, tokens_per_s, pue) * tokens_per_s * 3600
    assert joules / 3.6e6 * usd_per_kwh == pytest.approx(f.power_usd_per_hour(watts, usd_per_kwh, pue))


@given(factor=st.floats(1e-6, 1e6), years=st.floats(0.1, 50))
def test_a_yearly_factor_taken_for_all_years_is_the_whole(factor, years):
    assert f.factor_per_year(factor, years) ** years == pytest.approx(factor)
