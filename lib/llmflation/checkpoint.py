"""Weights on disk, in the layout of Hugging Face's Llama: `model.safetensors` and `config.json`, never a pickle.

`SHA256SUMS` beside them holds the checksum of the weights: a flipped bit loads without a word otherwise.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .errors import BadInputError, DataError

WEIGHTS, CONFIG, SUMS = "model.safetensors", "config.json", "SHA256SUMS"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save_checkpoint(folder, cfg: ModelConfig, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    """Write the weights `state` (of `Transformer.state_dict`) and their ModelConfig into `folder`; returns it.

    Each file is written beside its place and moved there when it is whole; until the new weights are in place, the
    checksums of old and new both count. So an interruption or a full disk leaves a checkpoint that loads. `dtype`
    converts the weights (torch.bfloat16 halves a float32 model).
    """
    if cfg.sliding_window is not None:
        raise BadInputError(f"{cfg.name or 'this model'} has a window of {cfg.sliding_window}, which this layout "
                            "cannot say; save its weights with a configuration without one.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.to(dtype or t.dtype).contiguous() for name, t in to_hugging_face(state, cfg).items()}
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    texts = {CONFIG: json.dumps(_hugging_face_config(cfg, kind), indent=2) + "\n"}
    write_weights(folder / WEIGHTS, tensors, {"format": "pt"}, SUMS, texts)
    return folder


def load_checkpoint(folder) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The ModelConfig and the weights of a checkpoint folder, ours or Hugging Face's, of the Llama family.

    The checksum is verified where there is one. DataError for a missing, truncated, altered or pickled file and
    for tensors that do not fit the configuration; one error names all differences.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLES] if folder.is_dir() else []
        remedy = (f"{pickles[0]} is a pickle, which could run any code: convert it to safetensors first." if pickles
                  else f"a checkpoint is a folder with {WEIGHTS} and {CONFIG}.")
        raise DataError(f"there is no {WEIGHTS} in {str(folder)!r}; {remedy}", file=path.name)
    cfg = _read_config(folder / CONFIG)
    return cfg, from_hugging_face(read_weights(path, SUMS)[0], cfg)


# Our names -> Hugging Face's; the two fused matrices are cut into their parts there.
_OUTER = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
          "head.weight": "lm_head.weight"}
_WHOLE = {"attention_norm.weight": "input_layernorm.weight", "attention.out.weight": "self_attn.o_proj.weight",
          "feed_forward_norm.weight": "post_attention_layernorm.weight",
          "feed_forward.down.weight": "mlp.down_proj.weight"}


def _fused(cfg: ModelConfig) -> dict[str, dict[str, int]]:
    """Our fused matrices: the names of their parts there, with the rows of each."""
    q, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    return {"attention.qkv.weight": {"self_attn.q_proj.weight": q, "self_attn.k_proj.weight": kv,
                                     "self_attn.v_proj.weight": kv},
            "feed_forward.gate_up.weight": {"mlp.gate_proj.weight": cfg.d_ff, "mlp.up_proj.weight": cfg.d_ff}}


def to_hugging_face(state: dict[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """The same weights under Hugging Face's names; a tied head is left out there."""
    tied = {"head.weight"} if cfg.tied_embeddings else set()
    made = {theirs: state[ours] for ours, theirs in _OUTER.items() if ours not in tied}
    for i in range(cfg.n_layers):
        for ours, theirs in _WHOLE.items():
            made[f"model.layers.{i}.{theirs}"] = state[f"blocks.{i}.{ours}"]
        for ours, parts in _fused(cfg).items():
            cut = state[f"blocks.{i}.{ours}"].split(list(parts.values()))
            made |= {f"model.layers.{i}.{name}": part for name, part in zip(parts, cut, strict=True)}
    return made


