"""The exercise with planted faults: each is exposed by its own traces, and the right engine by none."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation.errors import BadInputError, LLMflationError, OutOfBlocksError, UnknownNameError
from llmflation.faults import FAULTS, SHORTEST, SmallEngine, do, expose, next_token

PROMPTS = ([1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("trace", SHORTEST)
def test_a_trace_exposes_its_own_fault_and_no_other(fault, trace):
    assert expose(fault, SHORTEST[trace]).exposed == (fault == trace)


def traces(longest):
    """All valid traces of two requests up to so many steps."""
    level = [[("start", "a", prompt)] for prompt in PROMPTS]
    for _ in range(longest - 1):
        yield from level
        steps = [("start", "b", prompt) for prompt in PROMPTS] + [
            (verb, name) for verb in ("step", "preempt", "resume", "end") for name in "ab"]
        level = [[*trace, step] for trace in level for step in steps if valid([*trace, step])]
    yield from level


def valid(trace):
    engine = SmallEngine()
    try:
        for step in trace:
            do(engine, step)
    except LLMflationError:
        return False
    return True


def test_no_shorter_trace_exposes_a_fault():
    longest = max(map(len, SHORTEST.values())) - 1
    for trace in traces(longest):
        for fault, shortest in SHORTEST.items():
            if len(trace) < len(shortest):
                assert not expose(fault, trace).exposed, (fault, trace)


def test_a_longer_way_exposes_a_count_made_too_early():
    """The one of the tracker: a preempted request finds its own blocks."""
    trace = [("start", "a", [1, 2, 3, 4, 5]), ("step", "a"), ("preempt", "a"), ("resume", "a"), ("step", "a")]
    assert expose("counted too early", trace).exposed


NAMES, SOME = st.sampled_from("abc"), st.lists(st.integers(1, 2), min_size=1, max_size=13)
STEPS = st.one_of(st.tuples(st.just("start"), NAMES, SOME),
                  *[st.tuples(st.just(verb), NAMES) for verb in ("step", "step", "step", "preempt", "resume", "end")])


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_the_right_engine_writes_what_a_model_without_a_cache_writes(trace):
    engine = SmallEngine(n_blocks=10)
    for step in trace:
        tokens = list(engine.requests[step[1]].tokens) if step[1] in engine.requests else None
        try:
            written = do(engine, step)
        except LLMflationError:
            assert tokens is None or engine.requests[step[1]].tokens == tokens
            continue  # what is no step, or finds no block, changes nothing
        if step[0] == "step":
            assert written == next_token(tokens)
        engine.pool.check()
    for name in [name for name, r in engine.requests.items() if r.table]:
        engine.end(name)
    engine.pool.allocate(engine.pool.n_blocks)  # the index gives up all that it kept


def test_the_cache_is_used():
    engine = SmallEngine()
    for name in "ab":
        engine.start(name, list(range(9)))
        assert engine.requests[name].to_read == (9 if name == "a" else 1)
        engine.step(name)


@pytest.mark.parametrize("trace, says", [
    ([("step", "b")], "Not a trace: step 1, .*no request 'b' is running"),
    ([("start", "a", [1]), ("start", "a", [1])], "step 2.*already"),
    ([("start", "a", [])], "tokens is .*one at least"),
    ([("start", "a", [1.5])], "whole numbers"),
    ([("start", "a")], "a step is"),
    ([("step", "a", 3)], "a step is"),
    ([("read", "a")], "a tuple of start, step, preempt, resume, end"),
    (["start"], "a step is"),
    ([("start", "a", [1]), ("resume", "a")], "waiting"),
    ([("start", "a", list(range(65)))], "needs 17 blocks, 16 are free"),
])
def test_what_is_no_trace_says_why(trace, says):
    verdict = expose("wrong phase", trace)
    assert not verdict.exposed and re.search(says, repr(verdict)), verdict


def test_an_unknown_fault_is_refused():
    with pytest.raises(UnknownNameError, match="wrong phase"):
        expose("wrong phases", [])


def test_a_refused_start_leaves_nothing_behind():
    engine = SmallEngine(n_blocks=2)
    engine.start("a", [1, 2, 3, 4, 5])
    engine.step("a")
    with pytest.raises(OutOfBlocksError):
        engine.start("b", [1, 2, 3, 4, 5, 6])
    assert set(engine.requests) == {"a"} and engine.pool.owners(engine.requests["a"].table.blocks[0]) == 2


def test_no_other_verb_reaches_the_engine():
    with pytest.raises(BadInputError, match="a step is"):
        do(SmallEngine(), ("admit", "a"))
