"""Laws of times and throughputs: never below what physics allows, and never better for more to do."""

import doctest
import re
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmflation import facts
from llmflation.config import ModelConfig, load_models, model_config
from llmflation.cost import roofline, serving
from llmflation.cost.counts import Work, decode_work, kv_bytes, prefill_work, weight_bytes
from llmflation.cost.roofline import IDEAL, TYPICAL, Efficiency, roofline_time
from llmflation.cost.serving import decode_step, latency_throughput, max_batch, prefill_step, throughput
from llmflation.errors import BadInputError, MissingFactError, UnknownNameError
from llmflation.hardware import Accelerator, accelerator, load_hardware

MODELS, MACHINES = load_models(), load_hardware()
LLAMA, LARGE, MIXTRAL = (MODELS[name] for name in ("Llama-3.1-8B", "Llama-3.1-70B", "Mixtral-8x7B-v0.1"))
H100, A100 = MACHINES["H100 SXM5 80GB"], MACHINES["A100 SXM4 80GB"]
LAWFUL = settings(deadline=None, max_examples=30)


@pytest.mark.parametrize("module", [roofline, serving])
def test_worked_lines(module):
    assert doctest.testmod(module, raise_on_error=True).attempted


# What hypothesis draws: architectures that nobody built, chips that nobody sells.


@st.composite
def architectures(draw):
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    kind = draw(st.sampled_from(["plain", "window", "latent", "experts"]))
    more = {"d_ff": 64 * draw(st.integers(1, 500))}
    if kind == "window":
        more |= {"sliding_window": draw(st.integers(1, 5000)), "global_every": draw(st.sampled_from([0, 2, 6]))}
    if kind == "latent":
        more |= {"n_kv_heads": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                 "v_head_dim": 128, "q_lora_rank": draw(st.sampled_from([0, 1536]))}
    if kind == "experts":
        n = draw(st.integers(1, 256))
        more |= {"n_experts": n, "top_k": draw(st.integers(1, n)), "d_expert": 64 * draw(st.integers(1, 100)),
                 "n_shared_experts": draw(st.integers(0, 2))}
    return ModelConfig(**{"n_layers": draw(st.integers(1, 120)), "d_model": 64 * draw(st.integers(1, 200)),
                          "n_heads": kv_heads * draw(st.integers(1, 8)), "n_kv_heads": kv_heads,
                          "head_dim": None if kind == "latent" else draw(st.sampled_from([64, 128])),
                          "vocab_size": draw(st.integers(64, 200_000)), "context": 10**7,
                          "tied_embeddings": draw(st.booleans())} | more)


CHIPS = st.builds(
    lambda peak, rate, mem, link: Accelerator("a chip", 10**mem, 10**rate, {"bf16": 10**peak},
                                              interconnect_bytes_per_s=10**link),
    st.floats(10, 16), st.floats(9, 14), st.floats(8, 13), st.floats(9, 13))
SHARES = st.floats(0.01, 1.0)
SECONDS = {f.name for f in fields(Efficiency) if f.name.endswith("_s")}
EFFICIENCIES = st.builds(Efficiency, **{f.name: st.floats(0, 1e-3) if f.name in SECONDS else SHARES
                                        for f in fields(Efficiency)})
BITS = st.sampled_from([2, 4, 4.5, 8, 16, 32])


@st.composite
def runs(draw):
    """A model, a chip, a batch, a context and how it is stored and shared."""
    cfg = draw(architectures())
    parallel = draw(st.sampled_from(["tensor", "expert"])) if cfg.is_moe else "tensor"
    sharing = [n for n in range(1, 33) if parallel == "expert" or cfg.n_heads % n == 0]
    options = {"weight_bits": draw(BITS), "kv_bits": draw(BITS), "head_bits": draw(st.none() | BITS),
               "chips": draw(st.sampled_from(sharing)), "efficiency": draw(EFFICIENCIES), "parallel": parallel}
    roomy = replace(draw(CHIPS), mem_bytes=1e20)
    return cfg, roomy, draw(st.integers(1, 2000)), draw(st.integers(1, 100_000)), options


def stored(options) -> dict:
    return {name: options[name] for name in ("weight_bits", "kv_bits", "head_bits")}


# Physics.

A_BIT = 1 + 1e-9  # of rounding


