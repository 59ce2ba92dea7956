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
    check_context,
    decode_work,
    kv_bytes,
    prefill_work,
    routed_params,
    weight_bytes,
)
from llmflation.cost.roofline import IDEAL, Efficiency, StepTime, roofline_time
from llmflation.errors import BadInputError, bad_input, check_above, check_share, check_whole
from llmflation.hardware import Accelerator
from llmflation.units import GB, bytes_from_bits

USABLE = 0.9  # share of the memory that the weights leave which engines give to the cache


def decode_step(cfg: ModelConfig, hw: Accelerator, batch: int = 1, context: int = 2048, *, weight_bits: float = 16,
                kv_bits: float = 16, head_bits: float | None = None, compute_dtype: str | None = None, chips: int = 1,
                parallel: str = "tensor", link_bytes_per_s: float | None = None, efficiency: Efficiency = IDEAL,
                check_memory: bool = True) -> StepTime:
    """The time of one decode step: one more token for each of `batch` sequences, each behind `context` tokens.

    `compute_dtype` is the format of the arithmetic, 16-bit if left out. `link_bytes_per_s` is what a chip sends to
    others in a second, its own interconnect if left out: chips in several machines have less. With the ideal
    efficiency the time is a bound. BadInputError for what does not fit into the chips' memory (unless `check_memory`
    is False), MissingFactError for a format or an interconnect that the table does not have.

    >>> from llmflation.config import model_config
    >>> from llmflation.hardware import accelerator
    >>> decode_step(model_config("Llama-3.1-8B"), accelerator("H100 SXM5"))
    4.56 ms, set by memory:
      projections 18%, attention 2%, feed-forward 74%, head 7%
    """
    batch, context = check_whole("batch", batch), check_whole("context", context)
    work = decode_work(cfg, batch, context, weight_bits, kv_bits, head_bits)
    if check_memory:
        _check_fit(cfg, hw, batch, context + 1, weight_bits, kv_bits, head_bits, chips, parallel)
    return _step(cfg, hw, work, batch, batch, compute_dtype, chips, parallel, link_bytes_per_s, efficiency)


def prefill_step(cfg: ModelConfig, hw: Accelerator, batch: int = 1, tokens: int = 2048, *, weight_bits: float = 16,
                 kv_bits: float = 16, head_bits: float | None = None, compute_dtype: str | None = None, chips: int = 1,
                 parallel: str = "tensor", link_bytes_per_s: float | None = None, efficiency: Efficiency = IDEAL,
                 held: int = 0, check_memory: bool = True) -> StepTime:
    """The time of reading `tokens` tokens of each of `batch` prompts, behind `held` that the cache has already.

    Arguments and errors are those of `decode_step`.

    >>> from llmflation.config import model_config
    >>> from llmflation.hardware import accelerator
    >>> prefill_step(model_config("Llama-3.1-8B"), accelerator("H100 SXM5")).binds
    'arithmetic'
    """
    batch, tokens, held = check_whole("batch", batch), check_whole("tokens", tokens), check_whole("held", held, least=0)
    work = prefill_work(cfg, batch, tokens, weight_bits, kv_bits, head_bits, held)
    if check_memory:
        _check_fit(cfg, hw, batch, held + tokens, weight_bits, kv_bits, head_bits, chips, parallel)
    return _step(cfg, hw, work, batch, batch * tokens, compute_dtype, chips, parallel, link_bytes_per_s, efficiency)


def _check_fit(cfg, hw, batch, positions, weight_bits, kv_bits, head_bits, chips, parallel) -> None:
    most = max_batch(cfg, hw, positions, weight_bits=weight_bits, kv_bits=kv_bits, head_bits=head_bits, chips=chips,
                     parallel=parallel, usable=1.0)
    if batch > most:
        raise bad_input("batch", batch, f"at most {most}, which fill the memory of {chips} x {hw.name}",
                        "Take fewer, a shorter context, fewer bits, or more chips.")


def _step(cfg, hw, work: dict[str, Work], sequences, tokens, dtype, chips, parallel, link, eff) -> StepTime:
    _check_chips(cfg, hw, chips, parallel)
    if not isinstance(eff, Efficiency):
        raise bad_input("efficiency", eff, "an Efficiency", "Take IDEAL, TYPICAL, or Efficiency(compute=0.7).")
    dtype = dtype or _sixteen(hw)
    if link is not None:
        check_above("link_bytes_per_s", link)
    parts = {}
    for name, w in work.items():
        if w.flops or w.bytes:
            flops, moved = _shares(cfg, name, sequences, tokens, chips, parallel)
            parts[name] = roofline_time(Work(w.flops * flops, w.bytes * moved), hw, dtype,
                                        eff.of_attention if name == "attention" else eff)
    links = _links_s(cfg, hw, sequences, tokens, chips, parallel, link, eff) if chips > 1 else 0.0
    return StepTime(parts, links, eff.step_s + cfg.n_layers * eff.layer_s)


