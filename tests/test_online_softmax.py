"""Attention by an online softmax: equal to softmax, and what it holds grows with the tokens, not with their square."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation.errors import BadInputError
from llmflation.layers import attend
from llmflation.online_softmax import Held, online_attention, square_attention


def random(heads=2, T=7, S=7, D=8, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(1, heads, n, D, generator=generator) for n in (T, S, S)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_equals_softmax_for_every_split_into_blocks(data):
    S = data.draw(st.integers(1, 40), "S")
    T, block = data.draw(st.integers(1, S), "T"), data.draw(st.integers(1, 50), "block")
    scale = data.draw(st.sampled_from([0.1, 1.0, 30.0]), "scale")
    q, k, v = (x.double() for x in random(T=T, S=S, scale=scale, seed=data.draw(st.integers(0, 99), "seed")))
    assert torch.allclose(online_attention(q, k, v, block), square_attention(q, k, v), rtol=1e-9, atol=1e-9 * scale)


def test_both_are_the_attention_of_the_layers():
    q, k, v = random(T=33, S=33)
    for ours in (square_attention, online_attention):
        assert torch.allclose(ours(q, k, v), attend(q, k, v, None), atol=1e-5)


def test_scores_that_overflow_the_exponential_do_no_harm():
    q, k, v = random(T=20, S=20, scale=50.0)  # scores beyond 88, where exp leaves float32
    assert (q @ k.mT).max() > 1000
    assert torch.isfinite(online_attention(q, k, v, 3)).all()


def peak(attention, T):
    q, k, v = random(T=T, S=T)
    with Held() as held:
        attention(q, k, v)
    return held.peak_bytes


def test_what_it_holds_grows_with_the_tokens_and_the_square_with_their_square():
    assert peak(square_attention, 1024) > 3.5 * peak(square_attention, 512)
    assert peak(online_attention, 1024) < 2.1 * peak(online_attention, 512)
    assert peak(square_attention, 512) >= 2 * 512 * 512 * 4  # two heads of scores


def test_bytes_are_counted_while_they_live_and_views_are_free():
    before = torch.ones(1000)
    with Held() as held:
        a = before + 1  # 4,000 bytes
        b = a.view(10, 100)[2:]
        a += before
        del a, b
        c = before + 2  # the first 4,000 are gone
        d = c.double()
    assert held.peak_bytes == 4_000 + 8_000 and d is not None


@pytest.mark.parametrize(("T", "S", "D"), [(5, 4, 8), (4, 4, 6)])
def test_what_does_not_go_together_is_refused(T, S, D):
    q, (_, k, v) = random(T=T, S=T, D=D)[0], random(T=S, S=S)
    for ours in (square_attention, online_attention):
        with pytest.raises(BadInputError, match="do not go together"):
            ours(q, k, v)


@pytest.mark.parametrize("block", [0, -1, 2.5, True])
def test_a_block_is_a_whole_number(block):
    with pytest.raises(BadInputError, match=f"block is {block}"):
        online_attention(*random(), block)
