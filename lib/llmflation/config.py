"""`ModelConfig`: one description of a model's architecture, for toys and for real models.

The cost model counts from it and the toy is built from it, so that each can be checked against the other.
Presets come from `data/models.csv`.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from datetime import date

from llmflation import facts
from llmflation.errors import BadInputError, bad_input, check_above, check_whole


@dataclass(frozen=True)
class Published:
    """What a model's makers publish about it: facts to compare with, not architecture to count from.

    Parameters are plain numbers, not billions. Sources differ in what they call active: some leave out the
    input embedding (see data/README.md).
    """

    developer: str
    release_date: date
    total_params: float
    active_params: float
    native_precision: str
    mmlu: float | None
    mmlu_note: str | None
    source_title: str | None
    source_url: str | None
    source_date: date | None
    verified: str
    note: str | None


@dataclass(frozen=True, repr=False)
class ModelConfig:
    """The architecture of a decoder-only transformer.

    A bad combination raises BadInputError that names the field. What is left out follows by definition:
    without `n_kv_heads` there are `n_heads`, without `head_dim` it is `d_model / n_heads`, without
    `n_moe_layers` all layers have experts if there are any. `dataclasses.replace` keeps what is filled in.

    >>> ModelConfig(n_layers=4, d_model=512, n_heads=8, n_kv_heads=2, d_ff=1408, vocab_size=320).head_dim
    64
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int | None  # None: as many as n_heads
    d_ff: int | None  # of the layers without experts; None if every layer has experts
    vocab_size: int
    _: KW_ONLY
    head_dim: int | None = None  # None: d_model / n_heads; with MLA the width of a query: nope + rope
    ffn_matrices: int = 3  # 3: gate, up and down (SwiGLU); 2: up and down
    tied_embeddings: bool = False
    context: int = 2048  # tokens
    rope_theta: float = 10_000.0  # base of the rotary embedding's wavelengths
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    # Mixture of experts: all 0 or None in a dense model.
    n_experts: int = 0
    top_k: int = 0  # routed experts that compute for one token
    n_shared_experts: int = 0  # these compute for every token
    d_expert: int | None = None
    n_moe_layers: int | None = None  # None: all layers, if there are experts
    # Sliding window: layers look back `sliding_window` tokens, but every `global_every`-th layer sees all.
    sliding_window: int | None = None
    global_every: int = 0  # 0: no layer is global
    # Multi-head latent attention (MLA): all None in a model without it.
    q_lora_rank: int = 0  # 0: queries are not compressed
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    # What is known about the model, not how it is built.
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)
    published: Published | None = field(default=None, compare=False)

    def __post_init__(self):
        for name in _WHOLE:
            check_whole(name, getattr(self, name), 1)
        for name in _WHOLE_OR_ZERO:
            check_whole(name, getattr(self, name), 0)
        if not isinstance(self.tied_embeddings, bool):
            raise bad_input("tied_embeddings", self.tied_embeddings, "True or False")
        if self.ffn_matrices not in (2, 3):
            raise bad_input("ffn_matrices", self.ffn_matrices, "2 (up, down) or 3 (gate, up, down)")
        for name in ("rope_theta", "norm_eps"):
            check_above(name, getattr(self, name))
        _check_experts(self)
        _check_latent(self)
        _check_heads(self)
        _check_window(self)

    @property
    def attention(self) -> str:
        """MLA, MHA (a key-value head for each query head), MQA (one for all) or GQA (one for each group)."""
        if self.kv_lora_rank is not None:
            return "MLA"
        if self.n_kv_heads == self.n_heads:
            return "MHA"
        return "MQA" if self.n_kv_heads == 1 else "GQA"

    @property
    def is_moe(self) -> bool:
        """Whether some layers route tokens to experts."""
        return self.n_experts > 0

    @property
    def n_dense_layers(self) -> int:
        """Layers with one ordinary feed-forward block."""
        return self.n_layers - self.n_moe_layers

    @property
    def n_global_layers(self) -> int:
        """Layers whose attention sees the whole context."""
        if self.sliding_window is None:
            return self.n_layers
        return self.n_layers // self.global_every if self.global_every else 0

    def __repr__(self) -> str:
        return (
            f"{self.name or 'a model'}: {self.n_layers} layers of width {self.d_model}, {_heads(self)}, "
            f"{_feed_forward(self)}, {self.vocab_size:,} tokens in its vocabulary, context {self.context:,}."
        )


