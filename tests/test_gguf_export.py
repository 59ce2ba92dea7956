"""The GGUF file that we write: read back by the gguf package tensor for tensor, and by our own reader."""

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from llmflation.config import ModelConfig, model_config
from llmflation.corpus import BOS, EOS, PAD, VOCAB_SIZE, decode
from llmflation.errors import BadInputError, DataError, UnknownNameError
from llmflation.gguf_export import KINDS, export_gguf
from llmflation.gguf_file import load_gguf
from llmflation.model import Transformer
from llmflation.pretrained import load_real_model, real_model_file
from llmflation.quant.model import dequantized, quantize_model

CFG = ModelConfig(2, 64, 4, 2, 96, VOCAB_SIZE, context=64, tied_embeddings=True, rope_theta=50_000.0, name="small")
SHAPES = {"tied": CFG, "own head": replace(CFG, tied_embeddings=False), "one key head": replace(CFG, n_kv_heads=1),
          "as many key heads": replace(CFG, n_kv_heads=4), "wide heads": replace(CFG, head_dim=32)}
TOKENS = torch.randint(0, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(1))


def model_of(cfg: ModelConfig, seed: int = 1) -> Transformer:
    return Transformer.of(cfg, Transformer(cfg, seed=seed).state_dict())


def read(path) -> Transformer:
    made = load_gguf(path)
    return Transformer.of(made.cfg, made.state)


