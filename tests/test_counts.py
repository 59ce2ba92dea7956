"""What is counted from the architecture: against makers' numbers, and against models that are built."""

import doctest
from dataclasses import replace

import pytest

from llmflation.config import ModelConfig, load_models, model_config
from llmflation.cost import counts
from llmflation.cost.counts import count_params
from llmflation.errors import BadInputError

TOY = ModelConfig(4, 512, 8, 2, 1536, 320, tied_embeddings=True)
MODELS = load_models()
WITH_EYES = {"Gemma-3-4b", "Gemma-3-12b", "Gemma-3-27b"}  # the maker counts the part that sees images


def test_worked_lines():
    assert doctest.testmod(counts, raise_on_error=True).attempted


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_as_many_parameters_as_its_makers_say(name):
    published = MODELS[name].published
    wide = 0.11 if name in WITH_EYES else 0.02
    assert count_params(MODELS[name]).total == pytest.approx(published.total_params, rel=wide)
    if MODELS[name].is_moe:  # makers differ in whether the embedding is active: ours may exceed by it
        count, table = count_params(MODELS[name], active=True), MODELS[name].vocab_size * MODELS[name].d_model
        assert 0.95 * published.active_params < count.total < 1.05 * (published.active_params + 2 * table)


@pytest.mark.parametrize("cfg", [TOY, replace(TOY, tied_embeddings=False, n_kv_heads=8),
                                 ModelConfig(3, 96, 6, 1, 200, 77, head_dim=32)])
def test_the_count_is_that_of_the_model_that_is_built(cfg):
    from llmflation.model import Transformer

    built = sum(p.numel() for p in Transformer(cfg, seed=None).parameters())
    assert count_params(cfg).total == built


def test_of_experts_a_token_visits_few():
    mixtral = model_config("Mixtral-8x7B")
    all_of_them, visited = count_params(mixtral), count_params(mixtral, active=True)
    expert = 3 * mixtral.d_model * mixtral.d_expert
    assert all_of_them.feed_forward - visited.feed_forward == 32 * 6 * expert
    assert all_of_them.attention == visited.attention
    assert "active" in repr(visited) and "active" not in repr(all_of_them)


def test_a_dense_model_is_active_as_a_whole():
    assert count_params(TOY, active=True).total == count_params(TOY).total


def test_what_is_no_configuration_is_refused():
    with pytest.raises(BadInputError, match="model_config"):
        count_params("Llama-3.1-8B")
