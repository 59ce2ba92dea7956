"""A language model of the Llama family, small enough to read: embedding, layers, head; and how it writes."""

from collections.abc import Iterator, Sequence
from functools import partial
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .errors import BadInputError, bad_input
from .layers import Block, RMSNorm, attend, rope_table, window_of
from .linear import Linear


class Transformer(nn.Module):
    """The architecture of a ModelConfig, with weights at random by `seed` (None: not set at all).

    Refuses what it cannot build yet: experts, latent attention, two-matrix feed-forward blocks.
    """

    def __init__(self, cfg: ModelConfig, *, seed: int | None = 0):
        super().__init__()
        _refuse_unbuilt(cfg)
        self.cfg = cfg
        self.windows = [window_of(cfg, layer) for layer in range(cfg.n_layers)]
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.head = Linear(cfg.d_model, cfg.vocab_size)
        if cfg.tied_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rope_table(cfg.head_dim, cfg.context, cfg.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        if seed is not None:
            _initialise(self, seed)

    @classmethod
    def of(cls, cfg: ModelConfig, state: dict[str, Tensor]) -> "Transformer":
        """The model that holds these very weights (no second copy is made), ready to write."""
        with torch.device("meta"):  # no memory for weights that would be thrown away
            model = cls(cfg, seed=None)
        model.load_state_dict(state, assign=True)
        if cfg.tied_embeddings:
            model.head.weight = model.embedding.weight
        model.cos, model.sin = rope_table(cfg.head_dim, cfg.context, cfg.rope_theta)
        return model.eval().requires_grad_(False)

    def forward(self, tokens: Tensor, cache=None, n_new: Tensor | None = None, *, last_only: bool = False) -> Tensor:
        """Scores of the next token at every position, (B, T, V), given tokens (B, T), right-padded.

        `n_new` (B,) counts each row's real tokens (all T if left out). With a cache the tokens go on behind what
        it holds, and it holds them afterwards; prefill, decode and a mix of both are this one call. `last_only` scores
        each row's last real token alone, (B, 1, V). BadInputError for tokens that are no ids or do not fit; nothing
        has changed then.
        """
        B, T = _checked(tokens, self.cfg.vocab_size).shape
        n_new = torch.full((B,), T) if n_new is None else torch.as_tensor(n_new)
        held = torch.zeros(B, dtype=torch.long) if cache is None else cache.lengths
        _check_fit(self.cfg, held.tolist(), n_new.tolist(), B, T)
        if cache is not None:
            cache.reserve(n_new)
        positions = (held[:, None] + torch.arange(T)).clamp(max=self.cfg.context - 1)  # (B, T); padding is clamped
        size = T if cache is None else int((held + n_new).max())  # S
        masks = {window: _mask(positions, held, n_new, size, window) for window in set(self.windows)}
        x = self.embedding(tokens)
        cos, sin = (table[positions].unsqueeze(1).to(x.dtype) for table in (self.cos, self.sin))  # (B, 1, T, D)
        last = (torch.arange(B), (n_new - 1).clamp(min=0)) if last_only and T > 1 else None
        for layer, block in enumerate(self.blocks):
            look = attend if cache is None else partial(cache.attend, layer)
            window = self.windows[layer]
            if last is not None and layer == len(self.blocks) - 1:  # no later layer asks what the others found
                mask = _seen(positions[last][:, None], held + n_new, size, window)
                x = block(x, cos, sin, mask, look, last)
            else:
                x = block(x, cos, sin, masks[window], look)
        if cache is not None:
            cache.advance(n_new)
        return self.head(self.norm(x))

    def describe(self) -> str:
        """Every tensor's name, shape and count as a table, and the sum, to check by hand."""
        rows = [(name, " x ".join(map(str, p.shape)), p.numel()) for name, p in self.named_parameters()]
        width = max(len(name) for name, *_ in rows)
        lines = [f"{name:<{width}}  {shape:>13}  {count:>13,}" for name, shape, count in rows]
        total = sum(count for *_, count in rows)
        return "\n".join([*lines, f"{'sum':<{width}}  {'':>13}  {total:>13,}"])


def _mask(positions: Tensor, held: Tensor, n_new: Tensor, size: int, window: int | None) -> Tensor | None:
    """Where queries at `positions` (B, T) may look, (B, 1, T, S); None where that is plainly everything before them."""
    starts = held.tolist()
    alike = len(set(starts)) == 1 and (positions.shape[1] == 1 or starts[0] == 0)
    if alike and (window is None or size <= window):
        return None
    return _seen(positions, held + n_new, size, window)


def _seen(positions: Tensor, ends: Tensor, size: int, window: int | None) -> Tensor:
    """For queries at `positions` (B, T) of sequences up to `ends` (B,): true at and before each, as far back as the
    window reaches, (B, 1, T, S)."""
    keys = torch.arange(size)
    if window is None:
        return (keys <= positions[:, :, None]).unsqueeze(1)
    asks = torch.minimum(positions, (ends - 1).clamp(min=0)[:, None])[:, :, None]  # padding sees what the last one does
    return ((keys <= asks) & (keys > asks - window)).unsqueeze(1)


def _initialise(model: Transformer, seed: int) -> None:
    """Normal weights scaled by their width, so that no signal grows or dies on its way through the layers."""
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * model.cfg.n_layers) ** -0.5
    for name, p in model.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("out.weight", "down.weight"))
            std = model.cfg.d_model**-0.5 if "embedding" in name else p.shape[1] ** -0.5 * (depth if residual else 1)
            nn.init.normal_(p, std=std, generator=generator)


