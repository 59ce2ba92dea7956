"""The parts of a Llama: RMSNorm, rotary embedding, attention with grouped queries, SwiGLU.

Letters: B sequences, T new tokens of each, S positions in the cache, H query heads, K key-value heads, D width of
a head, C width of the model, F width of the feed-forward block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .linear import Linear

FUSED_NORMS = 16  # vectors up to which calling an operator takes longer than what it does


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each channel (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        width = x.shape[-1]
        if x.numel() > FUSED_NORMS * width:
            return F.rms_norm(x, (width,), self.weight, self.eps)
        if x.numel() == width and x.dtype is torch.float32 and not (x.requires_grad or self.weight.requires_grad):
            length = torch.linalg.vector_norm(x).item()  # a plain number: the fewest calls
            return x * self.weight * (length * length / width + self.eps) ** -0.5
        # x beside -x has the mean 0, and x's mean square as its variance: one fused operator instead of seven
        both, weights = torch.cat((x, -x), dim=-1), torch.cat((self.weight, self.weight))
        return F.layer_norm(both, (2 * width,), weights, None, self.eps)[..., :width].contiguous()


def rope_table(head_dim: int, context: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each (context, head_dim), float32, ready for `rotate`.

    Pair i of a head turns by position * theta ** (-2 i / head_dim); the two halves of a head hold the pairs' first
    and second members, as Hugging Face stores them (Su et al. 2021 interleave them).
    """
    speeds = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), speeds)  # (context, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by its position's angles: x (B, heads, T, D), cos and sin (B, 1, T, D).

    A pair (a, b) becomes (a cos - b sin, b cos + a sin): each half of a head by its cosine, plus the other half by
    its sine, whose sign `rope_table` has set.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What queries (B, H, T, D) gather from the values of the keys that they match, (B, H, T, D).

    Keys and values are (B, K, S, D); mask (B, 1, T, S) is true where a query may look, None: at all before it and at
    itself.
    """
    B, H, T, D = q.shape
    if T == 1:  # the queries of a group stand one below the other, as if they were tokens: each key is read once
        return F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, D), k, v, attn_mask=mask).reshape(B, H, 1, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=k.shape[1] != H)


def window_of(cfg: ModelConfig, layer: int) -> int | None:
    """How many tokens, itself among them, a token sees in this layer (counted from 0); None: all before it."""
    is_global = bool(cfg.global_every) and (layer + 1) % cfg.global_every == 0
    return None if is_global else cfg.sliding_window


class Attention(nn.Module):
    """Causal self-attention in which H query heads share K key-value heads (Ainslie et al. 2023)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        heads = cfg.n_heads + 2 * cfg.n_kv_heads
        self.qkv = Linear(cfg.d_model, heads * cfg.head_dim)  # one product instead of three
        self.out = Linear(cfg.n_heads * cfg.head_dim, cfg.d_model)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, look=attend, last=None) -> Tensor:
        """x (B, T, C); mask as in `attend`. `look` is `attend`, or a cache's way to do it, which first stores this
        call's keys and values. With `last`, (rows, places), only those tokens ask, (B, 1, C)."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H + 2K, T, D)
        qk, v = heads.split_with_sizes((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=1)
        q, k = rotate(qk, cos, sin).split_with_sizes((self.n_heads, self.n_kv_heads), dim=1)
        if last is not None:
            q = q.transpose(1, 2)[last].unsqueeze(2)
        y = look(q, k, v, mask)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A feed-forward block whose hidden units are gated: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_up = Linear(cfg.d_model, 2 * cfg.d_ff)  # one product instead of two
        self.down = Linear(cfg.d_ff, cfg.d_model)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each behind a norm and added to what came in."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(cfg.d_model, cfg.norm_eps), Attention(cfg)
        self.feed_forward_norm, self.feed_forward = RMSNorm(cfg.d_model, cfg.norm_eps), SwiGLU(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, look=attend, last=None) -> Tensor:
        """x (B, T, C) to the same, or with `last` to what becomes of those tokens alone, (B, 1, C)."""
        gathered = self.attention(self.attention_norm(x), cos, sin, mask, look, last)
        x = (x if last is None else x[last].unsqueeze(1)) + gathered
        return x + self.feed_forward(self.feed_forward_norm(x))
