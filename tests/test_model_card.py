"""The shipped toy's card says what the files beside it say; the scores tell models apart."""

import json

import pytest
import torch

import model_card
from llmflation.config import ModelConfig
from llmflation.model import Transformer

CFG = ModelConfig(1, 64, 2, 1, 64, 320, context=64, tied_embeddings=True)


def test_the_card_is_current():
    written = (model_card.FOLDER / "README.md").read_text("utf-8")
    assert written == model_card.current(), "run: python tools/model_card.py"


def test_the_scores_tell_models_apart_and_the_toy_is_good_enough_to_judge_by():
    models = json.loads((model_card.FOLDER / "scores.json").read_text("utf-8"))["models"]
    dense, rough, quarter = (models[name]["standard"]["mean"] for name in ("dense", "three bits", "quarter"))
    assert dense >= 0.95 and dense - rough >= 0.03 and dense - quarter >= 0.05
    assert min(domain["accuracy"] for domain in models["dense"]["standard"]["domains"].values()) >= 0.85
    assert 0.2 < models["quarter"]["params"] / models["dense"]["params"] < 0.3


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounding_leaves_each_row_few_values_and_its_largest(bits):
    model = Transformer(CFG)
    after = model_card.rounded(model, bits).state_dict()
    for name, weight in model.state_dict().items():
        if weight.ndim != 2:
            assert torch.equal(after[name], weight)
            continue
        for row, coarse in zip(weight, after[name], strict=True):
            assert len(coarse.unique()) <= 2**bits - 1
            assert coarse.abs().max() == pytest.approx(float(row.abs().max()))
            assert (coarse - row).abs().max() <= row.abs().max() / (2 ** (bits - 1) - 1) / 2 * 1.001


def test_rounding_leaves_the_model_itself_alone():
    model = Transformer(CFG)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model_card.rounded(model, 3)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