def _refuse_unbuilt(cfg: ModelConfig) -> None:
    unbuilt = {"experts": cfg.is_moe, "latent attention": cfg.attention == "MLA",
               "two feed-forward matrices": cfg.ffn_matrices != 3}
    if found := [what for what, there in unbuilt.items() if there]:
        raise BadInputError(f"{cfg.name or 'this model'} has {' and '.join(found)}, which Transformer cannot build; "
                            "the cost model can count it all the same.")


def _checked(tokens: Tensor, vocab_size: int) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
        shape = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise BadInputError(f"tokens are {shape}; give whole numbers, (batch, tokens), like torch.tensor([[1, 2]]).")
    if tokens.shape[1] == 0:
        raise BadInputError("the prompt has 0 tokens; the model needs one at least to go on from.")
    low, high = tokens.aminmax()
    if low < 0 or high >= vocab_size:
        row, place = ((tokens < 0) | (tokens >= vocab_size)).nonzero()[0].tolist()
        raise BadInputError(f"token {int(tokens[row, place])} at position {place} of sequence {row} is no id; "
                            f"allowed: 0 to {vocab_size - 1}.")
    return tokens


def _check_fit(cfg: ModelConfig, held: list[int], n_new: list[int], B: int, T: int) -> None:
    if len(n_new) != len(held) or not all(0 <= n <= T for n in n_new):
        raise BadInputError(f"n_new is {n_new}; allowed: one number from 0 to {T} for each of {len(held)} sequences.")
    if len(held) != B:
        raise BadInputError(f"there are tokens of {B} sequences, and the cache is made for {len(held)}.")
    for row, total in enumerate(map(add, held, n_new)):
        if total > cfg.context:
            raise BadInputError(f"sequence {row} would reach {total} tokens, and the model's context is {cfg.context}; "
                                "shorten the prompt.")


