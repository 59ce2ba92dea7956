"""Writes a model of the Llama family as a GGUF file, which llama.cpp runs; `gguf_file` reads it back.

The file has the parts of our fused matrices one by one, and the rows of queries and keys in the order of interleaved
rotary embedding. The `gguf` package lays out the bytes.
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .config import ModelConfig
from .corpus import BOS, EOS, PAD, VOCAB_SIZE
from .errors import BadInputError, DataError, bad_input, unknown_name
from .gguf_file import LAYER, OUTER
from .quant.ggml import BLOCK, q4_0, q8_0, to_blocks
from .quant.linear import QuantizedEmbedding, QuantizedLinear
from .quant.tensor import QuantizedTensor

_QUANTIZE = {"Q8_0": q8_0, "Q4_0": q4_0}
_FLOATS = {"F32": torch.float32, "F16": torch.float16}
KINDS = (*_FLOATS, *_QUANTIZE)

Weight = Tensor | QuantizedTensor


def export_gguf(model, path, kind: str = "F32", *, tokenizer=None) -> Path:
    """Write a Transformer, quantized or not, as a GGUF file that llama.cpp runs; returns the path.

    `kind` is the format of the matrices: "F32", "F16", "Q8_0" or "Q4_0"; vectors stay float32. Layers that are
    quantized already keep their own format, which must be Q8_0 or Q4_0. `tokenizer` is a GGUF file whose vocabulary,
    merges and chat template are copied (`real_model_file()` for the real model); without it the model must be one over
    bytes, like the toy.

    The file is written beside its place and moved there when it is whole. BadInputError for what llama.cpp has no place
    for, which names it; DataError for a `tokenizer` that cannot be read.
    """
    from gguf import GGUFWriter

    if kind not in KINDS:
        raise unknown_name("GGUF format", kind, KINDS)
    cfg = _exportable(model)
    path = Path(path)
    if path.is_dir():
        raise bad_input("path", str(path), "the name of a file, and this is a folder")
    parts = _parts(model, cfg)
    formats = {name: _format(name, weight, kind) for name, (weight, _) in parts.items()}
    entries = _tokenizer_entries(tokenizer, cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = GGUFWriter(fresh, "llama")
    try:
        _write_facts(writer, cfg, formats, entries)
        _write_tensors(writer, parts, formats)
        writer.close()
        os.replace(fresh, path)
    finally:
        writer.close()
        fresh.unlink(missing_ok=True)
    return path


def _exportable(model) -> ModelConfig:
    """The model's configuration, if llama.cpp's "llama" is built like it."""
    cfg = getattr(model, "cfg", None)
    if not isinstance(cfg, ModelConfig):
        raise bad_input("model", type(model).__name__, "a Transformer, which knows its ModelConfig")
    foreign = {"experts": cfg.is_moe, "latent attention": cfg.attention == "MLA",
               "two feed-forward matrices": cfg.ffn_matrices != 3,
               f"a window of {cfg.sliding_window}": cfg.sliding_window is not None}
    if found := [what for what, there in foreign.items() if there]:
        raise BadInputError(f"{cfg.name or 'this model'} has {' and '.join(found)}, which a GGUF file of the 'llama' "
                            "family cannot say; only dense models without a window can be exported.")
    return cfg


def _parts(model, cfg: ModelConfig) -> dict[str, tuple[Weight, Tensor | None]]:
    """GGUF's tensors by their names: the weight of ours that each is cut from, and its rows in their order there."""
    weights = _weights(model)
    made = {theirs: (weights[ours], None) for ours, theirs in OUTER.items()}
    if cfg.tied_embeddings:
        del made["output.weight"]
    q, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    rows = {"attn_q": _interleaved(cfg.n_heads, cfg.head_dim), "attn_k": q + _interleaved(cfg.n_kv_heads, cfg.head_dim),
            "attn_v": q + kv + torch.arange(kv), "ffn_gate": torch.arange(cfg.d_ff),
            "ffn_up": cfg.d_ff + torch.arange(cfg.d_ff)}
    for i in range(cfg.n_layers):
        for ours, names in LAYER.items():
            made |= {f"blk.{i}.{name}.weight": (weights[f"blocks.{i}.{ours}"], rows.get(name)) for name in names}
    return made


def _weights(model) -> dict[str, Weight]:
    """All weights by our names; those of a layer that is quantized as its QuantizedTensor."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            weights[f"{name}.weight"] = getattr(module, "head", module).tensor()  # a tied head's, for an embedding
    return weights


def _interleaved(heads: int, width: int) -> Tensor:
    """Which of our rows stands where in GGUF: each head's two halves become pairs, what `gguf_file` undoes."""
    return torch.arange(heads * width).view(heads, 2, width // 2).transpose(1, 2).reshape(-1)


def _format(name: str, weight: Weight, kind: str) -> str:
    """The format in which a weight is written; BadInputError, with the tensor's name, where it cannot be."""
    if isinstance(weight, QuantizedTensor):
        if (own := weight.format.upper()) not in _QUANTIZE:
            raise BadInputError(f"{name} is quantized as {weight.format}, which llama.cpp cannot read; allowed: Q8_0 "
                                "and Q4_0. Quantize by the scheme 'q8_0' or 'q4_0', or export the model of before.")
        return own
    if weight.ndim == 1:
        return "F32"  # llama.cpp's norms take nothing else
    if kind in _QUANTIZE and weight.shape[1] % BLOCK:
        raise BadInputError(f"{name} {tuple(weight.shape)} has {weight.shape[1]} columns, and {kind} takes blocks of "
                            f"{BLOCK}; allowed: a multiple of {BLOCK}. Export it as F16.")
    return kind


def _write_facts(writer, cfg: ModelConfig, formats: dict[str, str], entries: list[tuple]) -> None:
    """The key-value part: what `gguf_file` reads, and what llama.cpp wants besides."""
    from gguf import LlamaFileType

    [(most, _)] = Counter(format for name, format in formats.items() if not name.endswith("norm.weight")).most_common(1)
    writer.add_name(cfg.name or "a model")
    writer.add_block_count(cfg.n_layers)
    writer.add_context_length(cfg.context)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_file_type(LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])
    if set(formats.values()) & set(_QUANTIZE):
        writer.add_quantization_version(2)  # of ggml's blocks: half-precision scales
    for key, value, types in entries:
        writer.add_key_value(key, value, *types)


