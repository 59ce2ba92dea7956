"""A quantized model on disk: it comes back bit for bit, and every way in which its file can be broken has one error."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmflation.checkpoint import load_checkpoint, save_checkpoint
from llmflation.config import ModelConfig
from llmflation.errors import BadInputError, DataError
from llmflation.model import Transformer
from llmflation.quant.model import SCHEMES, model_bytes, quantize_model, quantized_layers
from llmflation.quantized_checkpoint import KEY, SUMS, WEIGHTS, load_quantized, save_quantized

CFG = ModelConfig(2, 64, 4, 2, 128, 96, context=32, tied_embeddings=True, rope_theta=50_000.0, name="small")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(1))
CALIBRATION = torch.randint(0, 96, (24, 32), generator=torch.Generator().manual_seed(2))


def made(scheme: str = "int4", cfg: ModelConfig = CFG, seed: int = 1, dtype=torch.float32, skip=()) -> Transformer:
    state = {name: w.to(dtype) for name, w in Transformer(cfg, seed=seed).state_dict().items()}
    return quantize_model(Transformer.of(cfg, state), scheme, skip=skip, calibration=CALIBRATION)


@pytest.fixture
def saved(tmp_path):
    return save_quantized(tmp_path, made())


def same_tensors(one: Transformer, other: Transformer) -> bool:
    ours, theirs = ({name: layer.tensor() for name, layer in quantized_layers(m).items()} for m in (one, other))
    return ours.keys() == theirs.keys() and all(
        vars(q).keys() == vars(r).keys() and all(equal(a, b) for a, b in zip(vars(q).values(), vars(r).values()))
        for q, r in zip(ours.values(), theirs.values()))


def equal(a, b) -> bool:
    """Bit for bit; FP8's table of levels has a NaN."""
    if not isinstance(a, torch.Tensor):
        return a == b
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_comes_back_bit_for_bit(tmp_path, scheme, tied):
    model = made(scheme, replace(CFG, tied_embeddings=tied))
    again = load_quantized(save_quantized(tmp_path, model))
    assert again.cfg == model.cfg and again.cfg.name == "small" and same_tensors(model, again)
    assert torch.equal(again(TOKENS), model(TOKENS)) and model_bytes(again) == model_bytes(model)


@pytest.mark.parametrize(("dtype", "skip"), [(torch.bfloat16, ()), (torch.float32, ("head",)),
                                             (torch.bfloat16, ("blocks.0", "head"))])
def test_what_stays_in_floats_comes_back_in_its_format(tmp_path, dtype, skip):
    model = made("int8", dtype=dtype, skip=skip)
    again = load_quantized(save_quantized(tmp_path, model))
    assert torch.equal(again(TOKENS), model(TOKENS)) and again(TOKENS).dtype == dtype and same_tensors(model, again)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        skipped = json.loads(file.metadata()[KEY])["skipped"]
    assert len(skipped) == {0: 0, 1: 1, 2: 5}[len(skip)] and set(skipped).isdisjoint(quantized_layers(model))
    assert not skip or again.head.weight is again.embedding.weight


def test_the_file_is_hardly_larger_than_what_the_model_holds(tmp_path):
    model = made("int4", replace(CFG, d_model=256, d_ff=512))
    held = sum(layer.tensor().nbytes for layer in quantized_layers(model).values())
    held += sum(w.nbytes for w in model.parameters())
    assert held < (save_quantized(tmp_path, model) / WEIGHTS).stat().st_size < 1.05 * held


def test_a_window_comes_back_too(tmp_path):
    again = load_quantized(save_quantized(tmp_path, made(cfg=replace(CFG, sliding_window=4))))
    assert again.cfg.sliding_window == 4 and again.windows == [4, 4]


