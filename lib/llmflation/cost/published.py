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
from llmflation.cost.serving import decode_step, max_batch, prefill_step, prompts_at_once
from llmflation.errors import BadInputError, LLMflationError, is_number
from llmflation.hardware import Accelerator, load_hardware

NEEDED = {"model_key": "model", "accelerator_key": "accelerator", "precision": "precision", "input_len": "input length",
          "output_len": "output length", "metric": "metric", "value": "value"}
METRICS = {  # what a row may have measured, and in which unit
    "output throughput per accelerator": "output tok/s/accelerator",
    "prefill throughput per accelerator": "input tok/s/accelerator",
    "decode speed of one request": "tok/s",
    "time to first token": "ms", "prefill time": "ms", "decode step time": "ms", "inter-token latency": "ms",
}
MOST = 2048  # requests at once, where a row says no number: what engines allow
# What the words of column `precision` mean: bits of a weight with its scales, of embedding and head, arithmetic.
FORMATS = {
    "fp16": (16, None, None), "bf16": (16, None, None), "fp8": (8, 16, "fp8"), "int8": (8, 16, "int8"),
    "fp4": (bits_per_value(4, 16, 8), 16, "fp4"), "mxfp4": (bits_per_value(4, 32, 8), 16, None),
    "fp4 experts, fp8 attention": (bits_per_value(4, 16, 8), 16, "fp4"), "int8 weights": (8, None, None),
    "int4 weights": (bits_per_value(4, 32, 16, 16), None, None),
}
# What column `parallelism` may say, after `_layout` has written "tensor parallel 8" and "8-way TP" as "tp8".
WAYS = r"[ =:_-]*([0-9]{1,18})"
STAGES = rf"(?:[ ,/x+]*pp{WAYS})?"
LAYOUTS = re.compile(rf"(?:tp{WAYS}{STAGES}(?: with ep)?|ep{WAYS}{STAGES}(?:[ ,/+]*dp\3)?|wide ep)"
                     r"(?: ?x ?[0-9]+(?: replicas| copies| instances)?)?(?:, disaggregated)?"
                     r"(?: \([0-9]+ (?:nodes|instances)(?![^)]*[tepd]p)[a-z0-9 ]*\))?")


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
    fills: bool = False  # the row states no number of requests at once: as many as fit are taken
    engine: str = ""
    note: str = ""

    def run(self, efficiency: Efficiency) -> dict:
        """The arguments of a step. Whether it fits into the memory, `case` has checked."""
        return self.stored | {"compute_dtype": self.dtype, "chips": self.chips, "efficiency": efficiency,
                              "check_memory": False}

    @property
    def calibrates(self) -> bool:
        return zlib.crc32(self.id.encode()) % 4 == 0

    @property
    def is_time(self) -> bool:
        """Whether the row's value is a time (ms); the others are rates."""
        return METRICS[self.metric] == "ms"

    @property
    def prompts(self) -> int:
        """How many prompts are read in one call."""
        if self.scenario == "static batch" or self.metric in ("time to first token", "prefill time"):
            return self.batch
        return prompts_at_once(self.batch, self.n_in, self.chips, self.stored["parallel"])

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
    """Read one row, of the project's table or with a file's cells as text.

    BadInputError or an error of the library, which says why, for one that cannot be predicted. Mean lengths are
    rounded. A length beyond the one that the model was made for is taken: its speed was measured all the same.
    """
    if missing := [word for column, word in NEEDED.items() if row.get(column) in (None, "")]:
        raise BadInputError(f"gives no {missing[0]}")
    metric, value = _metric(row), _number(row, "value")
    n_in, n_out = _length(row, "input_len"), _length(row, "output_len")
    cfg, hw = models[models.full_name(row["model_key"])], _accelerator(row, chips)
    cfg = replace(cfg, context=max(cfg.context, n_in + n_out))
    stated_chips, apart = _layout(row)
    stored, dtype = _formats(row, cfg, hw, apart)
    share = _chips(row, stated_chips, cfg, hw, n_in + n_out, stored)
    stated = _batch(row, share)
    batch = stated or min(MOST, max_batch(cfg, hw, n_in + n_out, chips=share, **stored))
    _check_fits(cfg, hw, batch, n_in + n_out // 2 + 1, share, stored)
    return Case(row["row_id"], metric, _words(row, "scenario"), n_in, n_out, batch, value, cfg, hw, share, stored,
                dtype, stated is None, row.get("engine") or "", row.get("note") or "")


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


def plain_number(cell) -> float | None:
    """The number that a cell holds, as the table has it or as text; None for words, separators, signs of money.

    >>> plain_number("2674.9"), plain_number("2,674.9")
    (2674.9, None)
    """
    if isinstance(cell, str):
        written = re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,4})?", cell.strip(), re.IGNORECASE)
        cell = float(cell) if written else None
    return cell if is_number(cell) else None


