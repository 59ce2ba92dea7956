"""How a browser is found, and what is said where there is none."""

import sys

import pytest

import browser as finder


@pytest.fixture
def bare_machine(monkeypatch):
    """A machine without a browser and without npm."""
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setattr(finder.shutil, "which", lambda name: None)
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
    assert finder.find(tmp_path / "none") == program


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told_what_to_install(bare_machine, tmp_path, system):
    bare_machine.setattr(finder.sys, "platform", system)
    with pytest.raises(finder.NoBrowserError, match="install Google Chrome or Chromium") as caught:
        finder.find(tmp_path / "browser")
    assert "\n" not in str(caught.value)


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
