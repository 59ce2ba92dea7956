"""A whole model in few bits: the schemes by name, and the model whose linear layers are quantized by one of them."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn

from ..errors import BadInputError, bad_input, unknown_name
from ..linear import Linear
from .calibration import linear_layers
from .floats import fp8, mxfp4, nf4
from .ggml import q4_0, q8_0
from .integer import quantize
from .linear import QuantizedEmbedding, QuantizedLinear
from .tensor import QuantizedTensor

HALF = {"scale_dtype": torch.bfloat16}  # what the int4 and the int8 weight-only kernels read
GROUP = 32


@dataclass(frozen=True)
class Scheme:
    """A way to quantize a model: each linear layer's weight by `weight(w, name=...)`.

    With `activation_bits` activations are rounded, too. Schemes that learn from calibration tokens have `prepare`,
    (model, tokens) to a float model that computes the same and loses less, or `layers`, (model, tokens, names) to the
    quantized weights by name.
    """

    name: str
    about: str
    source: str
    weight: Callable[..., QuantizedTensor]
    activation_bits: int | None = None
    prepare: Callable[[nn.Module, object], nn.Module] | None = None
    layers: Callable[[nn.Module, object, Iterable[str]], dict[str, QuantizedTensor]] | None = None

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration tokens."""
        return self.prepare is not None or self.layers is not None


def _gptq(model: nn.Module, tokens, names: Iterable[str]) -> dict[str, QuantizedTensor]:
    from .gptq import quantize_layers

    return quantize_layers(model, tokens, 4, GROUP, names, **HALF)


def _awq(model: nn.Module, tokens) -> nn.Module:
    from .awq import scaled

    return scaled(model, tokens, 4, GROUP, **HALF)


_INT4 = partial(quantize, bits=4, group_size=GROUP, **HALF)
_PLAIN = "round to nearest"
SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (
    Scheme("int8", "8 bits, a scale for each row; activations in 8 bits, too (W8A8)", "Dettmers et al. 2022",
           partial(quantize, bits=8), activation_bits=8),
    Scheme("int8-weight-only", "8 bits, a scale for each row; activations as they are", _PLAIN,
           partial(quantize, bits=8, **HALF)),
    Scheme("int4", f"4 bits, symmetric, groups of {GROUP}", _PLAIN, _INT4),
    Scheme("int4-asymmetric", f"4 bits with zero points, groups of {GROUP}", _PLAIN, partial(_INT4, symmetric=False)),
    Scheme("int4-channel", "4 bits, a scale for each row", _PLAIN, partial(quantize, bits=4)),
    Scheme("int3", f"3 bits, groups of {GROUP}", _PLAIN, partial(quantize, bits=3, group_size=GROUP, **HALF)),
    Scheme("int2", f"2 bits, groups of {GROUP}", _PLAIN, partial(quantize, bits=2, group_size=GROUP, **HALF)),
    Scheme("nf4", "quantiles of a normal distribution, groups of 64", "Dettmers et al. 2023", nf4),
    Scheme("fp8", "E4M3, a scale for each row", "Micikevicius et al. 2022", fp8),
    Scheme("mxfp4", "E2M1, a power of two for each 32", "OCP Microscaling Formats 1.0, 2023", mxfp4),
    Scheme("q8_0", "GGUF's blocks of 32 in 8 bits", "ggml", q8_0),
    Scheme("q4_0", "GGUF's blocks of 32 in 4 bits", "ggml", q4_0),
    Scheme("gptq-int4", "int4, later columns make up for earlier ones' errors", "Frantar et al. 2022", _INT4,
           layers=_gptq),
    Scheme("awq-int4", "int4, columns that matter made larger before", "Lin et al. 2023", _INT4, prepare=_awq),
)}


