"""Reads a GGUF file of the Llama family: its configuration, its weights, its vocabulary and its chat template.

GGUF is the one-file format of llama.cpp; the `gguf` package reads it and undoes its number formats.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, DataError


@dataclass(frozen=True)
class GGUF:
    """What a GGUF file holds: `state` are the weights under our names, dequantized; `texts` the tokenizer's parts."""

    cfg: ModelConfig
    state: dict[str, Tensor]
    tokens: list[str]
    merges: list[str]
    special_ids: list[int]
    pre_tokenizer: str
    chat_template: str  # "" where the file has none
    stop_id: int


def load_gguf(path, dtype: torch.dtype = torch.float32) -> GGUF:
    """Read a GGUF file of the Llama family with a byte-pair vocabulary; weights become `dtype`.

    DataError for a file that is missing, broken or of another architecture.
    """
    from gguf import GGUFReader  # half a second to import: only who reads such a file pays

    path = Path(path)
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot be read as GGUF ({error}). Fetch it again.", file=path.name) from None
    known = _Fields(reader, path.name)
    if (architecture := known["general.architecture"]) != "llama":
        raise DataError(f"holds a model of the {architecture!r} family; only 'llama' can be read here.", file=path.name)
    tensors = {t.name: t for t in reader.tensors}
    try:
        cfg = _config(known, set(tensors))
    except BadInputError as error:
        raise DataError(f"describes no model that can be built: {error}", file=path.name) from None
    if scaled := [key for key in reader.fields if key.startswith("llama.rope.scaling")]:
        raise DataError(f"the rotary embedding is scaled ({scaled[0]}), which cannot be built yet.", file=path.name)
    _check_names(set(tensors), cfg, path.name)
    kinds = known["tokenizer.ggml.token_type"]
    return GGUF(cfg, _state(tensors, cfg, dtype), known["tokenizer.ggml.tokens"],
                known["tokenizer.ggml.merges"], [i for i, kind in enumerate(kinds) if kind == 3],
                known["tokenizer.ggml.pre"], known.get("tokenizer.chat_template", ""),
                known["tokenizer.ggml.eos_token_id"])


class _Fields:
    """The file's key-value part; a missing key is a DataError that names it."""

    def __init__(self, reader, file: str):
        self._fields, self._file = reader.fields, file

    def __getitem__(self, key: str):
        if key not in self._fields:
            raise DataError(f"has no entry {key!r}, which a Llama with a vocabulary needs.", file=self._file)
        return self._fields[key].contents()

    def get(self, key: str, default):
        """What a file may leave out."""
        return self[key] if key in self._fields else default


def _config(known: _Fields, tensors: set[str]) -> ModelConfig:
    llama = {name: known[f"llama.{key}"] for name, key in {
        "n_layers": "block_count", "d_model": "embedding_length", "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv", "d_ff": "feed_forward_length", "context": "context_length",
        "norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}.items()}
    return ModelConfig(**llama, head_dim=known.get("llama.attention.key_length", None),
                       vocab_size=len(known["tokenizer.ggml.tokens"]), tied_embeddings="output.weight" not in tensors,
                       name=known["general.name"])


OUTER = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
LAYER = {"attention_norm.weight": ("attn_norm",), "attention.qkv.weight": ("attn_q", "attn_k", "attn_v"),
         "attention.out.weight": ("attn_output",), "feed_forward_norm.weight": ("ffn_norm",),
         "feed_forward.gate_up.weight": ("ffn_gate", "ffn_up"), "feed_forward.down.weight": ("ffn_down",)}


def _check_names(found: set[str], cfg: ModelConfig, file: str) -> None:
    """DataError that lists every tensor that is missing and every one that is unknown."""
    wanted = {name for ours, name in OUTER.items() if ours != "head.weight" or not cfg.tied_embeddings}
    wanted |= {f"blk.{i}.{part}.weight" for i in range(cfg.n_layers) for parts in LAYER.values() for part in parts}
    wrong = [f"{name} is missing" for name in sorted(wanted - found)]
    wrong += [f"{name} is unknown" for name in sorted(found - wanted)]
    if wrong:
        raise DataError(f"the weights do not fit the configuration: {'; '.join(wrong)}.", file=file)


def _state(tensors: dict, cfg: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    def read(name: str) -> Tensor:
        values = dequantize(tensors[name].data, tensors[name].tensor_type)
        weight = (torch.from_numpy(values) if values.flags.writeable else torch.tensor(values)).to(dtype)
        heads = {"attn_q": cfg.n_heads, "attn_k": cfg.n_kv_heads}.get(name.split(".")[-2])
        return weight if heads is None else _halves(weight, heads)

    outer = dict(OUTER)
    if cfg.tied_embeddings:
        del outer["head.weight"]
    state = {ours: read(theirs) for ours, theirs in outer.items()}
    if cfg.tied_embeddings:
        state["head.weight"] = state["embedding.weight"]
    for i in range(cfg.n_layers):
        for ours, parts in LAYER.items():
            state[f"blocks.{i}.{ours}"] = torch.cat([read(f"blk.{i}.{part}.weight") for part in parts])
    return state


def _halves(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head from interleaved pairs, as GGUF has them for its rotary embedding, to two halves."""
    rows, width = weight.shape
    if rows % (2 * heads):
        raise BadInputError(f"{rows} rows do not make {heads} heads of even width.")
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
