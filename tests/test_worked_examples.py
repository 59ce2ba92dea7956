"""Numbers that others have published, reproduced by the cost model's own functions.

Each test gives its source and the arithmetic. The published number is typed here; ours comes from a function. Those
that are wrong stand at the end, with what they should be.

Sources:

- [SB7] J. Austin et al., How to Scale Your Model, part 7, "All About Transformer Inference", 2025-02-04,
  https://jax-ml.github.io/scaling-book/inference/
- [SB8] the same, part 8, "Serving LLaMA 3-70B on TPUs", 2025-02-04,
  https://jax-ml.github.io/scaling-book/applied-inference/ (tables of caches and queries: in their corrected edition)
- [SB1] the same, part 1, "All About Rooflines", 2025-02-04, https://jax-ml.github.io/scaling-book/roofline/
- [CS336] Stanford CS336, spring 2025, lecture 10, "Inference", lecture_10.py,
  https://github.com/stanford-cs336/spring2025-lectures
- [vLLM-2023] "vLLM: Easy, Fast, and Cheap LLM Serving with PagedAttention", 2023-06-20,
  https://blog.vllm.ai/2023/06/20/vllm.html
- [vLLM-OFF] "Inside vLLM's New Offloading Connector", 2026-01-08,
  https://github.com/vllm-project/vllm-project.github.io, _posts/2025-12-29-offloading-connector.md
- [vLLM-FP8] "The State of FP8 KV-Cache and Attention Quantization in vLLM", 2026-04-22,
  https://blog.vllm.ai/2026/04/22/fp8-kvcache.html (lines fitted to inter-token latency over context, one request)
- [LS] S. Raschka, LLMs from scratch, ch04/04_gqa to 07_moe, 2025, https://github.com/rasbt/LLMs-from-scratch
- [TL] tiny-llm, a course on serving Qwen3, 2026, https://github.com/skyzh/tiny-llm
- [GPT] A. Karpathy, nanoGPT, transformer_sizing.ipynb, 2023, https://github.com/karpathy/nanoGPT
- [AK] A. Karpathy, "nanochat can now train GPT-2 grade LLM", 2026-01-31,
  https://x.com/karpathy/status/2017703360393318587
- [DS] DeepSeek-V3/R1 Inference System Overview, 2025-03-01, https://github.com/deepseek-ai/open-infra-index
- [EE] E. Erdil, notebook of "Inference economics of language models", 2025,
  https://github.com/ege-erdil/inference-economics
- [A16Z] G. Appenzeller, "Welcome to LLMflation", 2024-11-12, https://a16z.com/llmflation-llm-inference-cost/
- [HAI] Stanford HAI, AI Index Report 2025, 2025-04-07, https://hai.stanford.edu/ai-index/2025-ai-index-report
- [MIT] MIT 6.5940, lab 4, quantization of OPT-1.3B with AWQ, saved output, 2023, https://efficientml.ai
- [MLE] ML.ENERGY Leaderboard v3.0, 2026-02-16, https://github.com/ml-energy/leaderboard
- [RP] R. Pope in a lecture with D. Patel, April 2026 (spoken)
- [TRT] TensorRT-LLM v0.6.1, docs/source/performance.md, 2023-12-04,
  https://github.com/NVIDIA/TensorRT-LLM/blob/138f96d4/docs/source/performance.md
"""

import math
from dataclasses import replace

import pytest

from llmflation.config import ModelConfig, load_models
from llmflation.cost import formulas as f
from llmflation.cost.counts import (
    count_params,
    decode_flops,
    kv_bytes,
    kv_bytes_per_token,
    prefill_flops,
    prefill_work,
    weight_bytes,
)
from llmflation.cost.economics import Cost, TokenCosts, joules_per_token, usd_per_million_tokens
from llmflation.cost.serving import decode_step, max_batch
from llmflation.hardware import load_hardware
from llmflation.units import GB, GIB, KIB, MIB, years_between

