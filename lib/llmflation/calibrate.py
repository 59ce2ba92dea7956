"""The cost model on this machine: time a few steps of a model, fit what the machine loses, predict the others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from .config import ModelConfig
from .cost.counts import kv_bytes, weight_bytes
from .cost.roofline import Efficiency
from .cost.serving import decode_step
from .errors import bad_input
from .kvcache import ContiguousKVCache, KVCache
from .model import Transformer
from .probe import ThisMachine
from .timing import time_fn

BITS = {torch.float32: 32, torch.bfloat16: 16}
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Step:
    """A decode step: its shape, and how long it took (the median), with the spread of the middle half as a share."""

    cfg: ModelConfig
    batch: int
    context: int
    dtype: torch.dtype
    time_s: float
    spread: float


def time_step(model: Transformer, batch: int, context: int, repeat: int = 7) -> Step:
    """Time a decode step of `batch` sequences behind `context` tokens each. BadInputError where they do not fit."""
    run = step_of(model, batch, context)
    timing = time_fn(run, repeat=repeat, warmup=2)
    return Step(model.cfg, batch, context, model.embedding.weight.dtype, timing.median_s,
                timing.spread_s / timing.median_s)


def sum_steps(step_s: Mapping[int, float], first: int, last: int) -> float:
    """Seconds of all steps from length `first` up to, not including, `last`, one after the other, given those of a few
    lengths: in between, on straight lines. BadInputError where the lengths given do not reach so far.

    >>> sum_steps({1: 1.0, 3: 3.0}, 1, 3)
    3.0
    """
    timed = sorted(step_s)
    for name, value in (("first", first), ("last", last)):
        if not timed or not timed[0] <= value <= timed[-1]:
            span = f"{timed[0]} to {timed[-1]}, what was timed" if timed else "nothing: no length was timed"
            raise bad_input(name, value, span)
    return sum(step_s[a] + (step_s[b] - step_s[a]) * (n - a) / (b - a)
               for a, b in pairwise(timed) for n in range(max(a, first), min(b, last)))


def step_of(model: Transformer, batch: int, context: int, cache: KVCache | None = None) -> Callable[[], object]:
    """A decode step behind a cache that is full up to it: a contiguous one, or the empty one given, filled through its
    `append`. What stands in the cache does not matter to its time."""
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context < model.cfg.context:
        raise bad_input("context", context, f"a whole number from 1 to {model.cfg.context - 1}")
    dtype, one = model.embedding.weight.dtype, torch.ones(batch, dtype=torch.long)
    cache = ContiguousKVCache(model.cfg, batch, context + 1, dtype) if cache is None else cache
    keys = torch.randn(batch, model.cfg.n_kv_heads, context, model.cfg.head_dim, dtype=dtype)
    cache.reserve(context * one)
    for layer in range(model.cfg.n_layers):
        cache.append(layer, keys, keys)
    cache.advance(context * one)
    tokens, held = torch.zeros(batch, 1, dtype=torch.long), cache.lengths

    @torch.inference_mode()
    def step() -> None:
        model(tokens, cache)
        cache.truncate(held)

    return step


def predicted_s(machine: ThisMachine, step: Step, efficiency: Efficiency) -> float:
    """The cost model's time for a step, where memory is as fast as it is over all that the step goes through."""
    bits = BITS[step.dtype]
    goes_through = weight_bytes(step.cfg, bits) + step.batch * kv_bytes(step.cfg, step.context, bits)
    return decode_step(step.cfg, machine.reading(goes_through), step.batch, step.context, weight_bits=bits,
                       kv_bits=bits, compute_dtype=DTYPES[step.dtype], efficiency=efficiency).time_s


def fit(machine: ThisMachine, steps: Sequence[Step]) -> Efficiency:
    """The shares of arithmetic and memory, the overlap and the fixed time of a layer that fit timed steps best. How
    fast attention reads the cache is not fitted: the machine's measurement says it.

    Take steps that differ: one sequence and many, a short context and a long one.
    """
    def loss(e: Efficiency) -> float:
        return sum(math.log(predicted_s(machine, step, e) / step.time_s) ** 2 for step in steps)

    best = Efficiency(0.7, 0.7, overlap=0.5, layer_s=2e-4, cache=machine.attention_share)
    for width in (0.4, 0.2, 0.1, 0.05, 0.02, 0.01):
        for name in ("compute", "memory", "overlap", "layer_s") * 6:
            near = [min(1.0, getattr(best, name) * math.exp(sign * width)) for sign in (-1, 1)]
            best = min([best, *(replace(best, **{name: value}) for value in near)], key=loss)
    return best
