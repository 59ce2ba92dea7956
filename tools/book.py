"""Build the book into _build/html: `python tools/book.py`, or with `--fresh` to execute every chapter again.

A chapter's run is kept and used again until its code changes. Jupyter Book notices that much by itself; what it
cannot see is an edit of the library or its data, so this script does: any change there and every chapter runs
again. A change of words alone executes nothing.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# The library of this very folder, even where a copy of the folder shares an environment that names another one.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from alt_texts import write_alt_texts
from claims_page import collect, write_page
from executed import BookError

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lib"
BUILD = ROOT / "_build"
HTML = BUILD / "html"
STATE = BUILD / "state.json"  # fingerprints of what the site in _build/html was made from
ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Exit|Warning): .+(?:\n.+)*", re.M)  # a traceback's end
CELL = re.compile(r"^-{9,}\n(.+?)^-{9,}$", re.M | re.S)  # in a report: the cell that failed
STARTED = time.perf_counter()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget the kept runs: execute every chapter again")
    fresh = parser.parse_args(argv).fresh
    try:
        build(fresh)
    except BookError as error:
        say(f"The book does not stand: {error}")
        return 1
    except KeyboardInterrupt:
        say("Stopped. The chapters that had ended will not run again.")
        return 130
    print(f"Open it:  {(HTML / 'index.html').as_uri()}\nServe it: make serve", flush=True)
    return 0


def build(fresh: bool = False) -> None:
    """Make _build/html, _build/claims.json and _build/ledger.json; raises BookError when anything is wrong.

    The two lists are there only when the book stands.
    """
    now = {"library": fingerprint(library_files()), "book": fingerprint(book_files())}
    before = {} if fresh else read_json(STATE) or {}
    if before == now and (HTML / "index.html").exists():
        say("Nothing changed since the last build.")
        offer_notebooks()
        return
    if before.get("library") != now["library"]:
        say("The library or its data changed: every chapter runs again." if before else "Every chapter runs.")
        shutil.rmtree(BUILD / ".jupyter_cache", ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    clear_away()
    write_json(STATE, {"library": now["library"]})
    copy_mathjax(BUILD / "extra" / "mathjax")
    page = ROOT / "pages" / "claims.md"
    write_page(page, read_json(BUILD / "last-claims.json") or [])  # until this build's are known
    jupyter_book("--all")
    claims, factors = collect(BUILD)
    if write_page(page, claims):
        jupyter_book()
    write_alt_texts(BUILD)
    offer_notebooks()
    write_json(BUILD / "claims.json", claims)
    write_json(BUILD / "ledger.json", factors)
    write_json(STATE, now)
    say(f"The book stands; claims checked: {len(claims)}.")


def clear_away() -> None:
    """A page that is gone from the book must go from the site too, and a failed build must not pass as built."""
    for stale in (HTML, BUILD / "jupyter_execute"):
        shutil.rmtree(stale, ignore_errors=True)
    if (claims := BUILD / "claims.json").exists():
        claims.replace(BUILD / "last-claims.json")
    (BUILD / "ledger.json").unlink(missing_ok=True)


def library_files() -> list[Path]:
    """What a chapter's numbers depend on besides its own code."""
    files = [p for p in (LIBRARY / "llmflation").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return [*files, ROOT / "requirements.txt", ROOT / "constraints.txt"]


def book_files() -> list[Path]:
    """Everything that the site is made from besides the library, the generated page excepted."""
    folders = ("chapters", "pages", "_static")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix != ".json"]
    top = [ROOT / name for name in ("index.md", "_config.yml", "_toc.yml", "references.bib")]
    own = [Path(__file__).with_name(name) for name in ("book.py", "alt_texts.py", "claims_page.py", "executed.py")]
    return [p for p in [*files, *top, *own] if p.is_file() and p != ROOT / "pages" / "claims.md"]


def fingerprint(files: list[Path]) -> str:
    """A hash of names and contents, and of this Python."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(files):
        # A notebook beside its chapter counts by its presence alone: it earns the page its launch buttons.
        content = "" if path.suffix == ".ipynb" else hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()


def read_json(path: Path):
    """What a JSON file holds; None where there is no such file or it is not whole."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8", newline="\n")


