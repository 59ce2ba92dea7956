"""GPTQ beside optimal brain quantization, written out with explicit inverses in float64; and what it must not lose."""

import copy

import pytest
import torch
from torch import nn

from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, UnknownNameError
from llmflation.linear import Linear
from llmflation.model import Transformer
from llmflation.quant import gptq as module
from llmflation.quant.calibration import Inputs, collect, linear_layers, output_error, shared_copy
from llmflation.quant.gptq import dead_columns, gptq, quantize_layers
from llmflation.quant.integer import quantize

CFG = ModelConfig(2, 32, 4, 2, 64, 50, context=64, tied_embeddings=True)


def correlated(seed: int, n: int = 512, k: int = 256) -> torch.Tensor:
    """Inputs (n, k) whose channels depend on each other, and are of different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) / k**0.5 + 0.5 * torch.eye(k)
    return torch.randn(n, k, generator=generator) @ mix * torch.rand(k, generator=generator).add(0.1)


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    return 2 / len(x) * x.double().T @ x.double()


def weight(seed: int, n: int = 64, k: int = 256) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1000 + seed))


def optimal_brain_quantization(w, hessian, bits, group_size, damping):
    """Round column after column; after each, move the rest where the loss is least, and strike the column out of H^-1.

    Hassibi and Stork 1993, one weight at a time in a fixed order. No Cholesky, no blocks.
    """
    w, most = w.double().clone(), 2 ** (bits - 1) - 1
    h = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse, made = torch.linalg.inv(h), torch.empty_like(w)
    size = group_size or w.shape[1]
    for j in range(w.shape[1]):
        if j % size == 0:
            scale = (w[:, j : j + size].float().abs().amax(1) / most).double()
        made[:, j] = (w[:, j] / scale).round().clamp(-most, most) * scale
        w -= torch.outer((w[:, j] - made[:, j]) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return made


@pytest.mark.parametrize("block", [1, 24, 32, 128])
@pytest.mark.parametrize("group_size", [None, 32, 128])
def test_it_is_optimal_brain_quantization_entry_for_entry(group_size, block):
    w, h = weight(0), hessian_of(correlated(0))
    wanted = optimal_brain_quantization(w, h, 4, group_size, 0.01)
    made = gptq(w, h, 4, group_size, block=block).dequantize()
    step = w.abs().max() / 7
    assert ((made - wanted).abs() < 1e-5 * step).all()  # no code differs: one step would be 1e5 times as much


def test_groups_are_measured_after_earlier_columns_have_moved_them():
    """Steps taken from the weight as it came are another quantization, and a worse one."""
    w, h = weight(0), hessian_of(correlated(0))
    plain, made = quantize(w, 4, 32), gptq(w, h, 4, 32)
    assert torch.equal(made.scales[:, 0], plain.scales[:, 0])
    assert not torch.isclose(made.scales[:, 1:], plain.scales[:, 1:]).all(0).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [None, "mse"])
@pytest.mark.parametrize("group_size", [None, 32])
def test_with_nothing_to_make_up_for_it_is_plain_rounding(group_size, clip, symmetric):
    w, how = weight(1), {"symmetric": symmetric, "clip": clip, "scale_dtype": torch.bfloat16}
    made, plain = gptq(w, 3 * torch.eye(256), 3, group_size, **how), quantize(w, 3, group_size, **how)
    assert torch.equal(made.codes, plain.codes) and torch.equal(made.scales, plain.scales)
    assert made.zeros is None if symmetric else torch.equal(made.zeros, plain.zeros)
    assert (made.format, made.shape, made.nbytes) == (plain.format, plain.shape, plain.nbytes)


def mean_errors(hessian_for=lambda seed: hessian_of(correlated(seed)), bits=4, group_size=32, **how):
    """Relative output errors of plain rounding and of GPTQ, each the mean over 20 layers."""
    plain, made = [], []
    for seed in range(20):
        w, h = weight(seed, 16, 64), hessian_of(correlated(seed, 256, 64))
        plain.append(output_error(w, quantize(w, bits, group_size, **how).dequantize(), h))
        made.append(output_error(w, gptq(w, hessian_for(seed), bits, group_size, **how).dequantize(), h))
    return sum(plain) / 20, sum(made) / 20


def own(seed):
    return hessian_of(correlated(seed, 256, 64))


@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_loses_less_than_plain_rounding(bits, group_size, symmetric):
    plain, made = mean_errors(own, bits, group_size, symmetric=symmetric)
    assert made < 0.8 * plain


def test_the_bound_sees_a_wrong_sign_no_update_and_the_hessian_of_another_layer(monkeypatch):
    plain = mean_errors(own)[0]
    assert mean_errors(lambda seed: own(seed + 1))[1] > 0.8 * plain
    right = module.inverse_factor
    for factor in (-1.0, 0.0):
        def mutant(*args, factor=factor):
            upper = right(*args)
            return upper.diagonal().diag() + factor * upper.triu(1)

        monkeypatch.setattr(module, "inverse_factor", mutant)
        lost = mean_errors(own)[1]
        assert lost > 1.5 * plain if factor else lost == pytest.approx(plain, rel=1e-12)


def test_a_dead_column_becomes_0_and_is_counted():
    x, w = correlated(0, 256, 64), weight(0, 16, 64)
    x[:, [3, 40]] = 0
    h = hessian_of(x)
    alive = [j for j in range(64) if j not in (3, 40)]
    assert dead_columns(h).nonzero().flatten().tolist() == [3, 40]
    made = gptq(w, h, 4, None).dequantize()
    assert (made[:, [3, 40]] == 0).all()
    w[:, [3, 40]] = 0
    assert torch.equal(made[:, alive], gptq(w[:, alive], h[alive][:, alive], 4, None).dequantize())
    assert (gptq(w, torch.zeros(64, 64)).dequantize() == 0).all()
    asymmetric = gptq(weight(0, 16, 64), h, 4, 32, symmetric=False).dequantize()
    assert (asymmetric[:, [3, 40]] == 0).all()


def test_a_singular_hessian_is_refused_or_damped():
    w, x = weight(0, 16, 128), correlated(0, 102, 128)
    noisy = hessian_of(x).float()  # its rounding blurs which column it is
    for h, column in ((hessian_of(x), "102"), (noisy, r"\d+")):
        with pytest.raises(BadInputError, match=f"Hessian is singular at column {column}; raise damping, now 0, or "):
            gptq(w, h, damping=0)
        assert torch.isfinite(gptq(w, h, damping=0.01).dequantize()).all()
    twice = correlated(0, 512, 128)
    twice[:, 77] = twice[:, 5]
    with pytest.raises(BadInputError, match="singular at column 77"):
        gptq(w, hessian_of(twice), damping=0)
    assert torch.isfinite(gptq(w, hessian_of(correlated(0, 512, 128)), damping=0).dequantize()).all()


@pytest.mark.parametrize(("change", "says"), [
    ({"hessian": torch.eye(32)}, r"the Hessian \(32, 32\) does not belong to weight \(4, 64\); allowed: \(64, 64\)"),
    ({"hessian": torch.full((64, 64), float("nan"))}, "4096 NaN and 0 infinite"),
    ({"hessian": torch.eye(64).long()}, "allowed: a tensor of floats"),
    ({"hessian": None}, "Hessian is None"),
    ({"hessian": -torch.eye(64)}, "singular at column 0"),
    ({"w": torch.full((4, 64), float("inf"))}, "256 infinite values"),
    ({"w": torch.ones(4)}, "shape is"),
    ({"damping": -0.1}, "damping is -0.1"),
    ({"damping": float("nan")}, "damping is nan"),
    ({"damping": True}, "damping is True"),
    ({"bits": 9}, "bits is 9"),
    ({"group_size": 48}, "the nearest that do: 32 and 64"),
    ({"group_size": 0}, "group_size is 0"),
    ({"block": 0}, "block is 0"),
    ({"clip": "max"}, "clip is 'max'"),
])
def test_bad_arguments(change, says):
    args = {"w": weight(0, 4, 64), "hessian": torch.eye(64)} | change
    with pytest.raises(BadInputError, match=says):
        gptq(**args)


def test_the_arguments_are_not_changed():
    w, h = weight(0, 16, 64).requires_grad_(), hessian_of(correlated(0, 256, 64))
    h[3], h[:, 3] = 0, 0
    before = w.detach().clone(), h.clone()
    gptq(w, h)
    assert torch.equal(w, before[0]) and torch.equal(h, before[1]) and w.requires_grad
    assert torch.equal(gptq(w.T.contiguous().T, h).codes, gptq(w, h).codes)


# A model's layers

def tokens_of(seed=0, rows=8, length=32):
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(seed))


def seen_by_hand(model, tokens, name):
    """All that flows into a layer, (n, K) in double, by another way: all of it kept, through a hook of the test's."""
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda layer, args, out: kept.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for row in tokens:
            model(torch.as_tensor(row)[None])
    hook.remove()
    return torch.cat(kept).double()


