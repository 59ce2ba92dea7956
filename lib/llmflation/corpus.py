"""Text from eight small domains with known answers: what the toy is trained on, and what judges it.

A **scene** is a context (pairs, a story, a program, or nothing) and the questions about it; a document is scenes
of one domain, one after the other. Every answer ends with its line, and a question repeats the form of its fact. What
takes several steps is worked out on paper, and the steps are part of the answer: 47*6=240+42=282. What it cannot write
down, a model of four layers has to guess.

Nothing is in two splits. Each scene has a size (digits, pairs, depth ...) and a content (what is asked, however it is
written: 34+12 and 46-12 hold what 12+34 holds; of a story and a program, how it begins). Sizes beyond the standard
ones are "hard". Of the others, a keyed hash of the content keeps one in ten back: these are "standard", the rest is
"train". Where there are few contents (592 products of two digits by one, 1,440 amounts to convert), a model can know
the held-out ones only by having learned the rule from their neighbours: 47*6 from 46*6 and 47*5. Hard sums and
products are not longer but carry further, hard lists share their tens, hard look-ups have keys that are all alike: a
length never seen would score near zero for every model, and so judge nothing.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from operator import index
from random import Random

from llmflation.errors import bad_input, unknown_name

BOS, EOS, PAD = 256, 257, 258  # the ids after the 256 bytes
VOCAB_SIZE = 320
CONTEXT = 2048
LEAST_BYTES = 256  # of a document: room for a scene of any domain
SPLITS = ("train", "standard", "hard")
_ASKED = 16  # questions of one scene in a document, at most
_SHARING = 5  # and among problems


def encode(text: str) -> list[int]:
    """The token ids of a text: its bytes in UTF-8. Begin and end (BOS, EOS) are the caller's.

    >>> encode("a=é")
    [97, 61, 195, 169]
    """
    if not isinstance(text, str):
        raise bad_input("text", text, "a str", "Decode bytes first.")
    try:
        return list(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise bad_input("character", bad, "what UTF-8 can hold", "Leave out lone surrogates.") from None


def decode(ids: Iterable[int]) -> str:
    """The text of token ids. BOS, EOS and PAD vanish; bytes that are no UTF-8, and unused ids, become '\ufffd'.

    >>> decode([256, 97, 61, 195, 169, 257]), decode([97, 195])
    ('a=é', 'a\ufffd')
    """
    if not isinstance(ids, Iterable):
        raise bad_input("ids", ids, "a list of token ids")
    whole = []
    for token in ids:
        try:
            whole.append(index(token))
        except TypeError:
            raise bad_input("token id", token, f"a whole number, 0 to {VOCAB_SIZE - 1}") from None
        if not 0 <= whole[-1] < VOCAB_SIZE:
            raise bad_input("token id", whole[-1], f"a whole number, 0 to {VOCAB_SIZE - 1}")
    return bytes(min(i, 255) for i in whole if i not in (BOS, EOS, PAD)).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Problem:
    """One question for judging: `prompt` is its context and beginning; `answer` has to follow, then the line's end."""

    domain: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Document:
    """Text for training; each of `answer_spans` is (start, end) in bytes of an answer and its line's end.

    `bits` is the entropy floor of this text: what its random choices weigh, and nothing for the answers. No model that
    knows the rules, and not which questions were held back, needs fewer on average. Per byte: `bits / len(text)`.
    It is exact for each domain but for where a document ends, which would only add to it.
    """

    domain: str
    text: str
    answer_spans: tuple[tuple[int, int], ...]
    bits: float


def check(problem: Problem, completion: str) -> bool:
    """Whether a completion of the prompt is right: the answer and the end of its line; what follows does not count.

    >>> check(Problem("sums", "12+34=", "46"), "46\\n7+"), check(Problem("sums", "12+34=", "46"), "461\\n")
    (True, False)
    """
    if not isinstance(completion, str):
        raise bad_input("completion", completion, "a str", "Use decode on token ids.")
    return completion.startswith(problem.answer + "\n")


class _Draws:
    """Random choices, and the bits that they weigh: the information in a text that follows from them alone."""

    def __init__(self, rng: Random):
        self.rng, self.bits = rng, 0.0

    def below(self, n: int) -> int:
        self.bits += math.log2(n)
        return self.rng.randrange(n)

    def pick(self, options):
        return options[self.below(len(options))]

    def distinct(self, options, count: int) -> list:
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def chance(self, k: int, n: int) -> bool:
        """True in k of n cases."""
        yes = self.rng.randrange(n) < k
        self.bits -= math.log2((k if yes else n - k) / n)
        return yes


