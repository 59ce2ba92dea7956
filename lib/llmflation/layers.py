"""The parts of a Llama: RMSNorm, rotary embedding, attention with grouped queries, SwiGLU.

Letters: B sequences, T new tokens of each, S positions in the cache, H query heads, K key-value heads, D width of
a head, C width of the model, F width of the feed-forward block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each channel (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def rope_table(head_dim: int, context: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each (context, head_dim), float32.

    Pair i of a head turns by position * theta ** (-2 i / head_dim); the two halves of a head hold the pairs' first
    and second members, as Hugging Face stores them (Su et al. 2021 interleave them).
    """
    speeds = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), speeds)  # (context, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by its position's angles: x (B, heads, T, D), cos and sin (B, 1, T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention in which H query heads share K key-value heads (Ainslie et al. 2023)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        heads = cfg.n_heads + 2 * cfg.n_kv_heads
        self.qkv = nn.Linear(cfg.d_model, heads * cfg.head_dim, bias=False)  # one product instead of three
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, append) -> Tensor:
        """x (B, T, C); mask (B, 1, T, S), true where a query may look; `append` takes this call's keys and values
        (B, K, T, D) to the cache and returns all of them (B, K, S, D)."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        k, v = append(rotate(k, cos, sin), v)  # (B, K, S, D)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask,
                                           enable_gqa=self.n_heads != self.n_kv_heads)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """A feed-forward block whose hidden units are gated: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(cfg.d_model, 2 * cfg.d_ff, bias=False)  # one product instead of two
        self.down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each behind a norm and added to what came in."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(cfg.d_model, cfg.norm_eps), Attention(cfg)
        self.feed_forward_norm, self.feed_forward = RMSNorm(cfg.d_model, cfg.norm_eps), SwiGLU(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, append) -> Tensor:  # (B, T, C)
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, append)
        return x + self.feed_forward(self.feed_forward_norm(x))
