"""A quantized model: what is quantized, what is shared, what it holds, and that nothing is half done."""

import copy

import pytest
import torch
from torch import nn

from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, UnknownNameError
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import Linear
from llmflation.model import Transformer, generate
from llmflation.quant import awq, gptq
from llmflation.quant import model as schemes
from llmflation.quant.integer import quantize
from llmflation.quant.kernels import set_kernel_path
from llmflation.quant.linear import QuantizedEmbedding, QuantizedLinear
from llmflation.quant.model import (
    SCHEMES,
    Scheme,
    bits_per_weight,
    dequantized,
    model_bytes,
    quantize_model,
    quantized_layers,
    with_quantized,
)

pytestmark = pytest.mark.filterwarnings("ignore:this PyTorch has no")  # a machine without kernels passes, too
CFG = ModelConfig(2, 64, 4, 2, 128, 160, context=64, tied_embeddings=True, name="tiny")
NAMES = [f"blocks.{i}.{part}" for i in (0, 1)
         for part in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")]
PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
PLAIN = [name for name, scheme in SCHEMES.items() if not scheme.calibrated]
TOKENS = torch.arange(200).view(4, 50) * 7 % 160


@pytest.fixture(autouse=True)
def auto_again():
    yield
    set_kernel_path("auto")


@pytest.fixture
def tiny():
    return made()


def made(tied=True, seed=3):
    cfg = CFG if tied else ModelConfig(2, 64, 4, 2, 128, 160, context=64, name="untied")
    return Transformer(cfg, seed=seed).eval().requires_grad_(False)


def scores(model, tokens=TOKENS[:, :20]):
    with torch.inference_mode():
        return model(tokens)


def bits_of(model):
    """Everything that a model is, to compare."""
    tensors = [*model.state_dict().values(), model.cos, model.sin]
    return [(t.data_ptr(), t.dtype, t.clone()) for t in tensors], [type(m) for m in model.modules()]


def unchanged(model, before):
    (tensors, kinds), (now, kinds_now) = before, bits_of(model)
    assert kinds == kinds_now
    assert all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(tensors, now, strict=True))


# --- every scheme --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_makes_a_model_and_leaves_the_given_one(name, tiny):
    before, first = bits_of(tiny), scores(tiny)
    model = quantize_model(tiny, name, calibration=TOKENS)
    unchanged(tiny, before)
    assert torch.equal(scores(tiny), first)
    assert type(model) is Transformer and model.cfg == tiny.cfg and not model.training
    assert list(quantized_layers(model)) == [*NAMES, "head"]
    assert not any(type(m) is Linear for m in model.modules())
    error = float((scores(model) - first).std() / first.std())
    assert 0 < error < {"int2": 2, "int3": 1}.get(name, 0.5)
    assert SCHEMES[name].name == name and SCHEMES[name].about and SCHEMES[name].source


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_kernel_and_reference_score_alike(name, tied):
    model = quantize_model(made(tied), name)
    found = scores(model)
    set_kernel_path("reference")
    torch.testing.assert_close(found, scores(model), rtol=0, atol=0.03 * float(found.abs().max()))


@pytest.mark.parametrize("name", PLAIN)
def test_it_writes_the_same_with_a_cache_and_without(name, tiny):
    """Scores far enough apart that rounding does not choose: what is read one by one is what is read at once."""
    model = quantize_model(tiny, name)
    with_cache = generate(model, PROMPTS, 12, ContiguousKVCache(CFG, 2, 32))
    assert with_cache == generate(model, PROMPTS, 12)
    assert with_cache == [generate(model, [p], 12, ContiguousKVCache(CFG, 1, 32))[0] for p in PROMPTS]


def test_bfloat16_models_work_and_keep_their_format(tiny):
    model = quantize_model(copy.deepcopy(tiny).to(torch.bfloat16), "int4")
    assert model.embedding.weight.dtype == scores(model).dtype == torch.bfloat16
    wide = quantize_model(tiny, "int4").to(torch.bfloat16)  # cast afterwards
    assert wide.embedding.weight.dtype == scores(wide).dtype == torch.bfloat16


# --- what is shared, held and counted ------------------------------------------------------------------------


def test_what_is_not_quantized_is_shared_and_not_copied(tiny):
    model = quantize_model(tiny, "int4", skip=["blocks.1"])
    assert list(quantized_layers(model)) == [*NAMES[:4], "head"]
    mine, theirs = dict(model.named_parameters()), dict(tiny.named_parameters())
    assert set(mine) == {n for n in theirs if "norm" in n or n.startswith("blocks.1.")}
    assert all(mine[n].data_ptr() == theirs[n].data_ptr() for n in mine)
    assert model.cos.data_ptr() == tiny.cos.data_ptr()


