"""The models that benches run: the toy, and two shapes of more weight. Speed does not depend on what weights say."""

from llmflation.config import ModelConfig
from llmflation.model import Transformer
from llmflation.pretrained import load_toy
from llmflation.train import TOY

SHAPES = {
    "toy": TOY,
    "30m": ModelConfig(8, 576, 9, 3, 1536, 320, tied_embeddings=True, name="30m"),
    "135m": ModelConfig(30, 576, 9, 3, 1536, 49_152, tied_embeddings=True, name="135m"),
}


def model(shape: str) -> Transformer:
    """A model of this shape in float32: the shipped toy, or weights at random."""
    return load_toy() if shape == "toy" else Transformer(SHAPES[shape]).eval().requires_grad_(False)
