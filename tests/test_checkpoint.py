"""Checkpoints: a round trip, and every way in which a file can be broken, each with one clear error."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmflation import checkpoint
from llmflation.checkpoint import CONFIG, SUMS, WEIGHTS, load_checkpoint, save_checkpoint
from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, DataError
from llmflation.model import Transformer

CFG = ModelConfig(2, 32, 4, 2, 64, 50, context=32, tied_embeddings=True, rope_theta=50_000.0)


@pytest.fixture
def saved(tmp_path):
    model = Transformer(CFG, seed=1)
    save_checkpoint(tmp_path, CFG, model.state_dict())
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_comes_back(tmp_path, tied, dtype):
    cfg = ModelConfig(2, 32, 4, 1, 64, 50, context=32, tied_embeddings=tied)
    state = Transformer(cfg, seed=1).state_dict()
    save_checkpoint(tmp_path, cfg, state, dtype)
    again, weights = load_checkpoint(tmp_path)
    assert again == cfg and set(weights) == set(state)
    assert all(torch.equal(weights[name], state[name].to(dtype)) for name in state)
    Transformer.of(again, weights)


def test_a_tied_head_is_stored_once(saved):
    assert "lm_head.weight" not in load_file(saved / WEIGHTS)


def broken(change):
    def make(folder):
        raw = bytearray((folder / WEIGHTS).read_bytes())
        (folder / WEIGHTS).write_bytes(change(raw))
    return make


def flip(raw):
    raw[-7] ^= 1
    return raw


def reshape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["extra"] = torch.ones(1)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS)
    (folder / SUMS).unlink()


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def edit(**change):
    def make(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | change))
    return make


@pytest.mark.parametrize("damage, says", [
    pytest.param(broken(flip), "checksum is .*SHA256SUMS says", id="one-bit"),
    pytest.param(broken(lambda raw: raw[:-40]), "checksum", id="truncated"),
    pytest.param(lambda f: (broken(lambda raw: raw[:-40])(f), (f / SUMS).unlink()), "cannot be read", id="no-sum"),
    pytest.param(lambda f: (broken(lambda raw: b"")(f), (f / SUMS).unlink()), "cannot be read", id="empty"),
    pytest.param(reshape, r"up_proj.weight is missing; extra is unknown; .* is \(31,\), not \(32,\)", id="shapes"),
    pytest.param(pickled, "pytorch_model.bin is a pickle, which could run any code", id="pickle"),
    pytest.param(lambda f: (f / WEIGHTS).unlink(), "there is no model.safetensors", id="missing"),
    pytest.param(lambda f: (f / CONFIG).unlink(), "there is no config.json", id="no-config"),
    pytest.param(lambda f: (f / CONFIG).write_text("{"), "is no JSON", id="no-json"),
    pytest.param(edit(model_type="gpt2"), "model_type is 'gpt2'", id="family"),
    pytest.param(edit(num_attention_heads=5), "describes no model", id="heads"),
    pytest.param(edit(rope_parameters={"rope_type": "yarn"}), "rotary embedding is scaled", id="rope"),
    pytest.param(edit(rope_parameters=[1]), "are .1., not names and values", id="rope-list"),
    pytest.param(edit(rope_parameters=None, rope_theta="abc"), "describes no model", id="rope-text"),
    pytest.param(edit(hidden_act="gelu"), "hidden_act is 'gelu'; only 'silu'", id="activation"),
])
def test_a_broken_checkpoint_is_one_clear_error(saved, damage, says):
    damage(saved)
    with pytest.raises(DataError, match=says):
        load_checkpoint(saved)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="a checkpoint is a folder with"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_full_disk_under_the_weights_is_one_clear_error(saved, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device (os error 28)")
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match="could not be written .*No space left.* the old one, if any, is as it was"):
        save_checkpoint(saved, CFG, Transformer(CFG, seed=2).state_dict())
    load_checkpoint(saved)


def test_a_window_that_the_layout_cannot_say_is_refused(tmp_path):
    cfg = replace(CFG, sliding_window=4)
    with pytest.raises(BadInputError, match="has a window of 4"):
        save_checkpoint(tmp_path, cfg, Transformer(cfg).state_dict())


@pytest.mark.parametrize("step", range(4))
def test_a_write_interrupted_at_any_step_leaves_a_checkpoint_that_loads(saved, monkeypatch, step):
    """Sums, configuration, weights, sums: the disk is full at one of the four moves."""
    old, new = load_checkpoint(saved)[1], Transformer(CFG, seed=2).state_dict()
    left, move = [step], os.replace
    def fill_up(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        move(*paths)
    monkeypatch.setattr(os, "replace", fill_up)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, CFG, new)
    monkeypatch.undo()
    kept, wanted = load_checkpoint(saved)[1], (new if step == 3 else old)
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert sorted(p.name for p in saved.iterdir()) == sorted([WEIGHTS, CONFIG, SUMS]), "no half-written file stays"
