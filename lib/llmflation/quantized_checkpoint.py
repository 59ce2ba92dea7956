"""A quantized model on disk: codes, scales and zeros as they are held, so that nothing is rounded a second time.

One safetensors file has it all: `<layer>.codes`, `<layer>.scales` and perhaps `<layer>.zeros` of each quantized layer,
`levels.<format>` once for all layers of a format, every other weight under its own name, and a JSON in the header that
says what they are: so one move replaces the whole, and no description can stand beside the weights of another model.
The checksum lies beside it.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import read_weights, write_weights
from .config import ModelConfig
from .errors import BadInputError, DataError, bad_input
from .linear import Linear
from .model import Transformer
from .quant.model import quantized_layers, with_quantized
from .quant.tensor import QuantizedTensor

WEIGHTS, SUMS, KEY = "quantized.safetensors", "quantized.sha256", "llmflation"
VERSION = 1
_CONFIG = [field.name for field in fields(ModelConfig) if field.name not in ("source", "published")]


def save_quantized(folder, model: Transformer) -> Path:
    """Write a model that `quantize_model` has made into `folder`; returns it. `load_quantized` reads it back.

    The file is written beside its place and moved there when it is whole. BadInputError for a model without a quantized
    layer, or whose layers round their activations differently.
    """
    layers = quantized_layers(model) if isinstance(model, torch.nn.Module) else {}
    if not isinstance(model, Transformer) or not layers:
        raise bad_input("model", type(model).__name__, "a Transformer that quantize_model has made",
                        "save_checkpoint saves one in floats.")
    if len(bits := {layer.activation_bits for layer in layers.values()}) > 1:
        raise BadInputError(f"the layers' activation_bits are {sorted(map(str, bits))}; allowed: the same for all.")
    quantized = {name: layer.tensor() for name, layer in layers.items()}
    tensors, table = _flat(quantized)
    floats = {name: w for name, w in model.state_dict().items() if isinstance(w, Tensor)}
    if model.cfg.tied_embeddings and "embedding.weight" in floats:
        floats.pop("head.weight", None)
    about = {"version": VERSION, "model": {key: value for key, value in asdict(model.cfg).items() if key in _CONFIG},
             "dtype": str(model.embedding.weight.dtype).removeprefix("torch."), "activation_bits": bits.pop(),
             "skipped": [name for name, module in model.named_modules() if isinstance(module, Linear)],
             "layers": table, "floats": {name: list(w.shape) for name, w in floats.items()}}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors |= {name: w.detach().contiguous() for name, w in floats.items()}
    write_weights(folder / WEIGHTS, tensors, {"format": "pt", KEY: json.dumps(about)}, SUMS)
    return folder


def load_quantized(folder) -> Transformer:
    """The model that `save_quantized` wrote, with the very same codes and scales, on the kernels of this machine.

    DataError for a missing, truncated or altered file, and for tensors that do not fit the description: one error names
    all differences.
    """
    folder = Path(folder)
    for name in (WEIGHTS, SUMS):
        if not (folder / name).is_file():
            raise DataError(f"there is no {name} in {str(folder)!r}; a quantized checkpoint is a folder with {WEIGHTS} "
                            f"and {SUMS}. load_checkpoint reads one in floats.", file=name)
    tensors, metadata = read_weights(folder / WEIGHTS, SUMS)
    about = _described(metadata)
    try:
        cfg, dtype = ModelConfig(**about["model"]), getattr(torch, about["dtype"])
        _check_tensors(tensors, about)
        quantized = {name: _tensor(name, part, tensors) for name, part in about["layers"].items()}
        floats = {name: tensors[name] for name in about["floats"]}
        return _built(cfg, floats, quantized, dtype, about["activation_bits"])
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())  # PyTorch's are of many lines
        raise DataError(f"describes no model that can be built ({type(error).__name__}: {said}). Save it again.",
                        file=WEIGHTS) from None


def _flat(quantized: dict[str, QuantizedTensor]) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """The tensors to be saved, and for each layer what they do not say. Layers of a format share its levels."""
    tensors, table = {}, {}
    for name, q in quantized.items():
        parts = {"codes": q.codes, "scales": q.scales} | ({} if q.zeros is None else {"zeros": q.zeros})
        tensors |= {f"{name}.{part}": t.contiguous() for part, t in parts.items()}
        levels = f"levels.{q.format}"
        tensors.setdefault(levels, q.levels.clone())
        if not _same(tensors[levels], q.levels):
            levels = f"{name}.levels"  # a table of its own
            tensors[levels] = q.levels.clone()
        table[name] = {"format": q.format, "bits": q.bits, "shape": list(q.shape), "levels": levels,
                       "parts": {part: [str(t.dtype), *t.shape] for part, t in parts.items()}}
    return tensors, table


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tables of levels are equal; FP8 has a code that is NaN, and it is equal to itself here."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def _described(metadata: dict[str, str]) -> dict:
    try:
        about = json.loads(metadata[KEY])
    except (KeyError, ValueError):
        raise DataError(f"has no description of its layers under {KEY!r}; save_quantized writes one.",
                        file=WEIGHTS) from None
    if not isinstance(about, dict) or about.get("version") != VERSION:
        version = about.get("version") if isinstance(about, dict) else None
        raise DataError(f"is of version {version}; only {VERSION} can be read here.", file=WEIGHTS)
    return about


def _check_tensors(tensors: dict[str, Tensor], about: dict) -> None:
    """DataError that lists every missing, unknown and misshapen tensor."""
    wanted = {name: tuple(shape) for name, shape in about["floats"].items()}
    for name, layer in about["layers"].items():
        wanted |= {f"{name}.{part}": tuple(shape) for part, (_, *shape) in layer["parts"].items()}
        wanted[layer["levels"]] = (2 ** layer["bits"],)
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted]
    wrong += [f"{name} is {tuple(t.shape)}, not {wanted[name]}" for name, t in tensors.items()
              if name in wanted and tuple(t.shape) != wanted[name]]
    for name, layer in about["layers"].items():
        wrong += [f"{name}.{part} is {t.dtype}, not {kind}" for part, (kind, *_) in layer["parts"].items()
                  if (t := tensors.get(f"{name}.{part}")) is not None and str(t.dtype) != kind]
    if wrong:
        raise DataError(f"the tensors do not fit their description: {'; '.join(wrong)}.", file=WEIGHTS)


def _tensor(name: str, part: dict, tensors: dict[str, Tensor]) -> QuantizedTensor:
    zeros = tensors[f"{name}.zeros"] if "zeros" in part["parts"] else None
    return QuantizedTensor(part["format"], tensors[f"{name}.codes"], tensors[part["levels"]], tensors[f"{name}.scales"],
                           zeros, tuple(part["shape"]), part["bits"])


def _built(cfg: ModelConfig, floats: dict[str, Tensor], quantized: dict[str, QuantizedTensor], dtype: torch.dtype,
           activation_bits: int | None) -> Transformer:
    """The model in which quantized weights first have a place without memory, and then their layers."""
    places = {f"{name}.weight": torch.empty(q.shape, dtype=dtype, device="meta") for name, q in quantized.items()}
    state = floats | places
    if cfg.tied_embeddings:
        state.setdefault("embedding.weight", state.get("head.weight"))
        state.setdefault("head.weight", state["embedding.weight"])
    return with_quantized(Transformer.of(cfg, state), quantized, activation_bits)