def from_hugging_face(tensors: dict[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's weights under our names. DataError, listing every missing, unknown and misshapen tensor."""
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if cfg.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    _check_shapes(tensors, cfg)
    made = {ours: tensors[theirs] for ours, theirs in _OUTER.items() if theirs in tensors}
    if cfg.tied_embeddings:
        made["head.weight"] = made["embedding.weight"]
    for i in range(cfg.n_layers):
        for ours, theirs in _WHOLE.items():
            made[f"blocks.{i}.{ours}"] = tensors[f"model.layers.{i}.{theirs}"]
        for ours, parts in _fused(cfg).items():
            made[f"blocks.{i}.{ours}"] = torch.cat([tensors[f"model.layers.{i}.{name}"] for name in parts])
    return made


def _check_shapes(tensors: dict[str, Tensor], cfg: ModelConfig) -> None:
    wanted = _shapes(cfg)
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted]
    wrong += [f"{name} is {tuple(t.shape)}, not {wanted[name]}" for name, t in tensors.items()
              if name in wanted and tuple(t.shape) != wanted[name]]
    if wrong:
        raise DataError(f"the weights do not fit the configuration: {'; '.join(wrong)}.", file=WEIGHTS)


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that Hugging Face's layout has for this architecture."""
    C, heads = cfg.d_model, cfg.n_heads * cfg.head_dim
    shapes = {"model.embed_tokens.weight": (cfg.vocab_size, C), "model.norm.weight": (C,)}
    if not cfg.tied_embeddings:
        shapes["lm_head.weight"] = (cfg.vocab_size, C)
    layer = {"input_layernorm.weight": (C,), "post_attention_layernorm.weight": (C,),
             "self_attn.o_proj.weight": (C, heads), "mlp.down_proj.weight": (C, cfg.d_ff)}
    for parts in _fused(cfg).values():
        layer |= {name: (rows, C) for name, rows in parts.items()}
    return shapes | {f"model.layers.{i}.{name}": shape for i in range(cfg.n_layers) for name, shape in layer.items()}


_FIELDS = {"n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
           "n_kv_heads": "num_key_value_heads", "d_ff": "intermediate_size", "vocab_size": "vocab_size",
           "context": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings", "norm_eps": "rms_norm_eps"}


def _hugging_face_config(cfg: ModelConfig, dtype: str) -> dict:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "head_dim": cfg.head_dim, "rope_theta": cfg.rope_theta,
            "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"}, "dtype": dtype,
            **{theirs: getattr(cfg, ours) for ours, theirs in _FIELDS.items()}}


def _read_config(path: Path) -> ModelConfig:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError:
        raise DataError(f"there is no {CONFIG} in {str(path.parent)!r}; a checkpoint needs one.", file=CONFIG) from None
    except ValueError as error:
        raise DataError(f"is no JSON ({error}); fetch it again.", file=CONFIG) from None
    if not isinstance(found, dict) or found.get("model_type") != "llama":
        kind = found.get("model_type") if isinstance(found, dict) else type(found).__name__
        raise DataError(f"model_type is {kind!r}; only the Llama family ('llama') can be read here.", file=CONFIG)
    if (activation := found.get("hidden_act", "silu")) != "silu":
        raise DataError(f"hidden_act is {activation!r}; only 'silu' can be built here.", file=CONFIG)
    rope = found.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise DataError(f"rope_parameters are {rope!r}, not names and values; fetch it again.", file=CONFIG)
    if scaled := (found.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)):
        raise DataError(f"the rotary embedding is scaled ({scaled}), which cannot be built yet.", file=CONFIG)
    try:
        known = {ours: found[theirs] for ours, theirs in _FIELDS.items() if theirs in found}
        return ModelConfig(**{"n_kv_heads": None, "norm_eps": 1e-6} | known, head_dim=found.get("head_dim"),
                           rope_theta=float(rope.get("rope_theta") or found.get("rope_theta") or 10_000.0))
    except (BadInputError, TypeError, ValueError) as error:
        raise DataError(f"describes no model that can be built: {error}", file=CONFIG) from None


def write_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], sums: str,
                  texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a safetensors file, and beside it `texts` by file name and the checksum into the file `sums`.

    An interruption at any step leaves the old weights or the new ones whole, with a checksum that counts for them.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, fresh, metadata=metadata)
        digests = [_sha256(fresh), *([_sha256(path)] if path.exists() else [])]
        write_text(path.with_name(sums), "".join(f"{digest}  {path.name}\n" for digest in digests))
        for name, text in texts.items():
            write_text(path.with_name(name), text)
        os.replace(fresh, path)
        write_text(path.with_name(sums), f"{digests[0]}  {path.name}\n")
    except SafetensorError as error:
        raise DataError(f"could not be written ({error}); the old one, if any, is as it was. Make room and try again.",
                        file=path.name) from None
    finally:
        fresh.unlink(missing_ok=True)


def read_weights(path: Path, sums: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. DataError if it cannot be read, or if it does not have the
    checksum in the file `sums` beside it, where there is one."""
    _verify(path, path.with_name(sums))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot be read ({error}); {path.stat().st_size} bytes were found. Fetch it again.",
                        file=path.name) from None


def _verify(path: Path, sums: Path) -> None:
    """Compare the weights with the checksum beside them, if there is one."""
    if sums.is_file():
        wanted = [line.split()[0] for line in sums.read_text("utf-8").splitlines() if line.strip()]
        found = _sha256(path)
        if found not in wanted:
            raise DataError(f"the checksum is {found[:12]}..., {sums.name} says "
                            f"{' or '.join(w[:12] for w in wanted)}...: the file was cut or changed on its way. "
                            "Fetch it again.", file=path.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there when it is whole."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        fresh.write_text(text, "utf-8", newline="\n")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