@LAWFUL
@given(run=runs(), reads=st.booleans())
def test_no_time_is_below_what_memory_and_arithmetic_need(run, reads):
    """For every part, and for all of them: bytes over bandwidth, and FLOP over the peak, of all chips together."""
    cfg, hw, batch, context, options = run
    count, step = (prefill_work, prefill_step) if reads else (decode_work, decode_step)
    work, time = count(cfg, batch, context, **stored(options)), step(cfg, hw, batch, context, **options)
    rate, peak = hw.mem_bytes_per_s * options["chips"], hw.peak("bf16") * options["chips"]
    for name, part in time.parts.items():
        assert part.time_s * A_BIT >= max(part.compute_s, part.memory_s)
        assert part.memory_s * A_BIT >= work[name].bytes / rate
        assert part.compute_s * A_BIT >= work[name].flops / peak
    assert time.time_s * A_BIT >= sum(w.bytes for w in work.values()) / rate
    assert time.time_s * A_BIT >= sum(w.flops for w in work.values()) / peak


@LAWFUL
@given(run=runs())
def test_a_step_is_the_sum_of_its_parts_and_none_is_lost(run):
    cfg, hw, batch, context, options = run
    time = decode_step(cfg, hw, batch, context, **options)
    assert time.time_s == pytest.approx(sum(p.time_s for p in time.parts.values()) + time.link_s + time.fixed_s)
    done = {name for name, w in decode_work(cfg, batch, context, **stored(options)).items() if w.flops or w.bytes}
    assert set(time.parts) == done
    assert (time.link_s > 0) == (options["chips"] > 1)


@LAWFUL
@given(run=runs())
def test_nothing_is_faster_than_the_ideal(run):
    cfg, hw, batch, context, options = run
    ideal = decode_step(cfg, hw, batch, context, **options | {"efficiency": IDEAL}).time_s
    assert ideal <= decode_step(cfg, hw, batch, context, **options).time_s * A_BIT
    assert ideal <= decode_step(cfg, hw, batch, context, **options | {"efficiency": TYPICAL}).time_s


@given(flops=st.floats(1, 1e18), n_bytes=st.floats(1, 1e15))
def test_the_ridge_parts_memory_from_arithmetic(flops, n_bytes):
    part = roofline_time(Work(flops, n_bytes), H100)
    ridge = H100.peak("bf16") / H100.mem_bytes_per_s
    assert part.binds == ("arithmetic" if flops / n_bytes > ridge else "memory")
    assert part.time_s == max(part.compute_s, part.memory_s)


# More to do is never cheaper; a better machine is never slower.


@LAWFUL
@given(run=runs(), more=st.integers(1, 50))
def test_more_to_do_takes_no_less_time(run, more):
    cfg, hw, batch, context, options = run
    time = decode_step(cfg, hw, batch, context, **options).time_s
    worse = [(batch + more, context, {}), (batch, context + more, {}),
             (batch, context, {"weight_bits": options["weight_bits"] + more % 16}),
             (batch, context, {"kv_bits": options["kv_bits"] + more % 16})]
    for b, c, change in worse:
        assert time <= decode_step(cfg, hw, b, c, **options | change).time_s * A_BIT
    prompt = prefill_step(cfg, hw, batch, context, **options).time_s
    assert prompt <= prefill_step(cfg, hw, batch, context + more, **options).time_s * A_BIT
    assert prompt <= prefill_step(cfg, hw, batch, context, held=more, **options).time_s * A_BIT


@LAWFUL
@given(run=runs(), better=st.floats(1, 10))
def test_a_better_machine_takes_no_more_time(run, better):
    cfg, hw, batch, context, options = run
    time = decode_step(cfg, hw, batch, context, **options).time_s
    for change in ({"mem_bytes_per_s": hw.mem_bytes_per_s * better}, {"peak_flops": {"bf16": hw.peak("bf16") * better}},
                   {"interconnect_bytes_per_s": hw.interconnect_bytes_per_s * better}):
        assert decode_step(cfg, replace(hw, **change), batch, context, **options).time_s <= time * A_BIT


@LAWFUL
@given(run=runs(), times=st.floats(0.1, 10))
def test_a_machine_that_is_faster_in_all_is_faster_by_as_much(run, times):
    cfg, hw, batch, context, options = run
    eff = replace(options["efficiency"], **dict.fromkeys(SECONDS, 0.0))
    fast = replace(hw, mem_bytes_per_s=hw.mem_bytes_per_s * times, peak_flops={"bf16": hw.peak("bf16") * times},
                   interconnect_bytes_per_s=hw.interconnect_bytes_per_s * times)
    slow = decode_step(cfg, hw, batch, context, **options | {"efficiency": eff}).time_s
    quick = decode_step(cfg, fast, batch, context, **options | {"efficiency": eff}).time_s
    assert quick * times == pytest.approx(slow)


