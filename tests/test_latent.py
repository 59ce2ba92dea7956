"""Multi-head latent attention: both ways to decode, beside DeepSeek-V3's attention, and what its cache weighs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from llmflation.config import ModelConfig, model_config
from llmflation.cost.counts import count_params, kv_bytes, kv_bytes_per_token
from llmflation.errors import BadInputError
from llmflation.latent import LatentAttention, LatentKVCache, read, variants
from llmflation.model import Transformer, generate

MLA = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
FULL = ModelConfig(1, 48, 4, None, 96, 61, context=64, norm_eps=1e-6, **MLA)
CONFIGS = {
    "queries whole": FULL,
    "queries compressed": replace(FULL, q_lora_rank=20),
    "values wider than keys": replace(FULL, head_dim=None, v_head_dim=40, qk_nope_head_dim=4, qk_rope_head_dim=2),
    "one head": replace(FULL, n_heads=1, n_kv_heads=None, q_lora_rank=20),
}
WAYS = {"naive": False, "absorbed": True, "each in its place": None}


@pytest.fixture(params=CONFIGS)
def layer(request):
    return LatentAttention(CONFIGS[request.param], seed=1)


@pytest.fixture
def x():
    return torch.randn(3, 30, 48, generator=torch.Generator().manual_seed(2))


def in_chunks(layer, x, cache, chunks, absorb):
    return torch.cat([read(layer, part, cache, absorb) for part in x.split(chunks, dim=1)], dim=1)


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def theirs(layer, interleave):
    """DeepSeek's attention with the weights of ours."""
    cfg = layer.cfg
    other = DeepseekV3Attention(DeepseekV3Config(
        hidden_size=cfg.d_model, num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_heads,
        q_lora_rank=cfg.q_lora_rank or None, rope_interleave=interleave, max_position_embeddings=cfg.context,
        rope_parameters={"rope_theta": cfg.rope_theta, "rope_type": "default"}, attn_implementation="eager",
        **{name: getattr(cfg, name) for name in MLA}), layer_idx=0)
    ours = {"kv_a_proj_with_mqa": layer.kv_down, "kv_a_layernorm": layer.kv_norm, "kv_b_proj": layer.kv_up,
            "o_proj": layer.out}
    ours |= ({"q_a_proj": layer.q_down, "q_a_layernorm": layer.q_norm, "q_b_proj": layer.q_up} if cfg.q_lora_rank
             else {"q_proj": layer.q_up})
    state = {f"{name}.weight": part.weight.detach().clone() for name, part in ours.items()}
    if interleave:  # they keep the pairs side by side, we in two halves
        P = cfg.qk_rope_head_dim
        order = torch.arange(P).view(2, -1).T.flatten()
        for name in ("q_b_proj.weight" if cfg.q_lora_rank else "q_proj.weight", "kv_a_proj_with_mqa.weight"):
            heads = 1 if "kv" in name else cfg.n_heads
            rows = state[name].unflatten(0, (heads, -1))
            rows[:, -P:] = rows[:, -P:][:, order].clone()
            state[name] = rows.flatten(0, 1)
    other.load_state_dict(state)
    return other.eval()


def their_tables(cfg, start, end):
    speeds = cfg.rope_theta ** (-torch.arange(0, cfg.qk_rope_head_dim, 2) / cfg.qk_rope_head_dim)
    angles = torch.outer(torch.arange(start, end).float(), speeds).repeat(1, 2)[None]
    return angles.cos(), angles.sin()


def causal(n, dtype=torch.float32):
    return torch.full((n, n), torch.finfo(dtype).min).triu(1)[None, None]


# --- the laws ------------------------------------------------------------------------------------------------


def is_deepseeks(layer, x, absorb, interleave=False):
    """Whole and step by step, the outputs are those of DeepSeek's attention with the same weights, and the cache is."""
    layer.kv_norm.weight.uniform_(0.5, 2)  # ones would hide a norm in the wrong place
    other, past, cfg = theirs(layer, interleave), DynamicCache(), layer.cfg
    wanted = other(x, their_tables(cfg, 0, 30), causal(30))[0]
    assert wanted.std() > 0.05
    assert_near(read(layer, x, LatentKVCache(cfg, 3, 30), absorb), wanted)
    cache = LatentKVCache(cfg, 3, 30)
    for i in range(30):
        step = x[:, i : i + 1]
        assert_near(other(step, their_tables(cfg, i, i + 1), None, past)[0], wanted[:, i : i + 1])
        assert_near(read(layer, step, cache, absorb), wanted[:, i : i + 1])
    kept = past.layers[0]
    assert kept.keys.nbytes + kept.values.nbytes == cache.nbytes == 3 * kv_bytes(cfg, 30, 32)
    if not interleave:  # the same numbers, too
        assert_near(cache._store[0, 0], torch.cat((kept.keys, kept.values), -1))


