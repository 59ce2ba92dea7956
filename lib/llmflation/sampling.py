"""From scores to the next token: greedy, temperature, top-k, top-p."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BadInputError, bad_input


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. Temperature 0 is greedy: the highest score, the lowest id among equals.

    `top_k` keeps the k highest scores (0: all), `top_p` the fewest tokens whose probabilities reach p (1: all);
    with both, first k, then p. The draw takes a generator with each call, so that nothing is shared.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not number or not 0 <= self.temperature < math.inf:
            raise bad_input("temperature", self.temperature, "0 (greedy) or a finite number above it")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise bad_input("top_k", self.top_k, "a whole number, 0 for all")
        if isinstance(self.top_p, bool) or not isinstance(self.top_p, int | float) or not 0 < self.top_p <= 1:
            raise bad_input("top_p", self.top_p, "above 0 and at most 1", "1 keeps all tokens.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution (B, V) that a token is drawn from, given logits (B, V)."""
        if not torch.isfinite(logits).all():
            row = int((~torch.isfinite(logits)).any(-1).nonzero()[0])
            raise BadInputError(f"the scores of sequence {row} hold NaN or infinity: the model's weights are broken.")
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits.float()  # sums over a large vocabulary need more than the 8 bits of bfloat16
        p = torch.softmax((logits - logits.amax(-1, keepdim=True)) / max(self.temperature, 1e-30), dim=-1)
        if self.top_k and self.top_k < p.shape[-1]:
            kept = p.topk(self.top_k, dim=-1)
            p = torch.zeros_like(p).scatter_(-1, kept.indices, kept.values)
        if self.top_p < 1:
            ordered, order = p.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered  # the mass of what ranks higher, before each token
            kept = ordered * (before < self.top_p * ordered.sum(-1, keepdim=True))
            p = torch.zeros_like(p).scatter_(-1, order, kept)
        return p / p.sum(-1, keepdim=True)

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next token of each sequence, (B,), from logits (B, V)."""
        if self.temperature == 0:
            self.probabilities(logits)  # refuses broken scores
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)
