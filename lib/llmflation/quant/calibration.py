"""What flows into each layer while a model reads calibration tokens, and how a rounded weight changes what comes out.

A layer's output error needs no activations, only their products summed over tokens: with D = W - W_rounded it is
sum |D x|^2 = trace(D (sum x x^T) D^T). So each batch is added to a sum and forgotten.
Letters: N outputs and K inputs of a layer, n tokens, C width of the model.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from ..errors import BadInputError, bad_input, unknown_name
from ..linear import Linear

TOKENS_AT_ONCE = 1024  # of a batch: bounds the memory


@dataclass(frozen=True, repr=False, eq=False)
class Inputs:
    """What flowed into one layer: `n` tokens; `hessian` = 2/n sum x x^T, (K, K); `mean_abs` = mean |x|, (K,).

    Both float64. The Hessian is that of a row's squared output error, averaged over tokens; all rows share it.
    """

    n: int
    hessian: Tensor
    mean_abs: Tensor

    def __repr__(self) -> str:
        return f"{self.n:,} tokens of {len(self.mean_abs):,} channels"


class Observer:
    """Sums over the vectors (..., K) that it is shown, in float64: a singular Hessian can be told from noise."""

    def __init__(self, name: str):
        self.name, self.n, self._products, self._sizes = name, 0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """BadInputError, naming the layer, for NaN and infinite activations."""
        wide = x.detach().reshape(-1, x.shape[-1]).double()
        broken = ~torch.isfinite(wide).all(0)
        if bool(broken.any()):
            raise BadInputError(f"NaN or infinite activations flow into {self.name}, in {int(broken.sum())} of its "
                                f"{len(broken)} channels; nothing was quantized. Look for the layer that made them.")
        self.n += len(wide)
        self._products = self._products + wide.T @ wide
        self._sizes = self._sizes + wide.abs().sum(0)

    def inputs(self) -> Inputs:
        """The sums so far, as averages; BadInputError if nothing came."""
        if not self.n:
            raise BadInputError(f"0 calibration tokens flowed into {self.name}; allowed: layers that the model calls.")
        return Inputs(self.n, self._products * (2 / self.n), self._sizes / self.n)


def collect(model: nn.Module, tokens, names: Iterable[str] | None = None) -> dict[str, Inputs]:
    """What flows into each linear layer, or into those of `names`, while the model reads the tokens.

    Tokens: lists of ids, each read on its own, or whole numbers (B, T). A layer's sums take 8 K^2 bytes.
    BadInputError for 0 tokens and for activations that are no numbers, UnknownNameError for a layer that is not there.
    """
    watched, parts = shared_copy(model), batches(tokens)
    with torch.no_grad(), observed(linear_layers(watched, names)) as observers:
        for part in parts:
            watched(part)
    return {name: observer.inputs() for name, observer in observers.items()}


class Enough(Exception):
    """Ends a forward pass early, where all is known that was asked."""


@contextmanager
def observed(layers: dict[str, Linear], *, stop: bool = False) -> Iterator[dict[str, Observer]]:
    """While it lasts, an Observer for each layer is shown what flows in; with `stop` the pass then ends: Enough."""
    observers = {name: Observer(name) for name in layers}

    def show(observer: Observer, _layer: nn.Module, args: tuple) -> None:
        observer.add(args[0])
        if stop:
            raise Enough

    hooks = [layer.register_forward_pre_hook(partial(show, observers[name])) for name, layer in layers.items()]
    try:
        yield observers
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, repr=False, eq=False)
class Stage:
    """A part of a model that all calibration tokens have reached.

    `name` is "blocks.3" or, for all that is outside of blocks, "". `module` may be changed. `run` sends all tokens
    through it, as it is now.
    """

    name: str
    module: nn.Module
    run: Callable[[], list[Tensor]]

    def layers(self) -> dict[str, Linear]:
        """The linear layers inside, under the names that they have in the whole model."""
        return {f"{self.name}.{name}".strip("."): layer for name, layer in linear_layers(self.module).items()}


def walk(model: nn.Module, tokens) -> Iterator[Stage]:
    """The stages of a model: each block of `model.blocks` in order, then the rest. Use it inside of `torch.no_grad`.

    What is changed in a stage changes what the later ones are given, and never the model: this walks through a copy
    that shares its tensors, and lets go of each block behind it. Held are the vectors of all tokens between two
    blocks, n C, so that a block need not run again for each later one.
    """
    copy, parts = shared_copy(model), batches(tokens)
    blocks = list(getattr(copy, "blocks", ()))
    places = [_Place() for _ in blocks]
    whole = partial(_through, copy, [(part, (), {}) for part in parts])
    if blocks:
        copy.blocks = nn.ModuleList(places)
        places[-1].ends = True
        whole()
        held = [x for x, _, _ in places[0].calls]
    for i, place in enumerate(places):
        calls = [(x, args, named) for x, (_, args, named) in zip(held, place.calls, strict=True)]
        block, blocks[i] = blocks[i], None
        stage = Stage(f"blocks.{i}", block, partial(_through, block, calls))
        yield stage
        held = stage.run()

    def rest() -> list[Tensor]:
        if blocks:
            places[-1].answers = iter(held)
        return whole()

    yield Stage("", copy, rest)


class _Place(nn.Module):
    """Stands where a block was: notes how it is called and hands on what it is given, or what it is told to."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []
        self.answers: Iterator[Tensor] | None = None
        self.ends = False

    def forward(self, x: Tensor, *args, **named) -> Tensor:
        if self.answers is not None:
            return next(self.answers)
        self.calls.append((x, args, named))
        if self.ends:
            raise Enough
        return x


