"""The two models of the course beside Hugging Face's `transformers`, and beside what this machine can do."""

import copy
import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmflation.checkpoint import save_checkpoint
from llmflation.config import ModelConfig
from llmflation.corpus import PAD
from llmflation.errors import MissingFactError
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import linear_path
from llmflation.model import Transformer, generate
from llmflation.pretrained import load_real_model
from llmflation.probe import step_functions
from llmflation.timing import time_fn
from llmflation.train import Recipe, Run, batches

from . import shapes
from .rows import Row, refuse, side_by_side

COLD_BYTES = 256 * 2**20  # of weights, read in turn: eight times a cache of 32 MiB, so that none is still in it


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """All rows of this bench, and notes on how they were measured."""
    refuse(arguments)
    rounds = 6 if quick else 15
    with torch.random.fork_rng():
        found = [*decode_rows(rounds), *useful_share(shapes.model("toy"), rounds), *train_mfu(rounds)]
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, str)]


# --- beside transformers -------------------------------------------------------------------------------------


def decode_rows(rounds: int) -> list[Row | str]:
    """Tokens per second over those of `transformers`, one sequence, the same weights."""
    try:
        import transformers
    except ImportError:
        return ["Not beside transformers, which is not installed: python -m pip install transformers accelerate"]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = beside("toy-decode-vs-transformers", shapes.model("toy"), 128, rounds)
    try:
        real = load_real_model(torch.bfloat16).model
    except MissingFactError as error:
        return [*found, f"No row for the real model: {error}"]
    return [*found, *beside("real-decode-vs-transformers", real, 256, rounds)]


def beside(name: str, model: Transformer, prompt_tokens: int, rounds: int, new: int = 128) -> list[Row | str]:
    """Ours and theirs read the same prompt and write `new` tokens greedily, each with its own cache."""
    dtype, numbers = model.embedding.weight.dtype, torch.Generator().manual_seed(0)
    prompt = torch.randint(0, min(256, model.cfg.vocab_size), (1, prompt_tokens), generator=numbers)

    def ours() -> list[int]:
        return generate(model, prompt.tolist(), new, ContiguousKVCache(model.cfg, 1, prompt_tokens + new, dtype))[0]

    attention, theirs = hugging_face(model, prompt, new)
    row = side_by_side(name, theirs, ours, 1.3, rounds=rounds)
    speed = new / time_fn(ours, repeat=1, warmup=0).median_s
    equal = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    return [row, f"{name}: ours writes {speed:.0f} tokens/s, {new} tokens after {prompt_tokens}, {dtype}, path "
            f"{linear_path(dtype)!r}; theirs is generate() under inference_mode, greedy, with its dynamic cache and "
            f"the attention {attention!r}, the faster here; {equal} of the {new} tokens are the same."]


def hugging_face(model: Transformer, prompt: Tensor, new: int) -> tuple[str, Callable[[], list[int]]]:
    """The faster of their two kinds of attention, and a function that writes with it."""
    from transformers import GenerationConfig, LlamaForCausalLM

    def writer(other):
        setting = GenerationConfig(max_new_tokens=new, do_sample=False, use_cache=True, eos_token_id=None)
        mask = torch.ones_like(prompt)

        @torch.inference_mode()
        def write() -> list[int]:
            return other.generate(prompt, attention_mask=mask, generation_config=setting)[0, -new:].tolist()
        return write

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, model.cfg, model.state_dict())
        writers = {kind: writer(LlamaForCausalLM.from_pretrained(folder, attn_implementation=kind,
                                                                 dtype=model.embedding.weight.dtype).eval())
                   for kind in ("sdpa", "eager")}
        times = {kind: time_fn(write, repeat=1, warmup=1).median_s for kind, write in writers.items()}
    best = min(times, key=times.get)
    return best, writers[best]


# --- beside the machine's limits -----------------------------------------------------------------------------


def useful_share(model: Transformer, rounds: int, context: int = 256) -> list[Row | str]:
    """The time of a step's products and attentions, each kind alone, over the time of the step.

    A real step finds its weights out of the processor's cache, if the model is larger. So both sides go through as
    many copies of the model, with their caches, as make COLD_BYTES.
    """
    size = sum(p.nbytes for p in model.parameters())
    models = [model, *(copy.deepcopy(model) for _ in range(-(-COLD_BYTES // size) - 1))]
    steps, matrices, attention = step_functions(models, context)

    def parts():
        matrices()
        attention()

    row = side_by_side("useful-share", parts, steps, 0.6, rounds=rounds, unit="share")
    step_s, dtype = time_fn(steps, repeat=3, warmup=0).median_s / len(models), model.embedding.weight.dtype
    return [row, f"useful-share: a step of the toy takes {step_s * 1e3:.2f} ms at context {context} in {dtype}, path "
            f"{linear_path(dtype)!r}; both sides go through {len(models)} copies of the model in turn, "
            f"{len(models) * size / 2**20:.0f} MiB of weights, so that none is still in the processor's cache."]


def train_mfu(rounds: int, recipe: Recipe | None = None, steps: int = 2) -> list[Row | str]:
    """The FLOP/s of training at full difficulty over those of the fastest square product in the same format."""
    recipe = recipe or Recipe()
    run, start = Run(recipe), round(recipe.rising * recipe.steps)
    lengths = [int(n) for step in range(start, start + steps) for batch in batches(recipe, step)
               for n in (batch.targets != PAD).sum(1)]

    def advance():
        run.step = start  # the same documents each time
        for _ in range(steps):
            run.advance()

    size, calls = fastest_square(run.format)
    a, b = torch.randn(2, size, size, dtype=run.format)

    def multiply():
        for _ in range(calls):
            a @ b

    work = train_flops(recipe.cfg, sum(p.numel() for p in run.model.parameters()), lengths)
    factor = work / (calls * 2 * size**3)
    row = side_by_side("train-mfu", multiply, advance, 0.35, rounds=rounds, factor=factor, unit="share")
    advance_s = time_fn(advance, repeat=1, warmup=0).median_s
    return [row, f"train-mfu: {work / advance_s / 1e12:.3f} TFLOP/s and {sum(lengths) / advance_s:,.0f} tokens/s in "
            f"training, padding not counted; the peak is that of products of {size} x {size} in {run.format}."]


def train_flops(cfg: ModelConfig, params: int, lengths: list[int]) -> float:
    """Floating-point operations to train once on texts of these lengths: 6 for each weight and token (2 forward, 4
    back), and 6 for each pair of tokens, of which one sees the other, and channel of the heads (scores and sum of
    values, half of the square). A tied embedding is used once as a matrix; an untied one that is only looked up is
    counted too, as is usual.
    """
    pairs = sum(n * n for n in lengths)
    return 6.0 * params * sum(lengths) + 6.0 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs


def fastest_square(dtype: torch.dtype, sizes=(1024, 2048, 4096), least_s: float = 0.3) -> tuple[int, int]:
    """The width of square matrices that multiply at most FLOP/s in this format, and how often for `least_s` seconds."""
    times = {}
    for size in sizes:
        a, b = torch.randn(2, size, size, dtype=dtype)
        times[size] = time_fn(lambda a=a, b=b: a @ b, repeat=3, warmup=1).median_s
    best = min(sizes, key=lambda size: times[size] / size**3)
    return best, max(1, round(least_s / times[best]))
