"""A model on a machine: the time of a prefill and of a decode step, the batch that fits, what comes out in a second.

Several chips share a model in one of two ways. `tensor`: each holds an equal part of every layer and of the cache, and
they add up their results twice a layer. `expert`: each holds all but the experts, serves its own part of the batch,
and sends tokens to the chips that hold their experts and back. Storage and arithmetic are chosen apart: weights of 4
bits are multiplied in 16 on a chip without a 4-bit format, but 8-bit arithmetic needs a chip that has it.
"""

from dataclasses import dataclass

from llmflation.config import ModelConfig
from llmflation.cost import formulas
from llmflation.cost.counts import (
    ACTIVATION_BYTES,
    Work,
    decode_work,
    kv_bytes,
    prefill_work,
    routed_params,
    weight_bytes,
)
from llmflation.cost.roofline import IDEAL, Efficiency, StepTime, roofline_time
from llmflation.errors import BadInputError, bad_input, check_share, check_whole
from llmflation.hardware import Accelerator
from llmflation.units import GB, bytes_from_bits

USABLE = 0.9  # share of the memory that the weights leave which engines give to the cache


def decode_step(cfg: ModelConfig, hw: Accelerator, batch: int = 1, context: int = 2048, *, weight_bits: float = 16,
                kv_bits: float = 16, head_bits: float | None = None, compute_dtype: str | None = None, chips: int = 1,
                parallel: str = "tensor", efficiency: Efficiency = IDEAL) -> StepTime:
    """The time of one decode step: one more token for each of `batch` sequences, each behind `context` tokens.

    `compute_dtype` is the format of the arithmetic, 16-bit if left out. With the ideal efficiency the time is a bound.

    >>> from llmflation.config import model_config
    >>> from llmflation.hardware import accelerator
    >>> decode_step(model_config("Llama-3.1-8B"), accelerator("H100 SXM5"))
    4.56 ms, set by memory:
      projections 18%, attention 2%, feed-forward 74%, head 7%
    """
    work = decode_work(cfg, batch, context, weight_bits, kv_bits, head_bits)
    return _step(cfg, hw, work, batch, compute_dtype, chips, parallel, efficiency)


def prefill_step(cfg: ModelConfig, hw: Accelerator, batch: int = 1, tokens: int = 2048, *, weight_bits: float = 16,
                 kv_bits: float = 16, head_bits: float | None = None, compute_dtype: str | None = None, chips: int = 1,
                 parallel: str = "tensor", efficiency: Efficiency = IDEAL, held: int = 0) -> StepTime:
    """The time of reading `tokens` tokens of each of `batch` prompts, behind `held` that the cache has already."""
    work = prefill_work(cfg, batch, tokens, weight_bits, kv_bits, head_bits, held)
    return _step(cfg, hw, work, batch * tokens, compute_dtype, chips, parallel, efficiency)


def _step(cfg, hw, work: dict[str, Work], tokens: int, dtype, chips, parallel, eff: Efficiency) -> StepTime:
    _check_chips(cfg, hw, chips, parallel)
    dtype = dtype or _sixteen(hw)
    parts = {}
    for name, w in work.items():
        if w.flops or w.bytes:
            one = Work(w.flops / chips, w.bytes * _bytes_share(cfg, name, chips, parallel))
            parts[name] = roofline_time(one, hw, dtype, eff.of_attention if name == "attention" else eff)
    links = _links_s(cfg, hw, tokens, chips, parallel, eff) if chips > 1 else 0.0
    return StepTime(parts, links, eff.step_s + cfg.n_layers * eff.layer_s)


def _bytes_share(cfg, name: str, chips: int, parallel: str) -> float:
    """The part of a part's bytes that each chip moves."""
    if parallel == "expert" and name in ("projections", "feed-forward", "head"):
        return 1.0  # weights that every chip has
    return _cache_share(cfg, chips, parallel) if name == "attention" else 1 / chips