def generate(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int, cache=None, sampler=None, *,
             stop: int | None = None, generator: torch.Generator | None = None) -> list[list[int]]:
    """What the model writes after each prompt: up to `max_new_tokens` ids, ended before the token `stop`.

    Prompts are lists of ids of different lengths and run as one batch. Without a cache every step reads all tokens
    again. A cache is as wide as the batch, and empty, or it holds the beginning of each prompt: then only the rest is
    read. `sampler` chooses from the scores (greedy if left out) and draws with `generator`.

    How much a cache can hold shows on the way: `stop` may end a text before that. Whatever ends it early, an interrupt
    or a pool without blocks, carries what was written until then as `written`:
    with that behind each prompt, and the same cache, another call goes on where this one stopped. Where the cache
    holds a prompt to its last token, of a row that `stop` ended or after an interrupt of the sampler, truncate it by
    one before.
    """
    written: list[list[int]] = [[] for _ in prompts]
    try:
        for step in stream(model, prompts, max_new_tokens, cache, sampler, stop=stop, generator=generator):
            for row, token in step.items():
                written[row].append(token)
    except BaseException as end:  # an interrupt by hand is one, too
        end.written = written
        raise
    return written


@torch.inference_mode()
def stream(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int, cache=None, sampler=None, *,
           stop: int | None = None, generator: torch.Generator | None = None) -> Iterator[dict[int, int]]:
    """`generate`, step by step: each step gives the new token of every sequence that still goes on.

    It can be left at any step. The cache then holds all but the newest token of each sequence that still went on.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise bad_input("max_new_tokens", max_new_tokens, "a whole number of 0 or more")
    tokens, n_new = padded(prompts)
    longest = int(n_new.max()) + max_new_tokens
    if longest > model.cfg.context:
        raise BadInputError(f"the longest prompt and {max_new_tokens} new tokens are {longest}, the model's context "
                            f"is {model.cfg.context}; shorten one of them.")
    if cache is not None:
        tokens, n_new = padded(_unread(prompts, cache.lengths.tolist()))
    going = [True] * len(prompts)
    for _ in range(max_new_tokens):
        last = model(tokens, cache, n_new, last_only=True)[:, 0]  # (B, V)
        chosen = last.argmax(-1) if sampler is None else sampler(last, generator)
        words = chosen.tolist()
        going = [was and word != stop for was, word in zip(going, words, strict=True)]
        if not any(going):
            return
        yield {row: word for row, word in enumerate(words) if going[row]}
        if cache is None:
            tokens, n_new = _grown(tokens, n_new, chosen, torch.tensor(going))
        else:
            tokens, n_new = chosen[:, None], torch.tensor(going).long()


def _unread(prompts: Sequence[Sequence[int]], held: list[int]) -> list[Sequence[int]]:
    """What is left to read of each prompt when a cache holds so many of its tokens: one at least, for its scores."""
    if len(held) != len(prompts):
        raise BadInputError(f"the cache is made for {len(held)} sequences and there are {len(prompts)} prompts; "
                            f"make it for {len(prompts)}.")
    for row, (prompt, n) in enumerate(zip(prompts, held)):
        if n >= len(prompt):
            raise BadInputError(f"the cache holds {n} tokens of sequence {row}, whose prompt has {len(prompt)}; "
                                "truncate it to fewer, or free it: the model must read one at least to go on from.")
    return [prompt[n:] for prompt, n in zip(prompts, held)]


def _grown(tokens: Tensor, lengths: Tensor, chosen: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
    """The right-padded tokens (B, T) with the chosen one behind each row that goes on, and the new lengths."""
    tokens = F.pad(tokens, (0, 1))
    rows = going.nonzero().squeeze(-1)
    tokens[rows, lengths[rows]] = chosen[rows]
    lengths = lengths + going.long()
    return tokens[:, : int(lengths.max())], lengths


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of token ids as one tensor (B, T), right-padded with 0, and their lengths (B,)."""
    if not prompts:
        raise BadInputError("there are 0 prompts; give one at least, like [[1, 2, 3]].")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise BadInputError(f"prompt {row} has 0 tokens; the model needs one at least to go on from.")
        if wrong := [t for t in prompt if isinstance(t, bool) or not hasattr(t, "__index__")]:
            raise BadInputError(f"prompt {row} holds {wrong[0]!r}, which is no token id; encode the text first.")
    lengths = torch.tensor([len(p) for p in prompts])
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor([int(t) for t in prompt])
    return tokens, lengths
