"""Predictions of LLM-Viewer for the cases: run it with its environment's Python, its folder on PYTHONPATH."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

from hardwares.hardware_params import hardware_params
from model_analyzer import ModelAnalyzer
from rows import CannotDo, needs_dense, needs_one_chip, needs_plain_blocks, write

VERSION = "git 472f71f (2024-07-30)"
OWN = {"A100 SXM4 80GB": "nvidia_A100_80G", "H100 SXM5 80GB": "nvidia_H100_SXM"}


def ask(case):
    needs_one_chip(case)
    needs_plain_blocks(case)
    needs_dense(case)
    if case.arithmetic_bits < 8:
        raise CannotDo("no rate for arithmetic in 4 bits")
    chip, note = OWN.get(case.accelerator), "its own chip"
    if chip is None:
        chip, note = case.accelerator, "chip by its data sheet"
        hardware_params[chip] = {
            "bandwidth": case.mem_gb_s * 1e9, "FP16": case.tflops_16 * 1e12, "INT8": (case.tflops_8 or 0) * 1e12,
            "onchip_buffer": 0}  # read only where fused attention is asked for
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (Path(folder) / "config.json").write_text(json.dumps(_config(case)))
        shape = "configs/gpt-j-6B.py" if case.model == "GPT-J-6B" else "configs/Llama.py"
        peer = ModelAnalyzer(folder, chip, shape)
    asked = {}

    def run(batch, tokens, phase):
        asked.update(peer.analyze(tokens, batch, w_bit=case.weight_bits, a_bit=case.arithmetic_bits,
                                  kv_bit=case.kv_bits)["total_results"][phase])
        return 1000 * asked["inference_time"]

    def step_ms(batch, context):
        found = run(batch, context, "decode")
        asked["held"] = asked["memory_consumption_weight"] + asked["memory_consumption_kv_cache"]
        return found

    def memory():
        return f"{asked['held'] / 1e9:.1f} GB of weights and cache, without embedding and head"

    return (lambda batch, tokens: run(batch, tokens, "prefill")), step_ms, memory, (
        f"{note}; w{case.weight_bits:g} a{case.arithmetic_bits} kv{case.kv_bits}")


def _config(case) -> dict:
    """The model as the kind of file that it reads."""
    if case.model == "GPT-J-6B":
        return {"model_type": "gptj", "n_embd": case.d_model, "n_layer": case.n_layers, "n_head": case.n_heads,
                "vocab_size": case.vocab_size}
    if case.ffn_matrices != 3 or case.n_heads * case.head_dim != case.d_model:
        raise CannotDo("of this kind of model it has no description")
    return {"model_type": "llama", "hidden_size": case.d_model, "intermediate_size": case.d_ff,
            "num_hidden_layers": case.n_layers, "num_attention_heads": case.n_heads,
            "num_key_value_heads": case.n_kv_heads, "vocab_size": case.vocab_size}


if __name__ == "__main__":
    write("llm_viewer", VERSION, ask)
