"""AWQ: the scaled model is the same function, rounds better where it was calibrated, and never worse than unscaled."""

import copy

import pytest
import torch
from torch import nn

from llmflation.config import ModelConfig
from llmflation.corpus import BOS, encode, training_document
from llmflation.errors import BadInputError
from llmflation.evaluate import bits_per_byte
from llmflation.linear import Linear
from llmflation.model import Transformer
from llmflation.pretrained import load_toy
from llmflation.quant import awq
from llmflation.quant.awq import folds, powers, scaled, search_scales
from llmflation.quant.calibration import Inputs, collect, linear_layers, output_error, shared_copy
from llmflation.quant.gptq import quantize_layers
from llmflation.quant.integer import quantize


def model_of(n_heads=4, n_kv_heads=2, seed=0):
    """A model whose channels differ in size, as those of trained ones do."""
    cfg = ModelConfig(2, 32, n_heads, n_kv_heads, 64, 50, context=64, tied_embeddings=True, head_dim=8)
    model, generator = Transformer(cfg, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_((torch.randn(p.shape, generator=generator) / 2).exp())
            if name.endswith(("gate_up.weight", "qkv.weight")):
                p.mul_((torch.randn(len(p), 1, generator=generator) / 2).exp())
    return model


TOKENS = torch.randint(50, (8, 32), generator=torch.Generator().manual_seed(0))
FRESH = torch.randint(50, (4, 48), generator=torch.Generator().manual_seed(1))
HEADS = [(4, 4), (4, 2), (4, 1), (6, 3)]


def most_changed(a, b):
    with torch.no_grad():
        return float((a(FRESH) - b(FRESH)).abs().max() / a(FRESH).abs().max())


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_the_scaled_model_computes_the_same(n_heads, n_kv_heads):
    model, found = model_of(n_heads, n_kv_heads), []
    made = scaled(model, TOKENS, 3, 8, watch=found.append)
    assert type(made) is Transformer and made.cfg == model.cfg
    assert most_changed(model, made) < 1e-5
    assert [f.name for f in found] == [f"blocks.{i}.{layer}" for i in range(2) for layer in (
        "attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")]
    assert sum(f.power > 0 for f in found) >= 4  # it has done something
    for name, layer in linear_layers(made).items():
        was = model.get_submodule(name).weight
        assert (layer.weight is was) if name == "head" else (layer.weight.shape == was.shape)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
@pytest.mark.parametrize("layer", ["attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"])
def test_any_scales_fold_away_and_on_the_wrong_axis_they_do_not(layer, n_heads, n_kv_heads):
    model = model_of(n_heads, n_kv_heads)
    fold = next(f for f in folds(model.blocks[0]) if f.layer == layer)
    k = model.blocks[0].get_submodule(layer).weight.shape[1]
    scales = torch.rand(k, generator=torch.Generator().manual_seed(0)) * 4 + 0.1
    if fold.shared:
        scales = scales.view(fold.shared)[:, :1].expand(fold.shared).flatten()
    for mutant in (False, True):
        made = shared_copy(model)
        awq._apply(made.blocks[0], fold, scales)
        if mutant:  # the columns as they were, and rows scaled instead
            w = model.blocks[0].get_submodule(layer).weight
            rows = scales.repeat(-(-len(w) // k))[: len(w), None]
            made.blocks[0].get_submodule(layer).weight = nn.Parameter(w * rows)
        change = most_changed(model, made)
        assert change > 1e-2 if mutant else change < 1e-5


def test_query_heads_that_share_values_share_scales():
    """The mutant: a scale for each query head's own channel cannot be folded into the values."""
    model = model_of(4, 2)
    fold = folds(model.blocks[0])[3]
    scales = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5
    made = shared_copy(model)
    awq._apply(made.blocks[0], fold, scales)
    assert most_changed(model, made) > 1e-3
    found = []
    scaled(model, TOKENS, 3, 8, watch=found.append)
    for f in found:
        if f.name.endswith("out"):
            groups = f.scales.view(2, 2, 8)
            assert torch.equal(groups[:, 0], groups[:, 1]) and not torch.equal(groups[0], groups[1])


def test_rounding_the_scaled_model_is_never_worse_where_it_was_calibrated():
    """The error that the search claims is that of the layers as they stand in the model it made."""
    model, found = model_of(), []
    made = scaled(model, TOKENS, 3, 16, watch=found.append)
    before, after = collect(model, TOKENS), collect(made, TOKENS)
    for f in found:
        w, new = model.get_submodule(f.name).weight, made.get_submodule(f.name).weight
        error = output_error(new, quantize(new, 3, 16).dequantize(), after[f.name].hessian)
        plain = output_error(w, quantize(w, 3, 16).dequantize(), before[f.name].hessian)
        assert f.plain_error == pytest.approx(plain, rel=1e-3)
        assert f.error <= f.plain_error
        if f.name.endswith(("out", "down")):  # the others' rows are scaled for these: other shares of the whole
            assert error == pytest.approx(f.error, rel=1e-2)
    assert sum(f.error < 0.9 * f.plain_error for f in found) >= 2


def layer_with_large_channels(k=64):
    generator = torch.Generator().manual_seed(0)
    size = torch.ones(k)
    size[::16] = 30
    x = torch.randn(512, k, generator=generator) * size
    inputs = Inputs(512, 2 / 512 * x.double().T @ x.double(), x.abs().mean(0).double())
    return torch.randn(32, k, generator=generator), x, inputs


def test_the_search_takes_the_best_of_the_powers():
    w, x, inputs = layer_with_large_channels()
    found = search_scales(w, inputs, 4, 16, points=10)
    losses = []
    for step in range(11):  # on the activations themselves
        s = (inputs.mean_abs ** (step / 10)).float()
        made = quantize(w * s, 4, 16).dequantize() / s
        losses.append(float((x @ (made - w).T).square().sum() / (x @ w.T).square().sum()))
    assert found.error == pytest.approx(min(losses), rel=1e-2)
    assert found.plain_error == pytest.approx(losses[0], rel=1e-4)
    assert 0 < found.power < 1 and found.error < 0.5 * found.plain_error
    assert "instead of" in repr(found)


def test_without_a_gain_nothing_is_scaled():
    w = quantize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), 4, 32).dequantize()
    h = torch.rand(32, generator=torch.Generator().manual_seed(1)).add(0.5)
    found = search_scales(w, Inputs(9, h.square().diag().double(), h.double()), 4, 32)
    assert found.power == 0 and found.error == found.plain_error and torch.equal(found.scales, torch.ones(32))


def test_a_channel_that_is_always_0_has_a_scale_and_the_function_stays():
    assert torch.equal(powers(torch.zeros(3), 0.5), torch.ones(3))
    assert torch.allclose(powers(torch.tensor([0.0, 1.0, 4.0]), 1), torch.tensor([0.01, 25, 100]), rtol=1e-4)
    model = model_of()
    with torch.no_grad():
        model.blocks[0].attention_norm.weight[3] = 0
        model.blocks[1].feed_forward.gate_up.weight[64 + 5] = 0  # an up row
    found = []
    made = scaled(model, TOKENS, 3, 8, watch=found.append)
    assert all(torch.isfinite(p).all() for p in made.parameters()) and all((f.scales >= 1e-4).all() for f in found)
    assert most_changed(model, made) < 1e-5


def test_the_given_model_is_unchanged():
    model = model_of()
    before = {name: (p, p.clone(), p._version) for name, p in model.named_parameters()}
    scaled(model, TOKENS, 3, 8)
    with pytest.raises(ZeroDivisionError):
        scaled(model, TOKENS, 3, 8, watch=lambda found: 1 / 0)
    for name, p in model.named_parameters():
        assert p is before[name][0] and torch.equal(p, before[name][1]) and p._version == before[name][2]
    assert not any(m._forward_pre_hooks for m in model.modules()) and model.head.weight is model.embedding.weight
    half = scaled(copy.deepcopy(model).bfloat16(), TOKENS, 3, 8)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("change", "says"), [
    ({"inputs": Inputs(1, torch.eye(32).double(), torch.ones(32))}, r"inputs of 32 channels do not belong to weight"),
    ({"bits": 1}, "bits is 1"),
    ({"group_size": 48}, "the nearest that do"),
    ({"points": 0}, "points is 0"),
    ({"w": torch.full((4, 64), float("nan"))}, "256 NaN"),
])
def test_bad_arguments(change, says):
    w, _, inputs = layer_with_large_channels()
    with pytest.raises(BadInputError, match=says):
        search_scales(**({"w": w, "inputs": inputs} | change))