@dataclass(frozen=True)
class _Scene:
    content: str
    context: str
    questions: list[tuple[str, str]]  # prompt and answer
    answered: tuple[tuple[int, int], ...] = ()  # where in the context answers with their line's end stand

    @property
    def least_bytes(self) -> int:
        """Of the context and one question with its answer."""
        return len(self.context) + sum(map(len, self.questions[0])) + 1


@dataclass(frozen=True)
class Domain:
    """One kind of text. Sizes (of what, says `size_is`) from `easiest` to the standard ones are trained on.

    >>> DOMAINS["sorting"].size_is, DOMAINS["sorting"].easiest, DOMAINS["sorting"].standard, DOMAINS["sorting"].hard
    ('numbers', 2, range(3, 7), range(7, 10))
    """

    name: str
    size_is: str
    easiest: int
    standard: range
    hard: range
    draw: Callable[[_Draws, int, int], _Scene]  # of draws, size, room in bytes
    room_for: Callable[[int], int] = lambda size: 0  # bytes below which a size is not drawn at all
    opens: bool = False  # the content is how a scene begins: all its questions, short or long, are of one split

    def split_of(self, content: str, size: int) -> str:
        """The one split that a content of this size belongs to."""
        if size in self.hard and not self.opens:
            return "hard"
        text = f"{self.name}:{content}".encode()
        digest = hashlib.blake2b(text, digest_size=8, key=b"llmflation split").digest()
        number = int.from_bytes(digest, "big") % 100
        return "train" if number < 90 else "hard" if self.opens and number < 95 else "standard"

    def document(
        self, rng: Random, difficulty: float = 1.0, max_bytes: int = CONTEXT, split: str = "train"
    ) -> Document:
        """As many scenes as fit in `max_bytes`. Difficulty 0: of the easiest size; 1: of any up to the standard ones.

        >>> DOMAINS["units"].document(Random("example"), max_bytes=256).text[:21]
        '22 decade=220 year\\n50'
        """
        if not isinstance(rng, Random):
            raise bad_input("rng", rng, "a random.Random", "Pass random.Random(seed).")
        _check_split(split)
        _check_whole("max_bytes", max_bytes, LEAST_BYTES)
        if not isinstance(difficulty, int | float) or not 0 <= difficulty <= 1:
            raise bad_input("difficulty", difficulty, "a number from 0 to 1", 'What is harder is the split "hard".')
        top = self.easiest + round(difficulty * (self.standard[-1] - self.easiest))
        sizes = self.hard if split == "hard" else range(self.easiest, top + 1)
        text, spans, bits = "", [], 0.0
        while drawn := self._scene(rng, sizes, split, max_bytes - len(text)):
            scene, weight = drawn
            if len(text) + scene.least_bytes > max_bytes:
                if text:
                    break
                continue
            spans += [(len(text) + start, len(text) + end) for start, end in scene.answered]
            text, bits = text + scene.context, bits + weight
            for i, (prompt, answer) in enumerate(scene.questions[:_ASKED]):
                start = len(text) + len(prompt)
                end = start + len(answer) + 1
                if end > max_bytes:
                    return Document(self.name, text, tuple(spans), bits)
                text += f"{prompt}{answer}\n"
                spans.append((start, end))
                bits += math.log2(len(scene.questions) - i)  # which of those not asked yet
            if scene.context and len(text) < max_bytes:
                text += "\n"
        return Document(self.name, text, tuple(spans), bits)

    def _scene(self, rng: Random, sizes: range, split: str, room: int) -> tuple[_Scene, float] | None:
        """A scene of the split, its questions in random order, and its bits; None if no size has room."""
        sizes = [size for size in sizes if self.room_for(size) <= room]
        if not sizes:
            return None
        rank = max(rng.randrange(len(sizes)), rng.randrange(len(sizes)))  # large ones oftener: they have more to learn
        while True:
            draws = _Draws(rng)
            scene = self.draw(draws, sizes[rank], room)
            if self.split_of(scene.content, sizes[rank]) == split:
                rng.shuffle(scene.questions)
                return scene, draws.bits - math.log2((2 * rank + 1) / len(sizes) ** 2)


