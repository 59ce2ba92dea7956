"""What the tests of quant/ share: every format, weights to try it on, and other people's packages to compare with."""

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import strategies as st

from llmflation.quant.floats import fp8, mxfp4, nf4
from llmflation.quant.ggml import q4_0, q8_0
from llmflation.quant.integer import quantize

COLUMNS = 64  # every format below divides it


@dataclass(frozen=True)
class Format:
    """A way to quantize, and which laws hold for it."""

    make: Callable
    mirrored: bool = True  # -w gives the negative of what w gives
    scaled: bool = True  # 2w gives the same codes
    repeats: bool = True  # what was dequantized quantizes to itself, to the bit
    clips: bool = False  # may cut off more than rounding does
    most: float = 3e38  # larger ones are refused
    least: float = 0.0  # groups below it are rounded otherwise


FORMATS = {f"int{bits}": Format(partial(quantize, bits=bits)) for bits in range(2, 9)}
FORMATS |= {f"int{bits} asymmetric": Format(partial(quantize, bits=bits, symmetric=False), mirrored=False,
                                            repeats=False, most=1e38) for bits in range(2, 9)}
FORMATS |= {
    "int4 groups": Format(partial(quantize, bits=4, group_size=32)),
    "int3 groups asymmetric": Format(partial(quantize, bits=3, group_size=16, symmetric=False), mirrored=False,
                                     repeats=False),
    "int8 tensor": Format(partial(quantize, bits=8, per_tensor=True)),
    "int8 tensor asymmetric": Format(partial(quantize, bits=8, per_tensor=True, symmetric=False), mirrored=False,
                                     repeats=False),
    "int4 clipped": Format(partial(quantize, bits=4, group_size=32, clip="mse"), clips=True),
    "int4 clipped asymmetric": Format(partial(quantize, bits=4, group_size=32, clip="mse", symmetric=False),
                                      mirrored=False, repeats=False, clips=True),
    "int4 half scales": Format(partial(quantize, bits=4, group_size=32, scale_dtype=torch.float16), most=4.5e5),
    "nf4": Format(nf4, mirrored=False, least=1e-38),
    "nf4 groups": Format(partial(nf4, group_size=16), mirrored=False, least=1e-38),
    "fp8": Format(fp8),
    "fp8 cast": Format(partial(fp8, scaled=False), scaled=False, most=448),
    "mxfp4": Format(mxfp4, clips=True),
    "q8_0": Format(q8_0, most=8e6),
    "q4_0": Format(q4_0, clips=True, most=5e5),
}

every_format = pytest.mark.parametrize("name", FORMATS)


def formats(**having) -> pytest.MarkDecorator:
    """Those formats for which some law holds."""
    return pytest.mark.parametrize("name", [name for name, f in FORMATS.items()
                                            if all(getattr(f, key) == value for key, value in having.items())])


def normal(rows: int = 3, columns: int = COLUMNS, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@st.composite
def weights(draw, least: float = 0.0, most: float = 100.0, rows: int = 4):
    """A weight of 1 to `rows` rows: noise, in which some values are put that hypothesis chose, 0 and -0 among them."""
    w = normal(draw(st.integers(1, rows)), COLUMNS * draw(st.integers(1, 2)), draw(st.integers(0, 2**16)),
               draw(st.sampled_from([0.05, 1.0, 20.0])))
    most = float(torch.tensor(most))  # a float32
    magnitude = st.floats(least, most, width=32)
    chosen = draw(st.lists(st.tuples(st.integers(0, w.numel() - 1), magnitude, st.sampled_from([-1.0, 1.0]))))
    for place, value, sign in chosen:
        w.view(-1)[place] = sign * value
    if draw(st.booleans()):
        w[0, :32] = draw(st.sampled_from([0.0, -0.0, 1.0, -1.5]))  # all alike
    return w.clamp(-most, most)


def oracle(name: str):
    """Another project's package, imported; where it is missing the test is skipped and says so, on CI it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            return importlib.import_module(name)
        except ImportError:
            message = f"{name} is missing, which `pip install -r requirements-test.txt` brings"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