def test_what_flows_into_each_layer_is_summed_over_all_tokens(monkeypatch):
    monkeypatch.setattr("llmflation.quant.calibration.TOKENS_AT_ONCE", 70)
    model, tokens = Transformer(CFG), tokens_of()
    lists = [row[: 7 + i % 3].tolist() for i, row in enumerate(tokens)]
    for given in (tokens, lists, [*lists, []]):
        found = collect(model, given)
        assert list(found) == list(linear_layers(model))
        for name, inputs in found.items():
            x = seen_by_hand(model, [row for row in given if len(row)], name)
            assert inputs.n == len(x) == sum(map(len, given))
            assert torch.allclose(inputs.hessian, 2 / len(x) * x.T @ x, atol=1e-5)
            assert torch.allclose(inputs.mean_abs, x.abs().mean(0), atol=1e-5)
    assert list(collect(model, tokens, ["head"])) == list(collect(model, tokens, "head")) == ["head"]
    assert not any(m._forward_pre_hooks for m in model.modules())


def by_hand(model, tokens, bits, group_size):
    """GPTQ with no shortcut: the whole model again for each layer, all layers before it replaced."""
    model, made = shared_copy(model), {}
    for name, layer in linear_layers(model).items():
        x = seen_by_hand(model, tokens, name)
        made[name] = gptq(layer.weight, 2 / len(x) * x.T @ x, bits, group_size)
        layer.weight = nn.Parameter(made[name].dequantize(), requires_grad=False)
    return made


