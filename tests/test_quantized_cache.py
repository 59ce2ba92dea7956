"""The cache in 8 and 4 bits: what it rounds and how far, what it keeps in full, and that no call leaves a trace.

A law is a function of the kind of cache, so that a planted fault goes through the same law and must break it. Attention
is compared with one written out query by query; a law about rounding stands on the cache alone, since in a model a
difference in the last bit decides now and then which of two codes is nearer.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmflation.config import ModelConfig
from llmflation.corpus import encode, problems
from llmflation.errors import BadInputError
from llmflation.kvcache import ContiguousKVCache
from llmflation.model import Transformer, generate
from llmflation.pretrained import load_toy
from llmflation.quant.integer import quantize
from llmflation.quantized_cache import QuantizedKVCache

LAWFUL = settings(max_examples=60, derandomize=True, deadline=None, database=None)
CONTEXT, D = 40, 16
CFG = ModelConfig(2, 24, 4, 2, 40, 61, head_dim=D, context=CONTEXT)
CALLS = ((9, 1, 0, 4), (1, 0, 3, 0), (0, 0, 4, 1), (3, 0, 1, 0), (1, 1, 1, 1))


@st.composite
def calls_of(draw) -> tuple[tuple[int, ...], ...]:
    rows = draw(st.integers(1, 4))
    call = st.tuples(*[st.sampled_from([0, 1, 1, 2, 5, 9])] * rows)
    return tuple(draw(st.lists(call, min_size=1, max_size=4)))


settings_of = st.fixed_dictionaries({"bits": st.sampled_from([4, 8]), "group_size": st.sampled_from([None, 2, 8, D]),
                                     "recent": st.sampled_from([0, 1, 2, 3, 7, 99])})


def tensors(rows: int, seed: int = 0, outlier: float = 20.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of CONTEXT tokens of each row; one channel of the keys is far off, as in real ones."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(CFG.n_layers, rows, heads, CONTEXT, D, generator=generator) for heads in (4, 2, 2))
    k[..., 3] += outlier
    return q / 4, k, v


def padded(x: Tensor, starts: list[int], call: tuple[int, ...]) -> Tensor:
    """The next tokens of one layer, (B, heads, T, D), those of the shorter rows with noise behind them."""
    out = torch.full((*x.shape[:2], max(call), D), 7.0)
    for row, (start, n) in enumerate(zip(starts, call, strict=True)):
        out[row, :, :n] = x[row, :, start : start + n]
    return out


@torch.no_grad()
def looked(cache, calls, q: Tensor, k: Tensor, v: Tensor) -> list[list[Tensor]]:
    """What the queries of each layer and row gather when the tokens arrive in these calls, (H, tokens, D) each."""
    found = [[[] for _ in calls[0]] for _ in q]
    for call in calls:
        starts, n_new = cache.lengths.tolist(), torch.tensor(call)
        if sum(call) == 0:
            continue
        cache.reserve(n_new)
        asks = (cache.lengths[:, None] + torch.arange(max(call)))[:, None, :, None]
        mask = torch.arange(int((cache.lengths + n_new).max())) <= asks  # (B, 1, T, S)
        for layer in range(len(q)):
            made = cache.attend(layer, *(padded(x[layer], starts, call) for x in (q, k, v)), mask)
            for row, n in enumerate(call):
                found[layer][row].append(made[row, :, :n])
        cache.advance(n_new)
    return [[torch.cat(parts, dim=1) if parts else torch.empty(4, 0, D) for parts in rows] for rows in found]


def by_hand(q: Tensor, k: Tensor, v: Tensor, n: int, bits: int, group_size, recent: int) -> Tensor:
    """One layer and row: query by query over keys of which all but the recent ones are rounded, (H, n, D)."""
    rounded = [quantize(x.reshape(-1, D), bits, group_size, symmetric=False).dequantize().view(x.shape) for x in (k, v)]
    out = torch.zeros(4, n, D)
    for p in range(n):
        edge = max(0, p + 1 - recent)
        keys, values = (torch.cat((r[:, :edge], x[:, edge : p + 1]), dim=1)
                        for r, x in zip(rounded, (k, v), strict=True))
        for head in range(4):
            weights = (keys[head // 2] @ q[head, p] / D**0.5).softmax(0)
            out[head, p] = weights @ values[head // 2]
    return out


# --- the laws ------------------------------------------------------------------------------------------------


def attention_is_that_over_rounded_tokens(kind, calls, chosen) -> None:
    q, k, v = tensors(len(calls[0]))
    cache = kind(CFG, len(calls[0]), **chosen)
    found, ends = looked(cache, calls, q, k, v), [sum(call[row] for call in calls) for row in range(len(calls[0]))]
    assert cache.lengths.tolist() == ends
    for layer, rows in enumerate(found):
        for row, got in enumerate(rows):
            wanted = by_hand(q[layer, row], k[layer, row], v[layer, row], ends[row], **chosen)
            torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


def no_error_above_half_a_step(kind, bits: int, group_size, scale: float) -> None:
    _, k, v = tensors(2, outlier=5.0)
    cache = kind(CFG, 2, bits=bits, group_size=group_size)
    cache.reserve(torch.tensor([30, 30]))
    for x, held in zip((k, v), cache.append(1, k[1, :, :, :30] * scale, v[1, :, :, :30] * scale), strict=True):
        groups = (x[1, :, :, :30] * scale).unflatten(-1, (-1, group_size or D))
        step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / (2**bits - 1)
        error = (held.unflatten(-1, groups.shape[-2:]) - groups).abs().amax(-1)
        assert (error <= step * 0.5 * (1 + 1e-4)).all()
        assert (error > step * 0.3).any()  # and it is rounded indeed


def how_tokens_arrive_changes_no_code(kind, calls, bits: int) -> None:
    q, k, v = tensors(len(calls[0]))
    ends = [sum(call[row] for call in calls) for row in range(len(calls[0]))]
    one, two = (kind(CFG, len(calls[0]), bits=bits, group_size=8) for _ in range(2))
    for a, b in zip(looked(one, calls, q, k, v), looked(two, [tuple(ends)], q, k, v), strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-5)
    for row, end in enumerate(ends):
        for name in ("_codes", "_scales", "_zeros"):
            x, y = (getattr(cache, name)[:, :, row, :, :end] for cache in (one, two))
            assert torch.equal(x, y)


def recent_tokens_are_those_of_a_whole_cache(kind, calls, bits: int) -> None:
    q, k, v = tensors(len(calls[0]))
    most = max(sum(call[row] for call in calls) for row in range(len(calls[0])))
    whole = looked(ContiguousKVCache(CFG, len(calls[0])), calls, q, k, v)
    found = looked(kind(CFG, len(calls[0]), bits=bits, group_size=None, recent=max(most, 1)), calls, q, k, v)
    assert all(torch.equal(x, y) for a, b in zip(found, whole, strict=True) for x, y in zip(a, b, strict=True))


def forgotten_tokens_leave_no_trace(kind, calls, chosen) -> None:
    """One token too many in each row, taken back by `truncate` and never come."""
    rows = len(calls[0])
    q, k, v = tensors(rows)
    plain, cache = kind(CFG, rows, **chosen), kind(CFG, rows, **chosen)
    wanted = looked(plain, calls, q, k, v)
    other = tensors(rows, seed=1)
    found = [[torch.empty(4, 0, D)] * rows for _ in q]
    for call in calls:
        held = cache.lengths.clone()
        looked(cache, [(1,) * rows], *other)
        cache.truncate(held)
        found = [[torch.cat(pair, 1) for pair in zip(*layer, strict=True)]
                 for layer in zip(found, looked(cache, [call], q, k, v), strict=True)]
    for a, b in zip(found, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def an_interrupted_call_leaves_no_trace(kind, chosen, new: tuple[int, ...]) -> None:
    """It ends when the first layer has stored its tokens, or the last one has."""
    q, k, v = tensors(4)
    other = tensors(4, seed=1)
    cache = kind(CFG, 4, **chosen)
    parts, wanted = [], looked(kind(CFG, 4, **chosen), CALLS, q, k, v)
    for call in CALLS:
        for layers in (1, 2):
            cache.reserve(torch.tensor(new))
            for layer in range(layers):
                cache.append(layer, *(x[layer, :, :, : max(new)] for x in other[1:]))
        parts.append(looked(cache, [call], q, k, v))
    for layer, rows in enumerate(wanted):
        for row, x in enumerate(rows):
            torch.testing.assert_close(torch.cat([p[layer][row] for p in parts], 1), x, rtol=0, atol=2e-5)


def twins_are_apart(kind, chosen) -> None:
    q, k, v = tensors(4)
    other = tensors(4, seed=1)
    cache = kind(CFG, 4, **chosen)
    looked(cache, CALLS, q, k, v)
    twin, lengths = cache.fork([2, 0, 0]), cache.lengths
    assert twin.lengths.tolist() == lengths[[2, 0, 0]].tolist()
    looked(twin, [(5, 5, 5)], *(x[:, [2, 0, 0]] for x in other))
    wanted = kind(CFG, 4, **chosen)
    looked(wanted, CALLS, q, k, v)
    for a, b in zip(looked(cache, [(4,) * 4], q, k, v), looked(wanted, [(4,) * 4], q, k, v), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def written_again_after_free(kind, chosen) -> None:
    q, k, v = tensors(4)
    cache = kind(CFG, 4, **chosen)
    first = looked(cache, CALLS, q, k, v)
    cache.free()
    assert cache.lengths.tolist() == [0] * 4
    for a, b in zip(first, looked(cache, CALLS, q, k, v), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(calls=calls_of(), chosen=settings_of)
@LAWFUL
def test_attention_is_that_over_rounded_tokens(calls, chosen):
    attention_is_that_over_rounded_tokens(QuantizedKVCache, calls, chosen)


@given(calls=calls_of(), chosen=settings_of)
@settings(LAWFUL, max_examples=20)
def test_pieces_of_one_head_gather_the_same(calls, chosen):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmflation.quantized_cache.PIECE_BYTES", 1)
        attention_is_that_over_rounded_tokens(QuantizedKVCache, calls, chosen)


@given(bits=st.sampled_from([4, 8]), group_size=st.sampled_from([None, 2, 4, 8]),
       scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(LAWFUL, max_examples=30)
def test_no_error_above_half_a_step(bits, group_size, scale):
    no_error_above_half_a_step(QuantizedKVCache, bits, group_size, scale)


@given(calls=calls_of(), bits=st.sampled_from([4, 8]))
@LAWFUL
def test_how_tokens_arrive_changes_no_code(calls, bits):
    how_tokens_arrive_changes_no_code(QuantizedKVCache, calls, bits)


@given(calls=calls_of(), bits=st.sampled_from([4, 8]))
@LAWFUL
def test_recent_tokens_are_those_of_a_whole_cache(calls, bits):
    recent_tokens_are_those_of_a_whole_cache(QuantizedKVCache, calls, bits)


@given(calls=calls_of(), chosen=settings_of)
@LAWFUL
def test_forgotten_tokens_leave_no_trace(calls, chosen):
    forgotten_tokens_leave_no_trace(QuantizedKVCache, calls, chosen)


@given(chosen=settings_of, new=st.tuples(*[st.sampled_from([0, 1, 2, 6, 12])] * 4))
@settings(LAWFUL, max_examples=30)
def test_an_interrupted_call_leaves_no_trace(chosen, new):
    an_interrupted_call_leaves_no_trace(QuantizedKVCache, chosen, new)


@given(chosen=settings_of)
@settings(LAWFUL, max_examples=20)
def test_twins_are_apart_and_a_reset_leaves_nothing(chosen):
    twins_are_apart(QuantizedKVCache, chosen)
    written_again_after_free(QuantizedKVCache, chosen)


@given(bits=st.sampled_from([4, 8]), group_size=st.sampled_from([None, 8]), recent=st.integers(0, 50),
       capacity=st.integers(1, CONTEXT), batch=st.integers(1, 3), scale=st.sampled_from([torch.float32, torch.float16]))
@settings(LAWFUL, max_examples=30)
def test_the_bytes_are_those_counted_by_hand(bits, group_size, recent, capacity, batch, scale):
    cache = QuantizedKVCache(CFG, batch, capacity, bits, group_size, recent, torch.bfloat16, scale_dtype=scale)
    groups = 2 if group_size == 8 else 1
    vectors = 2 * 2 * 2  # layers, keys and values, heads
    rounded = vectors * (16 * bits // 8 + groups * (scale.itemsize + 1))
    assert cache.nbytes == batch * (capacity * rounded + min(recent, capacity) * vectors * 16 * 2)
    assert cache.bits_per_value == bits + groups * (scale.itemsize + 1) / 2
    counts = cache.lengths.nbytes + cache._lost.nbytes
    assert cache.nbytes == sum(x.nbytes for x in vars(cache).values() if isinstance(x, Tensor)) - counts


@pytest.mark.parametrize("recent", [0, 1, 3, CONTEXT, 10**6])
def test_no_token_one_token_and_a_window_larger_than_the_cache(recent):
    _, k, v = tensors(2)
    cache = QuantizedKVCache(CFG, 2, 5, 4, None, recent)
    nothing = torch.zeros(2, dtype=torch.long)
    cache.reserve(nothing)
    keys, values = cache.append(0, k[0, :, :, :0], v[0, :, :, :0])
    assert keys.shape == values.shape == (2, 2, 0, D)
    cache.advance(nothing)
    cache.reserve(nothing + 1)
    keys, values = cache.append(0, k[0, :, :, :1], v[0, :, :, :1])
    cache.advance(nothing + 1)
    assert cache.lengths.tolist() == [1, 1] and torch.equal(keys, k[0, :, :, :1]) == (recent > 0)
    torch.testing.assert_close(keys, k[0, :, :, :1], rtol=0, atol=1)
    cache.reserve(nothing)
    assert torch.equal(cache.append(0, k[0, :, :, :0], v[0, :, :, :0])[0], keys)


def test_padding_longer_than_any_row_is_no_text():
    model, tokens = Transformer(CFG, seed=3).eval(), torch.arange(48).view(4, 12)
    n_new = torch.tensor([7, 1, 0, 3])
    with torch.no_grad():
        for recent in (0, 1, 2, 5, 40):
            cache = QuantizedKVCache(CFG, 4, group_size=8, recent=recent)
            for last_only in (False, True, False):
                scores = model(tokens, cache, n_new, last_only=last_only)
                assert torch.isfinite(scores).all()


@pytest.mark.parametrize("recent", [0, 4, 40])
def test_the_last_token_alone_asks_as_it_does_among_all(recent):
    model, tokens = Transformer(CFG, seed=3).eval(), torch.arange(40).view(2, 20)
    with torch.no_grad():
        for n_new in (torch.tensor([20, 20]), torch.tensor([13, 20])):
            a, b = (QuantizedKVCache(CFG, 2, group_size=8, recent=recent) for _ in range(2))
            every, last = model(tokens, a, n_new), model(tokens, b, n_new, last_only=True)
            torch.testing.assert_close(last[:, 0], every[torch.arange(2), n_new - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("recent", [0, 3])
def test_a_cache_made_in_one_mode_is_used_in_another(recent):
    model, tokens = Transformer(CFG, seed=3).eval(), torch.arange(40).view(2, 20)
    modes = torch.inference_mode, torch.no_grad, torch.enable_grad
    for inside in modes:
        with inside():
            cache = QuantizedKVCache(CFG, 2, group_size=8, recent=recent)
        for mode in [*modes, *modes]:
            with mode():
                model(tokens[:, :3], cache)
                cache = cache.fork([0, 1])
                model(tokens[:, :1], cache)
                cache.truncate(cache.lengths - 1)
        assert cache.lengths.tolist() == [18, 18]


# --- what it costs in words ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return load_toy()


def prompts() -> list[list[int]]:
    names = "sums", "look-up", "sorting", "brackets"
    return [encode(p.prompt) for name in names for p in problems(name, "standard", 2, 0, 256)]


def test_the_toy_writes_the_same_in_8_bits(toy):
    whole = generate(toy, prompts(), 12, ContiguousKVCache(toy.cfg, 8))
    for recent in (0, 16):
        assert generate(toy, prompts(), 12, QuantizedKVCache(toy.cfg, 8, recent=recent)) == whole


def test_fewer_bits_and_wider_groups_differ_more(toy):
    """And recent tokens in full make up for some of it."""
    text = [torch.tensor([p]) for p in prompts()]
    apart = {}
    with torch.inference_mode():
        whole = [toy(t) for t in text]
        for chosen in ((8, 32, 0), (8, None, 0), (4, 32, 0), (4, 32, 16), (4, None, 0)):
            errors = [toy(t, QuantizedKVCache(toy.cfg, 1, 256, *chosen)) - w for t, w in zip(text, whole, strict=True)]
            apart[chosen] = torch.cat([e.flatten() for e in errors]).square().mean().sqrt().item()
    usual = torch.cat([w.flatten() for w in whole]).std().item()
    assert 0 < apart[8, 32, 0] < apart[8, None, 0] < usual / 100, (apart, usual)
    assert 4 * apart[8, None, 0] < apart[4, 32, 0] < apart[4, None, 0] < usual / 10, (apart, usual)
    assert apart[4, 32, 16] < apart[4, 32, 0], apart


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, says", [
    ({"bits": 3}, "bits is 3; allowed: 8 or 4"),
    ({"bits": 0}, "bits is 0; allowed: 8 or 4"),
    ({"bits": "8"}, "bits is '8'; allowed: 8 or 4"),
    ({"bits": 8.0}, "bits is 8.0; allowed: 8 or 4"),
    ({"bits": True}, "bits is True; allowed: 8 or 4"),
    ({"group_size": 12}, "groups of 12 do not divide the 16 columns of a head .* nearest that do: 8 and 16"),
    ({"group_size": 0}, "group_size is 0; allowed"),
    ({"recent": -1}, "recent is -1; allowed: a whole number of 0 or more"),
    ({"recent": 1.5}, "recent is 1.5; allowed"),
    ({"batch": 0}, "batch is 0"),
    ({"capacity": CONTEXT + 1}, "capacity is 41"),
    ({"dtype": torch.int8}, "dtype is torch.int8; allowed: a float format"),
    ({"scale_dtype": torch.uint8}, "scale_dtype is torch.uint8; allowed: a float format"),
])
def test_what_no_cache_can_be_made_of_is_refused(change, says):
    with pytest.raises(BadInputError, match=says):
        QuantizedKVCache(**{"cfg": CFG, "batch": 1, "group_size": None} | change)


@pytest.mark.parametrize("spoil, says", [
    (lambda x: x.bfloat16(), "keys or values are torch.bfloat16 .*this call reserved torch.float32"),
    (lambda x: x[:, :, :2], r"this call reserved torch.float32 \(4, 2, 3, 16\)"),
    (lambda x: x[:, :1], r"this call reserved torch.float32 \(4, 2, 3, 16\)"),
    (lambda x: x.index_fill(2, torch.tensor([1]), torch.nan), "keys or values has 128 NaN and 0 infinite"),
    (lambda x: x.index_fill(2, torch.tensor([1]), torch.inf), "keys or values has 0 NaN and 128 infinite"),
])
@pytest.mark.parametrize("recent", [0, 2, 30])
def test_a_refused_call_changes_nothing(spoil, says, recent):
    q, k, v = tensors(4)
    cache, same = (QuantizedKVCache(CFG, 4, 20, group_size=8, recent=recent) for _ in range(2))
    for c in (cache, same):
        looked(c, CALLS[:3], q, k, v)
    with pytest.raises(BadInputError, match="sequence 0 holds 10 tokens and 11 more do not fit into 20"):
        cache.reserve(torch.tensor([11, 0, 0, 0]))
    with pytest.raises(BadInputError, match="n_new"):
        cache.reserve(torch.tensor([-1, 0, 0, 0]))
    cache.reserve(torch.tensor([3, 3, 3, 3]))
    with pytest.raises(BadInputError, match=says):
        cache.append(0, k[0, :, :, :3], spoil(v[0, :, :, :3]))
    for lengths in ([11, 1, 1, 1], [-1, 1, 1, 1], [1]):
        with pytest.raises(BadInputError, match="between 0 and what is held"):
            cache.truncate(torch.tensor(lengths))
    with pytest.raises(BadInputError, match=r"rows \[4\] must name"):
        cache.fork([4])
    for name in ("_codes", "_scales", "_zeros", "_ring", "lengths"):
        assert torch.equal(getattr(cache, name), getattr(same, name))
    for a, b in zip(looked(cache, CALLS[3:], q, k, v), looked(same, CALLS[3:], q, k, v), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_going_back_to_where_recent_tokens_are_rounded_is_refused():
    """Up to `recent` tokens a text goes back to anywhere, a longer one by one token or to nothing, and rounded all the
    way to anywhere."""
    q, k, v = tensors(1)
    for held in range(1, 20):
        for kept in range(held + 1):
            cache, exact = QuantizedKVCache(CFG, 1, group_size=8, recent=7), kept in (0, held - 1, held) or held <= 7
            looked(cache, [(held,)], q, k, v)
            if exact:
                cache.truncate(torch.tensor([kept]))
                assert cache.lengths.tolist() == [kept]
            else:
                with pytest.raises(BadInputError, match=f"go back to {kept} tokens: its first {held - 7} are rounded"):
                    cache.truncate(torch.tensor([kept]))
                assert cache.lengths.tolist() == [held]
            start = cache.lengths.item()
            [got], *_ = looked(cache, [(1,), (2,)], q, k, v)
            wanted = by_hand(q[0, 0], k[0, 0], v[0, 0], start + 3, 8, 8, 7)[:, start:]
            torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)
            free = QuantizedKVCache(CFG, 1, group_size=8)
            looked(free, [(held,)], q, k, v)
            free.truncate(torch.tensor([kept]))


# --- each fault breaks a law ---------------------------------------------------------------------------------


class ZeroForgotten(QuantizedKVCache):
    """Codes are taken to stand for what lies above 0."""

    def _dequantize(self, out, *where):
        super()._dequantize(out, *where)
        layer, rows, heads = (*where, slice(None), slice(None))[:3]
        low = self._zeros[layer, :, rows, heads, : out.shape[3], :, None] * self._scales[
            layer, :, rows, heads, : out.shape[3], :, None]
        out.unflatten(-1, (low.shape[-2], -1)).add_(low)


class RoundedDown(QuantizedKVCache):
    """The code below instead of the nearest."""

    def _dequantize(self, out, *where):
        super()._dequantize(out, *where)
        layer, rows, heads = (*where, slice(None), slice(None))[:3]
        scale = self._scales[layer, :, rows, heads, : out.shape[3], :, None]
        out.unflatten(-1, (scale.shape[-2], -1)).sub_(scale / 2)


class SeenTwice(QuantizedKVCache):
    """A recent token is seen rounded, too."""

    def _mask_of(self, mask, n_asking):
        shown = super()._mask_of(mask, n_asking)
        n_rounded = self._end - self.recent
        return torch.cat((mask[..., :n_rounded], shown[..., n_rounded:]), dim=-1)


class PerCall(QuantizedKVCache):
    """All tokens of a call share the scales of its largest."""

    def _write(self, layer, k, v):
        super()._write(layer, k, v)
        for store in (self._scales, self._zeros):
            store[layer][..., : self._end, :] = store[layer][..., : self._end, :].amax(3, keepdim=True)


class AllRounded(QuantizedKVCache):
    """`recent` is taken and not heeded."""

    def __init__(self, cfg, batch, *args, recent=0, **more):
        super().__init__(cfg, batch, *args, **more)


class TooSoon(QuantizedKVCache):
    """The ring is written while the call runs."""

    def _write(self, layer, k, v):
        super()._write(layer, k, v)
        if self._kept is not None:
            self._ring[layer][:, self._row, :, self._place] = self._kept[:, layer]


class SharedFork(QuantizedKVCache):
    """A fork that shares its parent's scales."""

    def fork(self, rows):
        twin = super().fork(rows)
        twin._scales = self._scales[:, :, : len(rows)]
        return twin


