"""The bench of the number formats: its rows, the arithmetic of its predictions, its peers, and tiny runs."""

import re

import pytest
import torch
from bench import __main__ as program
from bench import quant, shapes
from torch import nn

from llmflation.config import ModelConfig
from llmflation.corpus import VOCAB_SIZE
from llmflation.model import Transformer
from llmflation.quant.model import model_bytes

pytestmark = pytest.mark.filterwarnings("ignore:this PyTorch has no")  # a machine without kernels passes, too
CFG = ModelConfig(2, 64, 4, 2, 128, VOCAB_SIZE, context=600, tied_embeddings=True, name="tiny")


@pytest.fixture
def tiny():
    return Transformer(CFG).eval().requires_grad_(False)


def test_the_bench_has_the_rows_that_are_asked_for(monkeypatch, tiny):
    """Each row is made by its own function; here they only say which."""
    names = []
    monkeypatch.setattr(shapes, "model", lambda shape: tiny)
    monkeypatch.setattr(quant, "side_by_side", lambda name, theirs, ours, target, **how: names.append((name, target)))
    monkeypatch.setattr(quant, "in_turns", lambda calls, repeat=5: [1.0] * len(calls))
    monkeypatch.setattr(quant, "READ_BYTES", 2**10)
    monkeypatch.setattr(quant, "crossover", lambda rounds: names.append(("crossover", None)) or [])
    monkeypatch.setattr(quant, "beside", lambda name, *rest: names.append((name, 1)) or [])
    monkeypatch.setattr(quant, "gptq_time", lambda model: [])
    assert program.BENCHES["quant"](True)[0] == []
    reported = quant.REPORTED
    assert names == [
        ("int8-vs-fp32-30m", 1.7), ("int4-vs-fp32-30m", 2.0), ("int8-vs-fp32-135m", 1.7), ("int4-vs-fp32-135m", 2.0),
        ("roofline-share-int8-135m", reported), ("int8-vs-fp32-prefill", reported), ("int4-vs-fp32-prefill", reported),
        ("int8-vs-fp32-b32", reported), ("int4-vs-fp32-b32", reported), ("crossover", None), ("int8-vs-torchao", 1),
        ("int4-vs-peer", 1)]


# --- the arithmetic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floats, fewer, batch", [
    ([4, 4, 4], [1, 2, 3], None), ([4, 4, 4], [5, 6, 7], 1), ([4, 4, 4], [1, 2, 8], 2 * 2**0.5),
    ([4, 4, 4], [1, 1, 16], 2 * 2**0.5), ([4, 4, 4], [1, 8, 16], 2**(2 / 3)),
])
def test_the_crossing_lies_where_the_ratio_is_one(floats, fewer, batch):
    found = quant.crossing((1, 2, 4), floats, fewer)
    assert found == (None if batch is None else pytest.approx(batch))


def test_the_predicted_crossover_follows_from_bytes_and_speed(monkeypatch):
    """float32 takes 8 s and a quarter for each vector, int4 1 s and a half: as long at 28, but for a slow try at 24."""
    monkeypatch.setattr(quant, "LAYER", (64, 64))
    taken = iter([(9.0, 9.0), *((8 + n / 4, (1 + n / 2) * (1.1 if n == 24 else 1)) for n in quant.BATCHES)])
    monkeypatch.setattr(quant, "in_turns", lambda calls, repeat: next(taken))
    row, note = quant.crossover(6)
    assert row.name == "int4-crossover-predicted" and row.target == quant.REPORTED
    assert "1: 5.50" in note and "24: 0.98" in note
    assert "slower from a batch of 23 on; predicted: from a batch of 28 on" in note
    assert row.ratio == pytest.approx(23.3 / 28.1, rel=0.01)


def test_the_share_of_the_roofline_counts_what_is_held_and_the_cache(monkeypatch, tiny):
    monkeypatch.setattr(quant, "FORMATS", {"int8": ({"int8": torch.float32}, 1.7)})
    (_, model), found = quant.quantized(tiny, "int8", None), {}
    cache_bytes = 257 * 2 * CFG.n_layers * CFG.n_kv_heads * CFG.head_dim * 4
    assert quant.through(model) == model_bytes(model) + cache_bytes
    monkeypatch.setattr(quant, "READ_BYTES", 2**20)
    monkeypatch.setattr(quant, "in_turns", lambda calls, repeat: [1.0] * len(calls))
    monkeypatch.setattr(quant, "side_by_side", lambda name, *rest, **how: found.update({name: how}) or name)
    quant.against_floats(tiny, "135m", 6)
    assert found["roofline-share-int8-135m"]["factor"] == quant.STEPS * quant.through(model) / 2**20


