"""Prompts that begin alike are read once: what a price list calls cached input.

A `PrefixCache` outlives the requests. `open` gives a batch of prompts a cache that holds what is known of their
beginnings; `close` keeps what was read and written for the next one, until its blocks are needed for something else.
"""

from collections.abc import Sequence
from itertools import chain, count
from operator import index
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .blocks import BlockTable
from .config import ModelConfig
from .errors import BadInputError
from .paged import PagedKVCache
from .prefix_index import PrefixIndex


class PrefixCache:
    """A pool of `n_blocks` blocks of `block_size` tokens for all requests to come.

    >>> import llmflation as lf
    >>> toy = lf.load_toy()
    >>> prefixes = PrefixCache(toy.cfg, n_blocks=64)
    >>> for sums in (b"17+25=", b"40+2="):
    ...     prompt = [*b"Answer each of these sums: ", *sums]
    ...     cache = prefixes.open([prompt])
    ...     written = lf.generate(toy, [prompt], 4, cache)
    ...     prefixes.close(cache, [prompt + written[0]])
    >>> prefixes.tokens_found  # one full block of the 27 that both begin with
    16
    """

    def __init__(self, cfg: ModelConfig, n_blocks: int, block_size: int = 16, dtype=torch.float32):
        self.cfg = cfg
        self._root = PagedKVCache(cfg, 1, n_blocks, block_size, dtype)  # stays empty: the others share its memory
        self.pool = self._root.pool
        self.index = PrefixIndex(self.pool)
        self.tokens_asked = self.tokens_found = 0  # of all prompts so far
        self._opened = WeakKeyDictionary()  # cache -> the key of its model, its prompts, its tables
        self._keys = WeakKeyDictionary()  # model -> its key, the weights that the key stands for
        self._next_key = count()

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool, used or not."""
        return self._root.nbytes

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that were there already; 0 before the first prompt."""
        return self.tokens_found / self.tokens_asked if self.tokens_asked else 0.0

    def open(self, prompts: Sequence[Sequence[int]], model: nn.Module | None = None) -> PagedKVCache:
        """A cache for these prompts; its `lengths` say how many tokens of each it holds already, in full blocks.

        One token of each is left at least: it has to be read for its scores. Given the `model`, only what these very
        weights have read is found; otherwise the caller sees to it that one model serves all. BadInputError for no
        prompt, an empty one, or a model that is not built as `cfg` says.
        """
        texts, key = _texts(prompts), None if model is None else self._key(model)
        known = [self.index.match(_keyed(key, text[:-1])) for text in texts]
        cache = self._root.with_tables([BlockTable(self.pool, blocks) for blocks in known])
        self.tokens_asked += sum(map(len, texts))
        self.tokens_found += int(cache.lengths.sum())
        self._opened[cache] = key, texts, cache.tables
        return cache

    def close(self, cache: PagedKVCache, tokens: Sequence[Sequence[int]]) -> None:
        """Keep the full blocks of what each sequence holds, its prompt and what was written behind it, and free it.

        BadInputError for a cache that is not open here, and for `tokens` that do not begin with its prompts; nothing
        has changed then. A cache that is freed or dropped without this leaves nothing behind.
        """
        key, prompts, tables = self._opened.get(cache, (None, None, None))
        if prompts is None:
            raise BadInputError("this cache is not open here; close a cache once, where it was opened.")
        if cache.tables is not tables:
            raise BadInputError("this cache was freed since it was opened: what it holds now may be another text's. "
                                "Open one for that.")
        texts = _texts(tokens)
        if len(texts) != len(prompts):
            raise BadInputError(f"tokens of {len(texts)} sequences came; this cache was opened for {len(prompts)}.")
        for row, prompt in enumerate(prompts):
            if texts[row][: len(prompt)] != prompt:
                raise BadInputError(f"the tokens of sequence {row} do not begin with its prompt of {len(prompt)}; give "
                                    "for each sequence its prompt and what was written, prompt + written.")
        for text, table, held in zip(texts, cache.tables, cache.lengths.tolist()):
            self.index.insert(_keyed(key, text[:held]), table.blocks)  # the newest word was never read
        del self._opened[cache]
        cache.free()

    def _key(self, model: nn.Module) -> int:
        """A number for these very weights: another one for each model, and after any change that PyTorch counts.

        Nothing is read of the weights, so it takes no longer for a large model. They are held, so that no others can
        come to lie where they are.
        """
        if (cfg := getattr(model, "cfg", None)) != self.cfg:
            raise BadInputError(f"the model is {cfg or type(model).__name__!r} and this prefix cache was made for "
                                f"{self.cfg!r}; make one for each architecture.")
        weights = [w.detach() for w in chain(model.parameters(), model.buffers())]
        state = [(w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights]
        key, known, _ = self._keys.get(model, (None, None, None))
        if state != known:
            key = next(self._next_key)
            self._keys[model] = key, state, weights
        return key


def _keyed(key: int | None, tokens: list[int]) -> list:
    """The tokens with the model's key on the first one: blocks are known by those before them, so it marks them all."""
    return tokens if key is None else [(key, token) for token in tokens[:1]] + tokens[1:]


def _texts(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Plain lists of whole numbers, so that equal tokens are equal whatever they came in."""
    if len(prompts) == 0:
        raise BadInputError("there are 0 prompts; give one at least, like [[1, 2, 3]].")
    texts = []
    for row, prompt in enumerate(prompts):
        try:
            texts.append([index(token) for token in prompt])
        except TypeError:
            raise BadInputError(f"prompt {row} holds something that is no token id; encode the text first.") from None
        if not texts[-1]:
            raise BadInputError(f"prompt {row} has 0 tokens; the model needs one at least to go on from.")
    return texts
