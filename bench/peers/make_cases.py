"""`python -m bench.peers.make_cases`: writes cases.csv, the published rows as the peers are asked about them.

Everything in it comes from this library, so that all cost models get the same model, chip, split and batch: where a
row says "as many as fit", the batch is the one that `llmflation.cost.published` takes.
"""

import csv
import re

from llmflation import facts
from llmflation.cost.counts import count_params
from llmflation.cost.published import Case, published_cases

from .rows import CASES

ARITHMETIC = {None: 16, "fp8": 8, "int8": 8, "fp4": 4}


def described(c: Case, row) -> dict:
    """One published row as plain numbers."""
    cfg, hw, peaks = c.cfg, c.hw, c.hw.peak_flops
    link = hw.interconnect_bytes_per_s
    staged = re.search(r"PP(\d+)", row["parallelism"] or "")
    return {
        "row_id": c.id, "precision": row["precision"],
        "model": cfg.name, "n_layers": cfg.n_layers, "d_model": cfg.d_model, "n_heads": cfg.n_heads,
        "n_kv_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim, "d_ff": cfg.d_ff, "ffn_matrices": cfg.ffn_matrices,
        "vocab_size": cfg.vocab_size, "tied_embeddings": int(cfg.tied_embeddings), "attention": cfg.attention,
        "sliding_window": cfg.sliding_window, "n_experts": cfg.n_experts, "top_k": cfg.top_k,
        "n_shared_experts": cfg.n_shared_experts, "d_expert": cfg.d_expert,
        "params": count_params(cfg).total, "active_params": count_params(cfg, active=True).total,
        "accelerator": hw.name, "mem_gb": hw.mem_bytes / 1e9, "mem_gb_s": hw.mem_bytes_per_s / 1e9,
        "tflops_16": _tera(peaks.get("bf16") or peaks.get("fp16")),
        "tflops_8": _tera(peaks.get("fp8") or peaks.get("int8")), "tflops_4": _tera(peaks.get("fp4")),
        "link_gb_s": link and link / 2e9,  # one way
        "chips": c.chips, "stages": int(staged[1]) if staged else 1, "parallel": c.stored["parallel"],
        "input_len": c.n_in, "output_len": c.n_out, "context": c.n_in + c.n_out // 2,
        "batch": c.batch, "prefill_batch": _prefill_batch(c), "prompts": c.prompts,
        "weight_bits": c.stored["weight_bits"], "head_bits": c.stored["head_bits"], "kv_bits": c.stored["kv_bits"],
        "arithmetic_bits": ARITHMETIC[c.dtype],
    }


def _prefill_batch(c: Case) -> int:
    """The prompts whose time the row needs as one call; 1 where requests come and go one by one."""
    together = c.scenario == "static batch" or c.metric.startswith(("time to first token", "prefill"))
    return c.prompts if together else 1


def _tera(rate: float | None) -> float | None:
    return rate and rate / 1e12


def main() -> None:
    rows = {row["row_id"]: row for row in facts.read("serving_benchmarks")}
    cases = [described(c, rows[c.id]) for c in published_cases()[0]]
    with CASES.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, cases[0], lineterminator="\n")
        table.writeheader()
        table.writerows({name: _short(value) for name, value in c.items()} for c in cases)
    print(f"{CASES.name}: {len(cases)} of {len(rows)} published rows can be predicted.")


def _short(value):
    return f"{value:.10g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
