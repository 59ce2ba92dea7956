"""Published measurements of serving, and what the cost model says for each: the test that the model has to stand.

A quarter of the rows, chosen by a checksum of their ids, calibrates `roofline.TYPICAL`; the others test it.
"""

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmflation import facts
from llmflation.config import ModelConfig, load_models
from llmflation.cost.formulas import bits_per_value, fixed_batch_tokens_per_s, tokens_per_s
from llmflation.cost.roofline import TYPICAL, Efficiency
from llmflation.cost.serving import PROMPT_TOKENS, decode_step, max_batch, prefill_step
from llmflation.errors import BadInputError, LLMflationError
from llmflation.hardware import Accelerator, load_hardware

NEEDED = {"model_key": "model", "accelerator_key": "accelerator", "precision": "precision", "input_len": "input length",
          "output_len": "output length"}
MOST = 2048  # requests at once, where a row says no number: what engines allow
# What the words of column `precision` mean: bits of a weight with its scales, of embedding and head, arithmetic.
FORMATS = {
    "fp16": (16, None, None), "bf16": (16, None, None), "fp8": (8, 16, "fp8"), "int8": (8, 16, "int8"),
    "fp4": (bits_per_value(4, 16, 8), 16, "fp4"), "mxfp4": (bits_per_value(4, 32, 8), 16, None),
    "fp4 experts, fp8 attention": (bits_per_value(4, 16, 8), 16, "fp4"), "int8 weights": (8, None, None),
    "int4 weights": (bits_per_value(4, 32, 16, 16), None, None),
}


