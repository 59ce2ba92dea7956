"""The build, tried on a book of two pages: what it collects, what it executes again, how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHAPTER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

(ch-small)=
# A small chapter

```{code-cell} python3
# Not a heading
from pathlib import Path
import llmflation
from IPython.display import display
from llmflation.claims import claim
price = float((Path(llmflation.__file__).parent / "data" / "small.csv").read_text())
```

## What *it* costs

Words for now. The price is {glue:}`small-price`.

```{code-cell} python3
claim("small-price", "A | costs $1.", price, (0.9 * price, 1.1 * price))
display({"text/plain": "a factor"}, raw=True, metadata={"llmflation": {"factor": {"id": "small", "value": 2}}})
```

```{code-cell} python3
---
mystnb:
  figure: {name: fig-small, caption: A square.}
  image: {alt: fig-small}
---
svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9v9H0z"/></svg>'
display({"image/svg+xml": svg}, raw=True, metadata={"llmflation": {"alt": f"A square of side < {price:g}."}})
```
"""
HEADER = CHAPTER.split("(ch-small)")[0]
TWIN = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}\n'
UNITS = Path("lib", "llmflation", "units.py")  # the claims page writes its ranges by it


def chapter(*code: str) -> str:
    """A chapter of one cell."""
    return "\n".join([HEADER, "# Another chapter", "", "```{code-cell} python3", *code, "```", ""])