@LAWFUL
@given(run=runs(), n_out=st.integers(1, 5000), more=st.integers(1, 200))
def test_a_larger_batch_makes_no_fewer_tokens(run, n_out, more):
    cfg, hw, batch, n_in, options = run
    hw = replace(hw, mem_bytes=1e18)
    small = throughput(cfg, hw, n_in, n_out, batch, **options)
    large = throughput(cfg, hw, n_in, n_out, batch + more, **options)
    assert large.output_tokens_per_s * A_BIT >= small.output_tokens_per_s
    assert large.step_s * A_BIT >= small.step_s


@LAWFUL
@given(run=runs(), n_out=st.integers(1, 5000))
def test_a_throughput_fits_its_own_times(run, n_out):
    cfg, hw, batch, n_in, options = run
    hw = replace(hw, mem_bytes=1e18)
    made = throughput(cfg, hw, n_in, n_out, batch, **options)
    assert made.step_s == decode_step(cfg, hw, batch, n_in + n_out // 2, **options).time_s  # half-way through
    a_request = made.prefill_s + n_out * made.step_s / batch
    assert made.output_tokens_per_s * a_request == pytest.approx(n_out)
    assert made.tpot_s * A_BIT >= made.step_s


# Memory.


@LAWFUL
@given(run=runs(), hw=CHIPS, more=st.integers(1, 8))
def test_more_chips_hold_no_fewer_sequences(run, hw, more):
    cfg, _, _, context, options = run
    assume(options["parallel"] == "expert" or cfg.n_heads % (options["chips"] * more) == 0)
    kept = stored(options) | {"parallel": options["parallel"]}

    def most(chips):
        try:
            return max_batch(cfg, hw, context, chips=chips, **kept)
        except BadInputError:
            return 0

    assert most(options["chips"]) <= most(options["chips"] * more)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mistral-7B-v0.1", "DeepSeek-V2-Lite", "gpt-oss-20b"])
@pytest.mark.parametrize("chips", [1, 2, 4])
def test_the_largest_batch_fits_and_the_next_one_does_not(name, chips):
    cfg = MODELS[name]
    most = max_batch(cfg, H100, 10_000, chips=chips, usable=1.0)
    copies = chips if cfg.attention == "MLA" else 1  # a latent has no heads to share out: each chip keeps all of it
    room = H100.mem_bytes * chips - weight_bytes(cfg)
    assert most * kv_bytes(cfg, 10_000) * copies <= room < (most + 1) * kv_bytes(cfg, 10_000) * copies


def test_more_chips_than_key_value_heads_keep_copies():
    assert max_batch(LARGE, H100, 8192, chips=16) < 2.5 * max_batch(LARGE, H100, 8192, chips=8)
    each = [decode_step(LARGE, H100, 64, 8192, chips=n).parts["attention"].memory_s for n in (4, 8, 16)]
    assert each[0] == pytest.approx(2 * each[1])
    assert each[2] == each[1]


def test_chips_that_share_only_experts_share_out_the_cache_as_well():
    deepseek, h200 = MODELS["DeepSeek-V3"], MACHINES["H200 SXM"]
    tensor, expert = (max_batch(deepseek, h200, 4096, weight_bits=8, chips=16, parallel=way)
                      for way in ("tensor", "expert"))
    assert expert > 10 * tensor


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mixtral-8x7B-v0.1"])
def test_with_the_batch_left_out_as_many_run_as_fit(name):
    made = throughput(MODELS[name], H100, 1000, 200, chips=2)
    assert made.batch == max_batch(MODELS[name], H100, 1200, chips=2)
    curve = latency_throughput(MODELS[name], H100, 1000, 200, chips=2)
    assert curve[0].batch == 1
    assert curve[-1] == made
    for few, many in pairwise(curve):
        assert few.output_tokens_per_s <= many.output_tokens_per_s * A_BIT
        assert few.tpot_s <= many.tpot_s * A_BIT


# Against others.

THEIRS = {"llama-3.1-8b": "Llama-3.1-8B", "llama-2-70b": "Llama-2-70B", "mixtral-8x7b": "Mixtral-8x7B-v0.1",
          "H100-SXM": "H100 SXM5 80GB", "A100-80G-SXM": "A100 SXM4 80GB"}
PEERS = [r for r in facts.read("peer_cost_predictions") if r["model"] in THEIRS and r["gpu"] in THEIRS]


def ideal_ms(row) -> float:
    step = {"decode": decode_step, "prefill": prefill_step}[row["phase"]]
    cfg, hw = MODELS[THEIRS[row["model"]]], MACHINES[THEIRS[row["gpu"]]]
    return 1000 * step(cfg, hw, row["batch"], row["context"], chips=row["n_gpu"]).time_s


def peers(mode, n_gpu=None):
    return [pytest.param(r, id="-".join(str(r[c]) for c in ("model", "gpu", "n_gpu", "phase", "batch")))
            for r in PEERS if r["mode"].startswith(mode) and r["n_gpu"] in (n_gpu or (1, 2, 4))]


@pytest.mark.parametrize("row", peers("SOL", n_gpu=[1, 4]))
def test_the_bound_of_dense_models_is_that_of_aiconfigurator(row):
    assert ideal_ms(row) == pytest.approx(row["latency_ms"], rel=0.02 if row["n_gpu"] == 1 else 0.05)


@pytest.mark.parametrize("row", peers("SOL", n_gpu=[2]))
def test_the_bound_of_experts_is_near_theirs(row):
    """They count experts in another way: at batch 8 they have all of them touched, and we 7.2 of 8."""
    assert ideal_ms(row) == pytest.approx(row["latency_ms"], rel=0.10)


@pytest.mark.parametrize("row", peers("SILICON"))
def test_nothing_that_was_measured_is_below_the_bound(row):
    """Interpolated measurements; the best of them reaches 85% of the bound."""
    assert ideal_ms(row) < row["latency_ms"] < 3 * ideal_ms(row)


@pytest.mark.parametrize("row", peers("SILICON", n_gpu=[1, 4]))
def test_what_is_typical_is_within_a_quarter_of_what_they_measured_on_dense_models(row):
    """Their interpolation of measured operators, for two engines; no row of theirs was fitted on."""
    step = {"decode": decode_step, "prefill": prefill_step}[row["phase"]]
    cfg, hw = MODELS[THEIRS[row["model"]]], MACHINES[THEIRS[row["gpu"]]]
    found = 1000 * step(cfg, hw, row["batch"], row["context"], chips=row["n_gpu"], efficiency=TYPICAL).time_s
    assert found == pytest.approx(row["latency_ms"], rel=0.25)


def test_a_peer_that_reads_gb_as_gib_falls_below_what_memory_allows():
    rows = [r for r in PEERS if r["peer"] == "genz-llm" and r["model"] == "llama-3.1-8b" and r["phase"] == "decode"]
    assert len(rows) == 5
    for row in rows:
        hw = MACHINES[THEIRS[row["gpu"]]]
        moved = weight_bytes(LLAMA) - LLAMA.vocab_size * LLAMA.d_model * 2  # without the table that is only looked up
        moved += row["batch"] * kv_bytes(LLAMA, row["context"])
        assert row["latency_ms"] < 1000 * moved / hw.mem_bytes_per_s


def test_eight_requests_make_a_step_of_mixtral_three_times_as_long():
    one, eight = (decode_step(MIXTRAL, A100, batch, 2048, chips=2).time_s for batch in (1, 8))
    assert 3 < eight / one < 4


# Formats.


def test_narrow_weights_are_read_faster_and_multiplied_as_before():
    wide, narrow = (decode_step(LLAMA, A100, 1, 1, weight_bits=bits) for bits in (16, 4))
    assert narrow.parts["feed-forward"].memory_s == wide.parts["feed-forward"].memory_s / 4
    assert narrow.compute_s == wide.compute_s


def test_narrow_arithmetic_needs_a_chip_that_has_it():
    ratio = (prefill_step(LLAMA, H100, 1, 4096).compute_s
             / prefill_step(LLAMA, H100, 1, 4096, weight_bits=8, compute_dtype="fp8").compute_s)
    assert ratio == pytest.approx(2, rel=0.001)
    line = next(r.line for r in facts.read("accelerators") if r["name"] == A100.name)
    with pytest.raises(MissingFactError, match=rf"accelerators\.csv line {line}, column 'fp8_tflops'"):
        decode_step(LLAMA, A100, compute_dtype="fp8")
    with pytest.raises(UnknownNameError, match="nearest: 'int8'"):
        decode_step(LLAMA, A100, compute_dtype="int4")


def test_a_chip_without_bf16_computes_in_fp16():
    v100 = MACHINES["V100 SXM2 32GB"]
    assert decode_step(LLAMA, v100).time_s == decode_step(LLAMA, v100, compute_dtype="fp16").time_s


# Links.


def test_chips_that_share_must_be_joined():
    trainium = MACHINES["Trainium2"]
    assert decode_step(LLAMA, trainium).link_s == 0
    with pytest.raises(MissingFactError, match=r"accelerators\.csv line \d+, column 'interconnect_gb_s'"):
        decode_step(LLAMA, trainium, chips=2)


def test_a_slow_link_eats_what_more_chips_gain():
    slow, fast = (prefill_step(LLAMA, hw, 1, 2048, chips=2) for hw in (MACHINES["L40S"], H100))
    assert slow.link_s / slow.time_s > 0.4
    assert fast.link_s / fast.time_s < 0.2
    assert prefill_step(LLAMA, MACHINES["L40S"], 1, 2048, chips=8).binds == "links"


def test_every_chip_of_the_table_runs_a_model():
    for hw in MACHINES.values():
        dtype = None if {"bf16", "fp16"} & set(hw.peak_flops) else "fp32"
        assert 0 < decode_step(MIXTRAL, hw, compute_dtype=dtype, check_memory=False).time_s < 1


def test_a_chip_without_a_16_bit_format_is_not_guessed_about():
    k80 = accelerator("K80")
    with pytest.raises(MissingFactError, match="bf16"):
        decode_step(LLAMA, k80, check_memory=False)
    assert decode_step(LLAMA, k80, compute_dtype="fp32", check_memory=False).time_s > 0


@pytest.mark.parametrize("step", [decode_step, prefill_step])
def test_a_step_of_what_does_not_fit_is_refused_unless_the_memory_is_not_to_be_checked(step):
    with pytest.raises(BadInputError, match="lacks 61"):
        step(LARGE, H100, 1, 2048)
    with pytest.raises(BadInputError, match="batch is 1000; allowed: at most 238, which fill the memory of 1 x H100"):
        step(LLAMA, H100, 1000, 2048 if step is prefill_step else 2047)
    assert step(LARGE, H100, 1, 2048, check_memory=False).time_s > 0


def test_what_stands_on_every_chip_is_not_shared_out():
    """NVIDIA's own bound for Llama-2-70B on four A100 counts the sum between layers whole."""
    whole, four = (prefill_step(MODELS["Llama-2-70B"], A100, 1, 2048, chips=n, check_memory=False) for n in (1, 4))
    assert four.parts["residual"] == whole.parts["residual"]
    assert four.parts["inner"].memory_s == whole.parts["inner"].memory_s / 4


def test_a_sequence_is_not_divided_between_chips_that_share_only_experts():
    deepseek, h200 = MODELS["DeepSeek-V3"], MACHINES["H200 SXM"]
    times = [decode_step(deepseek, h200, batch, 100_000, chips=64, parallel="expert", weight_bits=8).parts["attention"]
             for batch in (1, 8, 64, 128)]
    assert times[0] == times[1] == times[2]
    assert times[3].time_s == pytest.approx(2 * times[2].time_s)


def test_a_chip_reads_no_less_than_one_whole_expert():
    deepseek, h800 = MODELS["DeepSeek-V3"], accelerator("H800 SXM5")
    expert = 3 * deepseek.d_model * deepseek.d_expert * deepseek.n_moe_layers  # one in each layer, in 8 bits
    part = decode_step(deepseek, h800, 1, 100, chips=144, parallel="expert", weight_bits=8).parts["experts"]
    assert part.memory_s == pytest.approx(expert / h800.mem_bytes_per_s)
    many = {n: max_batch(deepseek, h800, 4096, weight_bits=8, chips=n, parallel="expert") / n for n in (256, 512)}
    assert many[256] == many[512]  # half an expert cannot be kept


def test_numbers_of_numpy_count_as_whole_numbers():
    few = np.int16(4000)
    assert max_batch(LLAMA, H100, few) == max_batch(LLAMA, H100, 4000)
    assert kv_bytes(LLAMA, np.int32(131_072)) == kv_bytes(LLAMA, 131_072)
    assert decode_step(LLAMA, H100, np.int32(64), few) == decode_step(LLAMA, H100, 64, 4000)
    assert prefill_step(LLAMA, H100, np.int16(10), few) == prefill_step(LLAMA, H100, 10, 4000)


def test_a_curve_counts_what_the_cache_holds_and_takes_no_batch():
    assert latency_throughput(LLAMA, H100, 1000, 200, held=8000)[-1].batch == max_batch(LLAMA, H100, 9200)
    with pytest.raises(BadInputError, match="batch is 5"):
        latency_throughput(LLAMA, H100, 1000, 200, batch=5)
    with pytest.raises(BadInputError, match="131,140 tokens, and Llama-3.1-8B was made for 131,072"):
        throughput(LLAMA, H100, 131_000, 140)


def test_chips_that_are_no_power_of_two_may_be_enough():
    with pytest.raises(BadInputError, match=r"24 chips would do"):
        max_batch(MODELS["Mixtral-8x22B-v0.1"], MACHINES["T4"], 32_000)


def test_chips_in_several_machines_exchange_less():
    near = decode_step(LARGE, H100, 64, 2048, chips=8)
    far = decode_step(LARGE, H100, 64, 2048, chips=8, link_bytes_per_s=45e9)
    assert far.link_s == pytest.approx(near.link_s * 450 / 45)
    with pytest.raises(BadInputError, match="link_bytes_per_s is 0"):
        decode_step(LLAMA, H100, 64, 2048, link_bytes_per_s=0)


# What is said.


def test_times_are_sentences():
    fixed = Efficiency(step_s=1.0)
    assert repr(decode_step(LLAMA, H100, efficiency=fixed)).startswith("1e+03 ms, set by fixed costs:\n")
    assert repr(prefill_step(LLAMA, H100)).startswith("33.3 ms, set by arithmetic:\n")
    assert "requests at once" in repr(throughput(LLAMA, H100, 1000, 200))


# What is refused.

BAD = {
    "batch-zero": (decode_step, {"batch": 0}, "batch is 0; allowed: a whole number of 1 or more"),
    "batch-negative": (decode_step, {"batch": -1}, "batch is -1"),
    "batch-fraction": (decode_step, {"batch": 2.5}, "batch is 2.5"),
    "batch-as-text": (decode_step, {"batch": "8"}, "batch is '8'"),
    "context-negative": (decode_step, {"context": -1}, "context is -1"),
    "context-fraction": (decode_step, {"context": 100.5}, "context is 100.5"),
    "no-tokens": (prefill_step, {"tokens": 0}, "tokens is 0"),
    "held-negative": (prefill_step, {"held": -1}, "held is -1"),
    "no-chips": (decode_step, {"chips": 0}, "chips is 0"),
    "half-a-chip": (decode_step, {"chips": 0.5}, "chips is 0.5"),
    "no-bits": (decode_step, {"weight_bits": 0}, "weight_bits is 0"),
    "unknown-sharing": (decode_step, {"parallel": "pipeline"}, "parallel is 'pipeline'"),
    "experts-of-a-dense-model": (decode_step, {"parallel": "expert"}, "which has no experts"),
    "fits-no-context": (max_batch, {"context": 0}, "context is 0; allowed: a whole number of 1 or more"),
    "fits-a-fraction": (max_batch, {"context": 0.5}, "context is 0.5"),
    "memory-percentage": (max_batch, {"usable": 90}, "usable is 90; allowed: a share"),
    "memory-percentage-hint": (max_batch, {"usable": 90}, "Did you mean 0.9?"),
    "no-memory": (max_batch, {"usable": 0}, "usable is 0"),
    "negative-memory": (max_batch, {"usable": -0.5}, "usable is -0.5"),
    "nothing-in": (throughput, {"input_len": 0}, "input_len is 0"),
    "nothing-out": (throughput, {"output_len": 0}, "output_len is 0"),
    "negative-out": (throughput, {"output_len": -10, "batch": 2}, "output_len is -10"),
    "fraction-in": (throughput, {"input_len": 2.5}, "input_len is 2.5"),
    "no-requests": (throughput, {"batch": 0}, "batch is 0"),
    "curve-of-nothing": (latency_throughput, {"output_len": 0}, "output_len is 0"),
}
GOOD = {decode_step: {}, prefill_step: {}, max_batch: {"context": 2048},
        throughput: {"input_len": 100, "output_len": 100}, latency_throughput: {"input_len": 100, "output_len": 100}}


@pytest.mark.parametrize(("ask", "change", "says"), BAD.values(), ids=BAD)
def test_a_bad_question_is_refused(ask, change, says):
    with pytest.raises(BadInputError) as error:
        ask(**{"cfg": LLAMA, "hw": H100} | GOOD[ask] | change)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compute": 75}, "compute is 75; allowed: a share, above 0 and up to 1. Did you mean 0.75?"),
        ({"memory": 0}, "memory is 0"),
        ({"memory": 1.5}, "memory is 1.5"),
        ({"link": "0.5"}, "link is '0.5'"),
        ({"overlap": 80}, "overlap is 80; allowed: a share from 0 to 1. Did you mean 0.8?"),
        ({"compute": float("nan")}, "compute is nan"),
        ({"layer_s": -1e-6}, "layer_s is -1e-06; allowed: a number of seconds, 0 or more"),
        ({"step_s": float("inf")}, "step_s is inf"),
        ({"cache": 33}, "cache is 33; allowed: a share, above 0 and up to 1. Did you mean 0.33?"),
    ],
)
def test_an_efficiency_is_made_of_shares_and_seconds(change, says):
    with pytest.raises(BadInputError) as error:
        Efficiency(**change)
    assert says in str(error.value)