def _sums(draws: _Draws, size: int, room: int) -> _Scene:
    """Two numbers of up to `size` digits and their sum. Of three digits, those that carry out of both ones and tens
    are kept for size 4. A difference undoes a sum, so that both have the same content."""
    top = 10 ** min(size, 3)
    while True:
        x, y = draws.rng.randrange(top), draws.rng.randrange(top)
        carries_twice = x % 10 + y % 10 >= 10 and x % 100 + y % 100 >= 100
        if max(x, y) >= top // 10 and (size < 3 or carries_twice == (size == 4)):
            break
    draws.bits += math.log2({1: 99, 2: 9_900, 3: 744_975, 4: 245_025}[size])  # how many pairs that leaves
    question = (f"{x}+{y}=", str(x + y)) if draws.chance(1, 2) else (f"{x + y}-{x}=", str(y))
    return _Scene(f"{min(x, y)},{max(x, y)}", "", [question])


def _products(draws: _Draws, size: int, room: int) -> _Scene:
    """Two digits by one are worked out: tens, ones and their sum."""
    a, b = draws.pick(_PRODUCTS[size])
    worked = f"{a // 10 * 10 * b}+{a % 10 * b}={a * b}" if size > 1 else str(a * b)
    return _Scene(f"{min(a, b)},{max(a, b)}", "", [(f"{a}*{b}=", worked)])


def _carries_through(a: int, b: int) -> bool:
    """Whether the carry out of the ones changes the hundreds of a product: 34*3 is 102, its tens alone give 90."""
    return a * b // 100 != a // 10 * 10 * b // 100


_TWO_BY_ONE = [(a, b) for a in range(10, 100) for b in range(2, 10)]
_PRODUCTS = {
    1: [(a, b) for a in range(2, 10) for b in range(2, 10)],
    2: [pair for pair in _TWO_BY_ONE if not _carries_through(*pair)],
    3: [pair for pair in _TWO_BY_ONE if _carries_through(*pair)],
}


def _look_up(draws: _Draws, size: int, room: int) -> _Scene:
    """2**size pairs or more, fewer than twice as many; of the longest lists most leave room for few questions, so that
    every distance up to the full room is asked for. Hard keys are of so few letters that most of their neighbours
    are keys too."""
    hard = size >= 9
    least, most = 2 ** (size - 5 if hard else size), room // 6 - 1  # one pair's room is left for a question
    if size == 8:
        n = most - draws.pick([2**k - 1 for k in range(7) if most - 2**k + 1 >= least])
    else:
        n = least + draws.below(min(least, most + 1 - least))
    return _told(_pairs(draws, n, _HARD_LETTERS[size] if hard else 26))


def _look_up_bytes(size: int) -> int:
    return 6 * (2 ** (size - 5 if size >= 9 else size) + 1)


def _told(pairs: list[str]) -> _Scene:
    questions = [(f"{key}=", value) for key, value in (pair.split("=") for pair in pairs)]
    return _Scene(" ".join(sorted(pairs)), " ".join(pairs) + "\n", questions)


def _pairs(draws: _Draws, n: int, letters: int = 26) -> list[str]:
    keys = [a + b for a in _LETTERS[:letters] for b in _LETTERS[:letters]]
    return [f"{key}={10 + draws.below(90)}" for key in draws.distinct(keys, n)]


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HARD_LETTERS = {9: 6, 10: 8, 11: 12, 12: 16}  # of 16, 32, 64, 128 pairs and more


def _worked(lines: list[tuple[str, str]], opening: int) -> _Scene:
    """Lines in their order, each a prompt and its answer ("": it has none); the last is the question. Their content is
    the `opening` lines."""
    context, answered = "", []
    for prompt, answer in lines[:-1]:
        context += f"{prompt}{answer}\n"
        if answer:
            answered.append((len(context) - len(answer) - 1, len(context)))
    return _Scene("\n".join(context.split("\n")[:opening]), context, [lines[-1]], tuple(answered))


def _states(draws: _Draws, size: int, room: int) -> _Scene:
    """Things are put in places, then moved `size` times: to a place, or to where another thing is now ("by"), which
    the line's answer says and notes. The last move is of this kind."""
    where, lines = {}, []
    for step in range(len(_THINGS) + size):
        thing = _THINGS[step] if step < len(_THINGS) else draws.pick(_THINGS)
        last = step == len(_THINGS) + size - 1
        if last or (step >= len(_THINGS) and draws.chance(1, 2)):
            other = draws.pick([t for t in _THINGS if t != thing])
            where[thing] = where[other]
            lines.append((f"{thing} by {other} in ", f"{where[thing]},{thing} in {where[thing]}"))
        else:
            where[thing] = draws.pick(_PLACES)
            lines.append((f"{thing} in {where[thing]}", ""))
    return _worked(lines, opening=len(_THINGS))


