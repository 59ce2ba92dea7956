"""Judge a model: `python -m llmflation.evaluate`. What a faster or smaller version must not lose is measured here.

The toy answers problems that no model was trained on, and what its text costs it in bits is set beside the least that
any model needs. The real model is judged by the perplexity of English text and by facts in multiple choice. Two models
face the same problems, so that what they do not share is seen: `same_quality` is the verdict of the whole course.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean, variance

import torch
import torch.nn.functional as F
from torch import Tensor

from . import facts
from .checkpoint import load_checkpoint
from .config import ModelConfig
from .corpus import BOS, CONTEXT, DOMAINS, LEAST_BYTES, VOCAB_SIZE, Document, Problem, encode, look_up_at, problems
from .errors import BadInputError, LLMflationError, bad_input, unknown_name
from .kvcache import ContiguousKVCache, KVCache
from .linear import set_linear_path
from .model import Transformer, padded
from .pretrained import TOYS, Pretrained, load_real_model, load_toy

PROBLEMS = 250  # of each domain, 2,000 in all: fewer cannot tell a difference of one point from noise
DOCUMENTS = 8  # of each domain, as long as those that the toy is trained on
DISTANCES = (6, 510, 1020, 1530, 2040)  # bytes, up to the full context
TEXT_TOKENS, WINDOW = 3072, 512
TOKENS_AT_ONCE = 2048  # of a batch, or one prompt: bounds the memory, and what is in hand stays in the cache
SCORED_AT_ONCE = 128  # tokens, each with a score for every word of the vocabulary
ROOM = CONTEXT - 1  # bytes of a prompt and its answer: BOS stands before them
MOST_POINTS, MOST_RATIO = 0.01, 0.02  # what 'the same quality' allows: of accuracy; of bits per byte and perplexity
ENDINGS = ("answer", "wrong_1", "wrong_2", "wrong_3")
Z = NormalDist().inv_cdf(0.975)  # 95% of a normal distribution lie within so many standard deviations
MakeCache = Callable[[ModelConfig, int, int], KVCache]  # from the sequences' number and the tokens of the longest


@dataclass(frozen=True, repr=False)
class Score:
    """How many of `n` answers were right, and the 95% interval for the share in all such problems (Wilson 1927).

    >>> Score(48, 50)
    96.0% (95%: 86.5% to 98.9%)
    """

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def low(self) -> float:
        return self._middle - self._half if self.right else 0.0

    @property
    def high(self) -> float:
        return self._middle + self._half if self.right < self.n else 1.0

    @property
    def _middle(self) -> float:
        return (self.right + Z * Z / 2) / (self.n + Z * Z)

    @property
    def _half(self) -> float:
        return Z / (self.n + Z * Z) * math.sqrt(self.right * (self.n - self.right) / self.n + Z * Z / 4)

    def __repr__(self) -> str:
        return f"{self.accuracy:.1%} (95%: {self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True, repr=False)
class Scores:
    """A score for each domain, or for each distance; `mean` weighs them alike. A bare one prints as a table."""

    what: str
    by: dict

    @property
    def mean(self) -> float:
        return fmean(score.accuracy for score in self.by.values())

    def __getitem__(self, key) -> Score:
        if key in self.by:
            return self.by[key]
        raise unknown_name("score", key, self.by)

    def __repr__(self) -> str:
        width = max(8, *(len(str(key)) for key in self.by))
        lines = [f"{key!s:<{width}}  {s.accuracy:>7.1%}  {s.low:>7.1%} to {s.high:>6.1%}  {s.n:>6,}"
                 for key, s in self.by.items()]
        head = f"{self.what}\n{'':<{width}}  correct      95% interval  asked"
        return "\n".join([head, *lines, f"{'mean':<{width}}  {self.mean:>7.1%}"])


def accuracy(model: Transformer, domains: str | Iterable[str] | None = None, split: str = "standard",
             n: int = PROBLEMS, seed: int = 0) -> Scores:
    """The share of `n` held-out problems of each domain (all if left out) that a toy answers exactly, greedily.

    UnknownNameError for a domain or split that does not exist, BadInputError for n below 1 and for a model that does
    not read the toy's bytes. A small domain repeats problems, and five look-ups share a list: the intervals take each
    for a draw of its own and are about all that can be drawn so.

    >>> accuracy(load_toy(), "sums").mean  # doctest: +SKIP
    0.888
    """
    _check_toy(model)
    names = list(DOMAINS) if domains is None else [domains] if isinstance(domains, str) else list(domains)
    if not names:
        raise bad_input("domains", domains, "one domain at least", f"There are {', '.join(DOMAINS)}.")
    asked = {name: problems(name, split, n, seed, ROOM) for name in names}
    return Scores(f"Problems of the {split} split", {name: _score(right(model, asked[name])) for name in asked})


def look_up_by_distance(model: Transformer, distances: Iterable[int] = DISTANCES, n: int = 20, seed: int = 0,
                        cache: MakeCache | None = None) -> Scores:
    """The share of `n` look-up problems that a toy solves for each distance, in bytes, of the pair that is asked for.

    Every prompt fills the context, and the same `n` lists are asked about at each distance: each list costs as much as
    2,048 tokens do. `cache`, (cfg, batch, capacity) to a cache, keeps what the toy has read; left out, it keeps all as
    it is. BadInputError for distances that are no multiples of 6 from 6 to 2,040.
    """
    _check_toy(model)
    asked = {distance: look_up_at(distance, n, seed, ROOM) for distance in distances}
    if not asked:
        raise bad_input("distances", distances, "one distance at least", "Leave it out for 6 to 2,040 bytes.")
    answers = right(model, [p for some in asked.values() for p in some], cache)
    return Scores("Look-up, by distance in bytes",
                  {at: _score(answers[i * n:(i + 1) * n]) for i, at in enumerate(asked)})


@torch.inference_mode()
def right(model: Transformer, asked: Sequence[Problem], cache: MakeCache | None = None) -> list[bool]:
    """Whether a toy that always takes the likeliest byte writes each answer and then the line's end.

    The lines before a question are read once for all that ask about them. Question and answer follow in one call, over
    copies of that cache: where each byte of the answer was the likeliest after those before it, decoding would have
    written them, one after the other. Prompts of like length run as one batch.
    """
    found = {}
    for batch in _batches(asked):
        contexts, lengths = padded([[BOS, *encode(context)] for context, _ in batch])
        rows, told = zip(*[(row, p) for row, (_, sharing) in enumerate(batch) for p in sharing])
        starts = torch.tensor([len(p.prompt) - len(batch[row][0]) for row, p in zip(rows, told)])
        tails, n = padded([encode(p.prompt[len(batch[row][0]) :] + p.answer + "\n") for row, p in zip(rows, told)])
        read = _cache(model, len(batch), contexts.shape[1] + tails.shape[1], cache)
        model(contexts, read, lengths, last_only=True)
        likeliest = model(tails[:, :-1], read.fork(list(rows)), n - 1).argmax(-1)
        place = torch.arange(1, tails.shape[1])
        judged = (place >= starts[:, None]) & (place < n[:, None])  # (B, E - 1)
        found |= zip(told, ((likeliest == tails[:, 1:]) | ~judged).all(1).tolist())
    return [found[p] for p in asked]


def _batches(asked: Sequence[Problem]) -> Iterator[list[tuple[str, list[Problem]]]]:
    """Contexts, each with problems that share it; as many of like length as TOKENS_AT_ONCE holds of the largest."""
    sharing: dict[str, list[Problem]] = {}
    for p in sorted(set(asked), key=lambda p: (p.prompt, p.answer)):
        sharing.setdefault(p.prompt[: p.prompt.rfind("\n", 0, -1) + 1], []).append(p)
    parts = [(context, some[i : i + 16]) for context, some in sharing.items() for i in range(0, len(some), 16)]
    batch, size = [], 0
    for context, some in sorted(parts, key=lambda part: len(part[0])):
        own = len(context) + sum(len(p.prompt) - len(context) + len(p.answer) + 1 for p in some)
        size = max(size, own)
        if batch and (len(batch) + 1) * size > TOKENS_AT_ONCE:
            yield batch
            batch, size = [], own
        batch.append((context, some))
    if batch:
        yield batch


@dataclass(frozen=True, repr=False)
class BitsPerByte:
    """What a byte of held-out text costs a model, in bits, and the `floor`: what its random choices weigh.

    No model that knows the rules, and not which questions were held back, goes below the floor on average. `domains`
    holds both for each domain. `value` and `floor` are over all bytes, of which each domain has about as many:
    documents are of one length.
    """

    split: str
    value: float
    floor: float
    domains: dict[str, tuple[float, float]]

    def __repr__(self) -> str:
        lines = [f"{name:<8}  {bits:>8.3f}  {floor:>6.3f}"
                 for name, (bits, floor) in [*self.domains.items(), ("all", (self.value, self.floor))]]
        return "\n".join([f"Bits per byte of the {self.split} split\n{'':<8}  measured   floor", *lines])


def bits_per_byte(model: Transformer, split: str = "standard", seed: int = 0) -> BitsPerByte:
    """What a byte of fresh documents costs a toy: 8 of each domain, of up to 256 bytes as in training.

    UnknownNameError for a split that does not exist, BadInputError for a model that does not read the toy's bytes.
    """
    _check_toy(model)
    documents = documents_of(split, seed)
    found = list(zip(documents, document_bits(model, documents)))

    def share(name: str | None) -> tuple[float, float]:
        chosen = [(d, bits) for d, bits in found if name in (None, d.domain)]
        length = sum(len(d.text) for d, _ in chosen)
        return sum(bits for _, bits in chosen) / length, sum(d.bits for d, _ in chosen) / length

    return BitsPerByte(split, *share(None), {name: share(name) for name in DOMAINS})


def documents_of(split: str, seed: int) -> list[Document]:
    _check_seed(seed)
    return [domain.document(Random(f"judge {domain.name} {split} {seed} {number}"), 1.0, LEAST_BYTES, split)
            for domain in DOMAINS.values() for number in range(DOCUMENTS)]


@torch.no_grad()
def document_bits(model: Transformer, documents: Sequence[Document]) -> list[float]:
    """The bits that each document costs."""
    found = []
    step = TOKENS_AT_ONCE // LEAST_BYTES
    for start in range(0, len(documents), step):
        tokens, lengths = padded([[BOS, *encode(d.text)] for d in documents[start : start + step]])
        costs = _nats(model(tokens[:, :-1]), tokens[:, 1:], lengths - 1)
        found += (costs.sum(1) / math.log(2)).tolist()
    return found


def perplexity(real: Pretrained, n_tokens: int = TEXT_TOKENS) -> float:
    """The real model's perplexity on English: among how many equally likely words each one left it to choose.

    The text is that of `pydoc_data.topics`, Python's own manual, in alphabetical order: windows of 512 tokens, evenly
    spread over all of it, each read with nothing but one token before it. It differs a little between versions of
    Python: compare models on the same one.

    >>> perplexity(load_real_model())  # doctest: +SKIP
    13.5
    """
    return math.exp(float(text_nats(_check_real(real), n_tokens).mean()))


@torch.no_grad()
def text_nats(real: Pretrained, n_tokens: int = TEXT_TOKENS, cache: MakeCache | None = None) -> Tensor:
    """What each token of the text costs, in nats, one after the other; read through a `cache` where one is given."""
    import pydoc_data.topics

    text = real.tokenizer.encode("\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items())))
    if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or not WINDOW <= n_tokens < len(text):
        raise bad_input("n_tokens", n_tokens, f"a whole number from {WINDOW}, one window, to {len(text) - 1}, the text")
    windows = n_tokens // WINDOW
    nats = []
    for number in range(windows):
        start = number * (len(text) - 1) // windows
        tokens = torch.tensor([text[start : start + WINDOW + 1]])
        read = None if cache is None else _cache(real.model, 1, WINDOW, cache)
        nats.append(_nats(real.model(tokens[:, :-1], read), tokens[:, 1:])[0])
    return torch.cat(nats)


def cloze(real: Pretrained) -> Score:
    """How many plain facts of `data/cloze.csv` the real model knows: of four endings, the true one is likeliest.

    An ending's likelihood is that of all its tokens, after the prompt and one space; nothing stands before the prompt.
    Guessing gets a quarter.

    >>> cloze(load_real_model())  # doctest: +SKIP
    78.5% (95%: 74.0% to 82.4%)
    """
    return _score(knows(_check_real(real), facts.read("cloze")))


def knows(real: Pretrained, rows: Sequence[facts.Row]) -> list[bool]:
    return [scores.index(max(scores)) == 0 for scores in _log_likelihoods(real, rows).tolist()]


def _log_likelihoods(real: Pretrained, rows: Sequence[facts.Row]) -> Tensor:
    """The log-likelihood of each row's four endings, (rows, 4), the true one first."""
    encoded = [(real.tokenizer.encode(row["prompt"]), [real.tokenizer.encode(" " + row[e]) for e in ENDINGS])
               for row in rows]
    like = sorted(range(len(rows)), key=lambda i: (max(map(len, encoded[i][1])), len(encoded[i][0])))
    found = torch.zeros(len(rows), len(ENDINGS), dtype=torch.float64)
    for start in range(0, len(like), 16):
        batch = like[start : start + 16]
        found[batch] = _ending_scores(real.model, *zip(*(encoded[i] for i in batch)))
    return found


