"""`python -m bench kvcache`: what a cache saves, and what ours cost, beside `transformers` and beside the memory."""

import random
from collections.abc import Callable, Sequence

import torch

from llmflation.calibrate import BITS, step_of
from llmflation.cost.counts import decode_work, kv_bytes, prefill_work
from llmflation.errors import BadInputError
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import linear_path
from llmflation.model import Transformer, generate
from llmflation.paged import PagedKVCache
from llmflation.prefix import PrefixCache
from llmflation.timing import time_fn

from . import shapes
from .beside import ABSENT, beside, quiet_transformers
from .rows import Row, refuse, side_by_side

READ_BYTES = 2**30  # of the buffer that sets the memory's speed
LENGTHS = range(128, 1025, 128)
CONTEXTS = (512, 1024, 2040)
BATCHES = {1: 0.8, 8: 0.5, 32: 0.5}  # and what a paged step must reach there
DECODE = {("30m", "fp32"): 1.3, ("30m", "bf16"): 1.5, ("135m", "fp32"): 1.15, ("135m", "bf16"): 1.5}
ROOFLINE = {"fp32": 0.45, "bf16": 0.35}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """All rows of this bench, and notes on how they were measured."""
    refuse(arguments)
    rounds = 6 if quick else 15
    with torch.random.fork_rng():
        toy, found = shapes.model("toy"), []
        found += cached_vs_uncached(toy, rounds)
        for batch, target in BATCHES.items():
            found += paged_vs_contiguous(toy, batch, target, 5 * rounds)
        for number in FORMATS:
            found += roofline_share(shapes.model("30m").to(FORMATS[number]), number, 3 * rounds)
        found += prefix_reuse(shapes.model("30m"), rounds)
        found += decode_rows(rounds, 32 if quick else 128)
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, str)]


def in_turns(calls: Sequence[Callable], repeat: int = 5) -> list[float]:
    """Seconds of each call, the least of a few tries in turns: other programs only ever add to a time."""
    tries = [[time_fn(call, repeat=1, warmup=0).median_s for call in calls] for _ in range(repeat)]
    return [min(taken) for taken in zip(*tries, strict=True)]


def one_by_one(calls: Sequence[Callable]) -> Callable[[], None]:
    """All of these calls as one."""
    def run() -> None:
        for call in calls:
            call()
    return run


# --- never compute it twice ----------------------------------------------------------------------------------


def cached_vs_uncached(model: Transformer, rounds: int, lengths: Sequence[int] = LENGTHS) -> list[Row | str]:
    """A text's next token, out of its tokens anew or out of the cache and one of them, over a row of lengths."""
    anew, cached = [reading_all(model, n) for n in lengths], [step_of(model, 1, n - 1) for n in lengths]
    row = side_by_side("cached-vs-uncached-1024", one_by_one(anew), one_by_one(cached), 10, rounds=rounds)
    times = in_turns([*anew, *cached])
    bits = BITS[model.embedding.weight.dtype]
    flops = [sum(w.flops for w in prefill_work(model.cfg, 1, n, bits, bits).values()) for n in lengths]
    moved = [sum(w.bytes for w in decode_work(model.cfg, 1, n - 1, bits, bits).values()) for n in lengths]
    measured = [a / c for a, c in zip(times, times[len(lengths):], strict=False)]
    predicted = [a / c for a, c in zip(by_ends(flops, times[: len(lengths)]), by_ends(moved, times[len(lengths):]),
                                       strict=True)]
    worst = max(max(p / m, m / p) for p, m in zip(predicted, measured, strict=True)) - 1
    table = "; ".join(f"{n}: {m:.1f} ({p:.1f})" for n, m, p in zip(lengths, measured, predicted, strict=True))
    agreement = 1 / (1 + worst)
    return [row, Row("cached-vs-uncached-predicted", agreement, agreement, agreement, 0.8, "share"),
            f"{row.name}: speed-up at each length, measured (predicted): {table}. The prediction counts the arithmetic "
            "of all tokens and the bytes of one step; a fixed time and a rate for each go through the times of the "
            f"shortest and the longest text. It is off by {worst:.0%} at most, which the second row says as a share."]


def reading_all(model: Transformer, length: int) -> Callable[[], None]:
    """A step without a cache: all tokens are read, the last one's scores are made."""
    tokens = torch.zeros(1, length, dtype=torch.long)

    @torch.inference_mode()
    def step() -> None:
        model(tokens, last_only=True)
    return step


def by_ends(work: Sequence[float], times: Sequence[float]) -> list[float]:
    """The time of each amount of work on the line through the first and the last."""
    slope = (times[-1] - times[0]) / (work[-1] - work[0])
    return [times[0] + slope * (w - work[0]) for w in work]


# --- blocks --------------------------------------------------------------------------------------------------


