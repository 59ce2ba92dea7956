"""The built site, a browser to open it with, and the words for it when either is missing."""

import os
import sys
from pathlib import Path

import pytest
from site_paths import ROOT, SITE

sys.path.insert(0, str(ROOT / "tools"))


def missing(what: str):
    """A check that cannot be made counts as failed where CI is set, and is skipped with one line elsewhere."""
    outcome = pytest.fail.Exception(what, pytrace=False) if os.environ.get("CI") else pytest.skip.Exception(what)
    raise outcome from None


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        missing("The site is not built: run `make book` first.")
    return SITE


@pytest.fixture(scope="session")
def base(site):
    """Address of the served site."""
    from checker import serve

    with serve(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import Error, sync_playwright

    from browser import FLAGS, NoBrowserError, find

    try:
        path = find()
    except NoBrowserError as error:
        missing(str(error))
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        except Error as error:
            why = error.message.splitlines()[0]
            missing(f"{path} does not start ({why}): install Chrome or Chromium, or set CHROME to the path of one.")
        yield chromium
        chromium.close()