def _number(row, column: str) -> float:
    number = plain_number(row[column])
    if number is None or number <= 0:
        raise BadInputError(f"{column} {row[column]!r} is no plain number above 0")
    return number


def _length(row, column: str) -> int:
    tokens = round(_number(row, column))
    if tokens < 1:
        raise BadInputError(f"{column} {row[column]!r} is less than one token")
    return tokens


def _words(row, column: str) -> str:
    """A cell as words in small letters; none where the column is missing or empty."""
    return str(row.get(column) or "").strip().casefold()


def _metric(row) -> str:
    metric, unit = _words(row, "metric"), _words(row, "unit")
    if metric not in METRICS:
        raise BadInputError(f"unknown metric {row['metric']!r}; known: {', '.join(METRICS)}")
    if unit and unit != METRICS[metric]:
        raise BadInputError(f"unit {row['unit']!r} of {metric}; known: {METRICS[metric]}")
    return metric


def _accelerator(row, chips: Mapping) -> Accelerator:
    hw = chips[chips.full_name(row["accelerator_key"])]
    if "one GCD" not in (row.get("note") or ""):
        return hw
    return replace(hw, name=f"half a {hw.name}", mem_bytes=hw.mem_bytes / 2,  # one of the two chips that make it up
                   mem_bytes_per_s=hw.mem_bytes_per_s / 2,
                   peak_flops={dtype: rate / 2 for dtype, rate in hw.peak_flops.items()})


def _layout(row) -> tuple[int | None, bool]:
    """How many chips share one copy, None where the row does not say, and whether experts are apart from each other.

    "TP8 with expert parallelism" counts as tensor parallel, on purpose: attention is, though the experts are shared
    out, and where they are apart here each chip attends to its own requests. Two numbers ("TP4EP4") may mean either.
    """
    text = " ".join(_words(row, "parallelism").split())
    if text in ("", "not stated"):
        return None, False
    short = re.sub(r"\b([tep])(?:ensor|xpert|ipeline)[ _-]parallel(?:ism)?(?:[ _-]size)?\b", r"\1p", text)
    short = re.sub(r"\b([0-9]{1,18})[ -]way[ -]([tep]p)\b", r"\2\1", short)
    found = LAYOUTS.fullmatch(short)
    if not found:
        raise BadInputError(f"unknown parallelism {row['parallelism']!r}; known: TP8, EP16, TP2 PP2, TP1 x 8, "
                            "TP8 with expert parallelism, wide EP")
    ways, stages = found[1] or found[3], found[2] or found[4]
    return int(ways) * int(stages or 1) if ways else None, not short.startswith("tp")


def _formats(row, cfg: ModelConfig, hw: Accelerator, apart: bool) -> tuple[dict, str | None]:
    """How weights and cache are held and shared out, and the format of the arithmetic."""
    words = _words(row, "precision").split(" + ")[0].split(" (")[0].strip()
    if words not in FORMATS:
        raise BadInputError(f"unknown precision {row['precision']!r}; known: {', '.join(FORMATS)}")
    weight_bits, head_bits, dtype = FORMATS[words]
    dtype = dtype if dtype in hw.peak_flops else None  # without it, weights are widened and multiplied in 16 bits
    apart = cfg.is_moe and (apart or "data-parallel attention" in (row.get("note") or ""))
    return {"weight_bits": weight_bits, "head_bits": head_bits, "kv_bits": _kv_bits(row, weight_bits, dtype),
            "parallel": "expert" if apart else "tensor"}, dtype