def _cache_share(cfg: ModelConfig, chips: int, parallel: str) -> float:
    """The part of the cache that each chip keeps. Tensor parallel: whole heads, so that more chips than heads hold
    copies; MLA's latent has no heads at all."""
    if parallel == "expert":
        return 1 / chips
    return 1.0 if cfg.attention == "MLA" else -(-cfg.n_kv_heads // chips) / cfg.n_kv_heads


def _links_s(cfg, hw, tokens, chips, parallel, eff) -> float:
    """Time of what chips exchange; `interconnect_bytes_per_s` adds both directions up."""
    rate = hw.require("interconnect_bytes_per_s") / 2 * eff.link
    token = cfg.d_model * ACTIVATION_BYTES
    if parallel == "tensor":
        return 2 * cfg.n_layers * (formulas.all_reduce_bytes(tokens * token, chips) / rate + eff.all_reduce_s)
    away = cfg.top_k * (chips - 1) / chips  # of a token's experts, on average
    return 2 * cfg.n_moe_layers * (tokens / chips * away * token / rate + eff.all_reduce_s)


def _sixteen(hw: Accelerator) -> str:
    return next((d for d in ("bf16", "fp16") if d in hw.peak_flops), "fp32")


def max_batch(cfg: ModelConfig, hw: Accelerator, context: int, *, weight_bits: float = 16, kv_bits: float = 16,
              head_bits: float | None = None, chips: int = 1, parallel: str = "tensor", usable: float = USABLE) -> int:
    """The most sequences of `context` tokens, on all chips together, whose cache fits beside the weights.

    `usable` is the share of the memory left by the weights that the cache may fill. BadInputError, by how much and
    what would help, where not one fits.

    >>> from llmflation.config import model_config
    >>> from llmflation.hardware import accelerator
    >>> max_batch(model_config("Llama-3.1-8B"), accelerator("H100 SXM5"), 2048)
    214
    """
    _check_chips(cfg, hw, chips, parallel)
    check_whole("context", context)
    check_share("usable", usable)

    def needs(n: int) -> tuple[float, float]:
        """Bytes of the weights and of one sequence's cache on each of `n` chips."""
        return (_weights_on_one(cfg, weight_bits, head_bits, n, parallel),
                kv_bytes(cfg, context, kv_bits) * _cache_share(cfg, n, parallel))

    def fits(n: int) -> int:
        weights, one = needs(n)
        return int((hw.mem_bytes - weights) * usable // one) if hw.mem_bytes > weights else 0

    if most := fits(chips):
        return most
    weights, one = needs(chips)
    short = weights + one / usable - hw.mem_bytes
    enough = next((n for n in (chips * 2**k for k in range(1, 11)) if fits(n)), None)
    raise BadInputError(
        f"{cfg.name or 'the model'} with one sequence of {context:,} tokens does not fit: each of {chips} x {hw.name} "
        f"lacks {short / GB:.3g} GB of {hw.mem_bytes / GB:g}. "
        + (f"{enough} chips would do, or fewer bits, or a shorter context." if enough else
           "More chips would not help: take fewer bits or a shorter context."))


def _weights_on_one(cfg, weight_bits, head_bits, chips, parallel) -> float:
    total = weight_bytes(cfg, weight_bits, head_bits)
    shared = bytes_from_bits(routed_params(cfg) * weight_bits) if parallel == "expert" else total
    return total - shared + shared / chips


@dataclass(frozen=True, repr=False)
class Throughput:
    """What a machine makes with a batch always full: times in seconds, rates of all its chips together."""

    batch: int
    prefill_s: float  # of one prompt
    step_s: float  # of one decode step of the batch
    output_tokens_per_s: float
    chips: int

    @property
    def tpot_s(self) -> float:
        """Time per output token as a request sees it, the prompts of others included."""
        return self.batch / self.output_tokens_per_s

    def __repr__(self) -> str:
        return (f"{self.output_tokens_per_s:,.0f} output tokens/s with {self.batch} requests at once; each gets one "
                f"every {1000 * self.tpot_s:.3g} ms.")


def throughput(cfg: ModelConfig, hw: Accelerator, input_len: int, output_len: int, batch: int | None = None, *,
               weight_bits: float = 16, kv_bits: float = 16, head_bits: float | None = None,
               compute_dtype: str | None = None, chips: int = 1, parallel: str = "tensor",
               efficiency: Efficiency = IDEAL) -> Throughput:
    """What comes out where every request that ends is replaced by a new one at once (in-flight batching).

    `batch` requests are in hand at once; if left out, as many as fit at their full length. On average a sequence stands
    behind its input and half of its output. BadInputError where the batch does not fit into the whole memory.
    """
    stored = {"weight_bits": weight_bits, "kv_bits": kv_bits, "head_bits": head_bits, "chips": chips,
              "parallel": parallel}
    check_whole("input_len", input_len)
    check_whole("output_len", output_len)
    if batch is None:
        batch = max_batch(cfg, hw, input_len + output_len, **stored)
    else:
        check_whole("batch", batch)
        most = max_batch(cfg, hw, input_len + output_len, usable=1.0, **stored)
        if batch > most:
            raise bad_input("batch", batch, f"at most {most}, which fill the memory of {chips} x {hw.name}",
                            "Take fewer, a shorter context, fewer bits, or more chips.")
    run = stored | {"compute_dtype": compute_dtype, "efficiency": efficiency}
    step = decode_step(cfg, hw, batch, input_len + output_len // 2, **run)
    several = max(1, min(batch, PROMPT_TOKENS // input_len))  # prompts are read together
    prompt = prefill_step(cfg, hw, several, input_len, **run).time_s / several
    rate = formulas.tokens_per_s(batch, output_len, prompt, step.time_s)
    return Throughput(batch, prompt, step.time_s, rate, chips)


PROMPT_TOKENS = 8192  # of the prompts that are read in one call


def latency_throughput(cfg: ModelConfig, hw: Accelerator, input_len: int, output_len: int,
                       **options) -> list[Throughput]:
    """The curve from one request at a time to as many as fit, in doublings."""
    stored = {k: v for k, v in options.items() if k in ("weight_bits", "kv_bits", "head_bits", "chips", "parallel")}
    check_whole("input_len", input_len)
    check_whole("output_len", output_len)
    most = max_batch(cfg, hw, input_len + output_len, **stored)
    sizes = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    return [throughput(cfg, hw, input_len, output_len, batch, **options) for batch in sizes]


def _check_chips(cfg, hw, chips, parallel) -> None:
    if not isinstance(hw, Accelerator):
        raise bad_input("hw", hw, "an Accelerator", 'Take one from the table: accelerator("H100 SXM5").')
    check_whole("chips", chips)
    if parallel not in ("tensor", "expert"):
        raise bad_input("parallel", parallel, '"tensor" or "expert"')
    if parallel == "expert" and not cfg.is_moe:
        raise bad_input("parallel", parallel, f'"tensor" for {cfg.name or "a model"}, which has no experts')
