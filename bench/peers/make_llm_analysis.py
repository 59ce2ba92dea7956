"""Predictions of llm-analysis for the cases: run it with its environment's Python, its folder on PYTHONPATH."""

import logging

from llm_analysis.analysis import LLMAnalysis
from llm_analysis.config import GPUConfig, ModelConfig, ParallelismConfig, get_dtype_config_by_name, gpu_configs
from llm_analysis.logger import logger
from rows import CannotDo, needs_plain_blocks, write

VERSION = "git d841e40 (2024-11-13)"
OWN = {"A100 SXM4 80GB": "a100-sxm-80gb", "H100 SXM5 80GB": "h100-sxm-80gb"}
MIN_MESSAGE_S = 8e-6  # every chip of its table has this one


def ask(case):
    needs_plain_blocks(case)
    if case.n_heads * case.head_dim != case.d_model:
        raise CannotDo("heads together as wide as the model is all it knows")
    if case.stages > 1:
        raise CannotDo("of a pipeline it times one stage")
    if case.parallel == "expert":
        raise CannotDo("attention is not split where experts are")
    chip, note = gpu_configs.get(OWN.get(case.accelerator)), "its own chip"
    if chip is None:
        chip, note = GPUConfig(
            name=case.accelerator, mem_per_GPU_in_GB=case.mem_gb, hbm_bandwidth_in_GB_per_sec=case.mem_gb_s,
            intra_node_bandwidth_in_GB_per_sec=case.link_gb_s or 0, intra_node_min_message_latency=MIN_MESSAGE_S,
            peak_fp16_TFLOPS=case.tflops_16, peak_i8_TFLOPS=case.tflops_8, peak_i4_TFLOPS=case.tflops_4,
        ), "chip by its data sheet"
    model = ModelConfig(
        name=case.model, num_layers=case.n_layers, n_head=case.n_heads, hidden_dim=case.d_model,
        vocab_size=case.vocab_size, num_key_value_heads=case.n_kv_heads, ffn_embed_dim=case.d_expert or case.d_ff,
        moe_num_experts=case.n_experts or 1, moe_top_k=case.top_k or 1, mlp_gated_linear_units=case.ffn_matrices == 3)
    weight_bits = 4 if case.weight_bits < 8 else case.weight_bits
    dtype = f"w{weight_bits}a{case.arithmetic_bits}e16"
    peer = LLMAnalysis(model, chip, get_dtype_config_by_name(dtype), ParallelismConfig(tp_size=case.chips))
    asked = {}

    def run(batch, tokens, more):
        asked.update(peer.inference(batch_size_per_gpu=batch, seq_len=tokens, num_tokens_to_generate=more,
                                    kv_cache_dtype_bytes=case.kv_bits / 8))
        return asked

    def prefill_ms(batch, tokens):
        return 1000 * run(batch, tokens, 1)["prefill_latency"]

    def step_ms(batch, context):
        # It takes the cache at its full length, prompt and answer, and refuses a batch whose prompts do not fit at
        # once: so a prompt of one token, and the rest as the answer, is a step behind `context` tokens.
        found = run(batch, 1, context - 1)
        asked["held"] = found["weight_memory_per_gpu"] + found["kv_cache_memory_per_gpu"]
        return 1000 * found["decode_latency"]

    def memory():
        return f"{asked['held'] / 1e9:.1f} GB of weights and cache a chip"

    return prefill_ms, step_ms, memory, f"{note}; {dtype}"


if __name__ == "__main__":
    logger.setLevel(logging.ERROR)
    write("llm_analysis", VERSION, ask)