def _kv_bits(row, weight_bits: float, dtype: str | None) -> int:
    """As the row says; where it says nothing a model in 8 bits and fewer has a cache of 8."""
    stated = _words(row, "kv_precision")
    if stated in ("", "not stated"):
        return 8 if weight_bits < 16 and dtype else 16
    found = re.match(r"(?:fp|bf|int)(8|16)(?![0-9])", stated)
    if not found:
        raise BadInputError(f"unknown kv_precision {row['kv_precision']!r}; known: fp16, bf16, fp8, int8")
    return int(found[1])


def _batch(row, share: int) -> int | None:
    """The requests at once that a row states for the `share` chips of one copy; a cap, as many tokens, or words
    without a number are no such statement."""
    text = _words(row, "batch_or_concurrency")
    if not re.search("[0-9]", text) or re.search(r"\b(cap|tokens)\b", text):
        return _unstated(row, text)
    found = re.fullmatch(r"([0-9]{1,3}(?:,[0-9]{3}){1,5}|[0-9]{1,18})(?:\.0+)?(?: ([^0-9]*))?", text)
    stated = int(found[1].replace(",", "")) if found else 0
    if stated < 1:
        raise BadInputError(f"batch_or_concurrency {row['batch_or_concurrency']!r} is no whole number of 1 or more")
    each = re.match(r"(?:per|a|each) (\w+)", found[2] or "")
    if not each or each[1] in ("replica", "copy", "instance"):
        return stated
    if each[1] not in ("gpu", "chip", "accelerator"):
        raise BadInputError(f"batch_or_concurrency {row['batch_or_concurrency']!r} is neither per GPU nor per replica")
    return stated * share


def _unstated(row, text: str) -> int | None:
    """The requests at once where the cell holds no number of them: 1 for what is of one request, None for as many as
    fit. BadInputError for a time, and for one request's speed among others: both depend on how many there are."""
    metric = _words(row, "metric")
    of_one = metric.endswith("of one request")
    if text in ("", "not stated") and (of_one or _words(row, "scenario") == "one request"):
        return 1
    if (of_one or METRICS[metric] == "ms") and not text.startswith("as many as fit"):
        raise BadInputError("gives no batch")
    return None


def _chips(row, stated: int | None, cfg, hw, context: int, stored: dict) -> int:
    """How many share one copy: the stated ones; else the fewest, in doublings, that hold eight requests.

    There is one where `accelerator_count` is empty or missing."""
    counted = row.get("accelerator_count") not in (None, "")
    there = _number(row, "accelerator_count") if counted else 1
    if there != int(there):
        raise BadInputError(f"accelerator_count {row['accelerator_count']!r} is no whole number")
    if stated is not None:
        if counted and stated > there:
            raise BadInputError(f"parallelism {row['parallelism']!r} shares out to more than the {int(there)} of "
                                "accelerator_count")
        return stated
    chips = 1
    while 2 * chips <= min(there, 8):
        try:
            if max_batch(cfg, hw, context, chips=chips, **stored) >= 8:
                break
        except BadInputError:
            pass
        chips *= 2
    return chips


def _check_fits(cfg, hw, batch: int, context: int, share: int, stored: dict) -> None:
    """BadInputError, by how much, where the batch with the tokens that it holds on average is more than the memory."""
    most = max_batch(cfg, hw, context, chips=share, usable=1.0, **stored)
    if batch > most:
        raise BadInputError(f"{batch:,} requests of {context:,} tokens do not fit: {most:,} fill the memory of "
                            f"{share} x {hw.name}")


def published_cases(rows: Sequence[Mapping] | None = None) -> tuple[list[Case], Counter]:
    """The rows of serving_benchmarks.csv (or others with its columns) that can be predicted, and why others cannot.

    Column `accelerator_count` and those that `case` needs not may be missing. No row raises: its error is counted.
    """
    models, chips, cases, why = load_models(), load_hardware(), [], Counter()
    for row in facts.read("serving_benchmarks") if rows is None else rows:
        try:
            found = case(row, models, chips)
            predicted(found)  # a fact that the tables lack shows here
            cases.append(found)
        except LLMflationError as error:
            why[str(error).split(". ")[0].rstrip(".")] += 1
    return cases, why