def _through(module: nn.Module, calls: list[tuple]) -> list[Tensor]:
    made = []
    for x, args, named in calls:
        with suppress(Enough):
            made.append(module(x, *args, **named))
    return made


def output_error(w: Tensor, made: Tensor, hessian: Tensor) -> float:
    """How far `made` (N, K) in place of `w` moves the output: the squared error's share of the squared output.

    >>> output_error(torch.ones(2, 3), torch.tensor([[1.0, 1, 1], [1, 1, 0]]), torch.eye(3))
    0.16666666666666666
    """
    w, made = w.detach().to(hessian.dtype), made.detach().to(hessian.dtype)
    error, whole = (float((part @ hessian * part).sum()) for part in (w - made, w))
    return error / whole if error else 0.0


def linear_layers(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Linear]:
    """A model's linear layers by name, all or those of `names`; UnknownNameError for a name that is none of theirs."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    if names is None:
        return found
    wanted = {names} if isinstance(names, str) else set(names)
    if missing := sorted(wanted - found.keys()):
        raise unknown_name("linear layer", missing[0], found)
    return {name: layer for name, layer in found.items() if name in wanted}


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a model whose modules are its own, and whose tensors are the model's: to be replaced, never written."""
    tensors = chain(model.parameters(), model.buffers())
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def batches(tokens) -> list[Tensor]:
    """The tokens as batches (B, T) without padding, in the order given but for lists of one length, which go together.

    BadInputError for 0 tokens and for what is no token id.
    """
    if isinstance(tokens, Tensor):
        if tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise BadInputError(f"the calibration tokens are {tokens.dtype} {tuple(tokens.shape)}; allowed: whole "
                                "numbers (B, T), or lists of ids.")
        alike = {tokens.shape[1]: tokens}
    else:
        alike = {length: torch.tensor(rows) for length, rows in _by_length(tokens).items()}
    if not sum(rows.numel() for rows in alike.values()):
        raise BadInputError("there are 0 calibration tokens; give a few thousand, such as the model is going to read.")
    return [part for length, rows in alike.items() if length for part in rows.split(max(1, TOKENS_AT_ONCE // length))]


def _by_length(lists: Iterable) -> dict[int, list[list[int]]]:
    alike: dict[int, list[list[int]]] = {}
    if not isinstance(lists, Iterable):
        raise bad_input("the calibration tokens", lists, "lists of token ids, or whole numbers (B, T)")
    for number, ids in enumerate(lists):
        row = ids.tolist() if isinstance(ids, Tensor) else list(ids) if isinstance(ids, Iterable) else None
        if row is None or any(isinstance(t, bool) or not hasattr(t, "__index__") for t in row):
            raise bad_input(f"calibration text {number}", ids, "a list of token ids", "Encode the text first.")
        alike.setdefault(len(row), []).append([int(t) for t in row])
    return alike