def _write_tensors(writer, parts: dict, formats: dict[str, str]) -> None:
    """All names, shapes and formats, then one tensor after the other: no second copy of the model is held."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, (weight, rows) in parts.items():
        shape = (weight.shape[0] if rows is None else len(rows), *weight.shape[1:])
        format = GGMLQuantizationType[formats[name]]
        block, size = GGML_QUANT_SIZES[format]
        count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
        # No dtype of NumPy's is looked at where the format is given.
        writer.add_tensor_info(name, shape, None, count // block * size, raw_dtype=format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (weight, rows) in parts.items():
        writer.write_tensor_data(_bytes(name, weight, rows, formats[name]).numpy())


def _bytes(name: str, weight: Weight, rows: Tensor | None, format: str) -> Tensor:
    """A weight, or some rows of it, as the file holds it; BadInputError where a float16 cannot hold it."""
    if isinstance(weight, QuantizedTensor):
        return to_blocks(weight if rows is None else _rows(weight, rows))
    part = (weight if rows is None else weight[rows]).detach().cpu()
    if format in _QUANTIZE:
        return to_blocks(_QUANTIZE[format](part, name=name))
    made = part.to(_FLOATS[format]).contiguous()
    if not bool(torch.isfinite(made).all()):
        remedy = "Export it as F32." if format == "F16" else "Find the layer that made it."
        raise BadInputError(f"{name} has a weight that {format} cannot hold: the largest is "
                            f"{float(part.abs().max()):g}. {remedy}")
    return made


def _rows(q: QuantizedTensor, rows: Tensor) -> QuantizedTensor:
    """Some rows of a weight whose groups lie inside its rows."""
    return replace(q, codes=q.codes[rows], scales=q.scales[rows], zeros=None if q.zeros is None else q.zeros[rows],
                   shape=(len(rows), q.shape[1]))


def _tokenizer_entries(file, cfg: ModelConfig) -> list[tuple]:
    """Keys, values and GGUF types of the tokenizer's entries: copied from a GGUF file, or those of the bytes."""
    if file is None:
        if cfg.vocab_size != VOCAB_SIZE:
            raise BadInputError(f"{cfg.name or 'this model'} has {cfg.vocab_size} tokens, and without a tokenizer only "
                                f"the {VOCAB_SIZE} of the toy are known. Name a GGUF file that has them: tokenizer=...")
        return _byte_entries()
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot be read as GGUF ({error}). Fetch it again.", file=Path(file).name) from None
    made = [(key, field.contents(), field.types[:1] if len(field.types) == 1 else (field.types[0], field.types[-1]))
            for key, field in fields.items() if key.startswith("tokenizer.")]
    count = next((len(value) for key, value, _ in made if key == "tokenizer.ggml.tokens"), 0)
    if count != cfg.vocab_size:
        raise BadInputError(f"{Path(file).name} has {count} tokens and the model {cfg.vocab_size}; name the file that "
                            "its tokens are from.")
    return made


def _byte_entries() -> list[tuple]:
    """The toy's vocabulary as one of GPT-2's kind: a token for each byte, and nothing to merge."""
    from gguf import GGUFValueType as V
    from gguf import TokenType

    unused = [f"<|unused{i}|>" for i in range(PAD + 1, VOCAB_SIZE)]
    # llama.cpp asks for merges and the gguf package writes no empty list: this one never applies to bytes.
    merge, unused[2] = f"{unused[0]} {unused[1]}", unused[0] + unused[1]
    names = {BOS: "<|begin|>", EOS: "<|end|>", PAD: "<|pad|>"}
    tokens = [*_byte_names(), *(names[i] for i in sorted(names)), *unused]
    kinds = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 3 + [TokenType.UNUSED] * len(unused)
    entries = {"model": ("gpt2", V.STRING), "pre": ("gpt-2", V.STRING), "tokens": (tokens, V.ARRAY, V.STRING),
               "token_type": ([int(kind) for kind in kinds], V.ARRAY, V.INT32), "merges": ([merge], V.ARRAY, V.STRING),
               "bos_token_id": (BOS, V.UINT32), "eos_token_id": (EOS, V.UINT32), "padding_token_id": (PAD, V.UINT32),
               "add_bos_token": (True, V.BOOL), "add_space_prefix": (False, V.BOOL)}
    return [(f"tokenizer.ggml.{key}", value, types) for key, (value, *types) in entries.items()]


def _byte_names() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabularies: itself where it prints, else one above 255."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]