def test_attention_reads_the_cache_at_its_own_share():
    cfg, hw = model_config("Llama-3.1-8B"), accelerator("A100 SXM4 80GB")
    whole = decode_step(cfg, hw, 8, 4096)
    half = decode_step(cfg, hw, 8, 4096, efficiency=Efficiency(cache=0.5))
    assert half.parts["attention"].memory_s == pytest.approx(2 * whole.parts["attention"].memory_s)
    assert {n: p for n, p in half.parts.items() if n != "attention"} == {
        n: p for n, p in whole.parts.items() if n != "attention"}
    slow = decode_step(cfg, hw, 8, 4096, efficiency=Efficiency(memory=0.5))
    assert slow.parts["attention"] == half.parts["attention"]


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would_help():
    """141.1 GB of weights and 0.67 GB of cache, of which memory is to be 9 parts in 10, on a chip of 80."""
    with pytest.raises(BadInputError, match=r"each of 1 x H100 SXM5 80GB lacks 61\.9 GB of 80\. .*2 chips") as error:
        max_batch(LARGE, H100, 2048)
    assert "Llama-3.1-70B with one sequence of 2,048 tokens does not fit" in str(error.value)
    assert "fewer bits" in str(error.value)
    with pytest.raises(BadInputError, match="does not fit"):
        throughput(LARGE, H100, 1024, 1024)


