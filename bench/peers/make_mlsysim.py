"""Predictions of mlsysim for the cases: run it with the Python of mlsysim's environment."""

from importlib.metadata import version

from mlsysim import Hardware
from mlsysim.core.units import Q_, ureg
from mlsysim.hardware.types import ComputeCore, HardwareNode, MemoryHierarchy
from mlsysim.models.types import SparseTransformerWorkload, TransformerWorkload
from mlsysim.solvers import ServingModel
from rows import needs_one_chip, needs_one_width, write

OWN = {"A100 SXM4 80GB": "A100", "H100 SXM5 80GB": "H100", "H200 SXM": "H200", "B200 SXM 180GB": "B200"}
BITS = {16: "fp16", 8: "fp8"}


def ask(case):
    needs_one_chip(case)
    needs_one_width(case)
    own = OWN.get(case.accelerator)
    chip, note = (getattr(Hardware.Cloud, own), "its own chip") if own else (_chip(case), "chip by its data sheet")
    facts = {"name": case.model, "architecture": "Transformer", "parameters": Q_(case.params, ureg.count),
             "layers": case.n_layers, "hidden_dim": case.d_model, "heads": case.n_heads,
             "kv_heads": case.n_kv_heads, "head_dim": case.head_dim}
    if case.n_experts:
        model = SparseTransformerWorkload(active_parameters=Q_(case.active_params, ureg.count),
                                          experts=case.n_experts, active_experts_per_token=case.top_k, **facts)
    else:
        model = TransformerWorkload(**facts)
    asked = {}

    def run(batch, tokens):
        return ServingModel().solve(model, chip, seq_len=tokens, batch_size=batch, precision=BITS[case.weight_bits])

    def step_ms(batch, context):
        asked["step"] = run(batch, context)
        return asked["step"].itl.to("ms").magnitude

    def memory():
        found = asked["step"]
        fits = "" if found.feasible else ", which it says do not fit"
        return f"{found.total_memory_required.to('GB').magnitude:.1f} GB of weights and cache{fits}"

    return (lambda batch, tokens: run(batch, tokens).ttft.to("ms").magnitude), step_ms, memory, (
        f"{note}; {BITS[case.weight_bits]}")


def _chip(case) -> HardwareNode:
    rates = {"fp8": Q_(case.tflops_8, "TFLOPs/s")} if case.tflops_8 else {}
    return HardwareNode(
        name=case.accelerator, release_year=2023,  # the year is asked for and not used
        compute=ComputeCore(peak_flops=Q_(case.tflops_16, "TFLOPs/s"), precision_flops=rates),
        memory=MemoryHierarchy(capacity=Q_(case.mem_gb, "GB"), bandwidth=Q_(case.mem_gb_s, "GB/s")))


if __name__ == "__main__":
    write("mlsysim", version("mlsysim"), ask)
