"""What a model consists of, counted from its architecture alone."""

from dataclasses import dataclass

from llmflation.config import ModelConfig
from llmflation.errors import bad_input


@dataclass(frozen=True, repr=False)
class ParamCount:
    """The parameters of a model by part; `active` tells whether only those that one token passes are counted."""

    embedding: int
    attention: int
    feed_forward: int  # with experts and routers
    norms: int
    head: int  # 0 when it is the embedding again
    active: bool = False

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.feed_forward + self.norms + self.head

    def __repr__(self) -> str:
        parts = {name.replace("_", "-"): getattr(self, name)
                 for name in ("embedding", "attention", "feed_forward", "norms", "head")}
        lines = [f"{name:<12} {n:>15,} {n / self.total:>5.0%}" for name, n in parts.items() if n]
        return "\n".join([*lines, f"{'sum':<12} {self.total:>15,} {'active ' * self.active}parameters"])


def count_params(cfg: ModelConfig, active: bool = False) -> ParamCount:
    """Count every weight of `cfg`; with `active`, of the routed experts only those that one token visits.

    Left out are biases, norms inside attention, and what few models add (a second norm behind each block): under 1%
    of any model in `data/models.csv`. What makers call active differs; here the embedding and the head belong to it.

    >>> count_params(ModelConfig(4, 512, 8, 2, 1536, 320, tied_embeddings=True)).total
    12227072
    """
    if not isinstance(cfg, ModelConfig):
        raise bad_input("cfg", cfg, "a ModelConfig", "Take a preset: model_config('Llama-3.1-8B').")
    table = cfg.vocab_size * cfg.d_model
    return ParamCount(embedding=table, attention=cfg.n_layers * _attention(cfg),
                      feed_forward=_feed_forward(cfg, active), norms=(2 * cfg.n_layers + 1) * cfg.d_model,
                      head=0 if cfg.tied_embeddings else table, active=active)


def _attention(cfg: ModelConfig) -> int:
    """Weights of one layer's attention: queries, keys, values and the way out."""
    C, H = cfg.d_model, cfg.n_heads
    if cfg.attention != "MLA":
        return C * cfg.head_dim * (2 * H + 2 * cfg.n_kv_heads)
    rank, kv_rank, rope = cfg.q_lora_rank, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    queries = C * rank + rank * H * cfg.head_dim if rank else C * H * cfg.head_dim
    keys_values = C * (kv_rank + rope) + kv_rank * H * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    return queries + keys_values + H * cfg.v_head_dim * C


def _feed_forward(cfg: ModelConfig, active: bool) -> int:
    """Weights of all layers' feed-forward blocks, experts and routers."""
    C = cfg.d_model
    total = cfg.n_dense_layers * cfg.ffn_matrices * C * cfg.d_ff if cfg.n_dense_layers else 0
    if cfg.is_moe:
        experts = (cfg.top_k if active else cfg.n_experts) + cfg.n_shared_experts
        total += cfg.n_moe_layers * (experts * cfg.ffn_matrices * C * cfg.d_expert + cfg.n_experts * C)
    return total
