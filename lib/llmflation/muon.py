"""Muon, the optimizer of the toy's matrices: a step that is equally long in every direction (Jordan et al. 2024).

PyTorch has one too, `torch.optim.Muon`, and this one gives the same bits where both multiply in bfloat16. It stands
here because PyTorch's does so on every machine, and on processors without such instructions that takes a hundred times
as long as float32.
"""

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; its slope at zero is steep, so that five rounds do


def fast_format() -> torch.dtype:
    """The number format in which this processor multiplies matrices fastest in training: bfloat16 if it has
    instructions for it, else float32. Asked, not timed, so that a run that is resumed does not change it."""
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_it else torch.float32


def orthogonalized(matrix: Tensor, dtype: torch.dtype, rounds: int = 5) -> Tensor:
    """The matrix (N, M) with all but its smallest singular values made nearly 1 (0.7 to 1.2), by Newton-Schulz rounds
    in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(rounds):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, then `orthogonalized`, then a step of `lr`, more for a tall matrix; weights decay."""

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1,
                 dtype: torch.dtype | None = None):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype or fast_format()

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - momentum)
                update = orthogonalized(p.grad.lerp(buffer, momentum), self.dtype)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * math.sqrt(max(1, p.shape[0] / p.shape[1])))
