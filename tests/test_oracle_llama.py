"""Our model beside Hugging Face's Llama: the same weights, the same scores, the same words. Never skipped."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmflation.checkpoint import from_hugging_face, load_checkpoint, save_checkpoint
from llmflation.config import ModelConfig
from llmflation.kvcache import ContiguousKVCache
from llmflation.model import Transformer, generate

SHAPES = {
    "MHA, untied": ModelConfig(3, 64, 4, 4, 160, 97, context=320),
    "GQA, tied": ModelConfig(2, 96, 6, 2, 256, 97, context=320, tied_embeddings=True, rope_theta=500_000.0),
    "MQA, wide heads": ModelConfig(2, 64, 4, 1, 128, 97, context=320, head_dim=32, norm_eps=1e-6),
}


def theirs(cfg: ModelConfig) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        num_hidden_layers=cfg.n_layers, hidden_size=cfg.d_model, num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads, intermediate_size=cfg.d_ff, vocab_size=cfg.vocab_size,
        max_position_embeddings=cfg.context, tie_word_embeddings=cfg.tied_embeddings, rms_norm_eps=cfg.norm_eps,
        head_dim=cfg.head_dim, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_theta": cfg.rope_theta, "rope_type": "default"}, attn_implementation="eager")).eval()


@pytest.fixture(params=SHAPES, scope="module")
def pair(request):
    """Our model and theirs with the same random weights."""
    cfg = SHAPES[request.param]
    other, model = theirs(cfg), Transformer(cfg).eval()
    model.load_state_dict(from_hugging_face(other.state_dict(), cfg))
    return model, other


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_scores_agree_without_a_cache(pair, tokens):
    model, other = pair
    torch.testing.assert_close(model(tokens), other(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [7, 1, 20, 12]])
def test_the_scores_agree_with_a_cache_at_every_position(pair, tokens, chunks):
    model, other = pair
    cache, parts, at = ContiguousKVCache(model.cfg, 3), [], 0
    for n in chunks:
        parts.append(model(tokens[:, at : at + n], cache))
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), other(tokens).logits, rtol=0, atol=1e-4)
    assert cache.lengths.tolist() == [40, 40, 40]


def test_greedy_words_agree_over_200_tokens(pair, tokens):
    model, other = pair
    prompt = tokens[:1, :12]
    expected = other.generate(prompt, max_new_tokens=200, do_sample=False)[0, 12:].tolist()
    assert generate(model, prompt.tolist(), 200, ContiguousKVCache(model.cfg, 1))[0] == expected


def test_checkpoints_go_both_ways(pair, tokens, tmp_path):
    model, other = pair
    save_checkpoint(tmp_path / "ours", model.cfg, model.state_dict())
    reread = LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    other.save_pretrained(tmp_path / "theirs")
    cfg, state = load_checkpoint(tmp_path / "theirs")
    assert cfg == model.cfg
    loaded = Transformer(cfg, seed=9).eval()
    loaded.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(reread(tokens).logits, model(tokens), rtol=0, atol=1e-4)
        assert torch.equal(loaded(tokens), model(tokens))
