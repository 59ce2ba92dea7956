"""Laws of the model's configuration, and the presets against what their makers publish."""

import dataclasses
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import config, facts
from llmflation.config import ModelConfig, load_models, model_config
from llmflation.errors import BadInputError, UnknownNameError

TOY = {"n_layers": 4, "d_model": 512, "n_heads": 8, "n_kv_heads": 2, "d_ff": 1408, "vocab_size": 320}
MOE = TOY | {"d_ff": None, "n_experts": 8, "top_k": 2, "d_expert": 704}
MLA = TOY | {
    "n_kv_heads": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
MODELS = load_models()


def test_worked_lines():
    assert doctest.testmod(config, raise_on_error=True).attempted >= 3


def test_a_config_is_frozen_hashable_and_equal_by_architecture():
    toy = ModelConfig(**TOY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.n_layers = 5
    assert toy == ModelConfig(**TOY, name="other name")
    assert len({toy, ModelConfig(**TOY), dataclasses.replace(toy, n_layers=5)}) == 2


def test_what_is_left_out_follows_by_definition():
    assert ModelConfig(**TOY).head_dim == 64
    assert ModelConfig(**TOY | {"n_kv_heads": None}).n_kv_heads == 8
    assert ModelConfig(**TOY).n_moe_layers == 0
    moe = ModelConfig(**MOE)
    assert (moe.n_moe_layers, moe.n_dense_layers) == (4, 0)
    mla = ModelConfig(**MLA)
    assert (mla.head_dim, mla.n_kv_heads) == (48, 8)


def test_replace_keeps_a_config_valid():
    for changes in (TOY, MOE, MLA):
        c = ModelConfig(**changes)
        assert dataclasses.replace(c) == c


@pytest.mark.parametrize(("n_kv_heads", "kind"), [(8, "MHA"), (1, "MQA"), (2, "GQA"), (4, "GQA")])
def test_attention_follows_from_the_heads(n_kv_heads, kind):
    assert ModelConfig(**TOY | {"n_kv_heads": n_kv_heads}).attention == kind


def test_attention_over_a_latent_is_mla():
    assert ModelConfig(**MLA).attention == "MLA"


@given(n_heads=st.integers(1, 64), n_kv_heads=st.integers(1, 64), half=st.integers(1, 64))
def test_heads_divide_or_are_refused(n_heads, n_kv_heads, half):
    changes = TOY | {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_model": 2 * half * n_heads}
    if n_heads % n_kv_heads:
        with pytest.raises(BadInputError, match="divisor of n_heads"):
            ModelConfig(**changes)
    else:
        c = ModelConfig(**changes)
        assert c.head_dim * c.n_heads == c.d_model


@given(n_layers=st.integers(1, 100), global_every=st.sampled_from([0, 2, 3, 6]))
def test_local_and_global_layers_are_all_layers(n_layers, global_every):
    c = ModelConfig(**TOY | {"n_layers": n_layers}, sliding_window=128, global_every=global_every)
    kinds = [bool(global_every) and (i + 1) % global_every == 0 for i in range(n_layers)]
    assert c.n_global_layers == sum(kinds)


BAD = {
    "zero-layers": (TOY | {"n_layers": 0}, "n_layers is 0"),
    "negative-width": (TOY | {"d_model": -512}, "d_model is -512"),
    "half-a-layer": (TOY | {"n_layers": 4.5}, "n_layers is 4.5"),
    "a-number-as-text": (TOY | {"vocab_size": "320"}, "vocab_size is '320'"),
    "true-for-a-number": (TOY | {"n_heads": True}, "n_heads is True"),
    "no-feed-forward": (TOY | {"d_ff": None}, "d_ff"),
    "zero-feed-forward": (TOY | {"d_ff": 0}, "d_ff"),
    "heads-do-not-divide": (TOY | {"n_kv_heads": 3}, "divisor of n_heads, which is 8"),
    "more-kv-heads": (TOY | {"n_kv_heads": 16}, "divisor of n_heads"),
    "zero-kv-heads": (TOY | {"n_kv_heads": 0}, "n_kv_heads is 0"),
    "width-does-not-divide": (TOY | {"d_model": 500}, "Or set head_dim"),
    "odd-head-dim": (TOY | {"head_dim": 63}, "head_dim is 63; allowed: an even number"),
    "zero-head-dim": (TOY | {"head_dim": 0}, "head_dim is 0"),
    "zero-context": (TOY | {"context": 0}, "context is 0"),
    "four-matrices": (TOY | {"ffn_matrices": 4}, "ffn_matrices is 4"),
    "tied-as-text": (TOY | {"tied_embeddings": "yes"}, "tied_embeddings is 'yes'"),
    "top-k-above-experts": (MOE | {"top_k": 9}, "top_k is 9; allowed: at most n_experts, which is 8"),
    "zero-top-k": (MOE | {"top_k": 0}, "top_k is 0"),
    "negative-experts": (MOE | {"n_experts": -8}, "n_experts is -8"),
    "expert-without-width": (MOE | {"d_expert": None}, "d_expert is None"),
    "top-k-without-experts": (TOY | {"top_k": 2}, "n_experts is 0"),
    "shared-without-experts": (TOY | {"n_shared_experts": 1}, "n_experts is 0"),
    "moe-layers-above-layers": (MOE | {"n_moe_layers": 5}, "at most n_layers, which is 4"),
    "zero-moe-layers": (MOE | {"n_moe_layers": 0}, "n_moe_layers is 0"),
    "dense-layer-without-width": (MOE | {"n_moe_layers": 3}, "d_ff (of the 1 layers"),
    "zero-window": (TOY | {"sliding_window": 0}, "sliding_window is 0"),
    "global-without-window": (TOY | {"global_every": 2}, "global_every is 2"),
    "every-layer-global": (TOY | {"sliding_window": 64, "global_every": 1}, "Leave the window out"),
    "mla-rank-0": (MLA | {"kv_lora_rank": 0}, "kv_lora_rank is 0"),
    "mla-half-given": (MLA | {"v_head_dim": None}, "v_head_dim is None"),
    "mla-negative-q-rank": (MLA | {"q_lora_rank": -1}, "q_lora_rank is -1"),
    "q-rank-without-mla": (TOY | {"q_lora_rank": 64}, "q_lora_rank is 64; allowed: 0 without MLA"),
    "mla-odd-rope": (MLA | {"qk_rope_head_dim": 15}, "qk_rope_head_dim is 15; allowed: an even number"),
    "mla-with-kv-heads": (MLA | {"n_kv_heads": 2}, "n_kv_heads is 2; allowed: with MLA"),
    "mla-with-head-dim": (MLA | {"head_dim": 64}, "head_dim is 64; allowed: with MLA"),
}


@pytest.mark.parametrize(("fields", "says"), BAD.values(), ids=BAD)
def test_a_bad_config_is_refused_with_the_field_and_its_value(fields, says):
    with pytest.raises(BadInputError) as error:
        ModelConfig(**fields)
    assert says in str(error.value)
    assert "allowed: " in str(error.value)


def test_its_repr_is_a_sentence():
    assert repr(MODELS["Llama-3.1-8B"]) == (
        "Llama-3.1-8B: 32 layers of width 4096, 32 query heads on 8 key-value heads of 128 (GQA), "
        "feed-forward 14336, 128,256 tokens in its vocabulary, context 131,072."
    )
    assert "8 of 256 experts and 1 shared of width 2048 in 58 layers" in repr(MODELS["DeepSeek-V3"])
    assert "a window of 128 in 12 layers" in repr(MODELS["gpt-oss-20b"])
    assert repr(ModelConfig(**TOY)).startswith("a model: 4 layers")


# The presets.


def test_every_row_is_a_preset_with_its_source():
    assert list(MODELS) == [row["name"] for row in facts.read("models")]
    assert all(m.name == name and "models.csv line" in m.source for name, m in MODELS.items())


@pytest.mark.parametrize("row", facts.read("models"), ids=lambda row: row["name"])
def test_a_preset_says_what_its_row_says(row):
    model = MODELS[row["name"]]
    assert model.attention == row["attention"]
    for name, column in config._COLUMNS.items():
        if row[column] is not None and not (name == "d_ff" and model.d_ff is None):
            assert getattr(model, name) == row[column], name
    # The cache's size per token follows from the architecture alone.
    values = (
        model.kv_lora_rank + model.qk_rope_head_dim
        if model.attention == "MLA"
        else 2 * model.n_kv_heads * model.head_dim
    )
    assert model.n_layers * values == row["kv_values_per_token"]


@pytest.mark.parametrize(
    ("name", "attention", "layers", "width", "experts", "published"),
    [
        # What the papers print.
        ("GPT-3 175B", "MHA", 96, 12288, 0, 175e9),
        ("Llama-3.1-8B", "GQA", 32, 4096, 0, 8.03e9),
        ("Gemma-3-1b", "MQA", 26, 1152, 0, 1.0e9),
        ("Mixtral-8x7B-v0.1", "GQA", 32, 4096, 8, 46.7e9),
        ("DeepSeek-V3", "MLA", 61, 7168, 256, 671e9),
        ("SmolLM2-135M", "GQA", 30, 576, 0, 0.135e9),
    ],
)
def test_known_models(name, attention, layers, width, experts, published):
    m = model_config(name)
    assert (m.attention, m.n_layers, m.d_model, m.n_experts) == (attention, layers, width, experts)
    assert m.published.total_params == pytest.approx(published, rel=0.01)


def test_published_facts_stay_apart_from_the_architecture():
    mixtral = MODELS["Mixtral-8x7B-v0.1"]
    assert mixtral.published.active_params < mixtral.published.total_params
    assert ModelConfig(**TOY).published is None
    assert not hasattr(mixtral, "total_params")


@pytest.mark.parametrize("name", ["Lama-3.1-8B", "llama 3.1 8b", "GPT-5", "", None, 3])
def test_an_unknown_model_gets_the_nearest_names(name):
    with pytest.raises(UnknownNameError, match="unknown model"):
        model_config(name)


def test_a_typo_names_what_was_meant():
    with pytest.raises(UnknownNameError, match=r"nearest: 'Llama-3\.1-8B'"):
        model_config("Lama-3.1-8B")


def test_a_bad_row_is_named(tmp_path, monkeypatch):
    table = (facts.DATA_DIR / "models.csv").read_text(encoding="utf-8")
    bad = table.replace("Llama-2-70B,Meta,2023-07-18,80,8192,64,8,", "Llama-2-70B,Meta,2023-07-18,80,8192,64,7,")
    assert bad != table
    (tmp_path / "models.csv").write_text(bad, encoding="utf-8")
    monkeypatch.setattr(facts, "DATA_DIR", tmp_path)
    with pytest.raises(BadInputError, match=r"models\.csv line \d+ \(name 'Llama-2-70B'\): n_kv_heads is 7"):
        load_models()