def test_bad_models_and_tokens():
    with pytest.raises(BadInputError, match="there are 0 calibration tokens"):
        scaled(model_of(), [])
    with pytest.raises(BadInputError, match="Sequential has no layer that can be scaled"):
        scaled(nn.Sequential(nn.Embedding(50, 16), Linear(16, 32)), TOKENS)
    broken = model_of()
    with torch.no_grad():
        broken.blocks[1].feed_forward_norm.weight[5] = float("inf")
    with pytest.raises(BadInputError, match=r"activations flow into blocks.1.feed_forward.gate_up, in 1 of its 32"):
        scaled(broken, TOKENS)


# The toy

def rounded(model, layers):
    made = shared_copy(model)
    for name, q in layers.items():
        made.get_submodule(name).weight = nn.Parameter(q.dequantize(), requires_grad=False)
    return made


def test_at_3_bits_the_toy_loses_less_with_gptq():
    toy = load_toy()
    texts = [[BOS, *encode(training_document(1, n, max_bytes=256).text)] for n in range(16)]
    plain = rounded(toy, {name: quantize(layer.weight, 3, 32) for name, layer in linear_layers(toy).items()})
    solved = rounded(toy, quantize_layers(toy, texts, 3))
    whole, lost, less = (bits_per_byte(m).value for m in (toy, plain, solved))
    assert whole < less < whole + 0.6 * (lost - whole)
