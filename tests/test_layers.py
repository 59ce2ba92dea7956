"""The architecture, as a table of who may import whom. An arrow that is not in the table fails."""

import ast
import sys
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "lib" / "llmflation"

FACTS = ["errors", "units", "facts", "config", "hardware", "timing"]
COST = [
    "cost.formulas",
    "cost.counts",
    "cost.roofline",
    "cost.serving",
    "cost.published",
    "cost.economics",
    "cost.prices",
    "cost.series",
    "cost.trends",
    "cost.generations",
    "cost.rents",
    "cost.ledger",
    "cost.market",
]
BLOCKS = ["blocks", "prefix_index"]
CACHES = ["kvcache", "paged", "prefix", "window", "latent", "quantized_cache"]
MACHINE = ["linear", "layers", "online_softmax", "moe", "model", *CACHES, "quant", "sampling", "checkpoint",
           "gguf_file", "gguf_export", "quantized_checkpoint", "pretrained"]
RUNNING = ["scheduler", "engine", "speculative"]
TOY = ["corpus", "muon", "train", "evaluate"]
EDGES = ["probe", "calibrate", "predictions", "claims", "faults", "format_scores", "viz", "thousandfold", "grade"]

# Module -> what it may import of the library. Modules that are not written yet have their place already.
# Inside the lowest layer each may import those before it.
TABLE = (
    {name: FACTS[:i] for i, name in enumerate(FACTS)}
    | {
        "": ["errors"],  # the package itself is lazy: names when asked, errors for an unknown one
        "cost": [],
        "cost.formulas": [],
        "cost.counts": [*FACTS, "cost.formulas"],
        "cost.roofline": [*FACTS, "cost.formulas", "cost.counts"],
        "cost.serving": [*FACTS, "cost.formulas", "cost.counts", "cost.roofline"],
        "cost.published": [*FACTS, "cost.formulas", "cost.counts", "cost.roofline", "cost.serving"],
        "cost.economics": [*FACTS, "cost.formulas", "cost.counts", "cost.roofline", "cost.serving"],
        "cost.prices": FACTS,
        "cost.series": [*FACTS, "cost.prices"],
        "cost.trends": [*FACTS, "cost.prices", "cost.series"],
        "cost.generations": FACTS,
        "cost.rents": [*FACTS, "cost.formulas", "cost.counts", "cost.roofline", "cost.serving", "cost.generations"],
        "cost.ledger": [*FACTS, "cost.formulas"],
        "cost.market": [*FACTS, *(c for c in COST if c != "cost.market")],
        "blocks": FACTS,
        "prefix_index": [*FACTS, "blocks"],
        "linear": FACTS,
        "quant": [*FACTS, "linear"],
        "layers": [*FACTS, "quant", "linear"],
        "online_softmax": FACTS,
        "moe": [*FACTS, "quant", "linear", "layers"],
        "model": [*FACTS, "quant", "linear", "layers", "moe"],
        "kvcache": [*FACTS, "blocks", "quant", "linear", "layers"],
        "paged": [*FACTS, "blocks", "quant", "linear", "layers", "kvcache"],
        "prefix": [*FACTS, "blocks", "prefix_index", "quant", "linear", "layers", "kvcache", "paged"],
        "window": [*FACTS, "quant", "linear", "layers", "kvcache"],
        "latent": [*FACTS, "quant", "linear", "layers", "kvcache"],
        "quantized_cache": [*FACTS, "quant", "linear", "layers", "kvcache"],
        "sampling": FACTS,
        "checkpoint": [*FACTS, "quant"],
        "gguf_file": [*FACTS, "quant"],
        "gguf_export": [*FACTS, "quant", "linear", "corpus", "gguf_file"],
        "quantized_checkpoint": [*FACTS, "quant", "linear", "layers", "model", "checkpoint"],
        "pretrained": [*FACTS, *(m for m in MACHINE if m != "pretrained")],
        "scheduler": [*FACTS, *BLOCKS],
        "engine": [*FACTS, *BLOCKS, "scheduler", *MACHINE],
        "speculative": [*FACTS, *BLOCKS, *MACHINE],
        "corpus": FACTS,
        "muon": FACTS,
        "train": [*FACTS, *MACHINE, "corpus", "muon", "evaluate"],
        "evaluate": [*FACTS, *MACHINE, "corpus"],
    }
    | {name: [*FACTS, *COST, *BLOCKS, *MACHINE, *RUNNING, *TOY, *EDGES] for name in EDGES}
)

PACKAGES = {"cost", "quant"}  # the only folders with code
STANDARD_LIBRARY_ONLY = {"", "cost", *FACTS, *COST, "blocks", "prefix_index", "faults", "scheduler"}
ONLY_IN_VIZ = {"numpy", "matplotlib"}


def modules(lib: Path) -> dict[str, Path]:
    """Every module under `lib` by its dotted name without the package's; '' is the package."""
    found = {}
    for path in sorted(lib.rglob("*.py")):
        parts = path.relative_to(lib).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def home(module: str) -> str:
    """The table's line for a module: what is inside quant/ counts as quant."""
    return "quant" if module.startswith("quant.") else module