def quantize_model(model: nn.Module, scheme: str | Scheme, *, skip: Iterable[str] = (), calibration=None) -> nn.Module:
    """A model whose linear layers are quantized by a scheme, a name of SCHEMES or one of your own.

    The given model stays as it is; what is not quantized is shared with it. `skip` names layers that stay as they are,
    also by pattern: "head", "blocks.0", "*.down". An embedding that is tied to a quantized head reads its rows there.
    `calibration` is the tokens for schemes that need them, others leave it alone. UnknownNameError for a scheme or a
    layer that is not there, BadInputError for a model that is quantized already, a weight that cannot be, or missing
    calibration: then nothing has changed.
    """
    scheme = scheme if isinstance(scheme, Scheme) else _scheme(scheme)
    skip = [skip] if isinstance(skip, str) else list(skip) if isinstance(skip, Iterable) else skip
    if not isinstance(skip, list) or any(not isinstance(pattern, str) for pattern in skip):
        raise bad_input("skip", skip, "a layer's name or pattern, or several")
    names = _chosen(model, skip)
    if scheme.calibrated and calibration is None:
        raise bad_input("calibration", None, f"a few thousand tokens that {scheme.name} learns from",
                        "Give token ids (B, T), such as the model is going to read.")
    if scheme.layers is not None:
        return with_quantized(model, scheme.layers(model, calibration, names), scheme.activation_bits)
    source = model if scheme.prepare is None else scheme.prepare(model, calibration)
    made = {name: scheme.weight(source.get_submodule(name).weight, name=name) for name in names}
    return with_quantized(source, made, scheme.activation_bits)


def with_quantized(model: nn.Module, tensors: Mapping[str, QuantizedTensor],
                   activation_bits: int | None = None) -> nn.Module:
    """The model with these quantized weights in place of the linear layers of those names; all else is shared.

    BadInputError for a weight of another shape, UnknownNameError for a name that is no linear layer's.
    """
    layers = unquantized_layers(model)
    for name, q in tensors.items():
        if name not in layers:
            raise unknown_name("linear layer", name, layers)
        if (wanted := tuple(layers[name].weight.shape)) != tuple(q.shape):
            raise BadInputError(f"{name} is {wanted}, the quantized weight {tuple(q.shape)}; allowed: the same shape.")
    # What deepcopy finds in its memo it takes for copied: tensors are shared, quantized layers put in their places.
    memo = {id(buffer): buffer for buffer in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, q in tensors.items():
        layer = layers[name]
        table = tables.get(id(layer.weight))
        memo[id(layer)] = made = QuantizedLinear.of(q, activation_bits, by_row=table is not None)
        if table is not None:
            memo[id(table)] = QuantizedEmbedding(made, layer.weight.dtype)
    return deepcopy(model, memo).eval()


def unquantized_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers that can be quantized, by name. BadInputError for a model that has none, or has quantized ones."""
    if not isinstance(model, nn.Module):
        raise bad_input("model", type(model).__name__, "a Transformer, such as load_toy() or load_real_model().model")
    for name, layer in quantized_layers(model).items():
        raise BadInputError(f"{name or 'the model'} is already {layer.format}; quantize the model that it was made "
                            "from, so that errors do not add up.")
    if not (found := linear_layers(model)):
        raise BadInputError(f"{type(model).__name__} has no llmflation.linear.Linear; nothing can be quantized.")
    return found


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def dequantized(model: nn.Module) -> nn.Module:
    """The model with each quantized weight as the floats that it stands for: as good, as large and as fast as floats.

    Activations are not rounded. All that was not quantized is shared.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    tables = {id(m.head): m for m in model.modules() if isinstance(m, QuantizedEmbedding)}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    for layer in quantized_layers(model).values():
        memo[id(layer)] = made = Linear.of(layer.tensor().dequantize(dtype))
        if (table := tables.get(id(layer))) is not None:
            memo[id(table)] = nn.Embedding.from_pretrained(made.weight)
            memo[id(table)].weight = made.weight
    return deepcopy(model, memo)


def model_bytes(model: nn.Module) -> int:
    """Bytes that a model's weights hold, each once, however often it is used. A kernel's second copy of a float weight
    (`linear_path` "packed") is not among them, nor are the tables of angles.
    """
    floats = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(floats.values()) + sum(layer.nbytes for layer in quantized_layers(model).values())


def bits_per_weight(model: nn.Module) -> float:
    """Bits that a model holds for each of its weights: those that stay floats, scales and zero points among them."""
    floats = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}
    quantized = (layer.in_features * layer.out_features for layer in quantized_layers(model).values())
    return 8 * model_bytes(model) / (sum(floats.values()) + sum(quantized))


def _scheme(name: object) -> Scheme:
    if not isinstance(name, str) or name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return SCHEMES[name]


def _chosen(model: nn.Module, skip: Iterable[str]) -> list[str]:
    """The names of all layers but those to skip, each of which must be there."""
    names, skipped = list(unquantized_layers(model)), set()
    for pattern in skip:
        met = {n for n in names if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not met:
            raise unknown_name("layer", pattern, names)
        skipped |= met
    return [name for name in names if name not in skipped]
