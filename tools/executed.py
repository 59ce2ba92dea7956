"""The chapters, and other pages with code, as the last build executed them."""

from pathlib import Path

import nbformat
from jupyter_cache import get_cache


class BookError(Exception):
    """What is wrong with the book, in a sentence for whoever builds it."""


def executed_pages(build: Path) -> dict[str, list[nbformat.NotebookNode]]:
    """The cells of every page with code, with the outputs of their run, by the page's name; `build` is _build.

    A name is like chapters/01-llmflation. Raises BookError when a page was not executed.
    """
    cache = get_cache(str(build / ".jupyter_cache"))
    try:
        return _executed(build / "jupyter_execute", cache)
    finally:
        cache.db.dispose()  # it would stay open until it is collected, which newer Pythons warn of


def _executed(folder: Path, cache) -> dict[str, list[nbformat.NotebookNode]]:
    pages = {}
    for path in sorted(folder.rglob("*.ipynb")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        # These notebooks carry outputs only when this very build ran them; the cache always does.
        cells = nbformat.read(path, as_version=4).cells
        if any(cell.cell_type == "code" for cell in cells):
            try:
                _, run = cache.merge_match_into_notebook(nbformat.read(path, as_version=4))
            except KeyError:
                raise BookError(f"{name}.md has not been executed: build the book first.") from None
            for cell, ran in zip(cells, run.cells, strict=True):
                if cell.cell_type == "code":
                    cell.outputs = ran.outputs
        pages[name] = cells
    return pages