@dataclass(frozen=True)
class Case:
    """One published row, read: how the model was held and run, and what was measured."""

    id: str
    metric: str
    scenario: str
    n_in: int
    n_out: int
    batch: int
    value: float
    cfg: ModelConfig
    hw: Accelerator
    chips: int  # that share one copy of the model
    stored: dict  # widths, and how the chips share
    dtype: str | None

    def run(self, efficiency: Efficiency) -> dict:
        return self.stored | {"compute_dtype": self.dtype, "chips": self.chips, "efficiency": efficiency}

    @property
    def calibrates(self) -> bool:
        return zlib.crc32(self.id.encode()) % 4 == 0

    @property
    def is_time(self) -> bool:
        """Whether the row's value is a time (ms); the others are rates."""
        return self.metric in ("time to first token", "prefill time", "decode step time", "inter-token latency")

    @property
    def prompts(self) -> int:
        """How many prompts are read in one call."""
        if self.scenario == "static batch" or self.metric in ("time to first token", "prefill time"):
            return self.batch
        return max(1, min(self.batch, PROMPT_TOKENS // self.n_in))

    def in_its_unit(self, prefill_s: float, step_s: float) -> float:
        """The row's metric, from the time of reading `prompts` prompts and of one decode step of the batch."""
        if self.metric in ("time to first token", "prefill time"):
            return 1000 * prefill_s
        if self.metric.startswith("prefill"):
            return self.prompts * self.n_in / prefill_s / self.chips
        if self.metric == "decode step time":
            return 1000 * step_s
        if self.metric == "decode speed of one request":
            return 1 / step_s
        if self.scenario == "decode only":
            return self.batch / step_s / self.chips
        if self.scenario == "static batch":
            return fixed_batch_tokens_per_s(self.batch, self.n_out, prefill_s, step_s) / self.chips
        made = tokens_per_s(self.batch, self.n_out, prefill_s / self.prompts, step_s)
        return 1000 * self.batch / made if self.metric == "inter-token latency" else made / self.chips


def case(row: Mapping, models: Mapping, chips: Mapping) -> Case:
    """Read one row. BadInputError or an error of the library, which says why, for one that cannot be predicted."""
    if missing := [word for column, word in NEEDED.items() if not row.get(column)]:
        raise BadInputError(f"gives no {missing[0]}")
    words = str(row["precision"]).split(" + ")[0].split(" (")[0]
    if words not in FORMATS:
        raise BadInputError(f"unknown precision {row['precision']!r}; known: {', '.join(FORMATS)}")
    cfg, hw = models[models.full_name(row["model_key"])], chips[chips.full_name(row["accelerator_key"])]
    if "one GCD" in (row.get("note") or ""):  # one of the two chips that this accelerator consists of
        hw = replace(hw, name=f"half a {hw.name}", mem_bytes=hw.mem_bytes / 2, mem_bytes_per_s=hw.mem_bytes_per_s / 2,
                     peak_flops={dtype: rate / 2 for dtype, rate in hw.peak_flops.items()})
    weight_bits, head_bits, dtype = FORMATS[words]
    dtype = dtype if dtype in hw.peak_flops else None  # without it, weights are widened and multiplied in 16 bits
    apart = cfg.is_moe and ("EP" in (row.get("parallelism") or "")
                            or "data-parallel attention" in (row.get("note") or ""))
    stored = {"weight_bits": weight_bits, "head_bits": head_bits, "kv_bits": _kv_bits(row, weight_bits, dtype),
              "parallel": "expert" if apart else "tensor"}
    n_in, n_out = round(float(row["input_len"])), round(float(row["output_len"]))
    share = _chips(row, cfg, hw, n_in + n_out, stored)
    batch = _batch(row) or min(MOST, max_batch(cfg, hw, n_in + n_out, chips=share, **stored))
    return Case(row["row_id"], row["metric"], row.get("scenario") or "", n_in, n_out, batch, float(row["value"]),
                cfg, hw, share, stored, dtype)


def predicted(c: Case, efficiency: Efficiency = TYPICAL) -> float:
    """What the cost model says where the row has its value, in the row's unit."""
    run = c.run(efficiency)
    step = decode_step(c.cfg, c.hw, c.batch, c.n_in + c.n_out // 2, **run)
    return c.in_its_unit(prefill_step(c.cfg, c.hw, c.prompts, c.n_in, **run).time_s, step.time_s)


def agreement(a: float, b: float) -> float:
    """1 where both are equal; 0.5 where one is twice the other.

    >>> agreement(2.0, 4.0)
    0.5
    """
    return min(a, b) / max(a, b)


def _kv_bits(row, weight_bits: float, dtype: str | None) -> int:
    """As the row says; where it says nothing a model in 8 bits and fewer has a cache of 8."""
    stated = row.get("kv_precision") or ""
    return 8 if "8" in stated or (not stated and weight_bits < 16 and dtype) else 16


def _batch(row) -> int | None:
    """The requests at once that a row states; a cap, or as many tokens, is no such number."""
    text = str(row.get("batch_or_concurrency") or "")
    found = re.match(r"[\d,]+", text)
    return int(found[0].replace(",", "")) if found and "tokens" not in text and "cap" not in text else None


def _chips(row, cfg, hw, context: int, stored: dict) -> int:
    """How many share one copy: as the row says; else the fewest, in doublings, that hold eight requests."""
    if found := re.match(r"(?:TP|EP)(\d+)(?: PP(\d+))?", row.get("parallelism") or ""):
        return int(found[1]) * int(found[2] or 1)
    chips, there = 1, int(row["accelerator_count"] or 1)
    while chips < min(there, 8):
        try:
            if max_batch(cfg, hw, context, chips=chips, **stored) >= 8:
                break
        except BadInputError:
            pass
        chips *= 2
    return chips


def published_cases(rows: Sequence[Mapping] | None = None) -> tuple[list[Case], Counter]:
    """The rows of serving_benchmarks.csv (or others with its columns) that can be predicted, and why others cannot."""
    models, chips, cases, why = load_models(), load_hardware(), [], Counter()
    for row in facts.read("serving_benchmarks") if rows is None else rows:
        try:
            cases.append(case(row, models, chips))
        except LLMflationError as error:
            why[str(error).split(";")[0].split(". ")[0]] += 1
    return cases, why
