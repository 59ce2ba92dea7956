"""AWQ (Lin et al. 2023): before rounding, make the columns that matter larger, and their inputs as much smaller.

A column that large inputs meet makes large errors. With a scale s for each channel, (W s)(x / s) is the same product;
but a column that is made larger by 2 is rounded, in a group whose step hardly changes, half as coarsely. The scales are
s = mean |x|^a, with the a from 0 (plain rounding) to 1 that moves the layer's output least; 1 / s is folded into what
makes x, so that the model runs no operation more.
Letters: N outputs and K inputs of a layer, H query heads and V key-value heads of width D.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import BadInputError, check_whole
from .calibration import Inputs, Stage, observed, output_error, shared_copy, walk
from .gptq import check_hessian
from .integer import quantize
from .tensor import checked_weight

LEAST = 1e-4  # of the largest channel's mean |x|: a channel that is always 0 counts as this


@dataclass(frozen=True, repr=False, eq=False)
class Found:
    """The scales (K,) that a search took, the power `a` that made them, and the output errors with and without them."""

    name: str
    scales: Tensor
    power: float
    error: float
    plain_error: float

    def __repr__(self) -> str:
        return f"{self.name}: |x|^{self.power:g}, error {self.error:.3g} instead of {self.plain_error:.3g}"


def search_scales(w: Tensor, inputs: Inputs, bits: int = 4, group_size: int | None = 32, *, points: int = 20,
                  symmetric: bool = True, clip: str | None = None, scale_dtype: torch.dtype = torch.float32,
                  name: str = "weight") -> Found:
    """Of the scales mean |x|^a with a = 0, 1/points ... 1, those with which rounding W s moves the output least.

    Rounding is `quantize`'s, with the same arguments. BadInputError for what cannot be quantized and for inputs of
    another width.
    """
    w = checked_weight(w, name)
    check_whole("points", points)
    if len(inputs.mean_abs) != w.shape[1]:
        raise BadInputError(f"inputs of {len(inputs.mean_abs)} channels do not belong to {name} {tuple(w.shape)}; "
                            f"allowed: {w.shape[1]}. Calibrate with the layer's own inputs.")
    check_hessian(inputs.hessian, w.shape[1], 0, name, tuple(w.shape))
    hessian, best, plain = inputs.hessian.float(), None, None
    for step in range(points + 1):
        scales = powers(inputs.mean_abs, step / points)
        rounded = quantize(w * scales, bits, group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype,
                           name=name)
        error = output_error(w, rounded.dequantize() / scales, hessian)
        plain = error if step == 0 else plain
        if best is None or error < best.error:
            best = Found(name, scales, step / points, error, plain)
    return best


def powers(mean_abs: Tensor, a: float) -> Tensor:
    """mean |x|^a for each channel, float32, such that the largest and the smallest multiply to 1; all 1 for a = 0.

    >>> powers(torch.tensor([1.0, 4.0, 16.0]), 0.5)
    tensor([0.5000, 1.0000, 2.0000])
    """
    most = mean_abs.max()
    if most == 0:
        return torch.ones(len(mean_abs))
    scales = mean_abs.clamp(min=LEAST * most).pow(a)
    return (scales / (scales.max() * scales.min()).sqrt()).float()


@dataclass(frozen=True)
class Fold:
    """Where a layer's scales go: its columns times s, and what makes its inputs over s.

    `before` names that parameter; its rows from `start` on make the inputs, in their order. Where several inputs come
    from one row, as those of all query heads that share a value head, `shared` is (V, H / V, D).
    """

    layer: str
    before: str
    start: int = 0
    shared: tuple[int, int, int] | None = None


def folds(block: nn.Module) -> list[Fold]:
    """What can be scaled in a block of this library's models, by the names of its parts; other layers stay as they are.

    Between norm and product, up rows and down, values and the attention's output nothing but sums and gates happen to
    a channel: a factor passes through them.
    """
    parts = dict(block.named_parameters())
    found = [Fold("attention.qkv", "attention_norm.weight"), Fold("feed_forward.gate_up", "feed_forward_norm.weight")]
    if "feed_forward.down.weight" in parts:
        found.append(Fold("feed_forward.down", "feed_forward.gate_up.weight",
                          parts["feed_forward.down.weight"].shape[1]))  # the gates' rows come first
    if "attention.qkv.weight" in parts:
        a = block.attention
        found.append(Fold("attention.out", "attention.qkv.weight", (a.n_heads + a.n_kv_heads) * a.head_dim,
                          (a.n_kv_heads, a.n_heads // a.n_kv_heads, a.head_dim)))  # queries' and keys' rows come first
    return [fold for fold in found if {f"{fold.layer}.weight", fold.before} <= parts.keys()]


def scaled(model: nn.Module, tokens, bits: int = 4, group_size: int | None = 32, *,
           watch: Callable[[Found], None] = lambda found: None, **how) -> nn.Module:
    """A model that computes the same as `model` and, rounded to `bits` bits in these groups, loses less.

    Each layer of `folds` in each block is scaled for what flows into it when the model reads the tokens (as in
    `collect`); the head stays as it is. `how` is what `search_scales` takes besides, and `watch` is told of each layer.
    The given model is not changed. BadInputError as in `collect`, and for a model without such blocks.
    """
    made, done = shared_copy(model), 0
    with torch.no_grad():
        for stage in walk(model, tokens):
            wanted = {f"{stage.name}.{fold.layer}": fold for fold in (folds(stage.module) if stage.name else ())}
            layers = {name: layer for name, layer in stage.layers().items() if name in wanted}
            for name, inputs in _flows(stage, layers).items():
                fold = wanted[name]
                if fold.shared:
                    inputs = replace(inputs, mean_abs=_alike(inputs.mean_abs, fold.shared))
                found = search_scales(layers[name].weight, inputs, bits, group_size, name=name, **how)
                _apply(made.get_submodule(stage.name), fold, found.scales)
                watch(found)
                done += 1
    if not done:
        raise BadInputError(f"{type(model).__name__} has no layer that can be scaled; allowed: a model with blocks "
                            "whose parts are named like those of Transformer.")
    return made


def _flows(stage: Stage, layers: dict[str, nn.Module]) -> dict[str, Inputs]:
    if not layers:
        return {}
    with observed(layers) as observers:
        stage.run()
    return {name: observer.inputs() for name, observer in observers.items()}


def _alike(sizes: Tensor, shared: tuple[int, int, int]) -> Tensor:
    """The channels' sizes (K,), each the mean of all that share its row: only one scale fits them all."""
    return sizes.view(shared).mean(1, keepdim=True).expand(shared).flatten()


def _apply(block: nn.Module, fold: Fold, scales: Tensor) -> None:
    layer = f"{fold.layer}.weight"
    _set(block, layer, block.get_parameter(layer).float() * scales)
    each = scales.view(fold.shared)[:, 0].flatten() if fold.shared else scales
    before = block.get_parameter(fold.before).float().clone()
    before[fold.start :] /= each if before.ndim == 1 else each[:, None]
    _set(block, fold.before, before)


def _set(block: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = block.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value.to(getattr(module, leaf).dtype), requires_grad=False))