def copy_mathjax(to: Path) -> None:
    """Put the part of MathJax that the pages use beside them, so that no page asks another server for it."""
    spec = importlib.util.find_spec("mathjax")
    if spec is None:
        raise BookError("MathJax is missing. Remedy: python -m pip install -r requirements.txt")
    package = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    fonts = Path("output", "chtml", "fonts", "woff-v2")
    if (to / fonts).is_dir():
        return
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(package / "LICENSE", to)
    shutil.copy(package / "es5" / "tex-chtml.js", to)
    shutil.copytree(package / "es5" / fonts, to / fonts)


def offer_notebooks() -> None:
    """Let the download button of each chapter give the notebook of the repository, not Jupyter Book's own."""
    for notebook in sorted((ROOT / "chapters").glob("*.ipynb")):
        if (offered := HTML / "_sources" / "chapters" / notebook.name).exists():
            shutil.copyfile(notebook, offered)


def jupyter_book(*options: str) -> None:
    """One pass of Jupyter Book. Shows what runs and what is wrong; the rest goes into _build/book.log."""
    # `python -m jupyter_book.cli.main` would do nothing and report success; the script may lie anywhere.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()",
               "build", str(ROOT), "-W", "-n", "--keep-going", *options]
    library_first = os.pathsep.join(filter(None, (str(LIBRARY), os.environ.get("PYTHONPATH"))))  # for the kernels too
    environment = {**os.environ, "PYTHONPATH": library_first, "PYTHONUTF8": "1", "NO_COLOR": "1"}
    problems: list[str] = []
    with (BUILD / "book.log").open("w", encoding="utf-8") as log, subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace") as process:
        for line in process.stdout:
            log.write(line)
            show(plain(line), problems)
    if process.returncode:
        what = why_it_crashed((BUILD / "book.log").read_text("utf-8"), problems)
        raise BookError(f"{what}. The whole log is {(BUILD / 'book.log').relative_to(ROOT)}.")


def show(line: str, problems: list[str]) -> None:
    """Say what one line of Jupyter Book's output means for the reader; add the file at fault to `problems`."""
    where = line.split(":")[0]
    if "Executing notebook using" in line:
        say(f"{where} runs ...")
    elif took := re.search(r"Executed notebook in ([\d.]+) seconds", line):
        say(f"{where} ran in {float(took[1]):.1f} s")
    elif "Executing notebook failed" in line:
        problems.append(f"{where} stopped")
        # Jupyter Book writes the report a moment later, and tells where.
    elif "Notebook exception traceback saved in: " in line:
        say(f"{where} stopped. {why_it_stopped(where)}")
    elif re.search(r"\b(WARNING|ERROR|CRITICAL): ", line) and f"{where} stopped" not in problems:
        # What a stopped chapter lacks (figures, numbers) is no news of its own.
        problems.append(line)
        say(line)


def why_it_stopped(chapter: str) -> str:
    """The last words of a chapter's error, without the way it took; then where it arose."""
    report = HTML / "reports" / Path(chapter).with_suffix(".err.log")
    text = plain(report.read_text("utf-8")).strip()
    words = (ERROR.findall(text) or text.splitlines())[-1].strip().splitlines()
    cell = CELL.search(text)
    code = [line for line in cell[1].splitlines() if line.strip() and not line.startswith("#")] if cell else []
    begins = f"The cell begins with `{code[0].strip()}`; the" if code else "The"
    return "\n".join([*words[:2], f"{begins} whole report is {report.relative_to(ROOT)}."])


def why_it_crashed(log: str, problems: list[str]) -> str:
    """Why Jupyter Book itself ended: pages at fault, a kernel that was killed, or what it said last."""
    log = plain(log)
    running = re.findall(r"^(.+): Executing notebook using", log, re.M)
    if "Kernel died" in log and running:
        return f"{running[-1]} stopped: its kernel was killed, and out of memory is the usual cause"
    if problems:
        return f"{len(problems)} to mend, named above"
    errors = ERROR.findall(log)
    return errors[-1].splitlines()[0] if errors else "Jupyter Book stopped"


def plain(text: str) -> str:
    """Terminal colours taken out, and this folder's own path."""
    return re.sub(r"\x1b\[[\d;]*m", "", text.rstrip()).replace(str(ROOT) + os.sep, "")


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