def paged_vs_contiguous(model: Transformer, batch: int, target: float, rounds: int,
                        contexts: Sequence[int] = CONTEXTS) -> list[Row | str]:
    """A decode step over blocks in any order, beside one over memory in one piece."""
    cfg, dtype = model.cfg, model.embedding.weight.dtype
    contiguous = [step_of(model, batch, n) for n in contexts]
    paged = [step_of(model, batch, n, shuffled(model, batch, n + 1)) for n in contexts]
    row = side_by_side(f"paged-vs-contiguous-b{batch}", one_by_one(contiguous), one_by_one(paged), target,
                       rounds=rounds)
    times = in_turns([*contiguous, *paged])
    shares = {n: c / p for n, c, p in zip(contexts, times, times[len(contexts):], strict=False)}
    worst = min(shares, key=shares.get)
    copied = [batch * kv_bytes(cfg, n + 1, BITS[dtype]) / 2**20 for n in contexts]
    return [row, f"{row.name}: contexts {', '.join(map(str, contexts))} summed, blocks of 16 tokens in random order; "
            f"gathering copies {', '.join(f'{c:.0f}' for c in copied)} MiB of keys and values a step; the worst is "
            f"{shares[worst]:.2f} at {worst}."]


def shuffled(model: Transformer, batch: int, positions: int, block_size: int = 16) -> PagedKVCache:
    """An empty paged cache whose free blocks come in random order."""
    each = -(-positions // block_size)
    cache = PagedKVCache(model.cfg, batch, batch * each, block_size, model.embedding.weight.dtype)
    blocks = cache.pool.allocate(batch * each)
    random.Random(0).shuffle(blocks)
    for block in blocks:
        cache.pool.release(block)
    return cache


def prefix_reuse(model: Transformer, rounds: int, length: int = 1024, shared: int = 960) -> list[Row | str]:
    """Reading a prompt whose beginning another request has left in the cache, beside reading all of it."""
    cfg, dtype = model.cfg, model.embedding.weight.dtype
    first, second = torch.randint(0, cfg.vocab_size, (2, length), generator=torch.Generator().manual_seed(0)).tolist()
    second[:shared] = first[:shared]
    prefixes = PrefixCache(cfg, 3 * -(-(length + 16) // 16), 16, dtype)
    cache = prefixes.open([first])
    generate(model, [first], 1, cache)
    prefixes.close(cache, [first])

    def anew(new: int = 1) -> list[int]:
        return generate(model, [second], new, ContiguousKVCache(cfg, 1, length + new, dtype))[0]

    def reused(new: int = 1) -> list[int]:
        cache = prefixes.open([second])
        written = generate(model, [second], new, cache)[0]
        cache.free()  # not closed: what was read now is not kept, so that every round reads the same
        return written

    if anew(16) != reused(16):
        raise BadInputError("a prompt behind a known beginning goes on with other words: the prefix cache is broken.")
    row = side_by_side("prefix-reuse", anew, reused, 6, rounds=rounds)
    cache = prefixes.open([second])
    held = int(cache.lengths[0])
    cache.free()
    return [row, f"prefix-reuse: {held} of the prompt's {length} tokens are found, the others read, and the first new "
            "token is made; the 16 tokens written with and without are the same."]


# --- beside transformers, and beside the memory ---------------------------------------------------------------


def decode_rows(rounds: int, new: int) -> list[Row | str]:
    """Tokens per second over those of `transformers`, one sequence, the same weights."""
    if not quiet_transformers():
        return [ABSENT]
    found = []
    for (shape, number), target in DECODE.items():
        model = shapes.model(shape).to(FORMATS[number])
        found += beside(f"decode-{shape}-{number}-vs-transformers", model, 16, target, rounds, new)
    return found


def roofline_share(model: Transformer, number: str, rounds: int, context: int = 256) -> list[Row | str]:
    """The time in which the memory gives the bytes of a step, weights and cache, over the time of the step."""
    models, buffer = shapes.cold_copies(model), torch.ones(READ_BYTES // 4)
    steps = one_by_one([step_of(m, 1, context) for m in models])
    step_bytes = shapes.nbytes(model) + kv_bytes(model.cfg, context + 1, BITS[FORMATS[number]])
    row = side_by_side(f"roofline-share-{number}-30m", buffer.sum, steps, ROOFLINE[number], rounds=rounds,
                       factor=len(models) * step_bytes / buffer.nbytes, unit="share")
    read_s, steps_s = in_turns([buffer.sum, steps])
    return [row, f"{row.name}: a step goes through {step_bytes / 1e6:.0f} MB in {steps_s / len(models) * 1e3:.2f} ms, "
            f"path {linear_path(FORMATS[number])!r}, in turns through {len(models)} copies of the model, so that no "
            f"weight is still in the processor's cache; the memory gives {buffer.nbytes / read_s / 1e9:.1f} GB/s."]
