"""The tool that judges formats and caches, on tiny models: it stores what the judge says and keeps the rest."""

import json
import sys

import pytest

import quantized_scores as tool
from llmflation.config import ModelConfig
from llmflation.corpus import CONTEXT, DOMAINS, VOCAB_SIZE, decode, encode
from llmflation.format_scores import FormatScores
from llmflation.model import Transformer
from llmflation.pretrained import Pretrained
from llmflation.quant.model import bits_per_weight, quantize_model, quantized_layers

CFG = ModelConfig(1, 32, 2, 1, 32, VOCAB_SIZE, context=CONTEXT, tied_embeddings=False)


class Bytes:
    """A tokenizer: the bytes themselves."""

    encode, decode = staticmethod(encode), staticmethod(decode)


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """Runs the tool for these names on tiny models and few problems; gives what it has stored."""
    toy = Transformer(CFG, seed=7).eval().requires_grad_(False)
    real = Pretrained(Transformer(CFG, seed=1).eval().requires_grad_(False), Bytes(), 0)
    place = tmp_path / "quantized.json"
    (tmp_path / "SHA256SUMS").write_text("abc  model.safetensors\n")
    for name, value in {"PLACE": place, "PROBLEMS": 2, "CACHE_PROBLEMS": 2, "DISTANCES": (6, 1020), "TEXT_TOKENS": 1024,
                        "load_toy": lambda: toy, "load_real_model": lambda dtype: real}.items():
        monkeypatch.setattr(tool, name, value)

    def run(*names):
        monkeypatch.setattr(sys, "argv", ["quantized_scores.py", *names])
        assert tool.main() == 0
        return json.loads(place.read_text("utf-8"))

    run.place, run.toy = place, toy
    return run


def test_it_stores_what_the_judge_says_of_each_format(judged):
    stored = judged("int4-channel", "gptq-int4")
    assert set(stored["toy"]) == set(stored["SmolLM2"]) == {"fp32", "int4-channel", "gptq-int4"}
    small = quantize_model(judged.toy, "int4-channel")
    base, found = tool.toy_found(judged.toy), tool.toy_found(small)
    assert stored["toy"]["int4-channel"]["standard"] == tool.toy_scores(found, base)["standard"]
    assert stored["toy"]["int4-channel"]["bits_per_weight"] == bits_per_weight(small)
    scores = FormatScores(stored)
    assert list(scores.domains("fp32").by) == list(DOMAINS)
    assert all(scores.change(*of).difference == 0 for of in (("toy", "fp32", "bits"), ("SmolLM2", "fp32", "cloze")))
    assert scores.change("SmolLM2", "int4-channel", "perplexity").difference != 0
    assert stored["checkpoint"] == "abc" and stored["machine"] and stored["date"]


def test_what_is_not_asked_for_stays_and_another_toy_begins_anew(judged):
    first = judged("int8")
    caches = judged("caches")
    assert caches["toy"] == first["toy"] and list(caches["caches"]) == list(tool.CACHES)
    again = judged("q8_0")
    assert again["caches"] == caches["caches"] and again["toy"]["int8"] == first["toy"]["int8"]
    judged.place.with_name("SHA256SUMS").write_text("def  model.safetensors\n")
    assert set(judged("q8_0")["toy"]) == {"fp32", "q8_0"}


def test_caches_are_compared_with_whole_keys_and_values(judged):
    scores = FormatScores(judged("caches"))
    assert list(scores.cache_table().columns) == ["bits", "perplexity", "6 back", "1020 back"]
    assert all(scores.cache_change("fp32", quarter=i).difference == 0 for i in range(4))
    changes = [abs(scores.cache_change(name).difference) for name in tool.CACHES]
    assert changes[0] == 0 < changes[1] < changes[2]


@pytest.mark.parametrize("scheme, dequantized", [("mxfp4", True), ("int4", False), ("int8", False)])
def test_what_no_kernel_multiplies_is_judged_as_floats(judged, scheme, dequantized):
    small = quantize_model(judged.toy, scheme)
    assert bool(quantized_layers(tool.judged_form(small))) != dequantized


def test_a_scheme_that_is_not_there_is_refused(judged, capsys):
    with pytest.raises(SystemExit):
        judged("int9")
    assert "int9" in capsys.readouterr().err