@torch.no_grad()
def _ending_scores(model: Transformer, prompts: Sequence[list[int]], endings: Sequence[list[list[int]]]) -> Tensor:
    """The log-likelihood of every prompt's endings, (B, 4); each prompt is read once, and its cache copied."""
    tokens, lengths = padded(prompts)
    tails, tail_lengths = padded([tail for four in endings for tail in four])  # (4B, E)
    cache = _cache(model, len(prompts), tokens.shape[1] + tails.shape[1])
    last = model(tokens, cache, lengths, last_only=True)  # (B, 1, V)
    rows = [row for row in range(len(prompts)) for _ in ENDINGS]
    costs = _nats(last[rows], tails[:, :1]).sum(1)  # of each ending's first token
    if tails.shape[1] > 1:
        logits = model(tails[:, :-1], cache.fork(rows), tail_lengths - 1)  # (4B, E - 1, V)
        costs += _nats(logits, tails[:, 1:], tail_lengths - 1).sum(1)
    return -costs.view(len(prompts), len(ENDINGS))


@dataclass(frozen=True, repr=False)
class Criterion:
    """One of the things in which two models must agree: both values, their difference and its 95% interval.

    An accuracy's difference is b - a, and of the problems that only one of them got right `lost` are the first's and
    `gained` the second's; that of a cost (bits, perplexity) is b / a - 1. It holds within `allowed` either way.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    allowed: float
    lost: int | None = None
    gained: int | None = None

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.allowed


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether two models are of the same quality, and by which criteria."""

    criteria: tuple[Criterion, ...]

    @property
    def same(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the criteria that do not hold."""
        return tuple(c.name for c in self.criteria if not c.holds)

    def __repr__(self) -> str:
        lines = [f"{'':<24} {'first':>7} {'second':>7} {'change':>7}      95% interval"]
        for c in self.criteria:
            a, b = (f"{x:.1%}" if c.lost is not None else f"{x:.4g}" for x in (c.a, c.b))
            lines.append(f"{c.name:<24} {a:>7} {b:>7} {c.difference:>+7.1%}  {c.low:>+6.1%} to {c.high:>+6.1%}")
        sure = all(-c.allowed <= c.low and c.high <= c.allowed for c in self.criteria)
        verdict = "The same quality." if sure else "Within the limits, but too few problems to be sure."
        if self.failed:
            verdict = f"Not the same quality: {', '.join(self.failed)}."
        return "\n".join([*lines, verdict])


def same_quality(a: Transformer | Pretrained, b: Transformer | Pretrained, n: int = PROBLEMS, seed: int = 0) -> Verdict:
    """Whether `b` is of the same quality as `a`, in the one sense that this course gives to these words.

    Two toys: mean accuracy over `n` problems of each domain within 1 point, on the standard and on the hard split,
    and bits per byte within 2%. Two real models: perplexity within 2% and accuracy on the cloze set within 1 point.
    Both face the same problems; the intervals are those of the difference. BadInputError for one of each kind.
    """
    if isinstance(a, Pretrained) != isinstance(b, Pretrained):
        kinds = ["a real model" if isinstance(x, Pretrained) else "a toy" for x in (a, b)]
        raise BadInputError(f"the first is {kinds[0]} and the second {kinds[1]}; allowed: two of one kind. What judges "
                            "the one means nothing to the other.")
    if isinstance(a, Pretrained):
        known = [knows(real, facts.read("cloze")) for real in (a, b)]
        return Verdict((paired_perplexity(text_nats(a), text_nats(b)), paired_accuracy("cloze accuracy", *known)))
    for model in (a, b):
        _check_toy(model)
    found = []
    for split in ("standard", "hard"):
        asked = [p for name in DOMAINS for p in problems(name, split, n, seed, ROOM)]
        found.append(paired_accuracy(f"accuracy, {split} split", right(a, asked), right(b, asked)))
    documents = documents_of("standard", seed)
    found.append(paired_bits(documents, document_bits(a, documents), document_bits(b, documents)))
    return Verdict(tuple(found))


def paired_accuracy(name: str, a: Sequence[bool], b: Sequence[bool]) -> Criterion:
    """The interval is Agresti and Min's (2005): of the normal distribution, with half a problem added to each cell of
    the two-by-two table, so that two models that never differ have an interval too."""
    n = len(a)
    lost, gained = sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    middle = (gained - lost) / (n + 2)
    half = Z * math.sqrt(gained + lost + 1 - (gained - lost) * middle) / (n + 2)
    return Criterion(name, sum(a) / n, sum(b) / n, (gained - lost) / n, middle - half, middle + half, MOST_POINTS,
                     lost, gained)


def paired_bits(documents: Sequence[Document], a: Sequence[float], b: Sequence[float]) -> Criterion:
    """The interval is that of a ratio of sums over documents (Cochran 1977, 6.4): each document is one draw."""
    length, ratio = sum(len(d.text) for d in documents), sum(b) / sum(a)
    half = Z * math.sqrt(len(a) * variance(y - ratio * x for x, y in zip(a, b))) / sum(a)
    low, high = ratio - 1 - half, ratio - 1 + half
    return Criterion("bits per byte", sum(a) / length, sum(b) / length, ratio - 1, low, high, MOST_RATIO)


def paired_perplexity(a: Tensor, b: Tensor) -> Criterion:
    """The interval takes each token's difference in nats as one draw: neighbours hardly depend on each other there."""
    middle, half = float((b - a).mean()), Z * float((b - a).std()) / math.sqrt(len(a))
    change, low, high = (math.expm1(x) for x in (middle, middle - half, middle + half))
    return Criterion("perplexity", *(math.exp(float(x.mean())) for x in (a, b)), change, low, high, MOST_RATIO)


def _score(answers: Sequence[bool]) -> Score:
    return Score(sum(answers), len(answers))


def _cache(model: Transformer, batch: int, capacity: int, make: MakeCache | None = None) -> KVCache:
    make = make or partial(ContiguousKVCache, dtype=model.embedding.weight.dtype)
    return make(model.cfg, batch, min(capacity, model.cfg.context))


def _nats(logits: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
    """What each target (B, T) costs under the scores (B, T, V), in nats; 0 beyond a row's length."""
    parts = zip(logits.flatten(0, 1).split(SCORED_AT_ONCE), targets.flatten().split(SCORED_AT_ONCE))
    costs = torch.cat([F.cross_entropy(part.float(), wanted, reduction="none") for part, wanted in parts])
    costs = costs.view(targets.shape)
    if lengths is not None:
        costs = costs * (torch.arange(targets.shape[1]) < lengths[:, None])
    return costs.double()


def _check_toy(model: object) -> None:
    if isinstance(model, Pretrained) or not hasattr(model, "cfg"):
        raise bad_input("model", type(model).__name__, "a Transformer, such as load_toy()",
                        "A real model is judged by perplexity and cloze.")
    if model.cfg.vocab_size != VOCAB_SIZE or model.cfg.context < CONTEXT:
        raise BadInputError(f"the model has a vocabulary of {model.cfg.vocab_size} and a context of "
                            f"{model.cfg.context}; allowed: the toy's {VOCAB_SIZE} bytes and specials, and {CONTEXT} "
                            "tokens at least. These problems mean nothing to another model.")


def _check_real(real: object) -> Pretrained:
    if not isinstance(real, Pretrained):
        raise bad_input("real", type(real).__name__, "a Pretrained, such as load_real_model()",
                        "A toy is judged by accuracy and bits_per_byte.")
    return real


def _check_seed(seed: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise bad_input("seed", seed, "a whole number")


def scores_of(model: Transformer, split: str = "standard", n: int = PROBLEMS, seed: int = 0) -> dict:
    """How a toy does, as plain numbers for JSON: mean accuracy, bits per byte and their floor, and each domain."""
    return _numbers(accuracy(model, None, split, n, seed), bits_per_byte(model, split, seed))


def _numbers(scores: Scores, bits: BitsPerByte) -> dict:
    return {"mean": scores.mean, "bits_per_byte": bits.value, "floor": bits.floor,
            "domains": {name: _interval(score) for name, score in scores.by.items()}}


def _interval(score: Score) -> dict[str, float]:
    return {"accuracy": score.accuracy, "low": score.low, "high": score.high}


def _judged(name: str, model: Transformer, split: str, n: int, seed: int) -> dict:
    """Print how a toy does; the same as numbers."""
    scores, bits = accuracy(model, None, split, n, seed), bits_per_byte(model, split, seed)
    params = sum(p.numel() for p in model.parameters())
    print(f"{name}: {params:,} parameters. {scores!r}\n{bits.value:.3f} bits per byte, of which {bits.floor:.3f} are "
          "the text's own.\n", flush=True)
    return {"name": name, "params": params, "active_params": params, **_numbers(scores, bits)}


def _judged_real() -> dict | None:
    """Print how the real model does; the same as numbers; or what to install, and None."""
    real = load_real_model(required=False)
    if real is None:
        return None
    set_linear_path("plain")  # one copy of its weights in memory, not two; long products gain nothing by the second
    params, name = sum(p.numel() for p in real.model.parameters()), real.model.cfg.name
    try:
        found, known = perplexity(real), cloze(real)
    finally:
        set_linear_path("auto")
    print(f"{name}: {params:,} parameters. Perplexity of English text {found:.2f}; facts in multiple choice: {known}")
    return {"name": name, "params": params, "perplexity": found, "cloze": _interval(known)}


def _toys(folder: Path | None) -> Iterator[tuple[str, Transformer]]:
    """The checkpoint in `folder`, or those that come with the library."""
    if folder is None:
        yield from ((name, load_toy(name)) for name in TOYS)
    else:
        cfg, state = load_checkpoint(folder)
        yield folder.resolve().name, Transformer.of(cfg, {name: t.float() for name, t in state.items()})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmflation.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the same as one last line of JSON")
    parser.add_argument("--seed", type=int, default=0, help="any whole number: it draws the problems")
    parser.add_argument("--split", choices=("standard", "hard"), default="standard")
    parser.add_argument("-n", type=int, default=PROBLEMS, help=f"problems of each domain ({PROBLEMS})")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder, judged instead of what the library brings")
    chosen = parser.parse_args(arguments)
    try:
        models = [_judged(name, model, chosen.split, chosen.n, chosen.seed) for name, model in _toys(chosen.model)]
        real = None if chosen.model else _judged_real()
    except LLMflationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps({"models": models, "real": real}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