@LAWFUL
@given(run=runs(), times=st.floats(1.5, 200))
def test_the_chips_that_would_do_do(run, times):
    """A chip that holds a part of the weights; the answer is a number of chips, or that more would not help."""
    cfg, hw, _, context, options = run
    kept = stored(options) | {"parallel": options["parallel"]}
    hw = replace(hw, mem_bytes=weight_bytes(cfg, options["weight_bits"], options["head_bits"]) / times)
    with pytest.raises(BadInputError, match="does not fit") as error:
        max_batch(cfg, hw, context, **kept)
    said = re.search(r" (\d+) chips would do", str(error.value))
    if said:
        assert max_batch(cfg, hw, context, chips=int(said[1]), **kept) >= 1
        with pytest.raises(BadInputError):
            max_batch(cfg, hw, context, chips=int(said[1]) // 2, **kept)
    else:
        assert "More chips would not help: take fewer bits or a shorter context." in str(error.value)


def test_a_batch_that_does_not_fit_has_no_throughput():
    cfg, hw = model_config("Llama-3.1-8B"), accelerator("H100 SXM5")
    most = max_batch(cfg, hw, 2000, usable=1.0)
    assert throughput(cfg, hw, 1000, 1000, most).batch == most
    with pytest.raises(BadInputError, match=f"batch is {most + 1}; allowed: at most {most}"):
        throughput(cfg, hw, 1000, 1000, most + 1)
    with pytest.raises(BadInputError, match="does not fit"):
        throughput(model_config("Llama-3.1-70B"), hw, 1000, 1000, 1)


def test_a_name_in_place_of_a_chip_is_refused():
    with pytest.raises(BadInputError, match="an Accelerator"):
        decode_step(model_config("Llama-3.1-8B"), "H100")