@pytest.mark.parametrize("window", [None, 8])
def test_each_layer_sees_what_the_quantized_ones_before_it_make(window):
    cfg = ModelConfig(3, 32, 4, 2, 64, 50, context=64, tied_embeddings=True, sliding_window=window,
                      global_every=2 if window else 0)
    model, tokens = Transformer(cfg), tokens_of()
    made, wanted = quantize_layers(model, tokens, 3, 32), by_hand(model, tokens, 3, 32)
    assert list(made) == list(wanted) == list(linear_layers(model))
    for name, q in made.items():  # activations in batches round otherwise than one by one: now and then a code moves
        assert (q.unpacked() == wanted[name].unpacked()).float().mean() > 0.995, name


def test_float_activations_would_be_another_hessian():
    """The mutant of the test above: every layer calibrated on the model as it came."""
    model, tokens = Transformer(CFG), tokens_of()
    wanted = by_hand(model, tokens, 3, 32)["blocks.1.feed_forward.down"]
    inputs = collect(model, tokens)["blocks.1.feed_forward.down"]
    made = gptq(model.blocks[1].feed_forward.down.weight, inputs.hessian, 3, 32)
    assert (made.unpacked() == wanted.unpacked()).float().mean() < 0.95


def test_layers_without_blocks_come_one_after_the_other():
    model = nn.Sequential(nn.Embedding(50, 16), Linear(16, 32), nn.ReLU(), Linear(32, 8))
    torch.manual_seed(0)
    made, wanted = quantize_layers(model, tokens_of(), 2, 16), by_hand(model, tokens_of(), 2, 16)
    assert list(made) == ["1", "3"]
    assert all((made[n].unpacked() == wanted[n].unpacked()).float().mean() > 0.995 for n in made)


