"""Muon: PyTorch's, bit for bit, where both multiply in bfloat16; and what it promises about every step."""

import pytest
import torch

from llmflation.muon import Muon, fast_format, orthogonalized


def stepped(optimizer_of, steps: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((32, 64), (96, 32), (32, 32))]
    optimizer = optimizer_of(weights)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
        for p in weights:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in weights]


def test_it_is_pytorchs_bit_for_bit_in_bfloat16():
    ours, theirs = stepped(lambda w: Muon(w, 0.02, dtype=torch.bfloat16)), stepped(lambda w: torch.optim.Muon(w, 0.02))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_in_float32_it_steps_almost_as_in_bfloat16():
    fine, coarse = (stepped(lambda w, d=d: Muon(w, 0.02, dtype=d)) for d in (torch.float32, torch.bfloat16))
    start = stepped(lambda w: Muon(w, 0.02), steps=0)
    for a, b, before in zip(fine, coarse, start, strict=True):
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.02 * (a - before).norm()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_direction_is_about_equally_long(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = matrix.clone()
    lengths = torch.linalg.svdvals(orthogonalized(matrix, dtype).float())
    assert torch.equal(matrix, before)
    assert lengths.min() > 0.3 and lengths.max() < 1.3


def test_a_matrix_without_gradient_stays_where_it_is():
    p, q = torch.nn.Parameter(torch.ones(4, 8)), torch.nn.Parameter(torch.ones(4, 8))
    p.grad = torch.ones(4, 8)
    Muon([p, q], 0.1).step()
    assert torch.equal(q.detach(), torch.ones(4, 8)) and not torch.equal(p.detach(), torch.ones(4, 8))


@pytest.mark.parametrize(("avx", "amx"), [(True, False), (False, True), (False, False)])
def test_the_format_is_the_processors(monkeypatch, avx, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_format() == (torch.bfloat16 if avx or amx else torch.float32)