def test_a_cast_or_training_of_the_one_does_not_reach_the_other(tiny):
    tiny.requires_grad_(True)
    model = quantize_model(tiny, "int8", skip="head")
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in tiny.parameters())
    model.to(torch.bfloat16)
    assert {p.dtype for p in tiny.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", PLAIN)
def test_a_tied_embedding_stays_tied_and_is_counted_once(name, tiny):
    model = quantize_model(tiny, name)
    assert isinstance(model.embedding, QuantizedEmbedding) and model.embedding.head is model.head
    weight = model.head.tensor().dequantize()
    torch.testing.assert_close(model.embedding(TOKENS), weight[TOKENS], rtol=0, atol=0.02 * float(weight.abs().max()))
    held = sum(layer.nbytes for layer in quantized_layers(model).values())
    assert model_bytes(model) == held + 4 * 64 * 5  # and the norms
    twin = copy.deepcopy(model)
    assert twin.embedding.head is twin.head is not model.head
    assert torch.equal(scores(twin), scores(model))
    assert model_bytes(twin) == model_bytes(model)


def test_an_untied_embedding_stays_as_it_is():
    tiny = made(tied=False)
    model = quantize_model(tiny, "int4")
    assert type(model.embedding) is nn.Embedding
    assert model.embedding.weight.data_ptr() == tiny.embedding.weight.data_ptr()


def test_a_skipped_tied_head_stays_tied(tiny):
    model = quantize_model(tiny, "int4", skip="head")
    assert list(quantized_layers(model)) == NAMES
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.data_ptr() == tiny.embedding.weight.data_ptr()
    assert model_bytes(model) == sum(q.nbytes for q in quantized_layers(model).values()) + 4 * (64 * 160 + 64 * 5)


def test_bits_per_weight_are_counted_from_the_bytes_held(tiny):
    count = sum(p.numel() for p in tiny.parameters())
    assert bits_per_weight(tiny) == 32 and model_bytes(tiny) == 4 * count
    set_kernel_path("reference")
    model = quantize_model(tiny, "int4", skip=["*.down", "head"])
    quantized = 2 * (64 * 128 + 64 * 64 + 64 * 256)  # qkv, out, gate_up
    assert bits_per_weight(model) == pytest.approx((quantized * 4.5 + (count - quantized) * 32) / count)
    assert bits_per_weight(copy.deepcopy(tiny).to(torch.bfloat16)) == 16


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["int4", "nf4", "int8-weight-only"])
def test_dequantized_is_a_float_model_with_the_weights_that_the_codes_stand_for(name, tied):
    tiny = made(tied)
    model = quantize_model(tiny, name)
    floats = dequantized(model)
    assert not quantized_layers(floats) and quantized_layers(model)
    assert (floats.head.weight is floats.embedding.weight) == tied
    assert floats.state_dict().keys() == tiny.state_dict().keys()
    for layer, q in quantized_layers(model).items():
        assert torch.equal(floats.get_submodule(layer).weight, q.tensor().dequantize())
    set_kernel_path("reference")
    torch.testing.assert_close(scores(floats), scores(model), rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(quantize_model(floats, name)), scores(model), rtol=0,
                               atol=0.05 * float(scores(model).abs().max()))


def test_a_model_s_state_dict_goes_into_another_quantized_one(tiny):
    model, other = quantize_model(tiny, "int4"), quantize_model(made(seed=4), "int4")
    assert not torch.equal(scores(model), scores(other))
    copied = {k: copy.deepcopy(v) for k, v in model.state_dict().items()}
    assert other.load_state_dict(copied).missing_keys == []
    assert torch.equal(scores(model), scores(other))


# --- skipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip, left", [
    ("head", NAMES), (["head", "blocks.0"], NAMES[4:]), ("*.down", [*(n for n in NAMES if "down" not in n), "head"]),
    (["blocks.1.attention.qkv"], [n for n in [*NAMES, "head"] if n != NAMES[4]]), ([], [*NAMES, "head"]),
    ("*", []),
])
def test_layers_are_skipped_by_name_beginning_or_pattern(tiny, skip, left):
    assert list(quantized_layers(quantize_model(tiny, "int8", skip=skip))) == left


@pytest.mark.parametrize("skip", ["haed", ["head", "blocks.2"], "blocks.1.attention.qk"])
def test_an_unknown_layer_is_refused_with_the_nearest(tiny, skip):
    before = bits_of(tiny)
    with pytest.raises(UnknownNameError, match="unknown layer .*; nearest: '"):
        quantize_model(tiny, "int8", skip=skip)
    unchanged(tiny, before)


# --- all or nothing ------------------------------------------------------------------------------------------


def test_an_unknown_scheme_is_refused_with_the_nearest(tiny):
    with pytest.raises(UnknownNameError, match="unknown scheme 'int44'; nearest: 'int4'"):
        quantize_model(tiny, "int44")


