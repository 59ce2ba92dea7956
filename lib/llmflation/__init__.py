"""LLMflation: why the price of a language model's token fell, as a library that you can run.

`import llmflation` loads nothing else: a name loads its module when it is first used, so that the cost model
works without torch, numpy or matplotlib.
"""

# Where each public name lives: the few that chapters use.
_HOMES = {
    "config": "ModelConfig load_models model_config",
    "hardware": "Accelerator accelerator load_hardware rental_price",
    "timing": "Comparison Timing compare time_fn",
    "cost.counts": "Work count_params decode_flops kv_bytes kv_bytes_per_token prefill_flops weight_bytes",
    "cost.economics": "joules_per_token ownership_usd_per_hour token_costs usd_per_million_tokens",
    "cost.ledger": "Factor Ledger",
    "cost.prices": "find_offer load_prices",
    "cost.roofline": "IDEAL TYPICAL Efficiency roofline_time",
    "cost.series": "in_force record",
    "cost.serving": "decode_step latency_throughput max_batch prefill_step throughput",
    "cost.trends": "Trend decompose factor_per_year fit_price_trend sensitivity",
    "model": "Transformer generate stream",
    "kvcache": "ContiguousKVCache KVCache",
    "paged": "PagedKVCache",
    "prefix": "PrefixCache",
    "window": "WindowKVCache",
    "latent": "LatentAttention",
    "quantized_cache": "QuantizedKVCache",
    "quant.tensor": "QuantizedTensor dequantize",
    "quant.integer": "quantize",
    "quant.linear": "QuantizedLinear",
    "quant.kernels": "set_kernel_path",
    "quant.model": "SCHEMES bits_per_weight model_bytes quantize_model",
    "quantized_checkpoint": "load_quantized save_quantized",
    "gguf_export": "export_gguf",
    "blocks": "BlockPool BlockTable",
    "prefix_index": "PrefixIndex",
    "sampling": "Sampler",
    "checkpoint": "load_checkpoint save_checkpoint",
    "gguf_file": "load_gguf",
    "pretrained": "chat load_real_model load_toy",
    "evaluate": "accuracy bits_per_byte cloze look_up_by_distance perplexity same_quality",
    "linear": "linear_path set_linear_path",
    "probe": "memory_bytes_per_s step_parts this_machine",
    "claims": "claim factor glue",
    "predictions": "compare_prediction export_predictions predict",
    "errors": "BadInputError ClaimError DataError LLMflationError MissingFactError OutOfBlocksError UnknownNameError",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = (
    "blocks",
    "claims",
    "checkpoint",
    "config",
    "corpus",
    "cost",
    "errors",
    "evaluate",
    "facts",
    "faults",
    "gguf_export",
    "gguf_file",
    "hardware",
    "kvcache",
    "latent",
    "layers",
    "linear",
    "model",
    "muon",
    "online_softmax",
    "paged",
    "predictions",
    "prefix",
    "prefix_index",
    "probe",
    "pretrained",
    "quant",
    "quantized_cache",
    "quantized_checkpoint",
    "sampling",
    "timing",
    "train",
    "units",
    "viz",
    "window",
)

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str):
    from importlib import import_module

    if name == "__version__":
        value = _version()
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    elif name.startswith("_"):
        raise AttributeError(f"llmflation has no name {name!r}", name=name)
    else:
        from llmflation.errors import unknown_name

        raise AttributeError(str(unknown_name("name in llmflation", name, [*_HOME_OF, *_MODULES])), name=name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _version() -> str:
    """The version that pyproject.toml gives, as installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llmflation")
    except PackageNotFoundError:  # run from the sources by a path alone
        return "0+unknown"
