"""What the scripts of all peers share: the cases to predict, read from cases.csv, and the table that they write.

Standard library alone: each script runs in the environment of its peer, without this course's library.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
CASES = HERE / "cases.csv"
DATE = "2026-11-27"
COLUMNS = ("row_id", "prefill_ms", "decode_step_ms", "batch", "memory_note", "version", "date", "note", "prompts",
           "prompts_ms")
WORDS = {"row_id", "precision", "model", "attention", "accelerator", "parallel"}


class CannotDo(Exception):
    """Why a peer cannot describe a case."""


def cases() -> list[SimpleNamespace]:
    """The rows of cases.csv, numbers as numbers; an empty cell is None."""
    with CASES.open(newline="", encoding="utf-8") as file:
        return [SimpleNamespace(**{k: v if k in WORDS else _number(v) for k, v in row.items()})
                for row in csv.DictReader(file)]


def _number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() else value


def needs_one_chip(case) -> None:
    if case.chips > 1:
        raise CannotDo(f"{case.chips} chips share the model, and it knows one")


def needs_one_width(case) -> None:
    """For a peer with one format for weights, cache and arithmetic alike."""
    if not case.weight_bits == case.kv_bits == case.arithmetic_bits:
        raise CannotDo(f"weights of {case.weight_bits:g} bits, cache of {case.kv_bits}, arithmetic in "
                       f"{case.arithmetic_bits}: it has one format for all")


def needs_dense(case) -> None:
    if case.n_experts:
        raise CannotDo("no mixture of experts")


def needs_plain_blocks(case) -> None:
    """For a peer that knows attention with a cache of keys and values, and no shared experts."""
    if case.attention == "MLA":
        raise CannotDo("no latent attention (MLA)")
    if case.n_shared_experts:
        raise CannotDo("no shared expert beside the routed ones")


def _check(case) -> None:
    """What no peer here can be asked about."""
    if "draft" in case.precision:
        raise CannotDo("speculative decoding, and the row does not say how many drafts are accepted")
    if case.sliding_window and case.input_len + case.output_len > case.sliding_window:
        raise CannotDo(f"no sliding window ({case.sliding_window} tokens)")


def write(name: str, version: str, ask: Callable) -> None:
    """Ask one peer about every case and write NAME.csv.

    `ask(case)` raises CannotDo, or gives a function from (batch, tokens) to the milliseconds of a prefill, one from
    (batch, context) to those of a decode step, one that then says what memory that takes, and a note. What the peer
    itself refuses stands in the note, in its words.
    """
    rows = [_row(case, version, ask) for case in cases()]
    path = HERE / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    done = sum("decode_step_ms" in r for r in rows)
    print(f"{path.name}: {done} of {len(rows)} rows predicted.")


def _row(case, version: str, ask: Callable) -> dict:
    row = {"row_id": case.row_id, "batch": case.batch, "version": version, "date": DATE, "prompts": case.prompts}
    try:
        _check(case)
        prefill_ms, step_ms, memory, note = ask(case)
        row["decode_step_ms"] = _round(step_ms(case.batch, case.context))
        row["prefill_ms"] = _round(prefill_ms(case.prefill_batch, case.input_len))
        row["prompts_ms"] = _round(prefill_ms(case.prompts, case.input_len))
        return row | {"memory_note": memory(), "note": note + "; mixture of experts" * bool(case.n_experts)}
    except CannotDo as reason:
        found = str(reason)
    except (AssertionError, ValueError) as reason:
        found = "it refuses: " + " ".join(str(reason).split())
    return {k: v for k, v in row.items() if not k.endswith("_ms")} | {"note": f"left out: {found}"}


def _round(ms: float) -> str:
    return f"{ms:.5g}"