class NotReset(QuantizedKVCache):
    """The pointer stays where the last text ended."""

    def free(self):
        pass


class NeverBack(QuantizedKVCache):
    """What is forgotten is held on to."""

    def truncate(self, lengths):
        pass


R3 = {"bits": 8, "group_size": 8, "recent": 3}


@pytest.mark.parametrize("law, given, fault", [
    (attention_is_that_over_rounded_tokens, (CALLS, R3), ZeroForgotten),
    (attention_is_that_over_rounded_tokens, (CALLS, R3 | {"bits": 4}), AllRounded),
    (attention_is_that_over_rounded_tokens, (CALLS, R3 | {"bits": 4}), SeenTwice),
    (no_error_above_half_a_step, (4, 8, 1.0), RoundedDown),
    (how_tokens_arrive_changes_no_code, (CALLS, 8), PerCall),
    (recent_tokens_are_those_of_a_whole_cache, (CALLS, 8), AllRounded),
    (an_interrupted_call_leaves_no_trace, (R3, (6, 6, 6, 6)), TooSoon),
    (forgotten_tokens_leave_no_trace, (CALLS, R3), NeverBack),
    (twins_are_apart, (R3,), SharedFork),
    (written_again_after_free, (R3,), NotReset),
])
def test_a_faulty_cache_breaks_the_law(law, given, fault):
    law(QuantizedKVCache, *given)
    with pytest.raises((AssertionError, BadInputError)):
        law(fault, *given)


def test_a_head_narrower_than_a_group_is_a_group():
    narrow = ModelConfig(2, 64, 4, 2, 96, 61, context=32, head_dim=16)
    cache = QuantizedKVCache(narrow, 1)
    assert cache._scales.shape[-1] == 1
    with pytest.raises(BadInputError, match="dtype is 'float32'"):
        QuantizedKVCache(narrow, 1, dtype="float32")