def test_a_flipped_bit_anywhere_is_found(saved):
    """In the description, in the codes, in the scales: the checksum is over all."""
    whole = (saved / WEIGHTS).read_bytes()
    for place in (40, len(whole) // 2, len(whole) - 1):
        (saved / WEIGHTS).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"quantized.safetensors: the checksum is \w+\.\.\., quantized.sha256 says"):
            load_quantized(saved)
    (saved / WEIGHTS).write_bytes(whole)
    load_quantized(saved)


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_a_truncated_file_is_found_even_where_the_checksum_was_made_for_it(saved, keep):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(DataError, match="the checksum is"):
        load_quantized(saved)
    vouch(saved)
    with pytest.raises(DataError, match=r"quantized.safetensors: cannot be read \(.*bytes were found"):
        load_quantized(saved)


def vouch(folder) -> None:
    """Write the checksum of the file as it is now."""
    import hashlib

    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / SUMS).write_text(f"{digest}  {WEIGHTS}\n", "utf-8")


def rewrite(folder, change) -> None:
    """Change tensors and description by `change(tensors, about)`, with a checksum that fits."""
    tensors = load_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, "pt") as file:
        about = json.loads(file.metadata()[KEY])
    change(tensors, about)
    save_file(tensors, folder / WEIGHTS, metadata={KEY: json.dumps(about)})
    vouch(folder)


def lose(tensors, about):
    del tensors["blocks.0.attention.qkv.scales"]
    tensors["more"] = torch.zeros(1)
    tensors["head.codes"] = tensors["head.codes"][:-1].clone()
    tensors["blocks.1.attention.out.scales"] = tensors["blocks.1.attention.out.scales"].half()


@pytest.mark.parametrize(("change", "says"), [
    (lose, r"qkv.scales is missing; more is unknown; head.codes is \(95, 32\), not \(96, 32\); "
           r"blocks.1.attention.out.scales is torch.float16, not torch.bfloat16"),
    (lambda t, about: about["model"].update(d_model=66, head_dim=16), "no model that can be built .*size mis"),
    (lambda t, about: about["model"].update(n_layers=3), "describes no model that can be built .*blocks.2"),
    (lambda t, about: about["layers"]["head"].update(bits=3), "do not fit their description"),
    (lambda t, about: about["layers"]["head"].update(shape=[64, 96]), "describes no model that can be built"),
    (lambda t, about: about.update(dtype="no_type"), "describes no model that can be built"),
    (lambda t, about: about.pop("layers"), "describes no model that can be built .*'layers'"),
    (lambda t, about: about.update(version=2), "is of version 2; only 1 can be read here")])
def test_a_description_that_does_not_fit_is_one_error(saved, change, says):
    rewrite(saved, change)
    with pytest.raises(DataError, match=says):
        load_quantized(saved)


def test_other_files_are_told_apart(tmp_path, saved):
    save_file({"x": torch.zeros(1)}, saved / WEIGHTS)
    vouch(saved)
    with pytest.raises(DataError, match="has no description of its layers"):
        load_quantized(saved)
    (saved / SUMS).unlink()
    with pytest.raises(DataError, match="there is no quantized.sha256"):
        load_quantized(saved)
    save_checkpoint(tmp_path / "floats", CFG, Transformer(CFG).state_dict())
    with pytest.raises(DataError, match="there is no quantized.safetensors .* load_checkpoint reads one in floats"):
        load_quantized(tmp_path / "floats")
    with pytest.raises(DataError, match="there is no model.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize("model", [Transformer(CFG), torch.nn.Linear(2, 2), None])
def test_only_a_quantized_transformer_is_saved(tmp_path, model):
    with pytest.raises(BadInputError, match="allowed: a Transformer that quantize_model has made"):
        save_quantized(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", range(3))
def test_a_write_interrupted_at_any_step_leaves_a_checkpoint_that_loads(saved, monkeypatch, step):
    """Checksums, weights, checksums: the disk is full at one of the three moves. The new model has another format."""
    old, new = load_quantized(saved), made("int8", seed=2)
    left, move = [step], os.replace
    def fill_up(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        move(*paths)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_up)
        with pytest.raises(OSError, match="No space left"):
            save_quantized(saved, new)
    assert same_tensors(load_quantized(saved), new if step == 2 else old)
    assert sorted(p.name for p in saved.iterdir()) == [WEIGHTS, SUMS], "no half-written file stays"