_THINGS = ("cup", "hat", "key", "pen")
_PLACES = ("barn", "cave", "dock", "hall", "shed", "yard")


def _brackets(draws: _Draws, size: int, room: int) -> _Scene:
    """A text that nests to depth `size` and never falls back to 0; its answer closes what is still open."""
    text, still_open, deepest, more = "", "", 0, draws.below(2 * size)
    while deepest < size or more > 0:
        more -= deepest == size
        if len(still_open) <= 1 or (len(still_open) < size and draws.chance(3, 4)):
            kind = draws.pick(_BRACKETS)
            text, still_open = text + kind[0], kind[1] + still_open
            deepest = max(deepest, len(still_open))
        else:
            text, still_open = text + still_open[0], still_open[1:]
    return _Scene(text, "", [(f"{text}|", still_open)])


_BRACKETS = ("()", "[]", "{}", "<>")


def _units(draws: _Draws, size: int, room: int) -> _Scene:
    unit = draws.pick(sorted(_UNITS))
    n, (factor, smaller) = 10 * (size - 1) + 1 + draws.below(10), _UNITS[unit]
    return _Scene(f"{n} {unit}", "", [(f"{n} {unit}=", f"{n * factor} {smaller}")])


_UNITS = {
    "minute": (60, "second"), "hour": (60, "minute"), "chain": (4, "rod"), "week": (7, "day"),
    "year": (12, "month"), "decade": (10, "year"), "century": (100, "year"), "cm": (10, "mm"),
    "m": (100, "cm"), "km": (1000, "m"), "foot": (12, "inch"), "yard": (3, "foot"),
    "fathom": (6, "foot"), "kg": (1000, "g"), "league": (3, "mile"), "mile": (8, "furlong"),
    "litre": (1000, "ml"), "gallon": (4, "quart"), "quart": (2, "pint"), "hand": (4, "inch"),
    "dollar": (100, "cent"), "nickel": (5, "cent"), "byte": (8, "bit"), "score": (20, "piece"),
}  # fmt: skip


def _code(draws: _Draws, size: int, room: int) -> _Scene:
    """A program of `size` lines over four variables, whose values stay in 10 to 99. The answer of a line that
    calculates fetches what it needs, works it out and notes the value; the last line calculates."""
    value, lines = {}, []
    for step in range(size):
        last = step == size - 1
        target = draws.pick([v for v in "abcd" if not last or set(value) - {v}])
        sources = [v for v in sorted(value) if v != target]
        if not sources or (not last and draws.chance(1, 3)):
            value[target] = 10 + draws.below(90)
            lines.append((f"{target}={value[target]}", ""))
            continue
        source = draws.pick(sources)
        operands = {str(k): k for k in range(1, 10)} | {v: value[v] for v in sources if v != source}
        options = [(sign, name) for sign in (1, -1) for name, k in operands.items()
                   if 10 <= value[source] + sign * k <= 99]
        sign, name = draws.pick(options)
        op, k, before = "+-"[sign < 0], operands[name], value[source]
        value[target] = before + sign * k
        fetched = f"{before}," if name.isdigit() else f"{before},{name}={k},"
        lines.append((f"{target}={source}{op}{name},{source}=",
                      f"{fetched}{before}{op}{k}={value[target]},{target}={value[target]}"))
    return _worked(lines, opening=2)


def _sorting(draws: _Draws, size: int, room: int) -> _Scene:
    """Hard are four to six numbers that share their tens, which no other list of as many does."""
    if size >= 7:
        numbers = draws.distinct(range(ten := 10 * draws.below(10), ten + 10), size - 3)
    else:
        while True:
            numbers = draws.rng.sample(range(100), size)
            if size < 4 or len({n // 10 for n in numbers}) > 1:
                break
        draws.bits += math.log2(math.perm(100, size) - (size > 3) * 10 * math.perm(10, size))
    result = " ".join(map(str, sorted(numbers)))
    return _Scene(result, "", [(" ".join(map(str, numbers)) + ">", result)])


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("sums", "digits", 1, range(2, 4), range(4, 5), _sums),
        Domain("products", "digits", 1, range(2, 3), range(3, 4), _products),
        Domain("look-up", "doublings of pairs", 2, range(4, 9), range(9, 13), _look_up, _look_up_bytes),
        Domain("states", "changes", 2, range(6, 10), range(10, 14), _states, opens=True),
        Domain("brackets", "depth", 2, range(3, 7), range(7, 9), _brackets),
        Domain("units", "tens", 1, range(1, 7), range(7, 11), _units),
        Domain("code", "lines", 3, range(5, 9), range(9, 13), _code, opens=True),
        Domain("sorting", "numbers", 2, range(3, 7), range(7, 10), _sorting),
    )
}