def load_models() -> facts.Catalogue:
    """The models of `data/models.csv` by name, as ModelConfig.

    >>> load_models()["Llama-3.1-8B"].n_kv_heads
    8
    """
    return facts.Catalogue("model", {row["name"]: _from_row(row) for row in facts.read("models")})


def model_config(name: str) -> ModelConfig:
    """One preset. UnknownNameError, with the nearest names, if there is none or if a short name fits several.

    >>> model_config("Mixtral-8x7B").top_k
    2
    """
    models = load_models()
    return models[models.full_name(name)]


_WHOLE = ("n_layers", "d_model", "n_heads", "vocab_size", "context")
_WHOLE_OR_ZERO = ("n_experts", "top_k", "n_shared_experts", "global_every", "q_lora_rank")
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# The columns of models.csv that are called otherwise here; the rest carry the same names.
_COLUMNS = {
    "n_layers": "layers",
    "d_model": "hidden",
    "n_heads": "heads",
    "n_kv_heads": "kv_heads",
    "d_ff": "ffn_hidden",
    "vocab_size": "vocab",
    "n_experts": "experts",
    "top_k": "experts_per_token",
    "n_shared_experts": "shared_experts",
    "d_expert": "expert_ffn_hidden",
    "n_moe_layers": "moe_layers",
    "global_every": "global_attention_every",
}


def _from_row(row: facts.Row) -> ModelConfig:
    known = {
        f.name: row[column]
        for f in fields(ModelConfig)
        if (column := _COLUMNS.get(f.name, f.name)) in row and row[column] is not None
    }
    published = Published(
        **{f.name: row[f.name] for f in fields(Published) if f.name in row},
        total_params=row["total_params_b"] * 1e9,
        active_params=row["active_params_b"] * 1e9,
    )
    try:
        return ModelConfig(
            **{"n_kv_heads": None, "d_ff": None} | known,
            published=published,
            source=f"{row['source_title'] or 'no source'} ({row.where})",
        )
    except BadInputError as e:
        raise BadInputError(f"{row.where} ({row.key}): {e}") from None


def _check_experts(c: ModelConfig) -> None:
    if c.n_experts == 0:
        for name in ("top_k", "n_shared_experts", "d_expert", "n_moe_layers"):
            if getattr(c, name):
                raise bad_input(
                    name,
                    getattr(c, name),
                    "nothing, since n_experts is 0",
                    "Set n_experts, or leave the fields of experts out.",
                )
        object.__setattr__(c, "n_moe_layers", 0)
        object.__setattr__(c, "d_expert", None)
    else:
        if c.n_moe_layers is None:
            object.__setattr__(c, "n_moe_layers", c.n_layers)
        check_whole("d_expert", c.d_expert, 1)
        check_whole("top_k", c.top_k, 1)
        check_whole("n_moe_layers", c.n_moe_layers, 1)
        if c.top_k > c.n_experts:
            raise bad_input(
                "top_k",
                c.top_k,
                f"at most n_experts, which is {c.n_experts}",
                "A token cannot go to more experts than there are.",
            )
        if c.n_moe_layers > c.n_layers:
            raise bad_input("n_moe_layers", c.n_moe_layers, f"at most n_layers, which is {c.n_layers}")
    if c.n_dense_layers or c.d_ff is not None:
        check_whole(f"d_ff (of the {c.n_dense_layers} layers without experts)", c.d_ff, 1)