def tensors_of(path) -> dict:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_in_float32_comes_back_bit_for_bit(tmp_path, shape):
    model = model_of(SHAPES[shape])
    again = read(export_gguf(model, tmp_path / "made.gguf"))
    assert replace(again.cfg, norm_eps=model.cfg.norm_eps) == model.cfg
    assert again.cfg.norm_eps == pytest.approx(model.cfg.norm_eps, rel=1e-6)  # the file has it in float32
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in model.state_dict().items())
    assert (again(TOKENS) - model(TOKENS)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_the_gguf_packages_own(tmp_path, kind):
    """The package's quantizer on the rows of ours that belong there, and its names for all of them."""
    model = model_of(SHAPES["own head"])
    found, weights = tensors_of(export_gguf(model, tmp_path / "made.gguf", kind)), model.state_dict()
    parts = {"token_embd": weights["embedding.weight"], "output_norm": weights["norm.weight"],
             "output": weights["head.weight"]}
    for i in range(2):
        q, k, v = weights[f"blocks.{i}.attention.qkv.weight"].split((64, 32, 32))
        gate, up = weights[f"blocks.{i}.feed_forward.gate_up.weight"].chunk(2)
        layer = {"attn_q": pairs(q, 4), "attn_k": pairs(k, 2), "attn_v": v, "ffn_gate": gate, "ffn_up": up,
                 "attn_output": weights[f"blocks.{i}.attention.out.weight"],
                 "ffn_down": weights[f"blocks.{i}.feed_forward.down.weight"],
                 "attn_norm": weights[f"blocks.{i}.attention_norm.weight"],
                 "ffn_norm": weights[f"blocks.{i}.feed_forward_norm.weight"]}
        parts |= {f"blk.{i}.{name}": w for name, w in layer.items()}
    assert set(found) == {f"{name}.weight" for name in parts}
    for name, w in parts.items():
        format = gguf.GGMLQuantizationType[kind if w.ndim == 2 else "F32"]
        tensor, wanted = found[f"{name}.weight"], gguf.quants.quantize(w.numpy(), format)
        assert tensor.tensor_type == format and tensor.shape.tolist() == list(reversed(w.shape)), name
        assert np.array_equal(tensor.data.view(np.uint8), wanted.view(np.uint8)), name


def pairs(w: torch.Tensor, heads: int) -> torch.Tensor:
    """Each head's rows 0, 8, 1, 9, ... one by one: what stood in two halves stands in pairs."""
    width = len(w) // heads
    order = [h * width + half * width // 2 + i for h in range(heads) for i in range(width // 2) for half in (0, 1)]
    return w[order]


@pytest.mark.parametrize(("kind", "file_type"), list(zip(KINDS, (0, 1, 7, 2))))  # of llama.cpp's llama_ftype
def test_the_header_says_what_llama_cpp_asks_for(tmp_path, kind, file_type):
    fields = gguf.GGUFReader(export_gguf(model_of(CFG), tmp_path / "made.gguf", kind)).fields
    known = {name: field.contents() for name, field in fields.items()}
    assert {"general.architecture": "llama", "general.name": "small", "general.file_type": file_type,
            "llama.block_count": 2, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
            "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
            "llama.attention.value_length": 16, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 50_000.0,
            "llama.context_length": 64, "llama.vocab_size": VOCAB_SIZE, "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.bos_token_id": BOS, "tokenizer.ggml.eos_token_id": EOS,
            "tokenizer.ggml.padding_token_id": PAD, "tokenizer.ggml.add_bos_token": True}.items() <= known.items()
    assert known.get("general.quantization_version") == (2 if kind in ("Q8_0", "Q4_0") else None)


def test_the_bytes_have_gpt2s_names(tmp_path):
    """Transformers' own table is the oracle; the token of byte b has the id b."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    made = load_gguf(export_gguf(model_of(CFG), tmp_path / "made.gguf"))
    assert made.tokens[:256] == [bytes_to_unicode()[byte] for byte in range(256)]
    assert len(set(made.tokens)) == VOCAB_SIZE and made.special_ids == [BOS, EOS, PAD] and made.stop_id == EOS
    assert decode(range(65, 70)) == "".join(made.tokens[65:70])


def test_the_real_models_tokenizer_is_copied_whole(tmp_path):
    cfg = replace(CFG, vocab_size=49_152)
    path, source = export_gguf(model_of(cfg), tmp_path / "made.gguf", tokenizer=real_model_file()), real_model_file()
    found, wanted = ({name: (field.types[0], field.contents()) for name, field in gguf.GGUFReader(file).fields.items()
                      if name.startswith("tokenizer.")} for file in (path, source))
    assert found == wanted and len(found) == 12


@pytest.mark.parametrize("shape", ["tied", "own head", "one key head"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantized_model_and_its_float_model_make_the_same_file(tmp_path, kind, shape):
    model = model_of(SHAPES[shape])
    quantized = quantize_model(model, kind.lower())
    ours, floats = (export_gguf(m, tmp_path / name, kind) for m, name in ((quantized, "ours"), (model, "floats")))
    assert ours.read_bytes() == floats.read_bytes()
    if model.cfg.tied_embeddings:  # else an embedding of its own is rounded on its way into the file
        assert (read(ours)(TOKENS) - dequantized(quantized)(TOKENS)).abs().max() < 1e-6


def test_what_a_quantized_model_skips_is_written_in_the_kind_asked_for(tmp_path):
    quantized = quantize_model(model_of(SHAPES["own head"]), "q4_0", skip=("head", "blocks.1"))
    found = tensors_of(export_gguf(quantized, tmp_path / "made.gguf", "F16"))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items() if "norm" not in name}
    assert {kind for name, kind in kinds.items() if name.startswith("blk.0.")} == {"Q4_0"}
    assert {kind for name, kind in kinds.items() if not name.startswith("blk.0.")} == {"F16"}


def test_a_format_that_llama_cpp_lacks_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(BadInputError, match=r"blk.0.attn_q.weight is quantized as int4, .* by the scheme 'q8_0'"):
        export_gguf(quantize_model(model_of(CFG), "int4", skip="head"), tmp_path / "made.gguf")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = export_gguf(model_of(CFG), tmp_path / "made.gguf")
    before = path.read_bytes()
    def full(*_):
        raise OSError(28, "No space left on device")
    for owner, step in ((gguf.GGUFWriter, "write_tensor_data"), (gguf.GGUFWriter, "write_kv_data_to_file"),
                        (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, full)
            with pytest.raises(OSError, match="No space"):
                export_gguf(model_of(CFG, seed=2), path)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["made.gguf"], step


@pytest.mark.parametrize(("cfg", "says"), [
    (model_config("Mixtral-8x7B"), "Mixtral-8x7B-v0.1 has experts, which"),
    (model_config("DeepSeek-V3"), "has experts and latent attention, which"),
    (replace(CFG, sliding_window=8), "small has a window of 8, which"),
    (replace(CFG, ffn_matrices=2), "small has two feed-forward matrices, which")])
def test_what_the_format_cannot_say_is_named(tmp_path, cfg, says):
    with pytest.raises(BadInputError, match=says):
        export_gguf(SimpleNamespace(cfg=cfg), tmp_path / "made.gguf")
    assert not list(tmp_path.iterdir())


def changed(name: str, value: float) -> Transformer:
    model = model_of(CFG)
    model.state_dict()[name][3, 5] = value
    return model


@pytest.mark.parametrize(("make", "kind", "error", "says"), [
    (lambda: model_of(replace(CFG, d_ff=80)), "Q8_0", BadInputError,
     r"blk.0.ffn_down.weight \(64, 80\) has 80 columns, and Q8_0 takes blocks of 32"),
    (lambda: model_of(CFG), "Q5_0", UnknownNameError, "unknown GGUF format 'Q5_0'"),
    (lambda: torch.nn.Linear(2, 2), "F32", BadInputError, "model is 'Linear'; allowed: a Transformer"),
    (lambda: model_of(replace(CFG, vocab_size=100)), "F32", BadInputError, "has 100 tokens, and without a tokenizer"),
    (lambda: changed("blocks.1.attention.out.weight", 1e5), "F16", BadInputError,
     r"blk.1.attn_output.weight has a weight that F16 cannot hold: the largest is 100000. Export it as F32."),
    (lambda: changed("embedding.weight", float("nan")), "F32", BadInputError, "token_embd.weight has a weight that"),
    (lambda: changed("embedding.weight", float("nan")), "Q4_0", BadInputError, "token_embd.weight has 1 NaN")])
def test_bad_input_is_named_and_nothing_is_written(tmp_path, make, kind, error, says):
    with pytest.raises(error, match=says):
        export_gguf(make(), tmp_path / "made.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_size_or_none_is_named(tmp_path):
    with pytest.raises(BadInputError, match="has 49152 tokens and the model 320"):
        export_gguf(model_of(CFG), tmp_path / "made.gguf", tokenizer=real_model_file())
    (tmp_path / "broken.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(DataError, match=r"broken.gguf: cannot be read as GGUF"):
        export_gguf(model_of(CFG), tmp_path / "made.gguf", tokenizer=tmp_path / "broken.gguf")
    with pytest.raises(BadInputError, match="the name of a file, and this is a folder"):
        export_gguf(model_of(CFG), tmp_path)


def test_the_real_model_comes_back():
    """Not in `tmp_path`, which pytest keeps: the file has 540 MB."""
    model = load_real_model().model
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        again = read(export_gguf(model, Path(folder) / "made.gguf", tokenizer=real_model_file()))
    assert again.cfg == model.cfg and again.cfg.tied_embeddings
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in model.state_dict().items())
