"""What a model consists of and what its calls have to do, counted from its architecture alone.

Every number here is exact for the architecture as `ModelConfig` describes it; nothing is known yet about a machine.
"""

from dataclasses import dataclass

from llmflation.config import ModelConfig
from llmflation.cost import formulas
from llmflation.errors import BadInputError, bad_input, check_whole, is_number
from llmflation.units import bytes_from_bits

ACTIVATION_BYTES = 2  # of a number between two products


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
    _check_config(cfg)
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


@dataclass(frozen=True, repr=False)
class Work:
    """Arithmetic to be done, in FLOP, and memory to be read or written for it, in bytes."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOP for each byte."""
        return self.flops / self.bytes

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __repr__(self) -> str:
        return f"{self.flops:.4g} FLOP over {self.bytes:.4g} bytes: {self.intensity:.3g} FLOP a byte."


def weight_bytes(cfg: ModelConfig, weight_bits: float = 16, head_bits: float | None = None) -> float:
    """Bytes of all weights. `head_bits` is for the embedding and the head where they are kept wider than the rest.

    For a format that stores a scale for each group pass `formulas.bits_per_value(4, group_size=128)`.

    >>> weight_bytes(ModelConfig(4, 512, 8, 2, 1536, 320, tied_embeddings=True), 32)
    48908288.0
    """
    params, width = count_params(cfg), _check_bits("weight_bits", weight_bits)
    wide = width if head_bits is None else _check_bits("head_bits", head_bits)
    tables = params.embedding + params.head
    return bytes_from_bits((params.total - tables) * width + tables * wide)


def kv_bytes(cfg: ModelConfig, context: int, kv_bits: float = 16) -> float:
    """Bytes that the cache of one sequence of `context` tokens holds; layers with a window hold no more than that.

    >>> kv_bytes(ModelConfig(4, 512, 8, 2, 1536, 320), context=100, kv_bits=32)
    409600.0
    """
    _check_config(cfg)
    context = check_whole("context", context, least=0)
    held = cfg.n_global_layers * context
    if cfg.sliding_window is not None:
        held += (cfg.n_layers - cfg.n_global_layers) * min(context, cfg.sliding_window)
    return held * _kv_values(cfg) * bytes_from_bits(_check_bits("kv_bits", kv_bits))


def kv_bytes_per_token(cfg: ModelConfig, kv_bits: float = 16) -> float:
    """Bytes that a token adds to the cache, in all layers, while no layer's window is full. Later tokens add
    kv_bytes(cfg, n + 1) - kv_bytes(cfg, n): only the layers without a window still grow.

    >>> from llmflation.config import model_config
    >>> kv_bytes_per_token(model_config("Llama-3.1-8B"))
    131072.0
    """
    return kv_bytes(cfg, 1, kv_bits)


def decode_work(cfg: ModelConfig, batch: int, context: int, weight_bits: float = 16, kv_bits: float = 16,
                head_bits: float | None = None) -> dict[str, Work]:
    """What one decode step has to do, by part: one new token for each of `batch` sequences behind `context` others.

    "residual" and "inner" are the numbers that go to memory and back between products: those as wide as the model, and
    those as wide as a feed-forward block. BadInputError for counts that are no whole numbers above 0, and beyond the
    model's context.

    >>> from llmflation.config import model_config
    >>> sum(decode_work(model_config("Llama-3.1-8B"), batch=1, context=2048).values(), Work(0, 0))
    1.608e+10 FLOP over 1.528e+10 bytes: 1.05 FLOP a byte.
    """
    batch, context = check_whole("batch", batch), check_whole("context", context)
    return _work(cfg, batch, 1, context, weight_bits, kv_bits, head_bits)


def prefill_work(cfg: ModelConfig, batch: int, tokens: int, weight_bits: float = 16, kv_bits: float = 16,
                 head_bits: float | None = None, held: int = 0) -> dict[str, Work]:
    """What reading `tokens` tokens of each of `batch` sequences has to do, behind `held` others that the cache has.

    BadInputError for counts that are no whole numbers above 0 (`held`: or 0), and beyond the model's context.

    >>> from llmflation.config import model_config
    >>> sum(prefill_work(model_config("Llama-3.1-8B"), batch=1, tokens=2048).values(), Work(0, 0))
    2.969e+13 FLOP over 2.523e+10 bytes: 1.18e+03 FLOP a byte.
    """
    batch, tokens, held = check_whole("batch", batch), check_whole("tokens", tokens), check_whole("held", held, least=0)
    return _work(cfg, batch, tokens, held, weight_bits, kv_bits, head_bits)


