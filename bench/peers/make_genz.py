"""Predictions of GenZ for the cases: run it with the Python of GenZ's environment."""

from importlib.metadata import version

from GenZ import ModelConfig, decode_moddeling, prefill_moddeling
from rows import needs_one_width, needs_plain_blocks, write

OWN = {"A100 SXM4 80GB": "A100_80GB_GPU", "H100 SXM5 80GB": "H100_GPU", "GB200 (per GPU)": "GB200"}
BITS = {16: "bf16", 8: "fp8"}


def ask(case):
    needs_plain_blocks(case)
    needs_one_width(case)
    chip, note = OWN.get(case.accelerator), "its own chip"
    if chip is None:
        chip, note = {"Flops": case.tflops_16, "Memory_size": case.mem_gb, "Memory_BW": case.mem_gb_s,
                      "ICN": case.link_gb_s or 0, "real_values": True}, "chip by its data sheet"
    experts = {"num_experts": case.n_experts, "expert_top_k": case.top_k} if case.n_experts else {}
    model = ModelConfig(
        model=case.model, vocab_size=case.vocab_size, hidden_size=case.d_model, num_decoder_layers=case.n_layers,
        intermediate_size=case.d_expert or case.d_ff, num_ffi=case.ffn_matrices - 1, head_dim=case.head_dim,
        num_attention_heads=case.n_heads, num_key_value_heads=case.n_kv_heads, **experts)
    shared = case.chips // case.stages
    split = "expert_parallel" if case.parallel == "expert" else "tensor_parallel"
    run = {"model": model, "system_name": chip, "bits": BITS[case.weight_bits], split: shared,
           "pipeline_parallel": case.stages}
    asked = {}

    def prefill_ms(batch, tokens):
        return prefill_moddeling(batch_size=batch, input_tokens=tokens, **run)["Latency"]

    def step_ms(batch, context):
        asked.update(decode_moddeling(batch_size=batch, input_tokens=context, Bb=1, **run))  # Bb: beams
        return asked["Latency"]

    def memory():
        found = asked["summary_table"].iloc[0]
        gib = (found["Total Weights (MB)"] + found["KV Cache (MB)"]) / 1024
        return f"{gib:.1f} GiB of weights and cache a chip"

    return prefill_ms, step_ms, memory, f"{note}; {BITS[case.weight_bits]}"


if __name__ == "__main__":
    write("genz", version("genz-llm"), ask)
