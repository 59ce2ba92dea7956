"""Layers whose weights are quantized: the product, and the embedding that is tied to one."""

import torch
from torch import Tensor, nn

from ..errors import BadInputError, bad_input
from .kernels import Form, Reference, form_of, times_set
from .tensor import QuantizedTensor


class QuantizedLinear(nn.Module):
    """A product with a quantized weight (N, K), without bias: x (..., K) -> (..., N), in the format of x.

    It holds its weight once, in the form that `set_kernel_path` asks for: the QuantizedTensor, or what a kernel reads.
    With `activation_bits` each vector is rounded to so many bits, too, with a step of its own. It cannot be trained.
    """

    def __init__(self, q: QuantizedTensor, activation_bits: int | None = None, *, by_row: bool = False):
        super().__init__()
        self.out_features, self.in_features = q.shape
        self.activation_bits, self.by_row = activation_bits, by_row
        self._take(q)

    @classmethod
    def of(cls, q: QuantizedTensor, activation_bits: int | None = None, *, by_row: bool = False) -> "QuantizedLinear":
        """The layer with this weight; `by_row` if single rows are to be looked up, too, as a tied embedding does."""
        return cls(q, activation_bits, by_row=by_row)

    @property
    def form(self) -> Form:
        """What holds the weight; made anew where the path was set since."""
        if self._set != times_set():
            self._take(self._form.tensor())
        return self._form

    @property
    def nbytes(self) -> int:
        """Bytes held: codes, scales and what the kernel needs besides."""
        return self.form.nbytes

    def tensor(self) -> QuantizedTensor:
        """The very QuantizedTensor that the layer was made of."""
        return self.form.tensor()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise BadInputError(f"a {self.format} layer has no gradient; call it under torch.inference_mode(), or "
                                "train the model that it was quantized from.")
        if x.shape[-1] != self.in_features:  # a private operator might read what is not there
            raise bad_input("x's last dimension", x.shape[-1], f"{self.in_features}, the layer's inputs")
        return self.form.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def __getstate__(self):
        """A copy, or one that is read on another machine, finds its own form when it is first used."""
        return self.__dict__ | {"_form": Reference(self.tensor(), self.activation_bits), "_set": -1}

    def get_extra_state(self) -> dict:
        """For `state_dict`, which would leave the weight out: it is no parameter."""
        return dict(vars(self.tensor()))

    def set_extra_state(self, state: dict) -> None:
        q = QuantizedTensor(**state)
        if (wanted := (self.out_features, self.in_features)) != tuple(q.shape):
            raise BadInputError(f"a weight of {tuple(q.shape)} does not fit a layer of {wanted}.")
        self._take(q)

    def _take(self, q: QuantizedTensor) -> None:
        self._form, self._set = form_of(q, self.activation_bits, self.by_row), times_set()
        self.format = q.format

    def extra_repr(self) -> str:
        activations = f", activations in {self.activation_bits} bits" if self.activation_bits else ""
        return (f"{self.in_features} -> {self.out_features}, {self.format}{activations}, {self.nbytes:,} bytes as "
                f"{type(self.form).__name__}")


class QuantizedEmbedding(nn.Module):
    """The rows of a tied head's weight by token: ids (...) -> (..., K). Only the rows asked for are dequantized."""

    def __init__(self, head: QuantizedLinear, dtype: torch.dtype):
        super().__init__()
        self.__dict__["head"] = head  # no part of this layer: the weight is the head's, and is counted and saved there
        # Others ask an embedding's weight for the model's format; to(dtype) changes it here as anywhere.
        self.register_buffer("weight", torch.empty(0, head.in_features, dtype=dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.head.form.rows(tokens.flatten(), self.weight.dtype)
        return rows.view(*tokens.shape, self.head.in_features)
