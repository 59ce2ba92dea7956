"""Training: it learns, it goes on to the same bits after any interruption, and it says what is wrong."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmflation import train as training
from llmflation.checkpoint import load_checkpoint
from llmflation.config import ModelConfig
from llmflation.corpus import BOS, DOMAINS, PAD, VOCAB_SIZE, decode, encode
from llmflation.errors import BadInputError, DataError
from llmflation.pretrained import CHECKPOINTS
from llmflation.train import STATE, Recipe, Run, batches, identity, train

TINY = Recipe(ModelConfig(1, 64, 2, 1, 64, VOCAB_SIZE, context=512, tied_embeddings=True), steps=12, documents=8)


def run(recipe, folder, **options) -> list[dict]:
    return list(train(recipe, folder, **options))


def weights(folder) -> dict[str, Tensor]:
    return load_checkpoint(folder)[1]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what is read -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("step", [0, 700, 2499])
def test_a_step_reads_each_domain_as_often_and_weighs_each_document_alike(step):
    recipe = Recipe()
    found = batches(recipe, step)
    assert sum(len(b.inputs) for b in found) == recipe.documents
    numbers = range(step * recipe.documents, (step + 1) * recipe.documents)
    seen = Counter(training.training_document(recipe.seed, n, recipe.difficulty(step), 256).domain for n in numbers)
    assert seen == dict.fromkeys(DOMAINS, recipe.documents // len(DOMAINS))
    for b in found:
        torch.testing.assert_close(b.weights.sum(1), torch.full((len(b.weights),), 1.2 / recipe.documents))
        answers = (b.weights * b.in_answer).sum(1) * recipe.documents
        torch.testing.assert_close(answers, torch.ones(len(answers)))
        assert (b.weights[b.targets == PAD] == 0).all() and (b.inputs[:, 0] == BOS).all()
        assert torch.equal(b.inputs[:, 1:], b.targets[:, :-1])


def test_answers_are_where_they_are_marked():
    recipe, step = Recipe(), 1000
    known = {}
    for number in range(step * recipe.documents, (step + 1) * recipe.documents):
        for room in (256, 512, 1024, 2048):
            d = training.training_document(recipe.seed, number, recipe.difficulty(step), room)
            known[d.text] = "".join(d.text[start:end] for start, end in d.answer_spans)
    found = {decode(targets.tolist()): decode(targets[marked].tolist())
             for b in batches(recipe, step) for targets, marked in zip(b.targets, b.in_answer, strict=True)}
    assert len(found) == recipe.documents
    assert found == {text: known[text] for text in found}


def test_look_up_grows_to_the_full_context_and_the_others_stay_short():
    recipe = Recipe()
    lengths = [{b.inputs.shape[1] for b in batches(recipe, step)} for step in (0, *range(2000, 2004))]
    assert max(lengths[0]) <= 256
    assert max(map(max, lengths)) > 1900 and all(min(found) <= 256 for found in lengths)


def test_the_same_step_reads_the_same_and_another_reads_other_documents():
    first, again, other = (batches(TINY, step)[0].inputs for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first[:, :50], other[:, :50])


def test_step_sizes_rise_hold_and_fall_to_nothing():
    recipe = Recipe(steps=1000)
    scales = [recipe.step_scale(step) for step in range(1000)]
    assert scales[0] < 0.1 and scales[20:500] == [1.0] * 480 and scales[-1] < 0.003
    assert sorted(scales[:20]) == scales[:20] and sorted(scales[500:], reverse=True) == scales[500:]
    assert recipe.difficulty(0) == 0 and recipe.difficulty(400) == 1 == recipe.difficulty(999)


# --- what is learned --------------------------------------------------------------------------------------------

def solved(model, domain, documents: int) -> float:
    """The share of held-out questions, of the easiest size, that are answered right to the last byte."""
    right = []
    for number in range(documents):
        document = domain.document(random.Random(f"held out {number}"), 0.0, 256, "standard")
        tokens = torch.tensor([[BOS, *encode(document.text)]])
        guesses = model(tokens[:, :-1]).argmax(-1)[0]
        right += [torch.equal(guesses[a:b], tokens[0, a + 1 : b + 1]) for a, b in document.answer_spans]
    return sum(right) / len(right)


def test_a_tiny_model_learns_a_domain_from_nothing(monkeypatch):
    brackets = DOMAINS["brackets"]
    monkeypatch.setattr(training, "training_document", lambda seed, number, difficulty, room: brackets.document(
        random.Random(f"{seed} {number}"), 0.0, room))
    run = Run(Recipe(ModelConfig(2, 64, 2, 1, 128, VOCAB_SIZE, context=512, tied_embeddings=True), 260, documents=8))
    assert solved(run.model, brackets, 10) == 0
    while run.step < run.recipe.steps:
        run.advance()
    assert solved(run.model, brackets, 10) > 0.6


def test_the_first_steps_are_those_of_the_shipped_run():
    """From scratch, the recipe that stands beside the checkpoint gives the first points of the curve beside it."""
    shipped = json.loads((CHECKPOINTS / "dense" / "training.json").read_text("utf-8"))["recipe"]
    recipe = Recipe(steps=shipped["steps"], seed=shipped["seed"])
    assert json.loads(identity(recipe)) == shipped, "the defaults have moved away from the shipped run"
    curve = (CHECKPOINTS / "dense" / training.CURVE).read_text("utf-8").splitlines()
    assert len(curve) == 1 + recipe.steps
    run = Run(recipe)
    for line in curve[1:7]:
        step, tokens, loss, answer, rest, _ = map(float, line.split(","))
        numbers = run.advance()
        assert (run.step, run.tokens) == (step, tokens)
        assert (numbers["loss"], numbers["answer"], numbers["rest"]) == pytest.approx((loss, answer, rest), rel=0.03)


# --- interruptions ----------------------------------------------------------------------------------------------

def test_a_run_that_stops_three_times_ends_in_the_same_bits(tmp_path):
    run(TINY, tmp_path / "whole")
    for stop in (1, 5, 9):
        run(TINY, tmp_path / "parts", stop_at=stop)
    numbers = run(TINY, tmp_path / "parts")
    assert [n["step"] for n in numbers] == [10, 11, 12]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = ((tmp_path / name / "loss_curve.csv").read_text().splitlines() for name in ("whole", "parts"))
    assert [line.rpartition(",")[0] for line in whole] == [line.rpartition(",")[0] for line in parts]


def test_killed_three_times_at_random_moments_it_ends_in_the_same_bits(tmp_path):
    run(TINY, tmp_path / "whole")
    script = ("import sys; sys.path[:0] = sys.argv[2:]; from test_train import TINY, train\n"
              "for now in train(TINY, sys.argv[1], save_every=2): print(now['step'], flush=True)")
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(Path(__file__).parent), *sys.path]
    for kill_after in (2, 3, 4):  # lines seen before the blow, which falls anywhere in the next step or its saving
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(kill_after):
            process.stdout.readline()
        time.sleep(random.random() * 0.05)
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_write_that_fails_leaves_the_last_state_and_says_so(tmp_path, monkeypatch):
    run(TINY, tmp_path, stop_at=4)
    before = (tmp_path / STATE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(DataError, match="No space left"):
        run(TINY, tmp_path, stop_at=8)
    assert (tmp_path / STATE).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [STATE]
    monkeypatch.undo()
    assert next(train(TINY, tmp_path))["step"] == 5


# --- what is written --------------------------------------------------------------------------------------------

def test_a_finished_run_leaves_checkpoint_curve_and_facts(tmp_path):
    run(TINY, tmp_path)
    cfg, state = load_checkpoint(tmp_path)
    assert cfg == TINY.cfg and {t.dtype for t in state.values()} == {torch.bfloat16}
    curve = (tmp_path / "loss_curve.csv").read_text().splitlines()
    assert len(curve) == 1 + TINY.steps and curve[0].startswith("step,tokens,loss")
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["tokens"] == int(curve[-1].split(",")[1]) and facts["recipe"]["seed"] == TINY.seed
    assert facts["scores"] is None and facts["threads"] >= 1 and facts["machine"]  # its context is too short to judge


def test_a_finished_run_does_nothing_more(tmp_path):
    run(TINY, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert run(TINY, tmp_path) == []
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


# --- bad input --------------------------------------------------------------------------------------------------

def test_another_recipe_is_refused_and_nothing_is_lost(tmp_path):
    run(TINY, tmp_path, stop_at=2)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(DataError, match="another run"):
        run(replace(TINY, seed=2), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before


def test_a_broken_state_is_one_clear_error(tmp_path):
    (tmp_path / STATE).write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match="delete it to start again"):
        run(TINY, tmp_path)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": True}, {"documents": 0}, {"document_bytes": 100},
                                   {"matrix_step": float("nan")}, {"other_step": 2}, {"cooling": 0}, {"seed": 1.5}])
def test_a_recipe_that_cannot_run_is_refused(wrong):
    with pytest.raises(BadInputError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_change():
    run = Run(TINY)
    with torch.no_grad():
        run.model.blocks[0].feed_forward.down.weight[0, 0] = float("nan")
    before = run.model.embedding.weight.clone()
    with pytest.raises(BadInputError, match="loss at step 0 is nan"):
        run.advance()
    assert torch.equal(run.model.embedding.weight, before)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert training.main([str(tmp_path), "--steps", "0"]) == 1
    assert training.main([str(tmp_path), "--stop-at", "0"]) == 1
    (tmp_path / STATE).write_bytes(b"x")
    assert training.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert [line[:5] for line in said if line] == ["error"] * 3 and "steps is 0" in said[0]


def test_the_command_shows_its_progress(tmp_path, capsys):
    assert training.main([str(tmp_path), "--steps", "2", "--size", "quarter", "--stop-at", "1"]) == 0
    shown = capsys.readouterr().err
    assert "1/2" in shown and "tokens/s" in shown and "min left" in shown