class Book:
    """A book of its own in a folder with a space in its name."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root = folder, root
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("tools", "lib/llmflation", "_static"):
            shutil.copytree(root / part, folder / part, ignore=ignored)
        for name in ("_config.yml", "requirements.txt", "constraints.txt"):
            shutil.copy(root / name, folder)
        self.write("references.bib", "")

    def reset(self) -> None:
        """The book as every test finds it."""
        self.write("index.md", "# Front\n")
        self.write("lib/llmflation/data/small.csv", "40\n")
        self.write(UNITS, (self.root / UNITS).read_text("utf-8"))
        self.write("chapters/01-small.md", CHAPTER)
        self.write("chapters/01-small.ipynb", TWIN)
        self.contents("chapters/01-small")

    def write(self, name: str | Path, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def contents(self, *pages: str) -> None:
        files = "".join(f"  - file: {page}\n" for page in (*pages, "pages/claims"))
        self.write("_toc.yml", f"format: jb-book\nroot: index\nchapters:\n{files}")

    def build(self) -> tuple[int, str]:
        """Return code and what was said in the terminal."""
        # As in a copy of the repository: the environment names the library of another folder.
        environment = {**os.environ, "PYTHONPATH": str(self.root / "lib"), "PYTHONUTF8": "1"}
        done = subprocess.run([sys.executable, "tools/book.py"], cwd=self.folder, env=environment,
                              capture_output=True, text=True, encoding="utf-8", timeout=120)
        return done.returncode, done.stdout + done.stderr

    def page(self, name: str) -> str:
        return (self.folder / "_build" / "html" / name).read_text("utf-8")

    def claims(self) -> list[dict]:
        return json.loads((self.folder / "_build" / "claims.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, root) -> Book:
    return Book(tmp_path_factory.mktemp("a book"), root)


@pytest.fixture
def book(shelf) -> Book:
    """The small book, as it was written; what the test before it built may lie there."""
    shelf.reset()
    return shelf


@pytest.fixture
def small(book) -> Book:
    """The small book, built."""
    code, said = book.build()
    assert code == 0, said
    return book


def test_a_fresh_build_executes_each_chapter_and_says_where_the_site_is(book):
    shutil.rmtree(book.folder / "_build", ignore_errors=True)
    code, said = book.build()
    assert code == 0, said
    assert "01-small.md runs" in said
    assert (book.folder / "_build" / "html" / "index.html").as_uri() in said


def test_claims_lead_to_the_nearest_heading_above_them(small):
    (claim,) = small.claims()
    assert (claim["id"], claim["chapter"], claim["value"], claim["kind"]) == ("small-price", "01-small", 40, "quoted")
    page, anchor = claim["href"].split("#")
    place = small.page(page).index(f'id="{anchor}"')
    assert "What" in small.page(page)[place:place + 300]
    assert {"statement", "low", "high", "machine", "date"} <= claim.keys()


def test_the_page_of_claims_shows_statement_number_range_and_place(small):
    page = small.page("pages/claims.html")
    assert "A | costs $1." in page
    assert '<span class="num quoted" title="quoted">40</span>' in page
    assert "36 to 44" in page
    assert f'href="../{small.claims()[0]["href"]}"' in page


def test_factors_are_collected_for_the_ledger(small):
    (factor,) = json.loads((small.folder / "_build" / "ledger.json").read_text("utf-8"))
    assert (factor["id"], factor["value"], factor["chapter"]) == ("small", 2, "01-small")


def test_the_words_of_a_figure_come_from_its_run(small):
    page = small.page("chapters/01-small.html")
    assert 'alt="A square of side &lt; 40."' in page
    assert 'alt="fig-small"' not in page


def test_a_figure_without_words_fails(book):
    book.write("chapters/01-small.md", CHAPTER.replace('{"alt": f', '{"other": f'))
    code, said = book.build()
    assert code == 1
    assert "chapters/01-small: the figure fig-small comes without a text alternative" in said


def test_a_figure_that_names_no_alternative_text_fails(book):
    book.write("chapters/01-small.md", CHAPTER.replace("  image: {alt: fig-small}\n", ""))
    code, said = book.build()
    assert code == 1
    assert re.search("chapters/01-small: the figure fig-small lacks .*alt", said)


def test_the_download_button_gives_the_twin(small):
    offered = small.folder / "_build" / "html" / "_sources" / "chapters" / "01-small.ipynb"
    assert f'{offered.name}"' in small.page("chapters/01-small.html")
    assert offered.read_text("utf-8") == TWIN


def test_mathjax_is_part_of_the_site(small):
    assert (small.folder / "_build" / "html" / "mathjax" / "tex-chtml.js").stat().st_size > 1e6
    fonts = small.folder / "_build" / "html" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2"
    assert len(list(fonts.glob("*.woff"))) > 20


def test_nothing_changed_builds_nothing(small):
    code, said = small.build()
    assert code == 0
    assert "Nothing changed" in said


def test_changed_words_execute_nothing_and_keep_the_claims(small):
    before = small.claims()
    small.write("chapters/01-small.md", CHAPTER.replace("Words for now", "Better words"))
    code, said = small.build()
    assert code == 0, said
    assert "runs" not in said
    assert "Better words" in small.page("chapters/01-small.html")
    assert small.claims() == before != []


def test_changed_data_and_library_of_this_folder_execute_again_and_change_the_pages(small):
    small.write("lib/llmflation/data/small.csv", "50\n")
    small.write(UNITS, (small.root / UNITS).read_text("utf-8") + "\n\ndef significant(value):\n    return 'mine'\n")
    code, said = small.build()
    assert code == 0, said
    assert "01-small.md runs" in said
    assert small.claims()[0]["value"] == 50
    assert ">50</span>" in small.page("chapters/01-small.html")
    assert "mine to mine" in small.page("pages/claims.html")


def test_a_failed_build_leaves_no_claims_and_is_not_taken_for_a_built_one(small):
    small.write("lib/llmflation/data/small.csv", "forty\n")
    code, said = small.build()
    assert code == 1
    assert "could not convert string to float: 'forty" in said
    assert not (small.folder / "_build" / "claims.json").exists()
    assert not (small.folder / "_build" / "ledger.json").exists()
    small.write("lib/llmflation/data/small.csv", "40\n")
    code, said = small.build()
    assert code == 0, said
    assert "01-small.md runs" in said
    assert small.claims()[0]["value"] == 40


def test_a_page_that_is_gone_from_the_contents_is_gone_from_the_site(book):
    book.write("pages/more.md", "# More\n")
    for pages in (["chapters/01-small", "pages/more"], ["chapters/01-small"]):
        book.contents(*pages)
        code, said = book.build()
        assert code == 0, said
        assert (book.folder / "_build" / "html" / "pages" / "more.html").exists() == ("pages/more" in pages)


def test_a_broken_claim_fails_in_one_sentence_and_goes_on_failing(book):
    book.write("chapters/01-small.md", CHAPTER.replace("0.9 * price, 1.1 * price", "48, 52"))
    for _ in range(2):
        code, said = book.build()
        assert code == 1
        assert "claim small-price no longer holds: 'A | costs $1.' allows 48 to 52, the number is 40" in said
        assert "Traceback" not in said
        assert "The cell begins with `claim(\"small-price\"," in said
        assert len(said.splitlines()) <= 5


def test_a_word_on_stderr_and_an_error_fail_and_are_found_in_their_report(book):
    book.write("chapters/02-warns.md", chapter("import warnings", 'warnings.warn("Beware")'))
    book.write("chapters/03-stops.md", chapter("# A comment", "", "x = 0", "1 / x"))
    book.contents("chapters/01-small", "chapters/02-warns", "chapters/03-stops")
    code, said = book.build()
    assert code == 1
    assert re.search(r"02-warns\.md:\d+: .*stderr", said)
    assert "03-stops.md stopped. ZeroDivisionError: division by zero\nThe cell begins with `x = 0`;" in said
    (report,) = re.findall(r"the whole report is (\S+)\.$", said, re.M)
    assert "1 / x" in (book.folder / report).read_text("utf-8")


def test_a_kernel_that_was_killed_is_named_with_its_usual_cause(book):
    book.write("chapters/02-grows.md", chapter("import os", "os._exit(1)"))
    book.contents("chapters/01-small", "chapters/02-grows")
    code, said = book.build()
    assert code == 1
    assert "02-grows.md stopped: its kernel was killed, and out of memory is the usual cause" in said
    assert len(said.splitlines()) <= 5


def test_a_dead_link_fails(book):
    book.write("index.md", "# Front\n\n{ref}`nowhere`\n")
    code, said = book.build()
    assert code == 1
    assert re.search(r"index\.md:3: .*nowhere", said)


def test_an_id_used_twice_is_refused_and_both_places_named(book):
    book.write("chapters/02-again.md", CHAPTER.replace("ch-small", "ch-again").replace("fig-small", "fig-again"))
    book.contents("chapters/01-small", "chapters/02-again")
    code, said = book.build()
    assert code == 1
    assert "'small-price' names two claims" in said
    assert "chapters/01-small.html#what-it-costs" in said
    assert "chapters/02-again.html#what-it-costs" in said