def problems(domain: str, split: str, n: int, seed: int, max_bytes: int = CONTEXT) -> list[Problem]:
    """`n` problems of one domain for judging, each drawn anew, so small domains repeat. "train": what was seen.

    Up to five share a context, if it answers so many: reading it is what costs. The same arguments give the same
    problems on every machine. Prompt, answer and line's end fit in `max_bytes`.

    >>> problems("units", "standard", 1, seed=0)
    [Problem(domain='units', prompt='59 yard=', answer='177 foot')]
    """
    if not isinstance(domain, str) or domain not in DOMAINS:
        raise unknown_name("domain", domain, DOMAINS)
    _check_split(split)
    _check_whole("n", n, 1)
    _check_whole("seed", seed)
    _check_whole("max_bytes", max_bytes, LEAST_BYTES)
    rng = Random(f"problems {domain} {split} {seed}")
    asked, found = DOMAINS[domain], []
    while len(found) < n:
        scene, _ = asked._scene(rng, asked.hard if split == "hard" else asked.standard, split, max_bytes)
        if scene.least_bytes <= max_bytes:
            found += [Problem(domain, scene.context + prompt, answer) for prompt, answer in scene.questions[:_SHARING]]
    return found[:n]


def look_up_at(distance: int, n: int, seed: int, max_bytes: int = CONTEXT) -> list[Problem]:
    """`n` held-out look-up problems that fill `max_bytes`, the asked pair `distance` bytes before the question.

    Pairs are 6 bytes long, and so are the steps of the distance. At another distance a seed asks about the same lists.

    >>> [problem] = look_up_at(1200, 1, seed=0)
    >>> len(problem.prompt) - 3 - problem.prompt.index(problem.prompt[-3:])
    1200
    """
    _check_whole("n", n, 1)
    _check_whole("seed", seed)
    _check_whole("max_bytes", max_bytes, LEAST_BYTES)
    fit = max_bytes // 6 - 1
    _check_whole("distance", distance, 6)
    if distance % 6 or distance > 6 * fit:
        raise bad_input("distance", distance, f"a multiple of 6 from 6 to {6 * fit}", "A pair fills 6 bytes.")
    rng, found = Random(f"look-up at {seed}"), []
    while len(found) < n:
        scene = _told(_pairs(_Draws(rng), fit))
        if DOMAINS["look-up"].split_of(scene.content, 8) == "standard":
            prompt, answer = scene.questions[-distance // 6]
            found.append(Problem("look-up", scene.context + prompt, answer))
    return found


def training_document(seed: int, number: int, difficulty: float = 1.0, max_bytes: int = CONTEXT) -> Document:
    """Document `number` (from 0) of the training text of a seed. Of each eight in a row, one is of each domain.

    Each is drawn from its number alone: a run that was interrupted goes on at any number, with any difficulty.

    >>> sorted(training_document(1, number).domain for number in range(8)) == sorted(DOMAINS)
    True
    """
    _check_whole("seed", seed)
    _check_whole("number", number, 0)
    order = list(DOMAINS.values())
    Random(f"order {seed} {number // len(order)}").shuffle(order)
    return order[number % len(order)].document(Random(f"train {seed} {number}"), difficulty, max_bytes)


def training_documents(
    seed: int, difficulty: float = 1.0, max_bytes: int = CONTEXT, start: int = 0
) -> Iterator[Document]:
    """The training documents from number `start` on, without end.

    >>> next(training_documents(1, start=3)) == training_document(1, 3)
    True
    """
    return (training_document(seed, number, difficulty, max_bytes) for number in count(start))


def _check_split(split: object) -> None:
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def _check_whole(what: str, value: object, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise bad_input(what, value, "a whole number" + ("" if least is None else f" of {least} or more"))
