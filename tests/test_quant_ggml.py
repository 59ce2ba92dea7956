"""Q8_0 and Q4_0 beside the gguf package, byte for byte, on awkward blocks and on the real model's weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from hypothesis import given, settings
from quant_cases import normal, weights

from llmflation.errors import BadInputError
from llmflation.pretrained import real_model_file
from llmflation.quant import ggml
from llmflation.quant.floats import nf4
from llmflation.quant.ggml import from_blocks, q4_0, q8_0, to_blocks
from llmflation.quant.integer import quantize

KINDS = {"q8_0": (q8_0, GGMLQuantizationType.Q8_0, 34), "q4_0": (q4_0, GGMLQuantizationType.Q4_0, 18)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def law_of_the_bytes(kind, w):
    """Bytes and values are those of gguf, and the way back from the bytes is exact."""
    make, theirs, _ = KINDS[kind]
    q, blocks = make(w), quants.quantize(w.numpy(), theirs)
    ours = to_blocks(q)
    assert ours.dtype == torch.uint8 and np.array_equal(ours.numpy(), blocks)
    values = torch.from_numpy(quants.dequantize(blocks, theirs))
    back = from_blocks(ours, kind, w.shape[1])
    assert torch.equal(q.dequantize(), values) and torch.equal(back.dequantize(), values)
    assert torch.equal(back.codes, q.codes) and torch.equal(back.scales.view(torch.int16), q.scales.view(torch.int16))
    assert (back.format, back.bits, back.shape) == (q.format, q.bits, q.shape) == (kind, q.bits, tuple(w.shape))


def awkward() -> torch.Tensor:
    """Noise of all sizes that float16 scales hold; zeros of both signs; ties among values and for the largest."""
    halves = torch.arange(-15.5, 16.5)
    rows = [halves / halves.abs().max() * 127, halves / 2, -halves / 2, (halves - 0.5) / 2, torch.linspace(-8, 7, 32),
            torch.full((32,), 3.0), torch.full((32,), -3.0), torch.zeros(32), -torch.zeros(32)]
    ends = {(127.0,): torch.arange(31) + 0.5, (-127.0,): torch.arange(31) + 0.5, (8.0,): torch.linspace(-7.5, 7.5, 31),
            (0.0, 1e-7): torch.zeros(30), (-0.0, -1e-7): torch.zeros(30), (5e5,): torch.ones(31),
            (0.49999997, 127.0): torch.zeros(30), (1.0, -1.0) * 16: torch.zeros(0), (-1.0, 1.0) * 16: torch.zeros(0)}
    rows += [torch.cat((torch.tensor(first), rest)) for first, rest in ends.items()]
    sizes = 10 ** torch.linspace(-35, 5, 2048)[:, None]
    return torch.cat((torch.stack(rows), normal(4096, 32), sizes * normal(2048, 32, 1).clamp(-4, 4)))


@every_kind
def test_bytes_are_ggufs(kind):
    law_of_the_bytes(kind, awkward())


@every_kind
@settings(max_examples=60, deadline=None)
@given(w=weights(least=2**-140, most=4e5))
def test_bytes_are_ggufs_whatever_the_weight(kind, w):
    most = w.view(-1, 32).abs().amax(1)
    law_of_the_bytes(kind, w.view(-1, 32)[(most == 0) | (most > 1e-36)])  # below, gguf's 1 / d is infinite


@pytest.fixture(scope="module")
def real_tensors():
    return {t.name: t for t in GGUFReader(real_model_file()).tensors}


@every_kind
def test_the_real_models_weights_give_ggufs_bytes(kind, real_tensors):
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = set()
    for name in names:
        stored = real_tensors[f"blk.7.{name}.weight"]
        w = torch.from_numpy(quants.dequantize(stored.data, stored.tensor_type))
        law_of_the_bytes(kind, w)
        shapes.add(tuple(w.shape))
    assert shapes == {(576, 576), (192, 576), (1536, 576), (576, 1536)}


def test_the_real_models_own_blocks_are_read_and_written_unchanged(real_tensors):
    stored = real_tensors["token_embd.weight"]
    assert stored.tensor_type == GGMLQuantizationType.Q8_0
    data = torch.from_numpy(stored.data[:4096].copy())
    q = from_blocks(data, "q8_0", 576)
    assert torch.equal(to_blocks(q), data)
    assert torch.equal(q.dequantize(), torch.from_numpy(quants.dequantize(data.numpy(), stored.tensor_type)))


def test_a_block_by_hand():
    assert to_blocks(q4_0(torch.linspace(-8, 7, 32)[None])).numpy().tobytes().hex(" ").startswith("00 3c 80 80 91 91")
    w = torch.arange(32.0)[None] - 16
    w[0, 0] = 127
    made = to_blocks(q8_0(w)).numpy().tobytes()
    assert made[:6] == bytes([0x00, 0x3C, 127, 256 - 15, 256 - 14, 256 - 13])


@every_kind
def test_blocks_hold_as_many_bytes_as_the_tensor(kind):
    make, _, size = KINDS[kind]
    q = make(normal(3, 128))
    assert to_blocks(q).shape == (3, 4 * size) and to_blocks(q).numel() == q.nbytes
    assert q.bits_per_weight == 8 * size / 32


@pytest.mark.parametrize(("kind", "fault"), [
    ("q8_0", ("_half", lambda d, name: d.half() * (1 + 2**-9))), ("q4_0", ("_inverse", lambda d: -1 / d)),
    ("q4_0", ("_inverse", lambda d: 1 / d.half().float())), ("q8_0", ("_inverse", lambda d: 1 / d.half().float())),
])
def test_a_wrong_scale_is_found(monkeypatch, kind, fault):
    monkeypatch.setattr(ggml, *fault)
    with pytest.raises(AssertionError):
        law_of_the_bytes(kind, normal(64, 64))


def test_halves_in_the_order_of_our_own_packing_are_found(monkeypatch):
    """Neighbours in one byte, as in `pack`, are not GGUF's order."""
    def neighbours(q):
        scales = q.scales.view(torch.uint8).view(len(q.codes), -1, 2)
        return torch.cat((scales, q.codes.view(len(q.codes), -1, 16)), -1).flatten(1)

    monkeypatch.setitem(globals(), "to_blocks", neighbours)
    with pytest.raises(AssertionError):
        law_of_the_bytes("q4_0", normal(2, 64))