@pytest.mark.parametrize("name", PLAIN)
def test_nan_in_one_layer_names_it_and_nothing_is_quantized(name, tiny):
    with torch.no_grad():
        tiny.blocks[1].feed_forward.gate_up.weight[2, 17] = torch.nan
    kinds = [type(m) for m in tiny.modules()]
    with pytest.raises(BadInputError, match=r"blocks.1.feed_forward.gate_up has 1 NaN .* at \(2, 17\); nothing was"):
        quantize_model(tiny, name)
    assert [type(m) for m in tiny.modules()] == kinds


def test_a_quantized_model_is_not_quantized_again(tiny):
    model = quantize_model(tiny, "int4", skip="blocks.0")
    with pytest.raises(BadInputError, match=r"blocks.1.attention.qkv is already int4; quantize the model that it was"):
        quantize_model(model, "int8")
    with pytest.raises(BadInputError, match="the model is already int3"):
        quantize_model(QuantizedLinear.of(quantize(torch.randn(4, 8), 3)), "int8")


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(BadInputError, match=r"Sequential has no llmflation.linear.Linear; nothing can be quantized"):
        quantize_model(nn.Sequential(nn.Linear(3, 4)), "int8")


def test_what_is_no_model_is_refused():
    with pytest.raises(BadInputError, match=r"model is 'ModelConfig'; allowed: a Transformer, such as load_toy"):
        quantize_model(CFG, "int8")


def test_weights_that_do_not_belong_are_refused(tiny):
    q = quantize(torch.randn(4, 8), 4)
    with pytest.raises(UnknownNameError, match="unknown linear layer 'haed'; nearest: 'head'"):
        with_quantized(tiny, {"haed": q})
    with pytest.raises(BadInputError, match=r"head is \(160, 64\), the quantized weight \(4, 8\); allowed: the same"):
        with_quantized(tiny, {"head": q})


# --- schemes that learn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gptq-int4", "awq-int4"])
def test_calibrated_schemes_ask_for_tokens(name, tiny):
    with pytest.raises(BadInputError, match=f"calibration is None; allowed: a few thousand tokens that {name} learns"):
        quantize_model(tiny, name)


def test_gptq_is_told_the_layers_the_bits_and_the_groups_and_its_weights_are_taken(tiny, monkeypatch):
    asked = []

    def fake(model, tokens, bits, group_size, names, **how):
        asked.append((model, tokens, bits, group_size, list(names), how))
        return {name: quantize(torch.ones_like(model.get_submodule(name).weight), 8) for name in names}
    monkeypatch.setattr(gptq, "quantize_layers", fake)
    model = quantize_model(tiny, "gptq-int4", skip=["head", "blocks.1"], calibration=TOKENS)
    assert asked == [(tiny, TOKENS, 4, 32, NAMES[:4], {"scale_dtype": torch.bfloat16})]
    assert list(quantized_layers(model)) == NAMES[:4]
    assert all(torch.equal(q.tensor().dequantize(), torch.ones(q.out_features, q.in_features))
               for q in quantized_layers(model).values())


def test_awq_s_scaled_model_is_what_is_quantized(tiny, monkeypatch):
    other, asked = made(seed=8), []
    monkeypatch.setattr(awq, "scaled", lambda model, tokens, bits, group_size, **how: asked.append(
        (model, tokens, bits, group_size, how)) or other)
    model = quantize_model(tiny, "awq-int4", calibration=TOKENS)
    assert asked == [(tiny, TOKENS, 4, 32, {"scale_dtype": torch.bfloat16})]
    assert torch.equal(scores(model), scores(quantize_model(other, "int4")))
    assert model.norm.weight.data_ptr() == other.norm.weight.data_ptr()


def test_a_scheme_of_one_s_own(tiny):
    mine = Scheme("int6", "6 bits", "mine", lambda w, name: quantize(w, 6, 32, name=name), activation_bits=6)
    model = quantize_model(tiny, mine)
    assert {(q.format, q.activation_bits) for q in quantized_layers(model).values()} == {("int6", 6)}
    with pytest.raises(AttributeError):
        mine.name = "int7"
    assert "int6" not in schemes.SCHEMES


@pytest.mark.parametrize("call, says", [
    (lambda model: quantize_model(model, "int8", skip=5), "skip is 5"),
    (lambda model: quantize_model(model, "int8", skip=None), "skip is None"),
    (lambda model: quantize_model(model, "int8", skip=[5]), "skip is \\[5\\]"),
    (lambda model: quantize_model(model, "gptq-int4", calibration=5), "the calibration tokens is 5")])
def test_what_is_no_list_is_refused_in_our_words(call, says):
    with pytest.raises(BadInputError, match=says):
        call(Transformer(ModelConfig(1, 32, 2, 1, 64, 61, context=32)).eval().requires_grad_(False))


def test_a_list_is_no_scheme():
    with pytest.raises(UnknownNameError, match="unknown scheme"):
        quantize_model(Transformer(ModelConfig(1, 32, 2, 1, 64, 61, context=32)), ["int8"])