MODELS, CHIPS = load_models(), load_hardware()
LLAMA_8B, LLAMA_13B, LLAMA_70B = MODELS["Llama-3.1-8B"], MODELS["Llama-2-13B"], MODELS["Llama-3-70B"]
H100, B200, V5E = CHIPS["H100 SXM5 80GB"], CHIPS["B200 SXM 180GB"], CHIPS["TPU v5e"]
GPT_2 = ModelConfig(12, 768, 12, None, 3072, 50_257, ffn_matrices=2, tied_embeddings=True, context=1024)
V5E_BYTES_PER_S = 8.1e11  # as [SB8] rounds it; [SB7] also has 8.2e11


def near(published, digits=2):
    """Equal to the published number but for the rounding of its last digit."""
    return pytest.approx(published, abs=0.6 * 10 ** (math.floor(math.log10(published)) + 1 - digits))


# What a cache holds.


def test_the_cache_of_a_token_of_llama_3_70b():
    """[SB8] int8: 2 x 8 heads x 128 x 80 layers = 163,840 bytes; published 160 kB (they mean KiB)."""
    assert kv_bytes_per_token(LLAMA_70B, kv_bits=8) / KIB == 160


def test_the_cache_of_a_sequence_of_llama_2_13b():
    """[SB7] 8,192 tokens x 40 heads x 128 x 40 layers x 2 bytes x 2 = 6.7 GB."""
    assert kv_bytes(LLAMA_13B, 8192) / GB == near(6.7)


def test_a_sequence_of_llama_13b_takes_up_to_1_7_gb():
    """[vLLM-2023] 2,048 tokens x 819,200 bytes = 1.68 GB; published "up to 1.7GB"."""
    assert kv_bytes(LLAMA_13B, 2048) / GB == near(1.7)


def test_the_cache_of_qwen3_4b():
    """[TL] 2 x 8 heads x 128 x 36 layers x 2 bytes = 147,456 bytes a token."""
    assert kv_bytes_per_token(MODELS["Qwen3-4B"]) == 147_456


@pytest.mark.parametrize(("context", "published_gib"), [(2048, 0.28), (8192, 1.12), (32_768, 4.50), (300_000, 41.2)])
def test_the_cache_of_qwen3_4b_over_its_context(context, published_gib):
    """[TL] context x 147,456 bytes."""
    assert kv_bytes(MODELS["Qwen3-4B"], context) / GIB == pytest.approx(published_gib, abs=0.006)