# --- what is timed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times, scheme, dtype", [
    ([9, 9, 2, 1], "int8-weight-only", torch.bfloat16), ([0, 9, 1, 2], "int8", torch.float32)])
def test_the_faster_scheme_is_taken_with_the_activations_that_its_kernel_reads(monkeypatch, tiny, times, scheme, dtype):
    asked = []
    monkeypatch.setattr(quant, "in_turns", lambda calls, repeat: times if len(calls) == 4 else None)
    found, model = quant.quantized(tiny, "int8", asked.append)
    assert found == scheme and model in asked and len(asked) == 2
    assert model.embedding.weight.dtype == model.norm.weight.dtype == dtype
    assert tiny.norm.weight.dtype == torch.float32
    assert quant.quantized(tiny, "int4", None)[1].norm.weight.dtype == torch.bfloat16  # one scheme: nothing to time


def test_writing_is_so_many_steps_of_so_many_sequences(monkeypatch, tiny):
    calls = []
    monkeypatch.setattr(quant, "step_of", lambda *given: calls.append(given) or (lambda: calls.append("step")))
    quant.writing(tiny, 3)()
    assert calls == [(tiny, 3, quant.CONTEXT), *["step"] * quant.STEPS]


def test_what_a_peer_is_given_computes_the_same(tiny):
    given = []
    other = quant.converted(tiny, torch.float32, given.append)
    assert given == [other] and other is not tiny
    linear = [m for m in other.modules() if isinstance(m, nn.Linear)]
    assert {type(m) for m in linear} == {nn.Linear} and len(linear) == 9
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        torch.testing.assert_close(other(tokens), tiny(tokens), rtol=0, atol=1e-4)
    linear[0].weight.mul_(2)
    assert not torch.equal(linear[0].weight, tiny.blocks[0].attention.qkv.weight)


# --- tiny runs -----------------------------------------------------------------------------------------------


def test_formats_beside_float32(monkeypatch, tiny):
    monkeypatch.setattr(quant, "READ_BYTES", 2**20)
    *rows, note, _, _, last = quant.against_floats(tiny, "30m", 6)
    assert [(r.name, r.target) for r in rows] == [("int8-vs-fp32-30m", 1.7), ("int4-vs-fp32-30m", 2.0)]
    assert re.match(r"fp32 30m: \d+ tokens/s, 0 MB held, 32.00 bits a weight, \d+% of the memory's speed, path", note)
    assert "GB/s" in last


def test_prompt_and_batch(tiny):
    *rows, note = quant.where_it_gains_little(tiny, 6)
    assert [r.name for r in rows] == [f"{n}-vs-fp32-{what}" for what in ("prefill", "b32") for n in ("int8", "int4")]
    assert "512 tokens" in note and "32 sequences" in note and "int4 for int4 in b32" in note


def test_the_fastest_peer_that_runs_is_taken_and_those_that_fail_are_told(monkeypatch, tiny):
    def broken(model):
        raise RuntimeError("needs a GPU")

    def picky(model):
        if next(model.parameters()).dtype == torch.float32:
            raise TypeError("bfloat16 only")
    row, note, *failed = quant.beside("int8-vs-torchao", tiny, "int8-weight-only",
                                      {"broken": broken, "picky": picky}, 6)
    assert row.name == "int8-vs-torchao" and row.target == 1
    assert "the peer is picky with torch.bfloat16, the fastest of: picky, torch.bfloat16: " in note
    assert [f.split(" does not run")[0] for f in failed] == ["int8-vs-torchao: broken"] * 2 + ["int8-vs-torchao: picky"]
    assert "needs a GPU" in failed[0]


def test_without_a_peer_the_row_is_left_out_with_a_note(tiny):
    assert quant.beside("int4-vs-peer", tiny, "int4", {}, 6) == [
        "int4-vs-peer is left out: no peer runs here. python -m pip install torchao bitsandbytes"]


@pytest.mark.parametrize("peers, package", [(quant.torchao_int8, "torchao"), (quant.torchao_int4, "torchao"),
                                            (quant.bitsandbytes_nf4, "bitsandbytes")])
def test_peers_that_are_not_installed_are_none(monkeypatch, peers, package):
    import builtins

    real = builtins.__import__

    def missing(name, *rest, **named):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **named)
    monkeypatch.setattr(builtins, "__import__", missing)
    assert peers() == {}


def test_gptq_is_timed(monkeypatch, tiny):
    row, note = quant.gptq_time(tiny, documents=2)
    assert row.name == "gptq-in-a-minute" and row.target == 1 and row.ratio > 0
    assert "plain int4 takes" in note