@every_kind
def test_31_columns_are_refused(kind):
    with pytest.raises(BadInputError, match=rf"^{kind} takes 32 weights of a row.* the 31 columns of up \(1, 31\)"):
        KINDS[kind][0](torch.zeros(1, 31), name="up")


@every_kind
def test_a_scale_beyond_float16_is_refused(kind):
    with pytest.raises(BadInputError, match="^up needs a scale of .*; GGUF keeps it in float16, .* 65504"):
        KINDS[kind][0](torch.full((1, 32), 1e9), name="up")


def test_other_formats_have_no_blocks():
    for q in (quantize(normal(), 4, 32), nf4(normal()), quantize(normal(), 8)):
        with pytest.raises(BadInputError, match=f"^format is '{q.format}'; allowed: 'q8_0' or 'q4_0'"):
            to_blocks(q)
    with pytest.raises(BadInputError, match="^format is 'q5_0'"):
        from_blocks(torch.zeros(1, 34, dtype=torch.uint8), "q5_0", 32)


@every_kind
@pytest.mark.parametrize("columns", [31, 64, 0, -32, 32.0, None])
def test_bytes_that_do_not_belong_to_so_many_columns(kind, columns):
    data = to_blocks(KINDS[kind][0](normal(2, 32)))
    with pytest.raises(BadInputError, match=rf"{columns}"):
        from_blocks(data, kind, columns)
    for wrong in (data.float(), data[0], data[:, 1:]):
        with pytest.raises(BadInputError, match=f"are no {kind} blocks of 32 columns; allowed: bytes"):
            from_blocks(wrong, kind, 32)


def test_a_broken_scale_in_a_file_is_refused():
    data = to_blocks(q8_0(normal(2, 64)))
    data[0, 1] = 0x7C  # an infinite or NaN float16
    with pytest.raises(BadInputError, match="^1 scales of these q8_0 blocks are NaN or infinite"):
        from_blocks(data, "q8_0", 64)


def test_blocks_of_rows_that_are_not_side_by_side_in_memory():
    q = q4_0(normal(2, 64))
    wide = torch.zeros(2, 80, dtype=torch.uint8)
    wide[:, :36] = to_blocks(q)
    assert torch.equal(from_blocks(wide[:, :36], "q4_0", 64).codes, q.codes)
    assert torch.equal(to_blocks(replace(q, scales=q.scales.T.contiguous().T)), to_blocks(q))