def decode_flops(cfg: ModelConfig, batch: int, context: int) -> float:
    """FLOP of one decode step of the whole batch."""
    return sum(part.flops for part in decode_work(cfg, batch, context).values())


def prefill_flops(cfg: ModelConfig, batch: int, tokens: int) -> float:
    """FLOP of reading `tokens` tokens of each of `batch` sequences."""
    return sum(part.flops for part in prefill_work(cfg, batch, tokens).values())


def _work(cfg, batch, new, held, weight_bits, kv_bits, head_bits) -> dict[str, Work]:
    params, tokens = count_params(cfg), batch * new
    check_context(cfg, held + new)
    width = bytes_from_bits(_check_bits("weight_bits", weight_bits))
    head_width = bytes_from_bits(_check_bits("head_bits", weight_bits if head_bits is None else head_bits))
    head, expert = cfg.vocab_size * cfg.d_model, _expert(cfg)
    rows = min(tokens, cfg.vocab_size) * cfg.d_model  # of the embedding
    cache = kv_bytes(cfg, held, kv_bits) + new * kv_bytes_per_token(cfg, kv_bits)  # read, and written
    return {
        "projections": Work(formulas.linear_flops(tokens, params.attention), params.attention * width),
        "attention": Work(batch * _attention_flops(cfg, new, held), batch * cache),
        "feed-forward": Work(formulas.linear_flops(tokens, params.feed_forward - routed_params(cfg)),
                             (params.feed_forward - routed_params(cfg)) * width),
        "experts": Work(formulas.linear_flops(tokens, cfg.n_moe_layers * cfg.top_k * expert),
                        cfg.n_moe_layers * formulas.experts_touched(cfg.n_experts, cfg.top_k, tokens) * expert * width),
        "head": Work(formulas.linear_flops(batch, head), (head + rows) * head_width),
        "residual": Work(0, tokens * 8 * cfg.n_layers * cfg.d_model * ACTIVATION_BYTES),
        "inner": Work(0, tokens * cfg.ffn_matrices * _inner(cfg) * ACTIVATION_BYTES),
    }


def _inner(cfg: ModelConfig) -> int:
    """Hidden units that one token passes. Behind gate and up both are read and their product is written; before each
    block the sum so far and what is added to it are read and written, with the norm: the 8 above."""
    experts = cfg.n_moe_layers * (cfg.top_k + cfg.n_shared_experts) * (cfg.d_expert or 0)
    return cfg.n_dense_layers * (cfg.d_ff or 0) + experts


def _attention_flops(cfg: ModelConfig, new: int, held: int) -> float:
    """Of one sequence, in all layers. MLA decodes in its latent space: what a head compares is the latent itself."""
    key, value = cfg.head_dim, cfg.v_head_dim or cfg.head_dim
    if cfg.attention == "MLA" and new == 1:
        key, value = cfg.kv_lora_rank + cfg.qk_rope_head_dim, cfg.kv_lora_rank
    every = formulas.attention_flops(formulas.pairs_seen(new, held), cfg.n_heads, key, value)
    near = formulas.attention_flops(formulas.pairs_seen(new, held, cfg.sliding_window), cfg.n_heads, key, value)
    return cfg.n_global_layers * every + (cfg.n_layers - cfg.n_global_layers) * near


def routed_params(cfg: ModelConfig) -> int:
    """Weights of all experts that tokens are routed to; 0 in a dense model."""
    return cfg.n_moe_layers * cfg.n_experts * _expert(cfg)


def _expert(cfg: ModelConfig) -> int:
    """Weights of one expert."""
    return cfg.ffn_matrices * cfg.d_model * (cfg.d_expert or 0)


def _kv_values(cfg: ModelConfig) -> int:
    """Numbers that one layer keeps for one token."""
    if cfg.attention == "MLA":
        return cfg.kv_lora_rank + cfg.qk_rope_head_dim
    return formulas.kv_values(cfg.n_kv_heads, cfg.head_dim)


def _check_config(cfg) -> None:
    if not isinstance(cfg, ModelConfig):
        raise bad_input("cfg", cfg, "a ModelConfig", "Take a preset: model_config('Llama-3.1-8B').")


def _check_bits(what: str, value) -> float:
    if not is_number(value) or not 0.1 <= value <= 64:
        raise bad_input(what, value, "a number of bits from 0.1 to 64")
    return value


def check_context(cfg: ModelConfig, tokens: int) -> None:
    """BadInputError where a sequence of so many tokens is longer than the model's context."""
    if tokens > cfg.context:
        raise BadInputError(f"a sequence would have {tokens:,} tokens, and {cfg.name or 'this model'} was made for "
                            f"{cfg.context:,}; shorten it, or count beyond that all the same with "
                            "dataclasses.replace(cfg, context=...).")
