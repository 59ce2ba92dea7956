"""Measure this machine and a model on it: how fast it reads and computes, and where the time of one step goes."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .errors import bad_input
from .hardware import TERA, Accelerator
from .kvcache import ContiguousKVCache
from .layers import attend
from .linear import Linear
from .model import Transformer
from .timing import time_fn
from .units import GB, MB, duration


@dataclass(frozen=True, repr=False)
class StepParts:
    """One decode step at batch 1, in seconds: all of it, its matrix products alone, its attention alone.

    `reading_s` is what reading the weights would take at the speed at which this machine reads memory. Weights that
    stay in the processor's cache from step to step are read faster than that.
    """

    step_s: float
    matrices_s: float
    attention_s: float
    weight_bytes: int
    read_bytes_per_s: float

    @property
    def rest_s(self) -> float:
        """Norms, rotations, additions, the cache, and calling some twenty operators a layer."""
        return max(0.0, self.step_s - self.matrices_s - self.attention_s)

    @property
    def reading_s(self) -> float:
        return self.weight_bytes / self.read_bytes_per_s

    @property
    def useful_share(self) -> float:
        """The share of the step that its matrix products and attention take when each runs alone."""
        return (self.matrices_s + self.attention_s) / self.step_s

    def __repr__(self) -> str:
        return (f"A step takes {duration(self.step_s)}: {duration(self.matrices_s)} for the matrix products,\n"
                f"{duration(self.attention_s)} for attention, {duration(self.rest_s)} for the rest.\n"
                f"Reading its weights at memory speed takes {duration(self.reading_s)}.")


def step_parts(model: Transformer, context: int = 256, repeat: int = 20,
               read_bytes_per_s: float | None = None) -> StepParts:
    """Time one decode step of `model` behind `context` tokens, and its parts: the least of `repeat` rounds, in turns.

    The least, since other programs only ever add to a time, and would hit one part and not another. BadInputError for
    a context that the model has no room for. Memory's speed is measured unless it is given.
    """
    runs = step_functions([model], context)
    for run in runs:
        run()
    rounds = [[time_fn(run, repeat=1, warmup=0).median_s for run in runs] for _ in range(repeat)]
    times = [min(taken) for taken in zip(*rounds, strict=True)]
    weights = sum(layer.weight.nbytes for layer in _products(model))
    return StepParts(*times, weights, read_bytes_per_s or memory_bytes_per_s())


def step_functions(models: list[Transformer], context: int) -> tuple[Callable, Callable, Callable]:
    """Three functions: a decode step of each model in turn behind `context` tokens; their matrix products alone; their
    attention alone.

    The products run in the order of the step, each on its own weights and path, so that weights are as cold as in the
    step itself. What neither part has is all that lies between them.
    """
    cfg, dtype = models[0].cfg, models[0].embedding.weight.dtype
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context < cfg.context:
        raise bad_input("context", context, f"a whole number from 1 to {cfg.context - 1}")
    caches = [ContiguousKVCache(cfg, 1, context + 1, dtype) for _ in models]
    token, held, one = torch.zeros(1, 1, dtype=torch.long), torch.tensor([context]), torch.tensor([1])
    for model, cache in zip(models, caches, strict=True):
        with torch.no_grad():
            model(torch.zeros(1, context, dtype=torch.long), cache, last_only=True)

    @torch.no_grad()
    def step():
        for model, cache in zip(models, caches, strict=True):
            model(token, cache)
            cache.truncate(held)

    products = [(layer, torch.ones(1, 1, layer.in_features, dtype=dtype)) for m in models for layer in _products(m)]

    @torch.no_grad()
    def matrices():
        for layer, x in products:
            layer(x)

    q, kv = (torch.ones(1, heads, 1, cfg.head_dim, dtype=dtype) for heads in (cfg.n_heads, cfg.n_kv_heads))
    for cache in caches:
        cache.reserve(one)
    stored = [cache.append(layer, kv, kv) for cache in caches for layer in range(cfg.n_layers)]

    @torch.no_grad()
    def attention():
        for k, v in stored:
            attend(q, k, v, None)

    return step, matrices, attention


def _products(model: Transformer) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


def memory_bytes_per_s(nbytes: int = 2**28, repeat: int = 8) -> float:
    """How fast all threads read a buffer of `nbytes` (256 MiB: more than most caches hold), in bytes per second."""
    buffer = torch.ones(nbytes // 4)
    return nbytes / time_fn(buffer.sum, repeat=repeat, calls=max(1, 2**25 // nbytes)).median_s


@dataclass(frozen=True, repr=False)
class ThisMachine(Accelerator):
    """The processor that this program runs on, measured: an `Accelerator` for every formula and plot.

    `read_rates` says how fast buffers of so many bytes are read, bytes/s: small ones stay in the processor's cache.
    `operator_s` is what calling one operator costs whatever it does; `attention_share` of memory's rate is what
    attention reaches when it reads keys and values.
    """

    read_rates: Mapping[int, float] = field(default_factory=dict)
    operator_s: float = 0.0
    attention_share: float | None = None

    def reading(self, nbytes: float) -> "ThisMachine":
        """The same machine where a step goes through `nbytes` again and again, which may stay in its cache."""
        sizes = sorted(self.read_rates)
        at = min(max(nbytes, sizes[0]), sizes[-1])
        low = max(size for size in sizes if size <= at)
        high = min(size for size in sizes if size >= at)
        share = 0.0 if low == high else math.log(at / low) / math.log(high / low)
        rate = self.read_rates[low] ** (1 - share) * self.read_rates[high] ** share
        return replace(self, mem_bytes_per_s=rate)

    def __repr__(self) -> str:
        flops = ", ".join(f"{rate / TERA:.3g} in {dtype}" for dtype, rate in self.peak_flops.items())
        reads = ", ".join(f"{rate / GB:.3g} over {size / MB:,.0f} MB" for size, rate in self.read_rates.items())
        return (f"This machine: {flops} TFLOP/s;\nreads {reads} GB/s;\n"
                f"attention reads at {self.attention_share or 1:.0%} of that; has {self.mem_bytes / GB:.3g} GB;\n"
                f"an operator costs {1e6 * self.operator_s:.2g} µs.")


READ_SIZES = (2**22, 2**25, 2**28)


def this_machine(sizes: tuple[int, ...] = READ_SIZES) -> ThisMachine:
    """Measure the machine in a few seconds: reading buffers of these `sizes` in bytes, products of matrices in each
    number format that it multiplies, attention, and the cost of a call. The largest size stands for its memory.

    Rates are the best of a few tries: other programs only ever slow one down.
    """
    rates = {size: memory_bytes_per_s(size) for size in sizes}
    one = torch.ones(64)
    operator = time_fn(lambda: one.add(one), repeat=20, calls=200).median_s
    peaks = {dtype: rate for dtype in ("fp32", "bf16", "int8") if (rate := _product_flops(dtype))}
    share = min(1.0, _attention_bytes_per_s(max(sizes)) / rates[max(rates)])
    return ThisMachine("this machine", _memory_bytes(), rates[max(rates)], peaks, read_rates=rates,
                       operator_s=operator, attention_share=share, source="measured here", verified="yes")


def _attention_bytes_per_s(nbytes: int, positions: int = 1024, width: int = 64) -> float:
    """How fast attention reads `nbytes` of keys and values: one query for each group of four heads and 64 wide."""
    heads = max(2, nbytes // (2 * positions * width * 4))
    k, v = torch.ones(2, 1, heads, positions, width)
    q = torch.ones(1, 4 * heads, 1, width)
    with torch.inference_mode():
        return (k.nbytes + v.nbytes) / min(time_fn(lambda: attend(q, k, v, None), repeat=1, warmup=0).median_s
                                           for _ in range(6))


def _product_flops(dtype: str, width: int = 1024) -> float | None:
    """FLOP/s (OP/s in int8) of a product of square matrices, as a model's layers take it; None where this machine
    cannot multiply such numbers."""
    a = torch.ones(width, width, dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[dtype])
    layer = None if dtype == "int8" else Linear.of(a)
    try:
        multiply = (lambda: torch._int_mm(a, a)) if layer is None else (lambda: layer(a))
        multiply()
    except (RuntimeError, NotImplementedError):
        return None
    return 2 * width**3 / min(time_fn(multiply, repeat=1, warmup=0).median_s for _ in range(8))


def _memory_bytes() -> float:
    """Of the machine, or of the container if that is allowed less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return float(min(found, default=8 * GB))
