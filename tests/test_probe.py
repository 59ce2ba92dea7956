"""Measuring a decode step: what is timed is what the step does, and the numbers fit together."""

import pytest
import torch

from llmflation import probe
from llmflation.config import ModelConfig
from llmflation.errors import BadInputError
from llmflation.model import Transformer
from llmflation.probe import StepParts, step_parts

CFG = ModelConfig(2, 64, 4, 2, 128, 320, context=64, tied_embeddings=True)


@pytest.fixture(scope="module")
def model():
    return Transformer(CFG).requires_grad_(False)


def test_parts_and_rest_make_the_step():
    parts = StepParts(step_s=10.0, matrices_s=6.0, attention_s=1.0, weight_bytes=50, read_bytes_per_s=10.0)
    assert (parts.rest_s, parts.reading_s, parts.useful_share) == (3.0, 5.0, 0.7)
    assert "10 s" in repr(parts) and "6 s" in repr(parts) and "5 s" in repr(parts)


def test_the_bytes_are_those_of_every_product(model):
    parts = step_parts(model, context=32, repeat=2, read_bytes_per_s=1e9)
    matrices = sum(p.nbytes for name, p in model.named_parameters() if p.ndim == 2)  # the head is the embedding
    assert parts.weight_bytes == matrices
    assert parts.step_s > 0 and parts.matrices_s > 0 and parts.attention_s > 0


def test_half_the_bytes_in_half_the_precision(model):
    half = Transformer.of(CFG, {name: t.bfloat16() for name, t in model.state_dict().items()})
    wide, narrow = (step_parts(m, 32, 2, 1e9).weight_bytes for m in (model, half))
    assert wide == 2 * narrow


def test_every_timed_step_reads_the_same_context(model, monkeypatch):
    seen = []
    forward = Transformer.forward

    def watched(self, tokens, cache=None, n_new=None, **options):
        seen.append((tokens.shape[1], int(cache.lengths[0])))
        return forward(self, tokens, cache, n_new, **options)

    monkeypatch.setattr(Transformer, "forward", watched)
    step_parts(model, context=20, repeat=3, read_bytes_per_s=1e9)
    assert seen[0] == (20, 0) and set(seen[1:]) == {(1, 20)}


def test_memory_speed_is_bytes_over_time(monkeypatch):
    monkeypatch.setattr(probe, "time_fn", lambda fn, **_: fn() and type("T", (), {"median_s": 0.5}))
    assert probe.memory_bytes_per_s(4096) == 8192


@pytest.mark.parametrize("context", [0, 64, 1.5, True])
def test_a_context_that_does_not_fit_is_refused(model, context):
    with pytest.raises(BadInputError, match="from 1 to 63"):
        step_parts(model, context=context)


def test_nothing_is_left_behind(model):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    step_parts(model, 16, 2, 1e9)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
