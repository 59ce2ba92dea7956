"""How a browser is found, and what is said where there is none."""

import sys
from pathlib import Path

import pytest

import browser as finder


@pytest.fixture
def bare_machine(monkeypatch):
    """A machine without a browser and without npm."""
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setattr(finder.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(finder, "_usual_places", list)
    return monkeypatch


def test_chrome_in_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("CHROME", sys.executable)
    assert str(finder.find()) == sys.executable


def test_a_wrong_chrome_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("CHROME", "no-such-browser")
    with pytest.raises(finder.NoBrowserError, match=r"CHROME='no-such-browser' is not a program"):
        finder.find()


def test_an_installed_browser_comes_before_the_package(bare_machine, tmp_path):
    program = tmp_path / "Google Chrome"
    program.touch()
    bare_machine.setattr(finder, "_usual_places", lambda: [tmp_path / "Chromium", program])
    bare_machine.setattr(finder, "_starts", lambda path: True)
    assert finder.find(tmp_path / "none") == program


def script(path: Path, does: str) -> Path:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for browsers are shell scripts")
@pytest.mark.parametrize("does", ["echo 'install the snap' >&2; exit 1", "while :; do :; done"])
def test_a_browser_that_does_not_start_is_passed_over(bare_machine, tmp_path, does):
    bare_machine.setattr(finder, "PATIENCE", 0.5)
    places = [script(tmp_path / "chromium-browser", does)]
    bare_machine.setattr(finder, "_usual_places", lambda: places)
    assert finder.installed() is None
    bare_machine.setattr(finder, "PATIENCE", 60)
    places = [script(tmp_path / "chromium-browser", "exit 1"), script(tmp_path / "msedge", "exit 0")]
    assert finder.installed() == tmp_path / "msedge"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told_what_to_install(bare_machine, tmp_path, system):
    bare_machine.setattr(finder.sys, "platform", system)
    with pytest.raises(finder.NoBrowserError, match="install Google Chrome or Chromium") as caught:
        finder.find(tmp_path / "browser")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="the package is for Linux alone, and so is npm")
def test_the_npm_beside_this_python_is_preferred(monkeypatch, tmp_path):
    for folder in ("machine", "python"):
        (tmp_path / folder).mkdir()
        script(tmp_path / folder / "npm", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "machine"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python"))
    assert finder._npm() == tmp_path / "python" / "npm"
    (tmp_path / "python" / "npm").unlink()
    assert finder._npm() == tmp_path / "machine" / "npm"


@pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux alone")
def test_without_npm_the_package_that_brings_it_is_named(bare_machine, tmp_path):
    bare_machine.setattr(finder.platform, "machine", lambda: "x86_64")
    bare_machine.setattr(finder.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(finder.NoBrowserError, match=r"requirements-test\.txt"):
        finder.find(tmp_path / "browser")
    assert list(tmp_path.iterdir()) == [], "nothing half made stays behind"


def test_a_browser_that_was_fetched_is_used_again(bare_machine, tmp_path):
    bare_machine.setattr(finder.sys, "platform", "linux")
    bare_machine.setattr(finder.platform, "machine", lambda: "x86_64")
    (tmp_path / "chrome").touch()
    assert finder.find(tmp_path) == tmp_path / "chrome"
