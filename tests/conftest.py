from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def built_site() -> Path:
    """The site that the last `make book` made."""
    site = ROOT / "_build" / "html"
    if not (site / "index.html").exists():
        pytest.fail("There is no site to test: run `make book` first (`make test` does).")
    return site
