"""The package is lazy, its names exist, and the cost model needs nothing but the standard library."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmflation

HEAVY = ("torch", "numpy", "matplotlib", "IPython", "scipy", "pandas")


def loaded_by(code: str) -> set[str]:
    """The top modules that a fresh interpreter holds after running `code`."""
    code += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(out))


@pytest.mark.parametrize(
    "code",
    [
        "import llmflation",
        "import llmflation.cost.trends",
        "import llmflation.hardware, llmflation.config, llmflation.timing, llmflation.facts",
        "import llmflation; llmflation.model_config('GPT-3 175B'); llmflation.load_prices()",
        "from llmflation import predict, fit_price_trend, ModelConfig, rental_price",
        "import llmflation; dir(llmflation); hasattr(llmflation, 'nope'); llmflation.__version__",
    ],
)
def test_the_cost_model_leaves_heavy_packages_out(code):
    assert not {name.partition(".")[0] for name in loaded_by(code)} & set(HEAVY)


def test_importing_the_package_loads_no_module_of_it():
    assert {m for m in loaded_by("import llmflation") if m.startswith("llmflation")} == {"llmflation"}


@pytest.mark.parametrize("name", llmflation.__all__)
def test_every_public_name_exists(name):
    assert getattr(llmflation, name) is not None
    assert name in dir(llmflation)


@pytest.mark.parametrize("module", llmflation._MODULES)
def test_every_module_is_an_attribute(module):
    assert getattr(llmflation, module).__name__ == f"llmflation.{module}"
    assert module in dir(llmflation)


def test_public_names_do_not_hide_modules():
    assert not set(llmflation.__all__) & set(llmflation._MODULES)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(AttributeError, match="nearest: 'ModelConfig'"):
        llmflation.ModelConfg  # noqa: B018
    assert not hasattr(llmflation, "nothing_like_it")
    assert not hasattr(llmflation, "__wrapped__")
    with pytest.raises(ImportError):
        from llmflation import ModelConfg  # noqa: F401


def test_the_version_is_the_one_in_pyproject():
    root = Path(__file__).parents[1]
    assert llmflation.__version__ == tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_without_an_installation_the_version_says_so(monkeypatch):
    import importlib.metadata

    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    assert llmflation._version() == "0+unknown"