def imports(module: str, path: Path, known: set[str]) -> tuple[set[str], set[str]]:
    """What a file imports, in any place: modules of the library, and top packages from elsewhere."""
    ours, others = set(), set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = []
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = ["llmflation", *filter(None, package.split("."))]
                up = up[: len(up) - (node.level - 1)]
                base = ".".join([*up, *filter(None, [base])])
            targets = [(base, alias.name) for alias in node.names]
        for base, name in targets:
            top, _, inside = base.partition(".")
            if top != "llmflation":
                others.add(top)
                continue
            longer = f"{inside}.{name}".strip(".") if name else inside
            ours.add(longer if longer in known else inside)
    return ours, others


def forbidden(lib: Path) -> list[str]:
    """All arrows and modules that the table does not have, as sentences."""
    found = modules(lib)
    known = set(found) | set(TABLE)
    wrong = []
    for module, path in found.items():
        if home(module) not in TABLE:
            wrong.append(f"{module} is not in the table: give it its place there")
            continue
        ours, others = imports(module, path, known)
        allowed = {*TABLE[home(module)], home(module)}
        # A folder's __init__ is empty, and importing it is part of importing what is inside.
        allowed |= {a.partition(".")[0] for a in allowed if "." in a} if module != "" else set()
        wrong += [
            f"{module or 'llmflation'} may not import {o or 'the package itself'}"
            for o in sorted(ours)
            if home(o) not in allowed
        ]
        if module in STANDARD_LIBRARY_ONLY:
            wrong += [f"{module} may not import {o}" for o in sorted(others - sys.stdlib_module_names)]
        if module != "viz":
            wrong += [f"{module} may not import {o}: only viz does" for o in sorted(others & ONLY_IN_VIZ)]
        if module == "cost.formulas":
            wrong += [f"{module} may not import {o}: math alone" for o in sorted(others - {"math"})]
    return wrong


def test_no_arrow_points_up():
    assert forbidden(LIB) == []


def test_only_named_folders_hold_code():
    assert {p.parent.name for p in LIB.rglob("*.py")} <= {"llmflation", *PACKAGES}


def test_the_table_itself_has_no_cycle_below_the_edges():
    done, left = set(EDGES), dict(TABLE)
    for name in EDGES:
        del left[name]
    while left:
        free = [m for m, needs in left.items() if not set(needs) - done - {m}]
        assert free, f"a cycle among {sorted(left)}"
        done |= set(free)
        for m in free:
            del left[m]


def test_nothing_below_imports_an_edge_and_torch_side_and_cost_stay_apart():
    for module, needs in TABLE.items():
        if module not in EDGES:
            assert not set(needs) & set(EDGES), module
        if module in {*MACHINE, *RUNNING, *TOY, *BLOCKS}:
            assert not set(needs) & set(COST), module
        if module in COST:
            assert not set(needs) & {*MACHINE, *RUNNING, *TOY, *BLOCKS}, module


@pytest.mark.parametrize(
    ("file", "code", "says"),
    [
        ("units.py", "from llmflation import facts", "units may not import facts"),
        ("units.py", "from .facts import read", "units may not import facts"),
        ("units.py", "import llmflation.facts", "units may not import facts"),
        ("cost/trends.py", "from .. import claims", "cost.trends may not import claims"),
        ("cost/trends.py", "from ..model import Transformer", "cost.trends may not import model"),
        ("cost/trends.py", "def f():\n    import torch", "cost.trends may not import torch"),
        ("cost/trends.py", "from . import market", "cost.trends may not import cost.market"),
        (
            "cost/formulas.py",
            "from dataclasses import dataclass",
            "cost.formulas may not import dataclasses: math alone",
        ),
        ("model.py", "from .cost.counts import count_params", "model may not import cost.counts"),
        ("quant/int8.py", "from ..layers import Linear", "quant.int8 may not import layers"),
        ("engine.py", "import numpy as np", "engine may not import numpy: only viz does"),
        ("units.py", "from llmflation import ModelConfig", "units may not import the package itself"),
        ("__init__.py", "from llmflation.config import ModelConfig", "llmflation may not import config"),
        ("helpers.py", "x = 1", "helpers is not in the table: give it its place there"),
    ],
)
def test_an_arrow_that_points_up_is_found(tmp_path, file, code, says):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    assert forbidden(tmp_path) == [says]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("facts.py", "from llmflation.errors import DataError\nfrom . import units\nimport csv"),
        ("cost/trends.py", "from . import series\nfrom ..facts import read\nfrom llmflation import units"),
        ("viz.py", "import numpy, matplotlib.pyplot as plt\nfrom .cost import trends\nfrom . import claims"),
        ("quant/__init__.py", "import torch\nfrom .int8 import quantize\nfrom ..config import ModelConfig"),
        ("engine.py", "from .quant.int8 import quantize\nfrom . import scheduler"),
    ],
)
def test_an_arrow_that_points_down_passes(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    (tmp_path / "quant").mkdir(exist_ok=True)
    (tmp_path / "quant" / "int8.py").write_text("", encoding="utf-8")
    assert forbidden(tmp_path) == []
