"""Exercise 06-5: a small engine over a cache in blocks, the same with one fault planted each, and a judge of traces.

There is no model. What a token leaves in its slot is a number made from the token and from all that it saw before, and
that of the last token is the next token: whoever looks at a wrong slot writes wrong text, as a model would.
All four faults stood in the tracker of nano-vllm, a small engine that many read to learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

from .blocks import BlockPool, BlockTable, blocks_needed
from .errors import BadInputError, LLMflationError, bad_input, unknown_name
from .prefix_index import PrefixIndex

VERBS = ("start", "step", "preempt", "resume", "end")


@dataclass
class Request:
    """A text so far: its prompt and what was written behind it; `held` of its tokens are in the cache."""

    tokens: list[int]
    n_prompt: int = field(init=False)
    table: BlockTable | None = None  # None while it waits
    held: int = 0
    to_read: int = 0  # tokens of the next call

    def __post_init__(self):
        self.n_prompt = len(self.tokens)


class SmallEngine:
    """Requests over one pool of blocks, and an index of those that were filled. Its steps are methods."""

    def __init__(self, n_blocks: int = 16, block_size: int = 4):
        self.pool = BlockPool(n_blocks, block_size)
        self.index = PrefixIndex(self.pool)
        self.slots: dict[int, int] = {}  # what lies in memory, whoever left it there
        self.requests: dict[str, Request] = {}

    def start(self, name: str, tokens: Sequence[int]) -> None:
        """A new request gets its blocks; nothing is read yet."""
        if name in self.requests:
            raise BadInputError(f"there is a request {name!r} already; choose another name.")
        if not tokens or any(isinstance(t, bool) or not isinstance(t, int) for t in tokens):
            raise bad_input("tokens", tokens, "whole numbers, one at least, like [1, 2, 3]")
        request = Request(list(tokens))
        self.admit(request)
        self.requests[name] = request

    def step(self, name: str) -> int:
        """One call of the model: read what the cache does not hold, write the next token."""
        request = self._find(name, running=True)
        places = self.places(request)
        if not places:
            raise BadInputError(f"{name!r} has 0 tokens to read, so that there are no scores for the next one.")
        self.pool.require(blocks_needed([request.table], [1]))  # or nothing has changed
        for at in places:
            seen = tuple(self.slots.get(slot) for slot in request.table.slots(0, at))
            [slot] = request.table.slots(at, at + 1)
            self.slots[slot] = mark(seen, request.tokens[at])
        self.index.insert(request.tokens[: places.stop], request.table.blocks)
        request.tokens.append(self.slots[slot])
        request.table.append(1)
        request.held, request.to_read = places.stop, 1
        return request.tokens[-1]

    def preempt(self, name: str) -> None:
        """Take its blocks away, for others; its tokens stay, and it waits."""
        request = self._find(name, running=True)
        request.table.free()
        request.table = None

    def resume(self, name: str) -> None:
        """Give it blocks again."""
        self.admit(self._find(name, running=False))

    def end(self, name: str) -> None:
        """It is done: its blocks go back."""
        self._find(name, running=True).table.free()
        del self.requests[name]

    def admit(self, request: Request) -> None:
        """Take over what the index knows of its text, and blocks for the rest."""
        found = self.look_up(request.tokens)
        table = BlockTable(self.pool, found)
        try:
            table.append(len(request.tokens) - table.length)
        except LLMflationError:
            table.free()
            raise
        request.table, request.held = table, len(found) * self.pool.block_size
        request.to_read = self.count(request)

    def look_up(self, tokens: list[int]) -> list[int]:
        """Full blocks that hold the beginning, but never all of it: the last token is read for its scores."""
        return self.index.match(tokens[:-1])

    def count(self, request: Request) -> int:
        """Tokens that the next call reads."""
        return len(request.tokens) - request.held

    def places(self, request: Request) -> range:
        """Where in its text they stand."""
        return range(request.held, request.held + request.to_read)

    def _find(self, name: str, running: bool) -> Request:
        request = self.requests.get(name)
        if request is None or (request.table is not None) != running:
            raise BadInputError(f"no request {name!r} is {'running' if running else 'waiting'}.")
        return request


class FullyCached(SmallEngine):
    """Takes over the whole prompt if the index knows all of it (issues 114 and 144)."""

    def look_up(self, tokens):
        return self.index.match(tokens)


class CountedTooEarly(SmallEngine):
    """Counts the tokens to read before it looks into the index, and starts behind what it found (pull requests 207,
    211 and 233; seen where preempted requests found their own blocks again)."""

    def count(self, request):
        return len(request.tokens)


class NotYetWritten(SmallEngine):
    """Tells the index of blocks when they are handed out, not when they are filled (issue 208)."""

    def admit(self, request):
        super().admit(request)
        self.index.insert(request.tokens, request.table.blocks)


class WrongPhase(SmallEngine):
    """Takes a request that has written something for one that goes on writing, also after a preemption (issue 144)."""

    def places(self, request):
        end = len(request.tokens)
        return range(end - 1, end) if end > request.n_prompt else super().places(request)


FAULTS = {"fully cached": FullyCached, "counted too early": CountedTooEarly, "not yet written": NotYetWritten,
          "wrong phase": WrongPhase}
SHORTEST = {  # known traces; no shorter one is (tests/test_faults.py)
    "fully cached": [("start", "a", [1, 2, 3, 4]), ("step", "a"), ("start", "b", [1, 2, 3, 4]), ("step", "b")],
    "counted too early": [("start", "a", [1, 2, 3, 4, 5]), ("step", "a"), ("start", "b", [1, 2, 3, 4, 5]),
                          ("step", "b")],
    "not yet written": [("start", "a", [1, 2, 3, 4, 5]), ("start", "b", [1, 2, 3, 4, 5]), ("step", "b")],
    # Somebody else must take the block, or what lies there still is the right thing.
    "wrong phase": [("start", "a", [1, 2]), ("step", "a"), ("preempt", "a"), ("start", "b", [3]), ("resume", "a"),
                    ("step", "a")],
}


def mark(seen: tuple, token: int) -> int:
    """What a token leaves behind, having seen all this."""
    return crc32(repr((seen, token)).encode())


def next_token(tokens: Sequence[int]) -> int:
    """What follows a text that is read without any cache."""
    seen = ()
    for token in tokens:
        seen += (mark(seen, token),)
    return seen[-1]


@dataclass(frozen=True, repr=False)
class Exposure:
    """Whether a trace exposes a fault, and in which words."""

    exposed: bool
    sentence: str

    def __repr__(self) -> str:
        return self.sentence


def expose(fault: str, trace: Sequence[tuple]) -> Exposure:
    """Run a trace on the faulty engine and on the right one (16 blocks of 4 tokens).

    A trace is a list of steps: ("start", "a", [1, 2, 3]), ("step", "a"), ("preempt", "a"), ("resume", "a"),
    ("end", "a"). UnknownNameError for a fault that is none of FAULTS; what is no trace is not exposed, and says why.

    >>> expose("wrong phase", [("start", "a", [1, 2]), ("step", "a")])
    Not exposed: both write the same in all 2 steps. The shortest known trace has 6.
    """
    if fault not in FAULTS:
        raise unknown_name("fault", fault, FAULTS)
    right, faulty = SmallEngine(), FAULTS[fault]()
    shortest, first = f"The shortest known trace has {len(SHORTEST[fault])}.", None
    for i, step in enumerate(trace, 1):
        try:
            wanted = do(right, step)
        except LLMflationError as error:
            return Exposure(False, f"Not a trace: step {i}, {step!r}: {error}")
        if first is None:
            first = _difference(faulty, step, wanted, i)
    if first is None:
        return Exposure(False, f"Not exposed: both write the same in all {len(trace)} steps. {shortest}")
    return Exposure(True, f"Exposed by {len(trace)} steps: {first} {shortest}")


def do(engine: SmallEngine, step: tuple) -> int | None:
    """One step of a trace; the token that it wrote, if it wrote one."""
    if not isinstance(step, tuple | list) or len(step) < 2 or step[0] not in VERBS:
        raise bad_input("a step", step, f"a tuple of {', '.join(VERBS)}, a name, and for a start its tokens")
    verb, name, *rest = step
    if not isinstance(name, str) or len(rest) != (verb == "start"):
        raise bad_input("a step", step, '("start", "a", [1, 2]), or a verb and a name like ("step", "a")')
    return getattr(engine, verb)(name, *rest)


def _difference(faulty: SmallEngine, step: tuple, wanted: int | None, i: int) -> str | None:
    try:
        found = do(faulty, step)
    except LLMflationError as error:
        return f"at step {i}, {step!r}, it stops: {error}"
    return None if found == wanted else f"at step {i}, {step!r}, it writes {found} and not {wanted}."