MISTRAL_SMALL = ModelConfig(40, 5120, 32, 8, 32_768, 131_072, head_dim=128)
BLOCKS = {  # [vLLM-OFF] model: chips that share it, tokens a block, published KB of one layer's half, MB of the whole
    "Qwen2.5-32B": (2, 16, 16, 2.0),  # DeepSeek-R1-Distill-Qwen-32B
    "Llama-3.1-8B": (1, 16, 32, 2.0),
    "Llama-3.2-1B": (1, 16, 16, 0.5),
    "Llama-3.1-70B": (4, 16, 8, 1.25),  # that four chips share it is not said
    "Mistral-7B-v0.1": (1, 16, 32, 2.0),
    "Mistral-Small-24B": (1, 16, 32, 2.5),
    "Qwen2.5-3B": (1, 16, 8, 0.56),
    "Qwen3-0.6B": (1, 16, 32, 1.75),
    "Qwen2.5-7B": (1, 16, 16, 0.87),
    "Qwen3-4B": (1, 16, 32, 2.25),
    "Qwen2.5-1.5B": (1, 16, 8, 0.44),
    "Qwen3-1.7B": (1, 16, 32, 1.75),
    "Qwen3-32B": (2, 16, 16, 2.0),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_of_a_paged_cache(name):
    """[vLLM-OFF] tokens x bytes a token / chips; the old layout keeps keys and values of each layer apart. In binary
    units."""
    chips, tokens, old_kib, new_mib = BLOCKS[name]
    cfg = MISTRAL_SMALL if name == "Mistral-Small-24B" else MODELS[name]
    block = kv_bytes(cfg, tokens) / chips
    assert block / MIB == pytest.approx(new_mib, abs=0.006)
    assert block / (2 * cfg.n_layers) / KIB == old_kib


def test_the_block_of_a_latent():
    """[vLLM-OFF] DeepSeek-V2-Lite, 64 tokens: x (512 + 64) x 2 bytes = 72 KiB a layer; x 27 layers = 1.90 MiB.
    [CS336] has the same 576 numbers."""
    cfg = MODELS["DeepSeek-V2-Lite"]
    assert kv_bytes(cfg, 64) / cfg.n_layers / KIB == 72
    assert kv_bytes(cfg, 64) / MIB == near(1.9)


RASCHKA = ModelConfig(32, 4096, 32, None, 16_384, 50_257)


@pytest.mark.parametrize(
    ("kv_heads", "window", "published_gb"),
    [(32, None, 17.18), (8, None, 4.29), (32, 1024, 3.14), (8, 1024, 0.78)],
)
def test_fewer_heads_and_a_window_shrink_the_cache(kv_heads, window, published_gb):
    """[LS] 32,768 tokens, 32 layers of 32 heads of 128, 16 bits; with the window every sixth sees all: 5 of 32."""
    cfg = replace(RASCHKA, n_kv_heads=kv_heads, sliding_window=window, global_every=6 if window else 0)
    assert kv_bytes(cfg, 32_768) / GB == pytest.approx(published_gb, abs=0.006)


def test_a_latent_of_1024():
    """[LS] 8,192 tokens x 48 layers x 1,024 x 2 bytes = 0.81 GB. They leave out the rotary part of the key; here it is
    two of the 1,024."""
    cfg = ModelConfig(48, 2048, 24, None, 8192, 50_257, kv_lora_rank=1022, qk_nope_head_dim=64, qk_rope_head_dim=2,
                      v_head_dim=64)
    assert kv_bytes(cfg, 8192) / GB == near(0.81)


# What a model weighs.


def test_the_parameters_of_an_invented_model():
    """[SB7, question 1] 64 x 4096 x (3 x 16384 + 2 x 256 x (32 + 8)) + 4096 x 32128 = 18.4e9, without norms."""
    params = count_params(ModelConfig(64, 4096, 32, 8, 16_384, 32_128, head_dim=256, tied_embeddings=True))
    assert params.total - params.norms == near(18.4e9, digits=3)
    assert params.total - params.norms == 18_385_207_296


def test_the_parameters_of_llama_2_13b():
    """[CS336] 2VD + 3DFL + (2DNH + 2DKH)L = 13.0154e9."""
    params = count_params(LLAMA_13B)
    assert params.total - params.norms == near(13.0154e9, digits=6)


def test_the_parameters_of_gpt_2():
    """[GPT] 124,337,664, of which 1,024 x 768 are the learned positions that our models do not have."""
    assert count_params(GPT_2).total + 1024 * 768 == 124_337_664


def test_the_parameters_of_a_layer_of_experts():
    """[LS] three matrices of 7168 x 14336 = 308,281,344; the same in 8 experts of 1792 and a router of 8 x 7168 =
    308,338,688, of which a token passes 2 and the router: 77,127,680."""
    dense = ModelConfig(1, 7168, 56, None, 14_336, 50_257)
    experts = replace(dense, d_ff=None, n_experts=8, top_k=2, d_expert=1792, n_moe_layers=1)
    assert count_params(dense).feed_forward == 308_281_344
    assert count_params(experts).feed_forward == 308_338_688
    assert count_params(experts, active=True).feed_forward == 77_127_680


def test_the_parameters_of_mistral_large_2():
    """[EE] 122.6e9."""
    assert count_params(MODELS["Mistral-Large-2407"]).total == near(122.6e9, digits=4)


def test_the_parameters_of_mixtral_8x22b_with_one_key_value_head():
    """[EE] 140.0e9, 38.5e9 of them active."""
    cfg = replace(MODELS["Mixtral-8x22B-v0.1"], n_kv_heads=1)
    assert count_params(cfg).total == near(140.0e9, digits=4)
    assert count_params(cfg, active=True).total == near(38.5e9, digits=3)


def test_all_of_llama_3_70b_and_of_its_caches():
    """[SB8] int8, 32 sequences of 8,192: 70e9 + 32 x 8,192 x 160e3 = 112 GB. Not rounded it is 113.5."""
    assert (weight_bytes(LLAMA_70B, 8) + 32 * kv_bytes(LLAMA_70B, 8192, 8)) / GB == pytest.approx(112, rel=0.015)


@pytest.mark.parametrize(("bits", "chips"), [(16, 16), (8, 8), (4, 4)])
def test_as_many_caches_fit_beside_16_8_and_4_bits(bits, chips):
    """[SB8] 8,192 tokens on TPU v5e of 16 GB: (chips x 16e9 - weights) / cache = 43, each time. Not rounded: 42.8."""
    room = chips * V5E.mem_bytes - weight_bytes(LLAMA_70B, bits)
    assert room / kv_bytes(LLAMA_70B, 8192, bits) == near(43)
    if chips <= LLAMA_70B.n_kv_heads:
        kept = {"weight_bits": bits, "kv_bits": bits, "chips": chips, "usable": 1.0}
        assert max_batch(LLAMA_70B, V5E, 8192, **kept) == 42


# How long a step takes.


def test_a_step_of_llama_3_70b_on_8_chips():
    """[SB8] 112e9 bytes / (8 x 8.1e11 bytes/s) = 17 ms; 32 / 17 ms = 1,882 tokens/s, 235 a chip. That leaves out what
    goes to memory between products."""
    hw = replace(V5E, mem_bytes_per_s=V5E_BYTES_PER_S)
    step = decode_step(LLAMA_70B, hw, 32, 8191, weight_bits=8, kv_bits=8, chips=8)  # and the token itself: 8,192
    read_s = sum(part.memory_s for name, part in step.parts.items() if name not in ("residual", "inner"))
    assert 1000 * read_s == pytest.approx(17, rel=0.03)
    assert 32 / read_s == pytest.approx(1882, rel=0.03)
    assert 32 / read_s / 8 == pytest.approx(235, rel=0.03)


def test_a_chip_reads_all_its_memory_in_19_ms():
    """[SB8] 16e9 bytes / 8.2e11 bytes/s = 19.5 ms; published 19."""
    assert 1000 * f.memory_s(V5E.mem_bytes, V5E.mem_bytes_per_s) == pytest.approx(19, abs=0.6)


@pytest.mark.parametrize("name", ["V100 SXM2 32GB", "A100 SXM4 80GB", "H100 SXM5 80GB", "H200 SXM", "B200 SXM 180GB",
                                  "TPU v5e"])
def test_every_generation_reads_its_memory_in_about_20_ms(name):
    """[RP] capacity / bandwidth: "about 20 ms"; ours 20 to 39."""
    hw = CHIPS[name]
    assert 0.9 * 20 < 1000 * f.memory_s(hw.mem_bytes, hw.mem_bytes_per_s) < 2 * 20


def test_rubin_reads_its_memory_in_15_ms():
    """[RP] 288 GB / 20 TB/s = 14.4 ms; published 15."""
    assert 1000 * f.memory_s(288e9, 20e12) == pytest.approx(15, abs=0.7)


@pytest.mark.parametrize(("batch", "published_ms"), [(4, 2.5), (256, 21)])
def test_a_model_of_30b_in_two_batches(batch, published_ms):
    """[SB7, pop quiz] int8 weights, 100 kB x 8,192 a cache, 16 chips: batch x 819e6 / (16 x 8.1e11) + the larger of
    30e9 / (16 x 8.1e11) and 2 x batch x 30e9 / (16 x 1.97e14)."""
    caches = f.memory_s(batch * 100e3 * 8192, 16 * V5E_BYTES_PER_S)
    weights = f.memory_s(30e9, 16 * V5E_BYTES_PER_S)
    use = f.compute_s(f.linear_flops(batch, 30e9), 16 * V5E.peak("bf16"))
    assert 1000 * (caches + f.overlapped_s(weights, use)) == pytest.approx(published_ms, abs=0.09)


TABLE = [  # batch, published ms and tokens/s with 40 key-value heads, the same with 8 ("5x smaller cache")
    (1, 4.98, 200.61, 4.17, 239.94), (8, 12.13, 659.30, 5.60, 1429.19), (16, 20.30, 787.99, 7.23, 2212.48),
    (32, 36.65, 873.21, 10.50, 3047.62), (64, 69.33, 923.13, 17.04, 3756.62), (240, 249.09, 963.53, 52.99, 4529.34),
]


@pytest.mark.parametrize(("batch", "ms", "rate", "small_ms", "small_rate"), TABLE)
def test_llama_2_13b_on_8_chips(batch, ms, rate, small_ms, small_rate):
    """[SB7] (26e9 + batch x 6.7e9) / (8 x 8.2e11), the second time with 1.34e9 and the same weights. Not
    rounded: 26.03 and 6.71."""
    for divided_by, published_ms, published_rate in ((1, ms, rate), (5, small_ms, small_rate)):
        moved = weight_bytes(LLAMA_13B) + batch * kv_bytes(LLAMA_13B, 8192) / divided_by
        step = f.memory_s(moved, 8 * 8.2e11)
        assert 1000 * step == pytest.approx(published_ms, rel=0.004)
        assert f.tokens_per_s(batch, 1, 0, step) == pytest.approx(published_rate, rel=0.004)


LECTURE = [  # key-value heads, batch, published GB, ms, tokens/s
    (40, 1, 26.87, 8.02, 124.7), (40, 64, 79.72, 23.8, 2689), (40, 256, 240.8, 71.9, 3562),
    (8, 64, 33.4, 9.97, 6417), (8, 256, 65.6, 19.6, 13_068),
]


@pytest.mark.parametrize(("kv_heads", "batch", "gb", "ms", "rate"), LECTURE)
def test_llama_2_13b_on_an_h100(kv_heads, batch, gb, ms, rate):
    """[CS336] contexts of 1,024: (2 x parameters + batch x cache) / 3.35e12; with fewer heads also fewer parameters."""
    cfg = replace(LLAMA_13B, n_kv_heads=kv_heads)
    moved = weight_bytes(cfg) + batch * kv_bytes(cfg, 1024)
    step = f.memory_s(moved, H100.mem_bytes_per_s)
    assert moved / GB == near(gb, digits=3)
    assert 1000 * step == near(ms, digits=3)
    assert batch / step == near(rate, digits=4)
    ours = decode_step(cfg, H100, batch, 1024, check_memory=False)  # theirs holds 241 GB on a chip of 80
    assert ours.memory_s == pytest.approx(step, rel=0.03)  # the embedding is looked up only


def test_a_prompt_of_8192_on_16_chips():
    """[SB8] 2 x 70e9 x 8,192 / (16 x 1.97e14 x 0.4) = 0.91 s. That leaves attention out, and counts the embedding and
    the head for every token; what has to be done takes 0.96."""
    rate = 16 * V5E.peak("bf16") * 0.4
    assert f.compute_s(f.linear_flops(8192, count_params(LLAMA_70B).total), rate) == pytest.approx(0.91, abs=0.01)
    assert f.compute_s(prefill_flops(LLAMA_70B, 1, 8192), rate) == near(0.96)


def test_three_servers_read_for_one_that_writes():
    """[SB8] prompts of 8,192 take 0.91 s, texts of 512 at 32 a step of 19 ms: 0.91 x 32 / (0.019 x 512) = 3."""
    prefill = f.compute_s(f.linear_flops(8192, count_params(LLAMA_70B).total), 16 * V5E.peak("bf16") * 0.4)
    texts_per_s = f.tokens_per_s(32, 512, 0, 0.019) / 512
    assert prefill * texts_per_s == near(3)


# How many at once.


def test_the_critical_batch_of_a_tpu():
    """[SB1, SB8] 1.97e14 / 8.2e11 = 240; with weights of 8 bits 120; with arithmetic of 8 bits 3.94e14 / 8.1e11 / 2 =
    243."""
    assert f.critical_batch(V5E.peak("bf16"), V5E.mem_bytes_per_s) == near(240)
    assert f.critical_batch(V5E.peak("bf16"), V5E.mem_bytes_per_s, weight_bits=8) == near(120)
    assert f.critical_batch(V5E.peak("int8"), V5E_BYTES_PER_S, weight_bits=8) == near(243, digits=3)


def test_the_critical_batch_of_an_h100():
    """[CS336] 989e12 / 3.35e12 = 295; [SB1] with the peak rounded to 1e15: 298."""
    assert round(f.critical_batch(H100.peak("bf16"), H100.mem_bytes_per_s)) == 295
    assert int(f.critical_batch(1e15, H100.mem_bytes_per_s)) == 298


@pytest.mark.parametrize(("bits", "chips", "published", "doubled"), [(16, 16, 0.27, 0.44), (8, 8, 0.55, 0.90),
                                                                     (4, 4, 1.11, 1.80)])
def test_queries_that_a_chip_answers(bits, chips, published, doubled):
    """[SB8] 43 / (0.019 s x 512) / chips; on twice as many chips 140 fit. Not rounded: 42 and 138."""
    for n, qps in ((chips, published), (2 * chips, doubled)):
        batch = int((n * V5E.mem_bytes - weight_bytes(LLAMA_70B, bits)) // kv_bytes(LLAMA_70B, 8192, bits))
        assert f.tokens_per_s(batch, 512, 0, 0.019) / 512 / n == pytest.approx(qps, rel=0.03)


# Against measured lines: one request, a longer and longer context.


def line_ms(cfg, hw, **options) -> tuple[float, float]:
    """Of the ideal step: its time without a context, and what each token of context adds."""
    near_by, far = (decode_step(cfg, hw, 1, context, **options).time_s for context in (1000, 101_000))
    each = 1000 * (far - near_by) / 100_000
    return 1000 * near_by - 1000 * each, each


def test_a_token_of_context_costs_llama_8b_on_an_h100_what_its_bytes_do():
    """[vLLM-FP8] measured 4.37e-5 ms; 131,072 bytes / 3.35e12 = 3.91e-5: the cache is read at 90% of the peak."""
    _, slope = line_ms(LLAMA_8B, H100)
    assert slope / 4.37e-5 == pytest.approx(0.90, abs=0.01)


def test_half_the_bits_of_a_cache_nearly_halve_the_slope():
    """[vLLM-FP8] measured 2.37e-5 ms with 8 bits, 54% of 4.37e-5; ideal 50%: 83% of the peak."""
    (_, wide), (_, narrow) = line_ms(LLAMA_8B, H100), line_ms(LLAMA_8B, H100, kv_bits=8)
    assert narrow / wide == pytest.approx(0.5)
    assert narrow / 2.37e-5 == pytest.approx(0.83, abs=0.01)


def test_without_a_context_a_step_of_llama_8b_takes_a_third_longer_than_its_weights():
    """[vLLM-FP8] measured 6.44 ms on an H100; 15.0e9 bytes (the embedding is looked up) / 3.35e12 = 4.48 ms: 70%."""
    start, _ = line_ms(LLAMA_8B, H100)
    assert start / 6.44 == pytest.approx(0.70, abs=0.01)


def test_a_faster_chip_shows_a_cost_that_does_not_shrink():
    """[vLLM-FP8] B200: measured 3.93 ms and 1.80e-5 ms a token; ideal at 7.7 TB/s 1.95 ms (50%) and 1.70e-5 (95%). The
    bytes of the cache explain the slope; the start hides about 2 ms of something else. No roofline has them."""
    start, slope = line_ms(LLAMA_8B, B200)
    assert slope / 1.80e-5 == pytest.approx(0.95, abs=0.01)
    assert start / 3.93 == pytest.approx(0.50, abs=0.01)
    assert 1.5 < 3.93 - start < 2.5
    h100_start, _ = line_ms(LLAMA_8B, H100)
    assert 6.44 - h100_start == pytest.approx(3.93 - start, abs=0.1)


def test_behind_a_window_only_half_the_layers_of_gpt_oss_grow():
    """[vLLM-FP8] measured 8.94e-6 ms a token; 12 of 24 layers x 2,048 bytes / 3.35e12 = 7.34e-6: 82%. If all 24 grew,
    the measurement would be faster than the memory."""
    gpt_oss = MODELS["gpt-oss-20b"]
    _, slope = line_ms(gpt_oss, H100, weight_bits=4.25)
    _, without_window = line_ms(replace(gpt_oss, sliding_window=None, global_every=0), H100, weight_bits=4.25)
    assert slope / 8.94e-6 == pytest.approx(0.82, abs=0.01)
    assert without_window / 8.94e-6 == pytest.approx(1.64, abs=0.01)


# Arithmetic.


def gpt_2_forward() -> float:
    """As [GPT] counts: every token scores all 1,024, and the head reads each of them."""
    block = sum(w.flops for name, w in prefill_work(GPT_2, 1, 1024).items() if name in ("projections", "feed-forward"))
    scores = GPT_2.n_layers * f.attention_flops(1024 * 1024, 12, 64, 64)
    return block + scores + f.linear_flops(1024, 50_257 * 768)


def test_the_arithmetic_of_gpt_2():
    """[GPT] 291,648,307,200 FLOP for 1,024 tokens. A causal mask needs half of the scores, and a prefill one head."""
    assert gpt_2_forward() == 291_648_307_200
    spared = GPT_2.n_layers * f.attention_flops(f.pairs_seen(1024) - 1024, 12, 64, 64)
    spared += f.linear_flops(1023, 50_257 * 768)
    assert prefill_flops(GPT_2, 1, 1024) == gpt_2_forward() - spared


def test_the_share_of_a_peak_that_gpt_2s_training_reached():
    """[GPT] 3 x 291.6e9 x 100 sequences in 0.755 s, of 312e12: 37.14%."""
    peak = CHIPS["A100 SXM4 40GB"].peak("bf16")
    assert f.compute_s(3 * gpt_2_forward() * 100, peak) / 0.755 == near(0.3714, digits=4)


def test_how_long_gpt_2_trains():
    """[GPT] 6 x 124,337,664 x 300e9 / (8 x 312e12 x 0.3) = 3.46 days."""
    flops = 3 * f.linear_flops(300e9, 124_337_664)
    assert f.compute_s(flops, 8 * CHIPS["A100 SXM4 40GB"].peak("bf16") * 0.3) / 86_400 == near(3.46, digits=3)


# Money.


def test_what_deepseeks_day_cost():
    """[DS] 226.75 nodes x 8 GPUs x $2 x 24 h = $87,072, here as the price of 168e9 output tokens."""
    each = usd_per_million_tokens(226.75 * 8 * 2, 168e9 / 86_400)
    assert each * 168e3 == near(87_072, digits=5)


def test_what_deepseeks_day_would_have_brought():
    """[DS] 608e9 tokens in, 342e9 of them cached, 168e9 out, at $0.55, $0.14 and $2.19: published $562,027, summed
    $562,100; 545% more than the cost."""
    prices = TokenCosts(Cost(0.55, 0.55), Cost(2.19, 2.19), Cost(0.14, 0.14), batch=1)
    usd = prices.blended(608 / 168, cached_share=342 / 608) * (608 + 168) * 1000
    assert usd == pytest.approx(562_027, rel=2e-4)
    assert usd / 87_072 - 1 == near(5.45, digits=3)


def test_the_nodes_of_deepseeks_day():
    """[DS] a node reads 73.7e3 tokens/s or writes 14.8e3: $16 an hour makes $0.060 and $0.300 a million; 608e9 and
    168e9 of them cost what 226.75 nodes do."""
    read, written = usd_per_million_tokens(16, 73.7e3), usd_per_million_tokens(16, 14.8e3)
    assert 608e3 * read + 168e3 * written == pytest.approx(87_072, rel=1e-3)


def test_a_thousandfold_in_three_years():
    """[A16Z] 1,000 in 3 years: "10x every year"."""
    assert f.factor_per_year(1000, 3) == near(10)


def test_the_cost_of_training_gpt_2_fell_by_2_5_a_year():
    """[AK] $43,000 in 2019, $73 in January 2026: "600X over 7 years, approximately 2.5X every year"."""
    assert f.factor_per_year(43_000 / 73, 7) == near(2.5)


@pytest.mark.parametrize(("watts", "rate", "published"), [(486, 1070, 0.4548), (688, 9806, 0.0702)])
def test_the_energy_of_a_token(watts, rate, published):
    """[MLE] Llama-3.1-8B on an H100 at 8 and at 512 requests: watts / tokens a second."""
    assert joules_per_token(replace(H100, watts=watts), rate) == pytest.approx(published, rel=0.003)


# Published numbers that are wrong.


def test_the_odd_row_among_the_blocks():
    """[vLLM-OFF] Qwen3-8B is published with 28 KB and 1.97 MB. It has 8 heads of 128 in 36 layers, like Qwen3-4B: 16
    tokens x 147,456 bytes = 32 KiB and 2.25 MiB."""
    cfg = MODELS["Qwen3-8B"]
    assert kv_bytes(cfg, 16) / MIB == 2.25 != 1.97
    assert kv_bytes(cfg, 16) / (2 * cfg.n_layers) / KIB == 32 != 28


def test_the_saved_size_of_opt_1_3b():
    """[MIT] 5043.73 MiB in 32 bits become 495.06 in 3 bits with groups of 128, says the saved output. The code beside
    it counts a scale of 16 bits and a zero of 4: x 3.15625 / 32 = 497.48."""
    mib = 5043.73 * f.bits_per_value(3, 128, scale_bits=16, zero_bits=4) / 32
    assert mib == near(497.48, digits=5)
    assert mib != near(495.06, digits=4)


def test_four_bits_of_70b_are_35_gb():
    """[SB8, first edition] has 45 GB in the row of 4 bits, and 52 and 67 caches for 8 and 4; later corrected."""
    assert weight_bytes(LLAMA_70B, 4) / GB == pytest.approx(35, rel=0.01)
    for bits, chips, published in ((8, 8, 52), (4, 4, 67)):
        room = chips * V5E.mem_bytes - weight_bytes(LLAMA_70B, bits)
        assert room / kv_bytes(LLAMA_70B, 8192, bits) == pytest.approx(42.8, abs=0.05) != published


def test_16_caches_of_llama_2_13b_do_not_fit():
    """[SB7] "we OOM beyond batch size 16": 26.0 + 16 x 6.71 = 133 GB do not fit in 8 x 16 = 128 either; 15 do. And the
    table's head says GiB where it counts GB. And 8,192 tokens are twice what this model was made for."""
    stretched = replace(LLAMA_13B, context=8192)
    assert max_batch(stretched, V5E, 8192, chips=8, usable=1.0) == 15
    assert kv_bytes(LLAMA_13B, 8192) / GIB == pytest.approx(6.25)


def test_a_forward_pass_is_two_flop_a_weight():
    """[CS336] "FLOPs for a feedforward pass: 6 * (B*T) * num_params": 6 is for training, with the way back."""
    multiplied = count_params(LLAMA_13B).total - 32_000 * 5120
    assert decode_flops(LLAMA_13B, 1, 1) / multiplied == pytest.approx(2, rel=0.001)


def test_a_batch_that_fits_only_in_binary_gigabytes():
    """[TRT] Llama-2-7B in 16 bits on one A100 of 80 GB, 60 sequences of 128 + 2,048: 13.5 + 60 x 1.14 = 81.9 GB. In
    80e9 bytes 58 fit; in 80 x 2^30, which the chip has, 63."""
    a100, cfg = CHIPS["A100 SXM4 80GB"], MODELS["Llama-2-7B"]
    assert max_batch(cfg, a100, 128 + 2048, usable=1.0) == 58
    assert max_batch(cfg, replace(a100, mem_bytes=80 * GIB), 128 + 2048, usable=1.0) == 63


def test_the_cache_of_falcon_180b_fits_in_16_bits_too():
    """[TRT] 1,024 sequences of 128 + 128 on 4 H100, weights in 8 bits; the note of our own row b104 infers a cache of 8
    bits, "fp16 would not fit". 178.6 + 1,024 x 256 x 163,840 bytes = 221 GB fit in 320."""
    cfg = MODELS["Falcon-180B"]
    assert kv_bytes_per_token(cfg) == 163_840
    assert max_batch(cfg, H100, 256, weight_bits=8, kv_bits=16, chips=4) > 1024


def test_280_in_18_months_would_be_twice_the_pace():
    """[HAI] 280-fold "between November 2022 and October 2024", also "in approximately 18 months" (as reports quote it).
    The days are 2022-11-28 and 2024-10-03, 22 months: 21x a year; 18 months would make 43x."""
    years = years_between("2022-11-28", "2024-10-03")
    assert 12 * years == pytest.approx(22.2, abs=0.1)
    assert f.factor_per_year(280, years) == near(21)
    assert f.factor_per_year(280, 1.5) == near(43)
