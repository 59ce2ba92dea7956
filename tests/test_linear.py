"""The paths of a product: all give the same, none is ever stale, and the fastest is taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmflation import linear
from llmflation.config import ModelConfig
from llmflation.errors import UnknownNameError
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import PATHS, Linear, linear_path, set_linear_path
from llmflation.model import Transformer

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.04, torch.float64: 1e-12}
needs_packed = pytest.mark.skipif(not linear._works("packed", torch.float32), reason="no oneDNN here")


@pytest.fixture(autouse=True)
def auto_again():
    yield
    set_linear_path("auto")


def layer(n_in=48, n_out=80, dtype=torch.float32) -> Linear:
    made = Linear(n_in, n_out).to(dtype)
    return made.requires_grad_(False)


def check(made: Linear, rows=1):
    """The product is that of the weights as they are now."""
    x = torch.randn(1, rows, made.in_features, generator=torch.Generator().manual_seed(1)).to(made.weight.dtype)
    wanted = F.linear(x.double(), made.weight.double())
    found = made(x)
    assert found.dtype == x.dtype and found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE[x.dtype] * max(1, wanted.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("shape", [(48, 80), (512, 33), (1, 1)])
def test_every_path_gives_the_same(path, dtype, shape):
    set_linear_path(path)
    made = layer(*shape, dtype)
    for rows in (1, 2, 9, linear.FEW, linear.FEW + 1, linear.MOST, linear.MANY):
        check(made, rows)


def test_a_large_weight_is_widened_in_parts(monkeypatch):
    if not linear._works("widened", torch.bfloat16):
        pytest.skip("no bfloat16 here")
    set_linear_path("widened")
    monkeypatch.setattr(linear, "ROWS", 32)
    made, widest = layer(48, 80, torch.bfloat16), []
    monkeypatch.setattr(linear.F, "linear", lambda x, w, plain=F.linear: widest.append(len(w)) or plain(x, w))
    check(made, 3)
    assert widest == [80, 32, 32, 16]  # what is wanted, then the parts


CHANGES = {
    "in place": lambda made: made.weight.mul_(3),
    "a single number": lambda made: made.weight[0, 0].fill_(9),
    "through a detached view": lambda made: made.weight.detach().copy_(torch.randn(80, 48)),
    "loaded": lambda made: made.load_state_dict({"weight": torch.randn(80, 48)}),
    "loaded and assigned": lambda made: made.load_state_dict({"weight": torch.randn(80, 48)}, assign=True),
    "another format": lambda made: made.to(torch.bfloat16),
    "there and back": lambda made: [made.to(torch.bfloat16), made.weight.mul_(3), made.to(torch.float32)],
    "new data": lambda made: setattr(made.weight, "data", torch.randn(80, 48)),
    "a new parameter": lambda made: setattr(made, "weight", nn.Parameter(torch.randn(80, 48), requires_grad=False)),
    "another shape": lambda made: setattr(made, "weight", nn.Parameter(torch.randn(7, 48), requires_grad=False)),
    "re-initialised": lambda made: nn.init.normal_(made.weight),
}


@needs_packed
@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_weight_is_never_taken_for_the_old_one(how):
    set_linear_path("packed")
    made = layer()
    check(made)
    for _ in range(3):
        CHANGES[how](made)
        check(made)


@needs_packed
def test_the_same_memory_turned_round_or_changed_through_another_tensor_is_not_taken_for_the_old_one():
    set_linear_path("packed")
    made = layer(64, 64)
    check(made)
    made.weight.data = made.weight.data.t()
    check(made)
    twin = nn.Parameter(made.weight.data, requires_grad=False)  # counts its own changes, from 0
    made.weight.mul_(3)
    made.weight = twin
    check(made)


@needs_packed
def test_weights_that_trained_on_are_packed_anew():
    set_linear_path("packed")
    made = layer()
    check(made)
    made.requires_grad_(True)
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    made(torch.ones(1, 1, 48)).sum().backward()
    optimizer.step()
    check(made.requires_grad_(False))


@needs_packed
def test_a_change_that_pytorch_does_not_count_is_seen_after_setting_the_path():
    set_linear_path("packed")
    made = layer()
    check(made)
    made.weight.data.mul_(3)
    set_linear_path("packed")
    check(made)


@needs_packed
def test_a_weight_is_packed_once(monkeypatch):
    made, packings, Packed = layer(), [], linear.Packed
    monkeypatch.setattr(linear, "Packed", lambda weight: packings.append(weight) or Packed(weight))
    set_linear_path("packed")
    for rows in (1, 5, 1):
        check(made, rows)
    assert len(packings) == 1


@needs_packed
def test_many_go_through_packed_weights_in_parts(monkeypatch):
    set_linear_path("packed")
    made, parts, product = layer(), [], torch.ops.mkldnn._linear_pointwise
    check(made)  # packs, and tries the path
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise",
                        lambda x, *rest: parts.append(x.numel() // x.shape[-1]) or product(x, *rest))
    check(made, linear.MANY)
    assert parts == [linear.FEW] * (linear.MANY // linear.FEW) and len(parts) > 1


@needs_packed
def test_a_copy_has_its_own_weights():
    set_linear_path("packed")
    made = layer()
    check(made)
    twin = copy.deepcopy(made)
    twin.weight.mul_(3)
    check(twin)
    check(made)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_saved_and_trained_is_the_weight_alone(path):
    set_linear_path(path)
    made = layer()
    check(made)
    assert list(made.state_dict()) == ["weight"] == [name for name, _ in made.named_parameters()]
    assert not list(made.buffers())


@pytest.mark.parametrize("path", PATHS)
def test_training_takes_the_plain_path_and_gets_its_gradients(path):
    set_linear_path(path)
    made, x = layer(512, 512), torch.randn(1, 1, 512)
    made.requires_grad_(True)
    assert torch.equal(made(x), F.linear(x, made.weight))
    made(x).sum().backward()
    torch.testing.assert_close(made.weight.grad, x[0].expand(512, 512))
    made.requires_grad_(False)
    x.requires_grad_(True)
    made(x).sum().backward()
    torch.testing.assert_close(x.grad[0, 0], made.weight.sum(0))


@pytest.mark.parametrize("path", PATHS)
def test_weights_made_in_inference_mode_work(path):
    set_linear_path(path)
    with torch.inference_mode():
        made = layer()
        check(made)
        made.weight.mul_(3)
        check(made)


# --- the choice ----------------------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch):
    """Paths that take as long as they say on a clock of their own."""
    now = [0.0]

    def path(seconds):
        def product(layer, x):
            now[0] += seconds
            return F.linear(x, layer.weight)
        return product

    monkeypatch.setattr(linear.time, "perf_counter", lambda: now[0])
    linear._fastest.cache_clear()
    linear._works.cache_clear()
    yield lambda **seconds: [monkeypatch.setitem(PATHS, name, path(s)) for name, s in seconds.items()]
    monkeypatch.undo()
    linear._fastest.cache_clear()
    linear._works.cache_clear()


@pytest.mark.parametrize("seconds, fastest", [
    ({"plain": 3, "packed": 1, "vector": 2}, "packed"), ({"plain": 3, "packed": 2, "vector": 1}, "vector"),
    ({"plain": 1, "packed": 2, "vector": 3}, "plain"), ({"plain": 1, "packed": 0.95, "vector": 2}, "plain"),
])
def test_the_fastest_is_taken_if_it_is_clearly_faster(timed, seconds, fastest):
    timed(**seconds)
    assert linear_path() == fastest
    timed(plain=0.001, packed=9, vector=9)
    assert linear_path() == fastest  # chosen once


def test_many_vectors_choose_for_themselves(timed):
    timed(plain=9, packed=5, vector=1, widened=3)
    assert linear_path(torch.bfloat16, linear.MANY) == "widened"
    assert linear_path(torch.float32, linear.MANY) == "packed"  # nothing to widen, and more than one vector
    timed(plain=1, packed=1, vector=1, widened=3)
    assert linear_path(torch.bfloat16, linear.MOST) == "plain"
    linear._fastest.cache_clear()
    assert linear_path(torch.bfloat16, linear.MANY) == "plain"


def test_one_vector_and_several_choose_apart(timed):
    timed(plain=1, packed=9, vector=9)
    assert linear_path() == "plain"
    timed(plain=9, packed=1, vector=9)
    assert (linear_path(vectors=2), linear_path(vectors=1)) == ("packed", "plain")


@pytest.mark.parametrize("error", [RuntimeError("not built with oneDNN"), AttributeError("_linear_pointwise")])
def test_a_path_that_is_missing_here_is_plain(timed, monkeypatch, error):
    timed(plain=3, packed=1, vector=4)

    def missing(layer, x):
        raise error

    monkeypatch.setitem(PATHS, "packed", missing)
    assert linear_path() == "plain"
    set_linear_path("packed")
    assert linear_path() == "plain"
    check(layer())


def test_a_path_that_computes_something_else_is_not_taken(timed, monkeypatch):
    timed(plain=3, packed=1, vector=4)
    monkeypatch.setitem(PATHS, "packed", lambda layer, x: 2 * F.linear(x, layer.weight))
    assert linear_path() == "plain"


def test_an_unknown_path_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown linear path 'packd'; nearest: 'packed'"):
        set_linear_path("packd")


# --- the model -----------------------------------------------------------------------------------------------


@needs_packed
@torch.no_grad()
def test_a_model_changed_between_two_tokens_goes_on_with_its_new_weights():
    cfg = ModelConfig(2, 64, 4, 2, 96, 61, context=32, tied_embeddings=True)
    model = Transformer(cfg, seed=1).eval().requires_grad_(False)

    def scores(path):
        set_linear_path(path)
        cache = ContiguousKVCache(cfg, 1)
        model(torch.tensor([[1, 2, 3]]), cache)
        return model(torch.tensor([[4]]), cache)

    before = scores("packed")
    torch.testing.assert_close(before, scores("plain"), rtol=0, atol=1e-5)
    set_linear_path("packed")
    scores("packed")
    for p in model.parameters():
        p.copy_((p * 4).round() / 4)
    cache = ContiguousKVCache(cfg, 1)  # without setting the path anew
    model(torch.tensor([[1, 2, 3]]), cache)
    after = model(torch.tensor([[4]]), cache)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, scores("plain"), rtol=0, atol=1e-5)
