"""GPTQ (Frantar et al. 2022): round a weight column by column, and let the columns to come make up for each error.

Rounding moves a row w by d, and its output error is d H d^T. If column j is moved, the best the later columns can do is
to move along row j of H^-1; with H^-1 = U^T U, U upper triangular, that is row j of U, with all earlier columns done.
Letters: N rows and K columns of a weight, S columns in a group.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import BadInputError, bad_input, check_whole, is_number
from .calibration import Inputs, Stage, batches, linear_layers, observed, output_error, walk
from .integer import quantize, round_to
from .tensor import QuantizedTensor, assemble, checked_weight, grouped

BLOCK = 128  # columns whose errors are handed on to the rest of the row together: one large product, not many small


def gptq(w: Tensor, hessian: Tensor, bits: int = 4, group_size: int | None = 32, damping: float = 0.01, *,
         symmetric: bool = True, clip: str | None = None, scale_dtype: torch.dtype = torch.float32, block: int = BLOCK,
         name: str = "weight") -> QuantizedTensor:
    """A weight (N, K) in whole numbers of `bits` bits, such that its output on inputs with this Hessian changes least.

    `hessian` (K, K) is `Inputs.hessian`, or any multiple of it. A share `damping` of its diagonal's mean is added to
    the diagonal. Steps and zero points are `quantize`'s, taken for each group when its turn comes: after all that
    earlier columns have passed on to it. A block therefore never reaches beyond a group. A column whose input was
    always 0 becomes 0. BadInputError for what cannot be quantized and for a singular Hessian.

    >>> gptq(torch.tensor([[0.6, -1.4, 0.3, 0.0]]), torch.eye(4), group_size=4).dequantize()
    tensor([[ 0.6000, -1.4000,  0.4000,  0.0000]])
    """
    left = checked_weight(w, name).double().T.clone()  # (K, N): what is yet to be rounded; a column of w lies in a row
    check_hessian(hessian, left.shape[0], damping, name, tuple(w.shape))
    grouped(w, group_size, name)
    check_whole("block", block)
    dead = dead_columns(hessian)
    left[dead] = 0
    factor = inverse_factor(hessian, dead, damping, name)
    codes, groups, size = torch.empty(left.shape, dtype=torch.uint8), [], group_size or len(left)
    for start in range(0, len(left), size):
        columns = left[start : start + size]
        group = quantize(columns.T.float(), bits, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype, name=name)
        groups.append(group)
        for first in range(start, start + size, block):
            last = min(first + block, start + size)
            codes[first:last], errors = _round(left[first:last], factor[first:last, first:last], group)
            left[last:] -= factor[first:last, last:].T @ errors
    scales = torch.stack([g.scales for g in groups], dim=1)  # (N, G, 1)
    zeros = None if symmetric else torch.stack([g.zeros for g in groups], dim=1)
    return assemble(group.format, codes.T.reshape(len(w), -1, size), group.levels, scales, zeros, tuple(w.shape), bits)


def _round(columns: Tensor, factor: Tensor, group: QuantizedTensor) -> tuple[Tensor, Tensor]:
    """Codes (B, N) of B columns, and their errors over U's diagonal, (B, N), for those that come after them.

    `columns` (B, N) are moved; factor (B, B) is their part of U.
    """
    codes, errors = torch.empty(columns.shape, dtype=torch.uint8), torch.empty_like(columns)
    scale, zero = group.scales, group.zeros
    for j, column in enumerate(columns):
        zeros = None if zero is None else zero[..., None]
        codes[j] = round_to(column.float()[:, None, None], scale[..., None], zeros, group.bits).flatten()
        level = group.levels[codes[j].int()] - (0 if zero is None else zero[:, 0].float())
        errors[j] = (column - level * scale[:, 0].float()) / factor[j, j]
        columns[j + 1 :] -= torch.outer(factor[j, j + 1 :], errors[j])
    return codes, errors


def dead_columns(hessian: Tensor) -> Tensor:
    """Which columns' input was always 0, (K,): nothing is known of them, and no output depended on them."""
    return hessian.diagonal() == 0


