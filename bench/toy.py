"""The two models of the course beside Hugging Face's `transformers`, and beside what this machine can do."""

from collections.abc import Sequence

import torch

from llmflation.config import ModelConfig
from llmflation.corpus import PAD
from llmflation.errors import MissingFactError
from llmflation.linear import linear_path
from llmflation.model import Transformer
from llmflation.pretrained import load_real_model
from llmflation.probe import step_functions
from llmflation.timing import time_fn
from llmflation.train import Recipe, Run, batches

from . import shapes
from .beside import ABSENT, beside, quiet_transformers
from .rows import Row, refuse, side_by_side


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """All rows of this bench, and notes on how they were measured."""
    refuse(arguments)
    rounds = 6 if quick else 15
    with torch.random.fork_rng():
        found = [*decode_rows(rounds, 32 if quick else 128), *useful_share(shapes.model("toy"), rounds),
                 *train_mfu(rounds, steps=1 if quick else 2)]
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, str)]


# --- beside transformers -------------------------------------------------------------------------------------


def decode_rows(rounds: int, new: int) -> list[Row | str]:
    """Tokens per second over those of `transformers`, one sequence, the same weights."""
    if not quiet_transformers():
        return [ABSENT]
    found = beside("toy-decode-vs-transformers", shapes.model("toy"), 128, 1.3, rounds, new)
    try:
        real = load_real_model(torch.bfloat16).model
    except MissingFactError as error:
        return [*found, f"No row for the real model: {error}"]
    return [*found, *beside("real-decode-vs-transformers", real, 256, 1.3, rounds, new)]


# --- beside the machine's limits -----------------------------------------------------------------------------


def useful_share(model: Transformer, rounds: int, context: int = 256) -> list[Row | str]:
    """The time of a step's products and attentions, each kind alone, over the time of the step.

    A real step finds its weights out of the processor's cache, if the model is larger. So both sides go through as
    many copies of the model, with their caches, as make `shapes.COLD_BYTES`.
    """
    models = shapes.cold_copies(model)
    steps, matrices, attention = step_functions(models, context)

    def parts():
        matrices()
        attention()

    row = side_by_side("useful-share", parts, steps, 0.6, rounds=rounds, unit="share")
    step_s, dtype = time_fn(steps, repeat=3, warmup=0).median_s / len(models), model.embedding.weight.dtype
    return [row, f"useful-share: a step of the toy takes {step_s * 1e3:.2f} ms at context {context} in {dtype}, path "
            f"{linear_path(dtype)!r}; both sides go through {len(models)} copies of the model in turn, "
            f"{len(models) * shapes.nbytes(model) / 2**20:.0f} MiB of weights, so that none is still in the "
            "processor's cache."]


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