def _check_latent(c: ModelConfig) -> None:
    given = [name for name in _LATENT if getattr(c, name) is not None]
    if not given:
        if c.q_lora_rank:
            raise bad_input(
                "q_lora_rank",
                c.q_lora_rank,
                "0 without MLA",
                f"MLA needs {', '.join(_LATENT)} as well; without MLA leave it out.",
            )
        return
    for name in _LATENT:
        if getattr(c, name) is None:
            raise bad_input(name, None, "a whole number of 1 or more, since MLA needs all of " + ", ".join(_LATENT))
        check_whole(name, getattr(c, name), 1)
    width = c.qk_nope_head_dim + c.qk_rope_head_dim
    if c.head_dim not in (None, width):
        raise bad_input(
            "head_dim",
            c.head_dim,
            f"with MLA qk_nope_head_dim + qk_rope_head_dim, here {width}",
            "Leave it out.",
        )
    if c.n_kv_heads not in (None, c.n_heads):
        raise bad_input(
            "n_kv_heads",
            c.n_kv_heads,
            f"with MLA n_heads, here {c.n_heads}",
            "Leave it out: every head makes its own keys from the shared latent.",
        )
    object.__setattr__(c, "head_dim", width)


def _check_heads(c: ModelConfig) -> None:
    if c.n_kv_heads is None:
        object.__setattr__(c, "n_kv_heads", c.n_heads)
    check_whole("n_kv_heads", c.n_kv_heads, 1)
    if c.n_heads % c.n_kv_heads:
        raise bad_input(
            "n_kv_heads",
            c.n_kv_heads,
            f"a divisor of n_heads, which is {c.n_heads}",
            "Each key-value head serves the same number of query heads.",
        )
    if c.head_dim is None:
        if c.d_model % c.n_heads:
            raise bad_input(
                "d_model",
                c.d_model,
                f"a multiple of n_heads, which is {c.n_heads}",
                "Or set head_dim yourself.",
            )
        object.__setattr__(c, "head_dim", c.d_model // c.n_heads)
    check_whole("head_dim", c.head_dim, 1)
    rotary = "head_dim" if c.kv_lora_rank is None else "qk_rope_head_dim"
    if getattr(c, rotary) % 2:
        raise bad_input(rotary, getattr(c, rotary), "an even number", "Rotary embedding turns dimensions in pairs.")


def _check_window(c: ModelConfig) -> None:
    if c.sliding_window is not None:
        check_whole("sliding_window", c.sliding_window, 1)
        if c.global_every == 1:
            raise bad_input(
                "global_every",
                1,
                "0 (no layer is global) or 2 and more",
                "Leave the window out if every layer is global.",
            )
    elif c.global_every:
        raise bad_input(
            "global_every",
            c.global_every,
            "0 without a sliding_window",
            "Set sliding_window, or leave it out.",
        )


def _heads(c: ModelConfig) -> str:
    if c.attention == "MLA":
        text = f"{c.n_heads} heads over a latent of {c.kv_lora_rank} + {c.qk_rope_head_dim} values (MLA)"
    else:
        text = f"{c.n_heads} query heads on {c.n_kv_heads} key-value heads of {c.head_dim} ({c.attention})"
    if c.sliding_window is None:
        return text
    return f"{text}, a window of {c.sliding_window:,} in {c.n_layers - c.n_global_layers} layers"


def _feed_forward(c: ModelConfig) -> str:
    dense = f"feed-forward {c.d_ff}" if c.n_dense_layers else ""
    if not c.is_moe:
        return dense
    shared = f" and {c.n_shared_experts} shared" if c.n_shared_experts else ""
    where = "every layer" if not c.n_dense_layers else f"{c.n_moe_layers} layers and {dense} in {c.n_dense_layers}"
    return f"{c.top_k} of {c.n_experts} experts{shared} of width {c.d_expert} in {where}"