def state_of(model):
    return {name: (value, value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}


def assert_untouched(model, before):
    for name, value in model.state_dict(keep_vars=True).items():
        same, copied, version = before[name]
        assert value is same and torch.equal(value, copied) and value._version == version, name
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert model.head.weight is model.embedding.weight


def test_the_model_is_as_before_also_after_an_error():
    model, reports = Transformer(CFG).train(), []
    before = state_of(model)
    quantize_layers(model, tokens_of(), names=["blocks.1.attention.out", "head"], watch=reports.append)
    assert [(r.name, r.n, r.dead) for r in reports] == [("blocks.1.attention.out", 256, 0), ("head", 256, 0)]
    assert all(0 < r.error < 0.05 for r in reports)
    assert_untouched(model, before)
    assert model.training and model.blocks[0].attention.qkv.weight.requires_grad

    def interrupt(report):
        if report.name.startswith("blocks.1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_layers(model, tokens_of(), watch=interrupt)
    assert_untouched(model, before)


@pytest.mark.parametrize(("tokens", "says"), [
    ([], "there are 0 calibration tokens"),
    ([[], []], "there are 0 calibration tokens"),
    (torch.zeros(3, 0, dtype=torch.long), "there are 0 calibration tokens"),
    (torch.zeros(4, dtype=torch.long), r"torch.int64 \(4,\); allowed: whole numbers \(B, T\)"),
    (torch.zeros(1, 4), "torch.float32"),
    ([[1, 2.5]], "calibration text 0 is"),
    ("text", "Encode the text first"),
    (["text"], "Encode the text first"),
    ([[1], 7], "calibration text 1 is 7"),
    ([[1, 50]], "token 50 at position 1"),
    ([[1] * 65], "the model's context is 64"),
])
def test_bad_tokens(tokens, says):
    model = Transformer(CFG)
    before = state_of(model)
    for call in (collect, quantize_layers):
        with pytest.raises(BadInputError, match=says):
            call(model, tokens)
    assert_untouched(model, before)


def test_bad_models_and_too_few_tokens():
    model = Transformer(CFG)
    with pytest.raises(UnknownNameError, match="unknown linear layer 'blocks.0.attention.qvk'; nearest: 'blocks.0"):
        quantize_layers(model, tokens_of(), names=["blocks.0.attention.qvk"])
    with pytest.raises(BadInputError, match="blocks.0.attention.qkv has 32 inputs and there are 31 calibration tokens, "
                                            "so that its Hessian is singular; give 32 tokens at least"):
        quantize_layers(model, tokens_of(rows=1, length=31), damping=0)
    assert quantize_layers(model, tokens_of(rows=1, length=31), names="head")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.blocks[1].attention_norm.weight[5] = float("nan")
    before = state_of(broken)
    for call in (collect, quantize_layers):
        with pytest.raises(BadInputError, match=r"activations flow into blocks.1.attention.qkv, in 1 of its 32"):
            call(broken, tokens_of())
    assert all(torch.equal(v, before[n][1]) or "blocks.1.attention_norm" in n for n, v in broken.state_dict().items())
    with pytest.raises(BadInputError, match="0 calibration tokens flowed into 2"):
        collect(Unused(), tokens_of())


class Unused(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(50, 16), Linear(16, 32), Linear(32, 8))

    def forward(self, tokens):
        return self[1](self[0](tokens))


def test_inputs_tell_how_many():
    assert repr(Inputs(1000, torch.eye(4), torch.ones(4))) == "1,000 tokens of 4 channels"