def _shares(cfg, name: str, sequences: int, tokens: int, chips: int, parallel: str) -> tuple[float, float]:
    """The parts of a part's arithmetic and of its bytes that fall to each chip: equal parts, but no less than a whole
    sequence, or expert."""
    if parallel == "tensor":  # the sum that goes from layer to layer is on every chip
        moved = {"attention": _cache_share(cfg, chips), "residual": 1.0}.get(name, 1 / chips)
        return 1 / chips, moved
    if name == "experts":
        touched = formulas.experts_touched(cfg.n_experts, cfg.top_k, tokens)
        return max(1 / chips, 1 / (tokens * cfg.top_k)), max(1 / chips, 1 / touched)
    own = _own(sequences, chips)
    return own, 1.0 if name in ("projections", "feed-forward", "head") else own  # weights that every chip has


def _own(sequences: int, chips: int) -> float:
    """The part of the sequences that a chip serves by itself: on average, but no less than a whole one."""
    return max(1 / chips, 1 / sequences)


def _cache_share(cfg: ModelConfig, chips: int) -> float:
    """The part of the cache that each chip keeps in tensor parallel: whole heads, so that more chips than heads hold
    copies; MLA's latent has no heads at all."""
    return 1.0 if cfg.attention == "MLA" else -(-cfg.n_kv_heads // chips) / cfg.n_kv_heads


def _links_s(cfg, hw, sequences, tokens, chips, parallel, link, eff) -> float:
    """Time of what chips exchange; `interconnect_bytes_per_s` adds both directions up."""
    if link is None:
        link = hw.require("interconnect_bytes_per_s") / 2
    rate = link * eff.link
    token = cfg.d_model * ACTIVATION_BYTES
    if parallel == "tensor":
        return 2 * cfg.n_layers * (formulas.all_reduce_bytes(tokens * token, chips) / rate + eff.all_reduce_s)
    away = cfg.top_k * (chips - 1) / chips  # of a token's experts, on average
    return 2 * cfg.n_moe_layers * (tokens * _own(sequences, chips) * away * token / rate + eff.all_reduce_s)


def _sixteen(hw: Accelerator) -> str:
    """The 16-bit format of the chip; MissingFactError where it has none."""
    return "fp16" if "fp16" in hw.peak_flops and "bf16" not in hw.peak_flops else "bf16"


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
    check_context(cfg, context := check_whole("context", context))
    check_share("usable", usable)

    def needs(n: int) -> tuple[float, float]:
        """Bytes of the weights on each of `n` chips, and of a sequence's cache on a chip that holds a part of it."""
        share = _cache_share(cfg, n) if parallel == "tensor" else 1.0
        return _weights_on_one(cfg, weight_bits, head_bits, n, parallel), kv_bytes(cfg, context, kv_bits) * share

    def fits(n: int) -> int:
        weights, one = needs(n)
        on_one = int((hw.mem_bytes - weights) * usable // one) if hw.mem_bytes > weights else 0
        return on_one * (n if parallel == "expert" else 1)

    if most := fits(chips):
        return most
    weights, one = needs(chips)
    short = weights + one / usable - hw.mem_bytes
    enough = next((n for n in range(chips + 1, 1025) if _can_share(cfg, n, parallel) and fits(n)), None)
    raise BadInputError(
        f"{cfg.name or 'the model'} with one sequence of {context:,} tokens does not fit: each of {chips} x {hw.name} "
        f"lacks {short / GB:.3g} GB of {hw.mem_bytes / GB:g}. "
        + (f"{enough} chips would do, or fewer bits, or a shorter context." if enough else
           "More chips would not help: take fewer bits or a shorter context."))


def _weights_on_one(cfg, weight_bits, head_bits, chips, parallel) -> float:
    total = weight_bytes(cfg, weight_bits, head_bits)
    if parallel == "tensor":
        return total / chips
    experts = bytes_from_bits(routed_params(cfg) * weight_bits)
    return total - experts + experts * -(-cfg.n_experts // chips) / cfg.n_experts  # whole experts


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
        at_once = f"{self.batch} requests at once; each" if self.batch > 1 else "1 request at a time, which"
        return (f"{self.output_tokens_per_s:,.0f} output tokens/s with {at_once} gets one every "
                f"{1000 * self.tpot_s:.3g} ms.")


def throughput(cfg: ModelConfig, hw: Accelerator, input_len: int, output_len: int, batch: int | None = None, *,
               weight_bits: float = 16, kv_bits: float = 16, head_bits: float | None = None,
               compute_dtype: str | None = None, chips: int = 1, parallel: str = "tensor",
               link_bytes_per_s: float | None = None, efficiency: Efficiency = IDEAL, held: int = 0) -> Throughput:
    """What comes out where every request that ends is replaced by a new one at once (in-flight batching).

    `batch` requests are in hand at once; if left out, as many as fit at their full length. Of each, `held` tokens are
    in the cache from before, `input_len` are read and `output_len` are written; on average a sequence stands behind all
    but the second half of its output. BadInputError where the batch does not fit into the whole memory.
    """
    stored = {"weight_bits": weight_bits, "kv_bits": kv_bits, "head_bits": head_bits, "chips": chips,
              "parallel": parallel}
    input_len, output_len = check_whole("input_len", input_len), check_whole("output_len", output_len)
    full = check_whole("held", held, least=0) + input_len + output_len
    if batch is None:
        batch = max_batch(cfg, hw, full, **stored)
    else:
        batch = check_whole("batch", batch)
        _check_fit(cfg, hw, batch, full, weight_bits, kv_bits, head_bits, chips, parallel)
    run = stored | {"compute_dtype": compute_dtype, "efficiency": efficiency, "link_bytes_per_s": link_bytes_per_s,
                    "check_memory": False}
    step = decode_step(cfg, hw, batch, full - output_len + output_len // 2, **run)
    several = prompts_at_once(batch, input_len, chips, parallel)
    prompt = prefill_step(cfg, hw, several, input_len, held=held, **run).time_s / several
    rate = formulas.tokens_per_s(batch, output_len, prompt, step.time_s)
    return Throughput(batch, prompt, step.time_s, rate, chips)


PROMPT_TOKENS = 8192  # of the prompts that are read in one call


def prompts_at_once(batch: int, input_len: int, chips: int = 1, parallel: str = "tensor") -> int:
    """How many prompts of `input_len` tokens are read in one call: PROMPT_TOKENS in all, but no fewer than one, and
    where each chip reads its own no fewer than one on each.

    >>> prompts_at_once(100, 1000), prompts_at_once(100, 1000, chips=16, parallel="expert")
    (8, 16)
    """
    least = chips if parallel == "expert" else 1
    return min(batch, max(least, PROMPT_TOKENS // input_len))


def latency_throughput(cfg: ModelConfig, hw: Accelerator, input_len: int, output_len: int,
                       **options) -> list[Throughput]:
    """The curve from one request at a time to as many as fit, in doublings. Options are those of `throughput`."""
    stored = {k: v for k, v in options.items() if k in ("weight_bits", "kv_bits", "head_bits", "chips", "parallel")}
    if "batch" in options:
        raise bad_input("batch", options["batch"], "nothing: the curve goes through all", "Use throughput for one.")
    input_len, output_len = check_whole("input_len", input_len), check_whole("output_len", output_len)
    full = check_whole("held", options.get("held", 0), least=0) + input_len + output_len
    most = max_batch(cfg, hw, full, **stored)
    sizes = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    return [throughput(cfg, hw, input_len, output_len, batch, **options) for batch in sizes]


def _can_share(cfg: ModelConfig, chips: int, parallel: str) -> bool:
    return parallel == "expert" or cfg.n_heads % chips == 0


def _check_chips(cfg, hw, chips, parallel) -> None:
    if not isinstance(cfg, ModelConfig):
        raise bad_input("cfg", cfg, "a ModelConfig", "Take a preset: model_config('Llama-3.1-8B').")
    if not isinstance(hw, Accelerator):
        raise bad_input("hw", hw, "an Accelerator", 'Take one from the table: accelerator("H100 SXM5").')
    check_whole("chips", chips)
    if parallel not in ("tensor", "expert"):
        raise bad_input("parallel", parallel, '"tensor" or "expert"')
    if parallel == "expert" and not cfg.is_moe:
        raise bad_input("parallel", parallel, f'"tensor" for {cfg.name or "a model"}, which has no experts')
    if not _can_share(cfg, chips, parallel):
        raise bad_input("chips", chips, f"a divisor of {cfg.n_heads}, the heads of {cfg.name or 'the model'}",
                        "In tensor parallel each chip holds whole heads.")