def inverse_factor(hessian: Tensor, dead: Tensor, damping: float, name: str = "weight") -> Tensor:
    """U (K, K), upper triangular, float64: U^T U is the inverse of the damped Hessian. BadInputError if there is none.

    A column that follows from those before it leaves nothing under the root when its turn comes (Cholesky).
    """
    h, live = hessian.double().clone(), ~dead
    mean = float(h.diagonal()[live].mean()) if bool(live.any()) else 1.0
    h.diagonal()[dead] = mean
    h.diagonal().add_(damping * mean)
    lower, failed = torch.linalg.cholesky_ex(h)
    noise = 1e-15 if damping else torch.finfo(hessian.dtype).eps ** 0.5  # what is left of a column by rounding alone
    small = lower.diagonal().square() <= noise * h.diagonal()
    small[int(failed) - 1 if failed else len(h) :] = bool(failed)  # beyond it nothing was computed
    if bool(small.any()):
        raise _singular(int(small.nonzero()[0]), damping, name)
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise _singular(int(failed) - 1, damping, name)
    return upper


def _singular(column: int, damping: float, name: str) -> BadInputError:
    return BadInputError(f"{name}: Hessian is singular at column {column}; raise damping, now {damping:g}, or give "
                         f"more tokens: that input follows from the {column} before it, or all but follows.")


def check_hessian(hessian: Tensor, k: int, damping: float, name: str, shape: tuple) -> None:
    """BadInputError unless it is a (K, K) matrix of finite floats, and the damping a number of 0 or more."""
    if not is_number(damping) or damping < 0:
        raise bad_input("damping", damping, "a number of 0 or more", "0.01 is usual.")
    if not isinstance(hessian, Tensor) or not hessian.dtype.is_floating_point:
        raise bad_input(f"{name}'s Hessian", hessian, "a tensor of floats")
    if hessian.shape != (k, k):
        raise BadInputError(f"the Hessian {tuple(hessian.shape)} does not belong to {name} {shape}; allowed: {(k, k)}. "
                            "Calibrate with the layer's own inputs.")
    if not bool(torch.isfinite(hessian).all()):
        raise BadInputError(f"{name}'s Hessian has {int(hessian.isnan().sum())} NaN and {int(hessian.isinf().sum())} "
                            "infinite values; nothing was quantized. Look at the activations that it was made from.")


@dataclass(frozen=True)
class Report:
    """How a layer fared: `n` tokens seen, `dead` columns set to 0, `error` as by `output_error`, on these tokens."""

    name: str
    n: int
    dead: int
    error: float


def quantize_layers(model: nn.Module, tokens, bits: int = 4, group_size: int | None = 32,
                    names: Iterable[str] | None = None, *, damping: float = 0.01,
                    watch: Callable[[Report], None] = lambda report: None, **how) -> dict[str, QuantizedTensor]:
    """GPTQ for each linear layer of a model, or those of `names`: by name, in the order of the model's blocks.

    Each layer's Hessian is that of what flows into it once all before it are quantized: later layers so make up for
    earlier ones' errors, too. Tokens as in `collect`; `how` is what `gptq` takes besides. `watch` is told of each
    layer. The model is never changed. BadInputError as in `collect` and `gptq`, and for fewer tokens than a layer has
    inputs where nothing damps.
    """
    wanted, made = linear_layers(model, names), {}
    if damping == 0:
        _check_enough(sum(part.numel() for part in batches(tokens)), wanted)
    with torch.no_grad():
        for stage in walk(model, tokens):
            for name, layer in stage.layers().items():
                if name not in wanted:
                    continue
                inputs = _seen(stage, name, layer)
                w = layer.weight
                made[name] = gptq(w, inputs.hessian, bits, group_size, damping, name=name, **how)
                back = made[name].dequantize(w.dtype)
                layer.weight = nn.Parameter(back, requires_grad=False)
                dead = int(dead_columns(inputs.hessian).sum())
                watch(Report(name, inputs.n, dead, output_error(w, back, inputs.hessian)))
    return made


def _seen(stage: Stage, name: str, layer: nn.Module) -> Inputs:
    with observed({name: layer}, stop=True) as observers:  # what comes behind the layer need not run
        stage.run()
    return observers[name].inputs()


def _check_enough(n: int, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if n < (width := layer.weight.shape[1]):
            raise BadInputError(f"{name} has {width:,} inputs and there are {n:,} calibration tokens, so that its "
                                f"Hessian is singular; give {width:,} tokens at least, or a damping above 0.")