def absorbed_is_naive(layer, x, chunks=7):
    naive, absorbed = (in_chunks(layer, x, LatentKVCache(layer.cfg, 3), chunks, way) for way in (False, True))
    assert_near(absorbed, naive)


@torch.no_grad()
@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("absorb", WAYS.values(), ids=WAYS)
def test_it_is_deepseeks_attention_whole_and_step_by_step(layer, x, interleave, absorb):
    is_deepseeks(layer, x, absorb, interleave)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [30, 1, 7])
def test_absorbed_is_naive(layer, x, chunks):
    absorbed_is_naive(layer, x, chunks)


@torch.no_grad()
def test_one_token_makes_no_keys_and_values_of_all_before_it(layer, x, monkeypatch):
    made, expand = [], layer.kv_up.forward
    monkeypatch.setattr(layer.kv_up, "forward", lambda held: made.append(held.shape[1]) or expand(held))
    in_chunks(layer, x, LatentKVCache(layer.cfg, 3), 29, None)
    assert made == [29]


@torch.no_grad()
@pytest.mark.parametrize("absorb", [False, True])
def test_without_a_cache_and_without_a_mask_the_future_is_not_seen(layer, x, absorb):
    cos, sin = (torch.cat((sign * t[..., : t.shape[-1] // 2], t[..., t.shape[-1] // 2 :]), -1)[:, None]
                for t, sign in zip(their_tables(layer.cfg, 0, 30), (1, -1), strict=True))
    assert_near(layer(x, cos, sin, None, absorb=absorb), read(layer, x, LatentKVCache(layer.cfg, 3)))


@torch.no_grad()
def test_rows_of_any_length_attend_as_alone(layer, x):
    cache = LatentKVCache(layer.cfg, 3)
    read(layer, x[:, :20], cache)
    cache.truncate(torch.tensor([20, 3, 0]))
    for absorb in (False, True):
        twins = cache.fork([0, 1, 2, 1])
        after = read(layer, x[[0, 1, 2, 1], 20:25], twins, absorb)
        after = torch.cat((after, read(layer, x[[0, 1, 2, 1], 25:26], twins, absorb)), 1)
        assert twins.lengths.tolist() == [26, 9, 6, 9] and isinstance(twins, LatentKVCache)
        for row, (source, held) in enumerate(((0, 20), (1, 3), (2, 0), (1, 3))):
            text = torch.cat((x[source, :held], x[source, 20:26]))[None]
            assert_near(after[row], read(layer, text, LatentKVCache(layer.cfg, 1))[0, held:])
    assert cache.lengths.tolist() == [20, 3, 0]


def test_its_weights_and_bytes_are_those_that_the_cost_model_counts(layer):
    cfg = layer.cfg
    norms = cfg.kv_lora_rank + cfg.q_lora_rank  # inside of attention, which the cost model leaves out
    assert sum(p.numel() for p in layer.parameters()) == count_params(cfg).attention + norms
    for layers, dtype in ((1, torch.float32), (3, torch.bfloat16)):
        deep, bits = replace(cfg, n_layers=layers), 8 * dtype.itemsize
        values = layers * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)
        assert kv_bytes_per_token(deep, bits) == values * dtype.itemsize
        assert LatentKVCache(deep, 2, 10, dtype).nbytes == 2 * 10 * values * dtype.itemsize


def test_a_cache_made_in_inference_mode_goes_out_of_it(x):
    layer = LatentAttention(FULL)
    with torch.inference_mode():
        cache = LatentKVCache(FULL, 3)
        read(layer, x[:, :20], cache)
    assert_near(read(layer, x[:, 20:], cache), read(layer, x, LatentKVCache(FULL, 3))[:, 20:])


def test_each_layer_keeps_its_own_latents():
    cache, values = LatentKVCache(replace(FULL, n_layers=3), 2, 10), torch.randn(3, 2, 1, 4, 32)
    cache.reserve(torch.tensor([4, 4]))
    for layer, latents in enumerate(values):
        assert torch.equal(cache.append(layer, latents), latents)
    cache.advance(torch.tensor([4, 4]))
    cache.reserve(torch.tensor([0, 0]))
    assert torch.equal(torch.stack([cache.append(layer, values[0, :, :, :0]) for layer in range(3)]), values)


@pytest.mark.parametrize("latents", [torch.ones(3, 1, 2, 32, dtype=torch.bfloat16), torch.ones(3, 1, 1, 32),
                                     torch.ones(3, 2, 2, 32), torch.ones(1, 1, 2, 32), torch.ones(3, 1, 2, 1)])
def test_latents_that_were_not_reserved_are_refused_and_not_stored(latents):
    cache = LatentKVCache(FULL, 3)
    cache.reserve(torch.tensor([2, 2, 2]))
    with pytest.raises(BadInputError, match=r"this call reserved torch.float32 \(3, 1, 2, 32\)"):
        cache.append(0, latents)
    assert not cache._store.any()


def test_deepseek_v3s_own_cache():
    """512 + 64 values in each of 61 layers, two bytes each."""
    with torch.device("meta"):
        cache = LatentKVCache(model_config("DeepSeek-V3"), 1, 10, torch.bfloat16)
    assert cache.nbytes == 10 * 61 * 576 * 2


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    a, b, c = (LatentAttention(FULL, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["out.weight"], c["out.weight"])


# --- each fault breaks a law ---------------------------------------------------------------------------------


class Unscaled(LatentAttention):
    """Absorbed scores divided by the root of the latent's width instead of the heads'."""

    def _absorbed(self, q, held, mask):
        return super()._absorbed(q * (q.shape[-1] / held.shape[-1]) ** 0.5, held, mask)


class HalvesSwapped(LatentAttention):
    """The part of the weight that makes keys is taken for the values' part. No shape tells: both are N wide."""

    def _absorbed(self, q, held, mask):
        keys, values = self.kv_up.weight.view(self.cfg.n_heads, 2, -1, self.cfg.kv_lora_rank).unbind(1)
        swapped = SimpleNamespace(weight=torch.stack((values, keys), 1).flatten(0, 2))
        return LatentAttention._absorbed(SimpleNamespace(cfg=self.cfg, kv_up=swapped), q, held, mask)


class KeyNotTurned(LatentAttention):
    """The key that all heads share knows nothing of its position. Both ways read it from the cache, and agree."""

    def _latents(self, x, cos, sin):
        return super()._latents(x, torch.ones_like(cos), torch.zeros_like(sin))


class LatentNotNormed(LatentAttention):
    """The latent is kept as it comes. Again both ways agree."""

    def _latents(self, x, cos, sin):
        made = super()._latents(x, cos, sin)
        made[..., : self.cfg.kv_lora_rank] = self.kv_down(x)[..., : self.cfg.kv_lora_rank].unsqueeze(1)
        return made


@torch.no_grad()
@pytest.mark.parametrize("fault, ways_agree", [(Unscaled, False), (HalvesSwapped, False), (KeyNotTurned, True),
                                               (LatentNotNormed, True)])
def test_a_faulty_layer_breaks_a_law(fault, ways_agree, x):
    """A fault of one way is seen beside the other; one of what both read, only beside DeepSeek's layer."""
    cfg = replace(FULL, v_head_dim=16)  # values as wide as a head's own part of the key
    assert cfg.kv_lora_rank != cfg.qk_nope_head_dim == cfg.v_head_dim
    absorbed_is_naive(LatentAttention(cfg, seed=1), x)
    is_deepseeks(LatentAttention(cfg, seed=1), x, absorb=True)
    with pytest.raises(AssertionError, match="not close"):
        is_deepseeks(fault(cfg, seed=1), x, absorb=True)
    if ways_agree:
        return absorbed_is_naive(fault(cfg, seed=1), x)
    with pytest.raises(AssertionError, match="not close"):
        absorbed_is_naive(fault(cfg, seed=1), x)


# --- variants ------------------------------------------------------------------------------------------------


def test_variants_differ_in_nothing_but_their_attention():
    llama = model_config("Llama-3.1-8B")
    made = variants(llama)
    assert [cfg.attention for cfg in made.values()] == list(made) == ["MHA", "MQA", "GQA", "MLA"]
    assert made["GQA"] == llama
    values = {kind: kv_bytes_per_token(cfg, 16) / 2 / 32 / 128 for kind, cfg in made.items()}  # in heads of 128
    assert values == {"MHA": 64, "GQA": 16, "MQA": 2, "MLA": 4.5}
    assert variants(made["MHA"], 4)["GQA"].n_kv_heads == 4 and variants(made["MHA"])["GQA"].attention == "MHA"
    assert LatentAttention(variants(ModelConfig(1, 48, 4, 2, 96, 61))["MLA"]).cfg.v_head_dim == 12
    assert variants(ModelConfig(1, 48, 8, 2, 96, 61))["MLA"].qk_rope_head_dim == 2  # half of 6 would be odd
    assert llama.published and not any(cfg.published for cfg in made.values())  # nobody published these


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, says", [
    pytest.param(lambda: ModelConfig(1, 48, 4, None, 96, 61, **MLA | {"kv_lora_rank": 0}), "rank is 0", id="rank"),
    pytest.param(lambda: ModelConfig(1, 48, 4, None, 96, 61, **MLA | {"qk_rope_head_dim": 7}),
                 "qk_rope_head_dim is 7; allowed: an even number", id="odd"),
    pytest.param(lambda: LatentAttention(ModelConfig(1, 48, 4, None, 96, 61)), "kv_lora_rank is None", id="layer"),
    pytest.param(lambda: LatentKVCache(ModelConfig(1, 48, 4, None, 96, 61), 1), "kv_lora_rank is None", id="cache"),
    pytest.param(lambda: LatentKVCache(FULL, 0), "batch is 0", id="batch"),
    pytest.param(lambda: LatentKVCache(FULL, 1, 65), "capacity is 65", id="capacity"),
    pytest.param(lambda: variants(FULL), "attention is 'MLA'", id="variants"),
    pytest.param(lambda: variants(ModelConfig(1, 48, 4, 2, 96, 61), 0), "n_kv_heads is 0", id="no-groups"),
    pytest.param(lambda: variants(ModelConfig(1, 48, 4, 2, 96, 61), 3), "n_kv_heads is 3", id="groups"),
])
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(BadInputError, match=says):
        call()


@torch.no_grad()
@pytest.mark.parametrize("shape, says", [
    ((2, 1, 48), r"x is \(2, 1, 48\); allowed: \(3 sequences"), ((3, 0, 48), r"x is \(3, 0, 48\)"),
    ((3, 1, 47), "width 48"), ((3, 48), r"x is \(3, 48\)"), ((3, 6, 48), "holds 30 tokens and 6 more do not fit"),
])
def test_a_refused_call_leaves_the_cache_as_it_was(x, shape, says):
    layer, cache = LatentAttention(FULL), LatentKVCache(FULL, 3, 32)
    read(layer, x, cache)
    before = cache._store.clone()
    with pytest.raises(BadInputError, match=says):
        read(layer, torch.zeros(shape), cache)
    assert cache.lengths.tolist() == [30, 30, 30] and torch.equal(cache._store, before)


@torch.no_grad()
def test_a_model_that_brings_keys_and_values_is_refused_and_leaves_the_latents(x):
    """`generate` with this cache in place of a ContiguousKVCache."""
    layer, cache, wanted = LatentAttention(FULL), LatentKVCache(FULL, 3, 32), LatentKVCache(FULL, 3, 32)
    read(layer, x[:, :20], cache)
    plain = Transformer(ModelConfig(1, 48, 4, None, 96, 61, context=64)).eval()
    with pytest.raises(BadInputError, match="holds latents, and keys and values came; `read` with a LatentAttention"):
        generate(plain, [[1] * 25] * 3, 2, cache)
    assert cache.lengths.tolist() == [20] * 3
    read(layer, x[:, :20], wanted)
    assert torch.equal(cache._store, wanted._store)
    assert torch.equal(read(layer, x[:, 20:25], cache), read(layer, x[:, 20:25], wanted))
