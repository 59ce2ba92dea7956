"""The cost model on this machine: what is timed, what is fitted, and that the fit finds what made the times."""

from dataclasses import replace

import pytest
import torch

from llmflation import probe
from llmflation.calibrate import Step, fit, predicted_s, step_of, sum_steps, time_step
from llmflation.config import ModelConfig
from llmflation.cost.roofline import Efficiency
from llmflation.errors import BadInputError
from llmflation.hardware import DTYPES
from llmflation.model import Transformer
from llmflation.probe import ThisMachine, this_machine

CFG = ModelConfig(2, 64, 4, 2, 128, 320, context=128, tied_embeddings=True)
MACHINE = ThisMachine("a machine", 16e9, 20e9, {"fp32": 3e11}, read_rates={2**20: 80e9, 2**28: 20e9}, operator_s=1e-6,
                      attention_share=0.3)


def test_a_step_reads_what_the_cache_holds_and_leaves_it_so(monkeypatch):
    model, seen = Transformer(CFG).eval(), []
    run = step_of(model, batch=3, context=100)
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, tokens, cache, *rest, **named: seen.append(
        (tuple(tokens.shape), cache.lengths.tolist())) or forward(self, tokens, cache, *rest, **named))
    run(), run()
    assert seen == [((3, 1), [100] * 3)] * 2


@pytest.mark.parametrize("context", [0, 128, 1.5, True])
def test_a_context_without_room_is_refused(context):
    with pytest.raises(BadInputError, match="from 1 to 127"):
        step_of(Transformer(CFG).eval(), 1, context)


def test_timing_a_step_says_what_was_timed():
    step = time_step(Transformer(CFG).eval(), 2, 16, repeat=3)
    assert (step.cfg, step.batch, step.context, step.dtype) == (CFG, 2, 16, torch.float32) and step.time_s > 0


def test_the_fit_finds_the_losses_that_made_the_times():
    wide = ModelConfig(4, 512, 8, 2, 1536, 320, context=4096, tied_embeddings=True)
    truth = Efficiency(0.6, 0.8, overlap=0.4, layer_s=1e-4, cache=0.3)
    steps = [Step(cfg, batch, context, torch.float32, 0.0, 0.0) for cfg in (replace(CFG, context=4096), wide)
             for batch in (1, 128) for context in (64, 2048)]
    steps = [replace(step, time_s=predicted_s(MACHINE, step, truth)) for step in steps]
    found = fit(MACHINE, steps)
    assert found.cache == MACHINE.attention_share
    for step in steps:
        assert predicted_s(MACHINE, step, found) == pytest.approx(step.time_s, rel=0.05)


def test_what_stays_in_the_cache_is_read_at_its_speed():
    assert MACHINE.reading(2**18).mem_bytes_per_s == MACHINE.reading(2**20).mem_bytes_per_s == 80e9
    assert MACHINE.reading(2**40).mem_bytes_per_s == 20e9
    assert MACHINE.reading(2**24).mem_bytes_per_s == pytest.approx(40e9)


def test_this_machine_is_an_accelerator_like_any_other(monkeypatch):
    monkeypatch.setattr("llmflation.probe._product_flops", lambda dtype: {"fp32": 1e11, "bf16": 2e11}.get(dtype))
    machine = this_machine(sizes=(2**16, 2**18))
    assert machine.peak("fp32") == 1e11 and "int8" not in machine.peak_flops and set(machine.peak_flops) <= set(DTYPES)
    assert machine.mem_bytes_per_s == machine.read_rates[2**18] and machine.mem_bytes > 1e8
    assert 0 < machine.operator_s < 1 and 0 < machine.attention_share <= 1 and "TFLOP/s" in repr(machine)


def test_a_format_that_cannot_be_multiplied_has_no_rate(monkeypatch):
    def refuse(a, b):
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert probe._product_flops("int8", width=16) is None and probe._product_flops("fp32", width=16) > 0


@pytest.mark.parametrize("timed", [(2, 100), (2, 7, 40, 100), (100, 2, 51)])
@pytest.mark.parametrize("first, last", [(2, 100), (2, 3), (7, 40), (9, 88), (50, 50)])
def test_steps_add_up_and_between_lengths_they_lie_on_straight_lines(timed, first, last):
    assert sum_steps({n: 3 + 2 * n for n in timed}, first, last) == pytest.approx(
        sum(3 + 2 * n for n in range(first, last)))


def test_a_bend_counts_where_it_is():
    assert sum_steps({0: 0, 2: 2, 4: 8}, 0, 4) == 0 + 1 + 2 + 5


@pytest.mark.parametrize("step_s, first, last, found", [
    ({2: 1.0, 9: 2.0}, 1, 9, "first is 1; allowed: 2 to 9"), ({2: 1.0, 9: 2.0}, 2, 10, "last is 10; allowed: 2 to 9"),
    ({}, 1, 2, "first is 1; allowed: nothing")])
def test_lengths_that_were_not_timed_are_refused(step_s, first, last, found):
    with pytest.raises(BadInputError, match=found):
        sum_steps(step_s, first, last)
