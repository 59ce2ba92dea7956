"""Multi-head latent attention (MLA; DeepSeek-V2, 2024): all heads' keys and values out of one small vector a token.

The cache keeps that vector, the latent, and one rotated key that all heads share: R + P values for each token.
Letters as in `layers`, and R width of the latent, N width of a head's key that is made of it, P width of the rotated
part, V width of a head's value.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .errors import BadInputError, bad_input
from .kvcache import ContiguousKVCache, check_entries
from .layers import RMSNorm, attend, rope_table, rotate
from .linear import Linear


class LatentAttention(nn.Module):
    """The attention of one layer of a ModelConfig with MLA, with weights at random by `seed`."""

    def __init__(self, cfg: ModelConfig, seed: int = 0):
        super().__init__()
        self.cfg = _checked(cfg)
        C, H, R, P = cfg.d_model, cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
        if cfg.q_lora_rank:
            self.q_down, self.q_norm = Linear(C, cfg.q_lora_rank), RMSNorm(cfg.q_lora_rank, cfg.norm_eps)
        self.q_up = Linear(cfg.q_lora_rank or C, H * cfg.head_dim)
        self.kv_down, self.kv_norm = Linear(C, R + P), RMSNorm(R, cfg.norm_eps)
        self.kv_up = Linear(R, H * (cfg.qk_nope_head_dim + cfg.v_head_dim))
        self.out = Linear(H * cfg.v_head_dim, C)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5, generator=generator)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, keep=None,
                absorb: bool | None = None) -> Tensor:
        """x (B, T, C) to the same; cos and sin (B, 1, T, P), mask as in `layers.attend`. `keep` stores this call's
        latents and returns those of all positions (a cache's `append`). `absorb` compares latents instead of keys:
        left out, where one token asks."""
        q, made = self._queries(x, cos, sin), self._latents(x, cos, sin)
        held = made if keep is None else keep(made)  # (B, 1, S, R + P)
        absorb = x.shape[1] == 1 if absorb is None else absorb
        y = (self._absorbed if absorb else self._naive)(q, held, mask)  # (B, H, T, V)
        return self.out(y.transpose(1, 2).flatten(2))

    def _queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        low = self.q_norm(self.q_down(x)) if self.cfg.q_lora_rank else x
        q = self.q_up(low).unflatten(-1, (self.cfg.n_heads, -1)).transpose(1, 2)  # (B, H, T, N + P)
        plain, turned = q.split((self.cfg.qk_nope_head_dim, self.cfg.qk_rope_head_dim), dim=-1)
        return torch.cat((plain, rotate(turned, cos, sin)), dim=-1)

    def _latents(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What the cache keeps of each token, (B, 1, T, R + P): the latent, and the rotated key of all heads."""
        latent, key = self.kv_down(x).unsqueeze(1).split((self.cfg.kv_lora_rank, self.cfg.qk_rope_head_dim), dim=-1)
        return torch.cat((self.kv_norm(latent), rotate(key, cos, sin)), dim=-1)

    def _naive(self, q: Tensor, held: Tensor, mask: Tensor | None) -> Tensor:
        """Make every head's keys and values of all positions again, then attend as ever."""
        H, R = self.cfg.n_heads, self.cfg.kv_lora_rank
        made = self.kv_up(held[:, 0, :, :R]).unflatten(-1, (H, -1)).transpose(1, 2)  # (B, H, S, N + V)
        key, value = made.split((self.cfg.qk_nope_head_dim, self.cfg.v_head_dim), dim=-1)
        key = torch.cat((key, held[..., R:].expand(-1, H, -1, -1)), dim=-1)
        return F.scaled_dot_product_attention(q, key, value, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)

    def _absorbed(self, q: Tensor, held: Tensor, mask: Tensor | None) -> Tensor:
        """Bring the queries into the latent space instead, and the result back: q (W l) = (q W) l for any latent l.

        What is left is attention with one key-value head for all (MQA), whose keys are its values, too.
        """
        H, N, R = self.cfg.n_heads, self.cfg.qk_nope_head_dim, self.cfg.kv_lora_rank
        to_key, to_value = self.kv_up.weight.view(H, -1, R).split((N, self.cfg.v_head_dim), dim=1)  # (H, N or V, R)
        wide = torch.cat((q[..., :N] @ to_key, q[..., N:]), dim=-1)  # (B, H, T, R + P)
        wide = wide * (wide.shape[-1] / q.shape[-1]) ** 0.5  # `attend` divides by the root of the width that it sees
        y = attend(wide, held, held, mask)[..., :R]
        return y @ to_value.transpose(1, 2)


class LatentKVCache(ContiguousKVCache):
    """Memory for the latents of `capacity` tokens of each of `batch` sequences, in every layer of the model."""

    def __init__(self, cfg: ModelConfig, batch: int, capacity: int | None = None, dtype=torch.float32):
        with torch.device("meta"):  # no memory: less is needed than for keys and values
            super().__init__(_checked(cfg), batch, capacity, dtype)
        with torch.inference_mode(False):
            self._store = torch.zeros((cfg.n_layers, 1, batch, 1, self.capacity,
                                       cfg.kv_lora_rank + cfg.qk_rope_head_dim), dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)

    def append(self, layer: int, latents: Tensor) -> Tensor:
        """Store this call's latents (B, 1, T, R + P) of one layer; return those of all positions, (B, 1, S, R + P)."""
        store = self._store[layer, 0]
        check_entries((latents,), (len(store), 1, store.shape[3]), self._most, store.dtype)
        store[self._stored] = latents.detach()[self._taken]
        return store[:, :, : self._end]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """BadInputError: there are no keys and values here. A LatentAttention looks at the latents by itself."""
        raise BadInputError("this cache holds latents, and keys and values came; `read` with a LatentAttention, or "
                            "take ContiguousKVCache for a model with plain heads.")


@torch.no_grad()
def read(layer: LatentAttention, x: Tensor, cache: LatentKVCache, absorb: bool | None = None) -> Tensor:
    """What one layer alone, the cache's first, makes of the next tokens x (B, T, C) behind those that it holds."""
    cfg, lengths = layer.cfg, cache.lengths
    if x.ndim != 3 or x.shape[0] != len(lengths) or x.shape[1] == 0 or x.shape[2] != cfg.d_model:
        raise bad_input("x", tuple(x.shape), f"({len(lengths)} sequences, 1 token or more, width {cfg.d_model})")
    T = x.shape[1]
    n_new = torch.full_like(lengths, T)
    cache.reserve(n_new)
    positions = lengths[:, None] + torch.arange(T)  # (B, T)
    cos, sin = (table[positions].unsqueeze(1).to(x.dtype)
                for table in rope_table(cfg.qk_rope_head_dim, cfg.context, cfg.rope_theta))
    mask = (torch.arange(int(positions.max()) + 1) <= positions[..., None]).unsqueeze(1)  # (B, 1, T, S)
    y = layer(x, cos, sin, mask, lambda latents: cache.append(0, latents), absorb)
    cache.advance(n_new)
    return y


def variants(cfg: ModelConfig, groups: int | None = None) -> dict[str, ModelConfig]:
    """The same model with each kind of attention: MHA, MQA, GQA with `groups` key-value heads (its own, if left out),
    and MLA in DeepSeek-V2's proportions: a latent of 4 heads, half a head rotated.

    >>> from llmflation.config import model_config
    >>> variants(model_config("Llama-3.1-8B"))["MLA"].kv_lora_rank
    512
    """
    if cfg.attention == "MLA":
        raise bad_input("attention", "MLA", "MHA, GQA or MQA", "Start from a model with plain heads.")
    D, H = cfg.head_dim, cfg.n_heads
    latent = {"head_dim": None, "kv_lora_rank": 4 * D, "qk_nope_head_dim": D, "qk_rope_head_dim": max(D // 4 * 2, 2),
              "v_head_dim": D}
    made = {"MHA": {"n_kv_heads": H}, "MQA": {"n_kv_heads": 1},
            "GQA": {"n_kv_heads": cfg.n_kv_heads if groups is None else groups}, "MLA": {"n_kv_heads": H} | latent}
    return {kind: replace(cfg, name=f"{cfg.name or 'the model'} as {kind}", published=None, **change)
            for kind, change in made.items()}


def _checked(cfg: ModelConfig) -> ModelConfig:
    if cfg.attention != "MLA":
        raise bad_input("kv_lora_rank", None, "the width of the latent", "Take a model with MLA, or `variants`.")
    return cfg
