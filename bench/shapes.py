"""The models that benches run: the toy, and two shapes of more weight. Speed does not depend on what weights say."""

import copy

from llmflation.config import ModelConfig
from llmflation.model import Transformer
from llmflation.pretrained import load_toy
from llmflation.train import TOY

SHAPES = {
    "toy": TOY,
    "30m": ModelConfig(8, 576, 9, 3, 1536, 320, tied_embeddings=True, name="30m"),
    "135m": ModelConfig(30, 576, 9, 3, 1536, 49_152, tied_embeddings=True, name="135m"),
}

COLD_BYTES = 256 * 2**20  # of weights, read in turn: eight times a cache of 32 MiB, so that none is still in it


def model(shape: str) -> Transformer:
    """A model of this shape in float32: the shipped toy, or weights at random."""
    return load_toy() if shape == "toy" else Transformer(SHAPES[shape]).eval().requires_grad_(False)


def nbytes(model: Transformer) -> int:
    """Bytes of a model's weights."""
    return sum(p.nbytes for p in model.parameters())


def cold_copies(model: Transformer) -> list[Transformer]:
    """The model and as many copies as make COLD_BYTES: a step of each in turn finds its weights out of the cache."""
    return [model, *(copy.deepcopy(model) for _ in range(-(-COLD_BYTES // nbytes(model)) - 1))]
